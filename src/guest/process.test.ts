import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GuestRig } from "../../test/support/guest-rig.ts";
import type { GuestProcess } from "./process.ts";

const VA = 0x5555_0000_0000;
const PAGE = 4096;

describe("a process of a modelled guest", () => {
  let rig: GuestRig;
  let process: GuestProcess;
  let atRest: number;
  beforeEach(() => {
    rig = new GuestRig("vtd", "nested");
    const { guest } = rig;
    atRest = guest.memory.allocated;
    process = guest.start("process", rig.vmm.devices[0]!);
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  it("has pages where it touches its areas, and is stopped elsewhere", () => {
    process.reserve(VA, 4);
    process.write(VA + PAGE - 3, "across");
    expect(process.read(VA + PAGE - 3, 6)).toBe("across");
    expect([process.resident, process.faults]).toEqual([2, 2]);
    expect(() => process.write(VA + 4 * PAGE - 1, "beyond")).toThrow("segmentation fault at 0x555500004000");
    expect(() => process.read(0, 1)).toThrow(RangeError);
  });

  it("reads what it may not write", () => {
    process.reserve(VA, 1, false);
    expect(process.read(VA, 2)).toBe("\0\0");
    expect(() => process.write(VA, "x")).toThrow("segmentation fault");
    expect(process.physical(VA)).toBeGreaterThan(0);
    expect(process.physical(VA, true)).toBe(-1);
  });

  it("gives its pages, its tables and its PASID back when it ends", () => {
    const [device] = rig.vmm.devices;
    const pasid = rig.guest.bind(device!, process);
    process.reserve(VA, 4);
    for (let page = 0; page < 4; page++) process.write(VA + page * PAGE, "x");
    rig.guest.unbind(device!, process);
    process.exit();
    expect(rig.guest.memory.allocated).toBe(atRest);
    const next = rig.guest.start("next", device!);
    expect(rig.guest.bind(device!, next)).toBe(pasid);
    rig.guest.unbind(device!, next);
    next.exit();
  });
});
