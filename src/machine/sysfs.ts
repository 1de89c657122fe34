/**
 * The files of a machine that programs look at before they open a device: the PCI, IOMMU and module parts of sysfs and
 * the nodes in /dev/vfio, as a list of entries (`tree.ts`).
 * Left out: attributes of PCI functions that act when written, but for `remove` (`driver_override`, `bind`, `sriov_numvfs`).
 */
import { posix } from "node:path";
import type { Device, Group, IommuCore } from "../iommu/core.ts";
import type { DeviceNode } from "../kernel/call.ts";
import type { PciFunction } from "../pci/function.ts";
import type { Mdevs } from "../vfio/mdev/mdevs.ts";
import { mdevEntries, QUEUES_DRIVER } from "./mdev-sysfs.ts";
import { file, folder, homeOf, link, type TreeEntry, trigger } from "./tree.ts";

/** What the library asks about instead of the file of that name of any task: whether it is there, and its mode. */
const TASK_ATTRIBUTES = ["/proc/fail-nth", "/proc/make-it-fail"] as const;

/** Paths that are wholly the machine's: what is not in the tree does not exist. */
export const ROUTED = [
  "/sys/bus/mdev",
  "/sys/bus/pci",
  "/sys/class/iommu",
  "/sys/class/mdev_bus",
  "/sys/class/vfio",
  "/sys/class/vfio-dev",
  "/sys/devices/pci*",
  "/sys/devices/virtual/iommu",
  "/sys/devices/virtual/vfio",
  "/sys/kernel/iommu_groups",
  "/sys/module/vfio*",
  "/sys/module/iommufd",
  "/dev/vfio",
  "/dev/iommu",
  "/sys/kernel/debug",
  ...TASK_ATTRIBUTES,
] as const;

/** What a unit shows in /sys/class/iommu. */
export interface UnitAttributes {
  readonly name: string;
  /** Name of the attribute group, "intel-iommu", where its driver has one. */
  readonly group?: string;
  readonly attributes?: { readonly [name: string]: string };
}

export interface SysfsSource {
  readonly core: IommuCore;
  readonly units: readonly UnitAttributes[];
  /** VFIO's nodes: of groups by their number, and of the devices themselves by their names. */
  readonly groupNodes: ReadonlyMap<number, DeviceNode>;
  readonly deviceNodes: ReadonlyMap<string, DeviceNode>;
  /** Nodes of accelerators' work queues. */
  readonly queueNodes: readonly DeviceNode[];
  /** Paths of files that are served, not written: they are shown empty. */
  readonly attributes: readonly string[];
  readonly mdevs: Mdevs;
  /** Takes a function out of its slot; finds again what was taken out. */
  unplug(name: string): void;
  rescan(): void;
  /** VFIO takes devices without an IOMMU. */
  readonly noIommu: boolean;
}

const DRIVER = "vfio-pci";
const hex = (value: number, digits: number): string => `0x${value.toString(16).padStart(digits, "0")}`;

/** A file whose content is asked for when it is opened. */
const served = (path: string, mode: number): TreeEntry => ({
  path,
  kind: "file",
  content: new Uint8Array(),
  mode,
});

/** Every entry of the machine, folders before what is in them. */
export const sysfsTree = (source: SysfsSource): TreeEntry[] => {
  const { core, units, groupNodes, deviceNodes, queueNodes, attributes, mdevs, noIommu } = source;
  const devices = [...core.devices.values()];
  const functions = devices.filter(({ function: { mediated } }) => !mediated);
  const groups = [...core.groups.values()];
  return [
    ...modules(noIommu),
    folder("/sys/bus/pci/devices"),
    folder(`/sys/bus/pci/drivers/${DRIVER}`),
    folder("/sys/kernel/iommu_groups"),
    folder("/sys/class/iommu"),
    folder("/sys/class/vfio"),
    folder("/sys/class/vfio-dev"),
    folder("/sys/module/iommufd"),
    folder("/dev/vfio"),
    ...(queueNodes.length > 0 ? [folder("/dev/dsa")] : []),
    ...attributes.map((path) => served(path, 0o600)),
    ...TASK_ATTRIBUTES.map((path) => served(path, 0o644)),
    ...units.flatMap((unit) => unitEntries(unit, functions)),
    trigger("/sys/bus/pci/rescan", () => source.rescan()),
    ...functions.flatMap((device) => [
      ...deviceEntries(device, groupNodes.has(device.group.id) ? DRIVER : hostDriverOf(device)),
      trigger(`${homeOf(device.function)}/remove`, () => source.unplug(device.name)),
    ]),
    ...mdevEntries(mdevs),
    ...[...groupNodes.values()].flatMap((node) =>
      nodeEntries(node, `/sys/devices/virtual/vfio/${posix.basename(node.path)}`, "/sys/class/vfio"),
    ),
    ...devices.flatMap((device) => {
      const node = deviceNodes.get(device.name);
      return node ? cdevEntries(device, node) : [];
    }),
    ...groups.flatMap(groupEntries),
  ];
};

