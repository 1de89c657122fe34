/** Life cycles of objects, on mock devices: numbers, who keeps what, and what goes with what. */
import { beforeEach, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { silent } from "../base/events.ts";
import { MockDriver } from "../drivers/mock/driver.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { MockBus, MockDeviceObject } from "../machine/mock/mock-device.ts";
import * as uapi from "../uapi/iommufd.ts";
import { IOMMU_VIOMMU_TYPE_SELFTEST } from "../uapi/vendor/mock.ts";
import { type AccessPin, createAccess } from "./access.ts";
import type { IommufdContext } from "./context.ts";
import { contextOf, IommufdSubsystem } from "./file.ts";
import { Ioas } from "./ioas.ts";

const USER = 0x10_0000;
const IOVA = 0x100_0000n;
const LENGTH = 0x4000n;

let host: ModelHost;
let driver: MockDriver;
let bus: MockBus;
let iommufd: IommufdSubsystem;
let task: ModelTask;
let fd: number;
let context: IommufdContext;

beforeEach(() => {
  host = new ModelHost();
  driver = new MockDriver(host.memory);
  bus = new MockBus(driver, silent);
  iommufd = new IommufdSubsystem(host);
  task = new ModelTask(host.memory, { uid: 5 });
  task.memory.map(USER, 0x1_0000);
  fd = task.open(iommufd.node);
  context = contextOf(task.file(fd))!;
  return () => {
    task.exit();
    host.scheduler.run();
    expect(iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
    expect([driver.domains, driver.viommus, driver.devices]).toEqual([0, 0, 0]);
    expect(host.memory.allocated).toBe(0);
    host.memory.close();
  };
});

const ioasAlloc = (): number => {
  const bytes = uapi.IommuIoasAlloc.bytes({ size: uapi.IommuIoasAlloc.size });
  task.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, bytes);
  return uapi.IommuIoasAlloc.read(bytes).out_ioas_id;
};
const map = (ioas: number, iova = IOVA) =>
  task.ioctl(
    fd,
    uapi.IOMMU_IOAS_MAP,
    uapi.IommuIoasMap.bytes({
      size: uapi.IommuIoasMap.size,
      flags: 7,
      ioas_id: ioas,
      user_va: BigInt(USER),
      length: LENGTH,
      iova,
    }),
  );
const unmapArgument = (ioas: number) =>
  uapi.IommuIoasUnmap.bytes({ size: uapi.IommuIoasUnmap.size, ioas_id: ioas, iova: IOVA, length: LENGTH });
const destroyArgument = (id: number) => uapi.IommuDestroy.bytes({ size: uapi.IommuDestroy.size, id });
const destroy = (id: number) => task.ioctl(fd, uapi.IOMMU_DESTROY, destroyArgument(id));
const vfioIoas = (op: number, ioas = 0): number => {
  const bytes = uapi.IommuVfioIoas.bytes({ size: uapi.IommuVfioIoas.size, ioas_id: ioas, op });
  task.ioctl(fd, uapi.IOMMU_VFIO_IOAS, bytes);
  return uapi.IommuVfioIoas.read(bytes).ioas_id;
};
const plug = (): MockDeviceObject => {
  const object = context.add(new MockDeviceObject(bus, bus.plug({ noDirty: false, hasPasids: false })));
  object.bind(context);
  return object;
};
const hwptAlloc = (device: MockDeviceObject, ptId: number, flags = 0): number => {
  const bytes = uapi.IommuHwptAlloc.bytes({
    size: uapi.IommuHwptAlloc.size,
    flags,
    dev_id: device.bound.id,
    pt_id: ptId,
  });
  task.ioctl(fd, uapi.IOMMU_HWPT_ALLOC, bytes);
  return uapi.IommuHwptAlloc.read(bytes).out_hwpt_id;
};
const viommuAlloc = (device: MockDeviceObject, hwpt: number): number => {
  const bytes = uapi.IommuViommuAlloc.bytes({
    size: uapi.IommuViommuAlloc.size,
    type: IOMMU_VIOMMU_TYPE_SELFTEST,
    dev_id: device.bound.id,
    hwpt_id: hwpt,
  });
  task.ioctl(fd, uapi.IOMMU_VIOMMU_ALLOC, bytes);
  return uapi.IommuViommuAlloc.read(bytes).out_viommu_id;
};
const vdeviceAlloc = (viommu: number, device: MockDeviceObject, number: bigint): number => {
  const bytes = uapi.IommuVdeviceAlloc.bytes({
    size: uapi.IommuVdeviceAlloc.size,
    viommu_id: viommu,
    dev_id: device.bound.id,
    virt_id: number,
  });
  task.ioctl(fd, uapi.IOMMU_VDEVICE_ALLOC, bytes);
  return uapi.IommuVdeviceAlloc.read(bytes).out_vdevice_id;
};

describe("DESTROY", () => {
  /** An unmap that waits for a pin, of an IOAS that no object uses any more. */
  const unmapWaits = () => {
    const ioas = ioasAlloc();
    map(ioas);
    const access = createAccess(context, { pins: true, unmap: () => {} });
    access.attach(ioas);
    const pin: AccessPin = access.pin(IOVA, 0x1000n, true);
    const call = task.start(fd, uapi.IOMMU_IOAS_UNMAP, unmapArgument(ioas));
    expect(call.settled).toBe(false);
    access.release();
    return { ioas, pin, call };
  };

  it("waits for an unmap under way, and the number is free after it", () => {
    const { ioas, pin, call } = unmapWaits();
    const destroyed = task.start(fd, uapi.IOMMU_DESTROY, destroyArgument(ioas));
    host.scheduler.run(3);
    expect([call.settled, destroyed.settled]).toEqual([false, false]);
    expect(() => map(ioas, 0n)).toThrow("ENOENT");
    expect(() => destroy(ioas)).toThrow("ENOENT");
    expect(ioasAlloc()).not.toBe(ioas);
    pin.release();
    host.scheduler.run();
    expect([call.result(), destroyed.result()]).toEqual([0, 0]);
    expect(iommufd.live()).toMatchObject({ objects: 1, areas: 0 });
    expect(ioasAlloc()).toBe(ioas);
  });

  it("is carried out even if who waits for it is interrupted, and with the file closed", () => {
    const { ioas, pin } = unmapWaits();
    const destroyed = task.start(fd, uapi.IOMMU_DESTROY, destroyArgument(ioas));
    destroyed.interrupt();
    task.close(fd);
    expect(iommufd.live()).toMatchObject({ files: 1, objects: 1 });
    pin.release();
    host.scheduler.run();
    expect(iommufd.live()).toMatchObject({ files: 0, objects: 0, areas: 0 });
  });

  it("goes on at once when the unmap it waits for is interrupted", () => {
    const { ioas, pin, call } = unmapWaits();
    const destroyed = task.start(fd, uapi.IOMMU_DESTROY, destroyArgument(ioas));
    pin.release();
    call.interrupt();
    expect(destroyed.result()).toBe(0);
    expect(iommufd.live()).toMatchObject({ objects: 0, areas: 0 });
  });

  it("is EBUSY for what others need: an IOAS with a HWPT, a nest parent with a vIOMMU, a bound device", () => {
    const ioas = ioasAlloc();
    const device = plug();
    const parent = hwptAlloc(device, ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
    expect(() => destroy(ioas)).toThrow("EBUSY");
    expect(() => destroy(device.bound.id)).toThrow("EBUSY");
    const viommu = viommuAlloc(device, parent);
    expect(() => destroy(parent)).toThrow("EBUSY");
    for (const id of [viommu, parent, ioas, device.id]) destroy(id);
    expect(iommufd.live().objects).toBe(0);
  });
});

describe("the IOAS of VFIO's requests", () => {
  it("is named no longer when it was destroyed, and another may have its number", () => {
    const ioas = ioasAlloc();
    vfioIoas(uapi.IOMMU_VFIO_IOAS_SET, ioas);
    expect(vfioIoas(uapi.IOMMU_VFIO_IOAS_GET)).toBe(ioas);
    destroy(ioas);
    expect(() => vfioIoas(uapi.IOMMU_VFIO_IOAS_GET)).toThrow("ENODEV");
    expect(ioasAlloc()).toBe(ioas);
    expect(() => vfioIoas(uapi.IOMMU_VFIO_IOAS_GET)).toThrow("ENODEV");
  });
});

describe("a HWPT that an attach made", () => {
  it("is shared by later devices, follows the IOAS, and goes with the last of them", () => {
    const ioas = ioasAlloc();
    const [one, other] = [plug(), plug()];
    const hwpt = one.bound.attach(ioas);
    expect(other.bound.attach(ioas)).toBe(hwpt);
    expect(driver.domains).toBe(1);
    expect(() => destroy(hwpt)).toThrow("EBUSY");
    map(ioas);
    expect(iommufd.live().pinnedPages).toBe(4);
    one.bound.detach();
    expect([driver.domains, iommufd.live().pinnedPages]).toEqual([1, 4]);
    other.bound.detach();
    expect([driver.domains, iommufd.live().pinnedPages]).toEqual([0, 0]);
    expect(context.objects.find(hwpt)).toBeUndefined();
    expect(iommufd.live().areas).toBe(1);
  });

  it("is replaced without a moment of nothing, by one for another IOAS with reservations moved", () => {
    const [from, to] = [ioasAlloc(), ioasAlloc()];
    const device = plug();
    const before = device.bound.attach(from);
    map(to);
    const after = device.bound.replace(to);
    expect(after).not.toBe(before);
    expect(context.objects.find(before)).toBeUndefined();
    expect(driver.attached(device.device.function).kind).toBe("paging");
    const spaces = [from, to].map((id) => context.objects.get(id, Ioas, "ioas").pagetable.space.usable);
    expect(spaces.map((ranges) => ranges.length === 1 && ranges[0]!.start)).toEqual([0n, IOVA]);
    device.bound.detach();
  });
});

describe("a vDEVICE", () => {
  it("goes with its device, and its number stays taken until the file is closed", () => {
    const ioas = ioasAlloc();
    const device = plug();
    const other = plug();
    const parent = hwptAlloc(other, ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
    const viommu = viommuAlloc(other, parent);
    const vdevice = vdeviceAlloc(viommu, device, 7n);
    expect(() => vdeviceAlloc(viommu, device, 8n)).toThrow("EEXIST");
    const freed = [device.id, device.bound.id].sort((a, b) => a - b);
    destroy(device.id);
    expect(() => destroy(vdevice)).toThrow("ENOENT");
    expect([ioasAlloc(), ioasAlloc(), ioasAlloc()]).toEqual([...freed, vdevice + 1]);
    // Its number with the guest is free again.
    expect(vdeviceAlloc(viommu, other, 7n)).toBe(vdevice + 2);
  });

  it("that was destroyed before its device leaves nothing behind", () => {
    const ioas = ioasAlloc();
    const device = plug();
    const parent = hwptAlloc(device, ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
    const viommu = viommuAlloc(device, parent);
    const vdevice = vdeviceAlloc(viommu, device, 7n);
    expect(() => destroy(viommu)).toThrow("EBUSY");
    destroy(vdevice);
    expect(vdeviceAlloc(viommu, device, 9n)).toBe(vdevice);
  });
});

describe("a closed file", () => {
  it("takes objects in any order of dependence with it, but stays while an access has it", () => {
    const ioas = ioasAlloc();
    const device = plug();
    const parent = hwptAlloc(device, ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
    vdeviceAlloc(viommuAlloc(device, parent), device, 1n);
    device.bound.attach(ioas);
    map(ioas);
    const access = createAccess(context, { pins: true, unmap: () => {} });
    access.attach(ioas);
    const pin = access.pin(IOVA, 0x1000n, true);
    task.close(fd);
    expect(iommufd.live()).toMatchObject({ files: 1, areas: 1, pinnedPages: 4 });
    pin.release();
    access.release();
    expect(iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
  });
});
