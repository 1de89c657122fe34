/**
 * How a guest on POWER reaches its TCE tables: calls of its hypervisor and RTAS calls (Linux on Power Architecture Platform
 * Reference, LoPAR, chapters "hypervisor call functions" and "dynamic DMA windows"). The tables are the hypervisor's: a guest
 * names a window by its number (LIOBN) and an entry by its bus address.
 */

/** Hypervisor calls about TCEs. */
export const Hcall = { GET_TCE: 0x1c, PUT_TCE: 0x20, PUT_TCE_INDIRECT: 0x138, STUFF_TCE: 0x13c } as const;

/** What a hypervisor call answers. */
export const HcallStatus = {
  H_SUCCESS: 0,
  H_HARDWARE: -1,
  H_FUNCTION: -2,
  H_PARAMETER: -4,
  H_RESOURCE: -16,
} as const;
export type HcallStatus = (typeof HcallStatus)[keyof typeof HcallStatus];

/** The name of a status, for people. */
export const statusName = (status: number): string =>
  Object.entries(HcallStatus).find(([, value]) => value === status)?.[0] ?? String(status);

/** RTAS calls about windows, by the names that a device tree has. */
export const Rtas = {
  query: "ibm,query-pe-dma-window",
  create: "ibm,create-pe-dma-window",
  remove: "ibm,remove-pe-dma-window",
} as const;
/** What an RTAS call answers first. */
export const RtasStatus = { success: 0, hardware: -1, parameter: -3 } as const;

/** TCEs that one call takes from a list, which is a page. */
export const LIST_TCES = 512;
export const LIST_BYTES = 4096;
/** Bits of a TCE. */
export const Tce = { read: 1n, write: 2n, address: ((1n << 52n) - 1n) & ~0xfffn } as const;

/** The bridge that RTAS calls name ("ibm,buid"), in two halves. */
export const BUID = { high: 0x0800_0000, low: 0x2000_0000 } as const;
/** Page sizes as `query` tells them: bit by lg2. */
export const DDW_PAGES = new Map<number, number>([
  [12, 1 << 0],
  [16, 1 << 1],
  [24, 1 << 2],
  [28, 1 << 6],
]);

/** A window as the guest knows it ("ibm,dma-window"). */
export interface GuestWindow {
  readonly liobn: number;
  readonly start: number;
  /** Bytes. */
  readonly length: number;
  readonly pageLg2: number;
}
