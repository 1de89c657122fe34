/**
 * Firmware's part: gives every BAR of a machine its place in the MMIO ranges, first fit, aligned to its size. 32-bit
 * BARs lie below 4 GiB; 64-bit ones go to the high range where there is one. BARs of less than a page get pages of
 * their own, so that each can be mapped alone.
 */
import type { BarShape } from "./pci-function.ts";

const PAGE = 4096;

export interface MmioRanges {
  /** [start, end) below 4 GiB. */
  readonly mem32: { readonly start: number; readonly end: number };
  readonly mem64?: { readonly start: number; readonly end: number };
  /** Port numbers, [start, end). */
  readonly io?: { readonly start: number; readonly end: number };
}

/** Returns the `barBase` of a `FunctionContext`. It throws a RangeError when a range is full. */
export const placement = (ranges: MmioRanges): ((bar: BarShape) => number) => {
  const next = { mem32: ranges.mem32.start, mem64: ranges.mem64?.start ?? 0, io: ranges.io?.start ?? 0 };
  return ({ index, kind, size }) => {
    const from = kind === "mem64" && !ranges.mem64 ? "mem32" : kind;
    const range = ranges[from];
    const align = from === "io" ? size : Math.max(size, PAGE);
    const base = Math.ceil(next[from] / align) * align;
    if (!range || base + align > range.end)
      throw new RangeError(`BAR ${index}: no room for ${size} bytes in the ${from} range`);
    next[from] = base + align;
    return base;
  };
};
