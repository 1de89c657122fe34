/**
 * The library in one file: a machine in this process, a process that maps memory for a device, and what the IOMMU makes
 * of an address. Build it with the TypeScript compiler, or run it with a Node that takes types away by itself.
 */
import {
  formatWalk,
  LinuxError,
  Machine,
  ManualClock,
  ModelTask,
  PRESETS,
  parseMachine,
  silent,
  vfio,
  WorkQueue,
  walk,
} from "softiommu";

const DEVICE = "0000:01:00.0";
const VA = 0x7f00_0000_0000;

const machine = new Machine(parseMachine(PRESETS.get("vtd") ?? "", "vtd"), {
  events: silent,
  clock: new ManualClock(),
  scheduler: new WorkQueue(),
});

const open = (path: string) => {
  const node = machine.nodes().find((candidate) => candidate.path === path);
  if (node === undefined) throw new LinuxError("ENOENT", `${path} is not there`);
  return task.open(node);
};

// A process opens a container and a group, as a C program would.
const task = new ModelTask(machine.memory, { name: "example" });
task.memory.map(VA, 0x2000);
const container = open("/dev/vfio/vfio");
const group = open(`/dev/vfio/${machine.core.devices.get(DEVICE)?.group.id}`);
task.ioctl(group, vfio.VFIO_GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(container).buffer));
task.ioctl(container, vfio.VFIO_SET_IOMMU, vfio.VFIO_TYPE1v2_IOMMU);

const map = vfio.VfioIommuType1DmaMap;
const mapArgument = (iova: bigint) =>
  map.bytes({
    argsz: map.size,
    flags: vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE,
    vaddr: BigInt(VA),
    iova,
    size: 0x2000n,
  });
task.ioctl(container, vfio.VFIO_IOMMU_MAP_DMA, mapArgument(0x10_0000n));

// What fails says why.
try {
  task.ioctl(container, vfio.VFIO_IOMMU_MAP_DMA, mapArgument(0x10_0800n));
} catch (error) {
  if (error instanceof LinuxError) console.log(`${error.code}: ${error.reason}\n`);
}

for (const iova of [0x10_1234n, 0x20_0000n])
  for (const line of formatWalk(walk(machine, { device: DEVICE, iova, write: true }))) console.log(line);

task.exit();
machine.close();
