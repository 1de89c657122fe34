/**
 * iommufd's hardware page tables (linux/iommufd.h): allocation, hardware information, dirty tracking, invalidation and
 * page faults. Vendor blobs are in `vendor/`.
 */
import { io } from "../ioctl.ts";
import { array, flags, oneOf, struct, u8, u32, u64, union } from "../struct.ts";
import { IOMMU_HW_INFO_TYPE_AMD, IOMMU_HWPT_DATA_AMD_GUEST } from "../vendor/amd.ts";
import {
  IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV,
  IOMMU_HWPT_DATA_ARM_SMMUV3,
} from "../vendor/smmuv3.ts";
import { IOMMU_HW_INFO_TYPE_INTEL_VTD, IOMMU_HWPT_DATA_VTD_S1 } from "../vendor/vtd.ts";
import { IOMMUFD_TYPE } from "./ioas.ts";

/** Creates a HWPT. */
export const IOMMUFD_CMD_HWPT_ALLOC = 0x89;
/** Tells about a device's IOMMU. */
export const IOMMUFD_CMD_GET_HW_INFO = 0x8a;
/** Starts or stops dirty tracking. */
export const IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING = 0x8b;
/** Reports dirty pages. */
export const IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP = 0x8c;
/** Invalidates what hardware caches of a guest's tables. */
export const IOMMUFD_CMD_HWPT_INVALIDATE = 0x8d;
/** Creates a fault queue. */
export const IOMMUFD_CMD_FAULT_QUEUE_ALLOC = 0x8e;

const request = (command: number): number => io(IOMMUFD_TYPE, command);

/** struct iommu_hwpt_alloc. */
export const IOMMU_HWPT_ALLOC = request(IOMMUFD_CMD_HWPT_ALLOC);
/** struct iommu_hw_info. */
export const IOMMU_GET_HW_INFO = request(IOMMUFD_CMD_GET_HW_INFO);
/** struct iommu_hwpt_set_dirty_tracking. */
export const IOMMU_HWPT_SET_DIRTY_TRACKING = request(IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING);
/** struct iommu_hwpt_get_dirty_bitmap. */
export const IOMMU_HWPT_GET_DIRTY_BITMAP = request(IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP);
/** struct iommu_hwpt_invalidate. */
export const IOMMU_HWPT_INVALIDATE = request(IOMMUFD_CMD_HWPT_INVALIDATE);
/** struct iommu_fault_alloc. */
export const IOMMU_FAULT_QUEUE_ALLOC = request(IOMMUFD_CMD_FAULT_QUEUE_ALLOC);

/** The HWPT may lie beneath nested ones. */
export const IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0;
/** Every device attached must be able to track dirty pages. */
export const IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 1 << 1;
/** `fault_id` names a fault queue. */
export const IOMMU_HWPT_FAULT_ID_VALID = 1 << 2;
/** The HWPT can be attached to PASIDs of devices. */
export const IOMMU_HWPT_ALLOC_PASID = 1 << 3;

/** No vendor data: an ordinary paging HWPT. */
export const IOMMU_HWPT_DATA_NONE = 0;

/** The IOMMU tells nothing. */
export const IOMMU_HW_INFO_TYPE_NONE = 0;
/** The caller leaves the type of the information to the kernel. */
export const IOMMU_HW_INFO_TYPE_DEFAULT = 0;
/** `in_data_type` says which information is wanted. */
export const IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1 << 0;

/** The device's IOMMU can track dirty pages. */
export const IOMMU_HW_CAP_DIRTY_TRACKING = 1 << 0;
/** The device's PASID capability has execute permission. */
export const IOMMU_HW_CAP_PCI_PASID_EXEC = 1 << 1;
/** The device's PASID capability has privileged mode. */
export const IOMMU_HW_CAP_PCI_PASID_PRIV = 1 << 2;
/** ATS cannot be used with the device. */
export const IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1 << 3;

