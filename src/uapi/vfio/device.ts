/**
 * VFIO's device file (linux/vfio.h): information, regions, interrupts, reset, ioeventfds, and how a device opened as a
 * character device meets an iommufd. Optional features are in `feature.ts`, special regions in `region.ts`.
 */
import { flags, s32, struct, tail, u8, u16, u32, u64, union } from "../struct.ts";
import { VfioInfoCapHeader, vfioRequest } from "./container.ts";

/** On a device. struct vfio_device_info. */
export const VFIO_DEVICE_GET_INFO = vfioRequest(7);
/** On a device. struct vfio_region_info; `index` says which. */
export const VFIO_DEVICE_GET_REGION_INFO = vfioRequest(8);
/** On a device. struct vfio_irq_info; `index` says which. */
export const VFIO_DEVICE_GET_IRQ_INFO = vfioRequest(9);
/** On a device. struct vfio_irq_set and its data. */
export const VFIO_DEVICE_SET_IRQS = vfioRequest(10);
/** On a device: resets it. No argument. */
export const VFIO_DEVICE_RESET = vfioRequest(11);
/** On a device: which functions a bus reset would hit. struct vfio_pci_hot_reset_info. */
export const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = vfioRequest(12);
/** On a device: resets the bus. struct vfio_pci_hot_reset. */
export const VFIO_DEVICE_PCI_HOT_RESET = vfioRequest(13);
/** On a display device. struct vfio_device_gfx_plane_info. */
export const VFIO_DEVICE_QUERY_GFX_PLANE = vfioRequest(14);
/** On a display device. The argument points to a dmabuf id (u32); returns a new descriptor. */
export const VFIO_DEVICE_GET_GFX_DMABUF = vfioRequest(15);
/** On a device: an eventfd whose signal is a register write. struct vfio_device_ioeventfd. */
export const VFIO_DEVICE_IOEVENTFD = vfioRequest(16);
/** On a device opened as a character device: gives it to an iommufd. struct vfio_device_bind_iommufd. */
export const VFIO_DEVICE_BIND_IOMMUFD = vfioRequest(18);
/** On a bound device: gives it an address space. struct vfio_device_attach_iommufd_pt. */
export const VFIO_DEVICE_ATTACH_IOMMUFD_PT = vfioRequest(19);
/** On a bound device: takes its address space. struct vfio_device_detach_iommufd_pt. */
export const VFIO_DEVICE_DETACH_IOMMUFD_PT = vfioRequest(20);

/** VFIO_DEVICE_RESET works. */
export const VFIO_DEVICE_FLAGS_RESET = 1 << 0;
/** A PCI function. */
export const VFIO_DEVICE_FLAGS_PCI = 1 << 1;
/** A platform device. */
export const VFIO_DEVICE_FLAGS_PLATFORM = 1 << 2;
/** An AMBA device. */
export const VFIO_DEVICE_FLAGS_AMBA = 1 << 3;
/** A channel device of s390. */
export const VFIO_DEVICE_FLAGS_CCW = 1 << 4;
/** An adjunct processor of s390. */
export const VFIO_DEVICE_FLAGS_AP = 1 << 5;
/** A device of Freescale's management complex. */
export const VFIO_DEVICE_FLAGS_FSL_MC = 1 << 6;
/** There are capabilities; `cap_offset` is valid when it is not 0. */
export const VFIO_DEVICE_FLAGS_CAPS = 1 << 7;
/** A device on AMD's CDX bus. */
export const VFIO_DEVICE_FLAGS_CDX = 1 << 8;

/** Device API of mediated devices, as their sysfs attribute spells it. */
export const VFIO_DEVICE_API_PCI_STRING = "vfio-pci";
/** Device API of mediated platform devices. */
export const VFIO_DEVICE_API_PLATFORM_STRING = "vfio-platform";
/** Device API of mediated AMBA devices. */
export const VFIO_DEVICE_API_AMBA_STRING = "vfio-amba";
/** Device API of mediated s390 channel devices. */
export const VFIO_DEVICE_API_CCW_STRING = "vfio-ccw";
/** Device API of mediated s390 adjunct processors. */
export const VFIO_DEVICE_API_AP_STRING = "vfio-ap";

/** Device capability id, s390 PCI: base facts of the function. */
export const VFIO_DEVICE_INFO_CAP_ZPCI_BASE = 1;
/** Device capability id, s390 PCI: facts of the function's group. */
export const VFIO_DEVICE_INFO_CAP_ZPCI_GROUP = 2;
/** Device capability id, s390 PCI: the utility string. */
export const VFIO_DEVICE_INFO_CAP_ZPCI_UTIL = 3;
/** Device capability id, s390 PCI: the function's path. */
export const VFIO_DEVICE_INFO_CAP_ZPCI_PFIP = 4;
/** Device capability id: atomic operations of which sizes the root port completes. */
export const VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP = 5;

