/**
 * Hot reset (linux/vfio.h, VFIO_DEVICE_PCI_HOT_RESET): a reset of the whole bus, for which the caller must own every
 * function on it: by a file of each group, or, for a device opened as a character device, by the iommufd it is bound
 * to. The functions of a bus stand for what a real bridge would reset.
 */
import type { Device } from "../iommu/core.ts";
import type { IommufdContext } from "../iommufd/context.ts";
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_PCI_DEVID_NOT_OWNED,
  VFIO_PCI_DEVID_OWNED,
  VFIO_PCI_HOT_RESET_FLAG_DEV_ID,
  VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
  VfioPciDependentDevice,
  VfioPciHotReset,
  VfioPciHotResetInfo,
} from "../uapi/vfio.ts";
import { readArgument } from "./argument.ts";
import type { VfioContext } from "./context.ts";
import type { PciDevice } from "./pci-device.ts";

const onSameBus = (context: VfioContext, device: PciDevice): Device[] => {
  const { segment, bus } = device.pci.address;
  return [...context.core.devices.values()].filter(
    ({ function: { address, mediated } }) => !mediated && address.segment === segment && address.bus === bus,
  );
};

/**
 * What an iommufd has of a device: its id there; OWNED when only another device of its group is bound to it; NOT_OWNED.
 */
const devidOf = (context: VfioContext, { name, group }: Device, iommufd: IommufdContext): number => {
  const bound = context.device(name)?.bound;
  if (bound) return bound.context === iommufd ? bound.id : VFIO_PCI_DEVID_NOT_OWNED;
  const sibling = group.devices.some((other) => context.device(other.name)?.bound?.context === iommufd);
  return sibling ? VFIO_PCI_DEVID_OWNED : VFIO_PCI_DEVID_NOT_OWNED;
};

/**
 * Writes the functions and how many there are; ENOSPC, with the number only, when they do not fit. With `iommufd` they
 * have their ids there instead of their groups' numbers.
 */
export const hotResetInfo = (
  context: VfioContext,
  device: PciDevice,
  iommufd: IommufdContext | undefined,
  call: Call,
  at: bigint,
): number => {
  const minimum = VfioPciHotResetInfo.fieldEnd("count");
  const { argsz } = readArgument(call, at, VfioPciHotResetInfo, minimum);
  const affected = onSameBus(context, device);
  const needed = VfioPciHotResetInfo.sizeWith(affected.length);
  const fits = argsz >= needed;
  const devices = affected.map((one) => {
    const { segment, bus, device: slot, function: part } = one.function.address;
    const id = iommufd ? { devid: devidOf(context, one, iommufd) } : { group_id: one.group.id };
    return { ...id, segment, bus, devfn: (slot << 3) | part };
  });
  const owned = devices.every(({ devid }) => devid !== VFIO_PCI_DEVID_NOT_OWNED);
  const flags = iommufd
    ? VFIO_PCI_HOT_RESET_FLAG_DEV_ID | (owned ? VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED : 0)
    : 0;
  const answer = VfioPciHotResetInfo.bytes({ argsz, flags, count: devices.length, devices });
  call.memory.write(at, fits ? answer : answer.subarray(0, minimum));
  if (!fits)
    throw new LinuxError(
      "ENOSPC",
      `argsz is ${argsz}; ${devices.length} functions of ${VfioPciDependentDevice.size} bytes need ${needed}`,
      `device ${device.name}`,
    );
  return 0;
};

interface GivenFiles {
  readonly argsz: number;
  readonly flags: number;
  readonly count: number;
}

/** The files behind the argument at `at` are groups, and all groups of the devices are among them. */
const requireGroups = (
  context: VfioContext,
  affected: readonly Device[],
  { argsz, flags, count }: GivenFiles,
  call: Call,
  at: bigint,
  wrong: (reason: string) => LinuxError,
): void => {
  const minimum = VfioPciHotReset.fieldEnd("count");
  const groups = new Set(affected.map(({ group }) => group));
  if (flags !== 0 || argsz - minimum < 4 * count || count === 0 || count > affected.length)
    throw wrong(
      `flags ${flags}, ${count} group descriptors, argsz ${argsz}: flags 0 and a descriptor for each of the ${groups.size} groups on the bus are needed`,
    );
  const fds = new Int32Array(count);
  call.memory.read(at + BigInt(minimum), new Uint8Array(fds.buffer));
  for (const fd of fds) {
    const file = call.file(fd);
    if (!file) throw new LinuxError("EBADF", `descriptor ${fd} is not open`);
    const group = context.groupOf(file);
    if (!group) throw wrong(`descriptor ${fd} is ${file.name}, not a group`);
    groups.delete(group);
  }
  if (groups.size > 0)
    throw wrong(
      `functions on the bus belong to ${[...groups].map(({ id }) => `group ${id}`).join(", ")}, for which no descriptor was given`,
    );
};

/**
 * EINVAL unless the files are groups, and all groups on the bus, or, with `iommufd`, there are none and it has every
 * function on the bus; EBADF for a descriptor that is not open.
 */
export const hotReset = (
  context: VfioContext,
  device: PciDevice,
  iommufd: IommufdContext | undefined,
  call: Call,
  at: bigint,
): number => {
  const minimum = VfioPciHotReset.fieldEnd("count");
  const { argsz, flags, count } = readArgument(call, at, VfioPciHotReset, minimum);
  const wrong = (reason: string) => new LinuxError("EINVAL", reason, `device ${device.name}`);
  const affected = onSameBus(context, device);
  if (iommufd) {
    if (flags !== 0 || count !== 0)
      throw wrong(`flags ${flags}, ${count} descriptors: a device bound to an iommufd needs 0 and none`);
    const foreign = affected.find((one) => devidOf(context, one, iommufd) === VFIO_PCI_DEVID_NOT_OWNED);
    if (foreign) throw wrong(`${foreign.name} is on the bus too, and does not belong to ${iommufd.name}`);
  } else requireGroups(context, affected, { argsz, flags, count }, call, at, wrong);
  for (const { name } of affected) context.device(name)?.reset();
  return 0;
};
