/**
 * VFIO's region capabilities and the regions, planes and interrupts of particular kinds of devices (linux/vfio.h).
 * softiommu models PCI functions: s390 channel devices, displays and NVLink are layouts only.
 */
import { flags, oneOf, struct, tail, u32, u64, union } from "../struct.ts";
import { VfioInfoCapHeader } from "./container.ts";

/** Region capability id: only some areas can be mapped. */
export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1;
/** Region capability id: type and subtype of a region of the device's own. */
export const VFIO_REGION_INFO_CAP_TYPE = 2;
/** Region capability id: the BAR's MSI-X table may be mapped with the rest. Only a header. */
export const VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3;
/** Region capability id: NVLink, the address towards the GPU. */
export const VFIO_REGION_INFO_CAP_NVLINK2_SSATGT = 4;
/** Region capability id: NVLink, the link's speed. */
export const VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD = 5;

/** The region's type is a PCI vendor's: this bit, and the vendor id in VFIO_REGION_TYPE_PCI_VENDOR_MASK. */
export const VFIO_REGION_TYPE_PCI_VENDOR_TYPE = 0x8000_0000;
/** Where the vendor id is in such a type. */
export const VFIO_REGION_TYPE_PCI_VENDOR_MASK = 0xffff;
/** Region type: graphics. */
export const VFIO_REGION_TYPE_GFX = 1;
/** Region type: s390 channel devices. */
export const VFIO_REGION_TYPE_CCW = 2;
/** Region type: migration before it became a feature. */
export const VFIO_REGION_TYPE_MIGRATION_DEPRECATED = 3;

/** Subtype, Intel graphics: the OpRegion. */
export const VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION = 1;
/** Subtype, Intel graphics: config space of the host bridge. */
export const VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG = 2;
/** Subtype, Intel graphics: config space of the LPC bridge. */
export const VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG = 3;
/** Subtype, NVIDIA: memory of the GPU over NVLink. */
export const VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM = 1;
/** Subtype, IBM: address translation shootdown of NVLink. */
export const VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD = 1;
/** Subtype of graphics: the monitor's EDID. */
export const VFIO_REGION_SUBTYPE_GFX_EDID = 1;
/** Subtype of channel devices: commands that do not wait. */
export const VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD = 1;
/** Subtype of channel devices: the subchannel's information block. */
export const VFIO_REGION_SUBTYPE_CCW_SCHIB = 2;
/** Subtype of channel devices: channel report words. */
export const VFIO_REGION_SUBTYPE_CCW_CRW = 3;
/** Subtype of the former migration region. */
export const VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED = 1;

/** EDID: a monitor is connected. */
export const VFIO_DEVICE_GFX_LINK_STATE_UP = 1;
/** EDID: no monitor is connected. */
export const VFIO_DEVICE_GFX_LINK_STATE_DOWN = 2;

/** Display plane: only ask whether the type is supported. */
export const VFIO_GFX_PLANE_TYPE_PROBE = 1 << 0;
/** Display plane: as a dmabuf. */
export const VFIO_GFX_PLANE_TYPE_DMABUF = 1 << 1;
/** Display plane: as a region. */
export const VFIO_GFX_PLANE_TYPE_REGION = 1 << 2;

/** Region index of a channel device: the configuration region. */
export const VFIO_CCW_CONFIG_REGION_INDEX = 0;
/** Region indices every channel device has. */
export const VFIO_CCW_NUM_REGIONS = 1;
/** Interrupt index of a channel device: an I/O has ended. */
export const VFIO_CCW_IO_IRQ_INDEX = 0;
/** Interrupt index of a channel device: a channel report word is pending. */
export const VFIO_CCW_CRW_IRQ_INDEX = 1;
/** Interrupt index of a channel device: the host asks for the device back. */
export const VFIO_CCW_REQ_IRQ_INDEX = 2;
/** Interrupt indices every channel device has. */
export const VFIO_CCW_NUM_IRQS = 3;
/** Interrupt index of an adjunct processor: the host asks for the device back. */
export const VFIO_AP_REQ_IRQ_INDEX = 0;
/** Interrupt index of an adjunct processor: its configuration changed. */
export const VFIO_AP_CFG_CHG_IRQ_INDEX = 1;
/** Interrupt indices every adjunct processor has. */
export const VFIO_AP_NUM_IRQS = 2;

