/**
 * Why an SMMUv3 refuses a transaction (IHI 0070, §7.3): the event numbers with their words, what a record says besides,
 * and which of them a context or stream may keep from being recorded, or stall.
 */
import { faultCodes } from "../walk-faults.ts";
import { EventClass, EventCode } from "./queue-spec.ts";

/** Refused, and no event says so: an aborting stream, GBPA, a record that R forbids is told by its own code. */
export const ABORTED = 0x100;

const words: { readonly [code: number]: readonly [section: string, words: string] } = {
  [EventCode.F_UUT]: ["§7.3.2", "unsupported upstream transaction"],
  [EventCode.C_BAD_STREAMID]: ["§7.3.3", "the StreamID has no stream table entry"],
  [EventCode.F_STE_FETCH]: ["§7.3.4", "the stream table entry cannot be read"],
  [EventCode.C_BAD_STE]: ["§7.3.5", "the stream table entry is not valid"],
  [EventCode.F_BAD_ATS_TREQ]: ["§7.3.6", "a translation request that the stream does not allow"],
  [EventCode.F_STREAM_DISABLED]: ["§7.3.7", "without SubstreamID the stream is disabled"],
  [EventCode.F_TRANSL_FORBIDDEN]: ["§7.3.8", "a translated access that the stream does not allow"],
  [EventCode.C_BAD_SUBSTREAMID]: ["§7.3.9", "the SubstreamID has no context descriptor"],
  [EventCode.F_CD_FETCH]: ["§7.3.10", "the context descriptor cannot be read"],
  [EventCode.C_BAD_CD]: ["§7.3.11", "the context descriptor is not valid"],
  [EventCode.F_WALK_EABT]: ["§7.3.12", "a table cannot be read"],
  [EventCode.F_TRANSLATION]: ["§7.3.13", "translation fault"],
  [EventCode.F_ADDR_SIZE]: ["§7.3.14", "an address is too large"],
  [EventCode.F_ACCESS]: ["§7.3.15", "access flag fault"],
  [EventCode.F_PERMISSION]: ["§7.3.16", "permission fault"],
  [ABORTED]: ["§5.2", "aborted without an event"],
};
const names = new Map<number, string>(Object.entries(EventCode).map(([name, code]) => [code, name]));

export const describeFault = (code: number): string => {
  const [section, text] = words[code]!;
  return `${names.get(code) ?? "abort"} (${section}): ${text}`;
};

/** §3.12: faults of translation proper, which R, S and A of the context are about. */
export const isTranslationFault = (code: number): boolean =>
  code >= EventCode.F_TRANSLATION && code <= EventCode.F_PERMISSION;

const walkFaults = faultCodes(EventCode.F_PERMISSION, {
  notPresent: EventCode.F_TRANSLATION,
  reserved: EventCode.F_TRANSLATION,
  inputWidth: EventCode.F_TRANSLATION,
  outputWidth: EventCode.F_ADDR_SIZE,
  accessFlag: EventCode.F_ACCESS,
  tableUnreadable: EventCode.F_WALK_EABT,
});
/** What a walk that ended in a fault is. Arm has nothing reserved that faults: what is no valid entry translates nothing. */
export const walkFaultCode = (fault: number): number => walkFaults[fault]!;

/** A fault as far as a record tells it. One is kept and used again. */
export class Fault {
  code = 0;
  stage2 = false;
  class: number = EventClass.input;
  /** The address that was fetched, or the IPA that stage 2 was given. */
  address = 0;
  /** Reads that come up on the way are reads, whatever the transaction is. */
  ownRead = false;

  set(code: number, address = 0): number {
    this.code = code;
    this.stage2 = false;
    this.class = EventClass.input;
    this.address = address;
    this.ownRead = false;
    return code;
  }

  /** A fault of the second stage. */
  below(code: number, what: number, address: number): number {
    this.code = code;
    this.stage2 = true;
    this.class = what;
    this.address = address;
    this.ownRead = what !== EventClass.input;
    return code;
  }
}
