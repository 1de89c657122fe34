/**
 * Teardown in every order: files are closed, objects destroyed, functions detached and VMMs killed in every order there is,
 * while guests' page tables, virtual IOMMUs and PASIDs are in use, accesses wait, and page requests have been read, not
 * been read, or are still with the unit. Afterwards nothing is left, nobody waits, and functions are refused what they ask for.
 */
import { describe, expect, it } from "vitest";
import { FaultHost, type PlainVendor, type Vendor } from "../../test/support/fault-rig.ts";
import { Books, FaultVmm } from "../../test/support/fault-vmm.ts";
import { GuestRig } from "../../test/support/guest-rig.ts";
import { iovaOf, PlainVmm } from "../../test/support/plain-vmm.ts";
import { SpaprClient } from "../../test/support/spapr-client.ts";
import { outcome } from "../../test/support/vfio-client.ts";
import { NO_PASID } from "../hardware/unit.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { VFIO_SPAPR_TCE_v2_IOMMU, VFIO_TYPE1v2_IOMMU } from "../uapi/vfio.ts";

const UNITS: readonly Vendor[] = ["vtd", "smmuv3", "amdvi"];
const PLAIN: readonly PlainVendor[] = ["zpci", "tce"];
const PAGE = 4096;
const VA = 0x7000_0000;
/** Bytes of the small memory of a client of containers. */
const SMALL = 16 * PAGE;
const TIME = { timeout: 240_000 };

/** Every order of some of them: all of them, all but one, … none. */
const orders = <T>(items: readonly T[]): T[][] => [
  [],
  ...items.flatMap((item) => orders(items.filter((other) => other !== item)).map((rest) => [item, ...rest])),
];
const permutations = <T>(items: readonly T[]): T[][] =>
  orders(items).filter((order) => order.length === items.length);

/** Everything in use: see above. */
const scene = (host: FaultHost): FaultVmm => {
  const vmm = new FaultVmm(host, new Books());
  const [paging, deaf] = vmm.tables as [FaultVmm["tables"][number], FaultVmm["tables"][number]];
  const nested = vmm.tables.find(({ faults, mends }) => faults && !mends)!;
  vmm.attach(0, nested);
  vmm.attach(1, paging);
  vmm.attach(1, deaf, 5);
  vmm.attach(1, paging, 6);
  if (host.vendor === "vtd") vmm.attach(0, nested, 5);
  ask(host);
  host.interrupt();
  vmm.readFaults();
  ask(host);
  host.interrupt();
  ask(host);
  return vmm;
};

const ask = (host: FaultHost): void => {
  for (const made of host.functions)
    for (const pasid of [NO_PASID, 5, 6])
      for (let page = 0; page < 3; page++) made.begin(iovaOf(host) + page * PAGE, pasid);
};

/** Both functions have tables, the first that of a guest where there are such: see above. */
const plainScene = (host: FaultHost): PlainVmm => {
  const vmm = new PlainVmm(host);
  vmm.attach(0, vmm.tables.at(-1)!);
  vmm.attach(1, vmm.tables[0]!);
  for (const made of host.functions) {
    made.master(true);
    const { done } = made.counts;
    made.begin(iovaOf(host), NO_PASID);
    expect(made.counts.done).toBe(done + 1);
  }
  ask(host);
  return vmm;
};

/** Nothing is left, nobody waits, and every access is refused. */
const expectNothing = (host: FaultHost, where: string): void => {
  while (host.interrupt() || host.functions.map((made) => made.proceed()).includes(true));
  expect(
    Object.entries(host.live()).filter(([, count]) => count !== 0),
    where,
  ).toEqual([]);
  for (const made of host.functions) {
    const { parked, resumed, failed, dropped } = made.waits;
    expect(parked, where).toBe(resumed + failed + dropped);
    // As if it were still a bus master: the unit must not let anything through.
    made.master(true);
    const before = { ...made.counts };
    for (const pasid of [NO_PASID, 5, 6]) made.begin(iovaOf(host), pasid);
    expect(made.counts, where).toEqual({ ...before, faulted: before.faulted + 3 });
    made.master(false);
  }
  host.interrupt();
};

describe.each(UNITS)("%s: whatever goes first", (vendor) => {
  it("files are closed in every order, and the VMM is killed after any of them", TIME, () => {
    const host = new FaultHost(vendor);
    const count = scene(host);
    const places = count.files.map((_, index) => index);
    count.task.exit();
    expectNothing(host, "nothing closed");
    expect(places.length).toBe(vendor === "smmuv3" ? 5 : 4);
    for (const order of orders(places)) {
      const vmm = scene(host);
      const { files } = vmm;
      for (const index of order) {
        vmm.task.close(files[index]!);
        ask(host);
      }
      vmm.task.exit();
      expectNothing(host, `closed ${order.join(", ")}, then killed`);
    }
    host.host.memory.close();
  });

  it("objects are destroyed and functions detached in every order, as far as each may go", TIME, () => {
    const host = new FaultHost(vendor);
    const answers = new Set<unknown>();
    for (const order of permutations([0, 1, 2, 3, 4, 5])) {
      const vmm = scene(host);
      const { devices, files, objects } = vmm;
      const half = objects.length >> 1;
      /** How many of them went. */
      const destroy = (ids: readonly number[]): number => {
        const codes = ids.map((id) => outcome(() => vmm.calls.destroy(id)));
        for (const code of codes) answers.add(code);
        return codes.filter((code) => code === undefined).length;
      };
      const steps = [
        () => vmm.detach(0),
        () => vmm.task.close(devices[1]!.fd),
        () => destroy(objects.slice(0, half)),
        () => destroy(objects.slice(half)),
        () => vmm.task.close(files[3]!),
        () => void (files[4] === undefined ? vmm.detach(0, 5) : vmm.task.close(files[4])),
      ];
      for (const index of order) {
        steps[index]!();
        ask(host);
      }
      vmm.task.close(files[0]!);
      while (destroy(objects) > 0);
      // The iommufd file alone is left, and has nothing in it.
      expect(host.iommufd.live(), order.join()).toMatchObject({
        files: 1,
        objects: 0,
        areas: 0,
        pinnedPages: 0,
      });
      vmm.task.exit();
      expectNothing(host, order.join());
    }
    expect(answers).toEqual(new Set([undefined, "EBUSY", "ENOENT"]));
    host.host.memory.close();
  });
});

