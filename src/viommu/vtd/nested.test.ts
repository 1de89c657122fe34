import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import { Protection } from "../../iommu/driver.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const RW = Protection.read | Protection.write;
const PASID = 5;

describe("a guest's VT-d unit over a host that nests", () => {
  let rig: GuestRig;
  beforeEach(() => {
    rig = new GuestRig("vtd", "nested");
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const fetched = (address: number, length: number, pasid?: number, index = 0): string => {
    const device = rig.devices[index]!;
    device.fetch(address, length, pasid);
    const result = rig.settle(device);
    return result === "done" ? Buffer.from(device.read(length)).toString() : result;
  };
  const stored = (address: number, text: string, pasid?: number, index = 0): string => {
    const device = rig.devices[index]!;
    device.write(Buffer.from(text));
    device.store(address, text.length, pasid);
    return rig.settle(device);
  };
  /** A page of the guest that begins with the text. */
  const page = (text: string): number => {
    const pa = rig.guest.allocate(1);
    rig.guest.write(pa, text);
    return pa;
  };

  it("before the guest has a driver its devices reach guest memory at its own addresses, and no more", () => {
    rig.vmm.memory.writeBytes(0x5000, Buffer.from("guest physical"));
    expect(fetched(0x5000, 14)).toBe("guest physical");
    expect(fetched(RAM_BYTES - 4, 8)).toBe("fault");
    expect(fetched(0x5000, 14, PASID)).toBe("fault");
  });

  it("the guest's table is walked by the host's unit: mapping needs no call, unmapping one", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    expect(fetched(0x5000, 4)).toBe(guest.driver.domains === 0 ? "fault" : "");
    const domain = guest.driver.allocatePaging(requester!);
    guest.driver.attach(requester!, domain);
    const pa = page("from the guest");
    rig.takeCalls();
    domain.map(IOVA, pa, PAGE, RW);
    expect(fetched(IOVA, 14)).toBe("from the guest");
    expect(stored(IOVA + 100, "and back")).toBe("done");
    expect(guest.read(pa + 100, 8)).toBe("and back");
    rig.takeCalls();
    domain.unmap(IOVA, PAGE);
    expect(rig.takeCalls()).toEqual(["IOMMU_HWPT_INVALIDATE"]);
    expect(fetched(IOVA, 14)).toBe("fault");
    guest.driver.attach(requester!, guest.driver.blocked);
    domain.free();
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it("PASIDs of the guest are PASIDs of the device, each with its own table", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const spaces = [PASID, PASID + 1].map((pasid) => {
      const domain = guest.driver.allocatePaging(requester!, { pasid: true });
      guest.driver.attach(requester!, domain, pasid);
      domain.map(IOVA, page(`pasid ${pasid}`), PAGE, RW);
      return domain;
    });
    expect(rig.takeCalls().filter((name) => name === "IOMMU_HWPT_ALLOC")).toHaveLength(3);
    expect(fetched(IOVA, 7, PASID)).toBe(`pasid ${PASID}`);
    expect(fetched(IOVA, 7, PASID + 1)).toBe(`pasid ${PASID + 1}`);
    expect(fetched(IOVA, 7, PASID + 2)).toBe("fault");
    expect(fetched(IOVA, 7)).toBe("fault");
    expect(rig.vmm.backEnd.held).toBe(2);
    guest.driver.attach(requester!, guest.driver.blocked, PASID);
    expect(fetched(IOVA, 7, PASID)).toBe("fault");
    expect(fetched(IOVA, 7, PASID + 1)).toBe(`pasid ${PASID + 1}`);
    guest.driver.attach(requester!, guest.driver.blocked, PASID + 1);
    for (const domain of spaces) {
      domain.unmap(IOVA, PAGE);
      domain.free();
    }
  });

  it("a guest page beyond guest memory is not reached, wherever it would lie on the host", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const domain = guest.driver.allocatePaging(requester!);
    guest.driver.attach(requester!, domain);
    domain.map(IOVA, RAM_BYTES, PAGE, RW);
    expect(fetched(IOVA, 4)).toBe("fault");
    domain.unmap(IOVA, PAGE);
    guest.driver.attach(requester!, guest.driver.blocked);
    domain.free();
  });

  it("§7.4 a page that a process does not have yet is asked for, brought in by the guest, and reached", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const process = guest.start("process", requester!);
    const pasid = guest.bind(requester!, process);
    process.reserve(0x5555_0000_0000, 4);
    process.reserve(0x6666_0000_0000, 1, false);
    process.write(0x5555_0000_0000, "here already");
    rig.takeCalls();
    expect(stored(0x5555_0000_1ffc, "two pages", pasid)).toBe("done");
    expect(process.read(0x5555_0000_1ffc, 9)).toBe("two pages");
    expect(guest.answered).toEqual({ success: 2, invalid: 0 });
    expect(process.faults).toBe(3);
    expect(fetched(0x6666_0000_0000, 4, pasid)).toBe("\0\0\0\0");
    expect(stored(0x6666_0000_0000, "read only", pasid)).toBe("fault");
    expect(stored(0x7777_0000_0000, "nobody's", pasid)).toBe("fault");
    expect(guest.answered).toEqual({ success: 3, invalid: 2 });
    process.release(0x5555_0000_0000, 4);
    expect(fetched(0x5555_0000_0000, 4, pasid)).toBe("fault");
    guest.unbind(requester!, process);
    process.exit();
  });
});