/** The root port completes 32-bit atomic operations. */
export const VFIO_PCI_ATOMIC_COMP32 = 1 << 0;
/** The root port completes 64-bit atomic operations. */
export const VFIO_PCI_ATOMIC_COMP64 = 1 << 1;
/** The root port completes 128-bit compare-and-swap. */
export const VFIO_PCI_ATOMIC_COMP128 = 1 << 2;

/** The region can be read with pread(2). */
export const VFIO_REGION_INFO_FLAG_READ = 1 << 0;
/** The region can be written with pwrite(2). */
export const VFIO_REGION_INFO_FLAG_WRITE = 1 << 1;
/** The region, or the areas of its sparse capability, can be mapped. */
export const VFIO_REGION_INFO_FLAG_MMAP = 1 << 2;
/** The region has capabilities; `cap_offset` is valid when it is not 0. */
export const VFIO_REGION_INFO_FLAG_CAPS = 1 << 3;

/** Region indices of a PCI function: base address register 0. */
export const VFIO_PCI_BAR0_REGION_INDEX = 0;
/** Base address register 1. */
export const VFIO_PCI_BAR1_REGION_INDEX = 1;
/** Base address register 2. */
export const VFIO_PCI_BAR2_REGION_INDEX = 2;
/** Base address register 3. */
export const VFIO_PCI_BAR3_REGION_INDEX = 3;
/** Base address register 4. */
export const VFIO_PCI_BAR4_REGION_INDEX = 4;
/** Base address register 5. */
export const VFIO_PCI_BAR5_REGION_INDEX = 5;
/** The expansion ROM. */
export const VFIO_PCI_ROM_REGION_INDEX = 6;
/** Config space, as VFIO shows it. */
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
/** Legacy VGA ranges. */
export const VFIO_PCI_VGA_REGION_INDEX = 8;
/** Region indices every PCI function has; a device's own regions come after them. */
export const VFIO_PCI_NUM_REGIONS = 9;

/** Interrupt indices of a PCI function: the interrupt line. */
export const VFIO_PCI_INTX_IRQ_INDEX = 0;
/** MSI. */
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
/** MSI-X. */
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
/** An uncorrectable error was reported. */
export const VFIO_PCI_ERR_IRQ_INDEX = 3;
/** The host asks for the device back. */
export const VFIO_PCI_REQ_IRQ_INDEX = 4;
/** Interrupt indices every PCI function has. */
export const VFIO_PCI_NUM_IRQS = 5;

/** The interrupt can be delivered to an eventfd. */
export const VFIO_IRQ_INFO_EVENTFD = 1 << 0;
/** It can be masked and unmasked. */
export const VFIO_IRQ_INFO_MASKABLE = 1 << 1;
/** It masks itself when it is delivered (level-triggered). */
export const VFIO_IRQ_INFO_AUTOMASKED = 1 << 2;
/** Vectors cannot be added while others are set up. */
export const VFIO_IRQ_INFO_NORESIZE = 1 << 3;

/** No data: the action itself, on all the vectors of the range. */
export const VFIO_IRQ_SET_DATA_NONE = 1 << 0;
/** One u8 a vector: act where it is not 0. */
export const VFIO_IRQ_SET_DATA_BOOL = 1 << 1;
/** One s32 a vector: an eventfd, or −1 to take it away. */
export const VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2;
/** Mask the vectors. */
export const VFIO_IRQ_SET_ACTION_MASK = 1 << 3;
/** Unmask the vectors. */
export const VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4;
/** Set up, provoke or (count 0) take away the vectors. */
export const VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5;
/** The DATA flags, of which exactly one is set. */
export const VFIO_IRQ_SET_DATA_TYPE_MASK =
  VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD;
/** The ACTION flags, of which exactly one is set. */
export const VFIO_IRQ_SET_ACTION_TYPE_MASK =
  VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER;

/** Hot reset entries carry iommufd device ids instead of groups. */
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 1 << 0;
/** All functions that would be hit are owned by the caller's iommufd. */
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 1 << 1;
/** Device id of a function that is owned but has no id of its own. */
export const VFIO_PCI_DEVID_OWNED = 0;
/** Device id (−1) of a function that somebody else has. */
export const VFIO_PCI_DEVID_NOT_OWNED = 0xffff_ffff;

