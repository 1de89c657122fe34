/** A guest's driver of a virtio-iommu: what drivers of IOMMUs promise, by requests. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import { silent } from "../../base/events.ts";
import { Protection } from "../../iommu/driver.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { VirtioIommu } from "../../viommu/virtio/front-end.ts";
import { VirtioIommuDriver } from "./driver.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const RW = Protection.read | Protection.write;

let rig: GuestRig;
beforeEach(() => {
  rig = new GuestRig("vtd-legacy", "shadow", { shows: "virtio" });
});
afterEach(() => {
  expect(rig.close()).toEqual({});
});
const fetched = (address: number): string => {
  const [device] = rig.devices;
  device!.fetch(address, 4);
  const result = rig.settle(device!);
  return result === "done" ? Buffer.from(device!.read(4)).toString() : result;
};
const page = (text: string): number => {
  const pa = rig.guest.allocate(1);
  rig.guest.write(pa, text);
  return pa;
};

describe("a domain of the guest", () => {
  it("keeps what is in it while no device has it", () => {
    const { driver } = rig.guest;
    const [one] = rig.vmm.devices;
    const domain = driver.allocatePaging(one!);
    const pa = page("kept");
    domain.map(IOVA, pa, PAGE, RW);
    expect([rig.vmm.backEnd.held, domain.physical(IOVA + 8), domain.physical(IOVA + PAGE)]).toEqual([
      0,
      pa + 8,
      -1,
    ]);
    for (let times = 0; times < 2; times++) {
      driver.attach(one!, domain);
      expect([fetched(IOVA), rig.vmm.backEnd.held]).toEqual(["kept", 1]);
      driver.attach(one!, driver.blocked);
      expect([fetched(IOVA), rig.vmm.backEnd.held]).toEqual(["fault", 0]);
    }
    expect(domain.unmap(IOVA, PAGE)).toBe(PAGE);
    expect(domain.unmap(IOVA, PAGE)).toBe(0);
    domain.free();
    expect(driver.domains).toBe(0);
  });

  it("gives whole mappings back, and keeps one that reaches beyond what is unmapped", () => {
    const { driver } = rig.guest;
    const [one] = rig.vmm.devices;
    const domain = driver.allocatePaging(one!);
    driver.attach(one!, domain);
    for (const pages of [0, 1, 4]) domain.map(IOVA + pages * PAGE, page("page"), PAGE, RW);
    domain.map(IOVA + 2 * PAGE, 0x10_0000, 2 * PAGE, RW);
    expect(domain.unmap(IOVA + PAGE, 2 * PAGE)).toBe(PAGE);
    expect(rig.vmm.backEnd.held).toBe(3);
    expect(domain.unmap(IOVA, 8 * PAGE)).toBe(4 * PAGE);
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it("whose content the device refuses is not attached; what the device had, it has", () => {
    const { driver } = rig.guest;
    const [one] = rig.vmm.devices;
    const [good, bad] = [driver.allocatePaging(one!), driver.allocatePaging(one!)];
    good.map(IOVA, page("good"), PAGE, RW);
    bad.map(IOVA, RAM_BYTES, PAGE, RW);
    expect(codeOf(() => driver.attach(one!, bad))).toBe("ERANGE");
    driver.attach(one!, good);
    expect(codeOf(() => driver.attach(one!, bad))).toBe("ERANGE");
    expect(fetched(IOVA)).toBe("good");
    expect(codeOf(() => good.map(IOVA, page("two"), PAGE, RW))).toBe("EEXIST");
    expect(codeOf(() => good.free())).toBe("EBUSY");
    bad.free();
  });
});

describe("the driver", () => {
  it("knows which addresses are reserved, and has no PASIDs, tables of guests or dirty tracking", () => {
    const { driver } = rig.guest;
    const [one] = rig.vmm.devices;
    expect(driver.reserved(one!)).toContainEqual({ start: 0xfee0_0000, length: 0x10_0000, kind: "msi" });
    for (const option of [{ pasid: true }, { dirtyTracking: true }, { nestParent: true }, { faults: true }])
      expect(codeOf(() => driver.allocatePaging(one!, option))).toBe("EOPNOTSUPP");
    expect(codeOf(() => driver.attach(one!, driver.identity, 1))).toBe("EINVAL");
    expect(codeOf(() => driver.attach({ name: "nobody", rid: 0x99 }, driver.identity))).toBe("ENODEV");
  });

  it("leaves devices as it has found them when it ends, and what it had is free", () => {
    const { guest, vmm } = rig;
    const [one] = vmm.devices;
    const text = page("page");
    const domain = guest.driver.allocatePaging(one!);
    guest.driver.attach(one!, domain);
    expect(fetched(text)).toBe("fault");
    guest.driver.attach(one!, guest.driver.blocked);
    domain.free();
    const before = vmm.memory.allocated;
    guest.driver.close();
    expect(fetched(text)).toBe("page");
    expect(vmm.memory.allocated).toBe(before - 4);
  });

  it("refuses a device whose pages are larger than the guest's, and what is no virtio-iommu", () => {
    const memory = new SparseMemory([{ start: 0x1000, end: 0x10_0000 }]);
    const iommu = new VirtioIommu({
      ...{ name: "virtio", memory, events: silent, interrupt: () => {} },
      ...{ pageSizes: ~0xffffn & (2n ** 64n - 1n), input: { start: 0, end: 2 ** 40 }, reservedRanges: 1 },
    });
    expect(codeOf(() => new VirtioIommuDriver("driver", iommu, memory))).toBe("EINVAL");
    const nothing = { mmioRead: () => 0n, mmioWrite: () => {} };
    expect(codeOf(() => new VirtioIommuDriver("driver", nothing, memory))).toBe("ENODEV");
  });
});
