/**
 * Tables, descriptors and registers of Intel VT-d that scalable mode and page requests add (revision 4.1): layouts,
 * nothing that acts. What a unit's capabilities make reserved is in `scalable-tables.ts`. Left out: performance
 * monitoring, enhanced and virtual commands.
 */
import { address, bit, bits, layout, rsvd } from "../../uapi/layout.ts";
import { descriptorType } from "./spec.ts";

/** §9.2 Scalable-mode root entry, one a bus; each half is of 128 functions. */
export const ScalableRootEntry = layout("scalable-mode root entry", 16, {
  LP: bit(0, "lower present"),
  LCTP: address(12, 63, "lower context table: devices 0 to 15"),
  UP: bit(64, "upper present"),
  UCTP: address(76, 127, "upper context table: devices 16 to 31"),
});

/** §9.4 Scalable-mode context entry, one a function. */
export const ScalableContextEntry = layout("scalable-mode context entry", 32, {
  P: bit(0, "present"),
  FPD: bit(1, "fault processing disable"),
  DTE: bit(2, "device-TLB enable"),
  PASIDE: bit(3, "PASID enable"),
  PRE: bit(4, "page request enable"),
  PDTS: bits(9, 11, "PASID directory: 2^(PDTS + 7) entries"),
  PASIDDIRPTR: address(12, 63, "PASID directory"),
  RID_PASID: bits(64, 83, "PASID of requests without one"),
  RID_PRIV: bit(84, "requests without PASID are privileged"),
});

/** §9.5 PASID directory entry, one for 64 PASIDs. */
export const PasidDirectoryEntry = layout("PASID directory entry", 8, {
  P: bit(0, "present"),
  FPD: bit(1, "fault processing disable"),
  SMPTBLPTR: address(12, 63, "PASID table"),
});

/** §9.6 PASID table entry. */
export const PasidEntry = layout("PASID table entry", 64, {
  P: bit(0, "present"),
  FPD: bit(1, "fault processing disable"),
  AW: bits(2, 4, "address width of the second stage", { 1: "39 bits", 2: "48 bits", 3: "57 bits" }),
  SSEE: bit(5, "second-stage execute enable"),
  PGTT: bits(6, 8, "translation type", {
    0: "reserved",
    1: "first stage",
    2: "second stage",
    3: "nested",
    4: "pass-through",
  }),
  SSADE: bit(9, "second-stage accessed and dirty bits"),
  SSPTPTR: address(12, 63, "second-stage page table"),
  DID: bits(64, 79, "domain id"),
  PWSNP: bit(87, "page walks snoop"),
  PGSNP: bit(88, "accesses snoop"),
  CD: bit(89, "cache disable"),
  EMTE: bit(90, "extended memory type enable"),
  EMT: bits(91, 93, "extended memory type"),
  PWT: bit(94, "page-level write-through"),
  PCD: bit(95, "page-level cache disable"),
  PAT: bits(96, 127, "page attribute table"),
  SRE: bit(128, "supervisor requests enable"),
  ERE: bit(129, "execute requests enable"),
  FSPM: bits(130, 131, "first-stage paging mode", { 0: "4 levels", 1: "5 levels" }),
  WPE: bit(132, "write protect enable"),
  NXE: bit(133, "execute disable enable"),
  SMEP: bit(134, "supervisor mode execute prevention"),
  EAFE: bit(135, "extended accessed flag enable"),
  FSPTPTR: address(140, 191, "first-stage page table"),
  RSVD: rsvd(192, 511),
});
export const Pgtt = { first: 1, second: 2, nested: 3, passThrough: 4 } as const;

/** PASID bits that index the PASID table; the others index the directory. */
export const PASID_TABLE_BITS = 6;
/** Directory of 2^(PDTS + 7) entries. */
export const PASID_DIRECTORY_BITS = 7;

