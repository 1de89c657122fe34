/**
 * PCIe address translation services as a unit and the functions behind it see them (PCI Express base specification,
 * chapter 10): translation requests, invalidation of what a function remembers, page requests and their responses. A
 * unit that has them is an `AtsUnit` besides an `IommuUnit`.
 */
import type { Transaction, TranslateStatus } from "./unit.ts";

/** What a function's device-TLB is to forget. */
export interface DeviceTlbInvalidation {
  readonly rid: number;
  /** `NO_PASID`: what was translated without one. */
  readonly pasid: number;
  /** Of every PASID. */
  readonly global: boolean;
  /** First address, two words, and the lg2 of the bytes; 64: everything. */
  readonly lo: number;
  readonly hi: number;
  readonly lg2: number;
}

/** How a function answered: completed, not in time, or with an invalid completion. */
export type DeviceTlbAnswer = "done" | "timeout" | "invalid";

/** §10.4 A page that a function asks for. */
export interface PageRequest {
  readonly rid: number;
  readonly pasid: number;
  /** Address of the page, two words. */
  readonly lo: number;
  readonly hi: number;
  /** `Access` bits. */
  readonly access: number;
  /** Page request group index, 0 to 511, and whether this is its last request. */
  readonly group: number;
  readonly last: boolean;
}

/** §10.4.2 Response codes. */
export const PageResponse = { success: 0, invalid: 1, failure: 15 } as const;

/** Takes the response to a group of page requests. */
export type PageResponder = (rid: number, pasid: number, group: number, response: number) => void;

export interface AtsUnit {
  /**
   * A translation request: `access` is what the function would like. Ok: `pa` and `span` as of a translation, and
   * `granted` what it may do there, which can be nothing. Fault: the request was refused.
   */
  requestTranslation(transaction: Transaction): TranslateStatus;
  requestPage(request: PageRequest): void;
  /** Set by whoever knows the functions. */
  invalidateDeviceTlb: (what: DeviceTlbInvalidation) => DeviceTlbAnswer;
  onPageResponse: PageResponder;
}