/** The driver of a function that is not VFIO's. */
const hostDriverOf = ({ function: { model } }: Device): string => (model === "dsa" ? "idxd" : QUEUES_DRIVER);

const modules = (noIommu: boolean): TreeEntry[] => [
  folder("/sys/module/vfio/parameters"),
  file("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", noIommu ? "Y" : "N"),
  folder("/sys/module/vfio_pci/drivers"),
  folder("/sys/module/vfio_iommu_type1/parameters"),
  file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N"),
  file("/sys/module/vfio_iommu_type1/parameters/disable_hugepages", "N"),
  file("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535"),
];

const unitEntries = (
  { name, group, attributes = {} }: UnitAttributes,
  devices: readonly Device[],
): TreeEntry[] => {
  const home = `/sys/devices/virtual/iommu/${name}`;
  return [
    folder(`${home}/devices`),
    ...(group === undefined
      ? []
      : [
          folder(`${home}/${group}`),
          ...Object.entries(attributes).map(([attribute, value]) =>
            file(`${home}/${group}/${attribute}`, value),
          ),
        ]),
    ...devices
      .filter(({ driver }) => driver.name === name)
      .map((device) => link(`${home}/devices/${device.name}`, homeOf(device.function))),
    link(`/sys/class/iommu/${name}`, home),
  ];
};

/** `bound`: the driver that has it. */
const deviceEntries = ({ function: device, driver, group }: Device, bound: string): TreeEntry[] => {
  const home = homeOf(device);
  const config = (offset: number, width: 1 | 2 | 4): number => device.configRead(offset, width);
  const classCode = config(0x08, 4) >>> 8;
  const vendor = config(0x00, 2);
  const model = config(0x02, 2);
  const subsystemVendor = config(0x2c, 2);
  const subsystem = config(0x2e, 2);
  const upper = (value: number, digits: number): string =>
    value.toString(16).toUpperCase().padStart(digits, "0");
  const modalias =
    `pci:v${upper(vendor, 8)}d${upper(model, 8)}sv${upper(subsystemVendor, 8)}sd${upper(subsystem, 8)}` +
    `bc${upper(classCode >>> 16, 2)}sc${upper((classCode >>> 8) & 0xff, 2)}i${upper(classCode & 0xff, 2)}`;
  return [
    folder(home),
    file(`${home}/vendor`, hex(vendor, 4)),
    file(`${home}/device`, hex(model, 4)),
    file(`${home}/subsystem_vendor`, hex(subsystemVendor, 4)),
    file(`${home}/subsystem_device`, hex(subsystem, 4)),
    file(`${home}/revision`, hex(config(0x08, 1), 2)),
    file(`${home}/class`, hex(classCode, 6)),
    file(`${home}/irq`, "0"),
    file(`${home}/numa_node`, "-1"),
    file(`${home}/local_cpulist`, "0"),
    file(`${home}/enable`, "0"),
    file(`${home}/driver_override`, bound === DRIVER ? DRIVER : "(null)"),
    file(`${home}/modalias`, modalias),
    file(
      `${home}/uevent`,
      [
        `DRIVER=${bound}`,
        `PCI_CLASS=${upper(classCode, 5)}`,
        `PCI_ID=${upper(vendor, 4)}:${upper(model, 4)}`,
        `PCI_SUBSYS_ID=${upper(subsystemVendor, 4)}:${upper(subsystem, 4)}`,
        `PCI_SLOT_NAME=${device.name}`,
        `MODALIAS=${modalias}`,
      ].join("\n"),
    ),
    file(`${home}/config`, configBytes(device)),
    file(`${home}/resource`, resources(device)),
    link(`${home}/driver`, `/sys/bus/pci/drivers/${bound}`),
    link(`${home}/subsystem`, "/sys/bus/pci"),
    ...(driver.unprotected ? [] : [link(`${home}/iommu`, `/sys/devices/virtual/iommu/${driver.name}`)]),
    link(`${home}/iommu_group`, `/sys/kernel/iommu_groups/${group.id}`),
    link(`/sys/bus/pci/devices/${device.name}`, home),
    link(`/sys/bus/pci/drivers/${bound}/${device.name}`, home),
  ];
};

