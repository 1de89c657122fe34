/** Guests whose tables are copied: whatever IOMMU they have, on whatever host. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import type { ShownUnit } from "../../guest/vmm.ts";
import { Protection } from "../../iommu/driver.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const VA = 0x5555_0000_0000;
const RW = Protection.read | Protection.write;

const HOSTS = ["vtd-legacy", "vtd", "smmuv3", "amd"] as const;
const GUESTS: readonly ShownUnit[] = ["vtd-legacy", "vtd", "smmuv3", "amdvi", "zpci"];
const EVERY = HOSTS.flatMap((host) => GUESTS.map((guest) => [guest, host] as const));
/** Both sides have PASIDs. */
const UNTAGGED: ReadonlySet<string> = new Set(["vtd-legacy", "zpci"]);
const TAGGED = EVERY.filter((both) => !both.some((unit) => UNTAGGED.has(unit)));

let rig: GuestRig;
const begin = (host: string, shows: ShownUnit) => {
  // The rig's functions can stall where that is firmware's to say.
  const edit = (text: string) => text.replace("[0000:03:00.0]", "[0000:7e:00.0, 0000:7f:00.0]");
  rig = new GuestRig(host, "shadow", { shows, edit });
};
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

describe.each(EVERY)("a guest with %s on a host with %s", (shows, host) => {
  beforeEach(() => begin(host, shows));
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  it("has devices that reach its memory until it has a driver, and then what it maps, as long as it does", () => {
    rig.vmm.memory.writeBytes(0x5000, Buffer.from("guest physical"));
    expect(fetched(0x5000, 14)).toBe("guest physical");
    expect(fetched(RAM_BYTES - 4, 8)).toBe("fault");
    const { guest } = rig;
    expect(fetched(0x5000, 14)).toBe("fault");
    const [requester] = rig.vmm.devices;
    const domain = guest.driver.allocatePaging(requester!);
    guest.driver.attach(requester!, domain);
    const pa = page("from the guest");
    domain.map(IOVA, pa, PAGE, RW);
    expect(fetched(IOVA, 14)).toBe("from the guest");
    expect(stored(IOVA + 100, "and back")).toBe("done");
    expect(guest.read(pa + 100, 8)).toBe("and back");
    expect(fetched(IOVA, 14, undefined, 1)).toBe("fault");
    expect(rig.vmm.backEnd.held).toBe(1);
    domain.unmap(IOVA, PAGE);
    expect(fetched(IOVA, 14)).toBe("fault");
    domain.map(IOVA, RAM_BYTES, PAGE, RW);
    expect(fetched(IOVA, 4)).toBe("fault");
    domain.unmap(IOVA, PAGE);
    domain.map(IOVA, pa, PAGE, Protection.read);
    expect(fetched(IOVA, 14)).toBe("from the guest");
    expect(stored(IOVA, "no")).toBe("fault");
    domain.unmap(IOVA, PAGE);
    guest.driver.attach(requester!, guest.driver.blocked);
    domain.free();
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it("has several devices, each with tables of its own, or the same", () => {
    const { guest } = rig;
    const [one, other] = rig.vmm.devices;
    const domains = ["first", "second"].map((text) => {
      const domain = guest.driver.allocatePaging(one!);
      domain.map(IOVA, page(text), PAGE, RW);
      return domain;
    });
    guest.driver.attach(one!, domains[0]!);
    guest.driver.attach(other!, domains[1]!);
    expect([fetched(IOVA, 5), fetched(IOVA, 6, undefined, 1)]).toEqual(["first", "second"]);
    guest.driver.attach(other!, domains[0]!);
    expect([fetched(IOVA, 5), fetched(IOVA, 5, undefined, 1)]).toEqual(["first", "first"]);
    guest.driver.attach(one!, guest.driver.blocked);
    expect([fetched(IOVA, 5), fetched(IOVA, 5, undefined, 1)]).toEqual(["fault", "first"]);
    guest.driver.attach(other!, guest.driver.blocked);
    expect(rig.vmm.backEnd.held).toBe(0);
    for (const domain of domains) {
      domain.unmap(IOVA, PAGE);
      domain.free();
    }
  });
});

describe.each(TAGGED)("processes of a guest with %s on a host with %s", (shows, host) => {
  beforeEach(() => begin(host, shows));
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  it("share their addresses with a device, by PASIDs of the host", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const processes = ["alpha", "beta"].map((name) => {
      const process = guest.start(name, requester!);
      process.reserve(VA, 4);
      process.write(VA, `memory of ${name}`);
      return { name, process, pasid: guest.bind(requester!, process) };
    });
    for (const { name, process, pasid } of processes) {
      expect(fetched(VA, 10 + name.length, pasid)).toBe(`memory of ${name}`);
      expect(stored(VA + 256, `for ${name}`, pasid)).toBe("done");
      expect(process.read(VA + 256, 4 + name.length)).toBe(`for ${name}`);
    }
    expect(fetched(VA, 4, processes[1]!.pasid + 2)).toBe("fault");
    expect(fetched(VA, 4)).toBe("fault");
    const [alpha, beta] = processes;
    guest.unbind(requester!, alpha!.process);
    alpha!.process.exit();
    expect(fetched(VA, 4, alpha!.pasid)).toBe("fault");
    expect(fetched(VA, 14, beta!.pasid)).toBe("memory of beta");
    guest.unbind(requester!, beta!.process);
    beta!.process.exit();
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it("get pages that a device touches first, and refuse what is nobody's", () => {
    const { guest } = rig;
    const [requester] = rig.vmm.devices;
    const process = guest.start("process", requester!);
    const pasid = guest.bind(requester!, process);
    process.reserve(VA, 4);
    expect(stored(VA + PAGE - 4, "two pages", pasid)).toBe("done");
    expect(process.read(VA + PAGE - 4, 9)).toBe("two pages");
    expect(process.faults).toBe(2);
    expect(fetched(VA + 16 * PAGE, 4, pasid)).toBe("fault");
    expect(guest.answered.invalid).toBeGreaterThan(0);
    process.release(VA, 4);
    expect(fetched(VA, 4, pasid)).toBe("fault");
    guest.unbind(requester!, process);
    process.exit();
  });
});
