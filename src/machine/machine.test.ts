import { describe, expect, it } from "vitest";
import { VfioClient } from "../../test/support/vfio-client.ts";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { Register } from "../hardware/vtd/spec.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { VFIO_REGION_INFO_FLAG_MMAP } from "../uapi/vfio.ts";
import type { Break } from "./breaks.ts";
import { parseDevice, parseMachine, withDevices } from "./file.ts";
import { Machine } from "./machine.ts";
import { PRESETS } from "./presets.ts";

const VA = 0x10_0000;

/** The vtd machine with these devices besides, and a client of it; everything is closed afterwards. */
const onMachine = (
  devices: readonly string[],
  work: (machine: Machine, client: VfioClient, scheduler: WorkQueue) => void,
  broken: readonly Break[] = [],
): void => {
  const description = withDevices(parseMachine(PRESETS.get("vtd")!, "vtd"), devices.map(parseDevice));
  const scheduler = new WorkQueue();
  const machine = new Machine(description, {
    events: silent,
    clock: new ManualClock(),
    scheduler,
    broken: new Set(broken),
  });
  const task = new ModelTask(machine.memory);
  try {
    work(machine, new VfioClient(task, machine.vfio), scheduler);
  } finally {
    task.exit();
    expect(Object.entries(machine.live()).filter(([, count]) => count !== 0)).toEqual([]);
    machine.close();
  }
};

const groupOf = (machine: Machine, device: string): number => machine.core.devices.get(device)!.group.id;

describe("a machine", () => {
  it("has the functions of its description, each in a group of its own unless they share one", () =>
    onMachine(["test@0000:05:00.0,group=pair", "test@0000:05:00.1,group=pair"], (machine) => {
      expect(machine.functions.map(({ name, model }) => `${name} ${model}`)).toEqual([
        "0000:01:00.0 nvme",
        "0000:02:00.0 nvme",
        "0000:04:00.0 bare",
        "0000:03:00.0 dsa",
        "0000:05:00.0 test",
        "0000:05:00.1 test",
      ]);
      expect(groupOf(machine, "0000:05:00.0")).toBe(groupOf(machine, "0000:05:00.1"));
      expect(groupOf(machine, "0000:01:00.0")).not.toBe(groupOf(machine, "0000:02:00.0"));
    }));

  it("hands every namespace of a disk to its controller", () => {
    const model = "  - model: nvme\n";
    const odd = `${model}    more-namespaces: [{size: 5000, block-size: 4096}]\n`;
    const description = parseMachine(PRESETS.get("vtd")!.replace(model, odd), "vtd");
    const build = () =>
      new Machine(description, { events: silent, clock: new ManualClock(), scheduler: new WorkQueue() });
    expect(build).toThrow("nvme: size 5000 is not a multiple of the block size, 4096 bytes");
  });

  it("shows a node for every group, and files that agree with them", () =>
    onMachine([], (machine) => {
      const group = groupOf(machine, "0000:02:00.0");
      expect(machine.nodes().map(({ path }) => path)).toContain(`/dev/vfio/${group}`);
      expect(machine.tree()).toContainEqual({
        path: expect.stringMatching(/0000:02:00\.0\/iommu_group$/) as string,
        kind: "link",
        target: expect.stringMatching(new RegExp(`/iommu_groups/${group}$`)) as string,
      });
    }));

  it("shows every node of VFIO with its numbers: devices in their folders, groups in their class", () =>
    onMachine(["test@0000:05:00.0"], (machine) => {
      const entries = new Map(machine.tree().map((entry) => [entry.path, entry]));
      const device = `/sys/devices/pci0000:05/0000:05:00.0/vfio-dev`;
      const cdev = machine.nodes().find(({ path }) => path === "/dev/vfio/devices/vfio4")!;
      const group = machine.nodes().find(({ path }) => path === "/dev/vfio/4")!;
      expect(entries.get(`${device}/vfio4/dev`)).toMatchObject({ content: `${cdev.major}:${cdev.minor}\n` });
      expect(entries.get(`${device}/vfio4/uevent`)).toMatchObject({
        content: expect.stringContaining("DEVNAME=vfio/devices/vfio4\n") as string,
      });
      expect(entries.get("/sys/class/vfio-dev/vfio4")).toMatchObject({
        target: "../../devices/pci0000:05/0000:05:00.0/vfio-dev/vfio4",
      });
      expect(entries.get("/sys/devices/virtual/vfio/4/dev")).toMatchObject({
        content: `${group.major}:${group.minor}\n`,
      });
      expect(entries.get("/sys/class/vfio/4")).toMatchObject({ target: "../../devices/virtual/vfio/4" });
      expect(cdev.major).not.toBe(group.major);
    }));

  it("shows a VT-d unit's registers and how many domains it has", () =>
    onMachine([], (machine) => {
      const home = "/sys/devices/virtual/iommu/dmar0/intel-iommu";
      const shown = (name: string) => {
        const entry = machine.tree().find(({ path }) => path === `${home}/${name}`);
        return entry?.kind === "file" ? String(entry.content).trim() : undefined;
      };
      const { unit } = machine.units.get("dmar0")!;
      for (const name of ["CAP", "ECAP"] as const)
        expect(shown(name.toLowerCase())).toBe(unit.mmioRead(Register[name], 8).toString(16));
      expect(shown("version")).toBe("6:0");
      expect(shown("domains_supported")).toBe("65536");
    }));

  it("offers mmap of BARs unless the description says no", () =>
    onMachine(["test@0000:05:00.0", "test@0000:06:00.0,mmap=false"], (machine, client) => {
      const flagsOf = (name: string): number => {
        const { group } = client.attach(groupOf(machine, name));
        return client.region(client.device(group, name), 0).flags & VFIO_REGION_INFO_FLAG_MMAP;
      };
      expect(flagsOf("0000:05:00.0")).toBe(VFIO_REGION_INFO_FLAG_MMAP);
      expect(flagsOf("0000:06:00.0")).toBe(0);
    }));

  it("places BARs one after the other, a 64-bit one over two places", () => {
    const bars = [
      { kind: "mem64", size: 4096 },
      { kind: "mem32", size: 256 },
      { kind: "mem64", size: 65536 },
    ] as const;
    const given = parseMachine(PRESETS.get("vtd")!, "vtd");
    const machine = new Machine(
      {
        ...given,
        devices: [{ model: "bare", capabilities: [], at: "0000:05:00.0", mmap: true, bars: [...bars] }],
      },
      { events: silent, clock: new ManualClock(), scheduler: new WorkQueue() },
    );
    expect(machine.functions[0]!.bars.map(({ index, kind, size }) => ({ index, kind, size }))).toEqual([
      { index: 0, ...bars[0] },
      { index: 2, ...bars[1] },
      { index: 3, ...bars[2] },
    ]);
    machine.close();
  });

  it("explains no access of a device it does not have", () =>
    onMachine([], (machine) => expect(machine.explain("0000:09:00.0", 0n, false)).toBeUndefined()));
});

