/** Dma-bufs behind IOMMU_IOAS_MAP_FILE, on a real unit: what is mapped, what is refused, what is left when it is taken back. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { silent } from "../base/events.ts";
import { VtdDriver } from "../drivers/vtd/driver.ts";
import { TranslateStatus } from "../hardware/unit.ts";
import { VtdUnit } from "../hardware/vtd/unit.ts";
import { DmaBuf } from "../kernel/dma-buf.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { Header } from "../pci/spec.ts";
import * as uapi from "../uapi/iommufd.ts";
import { createAccess } from "./access.ts";
import { bindDevice, type DeviceObject } from "./device.ts";
import { contextOf, IommufdSubsystem } from "./file.ts";

const PAGE = 4096;
const PAGES = 4;
const IOVA = 0x10_0000;

let host: ModelHost;
let iommufd: IommufdSubsystem;
let task: ModelTask;
let fd: number;
let device: DeviceObject;
let rest: number;

beforeEach(() => {
  host = new ModelHost({
    power: (memory, msi) => {
      const unit = new VtdUnit({
        name: "dmar0",
        memory,
        events: silent,
        interrupt: () => true,
        capabilities: { addressWidths: [39, 48], hostAddressWidth: 46 },
      });
      const firmware = { hostAddressWidth: 46, covers: () => true, reservedMemory: [] };
      return { unit, driver: new VtdDriver({ name: "dmar0", unit, memory, msi, events: silent, firmware }) };
    },
  });
  iommufd = new IommufdSubsystem(host);
  rest = host.memory.allocated;
  task = new ModelTask(host.memory);
  fd = task.open(iommufd.node);
  device = bindDevice(contextOf(task.file(fd))!, host.core.devices.get(host.endpoint.name)!);
  host.endpoint.configWrite(Header.COMMAND, 2, 6);
});

afterEach(() => {
  device.unbind();
  task.exit();
  expect(iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
  expect(host.memory.allocated).toBe(rest);
  host.memory.close();
});

/** A buffer of so many pages, each of its own number, and the caller's descriptor for it. */
const exported = (pages = PAGES, ranges = 1): { buffer: DmaBuf; bufferFd: number; pa: number } => {
  const pa = host.memory.allocate(pages);
  for (let i = 0; i < pages; i += 1) host.memory.fill(pa + i * PAGE, PAGE, i + 1);
  const length = (pages / ranges) * PAGE;
  const buffer = new DmaBuf({
    name: "a BAR",
    ranges: Array.from({ length: ranges }, (_, i) => ({ pa: pa + i * length, length })),
    released: () => host.memory.free(pa, pages),
  });
  return { buffer, bufferFd: task.place(buffer), pa };
};

const allocIoas = (): number => {
  const bytes = uapi.IommuIoasAlloc.bytes({ size: uapi.IommuIoasAlloc.size });
  task.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, bytes);
  return uapi.IommuIoasAlloc.read(bytes).out_ioas_id;
};

const mapFile = (
  ioas: number,
  file: number,
  { start = 0, length = PAGES * PAGE, iova = IOVA, flags = 7 } = {},
): void => {
  const { size } = uapi.IommuIoasMapFile;
  const fields = { size, flags, ioas_id: ioas, fd: file, start: BigInt(start), length: BigInt(length) };
  task.ioctl(fd, uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile.bytes({ ...fields, iova: BigInt(iova) }));
};

const unmap = (ioas: number, iova = IOVA, length = PAGES * PAGE): void => {
  const { size } = uapi.IommuIoasUnmap;
  const bytes = uapi.IommuIoasUnmap.bytes({
    size,
    ioas_id: ioas,
    iova: BigInt(iova),
    length: BigInt(length),
  });
  task.ioctl(fd, uapi.IOMMU_IOAS_UNMAP, bytes);
};

const copy = (from: number, to: number): void => {
  const { size } = uapi.IommuIoasCopy;
  const fields = { size, flags: 7, dst_ioas_id: to, src_ioas_id: from, length: BigInt(PAGES * PAGE) };
  const bytes = uapi.IommuIoasCopy.bytes({ ...fields, dst_iova: BigInt(IOVA), src_iova: BigInt(IOVA) });
  task.ioctl(fd, uapi.IOMMU_IOAS_COPY, bytes);
};

const byte = new Uint8Array(1);
/** What the device reads; undefined when it faults. */
const deviceReads = (iova: number): number | undefined =>
  host.endpoint.dmaRead(iova, byte) === TranslateStatus.ok ? byte[0] : undefined;

