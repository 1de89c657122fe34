/** A guest with one SMMUv3 whose devices are behind two units of the host. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS, GuestRig } from "../../../test/support/guest-rig.ts";
import { AtcCommand, Opcode, StreamCommand, TlbiCommand } from "../../hardware/smmuv3/queue-spec.ts";
import { Protection } from "../../iommu/driver.ts";
import { IOMMU_HWPT_ALLOC_NEST_PARENT, IommuHwptAlloc, IommuHwptInvalidate } from "../../uapi/iommufd.ts";
import { NestedCommands } from "../nested-commands.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const VA = 0x5555_0000_0000;
const RW = Protection.read | Protection.write;
const FIRST = "smmu3.0x0000000009050000";
const SECOND = "smmu3.0x0000000009070000";

/** The preset, with a second unit like the first one. */
const twoUnits = (text: string): string => {
  const unit = text.slice(text.indexOf("  - model: smmuv3"), text.indexOf("devices:"));
  const second = unit
    .replace(/ {4}can-stall:.*\n/, "")
    .replace("model: smmuv3\n", `model: smmuv3\n    name: ${SECOND}\n`);
  return text.replace("devices:", `${second}devices:`);
};

describe("a guest's SMMUv3 over two units of a host that nests", () => {
  let rig: GuestRig;
  beforeEach(() => {
    rig = new GuestRig("smmuv3", "nested", { edit: twoUnits, units: [FIRST, SECOND] });
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const backEnd = (): NestedCommands => {
    const { backEnd: found } = rig.vmm;
    if (!(found instanceof NestedCommands)) throw new Error("the host nests");
    return found;
  };
  const fetched = (which: number, address: number, length: number, pasid?: number): string => {
    const device = rig.devices[which]!;
    device.fetch(address, length, pasid);
    const result = rig.settle(device);
    return result === "done" ? Buffer.from(device.read(length)).toString() : result;
  };
  /** vIOMMUs that commands went to since the last time. */
  const commanded = (): number[] =>
    rig.calls
      .splice(0)
      .filter(({ name }) => name === "IOMMU_HWPT_INVALIDATE")
      .map(({ given }) => IommuHwptInvalidate.read(given).hwpt_id);

  it("has a nest parent for each of them, of one address space, and a vIOMMU above it", () => {
    const parents = rig.calls
      .filter(({ name }) => name === "IOMMU_HWPT_ALLOC")
      .map(({ given }) => IommuHwptAlloc.read(given))
      .filter(({ flags }) => (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0);
    expect(parents).toHaveLength(2);
    expect(new Set(parents.map(({ pt_id }) => pt_id)).size).toBe(1);
    expect(new Set(parents.map(({ dev_id }) => dev_id)).size).toBe(2);
    expect(new Set(backEnd().viommus).size).toBe(2);
    expect([...rig.machine.units.keys()]).toEqual([FIRST, SECOND]);
  });

  it("shares a table of the guest between devices; what is unmapped goes from both units", () => {
    const { guest } = rig;
    const [first, second] = rig.vmm.devices;
    const domain = guest.driver.allocatePaging(first!);
    for (const device of [first!, second!]) guest.driver.attach(device, domain);
    const page = guest.allocate(1);
    guest.write(page, "shared");
    domain.map(IOVA, page, PAGE, RW);
    expect([0, 1].map((which) => fetched(which, IOVA, 6))).toEqual(["shared", "shared"]);
    rig.takeCalls();
    domain.unmap(IOVA, PAGE);
    expect(new Set(commanded())).toEqual(new Set(backEnd().viommus));
    expect([0, 1].map((which) => fetched(which, IOVA, 6))).toEqual(["fault", "fault"]);
    for (const device of [first!, second!]) guest.driver.attach(device, guest.driver.blocked);
    domain.free();
  });

  it("a process of the guest brings in pages for devices behind both", () => {
    const { guest } = rig;
    const process = guest.start("process", rig.vmm.devices[0]!);
    const pasids = rig.vmm.devices.map((device) => guest.bind(device, process));
    process.reserve(VA, 4);
    process.write(VA, "memory");
    expect(pasids.map((pasid, which) => fetched(which, VA, 6, pasid))).toEqual(["memory", "memory"]);
    expect(pasids.map((pasid, which) => fetched(which, VA + (1 + which) * PAGE, 1, pasid))).toEqual([
      "\0",
      "\0",
    ]);
    expect(process.faults).toBe(3);
    for (const device of rig.vmm.devices) guest.unbind(device, process);
    process.exit();
    expect(pasids.map((pasid, which) => fetched(which, VA, 6, pasid))).toEqual(["fault", "fault"]);
  });

  it("an event of either is one of the guest's", () => {
    const { guest } = rig;
    for (const [which, device] of rig.vmm.devices.entries()) {
      guest.driver.release(device);
      const before = guest.driver.faultCount;
      expect(fetched(which, IOVA, 1)).toBe("fault");
      expect(guest.driver.faultCount).toBe(before + 1);
    }
  });

  it("a command about a stream goes to its unit, one about translations to both, in their order", () => {
    const [first, second] = backEnd().viommus;
    const all = TlbiCommand.make({ OPCODE: Opcode.TLBI_NH_ALL });
    const [one, two] = GUEST_RIDS.map((SID) => StreamCommand.make({ OPCODE: Opcode.CFGI_CD_ALL, SID }));
    const remote = AtcCommand.make({ OPCODE: Opcode.ATC_INV, SID: GUEST_RIDS[1] });
    rig.takeCalls();
    expect(backEnd().command([all, one!, two!, remote, all, all])).toEqual({ done: 6 });
    expect(commanded()).toEqual([first, second, first, second, first, second]);
  });

  it("what a unit refuses is counted among all commands", () => {
    const all = TlbiCommand.make({ OPCODE: Opcode.TLBI_NH_ALL });
    const mine = StreamCommand.make({ OPCODE: Opcode.CFGI_CD_ALL, SID: GUEST_RIDS[1] });
    const nobodys = StreamCommand.make({ OPCODE: Opcode.CFGI_CD_ALL, SID: 0x777 });
    const { done, error } = backEnd().command([all, mine, mine, nobodys, all]);
    expect([done, error?.code]).toEqual([3, "EIO"]);
  });
});

it("units that are not alike are not nested under one guest's", () => {
  const unlike = (text: string): string =>
    twoUnits(text).replace(`name: ${SECOND}\n`, `name: ${SECOND}\n    ats: false\n`);
  expect(() => new GuestRig("smmuv3", "nested", { edit: unlike, units: [FIRST, SECOND] })).toThrow(
    "are not alike",
  );
});
