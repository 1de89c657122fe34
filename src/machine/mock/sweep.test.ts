/**
 * Every request of /dev/iommu, its files and the test command with every allocation made to fail in turn: the answer
 * is ENOMEM and nothing has changed, until none fails. A request that the interface has and the table has not is an
 * error, and so is one that is said to allocate and does not.
 */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DATA, type MockProcess, MockRig, USER } from "../../../test/support/mock-rig.ts";
import { MockDevice } from "../../drivers/mock/device.ts";
import { pageRequestsOf } from "../../iommu/page-requests.ts";
import * as uapi from "../../uapi/iommufd.ts";
import * as mock from "../../uapi/iommufd-mock.ts";
import * as vfio from "../../uapi/vfio.ts";

/** Makes ready, and gives the call. */
type Case = (p: MockProcess) => () => unknown;

const IOVA = mock.MOCK_APERTURE_START;
const PAGE = 4096;
const FOUR = BigInt(4 * PAGE);

/** An IOAS, a device attached to it, a nest parent, and a nested HWPT on a vIOMMU that the device has. */
const guest = (p: MockProcess) => {
  const ioas = p.ioas();
  p.map(ioas, IOVA, 4);
  const device = p.device(ioas, mock.MOCK_FLAGS_DEVICE_PASID);
  const parent = p.hwpt(device.out_idev_id, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT });
  const viommu = p.viommu(device.out_idev_id, parent);
  return { ioas, parent, viommu, dev: device.out_idev_id, stdev: device.out_stdev_id };
};

/** The device of a guest reports to its event queue. */
const listening = (p: MockProcess) => {
  const { dev, stdev, viommu } = guest(p);
  p.vdevice(viommu, dev, 0x99);
  const nested = p.nested(dev, viommu);
  p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: nested } });
  return { dev, queue: p.eventQueue(viommu) };
};

/** A device whose page faults go to a queue. */
const faulting = (p: MockProcess) => {
  const ioas = p.ioas();
  const { out_idev_id: dev, out_stdev_id: stdev } = p.device(ioas);
  const parent = p.hwpt(dev, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT });
  const queue = p.faultQueue();
  const flags = uapi.IOMMU_HWPT_FAULT_ID_VALID;
  const nested = p.nested(dev, parent, { flags, fault_id: queue.out_fault_id });
  p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: nested } });
  const trigger = (grpid: number) =>
    p.test(mock.IOMMU_TEST_OP_TRIGGER_IOPF, 0, { trigger_iopf: { dev_id: dev, grpid, perm: 1, addr: 0n } });
  return { queue, trigger };
};

const copying = (p: MockProcess, from: number, to: number) => () =>
  p.call(uapi.IOMMU_IOAS_COPY, uapi.IommuIoasCopy, {
    flags: 7,
    dst_ioas_id: to,
    src_ioas_id: from,
    length: FOUR,
    dst_iova: BigInt(IOVA),
    src_iova: BigInt(IOVA),
  });

const compat = (p: MockProcess): number => {
  const ioas = p.ioas();
  p.call(uapi.IOMMU_VFIO_IOAS, uapi.IommuVfioIoas, { ioas_id: ioas, op: uapi.IOMMU_VFIO_IOAS_SET });
  return ioas;
};

const mapDma = (iova: number, size: bigint) =>
  vfio.VfioIommuType1DmaMap.bytes({
    argsz: vfio.VfioIommuType1DmaMap.size,
    flags: 3,
    vaddr: BigInt(USER),
    iova: BigInt(iova),
    size,
  });
const unmapDma = (iova: number, size: bigint) =>
  vfio.VfioIommuType1DmaUnmap.bytes({
    argsz: vfio.VfioIommuType1DmaUnmap.size,
    flags: 0,
    iova: BigInt(iova),
    size,
  });

