/** Life cycles of objects, on mock devices: numbers, who keeps what, and what goes with what. */
import { beforeEach, describe, expect, it } from "vitest";
import { APERTURE as IOVA, MockClient } from "../../test/support/mock-client.ts";
import * as uapi from "../uapi/iommufd.ts";
import { type AccessPin, createAccess } from "./access.ts";
import { Ioas } from "./ioas.ts";

const NEST_PARENT = { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT };

let client: MockClient;

beforeEach(() => {
  client = new MockClient();
  return () => client.close();
});

const unmapArgument = (ioas: number) =>
  uapi.IommuIoasUnmap.bytes({ size: uapi.IommuIoasUnmap.size, ioas_id: ioas, iova: IOVA, length: 0x4000n });
const destroyArgument = (id: number) => uapi.IommuDestroy.bytes({ size: uapi.IommuDestroy.size, id });
const vfioIoas = (op: number, ioas = 0): number =>
  client.call(uapi.IOMMU_VFIO_IOAS, uapi.IommuVfioIoas, { ioas_id: ioas, op }).ioas_id;

describe("DESTROY", () => {
  /** An unmap that waits for a pin, of an IOAS that no object uses any more. */
  const unmapWaits = () => {
    const ioas = client.ioas();
    client.map(ioas, Number(IOVA), 4);
    const access = createAccess(client.context, { pins: true, unmap: () => {} });
    access.attach(ioas);
    const pin: AccessPin = access.pin(IOVA, 0x1000n, true);
    const call = client.task.start(client.fd, uapi.IOMMU_IOAS_UNMAP, unmapArgument(ioas));
    expect(call.settled).toBe(false);
    access.release();
    return { ioas, pin, call };
  };

  it("waits for an unmap under way, and the number is free after it", () => {
    const { ioas, pin, call } = unmapWaits();
    const destroyed = client.task.start(client.fd, uapi.IOMMU_DESTROY, destroyArgument(ioas));
    client.host.scheduler.run(3);
    expect([call.settled, destroyed.settled]).toEqual([false, false]);
    expect(() => client.map(ioas, 0, 4)).toThrow("ENOENT");
    expect(() => client.destroy(ioas)).toThrow("ENOENT");
    expect(client.ioas()).not.toBe(ioas);
    pin.release();
    client.host.scheduler.run();
    expect([call.result(), destroyed.result()]).toEqual([0, 0]);
    expect(client.iommufd.live()).toMatchObject({ objects: 1, areas: 0 });
    expect(client.ioas()).toBe(ioas);
  });

  it("is carried out even if who waits for it is interrupted, and with the file closed", () => {
    const { ioas, pin } = unmapWaits();
    const destroyed = client.task.start(client.fd, uapi.IOMMU_DESTROY, destroyArgument(ioas));
    destroyed.interrupt();
    client.task.close(client.fd);
    expect(client.iommufd.live()).toMatchObject({ files: 1, objects: 1 });
    pin.release();
    client.host.scheduler.run();
    expect(client.iommufd.live()).toMatchObject({ files: 0, objects: 0, areas: 0 });
  });

  it("goes on at once when the unmap it waits for is interrupted", () => {
    const { ioas, pin, call } = unmapWaits();
    const destroyed = client.task.start(client.fd, uapi.IOMMU_DESTROY, destroyArgument(ioas));
    pin.release();
    call.interrupt();
    expect(destroyed.result()).toBe(0);
    expect(client.iommufd.live()).toMatchObject({ objects: 0, areas: 0 });
  });

  it("is EBUSY for what others need: an IOAS with a HWPT, a nest parent with a vIOMMU, a bound device", () => {
    const ioas = client.ioas();
    const device = client.plug();
    const parent = client.hwpt(device.bound.id, ioas, NEST_PARENT);
    expect(() => client.destroy(ioas)).toThrow("EBUSY");
    expect(() => client.destroy(device.bound.id)).toThrow("EBUSY");
    const viommu = client.viommu(device.bound.id, parent);
    expect(() => client.destroy(parent)).toThrow("EBUSY");
    for (const id of [viommu, parent, ioas, device.id]) client.destroy(id);
    expect(client.iommufd.live().objects).toBe(0);
  });
});

