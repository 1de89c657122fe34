/**
 * Registers and configuration structures of the Arm System MMU version 3 (IHI 0070, revision
 * F.b): offsets, bits and meanings, nothing that acts. Section numbers are that revision's. What goes through queues is in
 * `queue-spec.ts`.
 *
 * Left out: the Secure and Realm programming interfaces, address-translation operations (GATOS), performance monitors,
 * MPAM, the enhanced command queues, granule protection.
 */
import { address, bit, bits, layout } from "../../uapi/layout.ts";

/** §6.2: offsets from the unit's base, in bytes. Names end with the register page where that matters. */
export const Register = {
  IDR0: 0x00,
  IDR1: 0x04,
  IDR2: 0x08,
  IDR3: 0x0c,
  IDR4: 0x10,
  IDR5: 0x14,
  IIDR: 0x18,
  AIDR: 0x1c,
  CR0: 0x20,
  CR0ACK: 0x24,
  CR1: 0x28,
  CR2: 0x2c,
  STATUSR: 0x40,
  GBPA: 0x44,
  AGBPA: 0x48,
  IRQ_CTRL: 0x50,
  IRQ_CTRLACK: 0x54,
  GERROR: 0x60,
  GERRORN: 0x64,
  GERROR_IRQ_CFG0: 0x68,
  GERROR_IRQ_CFG1: 0x70,
  GERROR_IRQ_CFG2: 0x74,
  STRTAB_BASE: 0x80,
  STRTAB_BASE_CFG: 0x88,
  CMDQ_BASE: 0x90,
  CMDQ_PROD: 0x98,
  CMDQ_CONS: 0x9c,
  EVENTQ_BASE: 0xa0,
  EVENTQ_IRQ_CFG0: 0xb0,
  EVENTQ_IRQ_CFG1: 0xb8,
  EVENTQ_IRQ_CFG2: 0xbc,
  PRIQ_BASE: 0xc0,
  PRIQ_IRQ_CFG0: 0xd0,
  PRIQ_IRQ_CFG1: 0xd8,
  PRIQ_IRQ_CFG2: 0xdc,
  EVENTQ_PROD: 0x1_00a8,
  EVENTQ_CONS: 0x1_00ac,
  PRIQ_PROD: 0x1_00c8,
  PRIQ_CONS: 0x1_00cc,
} as const;

/** §6.1 Two pages of 64 KiB. */
export const REGISTER_BYTES = 0x2_0000;

/** §6.3.1 */
export const Idr0 = layout("IDR0", 4, {
  S2P: bit(0, "stage 2"),
  S1P: bit(1, "stage 1"),
  TTF: bits(2, 3, "translation tables", { 1: "AArch32", 2: "AArch64", 3: "both" }),
  COHACC: bit(4, "coherent accesses of the unit"),
  BTM: bit(5, "broadcast TLB maintenance"),
  HTTU: bits(6, 7, "table updates by hardware", {
    0: "none",
    1: "access flag",
    2: "access flag and dirty state",
  }),
  DORMHINT: bit(8, "dormant hint"),
  HYP: bit(9, "EL2"),
  ATS: bit(10, "PCIe ATS"),
  NS1ATS: bit(11, "no split-stage ATS"),
  ASID16: bit(12, "16-bit ASIDs"),
  MSI: bit(13, "message-signalled interrupts"),
  SEV: bit(14, "events to processors"),
  ATOS: bit(15, "address translation operations"),
  PRI: bit(16, "page requests"),
  VMW: bit(17, "VMID wildcards"),
  VMID16: bit(18, "16-bit VMIDs"),
  CD2L: bit(19, "two-level CD tables"),
  VATOS: bit(20, "virtual ATOS page"),
  TTENDIAN: bits(21, 22, "endianness of tables", { 0: "both", 2: "little", 3: "big" }),
  ATSRECERR: bit(23, "errors of ATS recorded"),
  STALL_MODEL: bits(24, 25, "stalls", { 0: "stall and terminate", 1: "terminate", 2: "stall" }),
  TERM_MODEL: bit(26, "terminated transactions abort"),
  ST_LEVEL: bits(27, 28, "stream tables", { 0: "linear", 1: "two levels too" }),
  RME_IMPL: bit(30, "RME"),
});

