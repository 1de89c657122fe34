/**
 * What iommufd carries for Arm SMMUv3 without looking into it (linux/iommufd.h): identification registers, the guest's
 * stream table entry, commands and events. Also NVIDIA's command queue extension of it, as layouts only.
 */
import { array, struct, u8, u32, u64 } from "../struct.ts";

/** Data type of a nested HWPT: struct iommu_hwpt_arm_smmuv3. */
export const IOMMU_HWPT_DATA_ARM_SMMUV3 = 2;
/** Type of hardware information: struct iommu_hw_info_arm_smmuv3. */
export const IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2;
/** Type of hardware information: struct iommu_hw_info_tegra241_cmdqv. */
export const IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3;
/** Data type of invalidations on a vIOMMU: an array of struct iommu_viommu_arm_smmuv3_invalidate. */
export const IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1;
/** Type of vIOMMU: an SMMUv3. */
export const IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1;
/** Type of vIOMMU: an SMMUv3 with command queues of the guest's own. */
export const IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2;
/** Type of event queue: struct iommu_vevent_arm_smmuv3. */
export const IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1;
/** Type of event queue: struct iommu_vevent_tegra241_cmdqv. */
export const IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2;
/** Type of hardware queue: a command queue of the guest's own. */
export const IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1;

/** The guest's stream table entry; filled by the VMM. */
export const IommuHwptArmSmmuv3 = struct("iommu_hwpt_arm_smmuv3", {
  /** Its first two 64-bit words; only bits of `GUEST_STE_BITS` may be set. */
  ste: array(u64, 2),
});

/**
 * Bits of those words that a guest decides about, the first word in bits 63:0 (IHI 0070, §5.2): V, Config, S1Fmt,
 * S1ContextPtr and S1CDMax; S1DSS, S1CIR, S1COR, S1CSH, S1STALLD and EATS.
 */
export const GUEST_STE_BITS = 0xf80f_ffff_ffff_ffffn | (0x3800_00ffn << 64n);

/** Hardware information; filled by the kernel. */
export const IommuHwInfoArmSmmuv3 = struct("iommu_hw_info_arm_smmuv3", {
  flags: u32,
  __reserved: u32,
  /** SMMU_IDR0 to SMMU_IDR5. */
  idr: array(u32, 6),
  /** SMMU_IIDR. */
  iidr: u32,
  /** SMMU_AIDR. */
  aidr: u32,
});

/** Hardware information of NVIDIA's extension; filled by the kernel. */
export const IommuHwInfoTegra241Cmdqv = struct("iommu_hw_info_tegra241_cmdqv", {
  flags: u32,
  /** Version of the extension. */
  version: u8,
  /** Command queues of a virtual interface, lg2. */
  log2vcmdqs: u8,
  /** Stream ids of a virtual interface, lg2. */
  log2vsids: u8,
  __reserved: u8,
});

/** One guest command, 128 bits; filled by the VMM. The kernel replaces stream ids and VMIDs. */
export const IommuViommuArmSmmuv3Invalidate = struct("iommu_viommu_arm_smmuv3_invalidate", {
  cmd: array(u64, 2),
});

/** Where a guest's command queue registers can be mapped from the iommufd; filled by the kernel. */
export const IommuViommuTegra241Cmdqv = struct("iommu_viommu_tegra241_cmdqv", {
  /** Bytes, for mmap(2). */
  out_vintf_mmap_offset: u64,
  out_vintf_mmap_length: u64,
});

/** One event record with the stream id replaced by the guest's; filled by the kernel. */
export const IommuVeventArmSmmuv3 = struct("iommu_vevent_arm_smmuv3", {
  evt: array(u64, 4),
});

/** Errors of a guest's command queues; filled by the kernel. */
export const IommuVeventTegra241Cmdqv = struct("iommu_vevent_tegra241_cmdqv", {
  /** Bit n: queue n has an error. */
  lvcmdq_err_map: array(u64, 2),
});
