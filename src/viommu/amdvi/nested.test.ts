import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS, GuestRig } from "../../../test/support/guest-rig.ts";
import { AmdDriver } from "../../drivers/amdvi/driver.ts";
import type { GuestDomain } from "../../guest/iommu.ts";
import { InvalidateAll, InvalidateIotlb, InvalidatePages, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import { Dte } from "../../hardware/amdvi/spec.ts";
import { Protection } from "../../iommu/driver.ts";
import { IommuHwptAmdGuest } from "../../uapi/vendor/amd.ts";
import { describeNested, NestedRig } from "../nested.suite.ts";
import { AmdNested } from "./nested.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const RW = Protection.read | Protection.write;
const PASID = 5;
const [FIRST] = GUEST_RIDS;

const edit = (text: string) => `${text}extensions: [amd-nesting]\n`;
describeNested("AMD-Vi unit", { preset: "amd", edit, allocates: "allocateGuestEntry", heldOfTwo: 1 });

describe("a guest's AMD-Vi unit over a host that nests: what other units have not", () => {
  let rig: NestedRig;
  beforeEach(() => {
    rig = new NestedRig({ preset: "amd", edit });
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const backEnd = (): AmdNested => {
    const { backEnd: found } = rig.vmm;
    if (!(found instanceof AmdNested)) throw new TypeError("the rig has another back end");
    return found;
  };
  /** A domain of the device with a page that the host's unit remembers, and that the guest's table has not any more. */
  const stale = (): GuestDomain => {
    const { driver } = rig.guest;
    const [requester] = rig.vmm.devices;
    const domain = driver.allocatePaging(requester!);
    driver.attach(requester!, domain);
    domain.map(IOVA, rig.page("stale"), PAGE, RW);
    expect(rig.fetched(IOVA, 5)).toBe("stale");
    const { calls } = rig.vmm;
    const { commandAmd } = calls;
    calls.commandAmd = (_, commands) => ({ done: commands.length });
    domain.unmap(IOVA, PAGE);
    calls.commandAmd = commandAmd;
    expect(rig.fetched(IOVA, 5)).toBe("stale");
    return domain;
  };
  const leave = (domain: GuestDomain): void => {
    rig.guest.driver.attach(rig.vmm.devices[0]!, rig.guest.driver.blocked);
    domain.free();
  };

  it("§2.2.6.3 the guest's kernel has a guest table too, for PASID 0, which the host knows as GIoV", () => {
    const domain = stale();
    const entries = rig.calls.filter(({ name, data }) => name === "IOMMU_HWPT_ALLOC" && data);
    const [low, high] = IommuHwptAmdGuest.read(entries.at(-1)!.data!).dte;
    const entry = low! | (high! << 64n);
    const { GV, GIOV, MODE } = Dte.fields;
    expect([GV, GIOV, MODE].map((field) => field.of(entry))).toEqual([1n, 1n, 0n]);
    leave(domain);
  });

  it("PASIDs that come and go are in the guest's GCR3 table: the device keeps its domain meanwhile", () => {
    const { driver } = rig.guest;
    const [requester] = rig.vmm.devices;
    const [kernel, process] = [{}, { pasid: true }].map((options) =>
      driver.allocatePaging(requester!, options),
    ) as [GuestDomain, GuestDomain];
    driver.attach(requester!, kernel);
    kernel.map(IOVA, rig.page("kernel"), PAGE, RW);
    process.map(IOVA, rig.page("process"), PAGE, RW);
    driver.attach(requester!, process, PASID);
    expect([rig.fetched(IOVA, 6), rig.fetched(IOVA, 7, PASID)]).toEqual(["kernel", "process"]);
    driver.attach(requester!, driver.blocked, PASID);
    expect([rig.fetched(IOVA, 6), rig.fetched(IOVA, 7, PASID)]).toEqual(["kernel", "fault"]);
    leave(kernel);
    process.free();
  });

  it("§2.4.3 an invalidation of host tables, which the host does not take, has it forget all", () => {
    const domain = stale();
    const hosts = InvalidatePages.make({ OPCODE: Opcode.INVALIDATE_IOMMU_PAGES, DOMAIN: 77 });
    const guests = InvalidatePages.make({ OPCODE: Opcode.INVALIDATE_IOMMU_PAGES, DOMAIN: 77, GN: true });
    expect(backEnd().command([guests, hosts, hosts, guests])).toEqual({ done: 4 });
    expect(rig.fetched(IOVA, 5)).toBe("fault");
    leave(domain);
  });

  it("§2.4.8 INVALIDATE_IOMMU_ALL has the host forget all", () => {
    const domain = stale();
    const words = new Uint32Array(4);
    InvalidateAll.toWords(InvalidateAll.make({ OPCODE: Opcode.INVALIDATE_IOMMU_ALL }), words);
    const { iommu } = rig.vmm;
    if (!("take" in iommu && typeof iommu.take === "function")) throw new TypeError("it has no commands");
    expect(iommu.take(words, 0)).toBe(-1);
    expect(rig.fetched(IOVA, 5)).toBe("fault");
    leave(domain);
  });

  it("a command that the host refuses is counted among all", () => {
    const pages = InvalidatePages.make({ OPCODE: Opcode.INVALIDATE_IOMMU_PAGES, GN: true });
    const of = (DEVICE: number) => InvalidateIotlb.make({ OPCODE: Opcode.INVALIDATE_IOTLB_PAGES, DEVICE });
    const { done, error } = backEnd().command([pages, of(FIRST), pages, of(0x777), pages]);
    expect([done, error?.code]).toEqual([3, "EINVAL"]);
  });

  it("what the guest's tables do not allow is the host's to know, which has no way to tell the guest", () => {
    const domain = stale();
    const [{ driver: host } = { driver: undefined }] = [...rig.machine.units.values()];
    if (!(host instanceof AmdDriver)) throw new TypeError("the host has another unit");
    const before = host.faultCount;
    expect(rig.fetched(IOVA + PAGE, 4)).toBe("fault");
    expect(host.faultCount).toBeGreaterThan(before);
    expect(rig.guest.driver.faultCount).toBe(0);
    leave(domain);
  });
});

it("a host that does not nest is refused before the guest has anything", () => {
  expect(() => new GuestRig("amd", "nested")).toThrow("EOPNOTSUPP");
});

it("units that are not alike are not nested under one guest's", () => {
  const two = (text: string): string => {
    const unit = "  - model: amdvi\n    name: ivhd1\n    pasid-bits: 16\n";
    return edit(text.replace("devices:", `${unit}devices:`));
  };
  const units = ["ivhd0", "ivhd1"] as const;
  expect(() => new GuestRig("amd", "nested", { edit: two, units })).toThrow("are not alike");
});