/** §6.5.2.2 PASID-cache invalidate. */
export const PasidCacheInvalidate = layout("PASID-cache invalidate", 16, {
  ...descriptorType,
  G: bits(4, 5, "granularity", { 0: "domain-selective", 1: "PASID-selective", 2: "reserved", 3: "global" }),
  DID: bits(16, 31, "domain id"),
  PASID: bits(32, 51, "PASID"),
});
export const PasidCacheGranularity = { domain: 0, pasid: 1, reserved: 2, global: 3 } as const;

/** §6.5.2.4 PASID-based IOTLB invalidate. */
export const PasidIotlbInvalidate = layout("PASID-based IOTLB invalidate", 16, {
  ...descriptorType,
  G: bits(4, 5, "granularity", {
    0: "reserved",
    1: "reserved",
    2: "PASID-selective within domain",
    3: "page-selective within PASID",
  }),
  DID: bits(16, 31, "domain id"),
  PASID: bits(32, 51, "PASID"),
  AM: bits(64, 69, "address mask: lg2 of pages"),
  IH: bit(70, "invalidation hint: only leaves changed"),
  ADDR: address(76, 127, "address"),
});
export const PasidIotlbGranularity = { pasid: 2, page: 3 } as const;

/** §6.5.2.6 PASID-based device-TLB invalidate. */
export const PasidDeviceTlbInvalidate = layout("PASID-based device-TLB invalidate", 16, {
  ...descriptorType,
  MIP: bits(4, 8, "maximum invalidations pending"),
  PFSID_LOW: bits(12, 15, "source id of the physical function, bits 3:0"),
  SID: bits(16, 31, "source id"),
  PASID: bits(32, 51, "PASID"),
  PFSID_HIGH: bits(52, 63, "source id of the physical function, bits 15:4"),
  G: bit(64, "whatever the PASID"),
  S: bit(75, "the address encodes a size"),
  ADDR: address(76, 127, "address"),
});

/** §7.7.1 Page group response. */
export const PageGroupResponse = layout("page group response", 16, {
  ...descriptorType,
  PP: bit(4, "with PASID"),
  RC: bits(12, 15, "response code", { 0: "success", 1: "invalid request", 15: "response failure" }),
  SID: bits(16, 31, "source id"),
  PASID: bits(32, 51, "PASID"),
  IGN: bits(64, 65, "ignored"),
  LPIG: bit(66, "last of the group"),
  PRGI: bits(67, 75, "page request group index"),
});
export const ResponseCode = { success: 0, invalid: 1, failure: 15 } as const;

/** §7.4.1 Page request, as the unit writes it to the page request queue. */
export const PageRequestDescriptor = layout("page request", 32, {
  TYPE: bits(0, 7, "1: page request"),
  PP: bit(8, "with PASID"),
  RID: bits(16, 31, "source id"),
  PASID: bits(32, 51, "PASID"),
  EXE: bit(52, "execute requested"),
  PRIV: bit(53, "privilege mode requested"),
  RD: bit(64, "read requested"),
  WR: bit(65, "write requested"),
  LPIG: bit(66, "last of the group"),
  PRGI: bits(67, 75, "page request group index"),
  ADDR: address(76, 127, "page"),
});
export const PAGE_REQUEST_TYPE = 1;

/** §11.4.30 to §11.4.32 Page Request Queue Head, Tail and Address. */
export const PqPointerRegister = layout("PQT", 8, { Q: bits(5, 18, "page request, in 32 bytes") });
export const PqaRegister = layout("PQA", 8, {
  PQS: bits(0, 2, "size: 2^PQS pages"),
  PQA: address(12, 63, "page request queue"),
});
/** §11.4.33 Page Request Status. */
export const PrsRegister = layout("PRS", 4, {
  PPR: bit(0, "a page request is pending (write 1 to clear)"),
  PRO: bit(1, "page request overflow (write 1 to clear)"),
});
export const Prs = { PPR: PrsRegister.fields.PPR.mask, PRO: PrsRegister.fields.PRO.mask } as const;