/** §6.3.2 */
export const Idr1 = layout("IDR1", 4, {
  SIDSIZE: bits(0, 5, "bits of a StreamID"),
  SSIDSIZE: bits(6, 10, "bits of a SubstreamID"),
  PRIQS: bits(11, 15, "largest page request queue, lg2 of entries"),
  EVENTQS: bits(16, 20, "largest event queue, lg2 of entries"),
  CMDQS: bits(21, 25, "largest command queue, lg2 of entries"),
  ATTR_PERMS_OVR: bit(26, "permission attributes can be overridden"),
  ATTR_TYPES_OVR: bit(27, "type attributes can be overridden"),
  REL: bit(28, "preset bases are relative"),
  QUEUES_PRESET: bit(29, "queue bases are fixed"),
  TABLES_PRESET: bit(30, "table bases are fixed"),
  ECMDQ: bit(31, "enhanced command queues"),
});

/** §6.3.4 */
export const Idr3 = layout("IDR3", 4, {
  HAD: bit(2, "hierarchical attributes can be disabled"),
  PBHA: bit(3, "page-based hardware attributes"),
  XNX: bit(4, "stage 2 execute-never by privilege"),
  PPS: bit(5, "PASID with page responses"),
  MPAM: bit(7, "MPAM"),
  FWB: bit(8, "stage 2 forced write-back"),
  STT: bit(9, "small translation tables"),
  RIL: bit(10, "range invalidation and level hints"),
  BBML: bits(11, 12, "break-before-make level"),
  E0PD: bit(13, "E0PD"),
  PTWNNC: bit(14, "walks to device memory are not cached"),
  DPT: bit(15, "device permission table"),
});

/** §6.3.6 */
export const Idr5 = layout("IDR5", 4, {
  OAS: bits(0, 2, "output address size", { 0: "32", 1: "36", 2: "40", 3: "42", 4: "44", 5: "48", 6: "52" }),
  GRAN4K: bit(4, "4 KiB granule"),
  GRAN16K: bit(5, "16 KiB granule"),
  GRAN64K: bit(6, "64 KiB granule"),
  DS: bit(8, "LPA2"),
  D128: bit(9, "128-bit descriptors"),
  VAX: bits(10, 11, "virtual addresses", { 0: "48 bits", 1: "52 bits" }),
  STALL_MAX: bits(16, 31, "most transactions stalled at a time"),
});

/** Bits of an address size as IDR5.OAS, CD.IPS and STE.S2PS encode it; the encoding 7 is as the largest. */
export const ADDRESS_BITS = [32, 36, 40, 42, 44, 48, 52, 52] as const;

/** §6.3.9 CR0, and CR0ACK. */
export const Cr0 = { SMMUEN: 1, PRIQEN: 2, EVENTQEN: 4, CMDQEN: 8, ATSCHK: 0x10, VMW: 0x1c0 } as const;
export const CR0_VMW_SHIFT = 6;
/** §6.3.11 CR1: attributes of the unit's own accesses. */
export const CR1_MASK = 0xfff;
/** §6.3.12 CR2. */
export const Cr2 = { E2H: 1, RECINVSID: 2, PTM: 4 } as const;

/** §6.3.14 What happens to transactions while SMMUEN is 0. */
export const Gbpa = {
  ABORT: 0x10_0000,
  UPDATE: 0x8000_0000,
  MASK: 0x001f_ffff,
  /** Attributes as they come in (SHCFG = 1), no abort. */
  RESET: 0x1000,
} as const;

/** §6.3.16 IRQ_CTRL, and IRQ_CTRLACK. */
export const IrqCtrl = { GERROR: 1, PRIQ: 2, EVENTQ: 4 } as const;

/** §6.3.18 Bits of GERROR and GERRORN: an error is active while they differ. */
export const Gerror = {
  CMDQ_ERR: 1,
  EVENTQ_ABT_ERR: 4,
  PRIQ_ABT_ERR: 8,
  MSI_CMDQ_ABT_ERR: 0x10,
  MSI_EVENTQ_ABT_ERR: 0x20,
  MSI_PRIQ_ABT_ERR: 0x40,
  MSI_GERROR_ABT_ERR: 0x80,
} as const;
export const GERROR_MASK = 0xfd;

/** §6.3.23 The lower word of STRTAB_BASE; bits below the table's alignment are ignored. */
export const STRTAB_ADDRESS_LO = 0xffff_ffc0;
/** §6.3.24 */
export const StrtabBaseCfg = layout("STRTAB_BASE_CFG", 4, {
  LOG2SIZE: bits(0, 5, "lg2 of the number of StreamIDs"),
  SPLIT: bits(6, 10, "StreamID bits that the second level indexes"),
  FMT: bits(16, 17, "format", { 0: "linear", 1: "two levels" }),
});
export const TWO_LEVEL = 1;

