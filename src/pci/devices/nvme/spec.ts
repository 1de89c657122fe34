/**
 * Registers, commands and completions of an NVM Express controller: offsets, bits and numbers by the names of the NVM
 * Express Base Specification 1.4, whose sections are cited. Layouts only, nothing that acts.
 *
 * Left out: controller memory buffer, persistent memory region, boot partitions, scatter-gather lists, fused
 * commands, metadata and protection information.
 */
import { bit, bits, layout } from "../../../uapi/layout.ts";

/** Numbers nobody was assigned: no driver has quirks for them. */
export const PCI_IDS = { vendor: 0x1234, device: 0x4e56 } as const;
/** PCI class of an NVMe I/O controller. */
export const CLASS_CODE = 0x01_08_02;

/** §3.1: controller registers, offsets in BAR 0. */
export const Register = {
  CAP: 0x00,
  VS: 0x08,
  INTMS: 0x0c,
  INTMC: 0x10,
  CC: 0x14,
  CSTS: 0x1c,
  NSSR: 0x20,
  AQA: 0x24,
  ASQ: 0x28,
  ACQ: 0x30,
  END: 0x38,
  DOORBELLS: 0x1000,
} as const;
export const VERSION_1_4 = 0x0001_0400;
/** §3.1.7: "NVMe", written to NSSR to reset the subsystem. */
export const SUBSYSTEM_RESET = 0x4e56_4d65;

/** §3.1.1 Controller Capabilities. */
export const Cap = layout("CAP", 8, {
  MQES: bits(0, 15, "entries of a queue, less one"),
  CQR: bit(16, "queues must be physically contiguous"),
  AMS: bits(17, 18, "arbitration besides round robin"),
  TO: bits(24, 31, "time to become ready, in 500 ms"),
  DSTRD: bits(32, 35, "doorbells are 2^(2 + DSTRD) bytes apart"),
  NSSRS: bit(36, "subsystem reset"),
  CSS: bits(37, 44, "command sets; bit 0: NVM"),
  BPS: bit(45, "boot partitions"),
  MPSMIN: bits(48, 51, "smallest page is 2^(12 + n)"),
  MPSMAX: bits(52, 55, "largest page is 2^(12 + n)"),
});
/** §3.1.5 Controller Configuration. */
export const Cc = layout("CC", 4, {
  EN: bit(0, "enable"),
  CSS: bits(4, 6, "command set", { 0: "NVM", 7: "admin only" }),
  MPS: bits(7, 10, "pages are 2^(12 + MPS) bytes"),
  AMS: bits(11, 13, "arbitration", { 0: "round robin" }),
  SHN: bits(14, 15, "shutdown notification", { 0: "none", 1: "normal", 2: "abrupt" }),
  IOSQES: bits(16, 19, "log2 of an I/O submission entry"),
  IOCQES: bits(20, 23, "log2 of an I/O completion entry"),
});
/** §3.1.6 Controller Status. */
export const Csts = layout("CSTS", 4, {
  RDY: bit(0, "ready"),
  CFS: bit(1, "fatal status"),
  SHST: bits(2, 3, "shutdown status", { 0: "normal operation", 1: "occurring", 2: "complete" }),
  NSSRO: bit(4, "a subsystem reset has occurred"),
  PP: bit(5, "processing paused"),
});
/** §3.1.8 Admin Queue Attributes. */
export const Aqa = layout("AQA", 4, {
  ASQS: bits(0, 11, "entries of the admin submission queue, less one"),
  ACQS: bits(16, 27, "entries of the admin completion queue, less one"),
});

/** §4.2: a submission entry; words of 32 bits. */
export const SQE_BYTES = 64;
export const SQE_LG2 = 6;
export const SqeWord = {
  COMMAND: 0,
  NSID: 1,
  PRP1: 6,
  PRP2: 8,
  CDW10: 10,
  CDW11: 11,
  CDW12: 12,
  CDW13: 13,
  CDW14: 14,
} as const;
/** §4.2, Command Dword 0. */
export const CommandWord = layout("CDW0", 4, {
  OPC: bits(0, 7, "opcode"),
  FUSE: bits(8, 9, "fused operation"),
  PSDT: bits(14, 15, "0: PRPs", { 0: "PRP", 1: "SGL", 2: "SGL, metadata by SGL" }),
  CID: bits(16, 31, "command identifier"),
});

/** §4.6: a completion entry. */
export const CQE_BYTES = 16;
export const CQE_LG2 = 4;
/** §4.6.1, the upper half of Dword 3 (status and phase). */
export const StatusWord = layout("Status Field", 2, {
  P: bit(0, "phase"),
  SC: bits(1, 8, "status code"),
  SCT: bits(9, 11, "status code type", { 0: "generic", 1: "command specific", 2: "media" }),
  CRD: bits(12, 13, "retry delay"),
  M: bit(14, "more in the error log"),
  DNR: bit(15, "do not retry"),
});

