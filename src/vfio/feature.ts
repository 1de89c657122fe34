/**
 * VFIO_DEVICE_FEATURE (linux/vfio.h): optional abilities of a device, to be read, written or asked for. What a PCI
 * function has without a driver of its own kind is low power. Left out, and answered as not there: migration, DMA
 * logging, the token of virtual functions, dma-bufs.
 */
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
  VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VfioDeviceFeature,
  VfioDeviceLowPowerEntryWithWakeup,
} from "../uapi/vfio.ts";
import { hex, readArgument, readStruct } from "./argument.ts";
import type { PciDevice } from "./pci-device.ts";

/** One use of a feature; `at` is where its data lies. */
interface Use {
  readonly device: PciDevice;
  readonly call: Call;
  readonly at: bigint;
}

interface Feature {
  /** GET, SET or both. */
  readonly operations: number;
  /** Bytes of its data. */
  readonly size: number;
  run(use: Use): void;
}

const enterWithWakeup = ({ device, call, at }: Use): void => {
  const { wakeup_eventfd, reserved } = readStruct(call, at, VfioDeviceLowPowerEntryWithWakeup);
  if (reserved !== 0) throw new LinuxError("EINVAL", `reserved is ${hex(reserved)} and must be 0`);
  device.lowPower.enter(call, wakeup_eventfd);
};

const FEATURES: ReadonlyMap<number, Feature> = new Map([
  [
    VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
    {
      operations: VFIO_DEVICE_FEATURE_SET,
      size: 0,
      run: ({ device, call }: Use) => device.lowPower.enter(call),
    },
  ],
  [
    VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
    {
      operations: VFIO_DEVICE_FEATURE_SET,
      size: VfioDeviceLowPowerEntryWithWakeup.size,
      run: enterWithWakeup,
    },
  ],
  [
    VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
    { operations: VFIO_DEVICE_FEATURE_SET, size: 0, run: ({ device }: Use) => device.lowPower.exit() },
  ],
]);

const OPERATIONS = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET;
const KNOWN = VFIO_DEVICE_FEATURE_MASK | OPERATIONS | VFIO_DEVICE_FEATURE_PROBE;

/** Throws EINVAL for flags or a size that do not fit, ENOTTY for a feature the device does not have. */
export const deviceFeature = (device: PciDevice, call: Call, at: bigint): number => {
  const wrong = (reason: string) => new LinuxError("EINVAL", reason, `device ${device.name}`);
  const { argsz, flags } = readArgument(call, at, VfioDeviceFeature, VfioDeviceFeature.size);
  const operations = flags & OPERATIONS;
  const probe = (flags & VFIO_DEVICE_FEATURE_PROBE) !== 0;
  if ((flags & ~KNOWN) !== 0) throw wrong(`flags ${hex((flags & ~KNOWN) >>> 0)} are not known`);
  if (!probe && operations === OPERATIONS)
    throw wrong("GET and SET together are possible with PROBE only; one of them is needed");
  const id = flags & VFIO_DEVICE_FEATURE_MASK;
  const feature = FEATURES.get(id);
  if (!feature) throw new LinuxError("ENOTTY", `it does not have feature ${id}`, `device ${device.name}`);
  if ((operations & ~feature.operations) !== 0)
    throw wrong(
      `feature ${id} can be ${feature.operations === VFIO_DEVICE_FEATURE_SET ? "set" : "read"} only`,
    );
  if (probe) return 0;
  if (operations === 0) throw wrong("neither GET, SET nor PROBE is in its flags; one of them is needed");
  const needed = VfioDeviceFeature.size + feature.size;
  if (argsz < needed) throw wrong(`argsz is ${argsz}; feature ${id} needs ${needed}`);
  feature.run({ device, call, at: at + BigInt(VfioDeviceFeature.size) });
  return 0;
};
