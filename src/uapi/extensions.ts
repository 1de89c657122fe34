/**
 * Interfaces that Linux 7.2 does not have: the named extensions of a machine file. Vendor blobs are in
 * `vendor/extensions.ts`; here are `snp-rmp`, `wq-chardev` and what `vsva2020` adds to the proposal of 2020.
 */
import { io } from "./ioctl.ts";
import { array, flags, oneOf, s32, struct, u8, u16, u32, u64 } from "./struct.ts";
import { SoftiommuNestingInfoSmmuv3 } from "./vendor/extensions.ts";
import { VfioInfoCapHeader } from "./vfio/container.ts";

export * from "./vendor/extensions.ts";

const SNP_TYPE = 0x53;
const WQ_TYPE = 0x54;

/** snp-rmp, on /dev/softiommu-snp: changes the state of pages, as a VMM's KVM would. struct softiommu_snp_page_state. */
export const SOFTIOMMU_SNP_PAGE_STATE = io(SNP_TYPE, 1);
/** snp-rmp, on /dev/softiommu-snp: reads the reverse map. struct softiommu_snp_rmp_read. */
export const SOFTIOMMU_SNP_RMP_READ = io(SNP_TYPE, 2);
/** wq-chardev, on a work queue: uses a PASID of an iommufd. struct softiommu_wq_use_pasid. */
export const SOFTIOMMU_WQ_USE_PASID = io(WQ_TYPE, 1);

/** Page state: shared with the host. */
export const SOFTIOMMU_SNP_SHARED = 0;
/** Page state: the guest's own. */
export const SOFTIOMMU_SNP_PRIVATE = 1;

/** vsva2020, capability id in VFIO_IOMMU_GET_INFO: the process's PASID quota. */
export const SOFTIOMMU_VFIO_INFO_CAP_PASID_QUOTA = 0x8001;
/** vsva2020, feature: page requests are passed on and answered. */
export const IOMMU_NESTING_FEAT_PAGE_RESP = 1 << 3;
/** vsva2020, feature: the guest's whole PASID table is bound, not single tables. */
export const SOFTIOMMU_NESTING_FEAT_BIND_PASID_TABLE = 1 << 4;
/** vsva2020, nesting operation: bind a PASID table. struct softiommu_pasid_table_smmuv3. */
export const SOFTIOMMU_NESTING_OP_BIND_PASID_TABLE = 16;
/** vsva2020, nesting operation: unbind it. */
export const SOFTIOMMU_NESTING_OP_UNBIND_PASID_TABLE = 17;
/** vsva2020, nesting operation: answer a page request. struct iommu_page_response. */
export const SOFTIOMMU_NESTING_OP_PAGE_RESPONSE = 18;
/** vsva2020, region type of the fault ring. */
export const SOFTIOMMU_VFIO_REGION_TYPE_FAULT = 0x8001;
/** vsva2020, region subtype of the fault ring. */
export const SOFTIOMMU_VFIO_REGION_SUBTYPE_FAULT = 1;
/** vsva2020, interrupt type: the fault ring's producer moved. */
export const SOFTIOMMU_VFIO_IRQ_TYPE_FAULT = 0x8001;

/** vsva2020, flag in VFIO_DEVICE_GET_IRQ_INFO: struct softiommu_vfio_irq_info with `cap_offset` follows. */
export const SOFTIOMMU_VFIO_IRQ_INFO_CAPS = 1 << 4;
/** vsva2020, capability id there: the interrupt's type. */
export const SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE = 3;

/** Argument of SOFTIOMMU_SNP_PAGE_STATE; filled by the caller. */
export const SoftiommuSnpPageState = struct("softiommu_snp_page_state", {
  /** Start in the caller's memory, and bytes. */
  user_va: u64,
  length: u64,
  /** Guest address of the start. */
  gpa: u64,
  /** The guest that owns them. */
  asid: u32,
  state: oneOf(u32, { SHARED: SOFTIOMMU_SNP_SHARED, PRIVATE: SOFTIOMMU_SNP_PRIVATE }),
});

/** Argument of SOFTIOMMU_SNP_RMP_READ. */
export const SoftiommuSnpRmpRead = struct("softiommu_snp_rmp_read", {
  /** In: a page of the caller's memory. */
  user_va: u64,
  /** Out: its entry in the reverse map. */
  out_entry_lo: u64,
  out_entry_hi: u64,
  /** Out: bytes. */
  out_page_size: u32,
  __reserved: u32,
});

/** Capability SOFTIOMMU_VFIO_INFO_CAP_PASID_QUOTA, version 1. Filled by the kernel. */
export const SoftiommuVfioInfoCapPasidQuota = struct("softiommu_vfio_info_cap_pasid_quota", {
  id: u16,
  version: u16,
  next: u32,
  /** PASIDs the process may hold. */
  quota: u32,
  /** PASIDs it may still allocate. */
  available: u32,
});

/**
 * The nesting capability where the format is SOFTIOMMU_PASID_FORMAT_ARM_SMMUV3: struct vfio_iommu_type1_info_cap_nesting
 * with the vendor's part of that format. Filled by the kernel.
 */
export const SoftiommuInfoCapNestingSmmuv3 = struct("softiommu_info_cap_nesting_smmuv3", {
  header: VfioInfoCapHeader,
  argsz: u32,
  flags: u32,
  format: u32,
  features: u32,
  /** Bits of guest virtual addresses, and of PASIDs. */
  addr_width: u16,
  pasid_bits: u16,
  padding: array(u8, 12),
  vendor: SoftiommuNestingInfoSmmuv3,
});

/** Head of the fault region; a ring of struct iommu_fault follows. */
export const SoftiommuFaultRegionHeader = struct("softiommu_fault_region_header", {
  /** 1. */
  version: u32,
  /** Bytes of a fault, and how many the ring holds. */
  entry_size: u32,
  entries: u32,
  /** Faults written by the kernel, and read by the user, since the device was opened. */
  producer: u32,
  consumer: u32,
  /** Faults that found the ring full. */
  lost: u32,
  reserved: array(u32, 2),
});

/** struct vfio_irq_info with capabilities: where SOFTIOMMU_VFIO_IRQ_INFO_CAPS is set. */
export const SoftiommuVfioIrqInfo = struct("softiommu_vfio_irq_info", {
  argsz: u32,
  flags: flags(u32, { CAPS: SOFTIOMMU_VFIO_IRQ_INFO_CAPS }),
  index: u32,
  count: u32,
  /** From the start of the structure; 0: none, or no room for them. */
  cap_offset: u32,
});

/** Capability SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE, version 1. Filled by the kernel. */
export const SoftiommuVfioIrqInfoCapType = struct("softiommu_vfio_irq_info_cap_type", {
  header: VfioInfoCapHeader,
  /** SOFTIOMMU_VFIO_IRQ_TYPE_FAULT; and 1. */
  type: u32,
  subtype: u32,
});

/** Argument of SOFTIOMMU_WQ_USE_PASID. */
export const SoftiommuWqUsePasid = struct("softiommu_wq_use_pasid", {
  size: u32,
  /** Descriptor of the iommufd. */
  iommufd: s32,
  /** HWPT or IOAS. */
  pt_id: u32,
  /** In: the one that is wanted, or 2^32−1. Out: the one that was given. */
  pasid: u32,
});
