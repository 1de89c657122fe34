/**
 * Registers, table entries and queue descriptors of Intel VT-d (Virtualization Technology for Directed I/O,
 * revision 4.1): offsets, bits and meanings, nothing that acts. Section numbers are that revision's.
 *
 * Those of scalable mode and page requests are in `scalable-spec.ts`. Left out: performance monitoring, enhanced commands.
 */
import { address, bit, bits, type Declarations, type Layout, layout } from "../../uapi/layout.ts";

/** The mask of every field within the 32-bit word that holds its first bit. */
const masks = <F extends Declarations>(of: Layout<F>): { readonly [K in keyof F]: number } =>
  Object.fromEntries(Object.entries(of.fields).map(([name, field]) => [name, field.mask])) as {
    readonly [K in keyof F]: number;
  };

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
  VCMD: 0xe00,
  VCRSP: 0xe10,
  VCCAP: 0xe30,
} as const;

/** Bytes of one register page; a unit's register file is a whole number of them. */
export const REGISTER_PAGE_BYTES = 0x1000;

/** §11.4.2 Capability. */
export const CapRegister = layout("CAP", 8, {
  ND: bits(0, 2, "domains: 2^(4 + 2·ND)"),
  AFL: bit(3, "advanced fault logging"),
  RWBF: bit(4, "required write-buffer flushing"),
  PLMR: bit(5, "protected low memory region"),
  PHMR: bit(6, "protected high memory region"),
  CM: bit(7, "caching mode: not-present and faulting entries may be cached"),
  SAGAW: bits(8, 12, "supported adjusted guest address widths: bit n is AW n"),
  MGAW: bits(16, 21, "maximum guest address width, minus 1"),
  ZLR: bit(22, "zero-length reads of write-only pages"),
  FRO: bits(24, 33, "offset of the fault recording registers, in 16 bytes"),
  SLLPS: bits(34, 37, "second-stage large pages: bit 0 2 MiB, bit 1 1 GiB"),
  PSI: bit(39, "page-selective invalidation"),
  NFR: bits(40, 47, "number of fault recording registers, minus 1"),
  MAMV: bits(48, 53, "maximum address mask value"),
  DWD: bit(54, "write draining"),
  DRD: bit(55, "read draining"),
  FL1GP: bit(56, "first-stage 1 GiB pages"),
  PI: bit(59, "posted interrupts"),
  FL5LP: bit(60, "first-stage 5-level paging"),
  ECMDS: bit(61, "enhanced commands"),
  ESIRTPS: bit(62, "SIRTP invalidates the interrupt entry cache"),
  ESRTPS: bit(63, "SRTP invalidates the DMA-remapping caches"),
});
/** Bits of CAP.SLLPS. */
export const LargePages = { twoMegabytes: 1, oneGigabyte: 2 } as const;
/** SAGAW bit n stands for AW n: 1 = 39 bits and 3 levels, 2 = 48 and 4, 3 = 57 and 5. */
export const addressWidthOf = (aw: number): number => 30 + 9 * aw;

/** §11.4.3 Extended Capability. */
export const EcapRegister = layout("ECAP", 8, {
  C: bit(0, "page-walk coherency"),
  QI: bit(1, "queued invalidation"),
  DT: bit(2, "device-TLB"),
  IR: bit(3, "interrupt remapping"),
  EIM: bit(4, "extended interrupt mode"),
  PT: bit(6, "pass-through"),
  SC: bit(7, "snoop control"),
  IRO: bits(8, 17, "offset of the IOTLB registers, in 16 bytes"),
  MHMV: bits(20, 23, "maximum handle mask value"),
  MTS: bit(25, "memory types"),
  NEST: bit(26, "nested translation"),
  PRS: bit(29, "page requests"),
  ERS: bit(30, "execute requests"),
  SRS: bit(31, "supervisor requests"),
  NWFS: bit(33, "no write flag"),
  EAFS: bit(34, "extended accessed flag"),
  PSS: bits(35, 39, "PASID width, minus 1"),
  PASID: bit(40, "PASID"),
  DIT: bit(41, "device-TLB invalidation throttle"),
  PDS: bit(42, "page-request drain"),
  SMTS: bit(43, "scalable mode"),
  VCS: bit(44, "virtual command"),
  SSADS: bit(45, "second-stage accessed and dirty bits"),
  SSTS: bit(46, "second-stage translation in scalable mode"),
  FSTS: bit(47, "first-stage translation"),
  SMPWCS: bit(48, "scalable-mode page-walk coherency"),
  RPS: bit(49, "RID_PASID"),
  PMS: bit(51, "performance monitoring"),
});

