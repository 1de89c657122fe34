/**
 * Registers and structures of the I/O translation of a POWER host bridge (PHB): those of PHB4 and its "IODA3" tables, as
 * the public firmware declares them after the PHB4 specification, §5.4.1 ("ETU/RSB HV register address map"). Specifications of
 * POWER count bits from the most significant one; so do these declarations. Structures in memory are big-endian.
 *
 * Of the many registers of a bridge only those are here that translation of a device's addresses and its errors need.
 * Left out: freezing of a PE at an error (EEH) and everything about MMIO; auto-increment of IODA_ADDR; PSEL of TCE_KILL (the
 * page size is that of the window); 32-bit messages.
 */
import { address, bit, bits, layout } from "../../uapi/layout.ts";

/** §5.4.1 Offsets of 64-bit registers. */
export const Register = {
  /** Configuration: which messages there are. */
  PHB4_CONFIG: 0x160,
  /** The requester translation table: requester id to PE. */
  RTT_BAR: 0x168,
  /** The PE state table: what went wrong. */
  PEST_BAR: 0x1a8,
  /** Forgets what was read of the RTT. */
  RTC_INVALIDATE: 0x208,
  /** Forgets what was read of TCE tables. */
  TCE_KILL: 0x210,
  /** Chooses an entry of a table on the chip, which is then at IODA_DATA0. */
  IODA_ADDR: 0x220,
  IODA_DATA0: 0x228,
  /** Where the bridge tells that something went wrong, and what it writes there. */
  INT_NOTIFY_ADDR: 0x300,
  INT_NOTIFY_INDEX: 0x308,
  VERSION: 0x800,
} as const;

export const REGISTER_BYTES = 0x1000;
/** VERSION of a PHB4. */
export const PHB4_VERSION = 0x00a4_0002;

/** Partitionable endpoints: what has windows of its own. */
export const PES = 512;
/** Windows of a PE, chosen by address bit 59. */
export const WINDOWS = 2;
export const WINDOW_LG2 = 59;
/** Requester ids. */
export const REQUESTERS = 0x1_0000;
/** Bits 63:60 of an address: which kind of address it is. */
export const Space = { dma: 0, messages: 1 } as const;

/** Tables on the chip, as IODA_ADDR names them. */
export const Table = { PESTB: 8, TVT: 9, PEEV: 20 } as const;
/** PEs of a row of PEEV. */
export const PEEV_ROW = 64;

const power = { msb0: true, bigEndian: true } as const;

export const Phb4Config = layout("PHB4_CONFIG", 8, { MSI64_EN: bit(14, "64-bit messages") }, power);
export const RttBar = layout(
  "RTT_BAR",
  8,
  {
    ENABLE: bit(0, "the table is used", { 0: "requesters have no PE, addresses pass" }),
    BASE: address(8, 46, "requester translation table"),
  },
  power,
);
export const PestBar = layout(
  "PEST_BAR",
  8,
  { ENABLE: bit(0, "the table is written"), BASE: address(8, 51, "PE state table") },
  power,
);
export const RtcInvalidate = layout(
  "RTC_INVALIDATE",
  8,
  { ALL: bit(0, "of all requesters"), RID: bits(16, 31, "requester") },
  power,
);
export const TceKill = layout(
  "TCE_KILL",
  8,
  {
    ALL: bit(0, "everything"),
    PE: bit(1, "of a PE"),
    ONE: bit(2, "of a PE, one page"),
    ADDR: address(4, 51, "address of the page"),
    PENUM: bits(55, 63, "PE"),
  },
  power,
);
export const IodaAddr = layout(
  "IODA_ADDR",
  8,
  {
    TSEL: bits(11, 15, "table", { 8: "PESTB", 9: "TVT", 20: "PEEV" }),
    TADR: bits(54, 63, "entry"),
  },
  power,
);

/** An entry of the RTT, two bytes. */
export const Rte = layout("RTE", 4, { PE: bits(16, 31, "PE of the requester") }, power);
export const RTE_BYTES = 2;

/** Entry of the translation validation table: a window with TCE tables. */
export const Tve = layout(
  "TVE",
  8,
  {
    TABLE: address(0, 47, "TCE table", 12),
    LEVELS: bits(48, 50, "levels, less one"),
    TABLE_SIZE: bits(51, 55, "lg2 of the bytes of a table, less 11; 0: not valid"),
    PSIZE: bits(59, 63, "lg2 of the bytes of a page, less 11; 0: not translated"),
  },
  power,
);
/** The lg2 that 0 of TABLE_SIZE and PSIZE stands for. */
export const SIZE_LG2 = 11;

/** The same, PSIZE = 0: a window whose addresses are those of memory, in units of 16 MiB. */
export const RealTve = layout(
  "TVE (not translated)",
  8,
  {
    START: address(0, 23, "start, bits 47:24", 24),
    END: address(24, 47, "end, bits 47:24", 24),
    START_HIGH: bits(52, 53, "start, bits 49:48"),
    END_HIGH: bits(54, 55, "end, bits 49:48"),
    PSIZE: bits(59, 63, "0: not translated"),
  },
  power,
);

/** What a transaction was. */
export const TransactionType = { write: 0, message: 1, read: 2 } as const;
/** PE state table: an entry has two words, PEST0 and PEST1. */
export const PEST_BYTES = 16;
export const Pest0 = layout(
  "PEST0",
  8,
  {
    TTYPE: bits(5, 7, "transaction", { 0: "write", 1: "message", 2: "read" }),
    PARITY_UE: bit(13, "memory did not answer"),
    IODA_ERROR: bit(16, "the address belongs to no window"),
    TCE_PAGE_FAULT: bit(18, "there is no TCE"),
    TCE_ACCESS_FAULT: bit(19, "the TCE does not allow it"),
    RID: bits(32, 47, "requester"),
  },
  power,
);
export const Pest1 = layout("PEST1", 8, { FAIL_ADDR: bits(3, 63, "address") }, power);