/** §6.3.25 A queue's base: the lower word. */
export const QueueBase = { LOG2SIZE: 0x1f, ADDRESS_LO: 0xffff_ffe0 } as const;
/** Bits of the upper word of a base register: the address, and the allocation hint. */
export const BASE_HI = 0x400f_ffff;
export const ADDRESS_HI = 0x000f_ffff;
/** Index with wrap bit, of PROD and CONS. */
export const QUEUE_INDEX = 0x000f_ffff;
/** §6.3.29 PROD.OVFLG and CONS.OVACKFLG. */
export const OVERFLOW = 0x8000_0000;
export const CMDQ_ERR_SHIFT = 24;

/** §7.1 CMDQ_CONS.ERR. */
export const CommandError = { none: 0, illegal: 1, abort: 2, atcTimeout: 3 } as const;

// §5 Configuration structures

/** §5.1 Level 1 stream table descriptor. */
export const L1Std = layout("level 1 stream table descriptor", 8, {
  SPAN: bits(0, 4, "2^(Span - 1) entries; 0: none"),
  L2PTR: address(6, 51, "level 2 stream table"),
});

/** §5.2 Stream table entry. */
export const Ste = layout("stream table entry", 64, {
  V: bit(0, "valid"),
  CONFIG: bits(1, 3, "configuration", {
    0: "abort",
    4: "bypass",
    5: "stage 1",
    6: "stage 2",
    7: "stages 1 and 2",
  }),
  S1FMT: bits(4, 5, "CD table", { 0: "linear", 1: "two levels of 4 KiB", 2: "two levels of 64 KiB" }),
  S1CONTEXTPTR: address(6, 51, "context descriptors"),
  S1CDMAX: bits(59, 63, "lg2 of the number of context descriptors"),
  S1DSS: bits(64, 65, "without SubstreamID", { 0: "abort", 1: "bypass stage 1", 2: "substream 0" }),
  S1CIR: bits(66, 67, "CD fetches: inner cacheability"),
  S1COR: bits(68, 69, "CD fetches: outer cacheability"),
  S1CSH: bits(70, 71, "CD fetches: shareability"),
  S2HWU: bits(72, 75, "hardware use of descriptor bits"),
  DRE: bit(76, "destructive reads"),
  CONT: bits(77, 80, "contiguous entries: a hint"),
  DCP: bit(81, "directed cache prefetch"),
  PPAR: bit(82, "PASID with automatic page responses"),
  MEV: bit(83, "events may be merged"),
  S2FWB: bit(89, "forced write-back"),
  S1MPAM: bit(90, "MPAM"),
  S1STALLD: bit(91, "stalls of stage 1 are not allowed"),
  EATS: bits(92, 93, "ATS", { 0: "no", 1: "full", 2: "split-stage" }),
  STRW: bits(94, 95, "StreamWorld", { 0: "EL1", 1: "EL3", 2: "EL2" }),
  MEMATTR: bits(96, 99, "memory attributes"),
  MTCFG: bit(100, "memory attributes are overridden"),
  ALLOCCFG: bits(101, 104, "allocation hints"),
  SHCFG: bits(108, 109, "shareability"),
  NSCFG: bits(110, 111, "security"),
  PRIVCFG: bits(112, 113, "privilege", { 0: "incoming", 1: "incoming", 2: "unprivileged", 3: "privileged" }),
  INSTCFG: bits(114, 115, "instruction", { 0: "incoming", 1: "incoming", 2: "data", 3: "instruction" }),
  S2VMID: bits(128, 143, "VMID"),
  S2T0SZ: bits(160, 165, "stage 2 input size: 64 - S2T0SZ bits"),
  S2SL0: bits(166, 167, "stage 2 start level"),
  S2IR0: bits(168, 169, "stage 2 walks: inner cacheability"),
  S2OR0: bits(170, 171, "stage 2 walks: outer cacheability"),
  S2SH0: bits(172, 173, "stage 2 walks: shareability"),
  S2TG: bits(174, 175, "stage 2 granule", { 0: "4 KiB", 1: "64 KiB", 2: "16 KiB" }),
  S2PS: bits(176, 178, "stage 2 output size"),
  S2AA64: bit(179, "stage 2 tables", { 0: "AArch32", 1: "AArch64" }),
  S2ENDI: bit(180, "stage 2 tables are big-endian"),
  S2AFFD: bit(181, "no access flag faults of stage 2"),
  S2PTW: bit(182, "table accesses to device memory fault"),
  S2HD: bit(183, "dirty state by hardware"),
  S2HA: bit(184, "access flag by hardware"),
  S2S: bit(185, "stage 2 faults stall"),
  S2R: bit(186, "stage 2 faults are recorded"),
  S2TTB: address(196, 243, "stage 2 table", 4),
});
export const Config = { abort: 0, bypass: 4, stage1: 5, stage2: 6, nested: 7 } as const;
export const S1Dss = { terminate: 0, bypass: 1, substream0: 2 } as const;
export const Eats = { none: 0, full: 1, split: 2 } as const;
export const StreamWorld = { el1: 0, el3: 1, el2: 2 } as const;

