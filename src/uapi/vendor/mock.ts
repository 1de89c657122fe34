/**
 * What iommufd carries for the mock IOMMU of the kernel's own tests (Linux 7.2 with its iommufd test option), and the
 * facts of that IOMMU.
 */
import { flags, struct, u32, u64 } from "../struct.ts";

/** Data type of a nested HWPT: struct iommu_hwpt_selftest. */
export const IOMMU_HWPT_DATA_SELFTEST = 0xdead;
/** Type of hardware information: struct iommu_test_hw_info. */
export const IOMMU_HW_INFO_TYPE_SELFTEST = 0xfeed_beef;
/** What `test_reg` must hold. */
export const IOMMU_HW_INFO_SELFTEST_REGVAL = 0xdead_beef;
/** Data type of invalidations: an array of struct iommu_hwpt_invalidate_selftest. */
export const IOMMU_HWPT_INVALIDATE_DATA_SELFTEST = 0xdead_beef;
/** A data type of invalidations that is never valid. */
export const IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID = 0xdad_beef;
/** Type of vIOMMU. */
export const IOMMU_VIOMMU_TYPE_SELFTEST = 0xdead_beef;
/** Data type of invalidations on a vIOMMU: an array of struct iommu_viommu_invalidate_selftest. */
export const IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST = 0xdead_beef;
/** A data type of invalidations on a vIOMMU that is never valid. */
export const IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID = 0xdad_beef;
/** Type of event queue: struct iommu_viommu_event_selftest. */
export const IOMMU_VEVENTQ_TYPE_SELFTEST = 0xbeef_beef;
/** Type of hardware queue. */
export const IOMMU_HW_QUEUE_TYPE_SELFTEST = 0xdead_beef;
/** Hardware queues a vIOMMU has. */
export const IOMMU_TEST_HW_QUEUE_MAX = 2;

/** Invalidation of everything, not of one id. */
export const IOMMU_TEST_INVALIDATE_FLAG_ALL = 1 << 0;
/** What every IOTLB slot of a nested domain holds until it is invalidated, unless the VMM gave another value. */
export const IOMMU_TEST_IOTLB_DEFAULT = 0xbad_beef;
/** Highest IOTLB slot of a nested domain. */
export const MOCK_NESTED_DOMAIN_IOTLB_ID_MAX = 3;
/** IOTLB slots of a nested domain. */
export const MOCK_NESTED_DOMAIN_IOTLB_NUM = 4;
/** What every cache slot of a device holds until it is invalidated. */
export const IOMMU_TEST_DEV_CACHE_DEFAULT = 0xbad_dad;
/** Highest cache slot of a device. */
export const MOCK_DEV_CACHE_ID_MAX = 3;
/** Cache slots of a device. */
export const MOCK_DEV_CACHE_NUM = 4;
/** Table format of a domain: pages of MOCK_PAGE_SIZE. */
export const MOCK_IOMMUPT_DEFAULT = 0;
/** Table format of a domain: pages of MOCK_HUGE_PAGE_SIZE too. */
export const MOCK_IOMMUPT_HUGE = 1;
/** First address a mock domain maps. */
export const MOCK_APERTURE_START = 1 << 24;
/** Last address a mock domain maps. */
export const MOCK_APERTURE_LAST = 2 ** 31 - 1;
/** Smallest page, in bytes: half of the CPU's. */
export const MOCK_PAGE_SIZE = 2048;
/** Large page, in bytes. */
export const MOCK_HUGE_PAGE_SIZE = 512 * MOCK_PAGE_SIZE;
/** Bits of a PASID on a mock device that has PASIDs. */
export const MOCK_PASID_WIDTH = 20;
/** The PASID whose attaching fails at every second try, so that recovery can be tested. */
export const IOMMU_TEST_PASID_RESERVED = 1024;

/** Hardware information; filled by the kernel. */
export const IommuTestHwInfo = struct("iommu_test_hw_info", {
  flags: u32,
  /** IOMMU_HW_INFO_SELFTEST_REGVAL. */
  test_reg: u32,
});

/** A nested or paging HWPT's data; filled by the caller. */
export const IommuHwptSelftest = struct("iommu_hwpt_selftest", {
  /** What the IOTLB slots begin with. */
  iotlb: u32,
  /** MOCK_IOMMUPT_*. */
  pagetable_type: u32,
});

/** One invalidation of a nested HWPT; filled by the caller. */
export const IommuHwptInvalidateSelftest = struct("iommu_hwpt_invalidate_selftest", {
  /** IOMMU_TEST_INVALIDATE_FLAG_ALL or 0. */
  flags: flags(u32, { ALL: IOMMU_TEST_INVALIDATE_FLAG_ALL }),
  /** Which IOTLB slot becomes 0. */
  iotlb_id: u32,
});

/** A vIOMMU's data. */
export const IommuViommuSelftest = struct("iommu_viommu_selftest", {
  /** In: any number. */
  in_data: u32,
  /** Out: the same number. */
  out_data: u32,
  /** Out: a page that can be mapped from the iommufd; bytes. */
  out_mmap_offset: u64,
  out_mmap_length: u64,
});

/** One invalidation on a vIOMMU; filled by the caller. */
export const IommuViommuInvalidateSelftest = struct("iommu_viommu_invalidate_selftest", {
  /** IOMMU_TEST_INVALIDATE_FLAG_ALL or 0. */
  flags: flags(u32, { ALL: IOMMU_TEST_INVALIDATE_FLAG_ALL }),
  /** The device's virtual id. */
  vdev_id: u32,
  /** Which cache slot becomes 0. */
  cache_id: u32,
});

/** An event; filled by the kernel. */
export const IommuViommuEventSelftest = struct("iommu_viommu_event_selftest", {
  /** The device's virtual id. */
  virt_id: u32,
});
