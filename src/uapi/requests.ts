/**
 * Names and arguments of requests, for traces and messages. The same number means different things on different files
 * and in containers of different types, so everything here is asked by kind of file. Nothing here throws: what cannot
 * be read as a structure is shown as far as it can.
 */
import {
  deviceFeature,
  dirtyPages,
  dmaUnmap,
  irqSet,
  nestingOp,
  padded,
  type RequestArgument,
  scalar,
  testCommand,
  text,
  whole,
} from "./arguments.ts";
import {
  SOFTIOMMU_SNP_PAGE_STATE,
  SOFTIOMMU_SNP_RMP_READ,
  SOFTIOMMU_WQ_USE_PASID,
  SoftiommuSnpPageState,
  SoftiommuSnpRmpRead,
  SoftiommuWqUsePasid,
} from "./extensions.ts";
import * as iommufd from "./iommufd.ts";
import * as mock from "./iommufd-mock.ts";
import { s32, u32 } from "./struct.ts";
import * as vfio from "./vfio.ts";
import * as vsva from "./vsva.ts";

/**
 * Kinds of file that take requests. A container is named with the IOMMU type that was set, where that changes what
 * numbers mean; an iommufd also answers what a container does.
 */
export type RequestKind =
  | "vfio-container"
  | "vfio-container:spapr"
  | "vfio-container:nesting"
  | "vfio-group"
  | "vfio-device"
  | "vfio-migration"
  | "iommufd"
  | "snp"
  | "dsa-wq";

export interface Request {
  readonly name: string;
  readonly number: number;
  /** What the third argument of ioctl(2) points to; undefined when it is nothing or a plain number. */
  readonly argument: RequestArgument | undefined;
}

type Row = readonly [name: string, number: number, argument?: RequestArgument];

