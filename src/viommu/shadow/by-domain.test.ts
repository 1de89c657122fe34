import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS, GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import { Protection } from "../../iommu/driver.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const RW = Protection.read | Protection.write;
const [DEVICE, OTHER] = GUEST_RIDS.map((rid) => ({ rid, name: `guest device ${rid}` })) as [
  { rid: number; name: string },
  { rid: number; name: string },
];

describe("a guest's VT-d unit over a host without nesting", () => {
  let rig: GuestRig;
  beforeEach(() => {
    rig = new GuestRig();
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  /** What the device has read at the address, or how it failed. */
  const fetched = (address: number, length: number, index = 0): string => {
    const device = rig.devices[index]!;
    device.fetch(address, length);
    const result = rig.settle(device);
    return result === "done" ? Buffer.from(device.read(length)).toString() : result;
  };
  const stored = (address: number, text: string, index = 0): string => {
    const device = rig.devices[index]!;
    device.write(Buffer.from(text));
    device.store(address, text.length);
    return rig.settle(device);
  };

  it("before the guest has a driver its devices reach guest memory at its own addresses, and no more", () => {
    rig.vmm.memory.writeBytes(0x5000, Buffer.from("guest physical"));
    expect(fetched(0x5000, 14)).toBe("guest physical");
    expect(fetched(RAM_BYTES - 4, 8)).toBe("fault");
  });

  it("a device of a guest with translation on reaches nothing until the guest gives it a domain", () => {
    expect(rig.guest.driver.domains).toBe(0);
    expect(fetched(0x5000, 4)).toBe("fault");
  });

  it("pages that the guest maps are reached at once, and not when it has unmapped them", () => {
    const { guest } = rig;
    const domain = guest.driver.allocatePaging(DEVICE);
    guest.driver.attach(DEVICE, domain);
    const page = guest.allocate(1);
    guest.write(page, "from the guest");
    expect(fetched(IOVA, 14)).toBe("fault");
    domain.map(IOVA, page, PAGE, RW);
    expect(fetched(IOVA, 14)).toBe("from the guest");
    expect(stored(IOVA + 100, "and back")).toBe("done");
    expect(guest.read(page + 100, 8)).toBe("and back");
    expect(fetched(IOVA, 14, 1)).toBe("fault");
    domain.unmap(IOVA, PAGE);
    expect(fetched(IOVA, 14)).toBe("fault");
    guest.driver.attach(DEVICE, guest.driver.blocked);
    domain.free();
  });

  it("what the guest's entry forbids is forbidden; a large leaf is one mapping", () => {
    const { guest } = rig;
    const domain = guest.driver.allocatePaging(DEVICE);
    guest.driver.attach(DEVICE, domain);
    const large = guest.allocate(512);
    rig.takeCalls();
    domain.map(0x4000_0000, large, 512 * PAGE, Protection.read);
    expect(rig.takeCalls()).toEqual(["IOMMU_IOAS_MAP"]);
    expect(fetched(0x4000_0000 + 511 * PAGE, 4)).toBe("\0\0\0\0");
    expect(stored(0x4000_0000, "no")).toBe("fault");
    domain.unmap(0x4000_0000, 512 * PAGE);
    expect(rig.takeCalls()).toEqual(["IOMMU_IOAS_UNMAP"]);
    guest.driver.attach(DEVICE, guest.driver.blocked);
    domain.free();
  });

  it("devices of one guest domain share a copy; the last that leaves it takes it away", () => {
    const { guest } = rig;
    const domain = guest.driver.allocatePaging(DEVICE);
    const page = guest.allocate(1);
    guest.write(page, "shared");
    domain.map(IOVA, page, PAGE, RW);
    guest.driver.attach(DEVICE, domain);
    guest.driver.attach(OTHER, domain);
    expect(fetched(IOVA, 6)).toBe("shared");
    expect(fetched(IOVA, 6, 1)).toBe("shared");
    expect(rig.vmm.backEnd.held).toBe(1);
    guest.driver.attach(DEVICE, guest.driver.identity);
    expect(fetched(IOVA, 6)).toBe("fault");
    expect(fetched(page, 6)).toBe("shared");
    expect(fetched(IOVA, 6, 1)).toBe("shared");
    guest.driver.attach(OTHER, guest.driver.blocked);
    expect(rig.vmm.backEnd.held).toBe(0);
    domain.unmap(IOVA, PAGE);
    domain.free();
  });

  it("a guest page beyond guest memory is not reached, wherever it would lie on the host", () => {
    const { guest } = rig;
    const domain = guest.driver.allocatePaging(DEVICE);
    guest.driver.attach(DEVICE, domain);
    domain.map(IOVA, RAM_BYTES, PAGE, RW);
    expect(fetched(IOVA, 4)).toBe("fault");
    domain.unmap(IOVA, PAGE);
    guest.driver.attach(DEVICE, guest.driver.blocked);
    domain.free();
  });

  it("a table that is its own table is refused, in bounded time, and leaves nothing", () => {
    const { guest } = rig;
    const domain = guest.driver.allocatePaging(DEVICE);
    for (let at = 0; at < PAGE; at += 8) rig.vmm.memory.store64(domain.root + at, domain.root + RW, 0);
    rig.takeCalls();
    expect(() => guest.driver.attach(DEVICE, domain)).toThrow("EIO");
    expect(rig.takeCalls().filter((name) => name === "IOMMU_IOAS_MAP")).toEqual([]);
    expect(rig.vmm.backEnd.held).toBe(0);
    expect(fetched(IOVA, 4)).toBe("fault");
  });
});
