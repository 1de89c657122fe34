/**
 * The test command of iommufd (Linux 7.2 built with its iommufd test option): mock devices, accesses, and looks behind
 * the interface. Data of the mock IOMMU that other commands carry is in `vendor/mock.ts`.
 */
import { io } from "./ioctl.ts";
import { IOMMUFD_TYPE } from "./iommufd/ioas.ts";
import { flags, oneOf, s32, struct, u32, u64, union } from "./struct.ts";

export * from "./vendor/mock.ts";

/** struct iommu_test_cmd. */
export const IOMMU_TEST_CMD = io(IOMMUFD_TYPE, 0xa0);

/** Reserves a range of an IOAS. `id` is the IOAS. */
export const IOMMU_TEST_OP_ADD_RESERVED = 1;
/** Creates a mock device and attaches it. `id` is the IOAS or HWPT. */
export const IOMMU_TEST_OP_MOCK_DOMAIN = 2;
/** Compares the tables with the caller's memory. `id` is the HWPT. */
export const IOMMU_TEST_OP_MD_CHECK_MAP = 3;
/** Compares how often the caller's pages are pinned. */
export const IOMMU_TEST_OP_MD_CHECK_REFS = 4;
/** Creates an access, which reaches an IOAS without hardware. `id` is the IOAS. */
export const IOMMU_TEST_OP_CREATE_ACCESS = 5;
/** Unpins what an access has pinned. `id` is the access. */
export const IOMMU_TEST_OP_DESTROY_ACCESS_PAGES = 6;
/** Pins through an access. `id` is the access. */
export const IOMMU_TEST_OP_ACCESS_PAGES = 7;
/** Copies through an access. `id` is the access. */
export const IOMMU_TEST_OP_ACCESS_RW = 8;
/** Limits the temporary memory of mapping. */
export const IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT = 9;
/** Attaches a mock device to something else. `id` is the device. */
export const IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE = 10;
/** Gives an access another IOAS. `id` is the access. */
export const IOMMU_TEST_OP_ACCESS_REPLACE_IOAS = 11;
/** Like MOCK_DOMAIN, with flags for the device. */
export const IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS = 12;
/** Makes pages of a domain dirty. `id` is the HWPT. */
export const IOMMU_TEST_OP_DIRTY = 13;
/** Compares an IOTLB slot of a nested domain. `id` is the HWPT. */
export const IOMMU_TEST_OP_MD_CHECK_IOTLB = 14;
/** Makes a mock device report a page fault. */
export const IOMMU_TEST_OP_TRIGGER_IOPF = 15;
/** Compares a cache slot of a mock device. `id` is the device's id in the iommufd. */
export const IOMMU_TEST_OP_DEV_CHECK_CACHE = 16;
/** Makes a vIOMMU report an event. */
export const IOMMU_TEST_OP_TRIGGER_VEVENT = 17;
/** Attaches a PASID of a mock device. `id` is the device. */
export const IOMMU_TEST_OP_PASID_ATTACH = 18;
/** Attaches a PASID of a mock device to something else. `id` is the device. */
export const IOMMU_TEST_OP_PASID_REPLACE = 19;
/** Detaches a PASID of a mock device. `id` is the device. */
export const IOMMU_TEST_OP_PASID_DETACH = 20;
/** Compares what a PASID of a mock device is attached to. `id` is the device. */
export const IOMMU_TEST_OP_PASID_CHECK_HWPT = 21;
/** Creates a dma-buf; returns its descriptor. */
export const IOMMU_TEST_OP_DMABUF_GET = 22;
/** Revokes a dma-buf, or gives it back. */
export const IOMMU_TEST_OP_DMABUF_REVOKE = 23;

/** The access is told when pages it has pinned are unmapped, and must unpin. */
export const MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES = 1 << 0;
/** Pin for writing. */
export const MOCK_FLAGS_ACCESS_WRITE = 1 << 0;
/** For fuzzers: any address may be given, not only one that can be checked. */
export const MOCK_FLAGS_ACCESS_SYZ = 1 << 16;
/** Copy to the IOAS. */
export const MOCK_ACCESS_RW_WRITE = 1 << 0;
/** Copy page by page. */
export const MOCK_ACCESS_RW_SLOW_PATH = 1 << 2;
/** The device cannot track dirty pages. */
export const MOCK_FLAGS_DEVICE_NO_DIRTY = 1 << 0;
/** The device has PASIDs. */
export const MOCK_FLAGS_DEVICE_PASID = 1 << 2;

const rwFlags = flags(u32, { WRITE: MOCK_ACCESS_RW_WRITE, SLOW_PATH: MOCK_ACCESS_RW_SLOW_PATH });