const commands: { readonly [name: string]: Case } = {
  IOAS_ALLOC: (p) => () => p.ioas(),
  DESTROY: (p) => {
    const ioas = p.ioas();
    p.map(ioas, IOVA, 4);
    return () => p.destroy(ioas);
  },
  IOAS_ALLOW_IOVAS: (p) => {
    const ioas = p.ioas();
    const ranges = [0, 1, 2].map((n) => ({
      start: BigInt(n * 0x1_0000),
      last: BigInt(n * 0x1_0000 + 0xfff),
    }));
    for (const [n, range] of ranges.entries()) p.put(uapi.IommuIovaRange.bytes(range), DATA + 16 * n);
    return () =>
      p.call(uapi.IOMMU_IOAS_ALLOW_IOVAS, uapi.IommuIoasAllowIovas, {
        ioas_id: ioas,
        num_iovas: 3,
        allowed_iovas: BigInt(DATA),
      });
  },
  IOAS_COPY: (p) => {
    const [from, to] = [p.ioas(), p.ioas()];
    p.map(from, IOVA, 2);
    p.map(from, IOVA + 2 * PAGE, 2, { from: 8 });
    return copying(p, from, to);
  },
  "IOAS_COPY to where a device is attached": (p) => {
    const [from, to] = [p.ioas(), p.ioas()];
    p.map(from, IOVA, 2);
    p.map(from, IOVA + 2 * PAGE, 2, { from: 8 });
    p.device(to);
    return copying(p, from, to);
  },
  IOAS_IOVA_RANGES: (p) => {
    const ioas = p.ioas();
    const value = { ioas_id: ioas, num_iovas: 4, allowed_iovas: BigInt(DATA) };
    return () => p.call(uapi.IOMMU_IOAS_IOVA_RANGES, uapi.IommuIoasIovaRanges, value);
  },
  IOAS_MAP: (p) => {
    const ioas = p.ioas();
    return () => p.map(ioas, IOVA, 4);
  },
  "IOAS_MAP where it fits": (p) => {
    const ioas = p.ioas();
    return () => p.map(ioas, 0, 4, { fixed: false });
  },
  "IOAS_MAP of memory that its owner has to move first": (p) => {
    const ioas = p.ioas();
    p.device(ioas);
    return () => {
      p.task.memory.map(USER, PAGE, { private: true });
      p.map(ioas, IOVA, 1);
    };
  },
  "IOAS_MAP with two domains": (p) => {
    const ioas = p.ioas();
    const { out_idev_id } = p.device(ioas);
    p.hwpt(out_idev_id, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT });
    return () => p.map(ioas, IOVA + 2 ** 21 - 2 * PAGE, 4);
  },
  IOAS_MAP_FILE: (p) => {
    const ioas = p.ioas();
    p.device(ioas);
    const fd = p.memfd();
    const value = { flags: 7, ioas_id: ioas, fd, start: 0n, length: FOUR, iova: BigInt(IOVA) };
    return () => p.call(uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile, value);
  },
  "IOAS_MAP_FILE of a dma-buf": (p) => {
    const ioas = p.ioas();
    p.device(ioas);
    const fd = p.task.ioctl(p.fd, mock.IOMMU_TEST_CMD, dmaBuf());
    const value = { flags: 7, ioas_id: ioas, fd, start: 0n, length: FOUR, iova: BigInt(IOVA) };
    return () => p.call(uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile, value);
  },
  IOAS_UNMAP: (p) => {
    const ioas = p.ioas();
    p.device(ioas);
    p.map(ioas, IOVA, 4);
    const value = { ioas_id: ioas, iova: BigInt(IOVA), length: FOUR };
    return () => p.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, value);
  },
  OPTION: (p) => {
    const ioas = p.ioas();
    const value = { option_id: uapi.IOMMU_OPTION_HUGE_PAGES, object_id: ioas, val64: 0n };
    return () => p.call(uapi.IOMMU_OPTION, uapi.IommuOption, value);
  },
  VFIO_IOAS: (p) => {
    const ioas = p.ioas();
    const value = { ioas_id: ioas, op: uapi.IOMMU_VFIO_IOAS_SET };
    return () => p.call(uapi.IOMMU_VFIO_IOAS, uapi.IommuVfioIoas, value);
  },
  HWPT_ALLOC: (p) => {
    const ioas = p.ioas();
    p.map(ioas, IOVA, 2);
    p.map(ioas, IOVA + 2 ** 21, 2, { from: 4 });
    const { out_idev_id } = p.device(ioas);
    return () => p.hwpt(out_idev_id, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING });
  },
  "HWPT_ALLOC nested on a parent, with a fault queue": (p) => {
    const { parent, dev } = guest(p);
    const { out_fault_id: fault_id } = p.faultQueue();
    return () => p.nested(dev, parent, { flags: uapi.IOMMU_HWPT_FAULT_ID_VALID, fault_id });
  },
  "HWPT_ALLOC nested on a vIOMMU": (p) => {
    const { viommu, dev } = guest(p);
    return () => p.nested(dev, viommu);
  },
  GET_HW_INFO: (p) => {
    const { out_idev_id: dev_id } = p.device(p.ioas());
    return () =>
      p.call(uapi.IOMMU_GET_HW_INFO, uapi.IommuHwInfo, { dev_id, data_len: 8, data_uptr: BigInt(DATA) });
  },
  HWPT_SET_DIRTY_TRACKING: (p) => {
    const hwpt_id = tracked(p);
    const value = { hwpt_id, flags: uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE };
    return () => p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.IommuHwptSetDirtyTracking, value);
  },
  HWPT_GET_DIRTY_BITMAP: (p) => {
    const hwpt_id = tracked(p);
    const value = {
      hwpt_id,
      iova: BigInt(IOVA),
      length: FOUR,
      page_size: BigInt(PAGE),
      data: BigInt(DATA),
    };
    return () => p.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.IommuHwptGetDirtyBitmap, value);
  },
  HWPT_INVALIDATE: (p) => {
    const { parent, dev } = guest(p);
    const hwpt_id = p.nested(dev, parent);
    return () =>
      p.call(uapi.IOMMU_HWPT_INVALIDATE, uapi.IommuHwptInvalidate, {
        hwpt_id,
        data_uptr: p.put(mock.IommuHwptInvalidateSelftest.bytes({ flags: 1 })),
        data_type: mock.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
        entry_len: mock.IommuHwptInvalidateSelftest.size,
        entry_num: 1,
      });
  },
  FAULT_QUEUE_ALLOC: (p) => () => p.faultQueue(),
  VIOMMU_ALLOC: (p) => {
    const { parent, dev } = guest(p);
    return () => p.viommu(dev, parent);
  },
  VDEVICE_ALLOC: (p) => {
    const { viommu, dev } = guest(p);
    return () => p.vdevice(viommu, dev, 0x99);
  },
  VEVENTQ_ALLOC: (p) => {
    const { viommu } = guest(p);
    return () => p.eventQueue(viommu);
  },
  HW_QUEUE_ALLOC: (p) => {
    const { viommu } = guest(p);
    const type = mock.IOMMU_HW_QUEUE_TYPE_SELFTEST as number;
    const value = { viommu_id: viommu, type, nesting_parent_iova: BigInt(IOVA), length: BigInt(PAGE) };
    return () => p.call(uapi.IOMMU_HW_QUEUE_ALLOC, uapi.IommuHwQueueAlloc, value);
  },
  IOAS_CHANGE_PROCESS: (p) => {
    const ioas = p.ioas();
    p.device(ioas);
    const value = { flags: 7, ioas_id: ioas, fd: p.memfd(), start: 0n, length: FOUR, iova: BigInt(IOVA) };
    p.call(uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile, value);
    return () => p.call(uapi.IOMMU_IOAS_CHANGE_PROCESS, uapi.IommuIoasChangeProcess, {});
  },
};

