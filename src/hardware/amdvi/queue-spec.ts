/**
 * What goes through the rings of AMD-Vi (48882, revision 3.07): commands (§2.4), event log entries (§2.5) and PPR log
 * entries (§2.6); bits and meanings, nothing that acts. All are 128 bits.
 */
import { address, bit, bits, layout } from "../../uapi/layout.ts";

export const ENTRY_BYTES = 16;

/** §2.4 */
export const Opcode = {
  COMPLETION_WAIT: 1,
  INVALIDATE_DEVTAB_ENTRY: 2,
  INVALIDATE_IOMMU_PAGES: 3,
  INVALIDATE_IOTLB_PAGES: 4,
  INVALIDATE_INTERRUPT_TABLE: 5,
  PREFETCH_IOMMU_PAGES: 6,
  COMPLETE_PPR_REQUEST: 7,
  INVALIDATE_IOMMU_ALL: 8,
} as const;

const command = { OPCODE: bits(60, 63, "opcode") };
/** What every command has. */
export const Command = layout("command", 16, command);
/** §2.4.1 */
export const CompletionWait = layout("COMPLETION_WAIT", 16, {
  ...command,
  S: bit(0, "store"),
  I: bit(1, "interrupt"),
  F: bit(2, "later commands wait"),
  ADDRESS: address(3, 51, "where the data is stored"),
  DATA: bits(64, 127, "data"),
});
/** §2.4.2 and §2.4.5 */
export const DeviceCommand = layout("command for a device", 16, {
  ...command,
  DEVICE: bits(0, 15, "device id"),
});
/** An address that may encode a size. */
const pages = {
  S: bit(64, "the address encodes a size"),
  GN: bit(66, "guest addresses"),
  ADDRESS: address(76, 127, "address"),
};
/** §2.4.3 */
export const InvalidatePages = layout("INVALIDATE_IOMMU_PAGES", 16, {
  ...command,
  PASID: bits(0, 19, "PASID"),
  DOMAIN: bits(32, 47, "domain id"),
  PDE: bit(65, "also of entries that point to tables"),
  ...pages,
});
/** §2.4.4 */
export const InvalidateIotlb = layout("INVALIDATE_IOTLB_PAGES", 16, {
  ...command,
  DEVICE: bits(0, 15, "device id"),
  PASID_15: bits(16, 23, "PASID, bits 15:8"),
  MAXPEND: bits(24, 31, "most requests outstanding"),
  QUEUE: bits(32, 47, "queue id"),
  PASID_7: bits(48, 55, "PASID, bits 7:0"),
  PASID_19: bits(56, 59, "PASID, bits 19:16"),
  TYPE: bits(68, 69, "type"),
  ...pages,
});
/** §2.4.6 */
export const PrefetchPages = layout("PREFETCH_IOMMU_PAGES", 16, {
  ...command,
  DEVICE: bits(0, 15, "device id"),
  PFCOUNT: bits(24, 31, "pages"),
  PASID: bits(32, 51, "PASID"),
  HINTS: bits(68, 71, "hints"),
  ...pages,
});
/** §2.4.7 */
export const CompletePpr = layout("COMPLETE_PPR_REQUEST", 16, {
  ...command,
  DEVICE: bits(0, 15, "device id"),
  PASID: bits(32, 51, "PASID"),
  GN: bit(66, "with PASID"),
  TAG: bits(96, 104, "page request group"),
  CODE: bits(108, 111, "response", { 0: "success", 1: "invalid", 15: "failure" }),
});
/** §2.4.8 */
export const InvalidateAll = layout("INVALIDATE_IOMMU_ALL", 16, command);

/** §2.5 */
export const EventCode = {
  ILLEGAL_DEV_TABLE_ENTRY: 1,
  IO_PAGE_FAULT: 2,
  DEV_TAB_HARDWARE_ERROR: 3,
  PAGE_TAB_HARDWARE_ERROR: 4,
  ILLEGAL_COMMAND_ERROR: 5,
  COMMAND_HARDWARE_ERROR: 6,
  IOTLB_INV_TIMEOUT: 7,
  INVALID_DEVICE_REQUEST: 8,
  INVALID_PPR_REQUEST: 9,
  RMP_PAGE_FAULT: 0xd,
  RMP_HARDWARE_ERROR: 0xe,
} as const;

/** §2.5.2 to §2.5.10 An event log entry. Fields that an event has not are zero. */
export const EventEntry = layout("event", 16, {
  DEVICE: bits(0, 15, "device id"),
  PASID_19: bits(16, 19, "PASID, bits 19:16"),
  ID: bits(32, 47, "PASID, bits 15:0, with GN; else the domain id"),
  GN: bit(48, "with PASID: a guest address"),
  NX: bit(49, "an instruction fetch"),
  US: bit(50, "without privilege"),
  I: bit(51, "interrupt"),
  PR: bit(52, "the page is present"),
  RW: bit(53, "a write"),
  PE: bit(54, "permission is missing"),
  RZ: bit(55, "a reserved bit, or a level that is not valid"),
  TR: bit(56, "a translation request"),
  TYPE: bits(57, 59, "of an invalid request: what is not valid"),
  CODE: bits(60, 63, "event"),
  ADDRESS: bits(64, 127, "address"),
});
/** §2.5.9, TR = 0 unless it says so. */
export const InvalidRequest = {
  /** A read in the interrupt address range. */
  interruptRead: 0,
  /** An address that was translated before, from a device with I = 0. */
  translated: 1,
  portIo: 2,
  /** No other type fits: a PASID, but no guest translation. */
  invalid: 4,
  systemManagement: 7,
  /** TR = 1: a translation request from a device with I = 0, V = 0 or TV = 0. */
  translationRequest: 0,
  /** TR = 1: to addresses that are not translated. */
  translationRange: 1,
} as const;

/** §2.6 A page service request. */
export const PprEntry = layout("PPR", 16, {
  DEVICE: bits(0, 15, "device id"),
  PASID: bits(16, 31, "PASID, bits 15:0"),
  TAG: bits(32, 40, "page request group"),
  LAST: bit(41, "the last of its group"),
  PASID_19: bits(42, 45, "PASID, bits 19:16"),
  EXECUTE: bit(49, "execute"),
  READ: bit(50, "read"),
  WRITE: bit(53, "write"),
  US: bit(54, "without privilege"),
  GN: bit(56, "with PASID"),
  CODE: bits(60, 63, "request type"),
  ADDRESS: bits(64, 127, "address"),
});
export const PAGE_SERVICE_REQUEST = 1;
