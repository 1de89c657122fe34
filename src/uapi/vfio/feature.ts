/**
 * VFIO_DEVICE_FEATURE (linux/vfio.h): optional abilities of a device, each a number with a blob of its own: migration,
 * DMA logging, low power, bus mastering, dma-buf, the token between a physical function and its virtual ones.
 */
import { flags, oneOf, s32, struct, tail, u8, u32, u64 } from "../struct.ts";
import { vfioRequest } from "./container.ts";

/** On a device: gets, sets or probes a feature. struct vfio_device_feature. */
export const VFIO_DEVICE_FEATURE = vfioRequest(17);
/** On a migration data file in a pre-copy state. struct vfio_precopy_info. */
export const VFIO_MIG_GET_PRECOPY_INFO = vfioRequest(21);

/** Which feature: the lower bits of `flags`. */
export const VFIO_DEVICE_FEATURE_MASK = 0xffff;
/** Read the feature. */
export const VFIO_DEVICE_FEATURE_GET = 1 << 16;
/** Write the feature. */
export const VFIO_DEVICE_FEATURE_SET = 1 << 17;
/** Only say whether it could be read or written. */
export const VFIO_DEVICE_FEATURE_PROBE = 1 << 18;

/** Feature: the 16-byte token virtual functions must present. Write only. */
export const VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0;
/** Feature: what migration can do. struct vfio_device_feature_migration. */
export const VFIO_DEVICE_FEATURE_MIGRATION = 1;
/** Feature: the migration state. struct vfio_device_feature_mig_state. */
export const VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE = 2;
/** Feature: allow low power; the next access ends it. No blob. */
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY = 3;
/** Feature: the same, with an eventfd for wake-ups. struct vfio_device_low_power_entry_with_wakeup. */
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP = 4;
/** Feature: end low power. No blob. */
export const VFIO_DEVICE_FEATURE_LOW_POWER_EXIT = 5;
/** Feature: the device records what it writes. struct vfio_device_feature_dma_logging_control. */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_START = 6;
/** Feature: stop recording. No blob. */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP = 7;
/** Feature: report and clear. struct vfio_device_feature_dma_logging_report. */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT = 8;
/** Feature: an estimate of the state's size. struct vfio_device_feature_mig_data_size. */
export const VFIO_DEVICE_FEATURE_MIG_DATA_SIZE = 9;
/** Feature: allow or forbid bus mastering. struct vfio_device_feature_bus_master. */
export const VFIO_DEVICE_FEATURE_BUS_MASTER = 10;
/** Feature: parts of a region as a dma-buf; returns a new descriptor. struct vfio_device_feature_dma_buf. */
export const VFIO_DEVICE_FEATURE_DMA_BUF = 11;
/** Feature: pre-copy information in its second version, which may say that initial bytes came anew. */
export const VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 = 12;

/** Migration: stop, then copy. */
export const VFIO_MIGRATION_STOP_COPY = 1 << 0;
/** Migration: a state in which devices start no traffic among themselves. */
export const VFIO_MIGRATION_P2P = 1 << 1;
/** Migration: copying begins while the device runs. */
export const VFIO_MIGRATION_PRE_COPY = 1 << 2;

/** Migration state: failed; only a reset leaves it. */
export const VFIO_DEVICE_STATE_ERROR = 0;
/** Migration state: does nothing, its state does not change. */
export const VFIO_DEVICE_STATE_STOP = 1;
/** Migration state: normal operation. */
export const VFIO_DEVICE_STATE_RUNNING = 2;
/** Migration state: stopped, its state can be read. */
export const VFIO_DEVICE_STATE_STOP_COPY = 3;
/** Migration state: stopped, its state is being written. */
export const VFIO_DEVICE_STATE_RESUMING = 4;
/** Migration state: running, but starts no traffic to other devices. */
export const VFIO_DEVICE_STATE_RUNNING_P2P = 5;
/** Migration state: running, its state can be read already. */
export const VFIO_DEVICE_STATE_PRE_COPY = 6;
/** Migration state: pre-copy without traffic to other devices. */
export const VFIO_DEVICE_STATE_PRE_COPY_P2P = 7;
/** Number of migration states. */
export const VFIO_DEVICE_STATE_NR = 8;

/** Pre-copy: what was initial before is out of date, more initial bytes follow. */
export const VFIO_PRECOPY_INFO_REINIT = 1 << 0;

/** Bus mastering: forbid. */
export const VFIO_DEVICE_FEATURE_CLEAR_MASTER = 0;
/** Bus mastering: allow. */
export const VFIO_DEVICE_FEATURE_SET_MASTER = 1;