const dmaBuf = () =>
  mock.IommuTestCmd.bytes({
    size: mock.IommuTestCmd.size,
    op: mock.IOMMU_TEST_OP_DMABUF_GET,
    dmabuf_get: { length: 4 * PAGE, open_flags: 0 },
  });

/** A HWPT with dirty tracking and four mapped pages. */
const tracked = (p: MockProcess): number => {
  const ioas = p.ioas();
  p.map(ioas, IOVA, 4);
  const { out_idev_id } = p.device(ioas);
  return p.hwpt(out_idev_id, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING });
};

const compatibility: { readonly [name: string]: Case } = {
  GET_API_VERSION: (p) => () => p.raw(vfio.VFIO_GET_API_VERSION, 0n),
  CHECK_EXTENSION: (p) => () => p.raw(vfio.VFIO_CHECK_EXTENSION, BigInt(vfio.VFIO_TYPE1v2_IOMMU)),
  SET_IOMMU: (p) => {
    compat(p);
    return () => p.raw(vfio.VFIO_SET_IOMMU, BigInt(vfio.VFIO_TYPE1v2_IOMMU));
  },
  IOMMU_GET_INFO: (p) => {
    compat(p);
    const bytes = new Uint8Array(256);
    new DataView(bytes.buffer).setUint32(0, bytes.length, true);
    return () => p.raw(vfio.VFIO_IOMMU_GET_INFO, bytes);
  },
  IOMMU_MAP_DMA: (p) => {
    p.device(compat(p));
    return () => p.raw(vfio.VFIO_IOMMU_MAP_DMA, mapDma(IOVA, FOUR));
  },
  IOMMU_UNMAP_DMA: (p) => {
    p.device(compat(p));
    p.raw(vfio.VFIO_IOMMU_MAP_DMA, mapDma(IOVA, FOUR));
    return () => p.raw(vfio.VFIO_IOMMU_UNMAP_DMA, unmapDma(IOVA, FOUR));
  },
  "IOMMU_UNMAP_DMA of the middle of an area": (p) => {
    p.device(compat(p));
    p.raw(vfio.VFIO_SET_IOMMU, BigInt(vfio.VFIO_TYPE1_IOMMU));
    p.raw(vfio.VFIO_IOMMU_MAP_DMA, mapDma(IOVA, FOUR));
    return () => p.raw(vfio.VFIO_IOMMU_UNMAP_DMA, unmapDma(IOVA + PAGE, BigInt(PAGE)));
  },
};