/** The eventfd stands for a write of one byte. */
export const VFIO_DEVICE_IOEVENTFD_8 = 1 << 0;
/** Of two bytes. */
export const VFIO_DEVICE_IOEVENTFD_16 = 1 << 1;
/** Of four bytes. */
export const VFIO_DEVICE_IOEVENTFD_32 = 1 << 2;
/** Of eight bytes. */
export const VFIO_DEVICE_IOEVENTFD_64 = 1 << 3;
/** The size flags, of which exactly one is set. */
export const VFIO_DEVICE_IOEVENTFD_SIZE_MASK = 0xf;

/** The bind carries the token a virtual function's owner agreed on. */
export const VFIO_DEVICE_BIND_FLAG_TOKEN = 1 << 0;
/** The attach is for one PASID. */
export const VFIO_DEVICE_ATTACH_PASID = 1 << 0;
/** The detach is for one PASID. */
export const VFIO_DEVICE_DETACH_PASID = 1 << 0;

/** What VFIO_DEVICE_GET_INFO answers. */
export const VfioDeviceInfo = struct("vfio_device_info", {
  /** In: bytes the caller has. Out: bytes needed for the structure with all capabilities. */
  argsz: u32,
  /** Out: VFIO_DEVICE_FLAGS_*. */
  flags: flags(u32, {
    RESET: VFIO_DEVICE_FLAGS_RESET,
    PCI: VFIO_DEVICE_FLAGS_PCI,
    PLATFORM: VFIO_DEVICE_FLAGS_PLATFORM,
    AMBA: VFIO_DEVICE_FLAGS_AMBA,
    CCW: VFIO_DEVICE_FLAGS_CCW,
    AP: VFIO_DEVICE_FLAGS_AP,
    FSL_MC: VFIO_DEVICE_FLAGS_FSL_MC,
    CAPS: VFIO_DEVICE_FLAGS_CAPS,
    CDX: VFIO_DEVICE_FLAGS_CDX,
  }),
  /** Out: region indices that may be asked for. */
  num_regions: u32,
  /** Out: interrupt indices that may be asked for. */
  num_irqs: u32,
  /** Out: bytes from the start of the structure to the first capability. */
  cap_offset: u32,
  pad: u32,
});

/** Capability VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP. Filled by the kernel. */
export const VfioDeviceInfoCapPciAtomicComp = struct("vfio_device_info_cap_pci_atomic_comp", {
  header: VfioInfoCapHeader,
  /** VFIO_PCI_ATOMIC_COMP*. */
  flags: flags(u32, {
    COMP32: VFIO_PCI_ATOMIC_COMP32,
    COMP64: VFIO_PCI_ATOMIC_COMP64,
    COMP128: VFIO_PCI_ATOMIC_COMP128,
  }),
  reserved: u32,
});

/** What VFIO_DEVICE_GET_REGION_INFO answers. */
export const VfioRegionInfo = struct("vfio_region_info", {
  /** In: bytes the caller has. Out: bytes needed for the structure with all capabilities. */
  argsz: u32,
  /** Out: VFIO_REGION_INFO_FLAG_*. */
  flags: flags(u32, {
    READ: VFIO_REGION_INFO_FLAG_READ,
    WRITE: VFIO_REGION_INFO_FLAG_WRITE,
    MMAP: VFIO_REGION_INFO_FLAG_MMAP,
    CAPS: VFIO_REGION_INFO_FLAG_CAPS,
  }),
  /** In. */
  index: u32,
  /** Out: bytes from the start of the structure to the first capability. */
  cap_offset: u32,
  /** Out: bytes of the region; 0 = the device does not have it. */
  size: u64,
  /** Out: where the region begins in the device file, for pread, pwrite and mmap. */
  offset: u64,
});

/** What VFIO_DEVICE_GET_IRQ_INFO answers. */
export const VfioIrqInfo = struct("vfio_irq_info", {
  argsz: u32,
  /** Out: VFIO_IRQ_INFO_*. */
  flags: flags(u32, {
    EVENTFD: VFIO_IRQ_INFO_EVENTFD,
    MASKABLE: VFIO_IRQ_INFO_MASKABLE,
    AUTOMASKED: VFIO_IRQ_INFO_AUTOMASKED,
    NORESIZE: VFIO_IRQ_INFO_NORESIZE,
  }),
  /** In. */
  index: u32,
  /** Out: vectors of that index. */
  count: u32,
});

