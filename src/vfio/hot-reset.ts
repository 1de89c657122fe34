/**
 * Hot reset (linux/vfio.h, VFIO_DEVICE_PCI_HOT_RESET): a reset of the whole bus, for which the caller must own every
 * group with a function on it. The functions of a bus stand for what a real bridge would reset.
 */
import type { Device } from "../iommu/core.ts";
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { VfioPciDependentDevice, VfioPciHotReset, VfioPciHotResetInfo } from "../uapi/vfio.ts";
import { readArgument } from "./argument.ts";
import type { VfioContext } from "./context.ts";
import type { PciDevice } from "./pci-device.ts";

const onSameBus = (context: VfioContext, device: PciDevice): Device[] => {
  const { segment, bus } = device.pci.address;
  return [...context.core.devices.values()].filter(
    ({ function: { address } }) => address.segment === segment && address.bus === bus,
  );
};

/** Writes as many functions as fit, and how many there are. ENOSPC when not all did. */
export const hotResetInfo = (context: VfioContext, device: PciDevice, call: Call, at: bigint): number => {
  const minimum = VfioPciHotResetInfo.fieldEnd("count");
  const { argsz } = readArgument(call, at, VfioPciHotResetInfo, minimum);
  const affected = onSameBus(context, device);
  const needed = VfioPciHotResetInfo.sizeWith(affected.length);
  const fits = argsz >= needed;
  const devices = affected.map(({ group, function: { address } }) => ({
    group_id: group.id,
    segment: address.segment,
    bus: address.bus,
    devfn: (address.device << 3) | address.function,
  }));
  const answer = VfioPciHotResetInfo.bytes({ argsz, flags: 0, count: devices.length, devices });
  call.memory.write(at, fits ? answer : answer.subarray(0, minimum));
  if (!fits)
    throw new LinuxError(
      "ENOSPC",
      `argsz is ${argsz}; ${devices.length} functions of ${VfioPciDependentDevice.size} bytes need ${needed}`,
      `device ${device.name}`,
    );
  return 0;
};

/** EINVAL unless the files are groups, and all groups on the bus; EBADF for a descriptor that is not open. */
export const hotReset = (context: VfioContext, device: PciDevice, call: Call, at: bigint): number => {
  const minimum = VfioPciHotReset.fieldEnd("count");
  const { argsz, flags, count } = readArgument(call, at, VfioPciHotReset, minimum);
  const wrong = (reason: string) => new LinuxError("EINVAL", reason, `device ${device.name}`);
  const affected = onSameBus(context, device);
  const groups = new Set(affected.map(({ group }) => group));
  if (flags !== 0 || argsz - minimum < 4 * count || count === 0 || count > affected.length)
    throw wrong(
      `flags ${flags}, ${count} group descriptors, argsz ${argsz}: flags 0 and a descriptor for each of the ${groups.size} groups on the bus are needed`,
    );
  const fds = new Int32Array(count);
  call.memory.read(at + BigInt(minimum), new Uint8Array(fds.buffer));
  for (const fd of fds) {
    const file = call.file(fd);
    if (!file) throw new LinuxError("EBADF", `descriptor ${fd} is not open`, `device ${device.name}`);
    const group = context.groupOf(file);
    if (!group) throw wrong(`descriptor ${fd} is ${file.name}, not a group`);
    groups.delete(group);
  }
  if (groups.size > 0)
    throw wrong(
      `functions on the bus belong to ${[...groups].map(({ id }) => `group ${id}`).join(", ")}, for which no descriptor was given`,
    );
  for (const { name } of affected) context.device(name)?.reset();
  return 0;
};
