import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS, GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import { Protection } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { VtdFrontEnd } from "./front-end.ts";
import { NestedBackEnd } from "./nested.ts";

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
    // One group: the function asks for all that the access needs.
    expect(guest.answered).toEqual({ success: 1, invalid: 0 });
    expect(process.faults).toBe(3);
    expect(fetched(0x6666_0000_0000, 4, pasid)).toBe("\0\0\0\0");
    expect(stored(0x6666_0000_0000, "read only", pasid)).toBe("fault");
    expect(stored(0x7777_0000_0000, "nobody's", pasid)).toBe("fault");
    expect(guest.answered).toEqual({ success: 2, invalid: 2 });
    process.release(0x5555_0000_0000, 4);
    expect(fetched(0x5555_0000_0000, 4, pasid)).toBe("fault");
    guest.unbind(requester!, process);
    process.exit();
  });

  it("devices that share a process share its table; what it gives up is gone for each of them", () => {
    const { guest } = rig;
    const [one, other] = rig.vmm.devices;
    const process = guest.start("process", one!);
    const pasid = guest.bind(one!, process);
    expect(guest.bind(other!, process)).toBe(pasid);
    process.reserve(0x5555_0000_0000, 1);
    process.write(0x5555_0000_0000, "shared");
    for (const index of [0, 1]) expect(fetched(0x5555_0000_0000, 6, pasid, index)).toBe("shared");
    expect(rig.vmm.backEnd.held).toBe(2);
    rig.takeCalls();
    process.release(0x5555_0000_0000, 1);
    expect(rig.takeCalls()).toEqual(["IOMMU_HWPT_INVALIDATE", "IOMMU_HWPT_INVALIDATE"]);
    for (const index of [0, 1]) expect(fetched(0x5555_0000_0000, 6, pasid, index)).toBe("fault");
    guest.unbind(one!, process);
    expect(fetched(0x5555_0000_0000, 6, pasid)).toBe("fault");
    guest.unbind(other!, process);
    process.exit();
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it("an invalidation that the host refuses is told as the guest's request that it was", () => {
    const { guest, vmm } = rig;
    const [requester] = vmm.devices;
    const processes = ["a", "b"].map((name) => guest.start(name, requester!));
    const [first, second] = processes.map((process) => guest.bind(requester!, process)) as [number, number];
    const asked: number[] = [];
    const { invalidate } = vmm.calls;
    const about = (pasid: number | undefined) => ({
      domain: undefined,
      pasid,
      range: { start: 0x1000, length: PAGE },
      leavesOnly: true,
    });
    const tables: number[] = [];
    vmm.calls.invalidate = (hwpt, ranges) => {
      if (!tables.includes(hwpt)) tables.push(hwpt);
      asked.push(ranges.length);
      return tables.indexOf(hwpt) === 1
        ? { done: 0, error: new LinuxError("EIO", "on purpose") }
        : { done: ranges.length };
    };
    const { backEnd } = vmm;
    if (!(backEnd instanceof NestedBackEnd)) throw new TypeError("the rig has another back end");
    const outcome = backEnd.forget([about(first), about(second), about(first), about(second)]);
    expect(outcome).toEqual({ done: 1, error: expect.objectContaining({ code: "EIO" }) });
    expect(asked).toEqual([2, 2]);
    vmm.calls.invalidate = invalidate.bind(vmm.calls);
    rig.takeCalls();
    expect(backEnd.forget([about(undefined)])).toEqual({ done: 1, error: undefined });
    expect(rig.takeCalls()).toHaveLength(2);
    for (const process of processes) {
      guest.unbind(requester!, process);
      process.exit();
    }
  });

  it("a PASID table entry that names a table the host refuses stops the guest's queue, and nothing is attached", () => {
    const { guest, vmm } = rig;
    const [requester] = vmm.devices;
    const process = guest.start("process", requester!);
    const { allocateNested } = vmm.calls;
    vmm.calls.allocateNested = () => {
      throw new LinuxError("ENOMEM", "on purpose");
    };
    expect(() => guest.bind(requester!, process)).toThrow("EIO");
    expect(vmm.backEnd.held).toBe(0);
    vmm.calls.allocateNested = allocateNested.bind(vmm.calls);
    expect(fetched(0x5555_0000_0000, 4, 1)).toBe("fault");
  });

  it("PASID tables that all are one, and full, are refused: a guest has a bounded number of PASIDs", () => {
    const { guest, vmm } = rig;
    const directory = guest.allocate(32);
    const table = guest.allocate(1);
    // Every directory entry names the table, every entry of which is present.
    for (let at = 0; at < 32 * PAGE; at += 8) vmm.memory.store64(directory + at, table + 1, 0);
    for (let at = 0; at < PAGE; at += 64) vmm.memory.store64(table + at, 1, 0);
    const root = guest.allocate(1);
    const context = guest.allocate(1);
    vmm.memory.store64(root, context + 1, 0);
    vmm.memory.store64(context + GUEST_RIDS[0] * 32, directory + (7 << 9) + 9, 0);
    const { iommu } = vmm;
    if (!(iommu instanceof VtdFrontEnd)) throw new TypeError("the rig has another unit");
    expect(() => iommu.tables.pasidsOf({ table: root, mode: 1 }, GUEST_RIDS[0])).toThrow("ENOSPC");
  });
});