/** Argument of VFIO_DEVICE_SET_IRQS; filled by the caller. */
export const VfioIrqSet = struct("vfio_irq_set", {
  /** The structure and its data. */
  argsz: u32,
  /** One DATA and one ACTION flag. */
  flags: flags(u32, {
    DATA_NONE: VFIO_IRQ_SET_DATA_NONE,
    DATA_BOOL: VFIO_IRQ_SET_DATA_BOOL,
    DATA_EVENTFD: VFIO_IRQ_SET_DATA_EVENTFD,
    MASK: VFIO_IRQ_SET_ACTION_MASK,
    UNMASK: VFIO_IRQ_SET_ACTION_UNMASK,
    TRIGGER: VFIO_IRQ_SET_ACTION_TRIGGER,
  }),
  index: u32,
  /** First vector, and how many. */
  start: u32,
  count: u32,
  /** `count` elements of the type that the DATA flag says. */
  data: tail(u8),
});

/** One function that a bus reset hits. Filled by the kernel. */
export const VfioPciDependentDevice = struct("vfio_pci_dependent_device", {
  "": union({
    /** Its group's number. */
    group_id: u32,
    /** With VFIO_PCI_HOT_RESET_FLAG_DEV_ID its id in the caller's iommufd, or VFIO_PCI_DEVID_*. */
    devid: u32,
  }),
  segment: u16,
  bus: u8,
  /** device << 3 | function. */
  devfn: u8,
});

/** What VFIO_DEVICE_GET_PCI_HOT_RESET_INFO answers; ENOSPC when the list does not fit in argsz. */
export const VfioPciHotResetInfo = struct("vfio_pci_hot_reset_info", {
  argsz: u32,
  /** Out: VFIO_PCI_HOT_RESET_FLAG_*. */
  flags: flags(u32, {
    DEV_ID: VFIO_PCI_HOT_RESET_FLAG_DEV_ID,
    DEV_ID_OWNED: VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
  }),
  /** Out: functions in the list. */
  count: u32,
  devices: tail(VfioPciDependentDevice, "count"),
});

/** Argument of VFIO_DEVICE_PCI_HOT_RESET; filled by the caller. */
export const VfioPciHotReset = struct("vfio_pci_hot_reset", {
  argsz: u32,
  /** 0. */
  flags: u32,
  /** Descriptors that follow; 0 when the caller's iommufd proves the ownership. */
  count: u32,
  /** A group file for every group that is hit. */
  group_fds: tail(s32, "count"),
});

/** Argument of VFIO_DEVICE_IOEVENTFD; filled by the caller. */
export const VfioDeviceIoeventfd = struct("vfio_device_ioeventfd", {
  argsz: u32,
  /** One of VFIO_DEVICE_IOEVENTFD_*. */
  flags: flags(u32, {
    "8": VFIO_DEVICE_IOEVENTFD_8,
    "16": VFIO_DEVICE_IOEVENTFD_16,
    "32": VFIO_DEVICE_IOEVENTFD_32,
    "64": VFIO_DEVICE_IOEVENTFD_64,
  }),
  /** Place in the device file, and what is written there. */
  offset: u64,
  data: u64,
  /** The eventfd; −1 takes the pair away. */
  fd: s32,
  reserved: u32,
});

/** Argument of VFIO_DEVICE_BIND_IOMMUFD. */
export const VfioDeviceBindIommufd = struct("vfio_device_bind_iommufd", {
  argsz: u32,
  /** VFIO_DEVICE_BIND_FLAG_TOKEN or 0. */
  flags: flags(u32, { TOKEN: VFIO_DEVICE_BIND_FLAG_TOKEN }),
  /** In: descriptor of the iommufd. */
  iommufd: s32,
  /** Out: the device's id in it. */
  out_devid: u32,
  /** In, with TOKEN: where the 16-byte UUID lies. */
  token_uuid_ptr: u64,
});

/** Argument of VFIO_DEVICE_ATTACH_IOMMUFD_PT. */
export const VfioDeviceAttachIommufdPt = struct("vfio_device_attach_iommufd_pt", {
  argsz: u32,
  /** VFIO_DEVICE_ATTACH_PASID or 0. */
  flags: flags(u32, { PASID: VFIO_DEVICE_ATTACH_PASID }),
  /** In: an IOAS or HWPT. Out: the HWPT that was chosen for an IOAS. */
  pt_id: u32,
  /** In, with the flag. */
  pasid: u32,
});

/** Argument of VFIO_DEVICE_DETACH_IOMMUFD_PT; filled by the caller. */
export const VfioDeviceDetachIommufdPt = struct("vfio_device_detach_iommufd_pt", {
  argsz: u32,
  /** VFIO_DEVICE_DETACH_PASID or 0. */
  flags: flags(u32, { PASID: VFIO_DEVICE_DETACH_PASID }),
  /** In, with the flag. */
  pasid: u32,
});