/** Start tracking; without the flag: stop. */
export const IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1 << 0;
/** Do not clear what is reported. */
export const IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1 << 0;

/** The fault is of a PASID. */
export const IOMMU_PGFAULT_FLAGS_PASID_VALID = 1 << 0;
/** It is the last of its group: a response is awaited. */
export const IOMMU_PGFAULT_FLAGS_LAST_PAGE = 1 << 1;
/** Reading was wanted. */
export const IOMMU_PGFAULT_PERM_READ = 1 << 0;
/** Writing was wanted. */
export const IOMMU_PGFAULT_PERM_WRITE = 1 << 1;
/** Executing was wanted. */
export const IOMMU_PGFAULT_PERM_EXEC = 1 << 2;
/** In privileged mode. */
export const IOMMU_PGFAULT_PERM_PRIV = 1 << 3;

/** The page is there: the device tries again. */
export const IOMMUFD_PAGE_RESP_SUCCESS = 0;
/** The page cannot be had: the device's access fails. */
export const IOMMUFD_PAGE_RESP_INVALID = 1;

/** Argument of IOMMU_HWPT_ALLOC. */
export const IommuHwptAlloc = struct("iommu_hwpt_alloc", {
  size: u32,
  /** IOMMU_HWPT_ALLOC_*, IOMMU_HWPT_FAULT_ID_VALID. */
  flags: flags(u32, {
    NEST_PARENT: IOMMU_HWPT_ALLOC_NEST_PARENT,
    DIRTY_TRACKING: IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
    FAULT_ID_VALID: IOMMU_HWPT_FAULT_ID_VALID,
    PASID: IOMMU_HWPT_ALLOC_PASID,
  }),
  /** The device it is to fit. */
  dev_id: u32,
  /** An IOAS for a paging HWPT; the nest parent or the vIOMMU for a nested one. */
  pt_id: u32,
  out_hwpt_id: u32,
  __reserved: u32,
  /** IOMMU_HWPT_DATA_*. */
  data_type: oneOf(u32, {
    NONE: IOMMU_HWPT_DATA_NONE,
    VTD_S1: IOMMU_HWPT_DATA_VTD_S1,
    ARM_SMMUV3: IOMMU_HWPT_DATA_ARM_SMMUV3,
    AMD_GUEST: IOMMU_HWPT_DATA_AMD_GUEST,
  }),
  /** Bytes of the vendor data, and where it lies. */
  data_len: u32,
  data_uptr: u64,
  /** With FAULT_ID_VALID. */
  fault_id: u32,
  __reserved2: u32,
});

const hwInfoType = oneOf(u32, {
  NONE: IOMMU_HW_INFO_TYPE_NONE,
  INTEL_VTD: IOMMU_HW_INFO_TYPE_INTEL_VTD,
  ARM_SMMUV3: IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  TEGRA241_CMDQV: IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV,
  AMD: IOMMU_HW_INFO_TYPE_AMD,
});

/** Argument of IOMMU_GET_HW_INFO. */
export const IommuHwInfo = struct("iommu_hw_info", {
  size: u32,
  /** IOMMU_HW_INFO_FLAG_INPUT_TYPE or 0. */
  flags: flags(u32, { INPUT_TYPE: IOMMU_HW_INFO_FLAG_INPUT_TYPE }),
  dev_id: u32,
  /** In: bytes the caller has for the vendor's information. Out: bytes the kernel has. */
  data_len: u32,
  /** In: where it is to be written. */
  data_uptr: u64,
  "": union({
    /** In, with the flag. */
    in_data_type: hwInfoType,
    /** Out: IOMMU_HW_INFO_TYPE_*. */
    out_data_type: hwInfoType,
  }),
  /** Out: bits of a PASID on this device; 0 = none. */
  out_max_pasid_log2: u8,
  __reserved: array(u8, 3),
  /** Out: IOMMU_HW_CAP_*. */
  out_capabilities: flags(u64, {
    DIRTY_TRACKING: IOMMU_HW_CAP_DIRTY_TRACKING,
    PCI_PASID_EXEC: IOMMU_HW_CAP_PCI_PASID_EXEC,
    PCI_PASID_PRIV: IOMMU_HW_CAP_PCI_PASID_PRIV,
    PCI_ATS_NOT_SUPPORTED: IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
  }),
});

