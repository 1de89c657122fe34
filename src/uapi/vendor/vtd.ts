/**
 * What iommufd carries for Intel VT-d without looking into it (linux/iommufd.h): hardware information, the guest's
 * first-stage table, and its invalidations.
 */
import { flags, struct, u32, u64 } from "../struct.ts";

/** Data type of a nested HWPT: struct iommu_hwpt_vtd_s1. */
export const IOMMU_HWPT_DATA_VTD_S1 = 1;
/** Type of hardware information: struct iommu_hw_info_vtd. */
export const IOMMU_HW_INFO_TYPE_INTEL_VTD = 1;
/** Data type of invalidations: an array of struct iommu_hwpt_vtd_s1_invalidate. */
export const IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0;

/** First stage: requests for supervisor privilege are allowed (PASID entry SRE). */
export const IOMMU_VTD_S1_SRE = 1 << 0;
/** First stage: extended accessed flags are kept (PASID entry EAFE). */
export const IOMMU_VTD_S1_EAFE = 1 << 1;
/** First stage: write protection holds for supervisor requests too (PASID entry WPE). */
export const IOMMU_VTD_S1_WPE = 1 << 2;

/** Erratum 772415: a second-stage table must have no read-only mapping, so a nest parent takes none. */
export const IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1 << 0;

/** Only leaf entries changed; paging-structure caches may stay. */
export const IOMMU_VTD_INV_FLAGS_LEAF = 1 << 0;

/** The guest's first-stage table; filled by the VMM. */
export const IommuHwptVtdS1 = struct("iommu_hwpt_vtd_s1", {
  /** IOMMU_VTD_S1_*. */
  flags: flags(u64, { SRE: IOMMU_VTD_S1_SRE, EAFE: IOMMU_VTD_S1_EAFE, WPE: IOMMU_VTD_S1_WPE }),
  /** Guest physical address of the root table. */
  pgtbl_addr: u64,
  /** Input address width in bits: 48 for 4 levels, 57 for 5. */
  addr_width: u32,
  __reserved: u32,
});

/** Hardware information; filled by the kernel. */
export const IommuHwInfoVtd = struct("iommu_hw_info_vtd", {
  /** IOMMU_HW_INFO_VTD_*. */
  flags: flags(u32, { ERRATA_772415_SPR17: IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 }),
  __reserved: u32,
  /** Capability register. */
  cap_reg: u64,
  /** Extended capability register. */
  ecap_reg: u64,
});

/** One invalidation of a nested HWPT: IOTLB and device TLBs; filled by the VMM. */
export const IommuHwptVtdS1Invalidate = struct("iommu_hwpt_vtd_s1_invalidate", {
  /** First address; a multiple of 4096. */
  addr: u64,
  /** Pages of 4096 bytes; 2^64−1 with address 0 is everything. */
  npages: u64,
  /** IOMMU_VTD_INV_FLAGS_LEAF or 0. */
  flags: flags(u32, { LEAF: IOMMU_VTD_INV_FLAGS_LEAF }),
  __reserved: u32,
});
