/** Devices of the host interrupt guests: function, host, eventfd of the VMM, message of the guest, its driver. */
import { afterEach, describe, expect, it } from "vitest";
import { GuestRig } from "../../test/support/guest-rig.ts";
import { Protection } from "../iommu/driver.ts";
import { findCapability } from "../pci/capability-list.ts";
import { CapabilityId, MsixCapability, MsixControl, MsixEntry, VECTOR_MASKED } from "../pci/spec.ts";
import type { ShownUnit } from "./vmm.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const RW = Protection.read | Protection.write;
const TABLE_BAR = 2;
const GUESTS: readonly (readonly ["nested" | "shadow", string, ShownUnit])[] = [
  ["nested", "vtd", "vtd"],
  ["nested", "smmuv3", "smmuv3"],
  ["shadow", "vtd-legacy", "vtd-legacy"],
  ["shadow", "smmuv3", "vtd"],
  ["shadow", "vtd", "smmuv3"],
  ["shadow", "smmuv3", "smmuv3"],
];

let rig: GuestRig;
afterEach(() => {
  expect(rig.close()).toEqual({});
});

/** A page of the guest for its first device, whose driver is told by interrupts. */
const map = (one: GuestRig, text: string) => {
  const [requester] = one.vmm.devices;
  const { guest } = one;
  const domain = guest.driver.allocatePaging(requester!);
  guest.driver.attach(requester!, domain);
  const pa = guest.allocate(1);
  guest.write(pa, text);
  domain.map(IOVA, pa, PAGE, RW);
  one.listen();
  return domain;
};

describe.each(GUESTS)("a %s guest on %s, with %s", (follow, host, shows) => {
  it("is told of the end of a transfer by an interrupt, and of nothing before", () => {
    rig = new GuestRig(host, follow, { shows });
    map(rig, "by interrupt");
    const [device, other] = rig.devices;
    device!.fetch(IOVA, 12);
    expect(device!.result).toBe("busy");
    expect(rig.settle(device!)).toBe("done");
    expect(Buffer.from(device!.read(12)).toString()).toBe("by interrupt");
    expect([device!.interrupts, other!.interrupts]).toEqual([1, 0]);
    device!.fetch(IOVA + PAGE, 4);
    expect(device!.result).toBe("busy");
    expect(rig.settle(device!)).toBe("fault");
    expect(device!.interrupts).toBe(2);
  });
});

describe("the vectors of a device in a guest", () => {
  it("wait while they are masked, one by one or all, and are sent when they are not", () => {
    rig = new GuestRig("vtd", "nested");
    map(rig, "masked");
    const [device] = rig.devices;
    const [requester] = rig.vmm.devices;
    const mask = (value: number) =>
      requester!.barWrite(TABLE_BAR, MsixEntry.VECTOR_CONTROL, Uint8Array.of(value, 0, 0, 0));
    const control = findCapability(requester!, CapabilityId.MSIX)! + MsixCapability.MESSAGE_CONTROL;
    const { Enable, FunctionMask } = MsixControl.fields;
    mask(VECTOR_MASKED);
    device!.fetch(IOVA, 4);
    expect(rig.settle(device!)).toBe("busy");
    mask(0);
    expect(device!.result).toBe("done");
    requester!.configWrite(control, 2, Enable.mask | FunctionMask.mask);
    device!.fetch(IOVA, 4);
    expect(rig.settle(device!)).toBe("busy");
    requester!.configWrite(control, 2, Enable.mask);
    expect(device!.result).toBe("done");
    requester!.configWrite(control, 2, 0);
    device!.fetch(IOVA, 4);
    expect(rig.settle(device!)).toBe("busy");
    expect(device!.poll()).toBe("done");
  });
});

describe("a guest whose driver fails in an interrupt", () => {
  it("panics, which is reported; its host and another guest go on", () => {
    rig = new GuestRig("vtd", "nested");
    const beside = new GuestRig("vtd", "nested", { beside: rig });
    map(rig, "unlucky");
    map(beside, "unharmed");
    const [device] = rig.devices;
    rig.guest.listen(rig.vmm.devices[0]!, 0, () => {
      throw new TypeError("cannot read what is not there");
    });
    device!.fetch(IOVA, 4);
    expect(rig.settle(device!)).toBe("busy");
    expect(rig.vmm.panic).toBe("cannot read what is not there");
    expect(rig.events.noted).toContainEqual({
      kind: "device",
      fields: { device: "vmm", what: "the guest panicked", reason: "cannot read what is not there" },
    });
    const [unharmed] = beside.devices;
    unharmed!.fetch(IOVA, 8);
    expect(beside.settle(unharmed!)).toBe("done");
    expect(beside.vmm.panic).toBeUndefined();
    // It takes no interrupts any more, its device still does what it was told to.
    rig.listen();
    device!.fetch(IOVA, 4);
    expect(rig.settle(device!)).toBe("busy");
    expect(device!.poll()).toBe("done");
    expect(beside.close()).toEqual({});
  });

  it("panics too when it fails in what an interrupt of its unit set going", () => {
    rig = new GuestRig("smmuv3", "nested", {
      edit: (text) => text.replace("[0000:03:00.0]", "[0000:7e:00.0]"),
    });
    const { guest, vmm } = rig;
    const [requester] = vmm.devices;
    const process = guest.start("process", requester!);
    const pasid = guest.bind(requester!, process);
    process.reserve(IOVA, 1);
    process.touch = () => {
      throw new RangeError("no such list");
    };
    const [device] = rig.devices;
    device!.fetch(IOVA, 4, pasid);
    expect(rig.settle(device!)).toBe("busy");
    expect(vmm.panic).toBe("no such list");
  });
});
