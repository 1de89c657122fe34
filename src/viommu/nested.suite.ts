/** What every guest can rely on whose IOMMU lies above that of a host that nests, whatever the model. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GuestRig, RAM_BYTES, type RigOptions } from "../../test/support/guest-rig.ts";
import { Protection } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { HostCalls } from "./host-calls.ts";

export interface NestedHost {
  readonly preset: string;
  readonly edit?: NonNullable<RigOptions["edit"]>;
  /** The call by which the VMM gives the host a table of the guest's. */
  readonly allocates: "allocateNested" | "allocateStream" | "allocateGuestEntry";
  /** Tables on the host of a device with two PASIDs: one for each, or all that the guest's own table of PASIDs says. */
  readonly heldOfTwo: 1 | 2;
}

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const VA = 0x5555_0000_0000;
const PASID = 5;
const RW = Protection.read | Protection.write;

/** A guest on such a host, and what its devices do. */
export class NestedRig extends GuestRig {
  constructor({ preset, edit }: Pick<NestedHost, "preset" | "edit">) {
    super(preset, "nested", edit ? { edit } : {});
  }

  fetched(address: number, length: number, pasid?: number, index = 0): string {
    const device = this.devices[index]!;
    device.fetch(address, length, pasid);
    const result = this.settle(device);
    return result === "done" ? Buffer.from(device.read(length)).toString() : result;
  }
  stored(address: number, text: string, pasid?: number, index = 0): string {
    const device = this.devices[index]!;
    device.write(Buffer.from(text));
    device.store(address, text.length, pasid);
    return this.settle(device);
  }
  /** A page of the guest that begins with the text. */
  page(text: string): number {
    const pa = this.guest.allocate(1);
    this.guest.write(pa, text);
    return pa;
  }
}