/** What a node is in sysfs: its numbers, in its home and by the class that it belongs to. */
const nodeEntries = ({ path, major, minor }: DeviceNode, home: string, ofClass: string): TreeEntry[] => [
  folder(home),
  file(`${home}/dev`, `${major}:${minor}`),
  file(
    `${home}/uevent`,
    [`MAJOR=${major}`, `MINOR=${minor}`, `DEVNAME=${posix.relative("/dev", path)}`].join("\n"),
  ),
  link(`${home}/subsystem`, ofClass),
  link(`${ofClass}/${posix.basename(path)}`, home),
];

/** VFIO's character device: programs list `vfio-dev/` of the device, and find the node's numbers in `dev`. */
const cdevEntries = ({ function: device }: Device, node: DeviceNode): TreeEntry[] => {
  const home = `${homeOf(device)}/vfio-dev/${posix.basename(node.path)}`;
  return [...nodeEntries(node, home, "/sys/class/vfio-dev"), link(`${home}/device`, homeOf(device))];
};

const groupEntries = (group: Group): TreeEntry[] => {
  const home = `/sys/kernel/iommu_groups/${group.id}`;
  const ranges = group
    .reserved()
    .map(({ start, length, kind }) => `${hex(start, 16)} ${hex(start + length - 1, 16)} ${kind}`);
  const unprotected = group.devices.some(({ driver }) => driver.unprotected);
  return [
    folder(`${home}/devices`),
    unprotected ? file(`${home}/name`, "vfio-noiommu") : file(`${home}/type`, "DMA"),
    file(`${home}/reserved_regions`, ranges.join("\n")),
    ...group.devices.map((device) => link(`${home}/devices/${device.name}`, homeOf(device.function))),
  ];
};

const configBytes = (device: PciFunction): Uint8Array => {
  const bytes = new Uint8Array(device.configSize);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += 4) view.setUint32(at, device.configRead(at, 4), true);
  return bytes;
};

/** IORESOURCE flags that user space tests. */
const ResourceFlag = {
  io: 0x100,
  memory: 0x200,
  prefetch: 0x2000,
  readOnly: 0x4000,
  memory64: 0x100000,
} as const;

const resourceLine = (base: number, size: number, flags: number): string =>
  `${hex(base, 16)} ${hex(size === 0 ? 0 : base + size - 1, 16)} ${hex(flags, 16)}`;

/** One line a BAR (and for the ROM): first address, last address, flags. */
const resources = (device: PciFunction): string => {
  const lines = Array.from({ length: 6 }, (_, index) => {
    const bar = device.bars.find((candidate) => candidate.index === index);
    if (!bar) return resourceLine(0, 0, 0);
    const kind = bar.kind === "io" ? ResourceFlag.io : ResourceFlag.memory;
    const flags =
      kind |
      (bar.prefetchable ? ResourceFlag.prefetch : 0) |
      (bar.kind === "mem64" ? ResourceFlag.memory64 : 0);
    return resourceLine(bar.base, bar.size, flags);
  });
  const { rom } = device;
  const { memory, prefetch, readOnly } = ResourceFlag;
  const last = rom ? resourceLine(rom.base, rom.size, memory | prefetch | readOnly) : resourceLine(0, 0, 0);
  return [...lines, last].join("\n");
};
