/**
 * Registers and tables of AMD-Vi (AMD I/O Virtualization Technology (IOMMU) Specification, 48882, revision 3.07): offsets,
 * bits and meanings, nothing that acts. Section numbers are that revision's. What goes through the command buffer and the
 * logs is in `queue-spec.ts`.
 *
 * Left out: interrupt remapping and virtual APIC logs, SMI filter, performance counters, device table segments, dual logs,
 * memory routing (MARC), the virtualized interface (vIOMMU), x2APIC interrupt registers.
 */
import { address, bit, bits, layout } from "../../uapi/layout.ts";

/** §3.4: offsets from the unit's base, in bytes. */
export const Register = {
  DEVTAB_BASE: 0x00,
  CMDBUF_BASE: 0x08,
  EVTLOG_BASE: 0x10,
  CONTROL: 0x18,
  EXCL_BASE: 0x20,
  EXCL_LIMIT: 0x28,
  EXT_FEATURE: 0x30,
  PPRLOG_BASE: 0x38,
  MSI_CAPABILITY: 0x158,
  MSI_ADDRESS: 0x15c,
  MSI_DATA: 0x164,
  EXT_FEATURE2: 0x1a0,
  CMDBUF_HEAD: 0x2000,
  CMDBUF_TAIL: 0x2008,
  EVTLOG_HEAD: 0x2010,
  EVTLOG_TAIL: 0x2018,
  STATUS: 0x2020,
  PPRLOG_HEAD: 0x2030,
  PPRLOG_TAIL: 0x2038,
} as const;
export const REGISTER_BYTES = 0x4000;

/** §3.4.1 Device table base. */
export const DeviceTableBase = layout("DEVTAB_BASE", 8, {
  SIZE: bits(0, 8, "size in pages of 4 KiB, minus 1"),
  BASE: address(12, 51, "device table"),
});
/** §3.4.1 Base of the command buffer, the event log and the PPR log. */
export const RingBase = layout("ring base", 8, {
  BASE: address(12, 51, "ring"),
  LEN: bits(56, 59, "lg2 of the entries; 8 at least"),
});
/** Byte offset of an entry: head and tail pointers. */
export const RingPointer = layout("ring pointer", 8, { PTR: bits(4, 18, "entry, in 16 bytes") });
export const POINTER_MASK = RingPointer.fields.PTR.mask;

/** §3.4.1 Control. */
export const ControlRegister = layout("CONTROL", 8, {
  IOMMU_EN: bit(0, "translation is enabled"),
  HT_TUN_EN: bit(1, "HyperTransport tunnel"),
  EVENT_LOG_EN: bit(2, "event log"),
  EVENT_INT_EN: bit(3, "interrupt of the event log"),
  COM_WAIT_INT_EN: bit(4, "interrupt of COMPLETION_WAIT"),
  INV_TIME_OUT: bits(5, 7, "time that a device-TLB is given"),
  PASS_PW: bit(8, "ordering of requests"),
  RES_PASS_PW: bit(9, "ordering of responses"),
  COHERENT: bit(10, "device table accesses are coherent"),
  ISOC: bit(11, "isochronous"),
  CMD_BUF_EN: bit(12, "command buffer"),
  PPR_LOG_EN: bit(13, "PPR log"),
  PPR_INT_EN: bit(14, "interrupt of the PPR log"),
  PPR_EN: bit(15, "page requests are taken"),
  GT_EN: bit(16, "guest translation"),
  PPR_AUTO_RSP_EN: bit(39, "page requests that find the log overflown are answered by the unit"),
  HAD_UPDATE: bits(47, 48, "how accessed and dirty bits are written"),
  GCR3_TRP_MODE: bit(58, "GCR3 table root pointers", { 0: "system physical", 1: "guest physical" }),
});

/** §3.4.1 Exclusion range base. */
export const ExclusionBase = layout("EXCL_BASE", 8, {
  EX_EN: bit(0, "the exclusion range is enabled"),
  ALLOW: bit(1, "for all devices", { 0: "those with DTE.EX", 1: "all" }),
  BASE: address(12, 51, "first page"),
});

/** §3.4.2 Extended features. */
export const ExtendedFeature = layout("EXT_FEATURE", 8, {
  PREF_SUP: bit(0, "PREFETCH_IOMMU_PAGES"),
  PPR_SUP: bit(1, "page requests"),
  XT_SUP: bit(2, "x2APIC"),
  NX_SUP: bit(3, "no-execute of guest tables"),
  GT_SUP: bit(4, "guest translation"),
  GAPPI_SUP: bit(5, "guest APIC physical processor interrupts"),
  IA_SUP: bit(6, "INVALIDATE_IOMMU_ALL"),
  GA_SUP: bit(7, "guest virtual APIC"),
  HE_SUP: bit(8, "hardware error registers"),
  PC_SUP: bit(9, "performance counters"),
  HATS: bits(10, 11, "host tables", { 0: "4 levels", 1: "5 levels", 2: "6 levels" }),
  GATS: bits(12, 13, "guest tables", { 0: "4 levels", 1: "5 levels", 2: "6 levels" }),
  GLX_SUP: bits(14, 15, "GCR3 tables", { 0: "1 level", 1: "2 levels", 2: "3 levels" }),
  PAS_MAX: bits(32, 36, "bits of a PASID, minus 1"),
  US_SUP: bit(37, "user and supervisor privilege"),
  PPR_AUTO_RSP_SUP: bit(41, "automatic page responses"),
  MSI_CAP_MMIO_SUP: bit(46, "MSI registers in this register file"),
  GIO_SUP: bit(48, "guest translation without PASID"),
  HA_SUP: bit(49, "accessed bits of host tables"),
  HD_SUP: bit(52, "dirty bits of host tables"),
  SNP_SUP: bit(63, "secure nested paging"),
});
/** §3.4.2 Extended features 2. */
export const ExtendedFeature2 = layout("EXT_FEATURE2", 8, {
  GCR3_TRP_MODE_SUP: bit(3, "guest physical GCR3 table root pointers"),
});