const testOperations: { readonly [name: string]: Case } = {
  ADD_RESERVED: (p) => {
    const ioas = p.ioas();
    const add_reserved = { start: 0n, length: BigInt(PAGE) };
    return () => p.test(mock.IOMMU_TEST_OP_ADD_RESERVED, ioas, { add_reserved });
  },
  MOCK_DOMAIN: (p) => {
    const ioas = p.ioas();
    p.map(ioas, IOVA, 4);
    return () => p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN, ioas);
  },
  "MOCK_DOMAIN beside another": (p) => {
    const ioas = p.ioas();
    p.device(ioas);
    return () => p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN, ioas);
  },
  MOCK_DOMAIN_FLAGS: (p) => {
    const ioas = p.ioas();
    return () => p.device(ioas, mock.MOCK_FLAGS_DEVICE_PASID);
  },
  MD_CHECK_MAP: (p) => {
    const hwpt = tracked(p);
    const check_map = { iova: BigInt(IOVA), length: FOUR, uptr: BigInt(USER) };
    return () => p.test(mock.IOMMU_TEST_OP_MD_CHECK_MAP, hwpt, { check_map });
  },
  MD_CHECK_REFS: (p) => {
    tracked(p);
    const check_refs = { length: FOUR, uptr: BigInt(USER), refs: 1 };
    return () => p.test(mock.IOMMU_TEST_OP_MD_CHECK_REFS, 0, { check_refs });
  },
  CREATE_ACCESS: (p) => {
    const ioas = p.ioas();
    return () => p.access(ioas);
  },
  DESTROY_ACCESS_PAGES: (p) => {
    const { access, pin } = pinned(p);
    const destroy_access_pages = { access_pages_id: pin() };
    return () => p.test(mock.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, access, { destroy_access_pages });
  },
  ACCESS_PAGES: (p) => pinned(p).pin,
  ACCESS_RW: (p) => {
    const { access } = pinned(p);
    const access_rw = { iova: BigInt(IOVA), length: 8192n, uptr: BigInt(DATA), flags: 1 };
    return () => p.test(mock.IOMMU_TEST_OP_ACCESS_RW, access, { access_rw });
  },
  "ACCESS_RW of a file": (p) => {
    const ioas = p.ioas();
    const value = { flags: 7, ioas_id: ioas, fd: p.memfd(), start: 0n, length: FOUR, iova: BigInt(IOVA) };
    p.call(uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile, value);
    const access = p.access(ioas, 0);
    const access_rw = { iova: BigInt(IOVA), length: 8192n, uptr: BigInt(DATA), flags: 0 };
    return () => p.test(mock.IOMMU_TEST_OP_ACCESS_RW, access, { access_rw });
  },
  SET_TEMP_MEMORY_LIMIT: (p) => () =>
    p.test(mock.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0, { memory_limit: { limit: 0x1_0000 } }),
  MOCK_DOMAIN_REPLACE: (p) => {
    const { stdev } = guest(p);
    const other = p.ioas();
    p.map(other, IOVA, 2, { from: 9 });
    const mock_domain_replace = { pt_id: other };
    return () => p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace });
  },
  ACCESS_REPLACE_IOAS: (p) => {
    const { access } = pinned(p);
    const access_replace_ioas = { ioas_id: p.ioas() };
    return () => p.test(mock.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, access, { access_replace_ioas });
  },
  DIRTY: (p) => {
    const hwpt = tracked(p);
    const flags = uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
    p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.IommuHwptSetDirtyTracking, { hwpt_id: hwpt, flags });
    const dirty = { iova: BigInt(IOVA), length: FOUR, page_size: 2048n, uptr: p.put(new Uint8Array([3])) };
    return () => p.test(mock.IOMMU_TEST_OP_DIRTY, hwpt, { dirty });
  },
  MD_CHECK_IOTLB: (p) => {
    const { parent, dev } = guest(p);
    const hwpt = p.nested(dev, parent);
    return () => p.test(mock.IOMMU_TEST_OP_MD_CHECK_IOTLB, hwpt, { check_iotlb: { id: 0, iotlb: 7 } });
  },
  TRIGGER_IOPF: (p) => {
    const { trigger } = faulting(p);
    return () => trigger(1);
  },
  DEV_CHECK_CACHE: (p) => {
    const { out_idev_id } = p.device(p.ioas());
    const check_dev_cache = { id: 0, cache: mock.IOMMU_TEST_DEV_CACHE_DEFAULT };
    return () => p.test(mock.IOMMU_TEST_OP_DEV_CHECK_CACHE, out_idev_id, { check_dev_cache });
  },
  TRIGGER_VEVENT: (p) => {
    const { dev } = listening(p);
    return () => p.test(mock.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, { trigger_vevent: { dev_id: dev } });
  },
  PASID_ATTACH: (p) => {
    const { stdev, first } = withPasids(p);
    const pasid_attach = { pasid: 5, pt_id: first };
    return () => p.test(mock.IOMMU_TEST_OP_PASID_ATTACH, stdev, { pasid_attach });
  },
  PASID_REPLACE: (p) => {
    const { stdev, first, second } = withPasids(p);
    p.test(mock.IOMMU_TEST_OP_PASID_ATTACH, stdev, { pasid_attach: { pasid: 5, pt_id: first } });
    const pasid_replace = { pasid: 5, pt_id: second };
    return () => p.test(mock.IOMMU_TEST_OP_PASID_REPLACE, stdev, { pasid_replace });
  },
  PASID_DETACH: (p) => {
    const { stdev, first } = withPasids(p);
    p.test(mock.IOMMU_TEST_OP_PASID_ATTACH, stdev, { pasid_attach: { pasid: 5, pt_id: first } });
    return () => p.test(mock.IOMMU_TEST_OP_PASID_DETACH, stdev, { pasid_detach: { pasid: 5 } });
  },
  PASID_CHECK_HWPT: (p) => {
    const { stdev } = withPasids(p);
    return () =>
      p.test(mock.IOMMU_TEST_OP_PASID_CHECK_HWPT, stdev, { pasid_check: { pasid: 5, hwpt_id: 0 } });
  },
  DMABUF_GET: (p) => () => p.raw(mock.IOMMU_TEST_CMD, dmaBuf()),
  DMABUF_REVOKE: (p) => {
    const fd = p.raw(mock.IOMMU_TEST_CMD, dmaBuf());
    const dmabuf_revoke = { dmabuf_fd: fd, revoked: 1 };
    return () => p.test(mock.IOMMU_TEST_OP_DMABUF_REVOKE, 0, { dmabuf_revoke });
  },
};