/** Argument of VFIO_DEVICE_FEATURE. */
export const VfioDeviceFeature = struct("vfio_device_feature", {
  /** The structure and its blob. */
  argsz: u32,
  /** The feature's number, with GET, SET or PROBE. */
  flags: flags(u32, {
    GET: VFIO_DEVICE_FEATURE_GET,
    SET: VFIO_DEVICE_FEATURE_SET,
    PROBE: VFIO_DEVICE_FEATURE_PROBE,
  }),
  /** The feature's blob: in with SET, out with GET. */
  data: tail(u8),
});

/** Feature MIGRATION. Filled by the kernel. */
export const VfioDeviceFeatureMigration = struct("vfio_device_feature_migration", {
  /** VFIO_MIGRATION_*. */
  flags: flags(u64, {
    STOP_COPY: VFIO_MIGRATION_STOP_COPY,
    P2P: VFIO_MIGRATION_P2P,
    PRE_COPY: VFIO_MIGRATION_PRE_COPY,
  }),
});

/** Feature MIG_DEVICE_STATE: in with SET, out with GET. */
export const VfioDeviceFeatureMigState = struct("vfio_device_feature_mig_state", {
  /** VFIO_DEVICE_STATE_*. */
  device_state: oneOf(u32, {
    ERROR: VFIO_DEVICE_STATE_ERROR,
    STOP: VFIO_DEVICE_STATE_STOP,
    RUNNING: VFIO_DEVICE_STATE_RUNNING,
    STOP_COPY: VFIO_DEVICE_STATE_STOP_COPY,
    RESUMING: VFIO_DEVICE_STATE_RESUMING,
    RUNNING_P2P: VFIO_DEVICE_STATE_RUNNING_P2P,
    PRE_COPY: VFIO_DEVICE_STATE_PRE_COPY,
    PRE_COPY_P2P: VFIO_DEVICE_STATE_PRE_COPY_P2P,
  }),
  /** Out: the file the state is read from or written to, or −1. */
  data_fd: s32,
});

/** What VFIO_MIG_GET_PRECOPY_INFO answers. */
export const VfioPrecopyInfo = struct("vfio_precopy_info", {
  argsz: u32,
  /** Out: VFIO_PRECOPY_INFO_REINIT. */
  flags: flags(u32, { REINIT: VFIO_PRECOPY_INFO_REINIT }),
  /** Out: bytes that should be read before the device is stopped. */
  initial_bytes: u64,
  /** Out: bytes that changed since they were read. */
  dirty_bytes: u64,
});

/** Feature LOW_POWER_ENTRY_WITH_WAKEUP; filled by the caller. */
export const VfioDeviceLowPowerEntryWithWakeup = struct("vfio_device_low_power_entry_with_wakeup", {
  wakeup_eventfd: s32,
  reserved: u32,
});

/** Feature DMA_LOGGING_START. */
export const VfioDeviceFeatureDmaLoggingControl = struct("vfio_device_feature_dma_logging_control", {
  /** In: wanted bytes a bit. Out: what the device can do. */
  page_size: u64,
  /** In: ranges to record. */
  num_ranges: u32,
  __reserved: u32,
  /** In: where the array of struct vfio_device_feature_dma_logging_range lies. */
  ranges: u64,
});

/** A range to record, in bytes; filled by the caller. */
export const VfioDeviceFeatureDmaLoggingRange = struct("vfio_device_feature_dma_logging_range", {
  iova: u64,
  length: u64,
});

/** Feature DMA_LOGGING_REPORT; filled by the caller but for the bitmap. */
export const VfioDeviceFeatureDmaLoggingReport = struct("vfio_device_feature_dma_logging_report", {
  iova: u64,
  length: u64,
  /** Bytes a bit. */
  page_size: u64,
  /** Where the bitmap lies, 64-bit words; bits are added to it. */
  bitmap: u64,
});

/** Feature MIG_DATA_SIZE. Filled by the kernel. */
export const VfioDeviceFeatureMigDataSize = struct("vfio_device_feature_mig_data_size", {
  /** Estimated bytes of the state in STOP_COPY. */
  stop_copy_length: u64,
});

/** Feature BUS_MASTER; filled by the caller. */
export const VfioDeviceFeatureBusMaster = struct("vfio_device_feature_bus_master", {
  op: oneOf(u32, { CLEAR: VFIO_DEVICE_FEATURE_CLEAR_MASTER, SET: VFIO_DEVICE_FEATURE_SET_MASTER }),
});

/** A part of a region for a dma-buf, in bytes from the region's start; filled by the caller. */
export const VfioRegionDmaRange = struct("vfio_region_dma_range", { offset: u64, length: u64 });

/** Feature DMA_BUF; filled by the caller. */
export const VfioDeviceFeatureDmaBuf = struct("vfio_device_feature_dma_buf", {
  region_index: u32,
  /** Flags of open(2) for the descriptor. */
  open_flags: u32,
  /** 0. */
  flags: u32,
  /** Number of ranges. */
  nr_ranges: u32,
  dma_ranges: tail(VfioRegionDmaRange, "nr_ranges"),
});