/** §5: admin commands. */
export const Admin = {
  DELETE_SQ: 0x00,
  CREATE_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_CQ: 0x04,
  CREATE_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT: 0x0c,
} as const;
/** §6: NVM commands. */
export const Nvm = {
  FLUSH: 0x00,
  WRITE: 0x01,
  READ: 0x02,
  COMPARE: 0x05,
  WRITE_ZEROES: 0x08,
  DATASET_MANAGEMENT: 0x09,
} as const;

/**
 * §4.6.1.2: a status as type << 8 | code, with DNR where repeating the command as it is cannot help.
 */
const DNR = 1 << 14;
const generic = (code: number) => code;
const specific = (code: number) => (1 << 8) | code;
const media = (code: number) => (2 << 8) | code;
export const StatusCode = {
  SUCCESS: generic(0x00),
  INVALID_OPCODE: generic(0x01) | DNR,
  INVALID_FIELD: generic(0x02) | DNR,
  DATA_TRANSFER_ERROR: generic(0x04),
  ABORT_REQUESTED: generic(0x07),
  SQ_DELETION: generic(0x08),
  INVALID_NAMESPACE: generic(0x0b) | DNR,
  COMMAND_SEQUENCE: generic(0x0c) | DNR,
  PRP_OFFSET_INVALID: generic(0x13) | DNR,
  LBA_OUT_OF_RANGE: generic(0x80) | DNR,
  CQ_INVALID: specific(0x00) | DNR,
  INVALID_QUEUE_ID: specific(0x01) | DNR,
  INVALID_QUEUE_SIZE: specific(0x02) | DNR,
  ASYNC_EVENT_LIMIT: specific(0x05) | DNR,
  INVALID_VECTOR: specific(0x08) | DNR,
  INVALID_LOG_PAGE: specific(0x09) | DNR,
  INVALID_QUEUE_DELETION: specific(0x0c) | DNR,
  FEATURE_NOT_SAVEABLE: specific(0x0d) | DNR,
  FEATURE_NOT_PER_NAMESPACE: specific(0x0f) | DNR,
  WRITE_FAULT: media(0x80),
  UNRECOVERED_READ: media(0x81),
  COMPARE_FAILURE: media(0x85),
} as const;

const names = new Map<number, string>(
  Object.entries(StatusCode).map(([name, code]) => [code, name.toLowerCase().replaceAll("_", " ")]),
);
/** "lba out of range" */
export const statusName = (status: number): string => names.get(status) ?? `status 0x${status.toString(16)}`;

/** The status as bits 31:16 of completion Dword 3. */
export const statusBits = (status: number, phase: number): number => ((status << 1) | phase) & 0xffff;

/** §5.15: what Identify is asked for (CNS). */
export const Cns = { NAMESPACE: 0x00, CONTROLLER: 0x01, ACTIVE_NAMESPACES: 0x02, DESCRIPTORS: 0x03 } as const;
export const IDENTIFY_BYTES = 4096;

/** §5.14: log pages. */
export const LogPage = {
  ERROR: 0x01,
  SMART: 0x02,
  FIRMWARE: 0x03,
  CHANGED_NAMESPACES: 0x04,
  EFFECTS: 0x05,
} as const;

/** §5.21.1: features. */
export const Feature = {
  ARBITRATION: 0x01,
  POWER_MANAGEMENT: 0x02,
  TEMPERATURE_THRESHOLD: 0x04,
  ERROR_RECOVERY: 0x05,
  VOLATILE_WRITE_CACHE: 0x06,
  NUMBER_OF_QUEUES: 0x07,
  INTERRUPT_COALESCING: 0x08,
  INTERRUPT_VECTOR: 0x09,
  WRITE_ATOMICITY: 0x0a,
  ASYNC_EVENTS: 0x0b,
  HOST_IDENTIFIER: 0x81,
} as const;

/** §5.2: asynchronous events, as type and information; and the log page that clears them. */
export const AsyncEvent = {
  INVALID_DOORBELL_REGISTER: { type: 0, info: 0, page: LogPage.ERROR },
  INVALID_DOORBELL_VALUE: { type: 0, info: 1, page: LogPage.ERROR },
  TEMPERATURE_THRESHOLD: { type: 1, info: 1, page: LogPage.SMART },
} as const;
export type AsyncEvent = (typeof AsyncEvent)[keyof typeof AsyncEvent];

/** §6.7: CDW10 and CDW11 of Dataset Management, and one of its ranges. */
export const DatasetWord = layout("CDW10 and CDW11", 8, {
  NR: bits(0, 7, "ranges, less one"),
  IDR: bit(32, "integral dataset for read"),
  IDW: bit(33, "integral dataset for write"),
  AD: bit(34, "deallocate"),
});
export const DatasetRange = { BYTES: 16, LENGTH: 4, START: 8 } as const;

/** §6.15, §6.9: bits of CDW12 of Read and Write. */
export const NlbWord = layout("CDW12", 4, {
  NLB: bits(0, 15, "blocks, less one"),
  FUA: bit(30, "force unit access"),
  LR: bit(31, "limited retry"),
});
