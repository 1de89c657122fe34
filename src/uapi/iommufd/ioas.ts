/**
 * iommufd's objects and address spaces (linux/iommufd.h): destroy, IOAS, map, copy, unmap, options, and the address
 * space that stands in for a VFIO container. In every command `size` is the caller's size of the structure.
 */
import { io, VFIO_TYPE } from "../ioctl.ts";
import { flags, oneOf, s32, struct, u16, u32, u64 } from "../struct.ts";

/** The type byte of iommufd's requests, shared with VFIO. */
export const IOMMUFD_TYPE = VFIO_TYPE;

/** Command numbers begin here. */
export const IOMMUFD_CMD_BASE = 0x80;
/** Destroys an object. */
export const IOMMUFD_CMD_DESTROY = 0x80;
/** Creates an IOAS. */
export const IOMMUFD_CMD_IOAS_ALLOC = 0x81;
/** Restricts an IOAS to ranges. */
export const IOMMUFD_CMD_IOAS_ALLOW_IOVAS = 0x82;
/** Maps what is mapped elsewhere. */
export const IOMMUFD_CMD_IOAS_COPY = 0x83;
/** Lists the usable ranges. */
export const IOMMUFD_CMD_IOAS_IOVA_RANGES = 0x84;
/** Maps user memory. */
export const IOMMUFD_CMD_IOAS_MAP = 0x85;
/** Unmaps. */
export const IOMMUFD_CMD_IOAS_UNMAP = 0x86;
/** Sets or gets an option. */
export const IOMMUFD_CMD_OPTION = 0x87;
/** Sets or gets the IOAS of the compatibility container. */
export const IOMMUFD_CMD_VFIO_IOAS = 0x88;
/** Maps a file. */
export const IOMMUFD_CMD_IOAS_MAP_FILE = 0x8f;
/** Charges all pins to the calling process. */
export const IOMMUFD_CMD_IOAS_CHANGE_PROCESS = 0x92;

const request = (command: number): number => io(IOMMUFD_TYPE, command);

/** struct iommu_destroy. EBUSY while something uses the object. */
export const IOMMU_DESTROY = request(IOMMUFD_CMD_DESTROY);
/** struct iommu_ioas_alloc. */
export const IOMMU_IOAS_ALLOC = request(IOMMUFD_CMD_IOAS_ALLOC);
/** struct iommu_ioas_allow_iovas. */
export const IOMMU_IOAS_ALLOW_IOVAS = request(IOMMUFD_CMD_IOAS_ALLOW_IOVAS);
/** struct iommu_ioas_copy. */
export const IOMMU_IOAS_COPY = request(IOMMUFD_CMD_IOAS_COPY);
/** struct iommu_ioas_iova_ranges. */
export const IOMMU_IOAS_IOVA_RANGES = request(IOMMUFD_CMD_IOAS_IOVA_RANGES);
/** struct iommu_ioas_map. */
export const IOMMU_IOAS_MAP = request(IOMMUFD_CMD_IOAS_MAP);
/** struct iommu_ioas_unmap. */
export const IOMMU_IOAS_UNMAP = request(IOMMUFD_CMD_IOAS_UNMAP);
/** struct iommu_option. */
export const IOMMU_OPTION = request(IOMMUFD_CMD_OPTION);
/** struct iommu_vfio_ioas. */
export const IOMMU_VFIO_IOAS = request(IOMMUFD_CMD_VFIO_IOAS);
/** struct iommu_ioas_map_file. */
export const IOMMU_IOAS_MAP_FILE = request(IOMMUFD_CMD_IOAS_MAP_FILE);
/** struct iommu_ioas_change_process. */
export const IOMMU_IOAS_CHANGE_PROCESS = request(IOMMUFD_CMD_IOAS_CHANGE_PROCESS);

/** `iova` is given by the caller; else the kernel chooses one. */
export const IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0;
/** Devices may write. */
export const IOMMU_IOAS_MAP_WRITEABLE = 1 << 1;
/** Devices may read. */
export const IOMMU_IOAS_MAP_READABLE = 1 << 2;

/** Option: how pins are charged; 0 per user, 1 per process. */
export const IOMMU_OPTION_RLIMIT_MODE = 0;
/** Option of an IOAS: 1 combines contiguous pages into large ones, 0 maps page by page. */
export const IOMMU_OPTION_HUGE_PAGES = 1;
/** Set the option. */
export const IOMMU_OPTION_OP_SET = 0;
/** Get the option. */
export const IOMMU_OPTION_OP_GET = 1;

/** Tell the compatibility IOAS. */
export const IOMMU_VFIO_IOAS_GET = 0;
/** Make an IOAS the compatibility one. */
export const IOMMU_VFIO_IOAS_SET = 1;
/** Have no compatibility IOAS. */
export const IOMMU_VFIO_IOAS_CLEAR = 2;