/** An access to four mapped pages. */
const pinned = (p: MockProcess) => {
  const ioas = p.ioas();
  p.map(ioas, IOVA, 2);
  p.map(ioas, IOVA + 2 * PAGE, 2, { from: 8 });
  const access = p.access(ioas);
  const access_pages = { flags: 1, iova: BigInt(IOVA), length: FOUR, uptr: 0n };
  const pin = () =>
    p.test(mock.IOMMU_TEST_OP_ACCESS_PAGES, access, { access_pages }).access_pages.out_access_pages_id;
  return { access, pin };
};

/** A device with a HWPT for PASIDs, and two of them. */
const withPasids = (p: MockProcess) => {
  const ioas = p.ioas();
  const { out_idev_id: dev, out_stdev_id: stdev } = p.device(ioas, mock.MOCK_FLAGS_DEVICE_PASID);
  const [first, second] = [0, 1].map(() => p.hwpt(dev, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_PASID }));
  p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: first! } });
  return { stdev, first: first!, second: second! };
};

const files: { readonly [name: string]: Case } = {
  "open /dev/iommu": (p) => () => p.task.open(p.rig.iommufd.node),
  "read of a fault queue": (p) => {
    const { queue, trigger } = faulting(p);
    trigger(1);
    return () => p.task.readTo(queue.out_fault_fd, BigInt(DATA), 40);
  },
  "write to a fault queue": (p) => {
    const { queue, trigger } = faulting(p);
    trigger(1);
    p.task.readTo(queue.out_fault_fd, BigInt(DATA), 40);
    const answer = p.put(uapi.IommuHwptPageResponse.bytes({ cookie: 1, code: 0 }));
    return () => p.task.writeFrom(queue.out_fault_fd, answer, 8);
  },
  "read of an event queue": (p) => {
    const { dev, queue } = listening(p);
    p.test(mock.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, { trigger_vevent: { dev_id: dev } });
    return () => p.task.readTo(queue.out_veventq_fd, BigInt(DATA), 64);
  },
};

