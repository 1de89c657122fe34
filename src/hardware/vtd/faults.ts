/**
 * Fault reasons of Intel VT-d (revision 4.1, §7.1): the code in FRCD.FR, the condition's name in the specification,
 * its words, the section, and whether FPD of the context (or PASID table) entry keeps it from being recorded. And what
 * the specification makes of the ways a page-table walk can end.
 */
import { WalkFault } from "../../pagetable/format.ts";
import { Fetch } from "../../pagetable/nested.ts";
import { Access } from "../unit.ts";
import { faultCodes } from "../walk-faults.ts";
import { Ttm } from "./spec.ts";

/** Codes that translation gives, by what they say. */
export const FaultCode = {
  /** An access that is aborted and not recorded: no code of the specification. */
  aborted: 0x00,
  rootNotPresent: 0x01,
  contextNotPresent: 0x02,
  contextInvalid: 0x03,
  addressWidth: 0x04,
  write: 0x05,
  read: 0x06,
  tableAccess: 0x07,
  rootAccess: 0x08,
  contextAccess: 0x09,
  rootReserved: 0x0a,
  contextReserved: 0x0b,
  tableReserved: 0x0c,
  requestBlocked: 0x0d,
  interruptAddress: 0x0e,
  // the root table address
  tableModeInvalid: 0x30,
  pasidInLegacyMode: 0x31,
  pageRequestInLegacyMode: 0x32,
  tableModeAborts: 0x33,
  // scalable mode: root and context entry
  scalableRootAccess: 0x38,
  scalableRootNotPresent: 0x39,
  scalableRootReserved: 0x3a,
  scalableContextAccess: 0x40,
  scalableContextNotPresent: 0x41,
  scalableContextReserved: 0x42,
  scalableContextInvalid: 0x43,
  deviceTlbDisabled: 0x44,
  pasidDisabled: 0x45,
  pasidBeyondDirectory: 0x46,
  pageRequestsDisabled: 0x47,
  ridPasidInvalid: 0x48,
  // PASID directory and table
  directoryAccess: 0x50,
  directoryNotPresent: 0x51,
  directoryReserved: 0x52,
  pasidAccess: 0x58,
  pasidNotPresent: 0x59,
  pasidReserved: 0x5a,
  pasidInvalid: 0x5b,
  executeDisabled: 0x5c,
  supervisorDisabled: 0x5d,
  // first stage
  firstAccess: 0x70,
  firstNotPresent: 0x71,
  firstReserved: 0x72,
  firstRootAccess: 0x73,
  nestedTableWidth: 0x74,
  nestedRootRead: 0x75,
  nestedTableRead: 0x76,
  nestedTableWrite: 0x77,
  // second stage
  secondAccess: 0x78,
  secondPermission: 0x79,
  secondReserved: 0x7a,
  secondRootAccess: 0x7b,
  // general
  notCanonical: 0x80,
  userPage: 0x81,
  noExecute: 0x82,
  unitWidth: 0x83,
  secondWidth: 0x84,
  noWrite: 0x85,
  noRead: 0x86,
  translatedInterrupt: 0x87,
} as const;

export interface FaultReason {
  /** The condition's name in the specification; outside legacy mode that of its group. */
  readonly name: string;
  readonly words: string;
  readonly section: string;
  /** FPD = 1 keeps the fault from being recorded. */
  readonly qualified: boolean;
}

const reason = (name: string, section: string, qualified: boolean, words: string): FaultReason => ({
  name,
  words,
  section,
  qualified,
});
const always = false;
const unlessFpd = true;

