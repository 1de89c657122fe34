/** What iommufd carries for AMD-Vi without looking into it (linux/iommufd.h): feature registers and guest DTEs. */
import { array, struct, u64 } from "../struct.ts";

/** Data type of a nested HWPT: struct iommu_hwpt_amd_guest. */
export const IOMMU_HWPT_DATA_AMD_GUEST = 3;
/** Type of hardware information: struct iommu_hw_info_amd. */
export const IOMMU_HW_INFO_TYPE_AMD = 4;

/** The guest's device table entry; filled by the VMM. */
export const IommuHwptAmdGuest = struct("iommu_hwpt_amd_guest", {
  /** All 256 bits; only the fields of the guest's translation matter. */
  dte: array(u64, 4),
});

/** Hardware information; filled by the kernel. */
export const IommuHwInfoAmd = struct("iommu_hw_info_amd", {
  /** Extended feature register. */
  efr: u64,
  /** Extended feature register 2. */
  efr2: u64,
});
