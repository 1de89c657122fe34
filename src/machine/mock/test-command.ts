/**
 * The test command of iommufd (IOMMU_TEST_CMD, Linux built with its iommufd test option): mock devices come and go,
 * accesses are files, and what is behind the interface is compared with what a program expects. It uses what any
 * device driver of the kernel could use, and the mock driver. Left out: addresses that fuzzers choose
 * (MOCK_FLAGS_ACCESS_SYZ) are taken as they are and not compared.
 */
import type { EventSink } from "../../base/events.ts";
import { MockDevice } from "../../drivers/mock/device.ts";
import { MockDomain, MockNestedDomain } from "../../drivers/mock/domain.ts";
import type { MockDriver } from "../../drivers/mock/driver.ts";
import { hex, MAX_ADDRESS, PAGE_BYTES } from "../../iommufd/address.ts";
import type { IommufdContext } from "../../iommufd/context.ts";
import { deviceOf } from "../../iommufd/device.ts";
import { HwptNested, HwptPaging } from "../../iommufd/hwpt.ts";
import { Ioas } from "../../iommufd/ioas.ts";
import { ioasOf } from "../../iommufd/ioas-calls.ts";
import type { Pages } from "../../iommufd/pages.ts";
import { type Request, type RequestKind, request } from "../../iommufd/request.ts";
import type { Call, KernelFile } from "../../kernel/call.ts";
import { DmaBuf } from "../../kernel/dma-buf.ts";
import { LinuxError } from "../../uapi/errno.ts";
import * as mock from "../../uapi/iommufd-mock.ts";
import { AccessFile } from "./access-file.ts";
import { MockBus, MockDeviceObject } from "./mock-device.ts";

type TestRequest = Request<typeof mock.IommuTestCmd.members>;

const PAGE = BigInt(PAGE_BYTES);
const MOCK_PAGE = BigInt(mock.MOCK_PAGE_SIZE);
/** Bytes of one access. */
const MOST_BYTES = 16n * 2n ** 20n;

/** IOMMU_NO_PASID: what a device does without PASID. */
const NO_PASID = 0;
const pasidOf = (pasid: number): number | undefined => (pasid === NO_PASID ? undefined : pasid);

const invalid = (why: string): LinuxError => new LinuxError("EINVAL", why);

/** The frame behind a page of the caller. Throws EFAULT, Restart. */
const frameOf = (call: Call, va: bigint): number => {
  const page = va & ~(PAGE - 1n);
  if (page >= 2n ** 47n) throw new LinuxError("EFAULT", `user address ${hex(va)} cannot be mapped`);
  const pin = call.memory.pin(Number(page), PAGE_BYTES, false);
  const pa = pin.extents[0]! * PAGE_BYTES;
  pin.unpin(0, 1);
  return pa;
};

const addReserved = ({ context, argument }: TestRequest): void => {
  const ioas = ioasOf(context, argument.id);
  const { start, length } = argument.add_reserved;
  if (length === 0n) throw invalid("length is 0; at least a byte is reserved");
  if (start + (length - 1n) > MAX_ADDRESS)
    throw new LinuxError("EOVERFLOW", `${hex(start)} + ${hex(length)} is beyond 64 bits`);
  ioas.pagetable.reserve(ioas, { start, last: start + (length - 1n) });
};

const checkMap = ({ context, call, argument }: TestRequest): void => {
  const { iova, length, uptr } = argument.check_map;
  const { domain } = context.objects.get(argument.id, HwptPaging, "id");
  if ((iova | length | uptr) % MOCK_PAGE !== 0n)
    throw invalid(`addresses must be multiples of ${hex(MOCK_PAGE)}`);
  if (iova + length > MAX_ADDRESS) throw new LinuxError("EOVERFLOW", `${hex(iova)} + ${hex(length)} wraps`);
  for (let done = 0n; done < length; done += MOCK_PAGE) {
    const expected = frameOf(call, uptr + done) + Number((uptr + done) % PAGE);
    if (domain.physical(Number(iova + done)) !== expected)
      throw invalid(`iova ${hex(iova + done)} does not lead to user address ${hex(uptr + done)}`);
  }
};

