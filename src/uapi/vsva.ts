/**
 * Virtual SVA as proposed in 2020: a legacy container of the nesting type whose guest owns first-stage tables. The
 * capability that describes nesting, PASID requests, binding of guest tables, cache invalidation, faults and page
 * responses. The layouts carry the explicit padding that the review asked for.
 */
import { array, flags, oneOf, struct, tail, u8, u16, u32, u64, union } from "./struct.ts";
import { VfioInfoCapHeader, vfioRequest } from "./vfio/container.ts";

/** On a nesting container: allocates or frees PASIDs. struct vfio_iommu_type1_pasid_request; ALLOC returns the PASID. */
export const VFIO_IOMMU_PASID_REQUEST = vfioRequest(18);
/** On a nesting container. struct vfio_iommu_type1_nesting_op and the operation's data. */
export const VFIO_IOMMU_NESTING_OP = vfioRequest(19);

/** Capability id in VFIO_IOMMU_GET_INFO of a nesting container; DMA_AVAIL, the same id elsewhere, is not reported there. */
export const VFIO_IOMMU_TYPE1_INFO_CAP_NESTING = 3;

/** PASID request: allocate one within the range. */
export const VFIO_IOMMU_FLAG_ALLOC_PASID = 1 << 0;
/** PASID request: free every PASID of the range that the caller has. */
export const VFIO_IOMMU_FLAG_FREE_PASID = 1 << 1;
/** The flags of a PASID request, of which exactly one is set. */
export const VFIO_PASID_REQUEST_MASK = VFIO_IOMMU_FLAG_ALLOC_PASID | VFIO_IOMMU_FLAG_FREE_PASID;
/** A PASID must fit in so many bits, because the call returns it as a non-negative number. */
export const VFIO_IOMMU_PASID_BITS = 31;

/** Nesting operation: bind a guest's table to a PASID. struct iommu_gpasid_bind_data. */
export const VFIO_IOMMU_NESTING_OP_BIND_PGTBL = 0;
/** Nesting operation: unbind it. struct iommu_gpasid_bind_data, of which format and hpasid matter. */
export const VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL = 1;
/** Nesting operation: invalidate caches. struct iommu_cache_invalidate_info. */
export const VFIO_IOMMU_NESTING_OP_CACHE_INVLD = 2;
/** Number of nesting operations of the proposal. */
export const VFIO_IOMMU_NESTING_OP_NUM = 3;
/** Which nesting operation: the lower bits of `flags`. */
export const VFIO_NESTING_OP_MASK = 0xffff;

/** Feature: PASIDs are allocated from the whole system's, by VFIO_IOMMU_PASID_REQUEST. */
export const IOMMU_NESTING_FEAT_SYSWIDE_PASID = 1 << 0;
/** Feature: guest tables can be bound. */
export const IOMMU_NESTING_FEAT_BIND_PGTBL = 1 << 1;
/** Feature: caches can be invalidated. */
export const IOMMU_NESTING_FEAT_CACHE_INVLD = 1 << 2;

/** Format of PASID entries: Intel VT-d's. */
export const IOMMU_PASID_FORMAT_INTEL_VTD = 1;
/** First format number that is not known. */
export const IOMMU_PASID_FORMAT_LAST = 2;

/** The faulting access failed for good. struct iommu_fault_unrecoverable. */
export const IOMMU_FAULT_DMA_UNRECOV = 1;
/** The device asks for a page. struct iommu_fault_page_request. */
export const IOMMU_FAULT_PAGE_REQ = 2;

/** Fault reason: not known. */
export const IOMMU_FAULT_REASON_UNKNOWN = 0;
/** Fault reason: the PASID table could not be read. */
export const IOMMU_FAULT_REASON_PASID_FETCH = 1;
/** Fault reason: the PASID's entry is malformed. */
export const IOMMU_FAULT_REASON_BAD_PASID_ENTRY = 2;
/** Fault reason: the PASID is out of range or disabled. */
export const IOMMU_FAULT_REASON_PASID_INVALID = 3;
/** Fault reason: a table could not be read. */
export const IOMMU_FAULT_REASON_WALK_EABT = 4;
/** Fault reason: an entry is not present. */
export const IOMMU_FAULT_REASON_PTE_FETCH = 5;
/** Fault reason: permission. */
export const IOMMU_FAULT_REASON_PERMISSION = 6;
/** Fault reason: the accessed flag could not be set. */
export const IOMMU_FAULT_REASON_ACCESS = 7;
/** Fault reason: an address is too large. */
export const IOMMU_FAULT_REASON_OOR_ADDRESS = 8;

