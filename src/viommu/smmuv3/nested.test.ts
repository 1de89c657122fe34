import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS, GuestRig } from "../../../test/support/guest-rig.ts";
import { AtcCommand, COMMAND_BYTES, Opcode, TlbiCommand } from "../../hardware/smmuv3/queue-spec.ts";
import {
  CMDQ_ERR_SHIFT,
  CommandError,
  Cr0,
  Gerror,
  QUEUE_INDEX,
  Register,
} from "../../hardware/smmuv3/spec.ts";
import { Protection } from "../../iommu/driver.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const VA = 0x5555_0000_0000;
const PASID = 5;
const RW = Protection.read | Protection.write;

describe("a guest's SMMUv3 over a host that nests", () => {
  let rig: GuestRig;
  beforeEach(() => {
    rig = new GuestRig("smmuv3", "nested");
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const fetched = (address: number, length: number, pasid?: number): string => {
    const device = rig.devices[0]!;
    device.fetch(address, length, pasid);
    const result = rig.settle(device);
    return result === "done" ? Buffer.from(device.read(length)).toString() : result;
  };
  const page = (text: string): number => {
    const pa = rig.guest.allocate(1);
    rig.guest.write(pa, text);
    return pa;
  };

  it("before the guest has a driver its devices reach guest memory at its own addresses", () => {
    rig.vmm.memory.writeBytes(0x5000, Buffer.from("guest physical"));
    expect(fetched(0x5000, 14)).toBe("guest physical");
    expect(rig.guest.driver.domains).toBe(0);
    expect(fetched(0x5000, 14)).toBe("fault");
  });

  it("the guest's table is walked by the host's unit: mapping needs no call, unmapping its command", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const domain = guest.driver.allocatePaging(requester!);
    guest.driver.attach(requester!, domain);
    expect(rig.vmm.backEnd.held).toBe(1);
    rig.takeCalls();
    domain.map(IOVA, page("from the guest"), PAGE, RW);
    expect(rig.takeCalls()).toEqual([]);
    expect(fetched(IOVA, 14)).toBe("from the guest");
    rig.takeCalls();
    domain.unmap(IOVA, PAGE);
    expect(new Set(rig.takeCalls())).toEqual(new Set(["IOMMU_HWPT_INVALIDATE"]));
    expect(fetched(IOVA, 14)).toBe("fault");
    guest.driver.attach(requester!, guest.driver.blocked);
    domain.free();
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it("PASIDs are in the guest's context descriptors: giving and taking them are commands", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const spaces = [PASID, PASID + 1].map((pasid) => {
      const domain = guest.driver.allocatePaging(requester!, { pasid: true });
      guest.driver.attach(requester!, domain, pasid);
      domain.map(IOVA, page(`pasid ${pasid}`), PAGE, RW);
      return domain;
    });
    expect(rig.vmm.backEnd.held).toBe(1);
    expect(fetched(IOVA, 7, PASID)).toBe("pasid 5");
    expect(fetched(IOVA, 7, PASID + 1)).toBe("pasid 6");
    expect(fetched(IOVA, 7, PASID + 2)).toBe("fault");
    rig.takeCalls();
    guest.driver.attach(requester!, guest.driver.blocked, PASID);
    expect(rig.takeCalls()).not.toContain("IOMMU_HWPT_ALLOC");
    expect(fetched(IOVA, 7, PASID)).toBe("fault");
    expect(fetched(IOVA, 7, PASID + 1)).toBe("pasid 6");
    guest.driver.attach(requester!, guest.driver.blocked, PASID + 1);
    for (const domain of spaces) {
      domain.unmap(IOVA, PAGE);
      domain.free();
    }
  });

  it("an access to a page that is not there stalls until the guest has brought it in, or refused", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const process = guest.start("process", requester!);
    const pasid = guest.bind(requester!, process);
    process.reserve(VA, 4);
    expect(fetched(VA, 4, pasid)).toBe("\0\0\0\0");
    expect(process.faults).toBe(1);
    expect(guest.answered).toEqual({ success: 1, invalid: 0 });
    expect(fetched(VA + 8 * PAGE, 4, pasid)).toBe("fault");
    expect(guest.answered.invalid).toBeGreaterThan(0);
    guest.unbind(requester!, process);
    process.exit();
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
