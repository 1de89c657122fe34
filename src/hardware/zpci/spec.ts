/**
 * Layouts and numbers of PCI translation on s390. What functions walk is dynamic address translation of the z/Architecture
 * Principles of Operation (SA22-7832, "PoP"; `pagetable/s390.ts`), under an I/O table anchor that is registered for
 * each function. Software has instructions for it, and no registers: Modify PCI Function Controls (MPCIFC) takes a function
 * information block (FIB), Refresh PCI Translations (RPCIT) a range, Store PCI Function Controls (STPCIFC) gives the block
 * back, Store Event Information (SEI) tells events. Here an instruction is a window of registers: its operands are
 * written, then its number, and the condition code and the status can be read.
 *
 * IBM publishes no manual of these instructions: the blocks hold what the public interfaces of operating systems show
 * of them, each in a place of its own, and why a translation failed has the interruption code that the PoP (chapter 6)
 * gives the same exception of a processor. Codes from 0x100 on, status codes and offsets of registers are the
 * model's own.
 */
import { address, bit, bits, layout } from "../../uapi/layout.ts";

/** Offsets. */
export const Register = {
  CAPABILITIES: 0x00,
  MSI_ADDRESS: 0x08,
  CONTROL: 0x10,
  HANDLE: 0x18,
  OPERAND1: 0x20,
  OPERAND2: 0x28,
  INSTRUCTION: 0x30,
  CONDITION: 0x34,
  STATUS: 0x38,
  PENDING: 0x3c,
  EVENT_ADDRESS: 0x40,
  EVENT_DATA: 0x48,
  EVENT_CONTROL: 0x4c,
} as const;
export const REGISTER_BYTES = 0x1000;

export const CapabilityRegister = layout("CAPABILITIES", 8, {
  REFRESH: bit(0, "entries that become valid must be refreshed before they are used"),
});
/** Writes to this address and the 1 MiB from it on are messages of functions, and are not translated. */
export const MSI_BYTES = 0x10_0000;

export const Control = {
  /** Functions without parameters are refused; without it ("relaxed translation") their requests pass. */
  REQUIRED: 1,
} as const;
export const EventControl = { ENABLE: 1 } as const;

export const Instruction = { MPCIFC: 1, RPCIT: 2, STPCIFC: 3, SEI: 4 } as const;

/** OPERAND2 of MPCIFC. */
export const FunctionControl = { REGISTER: 4, DEREGISTER: 5, REREGISTER: 6 } as const;

export const Condition = { done: 0, error: 1, invalidHandle: 3 } as const;

/** STATUS with condition code 1. */
export const Status = {
  none: 0,
  /** No such instruction or operation. */
  operation: 1,
  /** No memory answers where a block is to be. */
  storage: 2,
  /** An anchor or a range that cannot be. */
  invalid: 3,
  /** The function has parameters already, or has none. */
  sequence: 4,
  /** Whoever stands behind the unit could not follow; what it could not take is not valid. */
  resources: 16,
} as const;

/** Handle of an enabled function: this bit, and the requester id. */
export const HANDLE_ENABLED = 0x8000_0000;

const manual = { bigEndian: true, msb0: true } as const;

/** I/O table anchor. */
export const Iota = layout(
  "IOTA",
  8,
  {
    ORIGIN: address(0, 51, "the designated table"),
    T: bit(52, "requests are translated; else they pass"),
    KEY: bits(55, 58, "storage key: not used"),
    DT: bits(59, 61, "designation", {
      0: "segment table",
      1: "region-third table",
      2: "region-second table",
      3: "region-first table",
    }),
    FS: bits(62, 63, "frame size", { 0: "4 KiB" }),
  },
  manual,
);

/** The designation types that are tables; others are frames, which are left out. */
export const Designation = { segment: 0, regionThird: 1, regionSecond: 2, regionFirst: 3 } as const;

/** Function information block, as far as translation is concerned. */
export const Fib = layout(
  "FIB",
  32,
  {
    PBA: address(64, 127, "first address the function may use", 0),
    PAL: address(128, 191, "last address the function may use", 0),
    IOTA: bits(192, 255, "I/O table anchor"),
  },
  manual,
);

/** An error of a function, as Store Event Information tells it. */
export const ErrorEvent = layout(
  "error event",
  16,
  {
    FH: bits(0, 31, "function handle"),
    LOST: bit(32, "events before it were lost"),
    W: bit(33, "a write"),
    PEC: bits(48, 63, "why"),
    FADDR: address(64, 127, "the address", 0),
  },
  manual,
);
/** Events that wait to be stored; more are lost. */
export const EVENTS = 64;
