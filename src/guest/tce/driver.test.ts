/** A POWER guest's driver through a VMM on a POWER host: what devices reach, and what the hypervisor refuses. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { GuestRig } from "../../../test/support/guest-rig.ts";
import { Protection } from "../../iommu/driver.ts";
import type { TceGuestDriver } from "./driver.ts";

const PAGE = 4096;
const RW = Protection.read | Protection.write;
const IOVA = 0x4000_0000;

describe("a guest's domains of windows", () => {
  let rig: GuestRig;
  let driver: TceGuestDriver;
  beforeEach(() => {
    rig = new GuestRig("power", "shadow", { shows: "tce-fixed" });
    driver = rig.guest.driver as TceGuestDriver;
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const held = () => rig.vmm.backEnd.held;

  it("are kept while no function has them, and put when one comes", () => {
    const [device] = rig.vmm.devices;
    const domain = driver.allocatePaging(device!);
    const buffer = rig.guest.allocate(16);
    domain.map(IOVA, buffer, 9 * PAGE, RW);
    domain.map(IOVA + 16 * PAGE, buffer, PAGE, Protection.read);
    expect(held()).toBe(0);
    driver.attach(device!, domain);
    expect(held()).toBe(10);
    expect(domain.physical(IOVA + PAGE + 5)).toBe(buffer + PAGE + 5);
    expect(domain.physical(IOVA - 1)).toBe(-1);
    expect(domain.unmap(IOVA, 16 * PAGE)).toBe(9 * PAGE);
    expect(held()).toBe(1);
    expect(codeOf(() => domain.free())).toBe("EBUSY");
    driver.attach(device!, driver.blocked);
    expect(held()).toBe(0);
    domain.free();
    expect(driver.domains).toBe(0);
  });

  it("refuse what no window has, what is no page of it, and memory that is not the guest's", () => {
    const [device] = rig.vmm.devices;
    const domain = driver.allocatePaging(device!);
    driver.attach(device!, domain);
    expect(codeOf(() => domain.map(2 ** 40, 0x5000, PAGE, RW))).toBe("EFAULT");
    expect(codeOf(() => domain.map(IOVA, 0x5800, PAGE, RW))).toBe("EINVAL");
    expect(codeOf(() => domain.map(IOVA, 0x5000, PAGE, 0))).toBe("EINVAL");
    domain.map(IOVA, 0x5000, PAGE, RW);
    expect(codeOf(() => domain.map(IOVA, 0x6000, PAGE, RW))).toBe("EEXIST");
    const beyond = rig.vmm.ram.bytes - 2 * PAGE;
    expect(codeOf(() => domain.map(IOVA + PAGE, beyond, 4 * PAGE, RW))).toBe("EINVAL");
    expect(held()).toBe(1);
    driver.attach(device!, driver.blocked);
    domain.free();
  });

  it("a function that cannot have one has what it had", () => {
    const [device] = rig.vmm.devices;
    const [good, bad] = [driver.allocatePaging(device!), driver.allocatePaging(device!)];
    good.map(IOVA, 0x5000, 2 * PAGE, RW);
    bad.map(IOVA, 0x7000, PAGE, RW);
    bad.map(IOVA + PAGE, rig.vmm.ram.bytes, PAGE, RW);
    driver.attach(device!, good);
    expect(codeOf(() => driver.attach(device!, bad))).toBe("EINVAL");
    expect(held()).toBe(2);
    expect(codeOf(() => driver.attach(device!, driver.identity))).toBe("EINVAL");
    expect(codeOf(() => driver.attach(device!, good, 1))).toBe("EINVAL");
    expect(codeOf(() => driver.attach({ name: "stranger", rid: 0x77 }, good))).toBe("ENODEV");
    expect(codeOf(() => driver.probe({ name: "stranger", rid: 0x77 }))).toBe("ENODEV");
    expect(codeOf(() => driver.close())).toBe("EBUSY");
    driver.release(device!);
    driver.release(device!);
    good.free();
    bad.free();
    driver.close();
  });

  it("have a second window for as long as the guest wants it", () => {
    const [device] = rig.vmm.devices;
    const domain = driver.allocatePaging(device!);
    driver.attach(device!, domain);
    const window = driver.createWindow(device!, 16, 30);
    expect(window).toMatchObject({ start: 2 ** 59, length: 2 ** 30, pageLg2: 16 });
    expect(codeOf(() => driver.createWindow(device!, 16, 30))).toBe("ENOSPC");
    expect(domain.apertures.map(({ start }) => start)).toEqual([0, 2 ** 59]);
    expect(domain.pageSizes).toBe(0x1_1000n);
    const buffer = rig.guest.allocate(32);
    domain.map(window.start, buffer, 32 * PAGE, RW);
    expect(held()).toBe(2);
    expect(codeOf(() => domain.map(window.start + 2 ** 20, buffer, PAGE, RW))).toBe("EINVAL");
    driver.removeWindow(device!, window);
    expect(held()).toBe(0);
    expect(codeOf(() => driver.removeWindow(device!, window))).toBe("EINVAL");
    expect(domain.unmap(window.start, 32 * PAGE)).toBe(32 * PAGE);
    driver.attach(device!, driver.blocked);
    domain.free();
  });
});

describe("a VMM with windows where POWER has them", () => {
  it("has no guest on a host that lacks the addresses", () => {
    expect(() => new GuestRig("vtd", "shadow", { shows: "tce-fixed" })).toThrow(
      /EOPNOTSUPP: the host has no aperture for the guest's window of 60-bit addresses, 0x800000000000000-/,
    );
  });
});
