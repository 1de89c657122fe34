/** What a host cannot do for a shadowed guest, and what the guest sees of it. */
import { afterEach, describe, expect, it } from "vitest";
import { GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import type { ShownUnit } from "../../guest/vmm.ts";
import { Protection } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const RW = Protection.read | Protection.write;

let rig: GuestRig;
afterEach(() => {
  expect(rig.close()).toEqual({});
});
const begin = (host: string, shows: ShownUnit) => {
  rig = new GuestRig(host, "shadow", { shows });
  const [requester] = rig.vmm.devices;
  const { guest } = rig;
  const domain = guest.driver.allocatePaging(requester!);
  guest.driver.attach(requester!, domain);
  const page = guest.allocate(1);
  guest.write(page, "here");
  return { guest, domain, page, requester: requester! };
};
const fetched = (address: number): string => {
  const [device] = rig.devices;
  device!.fetch(address, 4);
  const result = rig.settle(device!);
  return result === "done" ? Buffer.from(device!.read(4)).toString() : result;
};

describe("an address that the host does not map", () => {
  it.each([
    ["beyond its own", "vtd", "smmuv3", 2 ** 47],
    ["which it keeps for messages", "smmuv3", "vtd-legacy", 0x800_0000],
    ["which it keeps for messages", "smmuv3", "vtd", 0x800_0000],
    ["which it keeps for messages", "vtd", "smmuv3", 0xfee0_0000],
  ] as const)(
    "%s: on %s a guest with %s is told, and what it maps elsewhere is there",
    (_what, host, shows, beyond) => {
      const { domain, page } = begin(host, shows);
      expect(() => domain.map(beyond, page, PAGE, RW)).toThrow(LinuxError);
      expect(fetched(beyond)).toBe("fault");
      expect(rig.vmm.backEnd.held).toBe(0);
      domain.map(IOVA, page, PAGE, RW);
      expect(fetched(IOVA)).toBe("here");
      domain.unmap(IOVA, PAGE);
      expect(fetched(IOVA)).toBe("fault");
    },
  );

  it("a VT-d guest is shown no more address bits than the host has", () => {
    const { domain } = begin("vtd", "vtd-legacy");
    expect(domain.apertures).toEqual([{ start: 0, end: 2 ** 47 }]);
  });
});

describe("a host without memory for a mapping", () => {
  it("is the guest's error; nothing is lost, and what is unmapped meanwhile is gone", () => {
    const { domain, page } = begin("vtd", "vtd-legacy");
    domain.map(IOVA, page, PAGE, RW);
    const { calls } = rig.vmm;
    const { map } = calls;
    calls.map = () => {
      throw new LinuxError("ENOMEM", "on purpose");
    };
    expect(() => domain.map(IOVA + PAGE, page, PAGE, RW)).toThrow(LinuxError);
    expect(fetched(IOVA)).toBe("here");
    expect(fetched(IOVA + PAGE)).toBe("fault");
    domain.unmap(IOVA, PAGE);
    expect(fetched(IOVA)).toBe("fault");
    calls.map = map.bind(calls);
    domain.map(IOVA, page, PAGE, RW);
    expect(fetched(IOVA)).toBe("here");
  });
});

describe("a device that works while its guest maps and unmaps around it", () => {
  it.each([
    ["vtd", "vtd-legacy"],
    ["vtd", "vtd"],
    ["smmuv3", "vtd"],
    ["vtd", "smmuv3"],
  ] as const)(
    "on %s with %s it reaches what stays mapped at every call that the VMM makes",
    (host, shows) => {
      const { domain, page, guest } = begin(host, shows);
      const other = guest.allocate(512);
      domain.map(IOVA, page, PAGE, RW);
      const seen: string[] = [];
      const { calls } = rig.vmm;
      const [map, unmap] = [calls.map.bind(calls), calls.unmap.bind(calls)];
      calls.map = (...given) => {
        seen.push(fetched(IOVA));
        map(...given);
        seen.push(fetched(IOVA));
      };
      calls.unmap = (...given) => {
        seen.push(fetched(IOVA));
        unmap(...given);
        seen.push(fetched(IOVA));
      };
      domain.map(IOVA + PAGE, other, PAGE, RW);
      domain.map(IOVA - PAGE, other, PAGE, Protection.read);
      domain.map(0x4000_0000, other, 512 * PAGE, RW);
      domain.unmap(IOVA - PAGE, PAGE);
      domain.unmap(IOVA + PAGE, PAGE);
      domain.unmap(0x4000_0000, 512 * PAGE);
      expect(seen.length).toBeGreaterThanOrEqual(12);
      expect(new Set(seen)).toEqual(new Set(["here"]));
    },
  );
});

describe("an entry that the guest changes without a word", () => {
  it("is as it was for the device until the guest invalidates, and then as it is", () => {
    const { domain, page, guest } = begin("vtd", "vtd-legacy");
    const other = guest.allocate(1);
    guest.write(other, "next");
    domain.map(IOVA, page, PAGE, RW);
    // The lowest table: its entry for the address names another page.
    const { memory } = rig.vmm;
    let table = domain.root;
    for (const shift of [39, 30, 21]) {
      memory.load64(table + 8 * (Math.floor(IOVA / 2 ** shift) % 512));
      table = memory.hi * 2 ** 32 + ((memory.lo & 0xffff_f000) >>> 0);
    }
    memory.store64(table + 8 * (Math.floor(IOVA / PAGE) % 512), other + RW, 0);
    expect(fetched(IOVA)).toBe("here");
    // One of another page does not tell of it.
    domain.map(IOVA + PAGE, RAM_BYTES, PAGE, RW);
    expect(fetched(IOVA)).toBe("here");
    // One of the domain does, which comes with another device of it.
    guest.driver.attach(rig.vmm.devices[1]!, domain);
    expect(fetched(IOVA)).toBe("next");
  });
});