/** How often files of the system have the frame pinned: once for each set of pages that shares it. */
const pinsOf = (context: IommufdContext, pfn: number): number => {
  const all = new Set<Pages>();
  for (const { objects } of context.system.contexts)
    for (const object of objects)
      if (object instanceof Ioas) for (const { pages } of object.pagetable.areas) all.add(pages);
  let pins = 0;
  for (const pages of all) pins += pages.pinsOf(pfn);
  return pins;
};

const checkRefs = ({ context, call, argument }: TestRequest): void => {
  const { length, uptr, refs } = argument.check_refs;
  if (length % PAGE !== 0n || uptr % PAGE !== 0n)
    throw invalid("uptr and length must be multiples of a page");
  for (let done = 0n; done < length; done += PAGE) {
    const pins = pinsOf(context, readableFrame(call, uptr + done) / PAGE_BYTES);
    if (pins !== refs)
      throw new LinuxError("EIO", `the page at ${hex(uptr + done)} is pinned ${pins} times, not ${refs}`);
  }
};

/** Throws EIO when there is no page. */
const readableFrame = (call: Call, va: bigint): number => {
  try {
    return frameOf(call, va);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    throw new LinuxError("EIO", `the page at ${hex(va)} cannot be had: ${error.reason}`);
  }
};

const checkIotlb = ({ context, argument }: TestRequest): void => {
  const { id, iotlb } = argument.check_iotlb;
  const { domain } = context.objects.get(argument.id, HwptNested, "id");
  const value = domain instanceof MockNestedDomain ? domain.slot(id) : undefined;
  if (value !== iotlb)
    throw invalid(`slot ${id} holds ${value === undefined ? "nothing" : hex(value)}, not ${hex(iotlb)}`);
};

const checkCache = ({ context, argument }: TestRequest): void => {
  const { id, cache } = argument.check_dev_cache;
  const { device } = deviceOf(context, argument.id);
  const value = device.function instanceof MockDevice ? device.function.cache[id] : undefined;
  if (value !== cache)
    throw invalid(`slot ${id} holds ${value === undefined ? "nothing" : hex(value)}, not ${hex(cache)}`);
};

const accessFile = (call: Call, fd: number): AccessFile => {
  const file: KernelFile | undefined = call.file(fd | 0);
  if (file instanceof AccessFile) return file;
  throw new LinuxError("EBADFD", `descriptor ${fd | 0} is no access of the test command`);
};

const requireBytes = (length: bigint): void => {
  if (length > MOST_BYTES)
    throw new LinuxError("ENOMEM", `length ${hex(length)}: at most ${hex(MOST_BYTES)} at once`);
};

const requireKnown = (flags: number, known: number): void => {
  if ((flags & ~known) !== 0)
    throw new LinuxError("EOPNOTSUPP", `flags ${hex(flags >>> 0)}: only ${hex(known)} are known`);
};

const createAccessFile = ({ context, call, at, argument }: TestRequest): void => {
  const { flags } = argument.create_access;
  requireKnown(flags, mock.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES);
  context.allocate("a file");
  const file = new AccessFile(context, argument.id, flags !== 0);
  call.install(file, { at: at + BigInt(mock.IommuTestCmd.offsets.create_access), closeOnExec: true });
};

