import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS } from "../../../test/support/guest-rig.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { describeNested, NestedRig } from "../nested.suite.ts";
import { VtdFrontEnd } from "./front-end.ts";
import { NestedBackEnd } from "./nested.ts";

const PAGE = 4096;

describeNested("VT-d unit", { preset: "vtd", allocates: "allocateNested", heldOfTwo: 2 });

describe("a guest's VT-d unit over a host that nests: what other units have not", () => {
  let rig: NestedRig;
  beforeEach(() => {
    rig = new NestedRig({ preset: "vtd" });
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  it("§7.4 a function asks for all pages that an access needs in one group, which the guest answers at once", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const process = guest.start("process", requester!);
    const pasid = guest.bind(requester!, process);
    process.reserve(0x5555_0000_0000, 4);
    expect(rig.stored(0x5555_0000_1ffc, "two pages", pasid)).toBe("done");
    expect(process.faults).toBe(2);
    expect(guest.answered).toEqual({ success: 1, invalid: 0 });
    guest.unbind(requester!, process);
    process.exit();
  });

  it("an invalidation goes to every page table that has its PASID", () => {
    const { guest } = rig;
    const process = guest.start("process", rig.vmm.devices[0]!);
    for (const device of rig.vmm.devices) guest.bind(device, process);
    process.reserve(0x5555_0000_0000, 1);
    process.write(0x5555_0000_0000, "shared");
    rig.takeCalls();
    process.release(0x5555_0000_0000, 1);
    expect(rig.takeCalls()).toEqual(["IOMMU_HWPT_INVALIDATE", "IOMMU_HWPT_INVALIDATE"]);
    for (const device of rig.vmm.devices) guest.unbind(device, process);
    process.exit();
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