/** Every non-recoverable fault reason the specification defines; a code that is not here is reserved. */
export const faultReasons: { readonly [code: number]: FaultReason } = {
  // Legacy mode, §7.1.3
  1: reason("LRT.2", "7.1.3", always, "the root entry is not present"),
  2: reason("LCT.2", "7.1.3", unlessFpd, "the context entry is not present"),
  3: reason(
    "LCT.4",
    "7.1.3",
    unlessFpd,
    "the context entry is not valid: its address width or translation type is not supported",
  ),
  4: reason(
    "LGN.1",
    "7.1.3",
    unlessFpd,
    "the address is beyond the address width of the context entry or of the unit",
  ),
  5: reason("LGN.2", "7.1.3", unlessFpd, "a write or atomic operation lacks write permission"),
  6: reason("LGN.3", "7.1.3", unlessFpd, "a read or atomic operation lacks read permission"),
  7: reason("LSS.1", "7.1.3", unlessFpd, "a second-stage paging entry could not be read"),
  8: reason("LRT.1", "7.1.3", always, "the root entry could not be read"),
  9: reason("LCT.1", "7.1.3", always, "the context entry could not be read"),
  10: reason("LRT.3", "7.1.3", always, "a reserved field of a present root entry is not zero"),
  11: reason("LCT.3", "7.1.3", unlessFpd, "a reserved field of a present context entry is not zero"),
  12: reason(
    "LSS.2",
    "7.1.3",
    unlessFpd,
    "a reserved field of a present second-stage paging entry is not zero",
  ),
  13: reason(
    "LCT.5",
    "7.1.3",
    unlessFpd,
    "a translation request or translated request is blocked by the context entry's translation type",
  ),
  14: reason("LGN.4", "7.1.3", unlessFpd, "the translated address lies in the interrupt address range"),

  // Interrupt requests, §7.1.1 and §7.1.2
  32: reason("IR", "7.1.1", always, "a reserved field of a remappable interrupt request is not zero"),
  33: reason("IR", "7.1.1", always, "the interrupt index is beyond the interrupt remapping table"),
  34: reason("IR", "7.1.1", unlessFpd, "the interrupt remapping table entry is not present"),
  35: reason("IR", "7.1.1", always, "the interrupt remapping table entry could not be read"),
  36: reason(
    "IR",
    "7.1.1",
    unlessFpd,
    "a reserved field of a present interrupt remapping table entry is not zero",
  ),
  37: reason("IR", "7.1.1", always, "a compatibility format interrupt request is blocked"),
  38: reason("IR", "7.1.1", unlessFpd, "the source id failed the validation its remapping entry asks for"),
  39: reason("PI", "7.1.2", unlessFpd, "the posted interrupt descriptor could not be accessed"),
  40: reason("PI", "7.1.2", unlessFpd, "a reserved field of the posted interrupt descriptor is not zero"),

  // Scalable mode, §7.1.3: root table address and root entry
  48: reason("RTA", "7.1.3", always, "the translation table mode of the root table address is not valid"),
  49: reason("RTA", "7.1.3", always, "a request with PASID while the mode is legacy"),
  50: reason("RTA", "7.1.3", always, "a page group request while the mode is legacy"),
  51: reason("RTA", "7.1.3", always, "the translation table mode aborts every request"),
  56: reason("SRT", "7.1.3", always, "the scalable-mode root entry could not be read"),
  57: reason("SRT", "7.1.3", always, "the scalable-mode root entry is not present"),
  58: reason("SRT", "7.1.3", always, "a reserved field of a present scalable-mode root entry is not zero"),
  // context entry
  64: reason("SCT", "7.1.3", always, "the scalable-mode context entry could not be read"),
  65: reason("SCT", "7.1.3", unlessFpd, "the scalable-mode context entry is not present"),
  66: reason(
    "SCT",
    "7.1.3",
    unlessFpd,
    "a reserved field of a present scalable-mode context entry is not zero",
  ),
  67: reason("SCT", "7.1.3", unlessFpd, "the scalable-mode context entry is not valid"),
  68: reason("SCT", "7.1.3", unlessFpd, "a translation or translated request while DTE is 0"),
  69: reason("SCT", "7.1.3", unlessFpd, "a request with PASID while PASIDE is 0"),
  70: reason("SCT", "7.1.3", unlessFpd, "the PASID is beyond the PASID directory"),
  71: reason("SCT", "7.1.3", unlessFpd, "a page group request while PRE is 0"),
  72: reason("SCT", "7.1.3", unlessFpd, "RID_PASID is not valid"),
  // PASID directory and table
  80: reason("SPD", "7.1.3", always, "the PASID directory entry could not be read"),
  81: reason("SPD", "7.1.3", unlessFpd, "the PASID directory entry is not present"),
  82: reason("SPD", "7.1.3", unlessFpd, "a reserved field of a present PASID directory entry is not zero"),
  88: reason("SPT", "7.1.3", always, "the PASID table entry could not be read"),
  89: reason("SPT", "7.1.3", unlessFpd, "the PASID table entry is not present"),
  90: reason("SPT", "7.1.3", unlessFpd, "a reserved field of a present PASID table entry is not zero"),
  91: reason("SPT", "7.1.3", unlessFpd, "the PASID table entry is not valid"),
  92: reason("SPT", "7.1.3", unlessFpd, "an execute request while ERE is 0"),
  93: reason("SPT", "7.1.3", unlessFpd, "a privileged request while SRE is 0"),
  // first stage
  112: reason("SFS", "7.1.3", unlessFpd, "a first-stage paging entry could not be read"),
  113: reason("SFS", "7.1.3", unlessFpd, "a first-stage paging entry is not present"),
  114: reason(
    "SFS",
    "7.1.3",
    unlessFpd,
    "a reserved field of a present first-stage paging entry is not zero",
  ),
  115: reason("SFS", "7.1.3", unlessFpd, "the first entry of the first stage could not be read"),
  116: reason("SFS", "7.1.3", unlessFpd, "nested: a first-stage table lies beyond the second stage's width"),
  117: reason("SFS", "7.1.3", unlessFpd, "nested: the second stage forbids reading the first entry"),
  118: reason("SFS", "7.1.3", unlessFpd, "nested: the second stage forbids reading a first-stage entry"),
  119: reason("SFS", "7.1.3", unlessFpd, "nested: the second stage forbids writing a first-stage entry"),
  // second stage
  120: reason("SSS", "7.1.3", unlessFpd, "a second-stage paging entry could not be read"),
  121: reason("SSS", "7.1.3", unlessFpd, "a second-stage paging entry denies read or write"),
  122: reason(
    "SSS",
    "7.1.3",
    unlessFpd,
    "a reserved field of a present second-stage paging entry is not zero",
  ),
  123: reason("SSS", "7.1.3", unlessFpd, "the first entry of the second stage could not be read"),
  124: reason("SSS", "7.1.3", unlessFpd, "second-stage A/D bits cannot be set: its tables are not snooped"),
  // general
  128: reason("SGN", "7.1.3", unlessFpd, "the address is not canonical for the first stage"),
  129: reason("SGN", "7.1.3", unlessFpd, "a user request met a supervisor page"),
  130: reason("SGN", "7.1.3", unlessFpd, "an execute request lacks execute permission"),
  131: reason("SGN", "7.1.3", unlessFpd, "the address is beyond the width of the unit"),
  132: reason("SGN", "7.1.3", unlessFpd, "the address is beyond the second stage's width"),
  133: reason("SGN", "7.1.3", unlessFpd, "a write or atomic operation lacks write permission"),
  134: reason("SGN", "7.1.3", unlessFpd, "a read or atomic operation lacks read permission"),
  135: reason("SGN", "7.1.3", unlessFpd, "the translated address lies in the interrupt address range"),
  144: reason("SGN", "7.1.3", unlessFpd, "first-stage A/D bits cannot be set: its tables are not snooped"),
};