describe("a dma-buf mapped by its descriptor", () => {
  it("is reached by devices at its physical address, from any byte on, and is not paid for", () => {
    const ioas = allocIoas();
    device.attach(ioas);
    const { bufferFd, pa } = exported();
    task.memlock = 0;
    mapFile(ioas, bufferFd, { start: PAGE, length: 2 * PAGE });
    expect([0, PAGE, 2 * PAGE].map((at) => deviceReads(IOVA + at))).toEqual([2, 3, undefined]);
    expect(host.endpoint.dmaWrite(IOVA + 8, Uint8Array.of(0x77))).toBe(TranslateStatus.ok);
    host.memory.readBytes(pa + PAGE + 8, byte);
    expect([byte[0], iommufd.live().pinnedPages, task.memory.pinnedPages]).toEqual([0x77, 0, 0]);
  });

  it("keeps its byte within the page", () => {
    const ioas = allocIoas();
    const { bufferFd } = exported();
    mapFile(ioas, bufferFd, { start: PAGE + 0x123, length: 16, iova: IOVA + 0x123 });
    expect(() => device.attach(ioas)).toThrow("EADDRINUSE");
  });

  it("is refused beyond its end (EINVAL), and with several ranges (EOPNOTSUPP)", () => {
    const ioas = allocIoas();
    const { buffer, bufferFd } = exported();
    for (const [start, length] of [
      [0, PAGES * PAGE + 1],
      [PAGE, PAGES * PAGE],
      [PAGES * PAGE, PAGE],
      [0, 0],
    ])
      expect(() => mapFile(ioas, bufferFd, { start: start!, length: length! })).toThrow("EINVAL");
    const scattered = exported(PAGES, 2);
    expect(() => mapFile(ioas, scattered.bufferFd, { length: PAGE })).toThrow("EOPNOTSUPP");
    expect([buffer.importers, scattered.buffer.importers]).toEqual([0, 0]);
  });

  it("is let go when the mapping fails", () => {
    const ioas = allocIoas();
    const { buffer, bufferFd } = exported();
    mapFile(ioas, bufferFd);
    expect(() => mapFile(ioas, bufferFd)).toThrow("EEXIST");
    expect(buffer.importers).toBe(1);
  });

  it("outlives its descriptor, and ends with the last area, copies included", () => {
    const [ioas, other] = [allocIoas(), allocIoas()];
    const { bufferFd } = exported();
    const full = host.memory.allocated;
    mapFile(ioas, bufferFd);
    copy(ioas, other);
    task.close(bufferFd);
    unmap(ioas);
    expect(host.memory.allocated).toBe(full);
    device.attach(other);
    expect(deviceReads(IOVA)).toBe(1);
    device.detach();
    unmap(other);
    expect(host.memory.allocated).toBe(full - PAGES);
  });

  it("cannot change its process: only mappings of other files can", () => {
    const ioas = allocIoas();
    mapFile(ioas, exported().bufferFd);
    const bytes = uapi.IommuIoasChangeProcess.bytes({ size: uapi.IommuIoasChangeProcess.size });
    expect(() => task.ioctl(fd, uapi.IOMMU_IOAS_CHANGE_PROCESS, bytes)).toThrow("EINVAL");
  });

  it("is out of reach for accesses: EINVAL, by pin and by copy", () => {
    const ioas = allocIoas();
    mapFile(ioas, exported().bufferFd);
    const access = createAccess(contextOf(task.file(fd))!, { pins: true, unmap: () => {} });
    access.attach(ioas);
    expect(() => access.pin(BigInt(IOVA), 16n, false)).toThrow("memory of a device");
    expect(() => access.read(BigInt(IOVA), new Uint8Array(4))).toThrow("EINVAL");
    expect(() => access.write(BigInt(IOVA), new Uint8Array(4))).toThrow("EINVAL");
    access.release();
  });
});

describe("a dma-buf that is revoked", () => {
  it("is taken out of every domain at once: DMA faults, areas stay and can be unmapped", () => {
    const ioas = allocIoas();
    device.attach(ioas);
    const { buffer, bufferFd } = exported();
    mapFile(ioas, bufferFd, { length: PAGE });
    mapFile(ioas, bufferFd, { start: PAGE, length: PAGE, iova: IOVA + 0x20_0000 });
    expect([IOVA, IOVA + 0x20_0000].map(deviceReads)).toEqual([1, 2]);
    buffer.revoke();
    expect([IOVA, IOVA + 0x20_0000].map(deviceReads)).toEqual([undefined, undefined]);
    expect([iommufd.live().areas, buffer.importers]).toEqual([2, 2]);
    unmap(ioas, IOVA, PAGE);
    expect([iommufd.live().areas, buffer.importers]).toEqual([1, 1]);
  });

  it("stays out of what is attached or copied afterwards, also when it is restored", () => {
    const [ioas, other] = [allocIoas(), allocIoas()];
    const { buffer, bufferFd } = exported();
    mapFile(ioas, bufferFd);
    buffer.revoke();
    device.attach(ioas);
    expect(deviceReads(IOVA)).toBeUndefined();
    buffer.restore();
    copy(ioas, other);
    device.replace(other);
    expect(deviceReads(IOVA)).toBeUndefined();
  });

  it("cannot be mapped (ENODEV) until it is restored", () => {
    const ioas = allocIoas();
    device.attach(ioas);
    const { buffer, bufferFd } = exported();
    mapFile(ioas, bufferFd);
    buffer.revoke();
    expect(() => mapFile(ioas, bufferFd, { iova: 0x40_0000 })).toThrow("ENODEV");
    buffer.restore();
    mapFile(ioas, bufferFd, { iova: 0x40_0000 });
    expect([IOVA, 0x40_0000].map(deviceReads)).toEqual([undefined, 1]);
    buffer.revoke();
    expect(deviceReads(0x40_0000)).toBeUndefined();
    expect(() => unmap(ioas, 0, 2 ** 40)).not.toThrow();
  });

  it("leaves what else is mapped alone", () => {
    const ioas = allocIoas();
    device.attach(ioas);
    const [first, second] = [exported(), exported()];
    mapFile(ioas, first.bufferFd);
    mapFile(ioas, second.bufferFd, { iova: IOVA + PAGES * PAGE });
    first.buffer.revoke();
    expect([IOVA, IOVA + PAGES * PAGE].map(deviceReads)).toEqual([undefined, 1]);
  });
});
