/**
 * The regions of a PCI function in its device file: region n begins at n · 2^40 (linux/vfio.h leaves the place to the
 * kernel; programs take it from GET_REGION_INFO). Six BARs, ROM, config space, VGA. A fault region may come after them
 * (`fault-region.ts`). Left out: ROM contents and VGA, which no model has.
 */
import type { Bar, PciFunction } from "../pci/function.ts";
import { MsixEntry } from "../pci/spec.ts";
import {
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_ROM_REGION_INDEX,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
} from "../uapi/vfio.ts";
import type { MsixTable } from "./message-vectors.ts";

const PAGE_BYTES = 4096;
const REGION_LG2 = 40n;
export const REGION_BYTES = 1n << REGION_LG2;

export const regionOffset = (index: number): bigint => BigInt(index) << REGION_LG2;
export const regionIndex = (offset: bigint): number => Number(offset >> REGION_LG2);
/** Bytes from the region's start; exact. */
export const withinRegion = (offset: bigint): number => Number(offset & (REGION_BYTES - 1n));

export const isBar = (index: number): boolean => index < VFIO_PCI_ROM_REGION_INDEX;
export const barOf = (pci: PciFunction, index: number): Bar | undefined =>
  pci.bars.find((bar) => bar.index === index);

/** Memory can be mapped where the machine allows it, and when the BAR has its pages for itself. */
export const canMap = (bar: Bar): boolean =>
  bar.kind !== "io" && bar.mappable && (bar.size >= PAGE_BYTES || bar.base % PAGE_BYTES === 0);

/** Bytes of a mapping of the whole BAR. */
export const mappedBytes = (bar: Bar): number => Math.ceil(bar.size / PAGE_BYTES) * PAGE_BYTES;

export const regionSize = (pci: PciFunction, index: number): number => {
  if (isBar(index)) return barOf(pci, index)?.size ?? 0;
  return index === VFIO_PCI_CONFIG_REGION_INDEX ? pci.configSize : 0;
};

/** VFIO_REGION_INFO_FLAG_* without CAPS. */
export const regionFlags = (pci: PciFunction, index: number): number => {
  if (regionSize(pci, index) === 0) return 0;
  const bar = isBar(index) ? barOf(pci, index) : undefined;
  const access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
  return bar && canMap(bar) ? access | VFIO_REGION_INFO_FLAG_MMAP : access;
};

/** Whether a byte of the BAR belongs to the vector table, which pread and pwrite do not reach. */
export interface Excluded {
  readonly start: number;
  readonly end: number;
}

export const excludedOf = (msix: MsixTable | undefined, bar: number): Excluded =>
  msix?.bar === bar
    ? { start: msix.offset, end: msix.offset + msix.vectors * MsixEntry.BYTES }
    : { start: 0, end: 0 };

/**
 * Cuts an access to a BAR into what a CPU makes of it: naturally aligned pieces of 8, 4, 2 and 1 bytes, none of which
 * crosses the edge of the vector table.
 */
export const eachPiece = (
  offset: number,
  length: number,
  excluded: Excluded,
  access: (at: number, width: number, done: number, inTable: boolean) => void,
): void => {
  for (let done = 0; done < length; ) {
    const at = offset + done;
    const inTable = at >= excluded.start && at < excluded.end;
    let left = length - done;
    if (inTable) left = Math.min(left, excluded.end - at);
    else if (at < excluded.start) left = Math.min(left, excluded.start - at);
    let width = 8;
    while (width > 1 && (at % width !== 0 || left < width)) width /= 2;
    if (inTable) width = left;
    access(at, width, done, inTable);
    done += width;
  }
};
