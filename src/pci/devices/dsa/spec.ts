/**
 * Registers, tables, descriptors and completion records of Intel's Data Streaming Accelerator, version 1.0: names and
 * places of the Intel Data Streaming Accelerator Architecture Specification (341204) and, for what programs see, of
 * linux/idxd.h. Layouts only, nothing that acts. Left out: interrupt message storage, performance monitoring, the event
 * log and everything else of later versions.
 *
 * The numbers of errors at a portal (`PortalError`) are ours: what was at hand of the specification does not list them.
 */
import { bit, bits, layout } from "../../../uapi/layout.ts";

export const DSA_IDS = { vendorId: 0x8086, deviceId: 0x0b25, classCode: 0x08_80_00 } as const;
export const VERSION_1_0 = 0x100;

/** What this model has. */
export const QUEUES = 8;
export const QUEUE_ENTRIES = 128;
export const GROUPS = 4;
export const ENGINES = 4;
export const VECTORS = QUEUES + 1;
export const MOST_TRANSFER_LG2 = 31;
export const MOST_BATCH_LG2 = 10;

export const REGISTER_BAR = 0;
export const REGISTER_BYTES = 0x1_0000;
export const PORTAL_BAR = 2;
/** A queue has four portals of a page: unlimited and limited, each for MSI-X and for interrupt message storage. */
export const PORTAL_BYTES = 0x1000;
export const PORTALS_A_QUEUE = 4;
export const queuePortal = (queue: number, limited = false): number =>
  (queue * PORTALS_A_QUEUE + (limited ? 1 : 0)) * PORTAL_BYTES;

/** BAR 0. 64-bit registers are two dwords, low first. */
export const DsaRegister = {
  VERSION: 0x00,
  GENCAP: 0x10,
  WQCAP: 0x20,
  GRPCAP: 0x30,
  ENGCAP: 0x38,
  /** 256 bits: operations by number. */
  OPCAP: 0x40,
  /** Where the tables are, in units of `TABLE_UNIT`. */
  OFFSETS: 0x60,
  GENCFG: 0x80,
  GENCTRL: 0x88,
  GENSTS: 0x90,
  INTCAUSE: 0x98,
  CMD: 0xa0,
  CMDSTS: 0xa8,
  CMDCAP: 0xb0,
  SWERR: 0xc0,
  GRPCFG: 0x400,
  WQCFG: 0x500,
  MSIXPERM: 0x600,
  MSIX_TABLE: 0x2000,
  MSIX_PENDING: 0x3000,
} as const;
export const TABLE_UNIT = 0x100;