const accessPages = ({ call, argument, respond }: TestRequest): void => {
  const { flags, iova, length, uptr } = argument.access_pages;
  requireBytes(length);
  requireKnown(flags, mock.MOCK_FLAGS_ACCESS_WRITE | mock.MOCK_FLAGS_ACCESS_SYZ);
  const file = accessFile(call, argument.id);
  if (!file.pins) throw new LinuxError("EOPNOTSUPP", "it was not made to pin (NEEDS_PIN_PAGES)", file.name);
  if (iova % PAGE !== 0n && (flags & mock.MOCK_FLAGS_ACCESS_SYZ) === 0)
    throw invalid(`iova ${hex(iova)} must be a multiple of a page`);
  const write = (flags & mock.MOCK_FLAGS_ACCESS_WRITE) !== 0;
  const pin = file.access.pin(iova, length, write);
  try {
    if (uptr !== 0n && (flags & mock.MOCK_FLAGS_ACCESS_SYZ) === 0) comparePages(call, pin, uptr);
    const id = file.add(pin);
    try {
      respond({ access_pages: { ...argument.access_pages, out_access_pages_id: id } });
    } catch (error) {
      file.remove(id);
      throw error;
    }
  } catch (error) {
    pin.release();
    throw error;
  }
};

/** Throws EBADE when the pinned pages are not those at the caller's address. */
const comparePages = (
  call: Call,
  pin: { physical(visit: (pa: number, length: number) => void): void },
  uptr: bigint,
): void => {
  let va = uptr;
  pin.physical((pa, length) => {
    for (let done = 0; done < length; done += PAGE_BYTES, va += PAGE)
      if (frameOf(call, va) !== pa + done)
        throw new LinuxError("EBADE", `the page at user address ${hex(va)} is not the one that was pinned`);
  });
};

const accessRw = ({ call, argument }: TestRequest): void => {
  const { flags, iova, length, uptr } = argument.access_rw;
  requireBytes(length);
  requireKnown(flags, mock.MOCK_ACCESS_RW_WRITE | mock.MOCK_ACCESS_RW_SLOW_PATH);
  const { access } = accessFile(call, argument.id);
  const bytes = new Uint8Array(Number(length));
  if (flags & mock.MOCK_ACCESS_RW_WRITE) {
    call.memory.read(uptr, bytes);
    access.write(iova, bytes);
    return;
  }
  access.read(iova, bytes);
  call.memory.write(uptr, bytes);
};

/** Bytes of a dma-buf, at most. */
const MOST_DMA_BUF = 512 * PAGE_BYTES;
const O_CLOEXEC = 0x80000;

const getDmaBuf = ({ context, call, argument }: TestRequest): number => {
  const { length, open_flags } = argument.dmabuf_get;
  if (length === 0 || length > MOST_DMA_BUF)
    throw invalid(`length ${hex(length)}: a dma-buf has at least a byte and at most ${hex(MOST_DMA_BUF)}`);
  context.allocate("a dma-buf");
  const { memory } = context.system;
  const frames = Math.ceil(length / PAGE_BYTES);
  const pa = memory.allocate(frames);
  if (pa < 0) throw new LinuxError("ENOMEM", "no host memory for a dma-buf");
  const file = new DmaBuf({
    name: `dma-buf at ${hex(pa)}`,
    ranges: [{ pa, length: frames * PAGE_BYTES }],
    released: () => memory.free(pa, frames),
  });
  return call.install(file, { closeOnExec: (open_flags & O_CLOEXEC) !== 0 });
};

const revokeDmaBuf = ({ call, argument }: TestRequest): void => {
  const { dmabuf_fd: fd, revoked } = argument.dmabuf_revoke;
  const file = call.file(fd);
  if (!(file instanceof DmaBuf)) {
    call.backing(fd).close();
    throw invalid(`descriptor ${fd} is no dma-buf of the test command`);
  }
  if (revoked !== 0) file.revoke();
  else file.restore();
};

/** Bytes of a bitmap that the command reads at once. */
const MOST_BITMAP = 2 ** 24;