export const describeNested = (name: string, host: NestedHost): void => {
  const { allocates, heldOfTwo } = host;

  describe(`a guest's ${name} over a host that nests`, () => {
    let rig: NestedRig;
    beforeEach(() => {
      rig = new NestedRig(host);
    });
    afterEach(() => {
      expect(rig.close()).toEqual({});
    });

    it("before the guest has a driver its devices reach guest memory at its own addresses, and no more", () => {
      rig.vmm.memory.writeBytes(0x5000, Buffer.from("guest physical"));
      expect(rig.fetched(0x5000, 14)).toBe("guest physical");
      expect(rig.fetched(RAM_BYTES - 4, 8)).toBe("fault");
      expect(rig.fetched(0x5000, 14, PASID)).toBe("fault");
      expect(rig.guest.driver.domains).toBe(0);
      expect(rig.fetched(0x5000, 14)).toBe("fault");
    });

    it("the guest's table is walked by the host's unit: mapping needs no map call, unmapping invalidates", () => {
      const { guest } = rig;
      const [requester] = rig.vmm.devices;
      const domain = guest.driver.allocatePaging(requester!);
      guest.driver.attach(requester!, domain);
      expect(rig.vmm.backEnd.held).toBe(1);
      const pa = rig.page("from the guest");
      rig.takeCalls();
      domain.map(IOVA, pa, PAGE, RW);
      // A unit may remember that nothing was there.
      expect(rig.takeCalls().filter((call) => call !== "IOMMU_HWPT_INVALIDATE")).toEqual([]);
      expect(rig.fetched(IOVA, 14)).toBe("from the guest");
      expect(rig.stored(IOVA + 100, "and back")).toBe("done");
      expect(guest.read(pa + 100, 8)).toBe("and back");
      expect(rig.fetched(IOVA, 14, undefined, 1)).toBe("fault");
      rig.takeCalls();
      domain.unmap(IOVA, PAGE);
      expect(new Set(rig.takeCalls())).toEqual(new Set(["IOMMU_HWPT_INVALIDATE"]));
      expect(rig.fetched(IOVA, 14)).toBe("fault");
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
        domain.map(IOVA, rig.page(`pasid ${pasid}`), PAGE, RW);
        return domain;
      });
      expect(rig.vmm.backEnd.held).toBe(heldOfTwo);
      expect(rig.fetched(IOVA, 7, PASID)).toBe(`pasid ${PASID}`);
      expect(rig.fetched(IOVA, 7, PASID + 1)).toBe(`pasid ${PASID + 1}`);
      expect(rig.fetched(IOVA, 7, PASID + 2)).toBe("fault");
      expect(rig.fetched(IOVA, 7)).toBe("fault");
      guest.driver.attach(requester!, guest.driver.blocked, PASID);
      expect(rig.fetched(IOVA, 7, PASID)).toBe("fault");
      expect(rig.fetched(IOVA, 7, PASID + 1)).toBe(`pasid ${PASID + 1}`);
      guest.driver.attach(requester!, guest.driver.blocked, PASID + 1);
      for (const domain of spaces) {
        domain.unmap(IOVA, PAGE);
        domain.free();
      }
    });

    it("another table for a PASID is another from then on", () => {
      const { guest } = rig;
      const [requester] = rig.vmm.devices;
      const domains = ["one", "two"].map((text) => {
        const domain = guest.driver.allocatePaging(requester!, { pasid: true });
        domain.map(IOVA, rig.page(text), PAGE, RW);
        return domain;
      });
      for (const [index, text] of ["one", "two"].entries()) {
        guest.driver.attach(requester!, domains[index]!, PASID);
        expect(rig.fetched(IOVA, 3, PASID)).toBe(text);
      }
      guest.driver.attach(requester!, guest.driver.blocked, PASID);
      for (const domain of domains) {
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
      expect(rig.fetched(IOVA, 4)).toBe("fault");
      domain.unmap(IOVA, PAGE);
      guest.driver.attach(requester!, guest.driver.blocked);
      domain.free();
    });

    it("a page that a process does not have yet is brought in by the guest, and reached; or refused", () => {
      const { guest } = rig;
      const [requester] = rig.vmm.devices;
      const process = guest.start("process", requester!);
      const pasid = guest.bind(requester!, process);
      process.reserve(VA, 4);
      process.reserve(VA + 64 * PAGE, 1, false);
      process.write(VA, "here already");
      expect(rig.stored(VA + 2 * PAGE - 4, "two pages", pasid)).toBe("done");
      expect(process.read(VA + 2 * PAGE - 4, 9)).toBe("two pages");
      expect(process.faults).toBe(3);
      expect(guest.answered.success).toBeGreaterThan(0);
      expect(rig.fetched(VA + 64 * PAGE, 4, pasid)).toBe("\0\0\0\0");
      expect(guest.answered.invalid).toBe(0);
      expect(rig.stored(VA + 64 * PAGE, "read only", pasid)).toBe("fault");
      expect(rig.stored(VA + 1024 * PAGE, "nobody's", pasid)).toBe("fault");
      expect(guest.answered.invalid).toBeGreaterThan(0);
      process.release(VA, 4);
      expect(rig.fetched(VA, 4, pasid)).toBe("fault");
      guest.unbind(requester!, process);
      process.exit();
    });

    it("devices that share a process share its table; what it gives up is gone for each of them", () => {
      const { guest } = rig;
      const [one, other] = rig.vmm.devices;
      const process = guest.start("process", one!);
      const pasid = guest.bind(one!, process);
      expect(guest.bind(other!, process)).toBe(pasid);
      process.reserve(VA, 1);
      process.write(VA, "shared");
      for (const index of [0, 1]) expect(rig.fetched(VA, 6, pasid, index)).toBe("shared");
      expect(rig.vmm.backEnd.held).toBe(2);
      process.release(VA, 1);
      for (const index of [0, 1]) expect(rig.fetched(VA, 6, pasid, index)).toBe("fault");
      guest.unbind(one!, process);
      expect(rig.fetched(VA, 6, pasid)).toBe("fault");
      guest.unbind(other!, process);
      process.exit();
    });

    it("an entry of the guest's that the host refuses stops the guest's queue, and nothing is attached", () => {
      const { guest, vmm } = rig;
      const [requester] = vmm.devices;
      const domain = guest.driver.allocatePaging(requester!);
      const { calls }: { calls: HostCalls } = vmm;
      const own = Object.getOwnPropertyDescriptor(calls, allocates);
      Object.defineProperty(calls, allocates, {
        configurable: true,
        value: () => {
          throw new LinuxError("ENOMEM", "on purpose");
        },
      });
      expect(() => guest.driver.attach(requester!, domain)).toThrow("EIO");
      expect(vmm.backEnd.held).toBe(0);
      if (own) Object.defineProperty(calls, allocates, own);
      else Reflect.deleteProperty(calls, allocates);
      expect(rig.fetched(IOVA, 4)).toBe("fault");
    });
  });
};