/** Argument of IOMMU_TEST_CMD; members whose names begin with `out_` are filled by the kernel. Ranges are in bytes. */
export const IommuTestCmd = struct("iommu_test_cmd", {
  size: u32,
  /** IOMMU_TEST_OP_*. */
  op: oneOf(u32, {
    ADD_RESERVED: IOMMU_TEST_OP_ADD_RESERVED,
    MOCK_DOMAIN: IOMMU_TEST_OP_MOCK_DOMAIN,
    MD_CHECK_MAP: IOMMU_TEST_OP_MD_CHECK_MAP,
    MD_CHECK_REFS: IOMMU_TEST_OP_MD_CHECK_REFS,
    CREATE_ACCESS: IOMMU_TEST_OP_CREATE_ACCESS,
    DESTROY_ACCESS_PAGES: IOMMU_TEST_OP_DESTROY_ACCESS_PAGES,
    ACCESS_PAGES: IOMMU_TEST_OP_ACCESS_PAGES,
    ACCESS_RW: IOMMU_TEST_OP_ACCESS_RW,
    SET_TEMP_MEMORY_LIMIT: IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT,
    MOCK_DOMAIN_REPLACE: IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE,
    ACCESS_REPLACE_IOAS: IOMMU_TEST_OP_ACCESS_REPLACE_IOAS,
    MOCK_DOMAIN_FLAGS: IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS,
    DIRTY: IOMMU_TEST_OP_DIRTY,
    MD_CHECK_IOTLB: IOMMU_TEST_OP_MD_CHECK_IOTLB,
    TRIGGER_IOPF: IOMMU_TEST_OP_TRIGGER_IOPF,
    DEV_CHECK_CACHE: IOMMU_TEST_OP_DEV_CHECK_CACHE,
    TRIGGER_VEVENT: IOMMU_TEST_OP_TRIGGER_VEVENT,
    PASID_ATTACH: IOMMU_TEST_OP_PASID_ATTACH,
    PASID_REPLACE: IOMMU_TEST_OP_PASID_REPLACE,
    PASID_DETACH: IOMMU_TEST_OP_PASID_DETACH,
    PASID_CHECK_HWPT: IOMMU_TEST_OP_PASID_CHECK_HWPT,
    DMABUF_GET: IOMMU_TEST_OP_DMABUF_GET,
    DMABUF_REVOKE: IOMMU_TEST_OP_DMABUF_REVOKE,
  }),
  /** The object it is about; which kind, the operation says. */
  id: u32,
  __reserved: u32,
  "": union({
    add_reserved: struct("add_reserved", { start: u64, length: u64 }),
    mock_domain: struct("mock_domain", { out_stdev_id: u32, out_hwpt_id: u32, out_idev_id: u32 }),
    mock_domain_flags: struct("mock_domain_flags", {
      out_stdev_id: u32,
      out_hwpt_id: u32,
      out_idev_id: u32,
      /** MOCK_FLAGS_DEVICE_*. */
      dev_flags: flags(u32, { NO_DIRTY: MOCK_FLAGS_DEVICE_NO_DIRTY, PASID: MOCK_FLAGS_DEVICE_PASID }),
    }),
    mock_domain_replace: struct("mock_domain_replace", { pt_id: u32 }),
    check_map: struct("check_map", { iova: u64, length: u64, uptr: u64 }),
    check_refs: struct("check_refs", { length: u64, uptr: u64, refs: u32 }),
    create_access: struct("create_access", {
      /** Out: a new descriptor; closing it destroys the access. */
      out_access_fd: u32,
      /** MOCK_FLAGS_ACCESS_CREATE_*. */
      flags: flags(u32, { NEEDS_PIN_PAGES: MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES }),
    }),
    destroy_access_pages: struct("destroy_access_pages", { access_pages_id: u32 }),
    access_pages: struct("access_pages", {
      /** MOCK_FLAGS_ACCESS_*. */
      flags: flags(u32, { WRITE: MOCK_FLAGS_ACCESS_WRITE, SYZ: MOCK_FLAGS_ACCESS_SYZ }),
      out_access_pages_id: u32,
      iova: u64,
      length: u64,
      uptr: u64,
    }),
    access_rw: struct("access_rw", {
      iova: u64,
      length: u64,
      uptr: u64,
      /** MOCK_ACCESS_RW_*. */
      flags: rwFlags,
    }),
    /** Bytes; 0 = no limit. */
    memory_limit: struct("memory_limit", { limit: u32 }),
    access_replace_ioas: struct("access_replace_ioas", { ioas_id: u32 }),
    dirty: struct("dirty", {
      flags: u32,
      iova: u64,
      length: u64,
      /** Bytes a bit of the bitmap at `uptr`. */
      page_size: u64,
      uptr: u64,
      out_nr_dirty: u64,
    }),
    check_iotlb: struct("check_iotlb", { id: u32, iotlb: u32 }),
    /** Page request: of which device, PASID and group, wanting what (IOMMU_PGFAULT_PERM_*) where. */
    trigger_iopf: struct("trigger_iopf", { dev_id: u32, pasid: u32, grpid: u32, perm: u32, addr: u64 }),
    check_dev_cache: struct("check_dev_cache", { id: u32, cache: u32 }),
    trigger_vevent: struct("trigger_vevent", { dev_id: u32 }),
    pasid_attach: struct("pasid_attach", { pasid: u32, pt_id: u32 }),
    pasid_replace: struct("pasid_replace", { pasid: u32, pt_id: u32 }),
    pasid_detach: struct("pasid_detach", { pasid: u32 }),
    pasid_check: struct("pasid_check", {
      pasid: u32,
      /** What it should be attached to; 0 = nothing. */
      hwpt_id: u32,
    }),
    /** Bytes, and flags of open(2). */
    dmabuf_get: struct("dmabuf_get", { length: u32, open_flags: u32 }),
    /** `revoked`: 1 revoke, 0 give back. */
    dmabuf_revoke: struct("dmabuf_revoke", { dmabuf_fd: s32, revoked: u32 }),
  }),
  last: u32,
});
