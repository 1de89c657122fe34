/**
 * Vendor blobs that Linux 7.2 does not have and named extensions of a machine file add: `s390-nesting`, `apertures`,
 * `amd-nesting`, and the SMMUv3 part of `vsva2020`. Numbers are outside Linux's.
 */
import { array, oneOf, struct, u8, u16, u32, u64 } from "../struct.ts";

/** s390-nesting, data type of a nested HWPT: struct softiommu_hwpt_s390_iota. */
export const SOFTIOMMU_HWPT_DATA_S390_IOTA = 0x7339_0001;
/** s390-nesting, data type of invalidations: an array of struct softiommu_hwpt_s390_refresh. */
export const SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH = 0x7339_0002;
/** apertures, data type of a POWER HWPT: struct softiommu_hwpt_tce. */
export const SOFTIOMMU_HWPT_DATA_TCE = 0x7ce0_0001;
/** apertures: windows of a POWER HWPT. */
export const SOFTIOMMU_TCE_WINDOWS_MAX = 2;
/** amd-nesting, data type of invalidations on a vIOMMU: an array of struct softiommu_viommu_amd_invalidate. */
export const SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD = 0xa3d0_0001;
/** vsva2020, format of PASID entries: Arm SMMUv3 context descriptors. */
export const SOFTIOMMU_PASID_FORMAT_ARM_SMMUV3 = 2;

/** The anchor of a guest's zPCI tables; filled by the VMM. */
export const SoftiommuHwptS390Iota = struct("softiommu_hwpt_s390_iota", {
  /** The guest's I/O table anchor as the guest registered it: origin as a guest address, designation type, key. */
  iota: u64,
  __reserved: u64,
});

/** A range the guest refreshes; filled by the VMM. */
export const SoftiommuHwptS390Refresh = struct("softiommu_hwpt_s390_refresh", {
  /** Start, page aligned, and bytes, whole pages. */
  iova: u64,
  length: u64,
  __reserved: u64,
});

/** One DMA window of a POWER HWPT; filled by the caller. */
export const SoftiommuHwptTceWindow = struct("softiommu_hwpt_tce_window", {
  /** First bus address, and bytes; length 0 = the window is absent. */
  start: u64,
  length: u64,
  /** lg2 of the page size: 12, 16, 24 or another that the unit reports. */
  page_shift: u32,
  /** Levels of the table, 1 to 5. */
  levels: u32,
});

/** A POWER HWPT's windows; filled by the caller. */
export const SoftiommuHwptTce = struct("softiommu_hwpt_tce", {
  /** The 32-bit and the 64-bit window. */
  window: array(SoftiommuHwptTceWindow, SOFTIOMMU_TCE_WINDOWS_MAX),
});

/** One guest command, 128 bits; filled by the VMM. Guest domain and device ids are replaced by the host's. */
export const SoftiommuViommuAmdInvalidate = struct("softiommu_viommu_amd_invalidate", { cmd: array(u64, 2) });

/** SMMUv3's part of the nesting information; filled by the kernel. */
export const SoftiommuNestingInfoSmmuv3 = struct("softiommu_nesting_info_smmuv3", {
  /** 0. */
  flags: u32,
  /** 8 or 16. */
  asid_bits: u16,
  /** Bit n: S1Fmt n is possible. */
  s1_formats: u16,
  /** SMMU_IDR0 to SMMU_IDR5, masked to what stage 1 depends on. */
  idr: array(u32, 6),
});

/** A guest's whole table of context descriptors; filled by the VMM. */
export const SoftiommuPasidTableSmmuv3 = struct("softiommu_pasid_table_smmuv3", {
  argsz: u32,
  /** 1. */
  version: u32,
  /** Guest address of the table. */
  base_ptr: u64,
  /** S1CDMax: lg2 of its entries. */
  pasid_bits: u8,
  /** S1Fmt and S1DSS of the stream table entry. */
  s1fmt: u8,
  s1dss: u8,
  config: oneOf(u8, { translate: 1, bypass: 2, abort: 3 }),
  padding: array(u8, 28),
});
