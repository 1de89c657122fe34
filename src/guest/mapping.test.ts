/** What of a guest's memory a VMM maps for its devices, where nothing translates. */
import { afterEach, describe, expect, it } from "vitest";
import { codeOf } from "../../test/support/code-of.ts";
import { GuestRig, type RigOptions } from "../../test/support/guest-rig.ts";
import { Protection } from "../iommu/driver.ts";
import { walk } from "../trace/walk.ts";

const PAGE = 4096;
const LARGE = 0x20_0000;
const IOVA = 0x1_0000_0000;
const TEXT = "text";

let rig: GuestRig;
const begin = (options: RigOptions): GuestRig => {
  rig = new GuestRig("vtd-legacy", "shadow", options);
  return rig;
};
afterEach(() => expect(rig.close()).toEqual({}));

const fetched = (address: number): string => {
  const [device] = rig.devices;
  device!.fetch(address, TEXT.length);
  const result = rig.settle(device!);
  return result === "done" ? Buffer.from(device!.read(TEXT.length)).toString() : result;
};
/** The entry that maps an address, by its name. */
const leafOf = (address: number): string | undefined =>
  walk(rig.machine, { device: "0000:7e:00.0", iova: BigInt(address), write: true }).steps.at(-2)?.what;

describe("without an IOMMU", () => {
  it("all of it is mapped at once, in pages as large as the host has them", () => {
    begin({ shows: "none" });
    rig.vmm.memory.writeBytes(5 * PAGE, Buffer.from(TEXT));
    expect(fetched(5 * PAGE)).toBe(TEXT);
    expect(leafOf(5 * PAGE)).toBe("SS-PDE");
    expect(rig.vmm.sharing).toBeUndefined();
  });

  it("all of it is mapped in pages of 4 KiB where the VMM asks for them", () => {
    begin({ shows: "none", maps: "small" });
    rig.vmm.memory.writeBytes(5 * PAGE, Buffer.from(TEXT));
    expect(fetched(5 * PAGE)).toBe(TEXT);
    expect(leafOf(5 * PAGE)).toBe("SS-PTE");
    const names = rig.takeCalls();
    expect(names.indexOf("IOMMU_OPTION")).toBeLessThan(names.lastIndexOf("IOMMU_IOAS_MAP"));
  });

  it("what is shared is mapped while it is, in large pages where it is large", () => {
    begin({ shows: "none", maps: "shared" });
    expect(fetched(5 * PAGE)).toBe("fault");
    const sharing = rig.vmm.sharing!;
    sharing.share(5 * PAGE, PAGE);
    sharing.share(LARGE, LARGE);
    rig.vmm.memory.writeBytes(5 * PAGE, Buffer.from(TEXT));
    expect([fetched(5 * PAGE), fetched(6 * PAGE)]).toEqual([TEXT, "fault"]);
    expect([leafOf(5 * PAGE), leafOf(LARGE)]).toEqual(["SS-PTE", "SS-PDE"]);
    expect(rig.machine.live()["pinnedPages"]).toBe(513);
    sharing.takeBack(5 * PAGE, PAGE);
    expect(fetched(5 * PAGE)).toBe("fault");
  });
});

describe("with a virtio-iommu that lets nothing pass", () => {
  it("devices have nothing, and the guest's driver cannot give them everything", () => {
    begin({ shows: "virtio", maps: "shared" });
    expect(fetched(0)).toBe("fault");
    const { driver } = rig.guest;
    const [one] = rig.vmm.devices;
    expect(codeOf(() => driver.attach(one!, driver.identity))).toBe("EINVAL");
    expect(rig.machine.live()["pinnedPages"]).toBe(0);
    driver.close();
    expect(fetched(0)).toBe("fault");
  });

  it("they have what the guest maps, and nothing more", () => {
    begin({ shows: "virtio", maps: "shared" });
    const { driver } = rig.guest;
    const [one] = rig.vmm.devices;
    const domain = driver.allocatePaging(one!);
    driver.attach(one!, domain);
    const page = rig.guest.allocate(1);
    rig.guest.write(page, TEXT);
    domain.map(IOVA, page, PAGE, Protection.read | Protection.write);
    expect([fetched(IOVA), fetched(IOVA + PAGE), fetched(page)]).toEqual([TEXT, "fault", "fault"]);
    expect(rig.machine.live()["pinnedPages"]).toBe(1);
    domain.unmap(IOVA, PAGE);
    driver.attach(one!, driver.blocked);
    domain.free();
  });
});
