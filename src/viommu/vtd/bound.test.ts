/** Guests of a VMM with the interface of 2020: what their entries and invalidations become, and what cannot be. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ManualClock } from "../../base/clock.ts";
import { silent } from "../../base/events.ts";
import { WorkQueue } from "../../base/scheduler.ts";
import { VirtualPasids } from "../../drivers/vtd/virtual-pasids.ts";
import { ContainerVmm } from "../../guest/container-vmm.ts";
import { Guest } from "../../guest/guest.ts";
import { Protection } from "../../iommu/driver.ts";
import { parseMachine } from "../../machine/file.ts";
import { Machine } from "../../machine/machine.ts";
import { PRESETS } from "../../machine/presets.ts";
import { printArgument } from "../../uapi/requests.ts";
import type { RecordedCall } from "../recorded-calls.ts";

const NAMES = ["0000:05:00.0", "0000:06:00.0"] as const;
const IOVA = 0x40_0000;
const PAGE = 4096;
const RW = Protection.read | Protection.write;

describe("a virtual VT-d unit above containers of 2020", () => {
  let machine: Machine;
  let vmm: ContainerVmm;
  let guest: Guest;
  let pasids: VirtualPasids;
  const calls: RecordedCall[] = [];

  beforeEach(() => {
    const work = new WorkQueue();
    machine = new Machine(parseMachine(PRESETS.get("vtd-vsva")!, "vtd-vsva"), {
      events: silent,
      clock: new ManualClock(),
      scheduler: work,
    });
    const common = { addressWidth: 46, scheduler: work, events: silent };
    vmm = new ContainerVmm({
      ...common,
      host: machine,
      name: "vmm",
      ramBytes: 2 ** 22,
      devices: NAMES.map((name, index) => ({
        group: `/dev/vfio/${machine.core.devices.get(name)!.group.id}`,
        name,
        rid: 8 * (index + 1),
      })),
      record: (call) => calls.push(call),
    });
    const { memory, iommu, devices } = vmm;
    guest = new Guest({ ...common, name: "guest", memory, iommu, devices });
    pasids = new VirtualPasids(iommu, "guest");
    for (const device of devices) guest.driver.attach(device, guest.driver.identity);
    calls.length = 0;
  });
  afterEach(() => {
    vmm.exit();
    expect(Object.values(machine.live()).filter((count) => count !== 0)).toEqual([]);
    machine.close();
  });

  /** Of each call since the last time: the operation, and what of its data is of interest. */
  const asked = (): string[] =>
    calls.splice(0).map(({ kind, name, request, given, error }) => {
      const text = printArgument(kind, request, given);
      const operation = /op=(\w+)/.exec(text)?.[1] ?? /flags=(\w+)/.exec(text)?.[1] ?? name;
      const pasid = /pasid=(0x\w+)/.exec(text)?.[1] ?? "";
      return [operation, pasid, error].filter((part) => part).join(" ");
    });
  const table = () => guest.driver.allocatePaging(vmm.devices[0]!, { pasid: true });

  it("a table of several devices is bound for each, and every change goes to each container", () => {
    const [first, second] = vmm.devices as [(typeof vmm.devices)[0], (typeof vmm.devices)[0]];
    const pasid = pasids.take();
    const domain = table();
    guest.driver.attach(first, domain, pasid);
    guest.driver.attach(second, domain, pasid);
    expect(vmm.backEnd.held).toBe(2);
    const name = `0x${pasid.toString(16)}`;
    const binds = asked().filter((call) => !call.startsWith("CACHE_INVLD"));
    expect(binds).toEqual(["ALLOC", `BIND_PGTBL ${name}`, `BIND_PGTBL ${name}`]);
    domain.map(IOVA, guest.allocate(1), PAGE, RW);
    const changes = asked();
    expect(changes.length).toBeGreaterThanOrEqual(2);
    expect(new Set(changes)).toEqual(new Set([`CACHE_INVLD ${name}`]));
    guest.driver.attach(first, guest.driver.blocked, pasid);
    expect(asked().filter((call) => call.startsWith("UNBIND"))).toEqual([`UNBIND_PGTBL ${name}`]);
    expect(vmm.backEnd.held).toBe(1);
    domain.unmap(IOVA, PAGE);
    expect(asked().length).toBeGreaterThan(0);
  });

  it("another table for a PASID is bound when the one before it is not any more", () => {
    const pasid = pasids.take();
    const [device] = vmm.devices;
    guest.driver.attach(device!, table(), pasid);
    asked();
    guest.driver.attach(device!, table(), pasid);
    const operations = asked().map((call) => call.split(" ")[0]);
    expect(operations.indexOf("UNBIND_PGTBL")).toBeGreaterThanOrEqual(0);
    expect(operations.indexOf("BIND_PGTBL")).toBeGreaterThan(operations.indexOf("UNBIND_PGTBL"));
    expect(vmm.backEnd.held).toBe(1);
  });

  it("PASIDs that the guest was not given stop its queue", () => {
    const [device] = vmm.devices;
    expect(() => guest.driver.attach(device!, table(), 900)).toThrow(
      expect.objectContaining({ code: "EIO" }),
    );
    expect(asked()).toEqual(["BIND_PGTBL 0x384 ENOENT"]);
    expect(vmm.backEnd.held).toBe(0);
  });

  it("a table for requests without a PASID is refused, and nothing is asked of the host", () => {
    const [device] = vmm.devices;
    expect(() => guest.driver.attach(device!, table())).toThrow(expect.objectContaining({ code: "EIO" }));
    expect(asked()).toEqual([]);
  });

  it("a PASID that is freed has no table any more", () => {
    const [device] = vmm.devices;
    const process = guest.start("process", device!);
    const pasid = guest.bind(device!, process);
    asked();
    guest.unbind(device!, process);
    process.exit();
    const name = `0x${pasid.toString(16)}`;
    expect(asked()).toEqual(expect.arrayContaining([`UNBIND_PGTBL ${name}`, "FREE"]));
    expect(guest.bind(device!, guest.start("next", device!))).toBe(pasid);
  });
});
