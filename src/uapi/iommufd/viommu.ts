/** iommufd's virtual IOMMUs (linux/iommufd.h): vIOMMU, vDEVICE, event queues and hardware queues. */
import { io } from "../ioctl.ts";
import { flags, oneOf, struct, u32, u64 } from "../struct.ts";
import {
  IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV,
  IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
  IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV,
  IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
  IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV,
} from "../vendor/smmuv3.ts";
import { IOMMUFD_TYPE } from "./ioas.ts";

/** Creates a vIOMMU. */
export const IOMMUFD_CMD_VIOMMU_ALLOC = 0x90;
/** Creates a vDEVICE. */
export const IOMMUFD_CMD_VDEVICE_ALLOC = 0x91;
/** Creates an event queue. */
export const IOMMUFD_CMD_VEVENTQ_ALLOC = 0x93;
/** Creates a hardware queue. */
export const IOMMUFD_CMD_HW_QUEUE_ALLOC = 0x94;

const request = (command: number): number => io(IOMMUFD_TYPE, command);

/** struct iommu_viommu_alloc. */
export const IOMMU_VIOMMU_ALLOC = request(IOMMUFD_CMD_VIOMMU_ALLOC);
/** struct iommu_vdevice_alloc. */
export const IOMMU_VDEVICE_ALLOC = request(IOMMUFD_CMD_VDEVICE_ALLOC);
/** struct iommu_veventq_alloc. */
export const IOMMU_VEVENTQ_ALLOC = request(IOMMUFD_CMD_VEVENTQ_ALLOC);
/** struct iommu_hw_queue_alloc. */
export const IOMMU_HW_QUEUE_ALLOC = request(IOMMUFD_CMD_HW_QUEUE_ALLOC);

/** Type of vIOMMU: whatever needs no vendor data. */
export const IOMMU_VIOMMU_TYPE_DEFAULT = 0;
/** Type of event queue: none. */
export const IOMMU_VEVENTQ_TYPE_DEFAULT = 0;
/** Type of hardware queue: none. */
export const IOMMU_HW_QUEUE_TYPE_DEFAULT = 0;
/** Events were lost here because the queue was full. */
export const IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1 << 0;

/** Argument of IOMMU_VIOMMU_ALLOC. */
export const IommuViommuAlloc = struct("iommu_viommu_alloc", {
  size: u32,
  /** 0. */
  flags: u32,
  /** IOMMU_VIOMMU_TYPE_*. */
  type: oneOf(u32, {
    DEFAULT: IOMMU_VIOMMU_TYPE_DEFAULT,
    ARM_SMMUV3: IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
    TEGRA241_CMDQV: IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV,
  }),
  /** A device behind the physical IOMMU. */
  dev_id: u32,
  /** The nest parent. */
  hwpt_id: u32,
  out_viommu_id: u32,
  /** Bytes of the vendor data, and where it lies. */
  data_len: u32,
  __reserved: u32,
  data_uptr: u64,
});

/** Argument of IOMMU_VDEVICE_ALLOC. */
export const IommuVdeviceAlloc = struct("iommu_vdevice_alloc", {
  size: u32,
  viommu_id: u32,
  dev_id: u32,
  out_vdevice_id: u32,
  /** The device's number to the guest: stream id, device id, requester id. */
  virt_id: u64,
});

/** Before each event that is read from an event queue; filled by the kernel. */
export const IommufdVeventHeader = struct("iommufd_vevent_header", {
  /** IOMMU_VEVENTQ_FLAG_LOST_EVENTS: only this header, events are missing. */
  flags: flags(u32, { LOST_EVENTS: IOMMU_VEVENTQ_FLAG_LOST_EVENTS }),
  /** Counts events, lost ones too, from 0 to 2^31−1 and again. */
  sequence: u32,
});

/** Argument of IOMMU_VEVENTQ_ALLOC. */
export const IommuVeventqAlloc = struct("iommu_veventq_alloc", {
  size: u32,
  /** 0. */
  flags: u32,
  viommu_id: u32,
  /** IOMMU_VEVENTQ_TYPE_*. */
  type: oneOf(u32, {
    DEFAULT: IOMMU_VEVENTQ_TYPE_DEFAULT,
    ARM_SMMUV3: IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
    TEGRA241_CMDQV: IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV,
  }),
  /** Events it holds. */
  veventq_depth: u32,
  out_veventq_id: u32,
  /** Out: a new descriptor. */
  out_veventq_fd: u32,
  __reserved: u32,
});

/** Argument of IOMMU_HW_QUEUE_ALLOC: a queue in guest memory that hardware reads itself. */
export const IommuHwQueueAlloc = struct("iommu_hw_queue_alloc", {
  size: u32,
  /** 0. */
  flags: u32,
  viommu_id: u32,
  /** IOMMU_HW_QUEUE_TYPE_*. */
  type: oneOf(u32, {
    DEFAULT: IOMMU_HW_QUEUE_TYPE_DEFAULT,
    TEGRA241_CMDQV: IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV,
  }),
  /** Which of the vIOMMU's queues. */
  index: u32,
  out_hw_queue_id: u32,
  /** Where it lies in the nest parent, and bytes. */
  nesting_parent_iova: u64,
  length: u64,
});
