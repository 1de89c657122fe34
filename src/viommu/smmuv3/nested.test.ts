import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS } from "../../../test/support/guest-rig.ts";
import { SmmuDriver } from "../../drivers/smmuv3/driver.ts";
import {
  AtcCommand,
  COMMAND_BYTES,
  EventCode,
  Opcode,
  TlbiCommand,
} from "../../hardware/smmuv3/queue-spec.ts";
import {
  CMDQ_ERR_SHIFT,
  CommandError,
  Cr0,
  Gerror,
  QUEUE_INDEX,
  Register,
} from "../../hardware/smmuv3/spec.ts";
import { Access, NO_PASID, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import { Protection } from "../../iommu/driver.ts";
import { describeNested, NestedRig } from "../nested.suite.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const PASID = 5;
const RW = Protection.read | Protection.write;

describeNested("SMMUv3", { preset: "smmuv3", allocates: "allocateStream", heldOfTwo: 1 });

describe("a guest's SMMUv3 over a host that nests: what other units have not", () => {
  let rig: NestedRig;
  beforeEach(() => {
    rig = new NestedRig({ preset: "smmuv3" });
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  /** Another machine, whose unit ends every access that faults, with an event. */
  const withoutStalls = (): void => {
    expect(rig.close()).toEqual({});
    const edit = (text: string) => text.replace("stalls: both", "stalls: terminate\n    ats: false");
    rig = new NestedRig({ preset: "smmuv3", edit });
  };
  const hostDriver = (): SmmuDriver => {
    const { driver } = [...rig.machine.units.values()][0]!;
    if (!(driver instanceof SmmuDriver)) throw new TypeError("the host has another unit");
    return driver;
  };
  it("PASIDs are in the guest's context descriptors: giving and taking them are commands", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const spaces = [PASID, PASID + 1].map((pasid) => {
      const domain = guest.driver.allocatePaging(requester!, { pasid: true });
      guest.driver.attach(requester!, domain, pasid);
      domain.map(IOVA, rig.page(`pasid ${pasid}`), PAGE, RW);
      return domain;
    });
    rig.takeCalls();
    guest.driver.attach(requester!, guest.driver.blocked, PASID);
    expect(rig.takeCalls()).not.toContain("IOMMU_HWPT_ALLOC");
    expect(rig.fetched(IOVA, 7, PASID)).toBe("fault");
    expect(rig.fetched(IOVA, 7, PASID + 1)).toBe("pasid 6");
    guest.driver.attach(requester!, guest.driver.blocked, PASID + 1);
    for (const domain of spaces) {
      domain.unmap(IOVA, PAGE);
      domain.free();
    }
  });

  it("§7.3 what the guest's tables do not allow is an event in the guest's own queue, with its StreamID", () => {
    withoutStalls();
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const domain = guest.driver.allocatePaging(requester!);
    guest.driver.attach(requester!, domain);
    domain.map(IOVA, rig.page("to be read only"), PAGE, Protection.read);
    expect(rig.fetched(IOVA + PAGE, 4)).toBe("fault");
    expect(rig.fetched(IOVA, 4, PASID)).toBe("fault");
    rig.devices[0]!.store(IOVA, 4);
    expect(rig.settle(rig.devices[0]!)).toBe("fault");
    const { driver } = guest;
    if (!(driver instanceof SmmuDriver)) throw new TypeError("the guest has another unit");
    const [rid] = GUEST_RIDS;
    expect(driver.faults.map(({ code, address, pasid, ...of }) => [of.rid, code, pasid, address])).toEqual([
      [rid, EventCode.F_TRANSLATION, NO_PASID, BigInt(IOVA + PAGE)],
      [rid, EventCode.C_BAD_CD, PASID, 0n],
      [rid, EventCode.F_PERMISSION, NO_PASID, BigInt(IOVA)],
    ]);
    expect([driver.overflows, hostDriver().faultCount]).toEqual([0, 0]);
    guest.driver.attach(requester!, guest.driver.blocked);
    domain.free();
  });

  it("§7.4 what was lost on the way, in the host's queue or the VMM's, is an overflow of the guest's queue", () => {
    withoutStalls();
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const domain = guest.driver.allocatePaging(requester!);
    guest.driver.attach(requester!, domain);
    const { driver } = guest;
    if (!(driver instanceof SmmuDriver)) throw new TypeError("the guest has another unit");
    const { unit } = [...rig.machine.units.values()][0]!;
    const transaction = new Transaction();
    transaction.rid = rig.machine.functions.find(({ name }) => name === "0000:7e:00.0")!.rid;
    transaction.access = Access.read;
    const fault = (times: number): void => {
      for (let i = 0; i < times; i++) expect(unit.translate(transaction)).toBe(TranslateStatus.fault);
      rig.work.run();
    };
    fault(200);
    expect([driver.faultCount, driver.overflows]).toEqual([200, 0]);
    fault(300); // more than the VMM has room for
    expect([driver.faultCount, driver.overflows]).toEqual([200 + 256, 1]);
    fault(1);
    expect([driver.faultCount, driver.overflows]).toEqual([457, 1]);
    expect(hostDriver().overflows).toBe(0);
    fault(1000); // more than the host's unit has room for
    expect(hostDriver().overflows).toBe(1);
    expect([driver.faultCount, driver.overflows]).toEqual([457 + 256, 2]);
    guest.driver.attach(requester!, guest.driver.blocked);
    domain.free();
  });

  it("§7.1 a command that the host refuses stops the guest's queue at it, with CERROR_ILL", () => {
    rig.vmm.iommu.mmioWrite(Register.CR0, 4, 0n);
    const { iommu, memory } = rig.vmm;
    const queue = 0x10_0000;
    const good = TlbiCommand.make({ OPCODE: Opcode.TLBI_NH_ALL });
    const bad = AtcCommand.make({ OPCODE: Opcode.CFGI_CD, SID: GUEST_RIDS[1] + 1 });
    [good, bad, good].forEach((command, index) => {
      const bytes = new Uint8Array(COMMAND_BYTES);
      TlbiCommand.write(bytes, command);
      memory.writeBytes(queue + index * COMMAND_BYTES, bytes);
    });
    iommu.mmioWrite(Register.CMDQ_BASE, 8, BigInt(queue + 4));
    iommu.mmioWrite(Register.CR0, 4, BigInt(Cr0.CMDQEN));
    iommu.mmioWrite(Register.CMDQ_PROD, 4, 3n);
    const cons = Number(iommu.mmioRead(Register.CMDQ_CONS, 4));
    expect(cons & QUEUE_INDEX).toBe(1);
    expect(cons >>> CMDQ_ERR_SHIFT).toBe(CommandError.illegal);
    expect(Number(iommu.mmioRead(Register.GERROR, 4)) & Gerror.CMDQ_ERR).toBe(Gerror.CMDQ_ERR);
  });
});
