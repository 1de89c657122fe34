/** The device nodes of VFIO with the numbers programs see in stat(2). */
import type { DeviceNode, KernelFile, Task } from "../kernel/call.ts";

/** The misc major, and the minor that is VFIO's (linux/miscdevice.h). */
const MISC_MAJOR = 10;
const VFIO_MINOR = 196;
/** Groups have a major that the kernel gives out dynamically; this is where it begins to look. */
const GROUP_MAJOR = 511;
/** The same for devices' own nodes, which register after the groups. */
const DEVICE_MAJOR = 510;

export const containerNode = (open: () => KernelFile): DeviceNode => ({
  path: "/dev/vfio/vfio",
  major: MISC_MAJOR,
  minor: VFIO_MINOR,
  mode: 0o666,
  open,
});

/** `name` is its number, with `noiommu-` before it when no IOMMU is in front of its devices. */
export const groupNode = (id: number, name: string, open: (task: Task) => KernelFile): DeviceNode => ({
  path: `/dev/vfio/${name}`,
  major: GROUP_MAJOR,
  minor: id,
  mode: 0o600,
  open,
});

/** The node of a device itself, by the number VFIO gave it. */
export const deviceNode = (index: number, open: () => KernelFile): DeviceNode => ({
  path: `/dev/vfio/devices/vfio${index}`,
  major: DEVICE_MAJOR,
  minor: index,
  mode: 0o600,
  open,
});