/** §11.4.4 Global Command; §11.4.5 Global Status has the same bits at the same places. */
export const GcmdRegister = layout("GCMD", 4, {
  CFI: bit(23, "compatibility format interrupts"),
  SIRTP: bit(24, "set interrupt remap table pointer"),
  IRE: bit(25, "interrupt remapping enable"),
  QIE: bit(26, "queued invalidation enable"),
  WBF: bit(27, "write buffer flush"),
  EAFL: bit(28, "enable advanced fault logging"),
  SFL: bit(29, "set fault log"),
  SRTP: bit(30, "set root table pointer"),
  TE: bit(31, "translation enable"),
});
export const Gcmd = masks(GcmdRegister);
/** Commands that act once when written as 1; a write that changes another command leaves them 0. */
export const GCMD_ONE_SHOT = Gcmd.SRTP + Gcmd.SFL + Gcmd.WBF + Gcmd.SIRTP;

/** §11.4.6 Root Table Address. */
export const RtaddrRegister = layout("RTADDR", 8, {
  TTM: bits(10, 11, "translation table mode", { 0: "legacy", 1: "scalable", 2: "reserved", 3: "abort DMA" }),
  RTA: address(12, 63, "root table"),
});
export const Ttm = { legacy: 0, scalable: 1, reserved: 2, abort: 3 } as const;

/** Granularity of an invalidation: CIRG and CAIG, IIRG and IAIG, and G of the descriptors. */
export const Granularity = { reserved: 0, global: 1, domain: 2, device: 3, page: 3 } as const;
const contextGranularity = { 0: "reserved", 1: "global", 2: "domain-selective", 3: "device-selective" };
const iotlbGranularity = { 0: "reserved", 1: "global", 2: "domain-selective", 3: "page-selective" };

/** §11.4.7 Context Command. */
export const CcmdRegister = layout("CCMD", 8, {
  DID: bits(0, 15, "domain id"),
  SID: bits(16, 31, "source id"),
  FM: bits(32, 33, "function mask"),
  CAIG: bits(59, 60, "granularity performed", contextGranularity),
  CIRG: bits(61, 62, "granularity requested", contextGranularity),
  ICC: bit(63, "invalidate context-cache; reads 1 until done"),
});

/** §11.4.8.1 IOTLB Invalidate, at ECAP.IRO·16 + 8. */
export const IotlbRegister = layout("IOTLB", 8, {
  DID: bits(32, 47, "domain id"),
  DW: bit(48, "drain writes"),
  DR: bit(49, "drain reads"),
  IAIG: bits(57, 58, "granularity performed", iotlbGranularity),
  IIRG: bits(60, 61, "granularity requested", iotlbGranularity),
  IVT: bit(63, "invalidate IOTLB; reads 1 until done"),
});
/** §11.4.8.2 Invalidate Address, at ECAP.IRO·16; write-only. */
export const IvaRegister = layout("IVA", 8, {
  AM: bits(0, 5, "address mask: lg2 of pages"),
  IH: bit(6, "invalidation hint: only leaves changed"),
  ADDR: address(12, 63, "address"),
});

/** §11.4.9 Fault Status. */
export const FstsRegister = layout("FSTS", 4, {
  PFO: bit(0, "primary fault overflow (write 1 to clear)"),
  PPF: bit(1, "primary pending fault: a fault record has F set"),
  AFO: bit(2, "advanced fault overflow"),
  APF: bit(3, "advanced pending fault"),
  IQE: bit(4, "invalidation queue error (write 1 to clear)"),
  ICE: bit(5, "invalidation completion error (write 1 to clear)"),
  ITE: bit(6, "invalidation time-out error (write 1 to clear)"),
  FRI: bits(8, 15, "index of the first pending fault record"),
});
export const Fsts = masks(FstsRegister);

