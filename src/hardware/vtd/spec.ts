/**
 * Registers, table entries and queue descriptors of Intel VT-d (Virtualization Technology for Directed I/O,
 * revision 4.1): offsets, bits and meanings, nothing that acts. Section numbers are that revision's. A field of a
 * 64-bit quantity is named by the word it lies in: `lo` = bits 31:0, `hi` = bits 63:32.
 *
 * Left out: scalable-mode entries and descriptors, performance monitoring, enhanced commands.
 */

/** §11.4: offsets from the unit's base, in bytes. IVA and IOTLB lie at ECAP.IRO·16, FRCD at CAP.FRO·16. */
export const Register = {
  VER: 0x00,
  CAP: 0x08,
  ECAP: 0x10,
  GCMD: 0x18,
  GSTS: 0x1c,
  RTADDR: 0x20,
  CCMD: 0x28,
  FSTS: 0x34,
  FECTL: 0x38,
  FEDATA: 0x3c,
  FEADDR: 0x40,
  FEUADDR: 0x44,
  AFLOG: 0x58,
  PMEN: 0x64,
  PLMBASE: 0x68,
  PLMLIMIT: 0x6c,
  PHMBASE: 0x70,
  PHMLIMIT: 0x78,
  IQH: 0x80,
  IQT: 0x88,
  IQA: 0x90,
  ICS: 0x9c,
  IECTL: 0xa0,
  IEDATA: 0xa4,
  IEADDR: 0xa8,
  IEUADDR: 0xac,
  IQERCD: 0xb0,
  IRTA: 0xb8,
  PQH: 0xc0,
  PQT: 0xc8,
  PQA: 0xd0,
  PRS: 0xdc,
  PECTL: 0xe0,
  PEDATA: 0xe4,
  PEADDR: 0xe8,
  PEUADDR: 0xec,
} as const;

/** Bytes of one register page; a unit's register file is this long unless FRO or IRO lie beyond it. */
export const REGISTER_PAGE_BYTES = 0x1000;

/** §11.4.4 Global Command and §11.4.5 Global Status: the same bit positions, written and read. */
export const Gcmd = {
  /** Translation enable. */
  TE: 0x8000_0000,
  /** Set root table pointer (one-shot). */
  SRTP: 0x4000_0000,
  /** Set fault log (one-shot; advanced fault logging). */
  SFL: 0x2000_0000,
  /** Enable advanced fault logging. */
  EAFL: 0x1000_0000,
  /** Write buffer flush (one-shot; only with CAP.RWBF). */
  WBF: 0x0800_0000,
  /** Queued invalidation enable. */
  QIE: 0x0400_0000,
  /** Interrupt remapping enable. */
  IRE: 0x0200_0000,
  /** Set interrupt remap table pointer (one-shot). */
  SIRTP: 0x0100_0000,
  /** Compatibility format interrupts pass (only with IR). */
  CFI: 0x0080_0000,
} as const;
/** Commands that act when written as 1 and need not be kept when another bit is written. */
export const GCMD_ONE_SHOT = Gcmd.SRTP + Gcmd.SFL + Gcmd.WBF + Gcmd.SIRTP;

/** §11.4.6 Root Table Address: TTM, bits 11:10 of lo; RTA, bits 63:12. */
export const Rtaddr = { TTM_SHIFT: 10, TTM_MASK: 0x3 } as const;
/** Translation table modes. */
export const Ttm = { legacy: 0, scalable: 1, reserved: 2, abort: 3 } as const;

/** §11.4.7 Context Command. DID 15:0, SID 31:16 (lo); FM 33:32, CAIG 60:59, CIRG 62:61, ICC 63 (hi). */
export const Ccmd = {
  ICC_HI: 0x8000_0000,
  CIRG_SHIFT_HI: 29,
  CAIG_SHIFT_HI: 27,
  SID_SHIFT: 16,
  FM_MASK_HI: 0x3,
} as const;

/** §11.4.8 IOTLB Invalidate. DID 47:32, DW 48, DR 49, IAIG 58:57, IIRG 61:60, IVT 63: all in hi. */
export const Iotlb = {
  IVT_HI: 0x8000_0000,
  IIRG_SHIFT_HI: 28,
  IAIG_SHIFT_HI: 25,
  DR_HI: 0x0002_0000,
  DW_HI: 0x0001_0000,
  DID_MASK_HI: 0xffff,
} as const;
/** §11.4.8.2 Invalidate Address: AM 5:0, IH 6, ADDR 63:12. */
export const Iva = { AM_MASK: 0x3f, IH: 0x40 } as const;

/** Granularities of CCMD, IOTLB and of the descriptors with the same fields. 0 is reserved. */
export const Granularity = { global: 1, domain: 2, device: 3, page: 3 } as const;