const container: readonly Row[] = [
  ["VFIO_GET_API_VERSION", vfio.VFIO_GET_API_VERSION],
  ["VFIO_CHECK_EXTENSION", vfio.VFIO_CHECK_EXTENSION],
  ["VFIO_SET_IOMMU", vfio.VFIO_SET_IOMMU],
];
const type1: readonly Row[] = [
  ["VFIO_IOMMU_GET_INFO", vfio.VFIO_IOMMU_GET_INFO, whole(vfio.VfioIommuType1Info)],
  ["VFIO_IOMMU_MAP_DMA", vfio.VFIO_IOMMU_MAP_DMA, whole(vfio.VfioIommuType1DmaMap)],
  ["VFIO_IOMMU_UNMAP_DMA", vfio.VFIO_IOMMU_UNMAP_DMA, dmaUnmap],
  ["VFIO_IOMMU_DIRTY_PAGES", vfio.VFIO_IOMMU_DIRTY_PAGES, dirtyPages],
];
const spapr: readonly Row[] = [
  ["VFIO_IOMMU_SPAPR_TCE_GET_INFO", vfio.VFIO_IOMMU_SPAPR_TCE_GET_INFO, whole(vfio.VfioIommuSpaprTceInfo)],
  ["VFIO_IOMMU_MAP_DMA", vfio.VFIO_IOMMU_MAP_DMA, whole(vfio.VfioIommuType1DmaMap)],
  ["VFIO_IOMMU_UNMAP_DMA", vfio.VFIO_IOMMU_UNMAP_DMA, dmaUnmap],
  ["VFIO_IOMMU_ENABLE", vfio.VFIO_IOMMU_ENABLE],
  ["VFIO_IOMMU_DISABLE", vfio.VFIO_IOMMU_DISABLE],
  [
    "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
    vfio.VFIO_IOMMU_SPAPR_REGISTER_MEMORY,
    whole(vfio.VfioIommuSpaprRegisterMemory),
  ],
  [
    "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY",
    vfio.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY,
    whole(vfio.VfioIommuSpaprRegisterMemory),
  ],
  ["VFIO_IOMMU_SPAPR_TCE_CREATE", vfio.VFIO_IOMMU_SPAPR_TCE_CREATE, whole(vfio.VfioIommuSpaprTceCreate)],
  ["VFIO_IOMMU_SPAPR_TCE_REMOVE", vfio.VFIO_IOMMU_SPAPR_TCE_REMOVE, whole(vfio.VfioIommuSpaprTceRemove)],
  ["VFIO_EEH_PE_OP", vfio.VFIO_EEH_PE_OP, whole(vfio.VfioEehPeOp)],
];
const nesting: readonly Row[] = [
  ["VFIO_IOMMU_PASID_REQUEST", vsva.VFIO_IOMMU_PASID_REQUEST, whole(vsva.VfioIommuType1PasidRequest)],
  ["VFIO_IOMMU_NESTING_OP", vsva.VFIO_IOMMU_NESTING_OP, nestingOp],
];
const group: readonly Row[] = [
  ["VFIO_GROUP_GET_STATUS", vfio.VFIO_GROUP_GET_STATUS, whole(vfio.VfioGroupStatus)],
  ["VFIO_GROUP_SET_CONTAINER", vfio.VFIO_GROUP_SET_CONTAINER, scalar("fd", s32)],
  ["VFIO_GROUP_UNSET_CONTAINER", vfio.VFIO_GROUP_UNSET_CONTAINER],
  ["VFIO_GROUP_GET_DEVICE_FD", vfio.VFIO_GROUP_GET_DEVICE_FD, text],
];
const device: readonly Row[] = [
  ["VFIO_DEVICE_GET_INFO", vfio.VFIO_DEVICE_GET_INFO, whole(vfio.VfioDeviceInfo)],
  ["VFIO_DEVICE_GET_REGION_INFO", vfio.VFIO_DEVICE_GET_REGION_INFO, whole(vfio.VfioRegionInfo)],
  ["VFIO_DEVICE_GET_IRQ_INFO", vfio.VFIO_DEVICE_GET_IRQ_INFO, whole(vfio.VfioIrqInfo)],
  ["VFIO_DEVICE_SET_IRQS", vfio.VFIO_DEVICE_SET_IRQS, irqSet],
  ["VFIO_DEVICE_RESET", vfio.VFIO_DEVICE_RESET],
  [
    "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
    vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
    whole(vfio.VfioPciHotResetInfo),
  ],
  ["VFIO_DEVICE_PCI_HOT_RESET", vfio.VFIO_DEVICE_PCI_HOT_RESET, whole(vfio.VfioPciHotReset)],
  ["VFIO_DEVICE_QUERY_GFX_PLANE", vfio.VFIO_DEVICE_QUERY_GFX_PLANE, whole(vfio.VfioDeviceGfxPlaneInfo)],
  ["VFIO_DEVICE_GET_GFX_DMABUF", vfio.VFIO_DEVICE_GET_GFX_DMABUF, scalar("dmabuf_id", u32)],
  ["VFIO_DEVICE_IOEVENTFD", vfio.VFIO_DEVICE_IOEVENTFD, whole(vfio.VfioDeviceIoeventfd)],
  ["VFIO_DEVICE_FEATURE", vfio.VFIO_DEVICE_FEATURE, deviceFeature],
  ["VFIO_DEVICE_BIND_IOMMUFD", vfio.VFIO_DEVICE_BIND_IOMMUFD, whole(vfio.VfioDeviceBindIommufd)],
  [
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    whole(vfio.VfioDeviceAttachIommufdPt),
  ],
  [
    "VFIO_DEVICE_DETACH_IOMMUFD_PT",
    vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT,
    whole(vfio.VfioDeviceDetachIommufdPt),
  ],
];
const migration: readonly Row[] = [
  ["VFIO_MIG_GET_PRECOPY_INFO", vfio.VFIO_MIG_GET_PRECOPY_INFO, whole(vfio.VfioPrecopyInfo)],
];
const iommufdRows: readonly Row[] = [
  ["IOMMU_DESTROY", iommufd.IOMMU_DESTROY, whole(iommufd.IommuDestroy)],
  ["IOMMU_IOAS_ALLOC", iommufd.IOMMU_IOAS_ALLOC, whole(iommufd.IommuIoasAlloc)],
  ["IOMMU_IOAS_ALLOW_IOVAS", iommufd.IOMMU_IOAS_ALLOW_IOVAS, whole(iommufd.IommuIoasAllowIovas)],
  ["IOMMU_IOAS_COPY", iommufd.IOMMU_IOAS_COPY, whole(iommufd.IommuIoasCopy)],
  ["IOMMU_IOAS_IOVA_RANGES", iommufd.IOMMU_IOAS_IOVA_RANGES, whole(iommufd.IommuIoasIovaRanges)],
  ["IOMMU_IOAS_MAP", iommufd.IOMMU_IOAS_MAP, whole(iommufd.IommuIoasMap)],
  ["IOMMU_IOAS_UNMAP", iommufd.IOMMU_IOAS_UNMAP, whole(iommufd.IommuIoasUnmap)],
  ["IOMMU_OPTION", iommufd.IOMMU_OPTION, whole(iommufd.IommuOption)],
  ["IOMMU_VFIO_IOAS", iommufd.IOMMU_VFIO_IOAS, whole(iommufd.IommuVfioIoas)],
  ["IOMMU_HWPT_ALLOC", iommufd.IOMMU_HWPT_ALLOC, whole(iommufd.IommuHwptAlloc)],
  ["IOMMU_GET_HW_INFO", iommufd.IOMMU_GET_HW_INFO, whole(iommufd.IommuHwInfo)],
  [
    "IOMMU_HWPT_SET_DIRTY_TRACKING",
    iommufd.IOMMU_HWPT_SET_DIRTY_TRACKING,
    whole(iommufd.IommuHwptSetDirtyTracking),
  ],
  [
    "IOMMU_HWPT_GET_DIRTY_BITMAP",
    iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP,
    whole(iommufd.IommuHwptGetDirtyBitmap),
  ],
  ["IOMMU_HWPT_INVALIDATE", iommufd.IOMMU_HWPT_INVALIDATE, whole(iommufd.IommuHwptInvalidate)],
  ["IOMMU_FAULT_QUEUE_ALLOC", iommufd.IOMMU_FAULT_QUEUE_ALLOC, whole(iommufd.IommuFaultAlloc)],
  ["IOMMU_IOAS_MAP_FILE", iommufd.IOMMU_IOAS_MAP_FILE, whole(iommufd.IommuIoasMapFile)],
  ["IOMMU_VIOMMU_ALLOC", iommufd.IOMMU_VIOMMU_ALLOC, whole(iommufd.IommuViommuAlloc)],
  ["IOMMU_VDEVICE_ALLOC", iommufd.IOMMU_VDEVICE_ALLOC, whole(iommufd.IommuVdeviceAlloc)],
  ["IOMMU_IOAS_CHANGE_PROCESS", iommufd.IOMMU_IOAS_CHANGE_PROCESS, whole(iommufd.IommuIoasChangeProcess)],
  ["IOMMU_VEVENTQ_ALLOC", iommufd.IOMMU_VEVENTQ_ALLOC, whole(iommufd.IommuVeventqAlloc)],
  ["IOMMU_HW_QUEUE_ALLOC", iommufd.IOMMU_HW_QUEUE_ALLOC, whole(iommufd.IommuHwQueueAlloc)],
  ["IOMMU_TEST_CMD", mock.IOMMU_TEST_CMD, testCommand],
];
const snp: readonly Row[] = [
  ["SOFTIOMMU_SNP_PAGE_STATE", SOFTIOMMU_SNP_PAGE_STATE, whole(SoftiommuSnpPageState)],
  ["SOFTIOMMU_SNP_RMP_READ", SOFTIOMMU_SNP_RMP_READ, whole(SoftiommuSnpRmpRead)],
];
const workQueue: readonly Row[] = [
  ["SOFTIOMMU_WQ_USE_PASID", SOFTIOMMU_WQ_USE_PASID, whole(SoftiommuWqUsePasid)],
];