/** `pasid` is valid. */
export const IOMMU_FAULT_UNRECOV_PASID_VALID = 1 << 0;
/** `addr` is valid. */
export const IOMMU_FAULT_UNRECOV_ADDR_VALID = 1 << 1;
/** `fetch_addr` is valid. */
export const IOMMU_FAULT_UNRECOV_FETCH_ADDR_VALID = 1 << 2;

/** Reading was wanted. */
export const IOMMU_FAULT_PERM_READ = 1 << 0;
/** Writing was wanted. */
export const IOMMU_FAULT_PERM_WRITE = 1 << 1;
/** Executing was wanted. */
export const IOMMU_FAULT_PERM_EXEC = 1 << 2;
/** In privileged mode. */
export const IOMMU_FAULT_PERM_PRIV = 1 << 3;

/** Page request: `pasid` is valid. */
export const IOMMU_FAULT_PAGE_REQUEST_PASID_VALID = 1 << 0;
/** Page request: the last of its group, a response is awaited. */
export const IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE = 1 << 1;
/** Page request: `private_data` is valid. */
export const IOMMU_FAULT_PAGE_REQUEST_PRIV_DATA = 1 << 2;
/** Page request: the response must name the PASID. */
export const IOMMU_FAULT_PAGE_RESPONSE_NEEDS_PASID = 1 << 3;

/** Version of struct iommu_page_response. */
export const IOMMU_PAGE_RESP_VERSION_1 = 1;
/** Page response: `pasid` is valid. */
export const IOMMU_PAGE_RESP_PASID_VALID = 1 << 0;
/** Page response: the page is there. */
export const IOMMU_PAGE_RESP_SUCCESS = 0;
/** Page response: the page cannot be had, the access fails. */
export const IOMMU_PAGE_RESP_INVALID = 1;
/** Page response: general failure; later requests fail too. */
export const IOMMU_PAGE_RESP_FAILURE = 2;

/** Version of struct iommu_cache_invalidate_info. */
export const IOMMU_CACHE_INVALIDATE_INFO_VERSION_1 = 1;
/** Invalidate the IOTLB. */
export const IOMMU_CACHE_INV_TYPE_IOTLB = 1 << 0;
/** Invalidate device TLBs. */
export const IOMMU_CACHE_INV_TYPE_DEV_IOTLB = 1 << 1;
/** Invalidate the PASID cache. */
export const IOMMU_CACHE_INV_TYPE_PASID = 1 << 2;
/** Number of cache types. */
export const IOMMU_CACHE_INV_TYPE_NR = 3;
/** Granularity: the whole domain. */
export const IOMMU_INV_GRANU_DOMAIN = 0;
/** Granularity: one PASID, in `pasid_info`. */
export const IOMMU_INV_GRANU_PASID = 1;
/** Granularity: addresses of one PASID, in `addr_info`. */
export const IOMMU_INV_GRANU_ADDR = 2;
/** Number of granularities. */
export const IOMMU_INV_GRANU_NR = 3;
/** `pasid` is valid. */
export const IOMMU_INV_ADDR_FLAGS_PASID = 1 << 0;
/** `archid` is valid. */
export const IOMMU_INV_ADDR_FLAGS_ARCHID = 1 << 1;
/** Only leaf entries changed. */
export const IOMMU_INV_ADDR_FLAGS_LEAF = 1 << 2;
/** `pasid` is valid. */
export const IOMMU_INV_PASID_FLAGS_PASID = 1 << 0;
/** `archid` is valid. */
export const IOMMU_INV_PASID_FLAGS_ARCHID = 1 << 1;