describe.each(PLAIN)("%s: whatever goes first", (vendor) => {
  it("files are closed in every order, and the VMM is killed after any of them", TIME, () => {
    const host = new FaultHost(vendor);
    for (const order of orders([0, 1, 2])) {
      const vmm = plainScene(host);
      const { files } = vmm;
      for (const index of order) {
        vmm.task.close(files[index]!);
        ask(host);
      }
      vmm.task.exit();
      expectNothing(host, `closed ${order.join(", ")}, then killed`);
    }
    host.host.memory.close();
  });

  it("objects are destroyed and functions detached in every order, as far as each may go", TIME, () => {
    const host = new FaultHost(vendor);
    const answers = new Set<unknown>();
    for (const order of permutations([0, 1, 2, 3])) {
      const vmm = plainScene(host);
      const { devices, objects } = vmm;
      const half = objects.length >> 1;
      const destroy = (ids: readonly number[]): boolean => {
        const codes = ids.map((id) => outcome(() => vmm.calls.destroy(id)));
        for (const code of codes) answers.add(code);
        return codes.includes(undefined);
      };
      const steps = [
        () => vmm.detach(0),
        () => vmm.task.close(devices[1]!.fd),
        () => destroy(objects.slice(0, half)),
        () => destroy(objects.slice(half)),
      ];
      for (const index of order) {
        steps[index]!();
        ask(host);
      }
      vmm.task.close(devices[0]!.fd);
      while (destroy(objects));
      expect(host.iommufd.live(), order.join()).toMatchObject({
        files: 1,
        objects: 0,
        areas: 0,
        pinnedPages: 0,
      });
      vmm.task.exit();
      expectNothing(host, order.join());
    }
    expect(answers).toEqual(new Set([undefined, "EBUSY", "ENOENT"]));
    host.host.memory.close();
  });
});

describe.each([
  ...[...UNITS, ...PLAIN].map((vendor) => [vendor, "type 1", VFIO_TYPE1v2_IOMMU] as const),
  ["tce", "sPAPR", VFIO_SPAPR_TCE_v2_IOMMU] as const,
])("%s, %s: whatever goes first", (vendor, _, type) => {
  it("container, group and device go in every order, the program is killed after any of them", TIME, () => {
    const host = new FaultHost(vendor);
    for (const order of orders([0, 1, 2, 3])) {
      const task = new ModelTask(host.host.memory);
      task.memory.map(VA, SMALL);
      const client = new SpaprClient(task, host.vfio);
      const { container, group } = client.attach(0, type);
      const { name } = host.functions[0]!;
      const files = [container, group, client.device(group, name), client.device(group, name)];
      if (type === VFIO_SPAPR_TCE_v2_IOMMU) client.register(container, VA, SMALL);
      client.map(container, { vaddr: VA, iova: iovaOf(host), size: SMALL });
      host.functions[0]!.master(true);
      const { done } = host.functions[0]!.counts;
      host.functions[0]!.begin(iovaOf(host), NO_PASID);
      expect(host.functions[0]!.counts.done).toBe(done + 1);
      for (const index of order) {
        task.close(files[index]!);
        ask(host);
      }
      task.exit();
      expectNothing(host, `closed ${order.join(", ")}, then killed`);
    }
    host.host.memory.close();
  });
});

describe.each([
  ["vtd", "nested"],
  ["vtd-legacy", "shadow"],
  ["smmuv3", "nested"],
] as const)("%s, %s: a VMM", (preset, follow) => {
  it("is killed at every moment while its guest brings in pages that a device asks for", TIME, () => {
    const address = 0x5555_0000_0000;
    for (let moment = 0; ; moment++) {
      const rig = new GuestRig(preset, follow);
      const { guest, work } = rig;
      const [requester] = rig.vmm.devices;
      let busy: boolean;
      if (follow === "nested") {
        const process = guest.start("process", requester!);
        const pasid = guest.bind(requester!, process);
        process.reserve(address, 4);
        work.run();
        rig.devices[0]!.fetch(address, 2 * PAGE, pasid);
        busy = work.run(moment) === moment;
      } else {
        const domain = guest.driver.allocatePaging(requester!);
        guest.driver.attach(requester!, domain);
        domain.map(0x10_0000, guest.allocate(1), PAGE, 3);
        rig.devices[0]!.fetch(0x10_0000, PAGE);
        busy = work.run(moment) === moment;
      }
      rig.vmm.exit();
      work.run(); // what the guest's processors had begun comes to nothing
      expect(rig.close(), `killed after ${moment}`).toEqual({});
      if (!busy) break;
    }
  });
});