export const GenCap = layout("GENCAP", 8, {
  BlockOnFault: bit(0, "operations can wait for pages"),
  OverlappingCopy: bit(1, "source and destination of a copy may overlap"),
  CacheControlMemory: bit(2, "cache control flag towards memory"),
  CacheControlFlush: bit(3, "cache control flag of a cache flush"),
  CommandCapabilities: bit(4, "CMDCAP is there"),
  DestinationReadback: bit(8, "destination readback"),
  DrainReadback: bit(9, "readback addresses of a drain"),
  MaxTransfer: bits(16, 20, "log2 of the bytes of a transfer"),
  MaxBatch: bits(21, 24, "log2 of the descriptors of a batch"),
  MessageStorage: bits(25, 30, "interrupt message storage, in units of 256"),
  Configuration: bit(31, "queues, groups and engines can be configured"),
});
export const WqCap = layout("WQCAP", 8, {
  TotalSize: bits(0, 15, "entries of all queues"),
  Count: bits(16, 23, "queues"),
  ConfigSize: bits(24, 27, "log2 of the bytes of a WQCFG entry, less 5"),
  Shared: bit(48, "queues can be shared"),
  Dedicated: bit(49, "queues can be dedicated"),
  Priority: bit(51, "queues have priorities"),
  Occupancy: bit(52, "WQCFG tells how full a queue is"),
  OccupancyInterrupt: bit(53, "and interrupts when it is not any more"),
});
export const GrpCap = layout("GRPCAP", 8, {
  Count: bits(0, 7, "groups"),
  ReadBuffers: bits(8, 15, "read buffers"),
  ReadBufferControl: bit(16, "they can be shared out"),
  ReadBufferLimit: bit(17, "their number can be limited"),
});
export const EngCap = layout("ENGCAP", 8, { Count: bits(0, 7, "engines") });
export const Offsets = layout("OFFSETS", 16, {
  Groups: bits(0, 15, "GRPCFG"),
  Queues: bits(16, 31, "WQCFG"),
  MsixPermissions: bits(32, 47, "MSIXPERM"),
  MessageStorage: bits(48, 63, "IMS"),
  Performance: bits(64, 79, "PERFMON"),
});
export const GenCtrl = layout("GENCTRL", 4, {
  SoftwareErrors: bit(0, "software errors interrupt"),
  Halt: bit(1, "halting interrupts"),
});
export const GenSts = layout("GENSTS", 4, {
  State: bits(0, 1, "state", { 0: "disabled", 1: "enabled", 2: "drain", 3: "halt" }),
  Reset: bits(2, 3, "reset that a halt needs", { 0: "software", 1: "function", 2: "warm", 3: "cold" }),
});
export const DeviceState = { DISABLED: 0, ENABLED: 1 } as const;
/** Write 1 to clear. */
export const IntCause = layout("INTCAUSE", 4, {
  SoftwareError: bit(0, "SWERR has become valid"),
  Command: bit(1, "a command has ended"),
});
export const Cmd = layout("CMD", 4, {
  Operand: bits(0, 19, "operand"),
  Command: bits(20, 24, "command"),
  Interrupt: bit(31, "interrupt at its end"),
});
export const CmdSts = layout("CMDSTS", 4, {
  Error: bits(0, 7, "how it ended"),
  Result: bits(8, 23, "what it gives"),
  Active: bit(31, "it is under way"),
});
export const DsaCommand = {
  ENABLE_DEVICE: 1,
  DISABLE_DEVICE: 2,
  DRAIN_ALL: 3,
  ABORT_ALL: 4,
  RESET_DEVICE: 5,
  ENABLE_WQ: 6,
  DISABLE_WQ: 7,
  DRAIN_WQ: 8,
  ABORT_WQ: 9,
  RESET_WQ: 10,
  DRAIN_PASID: 11,
  ABORT_PASID: 12,
  REQUEST_INTERRUPT_HANDLE: 13,
  RELEASE_INTERRUPT_HANDLE: 14,
} as const;
/** Operand of commands for some queues: a mask of 16, and which 16. */
export const QueueMask = layout("queues of a command", 4, {
  Mask: bits(0, 15, "queues, one bit each"),
  First: bits(16, 19, "number of the first, divided by 16"),
});
/** Operand of commands for interrupt handles. */
export const HandleOperand = layout("interrupt handle of a command", 4, {
  Index: bits(0, 15, "entry of the table, or handle"),
  MessageStorage: bit(16, "of interrupt message storage"),
});
export const CommandError = {
  NONE: 0x00,
  INVALID_COMMAND: 0x01,
  INVALID_WQ: 0x02,
  DEVICE_ENABLED: 0x10,
  NOT_BUS_MASTER: 0x12,
  WQ_SIZES: 0x14,
  WQ_IN_GROUPS: 0x15,
  ENGINE_IN_GROUPS: 0x16,
  GROUP_WITHOUT_ENGINE: 0x17,
  WQ_WITHOUT_GROUP: 0x18,
  DEVICE_NOT_ENABLED: 0x20,
  WQ_ENABLED: 0x21,
  WQ_SIZE: 0x22,
  WQ_PRIORITY: 0x23,
  WQ_MODE: 0x24,
  WQ_BLOCK_ON_FAULT: 0x25,
  WQ_PASID: 0x26,
  WQ_MAX_BATCH: 0x27,
  WQ_MAX_TRANSFER: 0x28,
  DISABLE_NOT_ENABLED: 0x31,
  WQ_NOT_ENABLED: 0x32,
  INTERRUPT_INDEX: 0x41,
} as const;
export type CommandError = (typeof CommandError)[keyof typeof CommandError];

export const SwErr = layout("SWERR", 32, {
  Valid: bit(0, "there is an error; written 1: there is none any more"),
  Overflow: bit(1, "there were more"),
  DescriptorValid: bit(2, "fields of the descriptor are valid"),
  QueueValid: bit(3, "the queue is known"),
  Batch: bit(4, "the descriptor was one of a batch"),
  Write: bit(5, "the address was to be written"),
  Privileged: bit(6, "the descriptor was privileged"),
  Error: bits(8, 15, "error, as the status of a completion record"),
  Queue: bits(16, 23, "queue"),
  Operation: bits(32, 39, "operation"),
  Pasid: bits(40, 59, "PASID"),
  BatchIndex: bits(64, 79, "its number in the batch"),
  InvalidFlags: bits(96, 127, "flags that it must not have"),
  Address: bits(128, 191, "address"),
});