const mapFlags = flags(u32, {
  FIXED_IOVA: IOMMU_IOAS_MAP_FIXED_IOVA,
  WRITEABLE: IOMMU_IOAS_MAP_WRITEABLE,
  READABLE: IOMMU_IOAS_MAP_READABLE,
});

/** Argument of IOMMU_DESTROY; filled by the caller. */
export const IommuDestroy = struct("iommu_destroy", { size: u32, id: u32 });

/** Argument of IOMMU_IOAS_ALLOC. */
export const IommuIoasAlloc = struct("iommu_ioas_alloc", {
  size: u32,
  /** 0. */
  flags: u32,
  out_ioas_id: u32,
});

/** A range of addresses in bytes, both ends included. */
export const IommuIovaRange = struct("iommu_iova_range", { start: u64, last: u64 });

/** Argument of IOMMU_IOAS_IOVA_RANGES. */
export const IommuIoasIovaRanges = struct("iommu_ioas_iova_ranges", {
  size: u32,
  ioas_id: u32,
  /** In: slots the caller has. Out: ranges there are; EMSGSIZE when they are more. */
  num_iovas: u32,
  __reserved: u32,
  /** In: where the array of struct iommu_iova_range is to be written. */
  allowed_iovas: u64,
  /** Out: bytes every IOVA must be a multiple of. */
  out_iova_alignment: u64,
});

/** Argument of IOMMU_IOAS_ALLOW_IOVAS; filled by the caller. */
export const IommuIoasAllowIovas = struct("iommu_ioas_allow_iovas", {
  size: u32,
  ioas_id: u32,
  /** Ranges; 0 allows everything again. */
  num_iovas: u32,
  __reserved: u32,
  /** Where the array of struct iommu_iova_range lies. */
  allowed_iovas: u64,
});

/** Argument of IOMMU_IOAS_MAP. */
export const IommuIoasMap = struct("iommu_ioas_map", {
  size: u32,
  /** IOMMU_IOAS_MAP_*. */
  flags: mapFlags,
  ioas_id: u32,
  __reserved: u32,
  /** Start in the caller's memory, and bytes. */
  user_va: u64,
  length: u64,
  /** In with FIXED_IOVA, else out: start as devices see it. */
  iova: u64,
});

/** Argument of IOMMU_IOAS_MAP_FILE. */
export const IommuIoasMapFile = struct("iommu_ioas_map_file", {
  size: u32,
  /** IOMMU_IOAS_MAP_*. */
  flags: mapFlags,
  ioas_id: u32,
  /** A memfd, or a dma-buf of a device. */
  fd: s32,
  /** Start in the file, and bytes. */
  start: u64,
  length: u64,
  /** In with FIXED_IOVA, else out. */
  iova: u64,
});

/** Argument of IOMMU_IOAS_COPY: maps in one IOAS the memory another has mapped, sharing its pins. */
export const IommuIoasCopy = struct("iommu_ioas_copy", {
  size: u32,
  /** IOMMU_IOAS_MAP_*. */
  flags: mapFlags,
  dst_ioas_id: u32,
  src_ioas_id: u32,
  /** Bytes. */
  length: u64,
  /** In with FIXED_IOVA, else out. */
  dst_iova: u64,
  src_iova: u64,
});

/** Argument of IOMMU_IOAS_UNMAP. */
export const IommuIoasUnmap = struct("iommu_ioas_unmap", {
  size: u32,
  ioas_id: u32,
  iova: u64,
  /** In: bytes, whole mappings; 2^64−1 from 0 is everything. Out: bytes that were unmapped. */
  length: u64,
});

/** Argument of IOMMU_OPTION. */
export const IommuOption = struct("iommu_option", {
  size: u32,
  option_id: oneOf(u32, { RLIMIT_MODE: IOMMU_OPTION_RLIMIT_MODE, HUGE_PAGES: IOMMU_OPTION_HUGE_PAGES }),
  op: oneOf(u16, { SET: IOMMU_OPTION_OP_SET, GET: IOMMU_OPTION_OP_GET }),
  __reserved: u16,
  /** The object it is of, or 0. */
  object_id: u32,
  /** In with SET, out with GET. */
  val64: u64,
});

/** Argument of IOMMU_VFIO_IOAS. */
export const IommuVfioIoas = struct("iommu_vfio_ioas", {
  size: u32,
  /** In with SET, out with GET. */
  ioas_id: u32,
  op: oneOf(u16, { GET: IOMMU_VFIO_IOAS_GET, SET: IOMMU_VFIO_IOAS_SET, CLEAR: IOMMU_VFIO_IOAS_CLEAR }),
  __reserved: u16,
});

/** Argument of IOMMU_IOAS_CHANGE_PROCESS. */
export const IommuIoasChangeProcess = struct("iommu_ioas_change_process", { size: u32, __reserved: u32 });