const all = { ...commands, ...compatibility, ...testOperations, ...files };

/** What allocates nothing, and cannot fail for want of memory. */
const WITHOUT = new Set([
  "DESTROY",
  "IOAS_IOVA_RANGES",
  "IOAS_UNMAP",
  "OPTION",
  "VFIO_IOAS",
  "HWPT_SET_DIRTY_TRACKING",
  "GET_API_VERSION",
  "CHECK_EXTENSION",
  "SET_IOMMU",
  "IOMMU_UNMAP_DMA",
  "MD_CHECK_MAP",
  "MD_CHECK_REFS",
  "DESTROY_ACCESS_PAGES",
  "ACCESS_RW",
  "SET_TEMP_MEMORY_LIMIT",
  "DIRTY",
  "MD_CHECK_IOTLB",
  "DEV_CHECK_CACHE",
  "PASID_DETACH",
  "PASID_CHECK_HWPT",
  "DMABUF_REVOKE",
  "write to a fault queue",
  "read of an event queue",
]);
/** What an allocation fails of is answered for the device, and the call knows nothing of it. */
const ANSWERED = new Set(["TRIGGER_IOPF"]);

let rig: MockRig;
let p: MockProcess;
beforeEach(() => {
  rig = new MockRig();
  p = rig.spawn();
});
afterEach(() => {
  for (const process of [...rig.processes]) process.exit();
  expect(Object.entries(rig.live()).filter(([, count]) => count !== 0)).toEqual([]);
  rig.close();
});

/** Fails the first, the second, … allocation until none fails; how many there were. */
const sweep = (name: string, call: () => unknown): number => {
  for (let nth = 1; nth < 200; nth += 1) {
    const before = p.state();
    rig.allocations.arm(p.task, nth);
    let error: unknown;
    try {
      call();
    } catch (thrown) {
      error = thrown;
    }
    const fired = rig.allocations.remaining(p.task) === 0;
    rig.allocations.arm(p.task, 0);
    if (!fired) {
      expect(error).toBeUndefined();
      return nth - 1;
    }
    if (!ANSWERED.has(name)) expect(error, `allocation ${nth}`).toMatchObject({ code: "ENOMEM" });
    expect(p.state(), `after allocation ${nth}`).toEqual(before);
  }
  throw new Error("it never succeeds");
};

