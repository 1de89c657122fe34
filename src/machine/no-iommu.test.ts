/** Devices without an IOMMU: who may have them, what their container knows, and that nothing stands before memory. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { outcome, VfioClient } from "../../test/support/vfio-client.ts";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { Capability } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { TestCommand, TestRegister, TestStatus } from "../pci/devices/test-function.ts";
import { Command, Header } from "../pci/spec.ts";
import * as uapi from "../uapi/vfio.ts";
import { regionOffset } from "../vfio/regions.ts";
import { parseMachine } from "./file.ts";
import { Machine } from "./machine.ts";

const TEXT = `
name: open
units: [{model: vtd}]
devices:
  - {model: test, at: "0000:01:00.0"}
  - {model: test, at: "0000:02:00.0", unit: none}
no-iommu: true
`;
const NAME = "0000:02:00.0";
const { VFIO_NOIOMMU_IOMMU } = uapi;

let machine: Machine;
let work: WorkQueue;
let root: VfioClient;
const newClient = (capabilities: readonly Capability[]): VfioClient =>
  new VfioClient(new ModelTask(machine.memory, { capabilities }), machine.vfio);
const id = (): number => machine.core.devices.get(NAME)!.group.id;
const open = (client: VfioClient): number => client.open(`/dev/vfio/noiommu-${id()}`);

beforeEach(() => {
  work = new WorkQueue();
  machine = new Machine(parseMachine(TEXT, "open.yaml"), {
    events: silent,
    clock: new ManualClock(),
    scheduler: work,
  });
  root = newClient([Capability.sysRawio]);
});
afterEach(() => {
  root.task.exit();
  expect(Object.entries(machine.live()).filter(([, count]) => count !== 0)).toEqual([]);
  machine.close();
});

/** The whole way; the device is a bus master. */
const setUp = (): { container: number; group: number; device: number } => {
  const group = open(root);
  const container = root.container();
  root.setContainer(group, container);
  root.setIommu(container, VFIO_NOIOMMU_IOMMU);
  const device = root.device(group, NAME);
  const command = regionOffset(uapi.VFIO_PCI_CONFIG_REGION_INDEX) + BigInt(Header.COMMAND);
  root.task.pwrite(device, command, Uint8Array.of(Command.MEMORY_SPACE | Command.BUS_MASTER, 0));
  return { container, group, device };
};

describe("a device without an IOMMU", () => {
  it("has a group of that name and no node of its own; sysfs says so", () => {
    const paths = machine.nodes().map(({ path }) => path);
    expect(paths).toContain(`/dev/vfio/noiommu-${id()}`);
    expect(paths).not.toContain(`/dev/vfio/${id()}`);
    expect(paths.filter((path) => path.startsWith("/dev/vfio/devices/"))).toHaveLength(1);
    const entries = new Map(machine.tree().map((entry) => [entry.path, entry]));
    const home = `/sys/devices/pci0000:02/${NAME}`;
    expect(entries.get("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")).toMatchObject({
      content: "Y\n",
    });
    expect(entries.get(`/sys/kernel/iommu_groups/${id()}/name`)).toMatchObject({ content: "vfio-noiommu\n" });
    expect(entries.get(`${home}/driver`)).toMatchObject({ kind: "link" });
    expect(entries.has(`${home}/iommu`)).toBe(false);
    expect(entries.has(`/sys/class/vfio/noiommu-${id()}`)).toBe(true);
  });

  it("is for those with CAP_SYS_RAWIO: EPERM at each step for others", () => {
    const other = newClient([]);
    expect(outcome(() => open(other))).toBe("EPERM");
    const group = open(root);
    const container = root.container();
    const [theirGroup, theirContainer] = [group, container].map((fd) => root.task.pass(fd, other.task));
    expect(outcome(() => other.setContainer(theirGroup!, theirContainer!))).toBe("EPERM");
    root.setContainer(group, container);
    expect(outcome(() => other.setIommu(theirContainer!, VFIO_NOIOMMU_IOMMU))).toBe("EPERM");
    root.setIommu(container, VFIO_NOIOMMU_IOMMU);
    expect(outcome(() => other.device(theirGroup!, NAME))).toBe("EPERM");
    expect(root.device(group, NAME)).toBeTypeOf("number");
    other.task.exit();
  });

  it("is in a container of its own type, which knows no request", () => {
    const group = open(root);
    const container = root.container();
    const known = () => Array.from({ length: 16 }, (_, n) => root.extension(container, n));
    expect(known()[VFIO_NOIOMMU_IOMMU]).toBe(0);
    root.setContainer(group, container);
    expect(known().flatMap((value, n) => (value ? [n] : []))).toEqual([VFIO_NOIOMMU_IOMMU]);
    expect(outcome(() => root.setIommu(container, uapi.VFIO_TYPE1v2_IOMMU))).toBe("EINVAL");
    root.setIommu(container, VFIO_NOIOMMU_IOMMU);
    expect(outcome(() => root.map(container, { vaddr: 0, iova: 0, size: 4096 }))).toBe("ENOTTY");
    expect(outcome(() => root.info(container))).toBe("ENOTTY");
  });

  it("shares its container with none that has an IOMMU, and goes into no iommufd", () => {
    const { container } = setUp();
    const guarded = root.group(machine.core.devices.get("0000:01:00.0")!.group.id);
    expect(outcome(() => root.setContainer(guarded, container))).toBe("EPERM");
    const own = root.container();
    expect(root.setContainer(guarded, own)).toBe(0);
    const unprotected = newClient([Capability.sysRawio]);
    root.task.exit();
    root = unprotected;
    expect(outcome(() => root.setContainer(open(root), root.task.open(machine.iommufd.node)))).toBe("EINVAL");
  });

  it("puts physical addresses on the bus", () => {
    const { device } = setUp();
    const pa = machine.memory.allocate(1);
    machine.memory.writeBytes(pa, Uint8Array.from(Buffer.from("physical")));
    const register = (offset: number, value: number): void => {
      const bytes = new Uint8Array(new Uint32Array([value]).buffer);
      root.task.pwrite(device, regionOffset(0) + BigInt(offset), bytes);
    };
    register(TestRegister.SOURCE, pa);
    register(TestRegister.LENGTH, 8);
    register(TestRegister.COMMAND, TestCommand.READ);
    work.run();
    const read = (offset: number, length: number): Uint8Array => {
      const bytes = new Uint8Array(length);
      root.task.pread(device, regionOffset(0) + BigInt(offset), bytes);
      return bytes;
    };
    expect(read(TestRegister.STATUS, 4)[0]).toBe(TestStatus.DONE);
    expect(Buffer.from(read(TestRegister.BUFFER, 8)).toString()).toBe("physical");
    machine.memory.free(pa, 1);
  });
});