/** One sentence: words, name and section. */
export const describeFault = (code: number): string => {
  if (code === FaultCode.aborted)
    return "the interrupt address range takes DWORD writes only: the request is aborted and not recorded (§3.15)";
  const found = faultReasons[code];
  return found
    ? `${found.words} (${found.name}, reason ${code.toString(16).toUpperCase()}h, §${found.section})`
    : `reserved fault reason ${code.toString(16).toUpperCase()}h`;
};

/** §11.4.6 What a translation table mode that is not legacy or scalable does to every request. */
export const modeFault = (mode: number): number =>
  mode === Ttm.abort ? FaultCode.tableModeAborts : mode === Ttm.reserved ? FaultCode.tableModeInvalid : 0;

/** Legacy mode; 0: it depends on the access. */
const secondStageFaults = faultCodes(0, {
  read: FaultCode.read,
  write: FaultCode.write,
  reserved: FaultCode.tableReserved,
  outputWidth: FaultCode.tableReserved,
  inputWidth: FaultCode.addressWidth,
  tableUnreadable: FaultCode.tableAccess,
});
/** What a legacy-mode second-stage walk that ended so is reported as. */
export const secondStageFault = (fault: number, access: number): number =>
  secondStageFaults[fault] ||
  ((access & (Access.write | Access.atomic)) !== 0 ? FaultCode.write : FaultCode.read);

/** The group of the codes that scalable-mode translation gives when a table of the second stage ended it. */
const secondStageCodes = faultCodes(FaultCode.secondPermission, {
  tableUnreadable: FaultCode.secondAccess,
  reserved: FaultCode.secondReserved,
  outputWidth: FaultCode.secondReserved,
  inputWidth: FaultCode.secondWidth,
});
/** What a first-stage walk that ended so is reported as. */
const firstStageCodes = faultCodes(FaultCode.firstReserved, {
  tableUnreadable: FaultCode.firstAccess,
  notPresent: FaultCode.firstNotPresent,
  inputWidth: FaultCode.notCanonical,
  user: FaultCode.userPage,
  execute: FaultCode.noExecute,
  write: FaultCode.noWrite,
  read: FaultCode.noRead,
});

/** Where a scalable-mode walk ended: see `NestedResult`; `top` and `guestTop` say that the level is that of the root. */
export interface WalkEnd {
  readonly fault: number;
  readonly stage: number;
  readonly fetch: number;
  readonly top: boolean;
  readonly guestTop: boolean;
}

/** §7.1.3 What a scalable-mode walk that ended so is reported as. */
export const scalableFault = ({ fault, stage, fetch, top, guestTop }: WalkEnd): number => {
  const unread = fault === WalkFault.tableUnreadable && top;
  if (stage === 1) return unread ? FaultCode.firstRootAccess : firstStageCodes[fault]!;
  const code = unread ? FaultCode.secondRootAccess : secondStageCodes[fault]!;
  if (fetch === Fetch.page) return code;
  // On the way to a first-stage entry the faults of the second stage's mapping have codes of their own.
  if (code === FaultCode.secondWidth) return FaultCode.nestedTableWidth;
  if (code !== FaultCode.secondPermission) return code;
  if (fetch === Fetch.update) return FaultCode.nestedTableWrite;
  return guestTop ? FaultCode.nestedRootRead : FaultCode.nestedTableRead;
};