/** §3.4.8 MSI capability, as MMIO registers: the header. */
export const MsiCapability = layout("MSI_CAPABILITY", 4, {
  ID: bits(0, 7, "capability id"),
  EN: bit(16, "messages are enabled"),
  WIDE: bit(23, "64-bit addresses"),
});
export const MSI_CAPABILITY_ID = 5;

/** §3.4.11 Status. */
export const Status = {
  EVENT_OVERFLOW: 1 << 0,
  EVENT_LOG_INT: 1 << 1,
  COM_WAIT_INT: 1 << 2,
  EVENT_LOG_RUN: 1 << 3,
  CMD_BUF_RUN: 1 << 4,
  PPR_OVERFLOW: 1 << 5,
  PPR_INT: 1 << 6,
  PPR_RUN: 1 << 7,
} as const;
/** Software clears these by writing 1. */
export const STATUS_CLEARED =
  Status.EVENT_OVERFLOW | Status.EVENT_LOG_INT | Status.COM_WAIT_INT | Status.PPR_OVERFLOW | Status.PPR_INT;

/** §2.2.2.1 Device table entry. Bits 255:128 are interrupt remapping's, but for the guest paging mode. */
export const Dte = layout("DTE", 32, {
  V: bit(0, "valid"),
  TV: bit(1, "translation information is valid"),
  HAD: bits(7, 8, "accessed and dirty bits of host tables", {
    0: "no",
    1: "accessed",
    3: "accessed and dirty",
  }),
  MODE: bits(9, 11, "levels of the host tables", {
    ...{ 0: "no translation", 1: "1 level", 2: "2 levels", 3: "3 levels" },
    ...{ 4: "4 levels", 5: "5 levels", 6: "6 levels", 7: "reserved" },
  }),
  HOST_TRP: address(12, 51, "host table"),
  PPR: bit(52, "page requests are allowed"),
  GPRP: bit(53, "page responses have a PASID"),
  GIOV: bit(54, "requests without PASID use PASID 0"),
  GV: bit(55, "guest translation"),
  GLX: bits(56, 57, "GCR3 table", { 0: "1 level", 1: "2 levels", 2: "3 levels", 3: "reserved" }),
  GCR3_TRP_14: address(58, 60, "GCR3 table, bits 14:12", 12),
  IR: bit(61, "read permission"),
  IW: bit(62, "write permission"),
  DOMAIN: bits(64, 79, "domain id"),
  GCR3_TRP_30: address(80, 95, "GCR3 table, bits 30:15", 15),
  I: bit(96, "the device may keep translations (ATS)"),
  SE: bit(97, "of its page faults only the first is logged"),
  SA: bit(98, "its page faults are not logged"),
  IOCTL: bits(99, 100, "port I/O", { 0: "abort", 1: "forward", 2: "translate", 3: "reserved" }),
  CACHE: bit(101, "IOTLB hint"),
  SD: bit(102, "no snooping"),
  EX: bit(103, "the exclusion range is for it"),
  SYSMGT: bits(104, 105, "system management messages", {
    0: "abort",
    1: "forward",
    2: "forward interrupts",
    3: "translate",
  }),
  SATS: bit(106, "secure ATS"),
  GCR3_TRP_51: address(107, 127, "GCR3 table, bits 51:31", 31),
  IV: bit(128, "interrupt map is valid"),
  INT_TAB_LEN: bits(129, 132, "interrupt table, lg2 of the entries"),
  IG: bit(133, "unmapped interrupts are not logged"),
  INT_TRP: address(134, 179, "interrupt table", 6),
  GUEST_PAGING_MODE: bits(182, 183, "guest tables", { 0: "4 levels", 1: "5 levels" }),
  INIT_PASS: bit(184, "INIT passes"),
  EINT_PASS: bit(185, "ExtInt passes"),
  NMI_PASS: bit(186, "NMI passes"),
  HPT_MODE: bit(187, "host page table mode"),
  INT_CTL: bits(188, 189, "interrupts"),
  LINT0_PASS: bit(190, "LINT0 passes"),
  LINT1_PASS: bit(191, "LINT1 passes"),
});

/** §2.2.6.3 Entry of a GCR3 table: another table, or in the last level the guest's root table. */
export const Gcr3Entry = layout("GCR3 entry", 8, {
  V: bit(0, "valid"),
  ADDR: address(12, 51, "next table"),
});

/** PASID bits that each level of a GCR3 table indexes. */
export const GCR3_BITS = 9;

/** §2.1 Addresses with a meaning of their own: [start, end). */
export const AddressRange = {
  /** Interrupt messages as PCI functions write them. */
  interrupt: { start: 0xfee0_0000, end: 0xfef0_0000 },
  systemManagement: { start: 0xfd_f910_0000, end: 0xfd_f920_0000 },
  portIo: { start: 0xfd_fc00_0000, end: 0xfd_fe00_0000 },
} as const;
