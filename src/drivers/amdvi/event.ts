/** What an entry of the unit's logs (48882, revision 3.07, §2.5, §2.6) says to whoever is above the driver. */
import { EventCode, EventEntry, PprEntry } from "../../hardware/amdvi/queue-spec.ts";
import {
  type FaultReason,
  type PageRequest,
  RequestPermission,
  type UnrecoverableFault,
} from "../../iommu/driver.ts";

/** A fault as the driver read it from the event log. */
export interface ReportedFault {
  readonly rid: number;
  /** Absent: the request had none, or the event does not tell. */
  readonly pasid?: number;
  readonly address: bigint;
  readonly write: boolean;
  readonly code: number;
}

const e = EventEntry.fields;
const p = PprEntry.fields;

/** An address, exact. */
const addressIn = (words: Uint32Array, { word }: { readonly word: number }): bigint =>
  (BigInt(words[word + 1]!) << 32n) | BigInt(words[word]!);

export const reportOf = (words: Uint32Array): ReportedFault => ({
  rid: e.DEVICE.get(words),
  ...(e.GN.get(words) === 1 && { pasid: e.ID.get(words) | (e.PASID_19.get(words) << 16) }),
  address: addressIn(words, e.ADDRESS),
  write: e.RW.get(words) === 1,
  code: e.CODE.get(words),
});

/** Of an event about a guest-format table; about tables of the host its owner is told nothing more. */
const reasonOf = (words: Uint32Array): FaultReason => {
  switch (e.CODE.get(words)) {
    case EventCode.IO_PAGE_FAULT:
      return e.PE.get(words) ? "permission" : "entry";
    case EventCode.PAGE_TAB_HARDWARE_ERROR:
      return "walk-abort";
    default:
      return "unknown";
  }
};

/** `guest`: requests of the function without PASID go through a guest-format table. */
export const faultOf = (words: Uint32Array, guest: boolean): UnrecoverableFault => {
  const { pasid, address, write } = reportOf(words);
  const fetches = e.NX.get(words) ? RequestPermission.execute : RequestPermission.read;
  return {
    ...(pasid !== undefined && { pasid }),
    address,
    permissions: write ? RequestPermission.write : fetches,
    reason: guest || pasid !== undefined ? reasonOf(words) : "unknown",
  };
};

/** §2.6.1 */
export const pageRequestOf = (words: Uint32Array): PageRequest => {
  const tagged = p.GN.get(words) === 1;
  return {
    ...(tagged && { pasid: p.PASID.get(words) | (p.PASID_19.get(words) << 16) }),
    group: p.TAG.get(words),
    last: p.LAST.get(words) === 1,
    address: addressIn(words, p.ADDRESS),
    permissions:
      (p.READ.get(words) && RequestPermission.read) |
      (p.WRITE.get(words) && RequestPermission.write) |
      (p.EXECUTE.get(words) && RequestPermission.execute) |
      (tagged && p.US.get(words) === 0 ? RequestPermission.privileged : 0),
  };
};