/** §11.4.9 Fault Status. All but PPF and FRI are cleared by writing 1. */
export const Fsts = {
  /** Primary fault overflow. */
  PFO: 0x01,
  /** Primary pending fault: the OR of every FRCD.F. */
  PPF: 0x02,
  /** Advanced fault overflow, advanced pending fault: only with CAP.AFL. */
  AFO: 0x04,
  APF: 0x08,
  /** Invalidation queue error. */
  IQE: 0x10,
  /** Invalidation completion error, invalidation time-out error: device-TLB. */
  ICE: 0x20,
  ITE: 0x40,
  /** Index of the first pending fault record. */
  FRI_SHIFT: 8,
  FRI_MASK: 0xff,
} as const;

/** §11.4.10 Fault Event Control; Invalidation and Page Request Event Control have the same bits. */
export const EventControl = { IM: 0x8000_0000, IP: 0x4000_0000 } as const;

/** §11.4.14 Fault Recording, 128 bits. Bits 31:12 and 63:32 of the first half are the page. Second half: */
export const Frcd = {
  BYTES: 16,
  /** lo of the second half. */
  SID_MASK: 0xffff,
  /** Type bit 2: with T1, 0/0 write, 0/1 read, 1/0 page request, 1/1 AtomicOp. */
  T2: 0x1000_0000,
  PRIV: 0x2000_0000,
  EXE: 0x4000_0000,
  /** PASID present. */
  PP: 0x8000_0000,
  /** hi of the second half. */
  FR_MASK_HI: 0xff,
  PV_SHIFT_HI: 8,
  AT_SHIFT_HI: 28,
  T1_HI: 0x4000_0000,
  F_HI: 0x8000_0000,
} as const;

/** §11.4.17 Protected Memory Enable. */
export const Pmen = { EPM: 0x8000_0000, PRS: 0x1 } as const;

/** §11.4.22 Invalidation Queue Head, §11.4.23 Tail: bits 18:4 of lo, bytes from the queue's start. */
export const IQ_POINTER_MASK = 0x7_fff0;
/** §11.4.24 Invalidation Queue Address: QS 2:0 (2^QS pages), DW 11 (256-bit descriptors), IQA 63:12. */
export const Iqa = { QS_MASK: 0x7, DW: 0x800 } as const;
/** §11.4.25 Invalidation Completion Status: IWC, written 1 to clear. */
export const Ics = { IWC: 0x1 } as const;
/** §11.4.30 Invalidation Queue Error Record: IQEI 3:0. Implemented from VER.MAX 4 on. */
export const Iqei = {
  unknown: 0,
  tailOutOfRange: 1,
  fetch: 2,
  type: 3,
  reserved: 4,
  width: 5,
  tailUnaligned: 6,
  mode: 7,
} as const;

/** §11.4.2 Capability register: bit positions [first, last]. */
export const Cap = {
  ND: [0, 2],
  AFL: [3, 3],
  RWBF: [4, 4],
  PLMR: [5, 5],
  PHMR: [6, 6],
  CM: [7, 7],
  SAGAW: [8, 12],
  MGAW: [16, 21],
  ZLR: [22, 22],
  FRO: [24, 33],
  SLLPS: [34, 37],
  PSI: [39, 39],
  NFR: [40, 47],
  MAMV: [48, 53],
  DWD: [54, 54],
  DRD: [55, 55],
  FL1GP: [56, 56],
  PI: [59, 59],
  FL5LP: [60, 60],
  ECMDS: [61, 61],
  ESIRTPS: [62, 62],
  ESRTPS: [63, 63],
} as const;
/** SAGAW bit n is AW value n: 1 = 39 bits, 3 levels; 2 = 48, 4; 3 = 57, 5. */
export const addressWidthOf = (aw: number): number => 30 + 9 * aw;
/** SLLPS bits. */
export const Sllps = { twoMegabytes: 1, oneGigabyte: 2 } as const;

/** §11.4.3 Extended Capability register: bit positions [first, last]. */
export const Ecap = {
  C: [0, 0],
  QI: [1, 1],
  DT: [2, 2],
  IR: [3, 3],
  EIM: [4, 4],
  PT: [6, 6],
  SC: [7, 7],
  IRO: [8, 17],
  MHMV: [20, 23],
  MTS: [25, 25],
  NEST: [26, 26],
  PRS: [29, 29],
  ERS: [30, 30],
  SRS: [31, 31],
  NWFS: [33, 33],
  EAFS: [34, 34],
  PSS: [35, 39],
  PASID: [40, 40],
  DIT: [41, 41],
  PDS: [42, 42],
  SMTS: [43, 43],
  VCS: [44, 44],
  SSADS: [45, 45],
  SSTS: [46, 46],
  FSTS: [47, 47],
  SMPWCS: [48, 48],
  RPS: [49, 49],
  PMS: [51, 51],
} as const;
type Bits = readonly [first: number, last: number];
/** A field of CAP or ECAP as a number. */
export const capabilityField = (register: bigint, [first, last]: Bits): number =>
  Number((register >> BigInt(first)) & ((1n << BigInt(last - first + 1)) - 1n));