describe("the IOAS of VFIO's requests", () => {
  it("is named no longer when it was destroyed, and another may have its number", () => {
    const ioas = client.ioas();
    vfioIoas(uapi.IOMMU_VFIO_IOAS_SET, ioas);
    expect(vfioIoas(uapi.IOMMU_VFIO_IOAS_GET)).toBe(ioas);
    client.destroy(ioas);
    expect(() => vfioIoas(uapi.IOMMU_VFIO_IOAS_GET)).toThrow("ENODEV");
    expect(client.ioas()).toBe(ioas);
    expect(() => vfioIoas(uapi.IOMMU_VFIO_IOAS_GET)).toThrow("ENODEV");
  });
});

describe("a HWPT that an attach made", () => {
  it("is shared by later devices, follows the IOAS, and goes with the last of them", () => {
    const ioas = client.ioas();
    const [one, other] = [client.plug(), client.plug()];
    const hwpt = one.bound.attach(ioas);
    expect(other.bound.attach(ioas)).toBe(hwpt);
    expect(client.driver.domains).toBe(1);
    expect(() => client.destroy(hwpt)).toThrow("EBUSY");
    client.map(ioas, Number(IOVA), 4);
    expect(client.iommufd.live().pinnedPages).toBe(4);
    one.bound.detach();
    expect([client.driver.domains, client.iommufd.live().pinnedPages]).toEqual([1, 4]);
    other.bound.detach();
    expect([client.driver.domains, client.iommufd.live().pinnedPages]).toEqual([0, 0]);
    expect(client.context.objects.find(hwpt)).toBeUndefined();
    expect(client.iommufd.live().areas).toBe(1);
  });

  it("is replaced without a moment of nothing, by one for another IOAS with reservations moved", () => {
    const [from, to] = [client.ioas(), client.ioas()];
    const device = client.plug();
    const before = device.bound.attach(from);
    client.map(to, Number(IOVA), 4);
    const after = device.bound.replace(to);
    expect(after).not.toBe(before);
    expect(client.context.objects.find(before)).toBeUndefined();
    expect(client.driver.attached(device.device.function).kind).toBe("paging");
    const spaces = [from, to].map(
      (id) => client.context.objects.get(id, Ioas, "ioas").pagetable.space.usable,
    );
    expect(spaces.map((ranges) => ranges.length === 1 && ranges[0]!.start)).toEqual([0n, IOVA]);
    device.bound.detach();
  });
});

describe("a vDEVICE", () => {
  it("goes with its device, and its number stays taken until the file is closed", () => {
    const ioas = client.ioas();
    const device = client.plug();
    const other = client.plug();
    const parent = client.hwpt(other.bound.id, ioas, NEST_PARENT);
    const viommu = client.viommu(other.bound.id, parent);
    const vdevice = client.vdevice(viommu, device.bound.id, 7);
    expect(() => client.vdevice(viommu, device.bound.id, 8)).toThrow("EEXIST");
    const freed = [device.id, device.bound.id].sort((a, b) => a - b);
    client.destroy(device.id);
    expect(() => client.destroy(vdevice)).toThrow("ENOENT");
    expect([client.ioas(), client.ioas(), client.ioas()]).toEqual([...freed, vdevice + 1]);
    // Its number with the guest is free again.
    expect(client.vdevice(viommu, other.bound.id, 7)).toBe(vdevice + 2);
  });

  it("that was destroyed before its device leaves nothing behind", () => {
    const ioas = client.ioas();
    const device = client.plug();
    const parent = client.hwpt(device.bound.id, ioas, NEST_PARENT);
    const viommu = client.viommu(device.bound.id, parent);
    const vdevice = client.vdevice(viommu, device.bound.id, 7);
    expect(() => client.destroy(viommu)).toThrow("EBUSY");
    client.destroy(vdevice);
    expect(client.vdevice(viommu, device.bound.id, 9)).toBe(vdevice);
  });
});

describe("a closed file", () => {
  it("takes objects in any order of dependence with it, but stays while an access has it", () => {
    const ioas = client.ioas();
    const device = client.plug();
    const parent = client.hwpt(device.bound.id, ioas, NEST_PARENT);
    client.vdevice(client.viommu(device.bound.id, parent), device.bound.id, 1);
    device.bound.attach(ioas);
    client.map(ioas, Number(IOVA), 4);
    const access = createAccess(client.context, { pins: true, unmap: () => {} });
    access.attach(ioas);
    const pin = access.pin(IOVA, 0x1000n, true);
    client.task.close(client.fd);
    expect(client.iommufd.live()).toMatchObject({ files: 1, areas: 1, pinnedPages: 4 });
    pin.release();
    access.release();
    expect(client.iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
  });
});