/** §11.4.10 Fault Event Control; those of invalidation completions and page requests have the same bits. */
export const EventControlRegister = layout("FECTL", 4, {
  IP: bit(30, "interrupt pending"),
  IM: bit(31, "interrupt mask"),
});
export const EventControl = masks(EventControlRegister);

/** §11.4.14 Fault Recording. */
export const FaultRecording = layout("FRCD", 16, {
  FI: address(12, 63, "page of the faulting request"),
  SID: bits(64, 79, "source id"),
  T2: bit(92, "type, bit 2"),
  PRIV: bit(93, "privilege mode requested"),
  EXE: bit(94, "execute requested"),
  PP: bit(95, "PASID present"),
  FR: bits(96, 103, "fault reason"),
  PV: bits(104, 123, "PASID value"),
  AT: bits(124, 125, "address type of the request"),
  T1: bit(126, "type, bit 1: read (with T2: AtomicOp)"),
  F: bit(127, "fault (write 1 to clear)"),
});

/** §11.4.17 Protected Memory Enable. */
export const PmenRegister = layout("PMEN", 4, {
  PRS: bit(0, "protected region status"),
  EPM: bit(31, "enable protected memory"),
});
export const Pmen = masks(PmenRegister);

/** §11.4.22 Invalidation Queue Head and §11.4.23 Tail: byte offset of a descriptor from the queue's start. */
export const IqPointerRegister = layout("IQT", 8, { Q: bits(4, 18, "descriptor, in 16 bytes") });
export const IQ_POINTER_MASK = IqPointerRegister.fields.Q.mask;
/** §11.4.24 Invalidation Queue Address. */
export const IqaRegister = layout("IQA", 8, {
  QS: bits(0, 2, "size: 2^QS pages"),
  DW: bit(11, "descriptor width", { 0: "128-bit", 1: "256-bit" }),
  IQA: address(12, 63, "invalidation queue"),
});
/** §11.4.25 Invalidation Completion Status. */
export const IcsRegister = layout("ICS", 4, { IWC: bit(0, "a wait descriptor with IF completed") });
export const Ics = masks(IcsRegister);
/** §11.4.30 Invalidation Queue Error Record; exists from VER.MAX 4 on. */
export const IqercdRegister = layout("IQERCD", 8, {
  IQEI: bits(0, 3, "what raised IQE", {
    0: "not told",
    1: "the tail is beyond the queue",
    2: "a descriptor could not be fetched",
    3: "descriptor of a type that is not valid",
    4: "a reserved field of a descriptor is set",
    5: "descriptor width not valid in this mode",
    6: "the tail is not a multiple of the descriptor's size",
    7: "translation table mode not valid",
  }),
  ITESID: bits(32, 47, "source id of an invalidation time-out"),
  ICESID: bits(48, 63, "source id of an invalidation completion error"),
});
/** §11.4.26 Interrupt Remapping Table Address. */
export const IrtaRegister = layout("IRTA", 8, {
  S: bits(0, 3, "size: 2^(S + 1) entries"),
  EIME: bit(11, "extended interrupt mode"),
  IRTA: address(12, 63, "interrupt remapping table"),
});

/** §9.1 Root entry, one a bus. Bits of CTP beyond the host address width are reserved. */
export const RootEntry = layout("root entry", 16, {
  P: bit(0, "present"),
  CTP: address(12, 63, "context table"),
});

/** §9.3 Context entry, one a device and function. Bits of SSPTPTR beyond the host address width are reserved. */
export const ContextEntry = layout("context entry", 16, {
  P: bit(0, "present"),
  FPD: bit(1, "fault processing disable"),
  TT: bits(2, 3, "translation type", {
    0: "second stage",
    1: "second stage, with device-TLB",
    2: "pass-through",
    3: "reserved",
  }),
  SSPTPTR: address(12, 63, "second-stage page table"),
  AW: bits(64, 66, "address width", { 1: "39 bits", 2: "48 bits", 3: "57 bits" }),
  IGN: bits(67, 70, "ignored"),
  DID: bits(72, 87, "domain id"),
});
export const TranslationType = { secondStage: 0, deviceTlb: 1, passThrough: 2, reserved: 3 } as const;