/** Version of struct iommu_gpasid_bind_data. */
export const IOMMU_GPASID_BIND_VERSION_1 = 1;
/** Bind: `gpasid` is valid. */
export const IOMMU_SVA_GPASID_VAL = 1 << 0;
/** Bind, VT-d: supervisor requests are allowed (PASID entry SRE). */
export const IOMMU_SVA_VTD_GPASID_SRE = 1 << 0;
/** Bind, VT-d: extended accessed flags are kept (EAFE). */
export const IOMMU_SVA_VTD_GPASID_EAFE = 1 << 1;
/** Bind, VT-d: page-level cache disable (PCD). */
export const IOMMU_SVA_VTD_GPASID_PCD = 1 << 2;
/** Bind, VT-d: page-level write-through (PWT). */
export const IOMMU_SVA_VTD_GPASID_PWT = 1 << 3;
/** Bind, VT-d: extended memory types are used (EMTE). */
export const IOMMU_SVA_VTD_GPASID_EMTE = 1 << 4;
/** Bind, VT-d: memory type at PASID level is ignored (CD). */
export const IOMMU_SVA_VTD_GPASID_CD = 1 << 5;
/** First VT-d flag that is not known. */
export const IOMMU_SVA_VTD_GPASID_LAST = 1 << 6;

const faultPerm = flags(u32, {
  READ: IOMMU_FAULT_PERM_READ,
  WRITE: IOMMU_FAULT_PERM_WRITE,
  EXEC: IOMMU_FAULT_PERM_EXEC,
  PRIV: IOMMU_FAULT_PERM_PRIV,
});

/** An access that failed for good; filled by the kernel. */
export const IommuFaultUnrecoverable = struct("iommu_fault_unrecoverable", {
  /** IOMMU_FAULT_REASON_*. */
  reason: oneOf(u32, {
    UNKNOWN: IOMMU_FAULT_REASON_UNKNOWN,
    PASID_FETCH: IOMMU_FAULT_REASON_PASID_FETCH,
    BAD_PASID_ENTRY: IOMMU_FAULT_REASON_BAD_PASID_ENTRY,
    PASID_INVALID: IOMMU_FAULT_REASON_PASID_INVALID,
    WALK_EABT: IOMMU_FAULT_REASON_WALK_EABT,
    PTE_FETCH: IOMMU_FAULT_REASON_PTE_FETCH,
    PERMISSION: IOMMU_FAULT_REASON_PERMISSION,
    ACCESS: IOMMU_FAULT_REASON_ACCESS,
    OOR_ADDRESS: IOMMU_FAULT_REASON_OOR_ADDRESS,
  }),
  /** IOMMU_FAULT_UNRECOV_*. */
  flags: flags(u32, {
    PASID_VALID: IOMMU_FAULT_UNRECOV_PASID_VALID,
    ADDR_VALID: IOMMU_FAULT_UNRECOV_ADDR_VALID,
    FETCH_ADDR_VALID: IOMMU_FAULT_UNRECOV_FETCH_ADDR_VALID,
  }),
  pasid: u32,
  /** IOMMU_FAULT_PERM_*. */
  perm: faultPerm,
  /** The address that faulted. */
  addr: u64,
  /** Where the entry that could not be read lies. */
  fetch_addr: u64,
});

/** A page a device asks for; filled by the kernel. */
export const IommuFaultPageRequest = struct("iommu_fault_page_request", {
  /** IOMMU_FAULT_PAGE_*. */
  flags: flags(u32, {
    PASID_VALID: IOMMU_FAULT_PAGE_REQUEST_PASID_VALID,
    LAST_PAGE: IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE,
    PRIV_DATA: IOMMU_FAULT_PAGE_REQUEST_PRIV_DATA,
    NEEDS_PASID: IOMMU_FAULT_PAGE_RESPONSE_NEEDS_PASID,
  }),
  pasid: u32,
  /** Page request group. */
  grpid: u32,
  /** IOMMU_FAULT_PERM_*. */
  perm: faultPerm,
  addr: u64,
  /** To be returned to the device unchanged. */
  private_data: array(u64, 2),
});

/** One fault; filled by the kernel. */
export const IommuFault = struct("iommu_fault", {
  type: oneOf(u32, { DMA_UNRECOV: IOMMU_FAULT_DMA_UNRECOV, PAGE_REQ: IOMMU_FAULT_PAGE_REQ }),
  padding: u32,
  "": union({
    event: IommuFaultUnrecoverable,
    prm: IommuFaultPageRequest,
    padding2: array(u8, 56),
  }),
});

