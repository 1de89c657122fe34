/**
 * VFIO's containers and groups (linux/vfio.h): the calls that need no IOMMU type, and the capability header all
 * information calls share. "The kernel" below is whoever answers: here, softiommu.
 */
import { io, VFIO_TYPE } from "../ioctl.ts";
import { flags, struct, u16, u32 } from "../struct.ts";

export { VFIO_TYPE };

/** First request number of VFIO within its type byte. */
export const VFIO_BASE = 100;

/** `_IO(VFIO_TYPE, VFIO_BASE + n)`. */
export const vfioRequest = (n: number): number => io(VFIO_TYPE, VFIO_BASE + n);

/** The answer of VFIO_GET_API_VERSION; there has never been another. */
export const VFIO_API_VERSION = 0;

/** IOMMU type: the ordinary one, map and unmap of user memory; an unmap may cut a mapping in two and then does nothing. */
export const VFIO_TYPE1_IOMMU = 1;
/** IOMMU type: POWER's TCE windows. */
export const VFIO_SPAPR_TCE_IOMMU = 2;
/** IOMMU type: type 1 whose unmaps must cover whole mappings. */
export const VFIO_TYPE1v2_IOMMU = 3;
/** Extension: the IOMMU enforces cache coherence (no-snoop transactions are snooped all the same). */
export const VFIO_DMA_CC_IOMMU = 4;
/** Extension: POWER's enhanced error handling can be used. */
export const VFIO_EEH = 5;
/** What was the nesting type until it was withdrawn; the 2020 proposal uses this number (`vsva.ts`). */
export const __VFIO_RESERVED_TYPE1_NESTING_IOMMU = 6;
/** IOMMU type: POWER with memory that is registered before it is mapped. */
export const VFIO_SPAPR_TCE_v2_IOMMU = 7;
/** IOMMU type: none; the device's DMA is not translated. */
export const VFIO_NOIOMMU_IOMMU = 8;
/** Extension: VFIO_DMA_UNMAP_FLAG_ALL is understood. */
export const VFIO_UNMAP_ALL = 9;
/** Extension: the user address behind a mapping can be exchanged (the VADDR flags of map and unmap). */
export const VFIO_UPDATE_VADDR = 10;

/** On a container. No argument. Returns VFIO_API_VERSION. */
export const VFIO_GET_API_VERSION = vfioRequest(0);
/** On a container. The argument is an extension or IOMMU type; returns 0 when it is not supported, else positive. */
export const VFIO_CHECK_EXTENSION = vfioRequest(1);
/** On a container that has a group. The argument is the IOMMU type. */
export const VFIO_SET_IOMMU = vfioRequest(2);
/** On a group. struct vfio_group_status. */
export const VFIO_GROUP_GET_STATUS = vfioRequest(3);
/** On a group. The argument points to the descriptor (s32) of a container, or of an iommufd that stands in for one. */
export const VFIO_GROUP_SET_CONTAINER = vfioRequest(4);
/** On a group. No argument. Refused while a device of the group is open. */
export const VFIO_GROUP_UNSET_CONTAINER = vfioRequest(5);
/** On a group. The argument points to the device's name as a string; returns a new descriptor. */
export const VFIO_GROUP_GET_DEVICE_FD = vfioRequest(6);

/** Every device of the group is bound to VFIO or harmless. */
export const VFIO_GROUP_FLAGS_VIABLE = 1 << 0;
/** The group has a container. */
export const VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1;

/** Head of each capability that follows an information structure; filled by the kernel. */
export const VfioInfoCapHeader = struct("vfio_info_cap_header", {
  /** Which capability; the meaning depends on the call. */
  id: u16,
  /** Version of the capability's layout. */
  version: u16,
  /** Bytes from the start of the information structure to the next capability; 0 ends the chain. */
  next: u32,
});

/** What VFIO_GROUP_GET_STATUS answers. */
export const VfioGroupStatus = struct("vfio_group_status", {
  /** Size of the structure as the caller knows it. */
  argsz: u32,
  /** Out: VFIO_GROUP_FLAGS_*. */
  flags: flags(u32, { VIABLE: VFIO_GROUP_FLAGS_VIABLE, CONTAINER_SET: VFIO_GROUP_FLAGS_CONTAINER_SET }),
});
