/** VFIO's POWER containers (linux/vfio.h): DMA windows, registered memory, and enhanced error handling (EEH). */
import { oneOf, struct, u32, u64, union } from "../struct.ts";
import { vfioRequest } from "./container.ts";

/** On a POWER container. struct vfio_iommu_spapr_tce_info. The same number as VFIO_IOMMU_GET_INFO. */
export const VFIO_IOMMU_SPAPR_TCE_GET_INFO = vfioRequest(12);
/** On a container of version 2: pins memory before it is mapped. struct vfio_iommu_spapr_register_memory. */
export const VFIO_IOMMU_SPAPR_REGISTER_MEMORY = vfioRequest(17);
/** On a container of version 2: undoes a registration, given the same range. */
export const VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY = vfioRequest(18);
/** On a container of version 2: creates a DMA window. struct vfio_iommu_spapr_tce_create. */
export const VFIO_IOMMU_SPAPR_TCE_CREATE = vfioRequest(19);
/** On a container of version 2: removes a DMA window. struct vfio_iommu_spapr_tce_remove. */
export const VFIO_IOMMU_SPAPR_TCE_REMOVE = vfioRequest(20);
/** On a POWER container: error handling of the group's partitionable endpoint. struct vfio_eeh_pe_op. */
export const VFIO_EEH_PE_OP = vfioRequest(21);

/** `ddw` is valid: windows can be created and removed. */
export const VFIO_IOMMU_SPAPR_INFO_DDW = 1 << 0;

/** EEH operation: stop detecting errors of the endpoint. */
export const VFIO_EEH_PE_DISABLE = 0;
/** EEH operation: detect errors of the endpoint. */
export const VFIO_EEH_PE_ENABLE = 1;
/** EEH operation: let register accesses through again after an error. */
export const VFIO_EEH_PE_UNFREEZE_IO = 2;
/** EEH operation: let DMA through again after an error. */
export const VFIO_EEH_PE_UNFREEZE_DMA = 3;
/** EEH operation: returns one of VFIO_EEH_PE_STATE_*. */
export const VFIO_EEH_PE_GET_STATE = 4;
/** State: in order, nothing is stopped. */
export const VFIO_EEH_PE_STATE_NORMAL = 0;
/** State: held in reset. */
export const VFIO_EEH_PE_STATE_RESET = 1;
/** State: register accesses and DMA are stopped. */
export const VFIO_EEH_PE_STATE_STOPPED = 2;
/** State: only DMA is stopped. */
export const VFIO_EEH_PE_STATE_STOPPED_DMA = 4;
/** State: not known at present. */
export const VFIO_EEH_PE_STATE_UNAVAIL = 5;
/** EEH operation: leave reset. */
export const VFIO_EEH_PE_RESET_DEACTIVATE = 5;
/** EEH operation: enter hot reset. */
export const VFIO_EEH_PE_RESET_HOT = 6;
/** EEH operation: enter fundamental reset. */
export const VFIO_EEH_PE_RESET_FUNDAMENTAL = 7;
/** EEH operation: restore the endpoint's bridges and BARs after a reset. */
export const VFIO_EEH_PE_CONFIGURE = 8;
/** EEH operation: provoke the error that `err` describes. */
export const VFIO_EEH_PE_INJECT_ERR = 9;

/** What is possible with windows beyond the default one. Filled by the kernel. */
export const VfioIommuSpaprTceDdwInfo = struct("vfio_iommu_spapr_tce_ddw_info", {
  /** Bit n: pages of 2^n bytes. */
  pgsizes: u64,
  /** Windows at a time, the default one included. */
  max_dynamic_windows_supported: u32,
  /** Levels a table may have. */
  levels: u32,
});

/** What VFIO_IOMMU_SPAPR_TCE_GET_INFO answers. */
export const VfioIommuSpaprTceInfo = struct("vfio_iommu_spapr_tce_info", {
  argsz: u32,
  /** Out: VFIO_IOMMU_SPAPR_INFO_DDW. */
  flags: u32,
  /** Out: the window below 4 GiB, bus address of its first byte and bytes. */
  dma32_window_start: u32,
  dma32_window_size: u32,
  ddw: VfioIommuSpaprTceDdwInfo,
});

/** The error that VFIO_EEH_PE_INJECT_ERR provokes; filled by the caller. */
export const VfioEehPeErr = struct("vfio_eeh_pe_err", {
  /** Error of 32-bit (0) or 64-bit (1) addresses. */
  type: u32,
  /** Which access fails, numbered by the platform. */
  func: u32,
  /** The address, and which of its bits are compared. */
  addr: u64,
  mask: u64,
});

/** Argument of VFIO_EEH_PE_OP; filled by the caller. */
export const VfioEehPeOp = struct("vfio_eeh_pe_op", {
  argsz: u32,
  flags: u32,
  /** One of the EEH operations. */
  op: oneOf(u32, {
    DISABLE: VFIO_EEH_PE_DISABLE,
    ENABLE: VFIO_EEH_PE_ENABLE,
    UNFREEZE_IO: VFIO_EEH_PE_UNFREEZE_IO,
    UNFREEZE_DMA: VFIO_EEH_PE_UNFREEZE_DMA,
    GET_STATE: VFIO_EEH_PE_GET_STATE,
    RESET_DEACTIVATE: VFIO_EEH_PE_RESET_DEACTIVATE,
    RESET_HOT: VFIO_EEH_PE_RESET_HOT,
    RESET_FUNDAMENTAL: VFIO_EEH_PE_RESET_FUNDAMENTAL,
    CONFIGURE: VFIO_EEH_PE_CONFIGURE,
    INJECT_ERR: VFIO_EEH_PE_INJECT_ERR,
  }),
  "": union({ err: VfioEehPeErr }),
});

/** Argument of REGISTER_MEMORY and UNREGISTER_MEMORY; filled by the caller. */
export const VfioIommuSpaprRegisterMemory = struct("vfio_iommu_spapr_register_memory", {
  argsz: u32,
  /** 0. */
  flags: u32,
  /** Range in the caller's memory, in bytes, page aligned. */
  vaddr: u64,
  size: u64,
});

/** Argument of VFIO_IOMMU_SPAPR_TCE_CREATE. */
export const VfioIommuSpaprTceCreate = struct("vfio_iommu_spapr_tce_create", {
  argsz: u32,
  /** 0. */
  flags: u32,
  /** In: lg2 of the page size. */
  page_shift: u32,
  __resv1: u32,
  /** In: bytes, a power of two. */
  window_size: u64,
  /** In: levels of the table, from 1. */
  levels: u32,
  __resv2: u32,
  /** Out: bus address of the window's first byte. */
  start_addr: u64,
});

/** Argument of VFIO_IOMMU_SPAPR_TCE_REMOVE; filled by the caller. */
export const VfioIommuSpaprTceRemove = struct("vfio_iommu_spapr_tce_remove", {
  argsz: u32,
  /** 0. */
  flags: u32,
  /** Bus address of the window's first byte, as creation gave it. */
  start_addr: u64,
});
