/** Processes of a guest that share their addresses with a device and are killed in the middle of it. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GuestRig } from "../../test/support/guest-rig.ts";
import type { GuestProcess } from "./process.ts";
import type { ShownUnit } from "./vmm.ts";

const PAGE = 4096;
const VA = 0x5555_0000_0000;
const GUESTS: readonly (readonly ["nested" | "shadow", string, ShownUnit])[] = [
  ["nested", "vtd", "vtd"],
  ["nested", "smmuv3", "smmuv3"],
  ["shadow", "vtd", "vtd"],
  ["shadow", "vtd", "smmuv3"],
  ["shadow", "smmuv3", "vtd"],
  ["shadow", "smmuv3", "smmuv3"],
];

describe.each(GUESTS)("a process killed in a %s guest on %s, with %s", (follow, host, shows) => {
  let rig: GuestRig;
  beforeEach(() => {
    const edit = (text: string) => text.replace("[0000:03:00.0]", "[0000:7e:00.0, 0000:7f:00.0]");
    rig = new GuestRig(host, follow, { shows, edit });
    rig.guest.slow = true;
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const start = (name: string): { process: GuestProcess; pasid: number } => {
    const { guest, vmm } = rig;
    const process = guest.start(name, vmm.devices[0]!);
    process.reserve(VA, 8);
    return { process, pasid: guest.bind(vmm.devices[0]!, process) };
  };

  it("ends the accesses that waited for its pages; the next one to have its PASID is not touched by them", () => {
    const { guest } = rig;
    const [device] = rig.devices;
    const victim = start("victim");
    device!.write(Buffer.from("for the victim"));
    device!.store(VA, 14, victim.pasid);
    expect(rig.settle(device!)).toBe("busy");
    guest.kill(victim.process);
    expect(rig.settle(device!)).toBe("fault");
    const heir = start("heir");
    expect(heir.pasid).toBe(victim.pasid);
    heir.process.write(VA, "of the heir!!!");
    guest.serve();
    rig.work.run();
    expect(heir.process.read(VA, 14)).toBe("of the heir!!!");
    device!.fetch(VA, 14, heir.pasid);
    expect(rig.settle(device!)).toBe("done");
    expect(Buffer.from(device!.read(14)).toString()).toBe("of the heir!!!");
    guest.kill(heir.process);
  });

  it("leaves another process, whose page is on its way, alone", () => {
    const { guest, vmm } = rig;
    const [one, other] = rig.devices;
    const victim = start("victim");
    const survivor = guest.start("survivor", vmm.devices[1]!);
    survivor.reserve(VA, 8);
    const pasid = guest.bind(vmm.devices[1]!, survivor);
    one!.fetch(VA, 4, victim.pasid);
    other!.fetch(VA + PAGE - 2, 4, pasid);
    rig.work.run();
    expect([one!.result, other!.result]).toEqual(["busy", "busy"]);
    guest.kill(victim.process);
    rig.work.run();
    expect([one!.result, other!.result]).toEqual(["fault", "busy"]);
    for (let rounds = 0; rounds < 2; rounds++) {
      guest.serve();
      rig.work.run();
    }
    expect(other!.result).toBe("done");
    expect(survivor.faults).toBe(2);
    guest.kill(survivor);
  });

  it("is gone for each of several devices; one that shares it twice waits nowhere", () => {
    const { guest, vmm } = rig;
    const victim = start("victim");
    expect(guest.bind(vmm.devices[1]!, victim.process)).toBe(victim.pasid);
    for (const device of rig.devices) device.fetch(VA, 4, victim.pasid);
    rig.work.run();
    guest.kill(victim.process);
    rig.work.run();
    expect(rig.devices.map(({ result }) => result)).toEqual(["fault", "fault"]);
    expect(guest.driver.domains).toBe(0);
    guest.serve();
    for (const device of rig.devices) {
      device.fetch(VA, 4, victim.pasid);
      expect(rig.settle(device)).toBe("fault");
    }
  });
});