/** §5.3 Level 1 context descriptor. */
export const L1Cd = layout("level 1 context descriptor", 8, {
  V: bit(0, "valid"),
  L2PTR: address(12, 51, "level 2 table of context descriptors"),
});

/** §5.4 Context descriptor. */
export const Cd = layout("context descriptor", 64, {
  T0SZ: bits(0, 5, "TTB0: 64 - T0SZ input bits"),
  TG0: bits(6, 7, "TTB0 granule", { 0: "4 KiB", 1: "64 KiB", 2: "16 KiB" }),
  IR0: bits(8, 9, "TTB0 walks: inner cacheability"),
  OR0: bits(10, 11, "TTB0 walks: outer cacheability"),
  SH0: bits(12, 13, "TTB0 walks: shareability"),
  EPD0: bit(14, "TTB0 is not used"),
  ENDI: bit(15, "big-endian tables"),
  T1SZ: bits(16, 21, "TTB1: 64 - T1SZ input bits"),
  TG1: bits(22, 23, "TTB1 granule", { 1: "16 KiB", 2: "4 KiB", 3: "64 KiB" }),
  IR1: bits(24, 25, "TTB1 walks: inner cacheability"),
  OR1: bits(26, 27, "TTB1 walks: outer cacheability"),
  SH1: bits(28, 29, "TTB1 walks: shareability"),
  EPD1: bit(30, "TTB1 is not used"),
  V: bit(31, "valid"),
  IPS: bits(32, 34, "output size"),
  AFFD: bit(35, "no access flag faults"),
  WXN: bit(36, "what can be written is not executed"),
  UWXN: bit(37, "what the unprivileged can write the privileged do not execute"),
  TBI0: bit(38, "top byte ignored, TTB0"),
  TBI1: bit(39, "top byte ignored, TTB1"),
  PAN: bit(40, "privileged access never"),
  AA64: bit(41, "tables", { 0: "AArch32", 1: "AArch64" }),
  HD: bit(42, "dirty state by hardware"),
  HA: bit(43, "access flag by hardware"),
  S: bit(44, "faults stall"),
  R: bit(45, "faults are recorded"),
  A: bit(46, "faults abort"),
  ASET: bit(47, "ASID is not shared"),
  ASID: bits(48, 63, "ASID"),
  NSCFG0: bit(64, "non-secure"),
  HAD0: bit(65, "TTB0: no hierarchical attributes"),
  E0PD0: bit(66, "TTB0 is not for the unprivileged"),
  TTB0: address(68, 115, "table of the lower addresses", 4),
  HWU0: bits(123, 126, "hardware use of descriptor bits"),
  NSCFG1: bit(128, "non-secure"),
  HAD1: bit(129, "TTB1: no hierarchical attributes"),
  E0PD1: bit(130, "TTB1 is not for the unprivileged"),
  TTB1: address(132, 179, "table of the upper addresses", 4),
  HWU1: bits(187, 190, "hardware use of descriptor bits"),
  MAIR0: bits(192, 223, "memory attributes 0 to 3"),
  MAIR1: bits(224, 255, "memory attributes 4 to 7"),
  AMAIR0: bits(256, 287, "auxiliary attributes"),
  AMAIR1: bits(288, 319, "auxiliary attributes"),
});

/** lg2 of the granule that TG0 and S2TG, and TG1, encode; 0: reserved. */
export const GRANULE_TG0 = [12, 16, 14, 0] as const;
export const GRANULE_TG1 = [0, 14, 12, 16] as const;
