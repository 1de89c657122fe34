/**
 * The regions of a PCI function in its device file: region n begins at n · 2^40 (linux/vfio.h leaves the place to the
 * kernel; programs take it from GET_REGION_INFO). Six BARs, ROM, config space, VGA. A fault region may come after them
 * (`fault-region.ts`). Left out: VGA, which no model has.
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

/** Bytes of a BAR, whole pages. */
export interface Area {
  readonly offset: number;
  readonly size: number;
}

const pageUp = (bytes: number): number => Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
const pageDown = (bytes: number): number => Math.floor(bytes / PAGE_BYTES) * PAGE_BYTES;

/**
 * What of a BAR can be mapped: memory, where the machine allows it, when the BAR has its pages for itself; all of it, or
 * what is left without the pages of the vector table.
 */
export const mappableAreas = (bar: Bar, msix: MsixTable | undefined): readonly Area[] => {
  if (bar.kind === "io" || !bar.mappable || (bar.size < PAGE_BYTES && bar.base % PAGE_BYTES !== 0)) return [];
  const whole = { offset: 0, size: pageUp(bar.size) };
  const { start, end } = excludedOf(msix, bar.index);
  if (!bar.sparse || start === end) return [whole];
  const after = pageUp(end);
  return [
    { offset: 0, size: pageDown(start) },
    { offset: after, size: whole.size - after },
  ].filter(({ size }) => size > 0);
};

export const regionSize = (pci: PciFunction, index: number): number => {
  if (isBar(index)) return barOf(pci, index)?.size ?? 0;
  if (index === VFIO_PCI_ROM_REGION_INDEX) return pci.rom?.size ?? 0;
  return index === VFIO_PCI_CONFIG_REGION_INDEX ? pci.configSize : 0;
};

/** VFIO_REGION_INFO_FLAG_* without CAPS. */
export const regionFlags = (pci: PciFunction, index: number, msix: MsixTable | undefined): number => {
  if (regionSize(pci, index) === 0) return 0;
  if (index === VFIO_PCI_ROM_REGION_INDEX) return VFIO_REGION_INFO_FLAG_READ;
  const bar = isBar(index) ? barOf(pci, index) : undefined;
  const access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
  return bar && mappableAreas(bar, msix).length > 0 ? access | VFIO_REGION_INFO_FLAG_MMAP : access;
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