const markDirty = ({ context, call, argument, respond }: TestRequest): void => {
  const { flags, iova, length, page_size, uptr } = argument.dirty;
  if (page_size === 0n || length === 0n || iova % page_size !== 0n || length % page_size !== 0n)
    throw invalid(`iova and length must be multiples of page_size ${hex(page_size)}, and not 0`);
  if (uptr === 0n) throw invalid("uptr is 0");
  if (flags !== 0) throw invalid(`flags ${hex(flags)} are not known`);
  const { domain } = context.objects.get(argument.id, HwptPaging, "id");
  if (!(domain instanceof MockDomain) || !domain.tracking)
    throw invalid(`${domain.name} does not track dirty pages now`);
  const bits = Number(length / page_size);
  if (bits / 8 > MOST_BITMAP) throw new LinuxError("ENOMEM", `a bitmap of ${bits} bits is too large`);
  const bitmap = new Uint8Array(Math.ceil(bits / 8));
  call.memory.read(uptr, bitmap);
  let count = 0;
  for (let bit = 0; bit < bits; bit += 1) {
    if ((bitmap[bit >> 3]! & (1 << (bit & 7))) === 0) continue;
    if (domain.written(Number(iova + BigInt(bit) * page_size))) count += 1;
  }
  respond({ dirty: { ...argument.dirty, out_nr_dirty: BigInt(count) } });
};

const pasidCheck = ({ context, argument }: TestRequest): void => {
  const { pasid, hwpt_id } = argument.pasid_check;
  const { bound } = context.objects.get(argument.id, MockDeviceObject, "id");
  const attached = bound.hwpt(pasidOf(pasid));
  if (hwpt_id === 0) {
    if (attached) throw invalid(`PASID ${pasid} is attached to ${attached.name}`);
    return;
  }
  const expected = context.objects.find(hwpt_id);
  if (!expected) throw new LinuxError("ENOENT", `there is no HWPT ${hwpt_id}`);
  if (attached !== expected)
    throw invalid(`PASID ${pasid} is attached to ${attached?.name ?? "nothing"}, not to ${expected.name}`);
};

/** The operations that need the bus of mock devices. */
const deviceOperations = (bus: MockBus): ReadonlyMap<number, (request: TestRequest) => void> => {
  const stdev = (context: IommufdContext, id: number) => context.objects.get(id, MockDeviceObject, "id");
  const plug = (call: TestRequest, flags: number): void => {
    const { context, argument, respond } = call;
    if ((flags & ~(mock.MOCK_FLAGS_DEVICE_NO_DIRTY | mock.MOCK_FLAGS_DEVICE_PASID)) !== 0)
      throw invalid(`dev_flags ${hex(flags)} are not known`);
    context.allocate("a mock device");
    const device = bus.plug({
      noDirty: (flags & mock.MOCK_FLAGS_DEVICE_NO_DIRTY) !== 0,
      hasPasids: (flags & mock.MOCK_FLAGS_DEVICE_PASID) !== 0,
    });
    const object = new MockDeviceObject(bus, device);
    object.ready = false;
    try {
      context.add(object);
    } catch (error) {
      object.destroy();
      throw error;
    }
    try {
      const bound = object.bind(context);
      const out = { out_stdev_id: object.id, out_idev_id: bound.id, out_hwpt_id: bound.attach(argument.id) };
      object.ready = true;
      if (argument.op === mock.IOMMU_TEST_OP_MOCK_DOMAIN) respond({ mock_domain: out });
      else respond({ mock_domain_flags: { ...out, dev_flags: flags } });
    } catch (error) {
      context.objects.remove(object);
      throw error;
    }
  };
  return new Map<number, (request: TestRequest) => void>([
    [mock.IOMMU_TEST_OP_MOCK_DOMAIN, (call) => plug(call, 0)],
    [mock.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, (call) => plug(call, call.argument.mock_domain_flags.dev_flags)],
    [
      mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE,
      ({ context, argument, respond }) => {
        const { bound } = stdev(context, argument.id);
        respond({ mock_domain_replace: { pt_id: bound.replace(argument.mock_domain_replace.pt_id) } });
      },
    ],
    [
      mock.IOMMU_TEST_OP_TRIGGER_IOPF,
      ({ context, argument }) => {
        const { dev_id, pasid, grpid, perm, addr } = argument.trigger_iopf;
        bus.driver.requestPage(deviceOf(context, dev_id).device.function, {
          ...(pasid !== NO_PASID && { pasid }),
          group: grpid,
          last: true,
          address: addr,
          permissions: perm,
        });
      },
    ],
    [
      mock.IOMMU_TEST_OP_TRIGGER_VEVENT,
      ({ context, argument }) => {
        const { device } = deviceOf(context, argument.trigger_vevent.dev_id);
        if (device.function instanceof MockDevice) bus.driver.reportEvent(device.function);
      },
    ],
    [
      mock.IOMMU_TEST_OP_PASID_ATTACH,
      ({ context, argument, respond }) => {
        const { pasid, pt_id } = argument.pasid_attach;
        const { bound } = stdev(context, argument.id);
        respond({ pasid_attach: { pasid, pt_id: bound.attach(pt_id, pasidOf(pasid)) } });
      },
    ],
    [
      mock.IOMMU_TEST_OP_PASID_REPLACE,
      ({ context, argument, respond }) => {
        const { pasid, pt_id } = argument.pasid_replace;
        const { bound } = stdev(context, argument.id);
        respond({ pasid_replace: { pasid, pt_id: bound.replace(pt_id, pasidOf(pasid)) } });
      },
    ],
    [
      mock.IOMMU_TEST_OP_PASID_DETACH,
      ({ context, argument }) =>
        stdev(context, argument.id).bound.detach(pasidOf(argument.pasid_detach.pasid)),
    ],
  ]);
};

