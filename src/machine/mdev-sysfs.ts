/**
 * Mediated devices in sysfs, as Linux shows them (Documentation/driver-api/vfio-mediated-device.rst): below a parent its
 * types, of which a device is made by writing a UUID to `create`; below a device `remove`.
 */

import type { Mdev, Mdevs, MdevType } from "../vfio/mdev/mdevs.ts";
import type { QueueParent } from "../vfio/mdev/queue-parent.ts";
import { action, file, folder, homeOf, link, type TreeEntry, trigger } from "./tree.ts";

/** The driver of functions with work queues, and that of the devices made of them. */
export const QUEUES_DRIVER = "softiommu_queues";
const MDEV_DRIVER = "vfio_mdev";

const DESCRIPTIONS: { readonly [Type in MdevType]: string } = {
  queue: "one work queue on an auxiliary domain, IOMMU-backed",
  software: "one work queue made by software, not IOMMU-backed",
};

const typeId = (type: MdevType): string => `${QUEUES_DRIVER}-${type}`;
const typeHome = ({ device }: QueueParent, type: MdevType): string =>
  `${homeOf(device.function)}/mdev_supported_types/${typeId(type)}`;

export const mdevEntries = (mdevs: Mdevs): TreeEntry[] =>
  mdevs.parents.length === 0
    ? []
    : [
        folder("/sys/bus/mdev/devices"),
        folder(`/sys/bus/mdev/drivers/${MDEV_DRIVER}`),
        folder("/sys/class/mdev_bus"),
        ...mdevs.parents.flatMap((parent) => [
          link(`/sys/class/mdev_bus/${parent.name}`, homeOf(parent.device.function)),
          ...mdevs.typesOf(parent).flatMap((type) => typeEntries(mdevs, parent, type)),
        ]),
        ...[...mdevs.devices.values()].flatMap((mdev) => deviceEntries(mdevs, mdev)),
      ];

const typeEntries = (mdevs: Mdevs, parent: QueueParent, type: MdevType): TreeEntry[] => {
  const home = typeHome(parent, type);
  return [
    folder(`${home}/devices`),
    file(`${home}/name`, type),
    file(`${home}/description`, DESCRIPTIONS[type]),
    file(`${home}/device_api`, "vfio-pci"),
    file(`${home}/available_instances`, String(mdevs.available(parent, type))),
    action(`${home}/create`, (text) => mdevs.create(parent, type, text)),
  ];
};

const deviceEntries = (mdevs: Mdevs, { uuid, type, parent, device }: Mdev): TreeEntry[] => {
  const home = homeOf(device.function);
  return [
    folder(home),
    file(`${home}/uevent`, `DRIVER=${MDEV_DRIVER}`),
    trigger(`${home}/remove`, () => mdevs.remove(uuid)),
    link(`${home}/mdev_type`, typeHome(parent, type)),
    link(`${home}/driver`, `/sys/bus/mdev/drivers/${MDEV_DRIVER}`),
    link(`${home}/subsystem`, "/sys/bus/mdev"),
    link(`${home}/iommu_group`, `/sys/kernel/iommu_groups/${device.group.id}`),
    link(`${typeHome(parent, type)}/devices/${uuid}`, home),
    link(`/sys/bus/mdev/devices/${uuid}`, home),
    link(`/sys/bus/mdev/drivers/${MDEV_DRIVER}/${uuid}`, home),
  ];
};
