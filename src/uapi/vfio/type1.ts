/** VFIO's type 1 container (linux/vfio.h): information with its capabilities, map, unmap, dirty pages. */
import { flags, pointer, struct, tail, u8, u32, u64 } from "../struct.ts";
import { VfioInfoCapHeader, vfioRequest } from "./container.ts";

/** On a container with an IOMMU. struct vfio_iommu_type1_info and, as far as argsz allows, its capabilities. */
export const VFIO_IOMMU_GET_INFO = vfioRequest(12);
/** On a container with an IOMMU. struct vfio_iommu_type1_dma_map. */
export const VFIO_IOMMU_MAP_DMA = vfioRequest(13);
/** On a container with an IOMMU. struct vfio_iommu_type1_dma_unmap; the size that was unmapped is written back. */
export const VFIO_IOMMU_UNMAP_DMA = vfioRequest(14);
/** On a POWER container: turns DMA on. No argument. */
export const VFIO_IOMMU_ENABLE = vfioRequest(15);
/** On a POWER container: turns DMA off. No argument. */
export const VFIO_IOMMU_DISABLE = vfioRequest(16);
/** On a type 1 container. struct vfio_iommu_type1_dirty_bitmap. */
export const VFIO_IOMMU_DIRTY_PAGES = vfioRequest(17);

/** `iova_pgsizes` is valid. */
export const VFIO_IOMMU_INFO_PGSIZES = 1 << 0;
/** There are capabilities; `cap_offset` is valid when it is not 0. */
export const VFIO_IOMMU_INFO_CAPS = 1 << 1;

/** Capability id: the ranges of IOVAs that can be mapped. */
export const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1;
/** Capability id: dirty page tracking. */
export const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2;
/** Capability id: mappings that may still be made. In a 2020 nesting container id 3 is the nesting capability. */
export const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3;

/** The device may read the memory. */
export const VFIO_DMA_MAP_FLAG_READ = 1 << 0;
/** The device may write the memory. */
export const VFIO_DMA_MAP_FLAG_WRITE = 1 << 1;
/** Not a new mapping: gives an existing one the user address that an unmap with the same flag took from it. */
export const VFIO_DMA_MAP_FLAG_VADDR = 1 << 2;

/** Report which pages were written, in the struct vfio_bitmap that follows, before unmapping. */
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0;
/** Unmap everything; iova and size must be 0. */
export const VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1;
/** Do not unmap: take the user address from the mappings until a map gives them another. */
export const VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2;

/** Begin to record which pages devices write. */
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0;
/** Stop recording. */
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1;
/** Report and clear; `data` is struct vfio_iommu_type1_dirty_bitmap_get. */
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2;

/** What VFIO_IOMMU_GET_INFO answers on a type 1 container. */
export const VfioIommuType1Info = struct("vfio_iommu_type1_info", {
  /** In: bytes the caller has. Out: bytes needed for the structure with all capabilities. */
  argsz: u32,
  /** Out: VFIO_IOMMU_INFO_*. */
  flags: flags(u32, { PGSIZES: VFIO_IOMMU_INFO_PGSIZES, CAPS: VFIO_IOMMU_INFO_CAPS }),
  /** Out. Bit n: mappings in pages of 2^n bytes are possible. */
  iova_pgsizes: u64,
  /** Out: bytes from the start of the structure to the first capability; 0 when they did not fit. */
  cap_offset: u32,
  pad: u32,
});

/** A range of IOVAs, in bytes. */
export const VfioIovaRange = struct("vfio_iova_range", {
  start: u64,
  /** The last byte, inclusive. */
  end: u64,
});

/** Capability VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version 1. Filled by the kernel. */
export const VfioIommuType1InfoCapIovaRange = struct("vfio_iommu_type1_info_cap_iova_range", {
  header: VfioInfoCapHeader,
  /** Number of ranges. */
  nr_iovas: u32,
  reserved: u32,
  /** Ascending, without the reserved regions. */
  iova_ranges: tail(VfioIovaRange, "nr_iovas"),
});

/** Capability VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, version 1. Filled by the kernel. */
export const VfioIommuType1InfoCapMigration = struct("vfio_iommu_type1_info_cap_migration", {
  header: VfioInfoCapHeader,
  flags: u32,
  /** Bit n: dirty bitmaps of pages of 2^n bytes. */
  pgsize_bitmap: u64,
  /** Largest bitmap a call takes, in bytes. */
  max_dirty_bitmap_size: u64,
});

/** Capability VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version 1. Filled by the kernel. */
export const VfioIommuType1InfoDmaAvail = struct("vfio_iommu_type1_info_dma_avail", {
  header: VfioInfoCapHeader,
  /** Mappings that may still be made. */
  avail: u32,
});

/** Argument of VFIO_IOMMU_MAP_DMA; the caller fills all of it. */
export const VfioIommuType1DmaMap = struct("vfio_iommu_type1_dma_map", {
  argsz: u32,
  /** VFIO_DMA_MAP_FLAG_*; neither READ nor WRITE is an error. */
  flags: flags(u32, {
    READ: VFIO_DMA_MAP_FLAG_READ,
    WRITE: VFIO_DMA_MAP_FLAG_WRITE,
    VADDR: VFIO_DMA_MAP_FLAG_VADDR,
  }),
  /** Start in the caller's memory. */
  vaddr: u64,
  /** Start as devices see it. */
  iova: u64,
  /** Bytes; like both addresses a multiple of the smallest page. */
  size: u64,
});

/** A bitmap in the caller's memory: one bit a page, written by the kernel. */
export const VfioBitmap = struct("vfio_bitmap", {
  /** Bytes a bit stands for. */
  pgsize: u64,
  /** Bytes of the bitmap. */
  size: u64,
  /** Where it is. */
  data: pointer,
});

/** Argument of VFIO_IOMMU_UNMAP_DMA. */
export const VfioIommuType1DmaUnmap = struct("vfio_iommu_type1_dma_unmap", {
  argsz: u32,
  /** VFIO_DMA_UNMAP_FLAG_*. */
  flags: flags(u32, {
    GET_DIRTY_BITMAP: VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
    ALL: VFIO_DMA_UNMAP_FLAG_ALL,
    VADDR: VFIO_DMA_UNMAP_FLAG_VADDR,
  }),
  iova: u64,
  /** In: bytes to unmap. Out: bytes that were unmapped. */
  size: u64,
  /** With GET_DIRTY_BITMAP a struct vfio_bitmap. */
  data: tail(u8),
});

/** Argument of VFIO_IOMMU_DIRTY_PAGES. */
export const VfioIommuType1DirtyBitmap = struct("vfio_iommu_type1_dirty_bitmap", {
  argsz: u32,
  /** Exactly one of VFIO_IOMMU_DIRTY_PAGES_FLAG_*. */
  flags: flags(u32, {
    START: VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
    STOP: VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
    GET_BITMAP: VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
  }),
  data: tail(u8),
});

/** What follows struct vfio_iommu_type1_dirty_bitmap with GET_BITMAP. */
export const VfioIommuType1DirtyBitmapGet = struct("vfio_iommu_type1_dirty_bitmap_get", {
  /** Range to report, in bytes; it covers whole mappings. */
  iova: u64,
  size: u64,
  bitmap: VfioBitmap,
});