/** Former migration region: stopped. */
export const VFIO_DEVICE_STATE_V1_STOP = 0;
/** Former migration region: running. */
export const VFIO_DEVICE_STATE_V1_RUNNING = 1 << 0;
/** Former migration region: saving. */
export const VFIO_DEVICE_STATE_V1_SAVING = 1 << 1;
/** Former migration region: resuming. */
export const VFIO_DEVICE_STATE_V1_RESUMING = 1 << 2;
/** Former migration region: the bits of a state. */
export const VFIO_DEVICE_STATE_MASK =
  VFIO_DEVICE_STATE_V1_RUNNING | VFIO_DEVICE_STATE_V1_SAVING | VFIO_DEVICE_STATE_V1_RESUMING;

/** An area of a region that can be mapped, in bytes from the region's start. Filled by the kernel. */
export const VfioRegionSparseMmapArea = struct("vfio_region_sparse_mmap_area", { offset: u64, size: u64 });

/** Capability VFIO_REGION_INFO_CAP_SPARSE_MMAP, version 1. Filled by the kernel. */
export const VfioRegionInfoCapSparseMmap = struct("vfio_region_info_cap_sparse_mmap", {
  header: VfioInfoCapHeader,
  /** Number of areas. */
  nr_areas: u32,
  reserved: u32,
  areas: tail(VfioRegionSparseMmapArea, "nr_areas"),
});

/** Capability VFIO_REGION_INFO_CAP_TYPE, version 1. Filled by the kernel. */
export const VfioRegionInfoCapType = struct("vfio_region_info_cap_type", {
  header: VfioInfoCapHeader,
  /** VFIO_REGION_TYPE_*. */
  type: u32,
  /** VFIO_REGION_SUBTYPE_* of that type. */
  subtype: u32,
});

/** Capability VFIO_REGION_INFO_CAP_NVLINK2_SSATGT. Filled by the kernel. */
export const VfioRegionInfoCapNvlink2Ssatgt = struct("vfio_region_info_cap_nvlink2_ssatgt", {
  header: VfioInfoCapHeader,
  /** The address the GPU's memory has on the host. */
  tgt: u64,
});

/** Capability VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD. Filled by the kernel. */
export const VfioRegionInfoCapNvlink2Lnkspd = struct("vfio_region_info_cap_nvlink2_lnkspd", {
  header: VfioInfoCapHeader,
  /** As the device tree has it. */
  link_speed: u32,
  __pad: u32,
});

/** Head of the EDID region. */
export const VfioRegionGfxEdid = struct("vfio_region_gfx_edid", {
  /** Where in the region the EDID lies and how long it may be, in bytes; given by the device. */
  edid_offset: u32,
  edid_max_size: u32,
  /** Written by the user: its length. */
  edid_size: u32,
  /** Given by the device: the largest picture, in pixels. */
  max_xres: u32,
  max_yres: u32,
  /** Written by the user: VFIO_DEVICE_GFX_LINK_STATE_*. */
  link_state: oneOf(u32, { UP: VFIO_DEVICE_GFX_LINK_STATE_UP, DOWN: VFIO_DEVICE_GFX_LINK_STATE_DOWN }),
});

/** Head of the former migration region. */
export const VfioDeviceMigrationInfo = struct("vfio_device_migration_info", {
  /** VFIO_DEVICE_STATE_V1_*; written by the user. */
  device_state: u32,
  reserved: u32,
  /** Given by the device: bytes of state still to be saved. */
  pending_bytes: u64,
  /** Where in the region a piece of state lies, and its bytes. */
  data_offset: u64,
  data_size: u64,
});

/** Argument of VFIO_DEVICE_QUERY_GFX_PLANE. */
export const VfioDeviceGfxPlaneInfo = struct("vfio_device_gfx_plane_info", {
  argsz: u32,
  /** In: VFIO_GFX_PLANE_TYPE_*. */
  flags: flags(u32, {
    PROBE: VFIO_GFX_PLANE_TYPE_PROBE,
    DMABUF: VFIO_GFX_PLANE_TYPE_DMABUF,
    REGION: VFIO_GFX_PLANE_TYPE_REGION,
  }),
  /** In: which plane, as the DRM numbers them. */
  drm_plane_type: u32,
  /** Out: pixel format and its modifier, as the DRM numbers them. */
  drm_format: u32,
  drm_format_mod: u64,
  /** Out: pixels. */
  width: u32,
  height: u32,
  /** Out: bytes a line, and bytes in all. */
  stride: u32,
  size: u32,
  /** Out: where the plane is, and the hot spot of a cursor; pixels. */
  x_pos: u32,
  y_pos: u32,
  x_hot: u32,
  y_hot: u32,
  "": union({
    /** Out, type REGION. */
    region_index: u32,
    /** Out, type DMABUF: for VFIO_DEVICE_GET_GFX_DMABUF. */
    dmabuf_id: u32,
  }),
  reserved: u32,
});