const otherOperations: ReadonlyMap<number, (request: TestRequest) => unknown> = new Map([
  [mock.IOMMU_TEST_OP_ADD_RESERVED, addReserved],
  [mock.IOMMU_TEST_OP_MD_CHECK_MAP, checkMap],
  [mock.IOMMU_TEST_OP_MD_CHECK_REFS, checkRefs],
  [mock.IOMMU_TEST_OP_MD_CHECK_IOTLB, checkIotlb],
  [mock.IOMMU_TEST_OP_DEV_CHECK_CACHE, checkCache],
  [mock.IOMMU_TEST_OP_CREATE_ACCESS, createAccessFile],
  [
    mock.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES,
    ({ call, argument }: TestRequest) =>
      accessFile(call, argument.id).remove(argument.destroy_access_pages.access_pages_id),
  ],
  [mock.IOMMU_TEST_OP_ACCESS_PAGES, accessPages],
  [mock.IOMMU_TEST_OP_ACCESS_RW, accessRw],
  [
    mock.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT,
    ({ context, argument }: TestRequest) => {
      context.system.batch.bytes = argument.memory_limit.limit;
    },
  ],
  [
    mock.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS,
    ({ call, argument }: TestRequest) =>
      accessFile(call, argument.id).access.replace(argument.access_replace_ioas.ioas_id),
  ],
  [mock.IOMMU_TEST_OP_DIRTY, markDirty],
  [mock.IOMMU_TEST_OP_PASID_CHECK_HWPT, pasidCheck],
  [mock.IOMMU_TEST_OP_DMABUF_GET, getDmaBuf],
  [mock.IOMMU_TEST_OP_DMABUF_REVOKE, revokeDmaBuf],
]);

/** The command, for the requests of an `IommufdSubsystem`. */
export const testCommand = (driver: MockDriver, events: EventSink): RequestKind => {
  const operations = new Map([...otherOperations, ...deviceOperations(new MockBus(driver, events))]);
  return request(mock.IOMMU_TEST_CMD, mock.IommuTestCmd, "last", (call) => {
    const operation = operations.get(call.argument.op);
    if (!operation) throw new LinuxError("EOPNOTSUPP", `there is no test operation ${call.argument.op}`);
    const value = operation(call);
    return typeof value === "number" ? value : undefined;
  });
};
