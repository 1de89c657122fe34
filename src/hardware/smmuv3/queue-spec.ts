/**
 * What goes through the queues of an Arm SMMUv3 (IHI 0070, revision F.b): commands, event records, page requests; bits and
 * meanings, nothing that acts. Of a command's fields only those that the model looks at, or prints, are named.
 */
import { address, bit, bits, layout } from "../../uapi/layout.ts";

// §4 Commands

export const COMMAND_BYTES = 16;
export const Opcode = {
  PREFETCH_CONFIG: 0x01,
  PREFETCH_ADDR: 0x02,
  CFGI_STE: 0x03,
  CFGI_STE_RANGE: 0x04,
  CFGI_CD: 0x05,
  CFGI_CD_ALL: 0x06,
  TLBI_NH_ALL: 0x10,
  TLBI_NH_ASID: 0x11,
  TLBI_NH_VA: 0x12,
  TLBI_NH_VAA: 0x13,
  TLBI_EL2_ALL: 0x20,
  TLBI_EL2_ASID: 0x21,
  TLBI_EL2_VA: 0x22,
  TLBI_EL2_VAA: 0x23,
  TLBI_S12_VMALL: 0x28,
  TLBI_S2_IPA: 0x2a,
  TLBI_NSNH_ALL: 0x30,
  ATC_INV: 0x40,
  PRI_RESP: 0x41,
  RESUME: 0x44,
  STALL_TERM: 0x45,
  SYNC: 0x46,
} as const;

/** What every command has. */
const command = { OPCODE: bits(0, 7, "opcode"), SSEC: bit(10, "secure") };
export const StreamCommand = layout("command", 16, {
  ...command,
  SSV: bit(11, "with SubstreamID"),
  SSID: bits(12, 31, "SubstreamID"),
  SID: bits(32, 63, "StreamID"),
  // Leaf, of CFGI_STE_RANGE the range.
  RANGE: bits(64, 68, "lg2 of the streams, minus 1; of other commands leaf only"),
});
export const TlbiCommand = layout("TLB invalidation", 16, {
  ...command,
  NUM: bits(12, 16, "pages - 1, in units of 2^Scale"),
  SCALE: bits(20, 24, "lg2 of the unit"),
  VMID: bits(32, 47, "VMID"),
  ASID: bits(48, 63, "ASID"),
  LEAF: bit(64, "leaf only"),
  TTL: bits(72, 73, "level hint"),
  TG: bits(74, 75, "range of pages", { 0: "no", 1: "4 KiB", 2: "16 KiB", 3: "64 KiB" }),
  ADDRESS: address(76, 127, "address"),
});
export const AtcCommand = layout("ATC_INV", 16, {
  ...command,
  G: bit(9, "all SubstreamIDs"),
  SSV: bit(11, "with SubstreamID"),
  SSID: bits(12, 31, "SubstreamID"),
  SID: bits(32, 63, "StreamID"),
  SIZE: bits(64, 69, "2^Size pages of 4 KiB"),
  ADDRESS: address(76, 127, "address"),
});
export const PriCommand = layout("PRI_RESP", 16, {
  ...command,
  SSV: bit(11, "with SubstreamID"),
  SSID: bits(12, 31, "SubstreamID"),
  SID: bits(32, 63, "StreamID"),
  PRGINDEX: bits(64, 72, "page request group"),
  RESP: bits(76, 77, "response", { 0: "failure", 1: "invalid", 2: "success" }),
});
export const ResumeCommand = layout("RESUME", 16, {
  ...command,
  AC: bit(12, "retry"),
  AB: bit(13, "abort"),
  SID: bits(32, 63, "StreamID"),
  STAG: bits(64, 79, "stall tag"),
});
export const SyncCommand = layout("SYNC", 16, {
  ...command,
  CS: bits(12, 13, "completion", { 0: "none", 1: "interrupt", 2: "event" }),
  MSH: bits(22, 23, "shareability"),
  MSIATTR: bits(24, 27, "memory attributes"),
  MSIDATA: bits(32, 63, "data of the message"),
  MSIADDRESS: address(66, 115, "address of the message", 2),
});
export const Completion = { none: 0, interrupt: 1, event: 2 } as const;

// §7.3 Events, and §8.1 page requests

export const EVENT_BYTES = 32;
export const PRI_BYTES = 16;

export const EventCode = {
  F_UUT: 0x01,
  C_BAD_STREAMID: 0x02,
  F_STE_FETCH: 0x03,
  C_BAD_STE: 0x04,
  F_BAD_ATS_TREQ: 0x05,
  F_STREAM_DISABLED: 0x06,
  F_TRANSL_FORBIDDEN: 0x07,
  C_BAD_SUBSTREAMID: 0x08,
  F_CD_FETCH: 0x09,
  C_BAD_CD: 0x0a,
  F_WALK_EABT: 0x0b,
  F_TRANSLATION: 0x10,
  F_ADDR_SIZE: 0x11,
  F_ACCESS: 0x12,
  F_PERMISSION: 0x13,
} as const;

/** §7.3 What a fault came up for. */
export const EventClass = { cd: 0, table: 1, input: 2 } as const;

export const EventRecord = layout("event", 32, {
  TYPE: bits(0, 7, "event"),
  SSV: bit(11, "with SubstreamID"),
  SSID: bits(12, 31, "SubstreamID"),
  SID: bits(32, 63, "StreamID"),
  STAG: bits(64, 79, "stall tag; of fetches the reason"),
  STALL: bit(95, "stalled"),
  PNU: bit(97, "privileged"),
  IND: bit(98, "instruction"),
  RNW: bit(99, "read"),
  NSIPA: bit(100, "non-secure"),
  S2: bit(103, "stage 2"),
  CLASS: bits(104, 105, "came up for", { 0: "a context descriptor", 1: "a table", 2: "the access" }),
  ADDRESS: bits(128, 191, "input address"),
  FETCH: bits(192, 255, "address that was fetched, or the IPA"),
});

export const PageRequestRecord = layout("page request", 16, {
  SID: bits(0, 31, "StreamID"),
  SSID: bits(32, 51, "SubstreamID"),
  PNU: bit(58, "privileged"),
  EXEC: bit(59, "execute"),
  READ: bit(60, "read"),
  WRITE: bit(61, "write"),
  LAST: bit(62, "last of its group"),
  SSV: bit(63, "with SubstreamID"),
  PRGINDEX: bits(64, 72, "page request group"),
  ADDRESS: address(76, 127, "page"),
});