describe("slots", () => {
  const EBUSY = expect.objectContaining({ code: "EBUSY" });
  const PAIR = ["test@0000:05:00.0,group=pair", "test@0000:05:00.1,group=pair"];

  it("a function goes with its nodes and comes back, in its group, with BARs that answer", () =>
    onMachine([], (machine, client) => {
      const name = "0000:04:00.0";
      const { base } = machine.core.devices.get(name)!.function.bars[0]!;
      machine.unplug(name);
      expect(machine.core.devices.has(name)).toBe(false);
      expect(machine.vfio.deviceNodes.has(name)).toBe(false);
      expect(machine.tree().some(({ path }) => path.includes(name))).toBe(false);
      expect(machine.memory.readBytes(base, new Uint8Array(4))).toBe(false);
      machine.rescan();
      const device = client.device(client.attach(groupOf(machine, name)).group, name);
      const [bar] = machine.core.devices.get(name)!.function.bars;
      expect(machine.memory.readBytes(bar!.base, new Uint8Array(4))).toBe(true);
      expect(client.region(device, 0).size).toBe(BigInt(bar!.size));
      machine.rescan();
    }));

  it("one of a group goes and comes back to it; while the group is open neither is possible", () =>
    onMachine(PAIR, (machine, client) => {
      const group = groupOf(machine, "0000:05:00.0");
      const { group: fd } = client.attach(group);
      expect(() => machine.unplug("0000:05:00.1")).toThrow(EBUSY);
      client.unsetContainer(fd);
      client.task.close(fd);
      machine.unplug("0000:05:00.1");
      expect(machine.vfio.groupNodes.has(group)).toBe(true);
      const again = client.attach(group);
      expect(() => machine.rescan()).toThrow(EBUSY);
      client.unsetContainer(again.group);
      client.task.close(again.group);
      machine.rescan();
      expect(groupOf(machine, "0000:05:00.1")).toBe(group);
      const last = client.attach(group).group;
      for (const name of ["0000:05:00.0", "0000:05:00.1"])
        expect(client.device(last, name)).toBeGreaterThan(0);
    }));

  it("a function of a driver of the host stays, and one that is not there is ENODEV", () =>
    onMachine(["queues@0000:07:00.0"], (machine) => {
      expect(() => machine.unplug("0000:07:00.0")).toThrow(EBUSY);
      expect(() => machine.unplug("0000:09:00.0")).toThrow(expect.objectContaining({ code: "ENODEV" }));
    }));
});

describe("a fault injected on purpose", () => {
  /** Whether a page that was used and unmapped can still be reached. */
  const reachableAfterUnmap = (broken: readonly Break[]): boolean => {
    let reachable = false;
    onMachine(
      ["test@0000:05:00.0"],
      (machine, client, scheduler) => {
        client.task.memory.map(VA, 0x1000);
        const { container } = client.attach(groupOf(machine, "0000:05:00.0"));
        client.map(container, { vaddr: VA, iova: 0x10_0000, size: 0x1000 });
        const device = machine.functions.at(-1)!;
        device.configWrite(4, 2, 6);
        const registers = new Uint8Array(Uint32Array.of(1, 0x10_0000, 0, 0, 0, 64).buffer);
        // SOURCE, DESTINATION, LENGTH, then COMMAND: read 64 bytes.
        device.barWrite(0, 0x08, registers.subarray(4));
        device.barWrite(0, 0x04, registers.subarray(0, 4));
        scheduler.run();
        client.unmapAll(container);
        reachable = [...machine.explain("0000:05:00.0", 0x10_0000n, false)!].at(-1)!.outcome!.ok;
      },
      broken,
    );
    return reachable;
  };

  it("skip-flush: a page stays reachable after it was unmapped, which it is not otherwise", () => {
    expect(reachableAfterUnmap([])).toBe(false);
    expect(reachableAfterUnmap(["skip-flush"])).toBe(true);
  });
});
