/**
 * Sets of IOVAs as sorted, disjoint ranges [start, end): what a container's domains can map, less what is reserved.
 * The end is exclusive so that all 64 bits can be said in a double.
 */
import type { ReservedRegion } from "../iommu/driver.ts";

export interface IovaRange {
  readonly start: number;
  readonly end: number;
}

/** What both sets have. */
export const intersect = (a: readonly IovaRange[], b: readonly IovaRange[]): IovaRange[] => {
  const common: IovaRange[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const start = Math.max(a[i]!.start, b[j]!.start);
    const end = Math.min(a[i]!.end, b[j]!.end);
    if (start < end) common.push({ start, end });
    if (a[i]!.end < b[j]!.end) i += 1;
    else j += 1;
  }
  return common;
};

/** What is left of the set without [start, end). */
export const without = (set: readonly IovaRange[], start: number, end: number): IovaRange[] =>
  set.flatMap((range) =>
    start >= range.end || end <= range.start
      ? [range]
      : [
          { start: range.start, end: start },
          { start: end, end: range.end },
        ].filter((part) => part.start < part.end),
  );

/** Whether [start, end) lies in one range of the set. */
export const holds = (set: readonly IovaRange[], start: number, end: number): boolean =>
  set.some((range) => range.start <= start && end <= range.end);

/** The regions no mapping may touch. Relaxable direct mappings are only firmware's wish. */
export const withoutReserved = (
  set: readonly IovaRange[],
  reserved: readonly ReservedRegion[],
): IovaRange[] => {
  let left = [...set];
  for (const region of reserved)
    if (region.kind !== "direct-relaxable") left = without(left, region.start, region.start + region.length);
  return left;
};
