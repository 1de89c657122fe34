/**
 * What any virtio device has (OASIS virtio 1.3): the status byte, split virtqueues (§2.7) and the registers of a device
 * reached by memory-mapped I/O (§4.2.2). Numbers and layouts, nothing that acts. Left out: packed queues, indirect
 * descriptors, notification suppression by index, shared memory regions and the legacy interface.
 */
import { struct, u16, u32, u64 } from "../../uapi/struct.ts";

/** §2.1 */
export const DeviceStatus = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  DEVICE_NEEDS_RESET: 64,
  FAILED: 128,
} as const;

/** §6 Not a legacy device. */
export const VIRTIO_F_VERSION_1 = 1n << 32n;

/** §4.2.2 Offsets of registers; those of 64 bits are two of 32, low first. */
export const Register = {
  MagicValue: 0x000,
  Version: 0x004,
  DeviceID: 0x008,
  VendorID: 0x00c,
  DeviceFeatures: 0x010,
  DeviceFeaturesSel: 0x014,
  DriverFeatures: 0x020,
  DriverFeaturesSel: 0x024,
  QueueSel: 0x030,
  QueueNumMax: 0x034,
  QueueNum: 0x038,
  QueueReady: 0x044,
  QueueNotify: 0x050,
  InterruptStatus: 0x060,
  InterruptACK: 0x064,
  Status: 0x070,
  QueueDesc: 0x080,
  QueueDriver: 0x090,
  QueueDevice: 0x0a0,
  ConfigGeneration: 0x0fc,
  Config: 0x100,
} as const;

/** "virt" */
export const MAGIC = 0x7472_6976;
export const VERSION = 2;

/** §4.2.2 Bits of InterruptStatus: the device has used a buffer; its configuration, or its status, has changed. */
export const Interrupt = { USED: 1, CHANGED: 2 } as const;

/** §2.7.5 */
export const Descriptor = struct("virtq_desc", { addr: u64, len: u32, flags: u16, next: u16 });
export const DescriptorFlag = { NEXT: 1, WRITE: 2, INDIRECT: 4 } as const;

/** §2.7.6 The available ring: flags, idx and one u16 for each entry. */
export const AvailRing = { FLAGS: 0, IDX: 2, RING: 4, NO_INTERRUPT: 1 } as const;
/** §2.7.8 The used ring: flags, idx and one element for each entry. */
export const UsedRing = { FLAGS: 0, IDX: 2, RING: 4 } as const;
export const UsedElement = struct("virtq_used_elem", { id: u32, len: u32 });

/** §2.7 Indices of rings run on to here and begin again. */
export const INDICES = 2 ** 16;