/**
 * §9.1 Root entry, 128 bits, one a bus. Lower half: P 0, reserved 11:1, CTP 63:12 (bits beyond the host address width
 * are reserved). Upper half reserved.
 */
export const RootEntry = { BYTES: 16, P: 0x1, RESERVED_LO: 0xffe } as const;

/**
 * §9.3 Context entry, 128 bits, one a device and function. Lower half: P 0, FPD 1, TT 3:2, reserved 11:4, SSPTPTR
 * 63:12. Upper half: AW 2:0, ignored 6:3, reserved 7, DID 23:8, reserved 63:24.
 */
export const ContextEntry = {
  BYTES: 16,
  P: 0x1,
  /** Fault processing disable. */
  FPD: 0x2,
  TT_SHIFT: 2,
  TT_MASK: 0x3,
  RESERVED_LO: 0xff0,
  /** Words 2 and 3: the upper half. */
  AW_MASK_2: 0x7,
  IGNORED_2: 0x78,
  RESERVED_2: 0xff00_0080,
  DID_SHIFT_2: 8,
  DID_MASK: 0xffff,
  RESERVED_3: 0xffff_ffff,
} as const;
/** Translation types of a context entry. */
export const TranslationType = { secondStage: 0, deviceTlb: 1, passThrough: 2, reserved: 3 } as const;

/** §6.5.2 Invalidation descriptors: type in bits 3:0 and, as bits 6:4 of the type, 11:9. */
export const Descriptor = {
  TYPE_MASK: 0xf,
  TYPE_EXTENSION_SHIFT: 9,
  TYPE_EXTENSION_MASK: 0x7,
  /** Bytes with IQA.DW clear and set. */
  BYTES: 16,
  WIDE_BYTES: 32,
} as const;
export const DescriptorType = {
  contextCache: 0x1,
  iotlb: 0x2,
  deviceTlb: 0x3,
  interruptEntryCache: 0x4,
  wait: 0x5,
  pasidIotlb: 0x6,
  pasidCache: 0x7,
  pasidDeviceTlb: 0x8,
  pageGroupResponse: 0x9,
} as const;

/** §6.5.2.1 Context-cache invalidate: G 5:4 (as `Granularity`), DID 31:16, SID 47:32, FM 49:48. */
export const ContextCacheInvalidate = {
  G_SHIFT: 4,
  G_MASK: 0x3,
  DID_SHIFT: 16,
  SID_MASK_HI: 0xffff,
  FM_SHIFT_HI: 16,
  FM_MASK: 0x3,
  RESERVED_0: 0x0000_f1c0,
  RESERVED_1: 0xfffc_0000,
  RESERVED_2: 0xffff_ffff,
  RESERVED_3: 0xffff_ffff,
} as const;

/** §6.5.2.3 IOTLB invalidate: G 5:4, DW 6, DR 7, DID 31:16; upper half AM 5:0, IH 6, ADDR 63:12. */
export const IotlbInvalidate = {
  G_SHIFT: 4,
  G_MASK: 0x3,
  DW: 0x40,
  DR: 0x80,
  DID_SHIFT: 16,
  AM_MASK_2: 0x3f,
  IH_2: 0x40,
  RESERVED_0: 0x0000_f100,
  RESERVED_1: 0xffff_ffff,
  RESERVED_2: 0x0000_0f80,
} as const;

/** §6.5.2.5 Device-TLB invalidate: PFSID 15:12 and 63:52, MIP 20:16, SID 47:32; upper half S 0, ADDR 63:12. */
export const DeviceTlbInvalidate = {
  PFSID_LOW_SHIFT: 12,
  MIP_SHIFT: 16,
  MIP_MASK: 0x1f,
  SID_MASK_HI: 0xffff,
  S_2: 0x1,
  RESERVED_0: 0xffe0_01f0,
  RESERVED_1: 0x000f_0000,
  RESERVED_2: 0x0000_0ffe,
} as const;

/** §6.5.2.7 Interrupt entry cache invalidate: G 4 (1 = by index), IM 31:27, IIDX 47:32. */
export const InterruptEntryInvalidate = {
  G: 0x10,
  IM_SHIFT: 27,
  IIDX_MASK_HI: 0xffff,
  RESERVED_0: 0x07ff_f1e0,
  RESERVED_1: 0xffff_0000,
  RESERVED_2: 0xffff_ffff,
  RESERVED_3: 0xffff_ffff,
} as const;

/** §6.5.2.8 Invalidation wait: IF 4, SW 5, FN 6, PD 7, status data 63:32; upper half status address 63:2. */
export const InvalidationWait = {
  IF: 0x10,
  SW: 0x20,
  FN: 0x40,
  PD: 0x80,
  RESERVED_0: 0xffff_f100,
  RESERVED_2: 0x0000_0003,
} as const;

/** §3.15 The interrupt address range: requests without PASID to it are interrupts, not memory. */
export const InterruptRange = { MASK_LO: 0xfff0_0000, VALUE_LO: 0xfee0_0000 } as const;