/** Argument of IOMMU_HWPT_SET_DIRTY_TRACKING; filled by the caller. */
export const IommuHwptSetDirtyTracking = struct("iommu_hwpt_set_dirty_tracking", {
  size: u32,
  /** IOMMU_HWPT_DIRTY_TRACKING_ENABLE or 0. */
  flags: flags(u32, { ENABLE: IOMMU_HWPT_DIRTY_TRACKING_ENABLE }),
  hwpt_id: u32,
  __reserved: u32,
});

/** Argument of IOMMU_HWPT_GET_DIRTY_BITMAP; filled by the caller. */
export const IommuHwptGetDirtyBitmap = struct("iommu_hwpt_get_dirty_bitmap", {
  size: u32,
  hwpt_id: u32,
  /** IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or 0. */
  flags: flags(u32, { NO_CLEAR: IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR }),
  __reserved: u32,
  /** Range, in bytes. */
  iova: u64,
  length: u64,
  /** Bytes a bit. */
  page_size: u64,
  /** Where the bitmap lies, 64-bit words; bits are added to it. */
  data: u64,
});

/** Argument of IOMMU_HWPT_INVALIDATE. */
export const IommuHwptInvalidate = struct("iommu_hwpt_invalidate", {
  size: u32,
  /** A nested HWPT or a vIOMMU, as the vendor requires. */
  hwpt_id: u32,
  /** Where the array of requests lies. */
  data_uptr: u64,
  /** IOMMU_HWPT_INVALIDATE_DATA_* or IOMMU_VIOMMU_INVALIDATE_DATA_*; the same number means another type for each vendor. */
  data_type: u32,
  /** Bytes of one request. */
  entry_len: u32,
  /** In: requests. Out, in failure too: those that were done. */
  entry_num: u32,
  __reserved: u32,
});

/** What is read from a fault queue; filled by the kernel. */
export const IommuHwptPgfault = struct("iommu_hwpt_pgfault", {
  /** IOMMU_PGFAULT_FLAGS_*. */
  flags: flags(u32, {
    PASID_VALID: IOMMU_PGFAULT_FLAGS_PASID_VALID,
    LAST_PAGE: IOMMU_PGFAULT_FLAGS_LAST_PAGE,
  }),
  dev_id: u32,
  pasid: u32,
  /** Page request group, of the device's choice. */
  grpid: u32,
  /** IOMMU_PGFAULT_PERM_*. */
  perm: flags(u32, {
    READ: IOMMU_PGFAULT_PERM_READ,
    WRITE: IOMMU_PGFAULT_PERM_WRITE,
    EXEC: IOMMU_PGFAULT_PERM_EXEC,
    PRIV: IOMMU_PGFAULT_PERM_PRIV,
  }),
  __reserved: u32,
  addr: u64,
  /** Bytes that would be wanted; 0 = not known. */
  length: u32,
  /** Names the group in the response. */
  cookie: u32,
});

/** What is written to a fault queue; filled by the VMM. */
export const IommuHwptPageResponse = struct("iommu_hwpt_page_response", {
  cookie: u32,
  /** IOMMUFD_PAGE_RESP_*. */
  code: oneOf(u32, { SUCCESS: IOMMUFD_PAGE_RESP_SUCCESS, INVALID: IOMMUFD_PAGE_RESP_INVALID }),
});

/** Argument of IOMMU_FAULT_QUEUE_ALLOC. */
export const IommuFaultAlloc = struct("iommu_fault_alloc", {
  size: u32,
  /** 0. */
  flags: u32,
  out_fault_id: u32,
  /** Out: a new descriptor. */
  out_fault_fd: u32,
});