/** The answer to a page request group; filled by the VMM. */
export const IommuPageResponse = struct("iommu_page_response", {
  argsz: u32,
  version: u32,
  /** IOMMU_PAGE_RESP_PASID_VALID or 0. */
  flags: flags(u32, { PASID_VALID: IOMMU_PAGE_RESP_PASID_VALID }),
  pasid: u32,
  grpid: u32,
  code: oneOf(u32, {
    SUCCESS: IOMMU_PAGE_RESP_SUCCESS,
    INVALID: IOMMU_PAGE_RESP_INVALID,
    FAILURE: IOMMU_PAGE_RESP_FAILURE,
  }),
});

/** Addresses to invalidate; filled by the VMM. */
export const IommuInvAddrInfo = struct("iommu_inv_addr_info", {
  /** IOMMU_INV_ADDR_FLAGS_*. */
  flags: flags(u32, {
    PASID: IOMMU_INV_ADDR_FLAGS_PASID,
    ARCHID: IOMMU_INV_ADDR_FLAGS_ARCHID,
    LEAF: IOMMU_INV_ADDR_FLAGS_LEAF,
  }),
  /** The architecture's own tag of an address space. */
  archid: u32,
  pasid: u64,
  addr: u64,
  /** Bytes of a granule, a power of two, and how many. */
  granule_size: u64,
  nb_granules: u64,
});

/** A PASID to invalidate; filled by the VMM. */
export const IommuInvPasidInfo = struct("iommu_inv_pasid_info", {
  /** IOMMU_INV_PASID_FLAGS_*. */
  flags: flags(u32, { PASID: IOMMU_INV_PASID_FLAGS_PASID, ARCHID: IOMMU_INV_PASID_FLAGS_ARCHID }),
  /** The architecture's own tag of an address space. */
  archid: u32,
  pasid: u64,
});

/** Data of VFIO_IOMMU_NESTING_OP_CACHE_INVLD; filled by the VMM. */
export const IommuCacheInvalidateInfo = struct("iommu_cache_invalidate_info", {
  argsz: u32,
  version: u32,
  /** IOMMU_CACHE_INV_TYPE_*, one or more. */
  cache: flags(u8, {
    IOTLB: IOMMU_CACHE_INV_TYPE_IOTLB,
    DEV_IOTLB: IOMMU_CACHE_INV_TYPE_DEV_IOTLB,
    PASID: IOMMU_CACHE_INV_TYPE_PASID,
  }),
  /** IOMMU_INV_GRANU_*; not every pair with a cache type makes sense. */
  granularity: oneOf(u8, {
    DOMAIN: IOMMU_INV_GRANU_DOMAIN,
    PASID: IOMMU_INV_GRANU_PASID,
    ADDR: IOMMU_INV_GRANU_ADDR,
  }),
  padding: array(u8, 6),
  granu: union({ pasid_info: IommuInvPasidInfo, addr_info: IommuInvAddrInfo }),
});

/** VT-d's part of a bind; filled by the VMM. */
export const IommuGpasidBindDataVtd = struct("iommu_gpasid_bind_data_vtd", {
  /** IOMMU_SVA_VTD_GPASID_*. */
  flags: flags(u64, {
    SRE: IOMMU_SVA_VTD_GPASID_SRE,
    EAFE: IOMMU_SVA_VTD_GPASID_EAFE,
    PCD: IOMMU_SVA_VTD_GPASID_PCD,
    PWT: IOMMU_SVA_VTD_GPASID_PWT,
    EMTE: IOMMU_SVA_VTD_GPASID_EMTE,
    CD: IOMMU_SVA_VTD_GPASID_CD,
  }),
  /** Page attribute table. */
  pat: u32,
  /** Extended memory type. */
  emt: u32,
});