/** An entry of GRPCFG: masks of queues (256 bits) and engines (64 bits), then flags. */
export const GroupConfig = { QUEUES: 0x00, ENGINES: 0x20, FLAGS: 0x28, BYTES: 0x40 } as const;
/** An entry of MSIXPERM. */
export const MsixPermission = layout("MSIXPERM", 8, {
  Ignore: bit(2, "PASIDs do not matter"),
  PasidEnable: bit(3, "for descriptors of the PASID, and of no other"),
  Pasid: bits(12, 31, "PASID"),
});
export const QUEUE_CONFIG_BYTES = 32;
export const WqConfig = layout("WQCFG", QUEUE_CONFIG_BYTES, {
  Size: bits(0, 15, "entries"),
  Threshold: bits(32, 47, "entries that limited portals may take"),
  Dedicated: bit(64, "one submits, by posted writes; otherwise many, by non-posted ones"),
  BlockOnFault: bit(65, "descriptors may wait for pages"),
  Priority: bits(68, 71, "priority, 1 to 15"),
  Pasid: bits(72, 91, "PASID of a dedicated queue"),
  PasidEnable: bit(92, "requests carry PASIDs"),
  Privileged: bit(93, "a dedicated queue's requests are privileged"),
  MaxTransfer: bits(96, 100, "log2 of the bytes of a transfer"),
  MaxBatch: bits(101, 104, "log2 of the descriptors of a batch"),
  Occupancy: bits(192, 207, "entries in use"),
  State: bits(222, 223, "state", { 0: "disabled", 1: "enabled", 2: "busy" }),
});
export const WqState = { DISABLED: 0, ENABLED: 1, BUSY: 2 } as const;

export const DESCRIPTOR_BYTES = 64;
export const DESCRIPTOR_WORDS = DESCRIPTOR_BYTES / 4;
/** The first two dwords of a descriptor. */
export const DescriptorHead = layout("descriptor", 8, {
  Pasid: bits(0, 19, "PASID, of what is in a shared queue"),
  Privileged: bit(31, "privileged"),
  Flags: bits(32, 55, "flags"),
  Operation: bits(56, 63, "operation"),
});
/** The others, offsets in bytes. Addresses have 64 bits. */
export const DsaDescriptor = {
  COMPLETION: 0x08,
  /** Also the pattern of a fill, and a batch's list. */
  SOURCE: 0x10,
  /** Also the second source or the pattern of a comparison. */
  DESTINATION: 0x18,
  /** Also a batch's number of descriptors. */
  SIZE: 0x20,
  /** 16 bits. */
  INTERRUPT: 0x24,
  /** Byte: result that a comparison should have. */
  EXPECTED: 0x28,
  SECOND_DESTINATION: 0x28,
  CRC_SEED: 0x28,
  CRC_SEED_ADDRESS: 0x30,
} as const;
export const DsaOperation = {
  NOOP: 0x00,
  BATCH: 0x01,
  DRAIN: 0x02,
  MEMMOVE: 0x03,
  FILL: 0x04,
  COMPARE: 0x05,
  COMPARE_PATTERN: 0x06,
  DUALCAST: 0x09,
  CRC: 0x10,
  COPY_CRC: 0x11,
} as const;
export const DsaFlag = {
  FENCE: 0x1,
  BLOCK_ON_FAULT: 0x2,
  COMPLETION_VALID: 0x4,
  REQUEST_COMPLETION: 0x8,
  REQUEST_INTERRUPT: 0x10,
  CHECK_RESULT: 0x80,
  CACHE_CONTROL: 0x100,
  /** Selectors of traffic classes for three addresses and the completion record. */
  TRAFFIC_CLASSES: 0x1e00,
  STRICT_ORDER: 0x2000,
  /** Of CRC operations: the seed is in memory; the CRC is not inverted and reflected; the data is not reflected. */
  READ_SEED: 0x1_0000,
  PLAIN_CRC: 0x2_0000,
  PLAIN_DATA: 0x4_0000,
} as const;

export const COMPLETION_BYTES = 32;
/** A completion record, offsets in bytes. The status is written last. */
export const Completion = {
  STATUS: 0,
  RESULT: 1,
  /** Bytes, or descriptors of a batch, that were completed. */
  DONE: 4,
  FAULT_ADDRESS: 8,
  /** 32 bits; or a CRC, 64 bits. */
  INVALID_FLAGS: 16,
  CRC: 16,
} as const;
export const DsaStatus = {
  SUCCESS: 0x01,
  /** The result is not the expected one. */
  UNEXPECTED_RESULT: 0x02,
  PAGE_FAULT: 0x03,
  PAGE_REQUEST_REFUSED: 0x04,
  BATCH_FAILED: 0x05,
  BATCH_PAGE_FAULT: 0x06,
  OPERATION: 0x10,
  FLAGS: 0x11,
  RESERVED: 0x12,
  TRANSFER_SIZE: 0x13,
  BATCH_SIZE: 0x14,
  OVERLAP: 0x16,
  DUALCAST_ADDRESSES: 0x17,
  LIST_ALIGNMENT: 0x18,
  INTERRUPT_HANDLE: 0x19,
  COMPLETION_FAULT: 0x1a,
  COMPLETION_ALIGNMENT: 0x1b,
} as const;
/** Of a page fault's status: the address was to be written. */
export const STATUS_WRITE = 0x80;
/** Descriptors that came to a portal and were not taken, in SWERR. */
export const PortalError = {
  NOT_ENABLED: 0x50,
  FULL: 0x51,
  /** A posted write to a shared queue. */
  MODE: 0x52,
} as const;