const table = (...parts: readonly (readonly Row[])[]): ReadonlyMap<number, Request> =>
  new Map(parts.flat().map(([name, number, argument]) => [number, { name, number, argument }]));

/** Every request, by kind of file. */
export const requests: { readonly [K in RequestKind]: ReadonlyMap<number, Request> } = {
  "vfio-container": table(container, type1),
  "vfio-container:spapr": table(container, spapr),
  "vfio-container:nesting": table(container, type1, nesting),
  "vfio-group": table(group),
  "vfio-device": table(device),
  "vfio-migration": table(migration),
  iommufd: table(iommufdRows, container, type1),
  snp: table(snp),
  "dsa-wq": table(workQueue),
};

const isKind = (kind: string): kind is RequestKind => Object.hasOwn(requests, kind);

/** What a number means on a kind of file; undefined when it means nothing there. */
export const findRequest = (kind: string, number: number): Request | undefined =>
  isKind(kind) ? requests[kind].get(number) : undefined;

/** The C name of a request on a kind of file; the number in hexadecimal when it has none there. */
export const requestName = (kind: string, number: number): string =>
  findRequest(kind, number)?.name ?? `0x${(number >>> 0).toString(16)}`;

/**
 * What a request's argument says, on one line. `bytes` is what was read of the caller's memory: missing bytes count
 * as zero. "" when the request has no argument in memory or is not known.
 */
export const printArgument = (kind: string, number: number, bytes: Uint8Array): string => {
  const argument = findRequest(kind, number)?.argument;
  return argument ? argument.print(padded(bytes, argument.size)) : "";
};