describe("every allocation fails once, and nothing has changed", () => {
  for (const [name, prepare] of Object.entries(all))
    it(name, () => {
      const failures = sweep(name, prepare(p));
      if (WITHOUT.has(name)) expect(failures).toBe(0);
      else expect(failures).toBeGreaterThan(0);
    });

  const names = (source: object, prefix: string): string[] =>
    Object.keys(source)
      .filter((name) => name.startsWith(prefix))
      .map((name) => name.slice(prefix.length));

  it("no command of the interface is missing here", () => {
    expect(names(uapi, "IOMMUFD_CMD_").filter((name) => name !== "BASE" && !(name in commands))).toEqual([]);
    expect(names(mock, "IOMMU_TEST_OP_").filter((name) => !(name in testOperations))).toEqual([]);
  });
});

describe("what an allocation that fails does to what devices report", () => {
  const read = (fd: number, length: number): number => p.task.readTo(fd, BigInt(DATA), length);
  const failing = (call: () => unknown): void => {
    rig.allocations.arm(p.task, 1);
    try {
      call();
    } finally {
      expect(rig.allocations.remaining(p.task)).toBe(0);
    }
  };

  it("a page fault is answered `invalid`, and the next one arrives", () => {
    const answers: string[] = [];
    rig.driver.onPageResponse = (_device, { group, code }) => answers.push(`${group} ${code}`);
    const { queue, trigger } = faulting(p);
    failing(() => trigger(1));
    expect(answers).toEqual(["1 invalid"]);
    expect(read(queue.out_fault_fd, 40)).toBe(0);
    trigger(2);
    expect(read(queue.out_fault_fd, 40)).toBe(40);
  });

  it("a group of which one request was lost is answered when its last one comes", () => {
    const answers: string[] = [];
    const groups: number[] = [];
    rig.driver.onPageResponse = (_device, { group, code }) => answers.push(`${group} ${code}`);
    const device = new MockDevice(0, { noDirty: false, hasPasids: false });
    pageRequestsOf(rig.driver).handle(device, undefined, ({ requests }) => groups.push(requests.length));
    const ask = (group: number, last: boolean) =>
      rig.driver.requestPage(device, { group, last, address: 0n, permissions: 1 });
    rig.allocations.arm(p.task, 1);
    rig.allocations.run(p.task, () => ask(1, false));
    ask(1, false);
    ask(2, false);
    ask(1, true);
    ask(2, true);
    expect([answers, groups]).toEqual([["1 invalid"], [2]]);
    pageRequestsOf(rig.driver).unhandle(device, undefined);
  });

  it("a page fault that cannot be read stays, and is read with the next", () => {
    const { queue, trigger } = faulting(p);
    trigger(1);
    trigger(2);
    rig.allocations.arm(p.task, 2);
    expect(read(queue.out_fault_fd, 80)).toBe(40);
    expect(read(queue.out_fault_fd, 80)).toBe(40);
  });

  it("an event is lost, shows as that, and its number is not used again", () => {
    const { dev, queue } = listening(p);
    const trigger = () => p.test(mock.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, { trigger_vevent: { dev_id: dev } });
    trigger();
    expect(() => failing(trigger)).toThrow("ENOMEM");
    const bytes = new Uint8Array(64);
    expect(read(queue.out_veventq_fd, 64)).toBe(12 + 8);
    p.task.memory.read(BigInt(DATA), bytes);
    const lost = uapi.IommufdVeventHeader.read(bytes, 12);
    expect(lost).toMatchObject({ flags: uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS, sequence: 1 });
    trigger();
    expect(read(queue.out_veventq_fd, 64)).toBe(12);
    p.task.memory.read(BigInt(DATA), bytes);
    expect(uapi.IommufdVeventHeader.read(bytes)).toMatchObject({ flags: 0, sequence: 2 });
  });
});