/** §6.5.2 Bytes of a descriptor with IQA.DW clear and set. A wide one's upper half is reserved in legacy mode. */
export const DESCRIPTOR_BYTES = 16;
export const WIDE_DESCRIPTOR_BYTES = 32;
/** §6.5.2 What every descriptor has: bits 6:4 of its type lie apart. */
export const descriptorType = {
  TYPE: bits(0, 3, "type, bits 3:0"),
  TYPE_HIGH: bits(9, 11, "type, bits 6:4"),
};
export const Descriptor = layout("descriptor", 16, descriptorType);
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

/** §6.5.2.1 Context-cache invalidate. */
export const ContextCacheInvalidate = layout("context-cache invalidate", 16, {
  ...descriptorType,
  G: bits(4, 5, "granularity", contextGranularity),
  DID: bits(16, 31, "domain id"),
  SID: bits(32, 47, "source id"),
  FM: bits(48, 49, "function mask"),
});

/** §6.5.2.3 IOTLB invalidate. */
export const IotlbInvalidate = layout("IOTLB invalidate", 16, {
  ...descriptorType,
  G: bits(4, 5, "granularity", iotlbGranularity),
  DW: bit(6, "drain writes"),
  DR: bit(7, "drain reads"),
  DID: bits(16, 31, "domain id"),
  AM: bits(64, 69, "address mask: lg2 of pages"),
  IH: bit(70, "invalidation hint: only leaves changed"),
  ADDR: address(76, 127, "address"),
});

/** §6.5.2.5 Device-TLB invalidate. */
export const DeviceTlbInvalidate = layout("device-TLB invalidate", 16, {
  ...descriptorType,
  PFSID_LOW: bits(12, 15, "source id of the physical function, bits 3:0"),
  MIP: bits(16, 20, "maximum invalidations pending"),
  SID: bits(32, 47, "source id"),
  PFSID_HIGH: bits(52, 63, "source id of the physical function, bits 15:4"),
  S: bit(64, "the address encodes a size"),
  ADDR: address(76, 127, "address"),
});

/** §6.5.2.7 Interrupt entry cache invalidate. */
export const InterruptEntryInvalidate = layout("interrupt entry cache invalidate", 16, {
  ...descriptorType,
  G: bit(4, "granularity", { 0: "global", 1: "by index" }),
  IM: bits(27, 31, "index mask: lg2 of entries"),
  IIDX: bits(32, 47, "interrupt index"),
});

/** §6.5.2.8 Invalidation wait. */
export const InvalidationWait = layout("invalidation wait", 16, {
  ...descriptorType,
  IF: bit(4, "interrupt flag"),
  SW: bit(5, "status write"),
  FN: bit(6, "fence"),
  PD: bit(7, "page-request drain"),
  STATUS: bits(32, 63, "status data"),
  ADDR: address(66, 127, "status address"),
});

/** §3.15 The interrupt address range: requests without PASID to 0xFEEx_xxxx are interrupts, not memory. */
export const InterruptRange = { MASK_LO: 0xfff0_0000, VALUE_LO: 0xfee0_0000 } as const;

/**
 * §11.4 Virtual Command: what software asks of the VMM that made the unit. Offsets and fields are those from revision 3.3 on.
 * Writing CMD submits.
 */
export const VcmdRegister = layout("VCMD", 8, {
  CMD: bits(0, 7, "command", { 1: "allocate PASID", 2: "free PASID" }),
  PASID: bits(16, 35, "PASID to be freed"),
});
export const VirtualCommand = { allocatePasid: 1, freePasid: 2 } as const;
/** §11.4 Virtual Command Response. */
export const VcrspRegister = layout("VCRSP", 8, {
  IP: bit(0, "in progress"),
  SC: bits(1, 7, "status code"),
  PASID: bits(16, 35, "PASID that was allocated"),
});
export const VirtualStatus = { success: 0, unknownCommand: 1, refused: 16 } as const;
/** §11.4 Virtual Command Capability. */
export const VccapRegister = layout("VCCAP", 8, { PAS: bit(0, "PASIDs are allocated and freed") });