/** Data of VFIO_IOMMU_NESTING_OP_BIND_PGTBL and UNBIND_PGTBL; filled by the VMM. */
export const IommuGpasidBindData = struct("iommu_gpasid_bind_data", {
  argsz: u32,
  version: u32,
  /** IOMMU_PASID_FORMAT_*. */
  format: oneOf(u32, { INTEL_VTD: IOMMU_PASID_FORMAT_INTEL_VTD }),
  /** Guest virtual address width in bits. */
  addr_width: u32,
  /** IOMMU_SVA_GPASID_VAL or 0. */
  flags: flags(u64, { GPASID_VAL: IOMMU_SVA_GPASID_VAL }),
  /** Guest physical address of the guest's root table. */
  gpgd: u64,
  /** The host's PASID, as the device sends it. */
  hpasid: u64,
  /** The guest's name for it. */
  gpasid: u64,
  padding: array(u8, 8),
  vendor: union({ vtd: IommuGpasidBindDataVtd }),
});

/** VT-d's part of the nesting information; filled by the kernel. */
export const IommuNestingInfoVtd = struct("iommu_nesting_info_vtd", {
  /** 0. */
  flags: u32,
  padding: array(u8, 12),
  /** Capability and extended capability registers, masked to what first-stage tables depend on. */
  cap_reg: u64,
  ecap_reg: u64,
});

/** What a nesting container can do; filled by the kernel. */
export const IommuNestingInfo = struct("iommu_nesting_info", {
  /** Bytes, the vendor's part included. */
  argsz: u32,
  /** 0. */
  flags: u32,
  /** IOMMU_PASID_FORMAT_*. */
  format: oneOf(u32, { INTEL_VTD: IOMMU_PASID_FORMAT_INTEL_VTD }),
  /** IOMMU_NESTING_FEAT_*. */
  features: flags(u32, {
    SYSWIDE_PASID: IOMMU_NESTING_FEAT_SYSWIDE_PASID,
    BIND_PGTBL: IOMMU_NESTING_FEAT_BIND_PGTBL,
    CACHE_INVLD: IOMMU_NESTING_FEAT_CACHE_INVLD,
  }),
  /** Input address width of first-stage tables, in bits. */
  addr_width: u16,
  /** Bits of a PASID. */
  pasid_bits: u16,
  padding: array(u8, 12),
  vendor: union({ vtd: IommuNestingInfoVtd }),
});

/** Argument of VFIO_IOMMU_PASID_REQUEST; filled by the caller. */
export const VfioIommuType1PasidRequest = struct("vfio_iommu_type1_pasid_request", {
  argsz: u32,
  /** VFIO_IOMMU_FLAG_ALLOC_PASID or VFIO_IOMMU_FLAG_FREE_PASID. */
  flags: flags(u32, { ALLOC: VFIO_IOMMU_FLAG_ALLOC_PASID, FREE: VFIO_IOMMU_FLAG_FREE_PASID }),
  /** PASIDs, both ends included. */
  range: struct("range", { min: u32, max: u32 }),
});

/** Argument of VFIO_IOMMU_NESTING_OP; filled by the caller. */
export const VfioIommuType1NestingOp = struct("vfio_iommu_type1_nesting_op", {
  argsz: u32,
  /** VFIO_IOMMU_NESTING_OP_* in VFIO_NESTING_OP_MASK, the rest 0. */
  flags: oneOf(u32, {
    BIND_PGTBL: VFIO_IOMMU_NESTING_OP_BIND_PGTBL,
    UNBIND_PGTBL: VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL,
    CACHE_INVLD: VFIO_IOMMU_NESTING_OP_CACHE_INVLD,
  }),
  data: tail(u8),
});

/** Capability VFIO_IOMMU_TYPE1_INFO_CAP_NESTING. Filled by the kernel. */
export const VfioIommuType1InfoCapNesting = struct("vfio_iommu_type1_info_cap_nesting", {
  header: VfioInfoCapHeader,
  info: IommuNestingInfo,
});

/** Which granularities an invalidation of each cache may have. */
export const CACHE_INVALIDATION_VALID: { readonly [cacheType: number]: readonly number[] } = {
  [IOMMU_CACHE_INV_TYPE_IOTLB]: [IOMMU_INV_GRANU_DOMAIN, IOMMU_INV_GRANU_PASID, IOMMU_INV_GRANU_ADDR],
  [IOMMU_CACHE_INV_TYPE_DEV_IOTLB]: [IOMMU_INV_GRANU_PASID, IOMMU_INV_GRANU_ADDR],
  [IOMMU_CACHE_INV_TYPE_PASID]: [IOMMU_INV_GRANU_DOMAIN, IOMMU_INV_GRANU_PASID],
};
