/**
 * The calls of a sPAPR container (linux/vfio.h): what its windows are, memory that is registered, entries, and windows
 * that come and go. The order of checks is by belief: nothing recorded says it. Enhanced error handling (EEH) is not
 * offered, as on a host whose platform has none: CHECK_EXTENSION says 0, and the request is unknown.
 */
import type { Call } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_IOMMU_DISABLE,
  VFIO_IOMMU_ENABLE,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_SPAPR_INFO_DDW,
  VFIO_IOMMU_SPAPR_REGISTER_MEMORY,
  VFIO_IOMMU_SPAPR_TCE_CREATE,
  VFIO_IOMMU_SPAPR_TCE_GET_INFO,
  VFIO_IOMMU_SPAPR_TCE_REMOVE,
  VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY,
  VFIO_IOMMU_UNMAP_DMA,
  VfioIommuSpaprRegisterMemory,
  VfioIommuSpaprTceCreate,
  VfioIommuSpaprTceInfo,
  VfioIommuSpaprTceRemove,
  VfioIommuType1DmaMap,
  VfioIommuType1DmaUnmap,
} from "../../uapi/vfio.ts";
import { hex, readArgument } from "../argument.ts";
import type { Spapr } from "./spapr.ts";

const PAGE = 4096n;
const ADDRESS_SPACE = 1n << 64n;

type Serve = (spapr: Spapr, call: Call, at: bigint) => void;

/** One call on a sPAPR container; `undefined` when its version knows no such request. */
export const spaprCall = (
  spapr: Spapr,
  call: Call,
  request: number,
  argument: bigint,
): number | undefined => {
  const serve = COMMON.get(request) ?? (spapr.version === 1 ? FIRST : SECOND).get(request);
  if (!serve) return undefined;
  serve(spapr, call, argument);
  return 0;
};

/** The answer grew: a caller may know it only up to the window below 4 GiB. */
const getInfo: Serve = (spapr, call, at) => {
  const minimum = VfioIommuSpaprTceInfo.fieldEnd("dma32_window_size");
  const { argsz } = readArgument(call, at, VfioIommuSpaprTceInfo, minimum);
  const { first, pageSizes, levels, count } = spapr.abilities;
  const ddw = spapr.version === 2 && argsz >= VfioIommuSpaprTceInfo.size;
  const bytes = VfioIommuSpaprTceInfo.bytes({
    argsz,
    flags: ddw ? VFIO_IOMMU_SPAPR_INFO_DDW : 0,
    dma32_window_start: first.start,
    dma32_window_size: first.length,
    ddw: { pgsizes: pageSizes, max_dynamic_windows_supported: count, levels },
  });
  call.memory.write(at, ddw ? bytes : bytes.subarray(0, minimum));
};

const map: Serve = (spapr, call, at) => {
  const request = readArgument(call, at, VfioIommuType1DmaMap, VfioIommuType1DmaMap.size);
  const { flags, iova, vaddr, size } = request;
  if (flags & ~(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE))
    throw new LinuxError("EINVAL", `flags ${hex(flags)}: only READ (1) and WRITE (2) are known`, spapr.name);
  if (flags === 0)
    throw new LinuxError("EINVAL", "neither READ nor WRITE: a mapping must allow one of them", spapr.name);
  requirePages(spapr, { vaddr, iova, size });
  spapr.map(call.task, {
    iova: Number(iova),
    vaddr: Number(vaddr),
    length: Number(size),
    read: (flags & VFIO_DMA_MAP_FLAG_READ) !== 0,
    write: (flags & VFIO_DMA_MAP_FLAG_WRITE) !== 0,
  });
};

const unmap: Serve = (spapr, call, at) => {
  const request = readArgument(call, at, VfioIommuType1DmaUnmap, VfioIommuType1DmaUnmap.size);
  const { flags, iova, size } = request;
  requireNoFlags(spapr, flags);
  requirePages(spapr, { iova, size });
  spapr.unmap(call.task, Number(iova), Number(size));
};

const register: Serve = (spapr, call, at) => {
  const { vaddr, size } = readBlock(spapr, call, at);
  spapr.register(call.task, vaddr, size);
};

const unregister: Serve = (spapr, call, at) => {
  const { vaddr, size } = readBlock(spapr, call, at);
  spapr.unregister(call.task, vaddr, size);
};

const create: Serve = (spapr, call, at) => {
  const request = readArgument(call, at, VfioIommuSpaprTceCreate, VfioIommuSpaprTceCreate.size);
  requireNoFlags(spapr, request.flags);
  const { page_shift, window_size, levels } = request;
  if (window_size === 0n || window_size & (window_size - 1n))
    throw new LinuxError("EINVAL", `window_size ${hex(window_size)} is no power of two`, spapr.name);
  const window = spapr.createWindow(call.task, { pageLg2: page_shift, length: Number(window_size), levels });
  try {
    call.memory.write(at, VfioIommuSpaprTceCreate.bytes({ ...request, start_addr: BigInt(window.start) }));
  } catch (error) {
    spapr.removeWindow(call.task, BigInt(window.start));
    throw error;
  }
};

const remove: Serve = (spapr, call, at) => {
  const request = readArgument(call, at, VfioIommuSpaprTceRemove, VfioIommuSpaprTceRemove.size);
  requireNoFlags(spapr, request.flags);
  spapr.removeWindow(call.task, request.start_addr);
};

const COMMON: ReadonlyMap<number, Serve> = new Map([
  [VFIO_IOMMU_SPAPR_TCE_GET_INFO, getInfo],
  [VFIO_IOMMU_MAP_DMA, map],
  [VFIO_IOMMU_UNMAP_DMA, unmap],
]);
const FIRST: ReadonlyMap<number, Serve> = new Map<number, Serve>([
  [VFIO_IOMMU_ENABLE, (spapr, call) => spapr.enable(call.task)],
  [VFIO_IOMMU_DISABLE, (spapr, call) => spapr.disable(call.task)],
]);
const SECOND: ReadonlyMap<number, Serve> = new Map([
  [VFIO_IOMMU_SPAPR_REGISTER_MEMORY, register],
  [VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, unregister],
  [VFIO_IOMMU_SPAPR_TCE_CREATE, create],
  [VFIO_IOMMU_SPAPR_TCE_REMOVE, remove],
]);

const readBlock = (spapr: Spapr, call: Call, at: bigint): { vaddr: number; size: number } => {
  const layout = VfioIommuSpaprRegisterMemory;
  const { flags, vaddr, size } = readArgument(call, at, layout, layout.size);
  requireNoFlags(spapr, flags);
  requirePages(spapr, { vaddr, size });
  return { vaddr: Number(vaddr), size: Number(size) };
};

const requireNoFlags = (spapr: Spapr, flags: number): void => {
  if (flags !== 0) throw new LinuxError("EINVAL", `flags ${hex(flags)}: none is known`, spapr.name);
};

/** Whole pages of the host, at least one, within 64 bits. */
const requirePages = (spapr: Spapr, values: { readonly [name: string]: bigint }): void => {
  const { size = 0n } = values;
  if (size === 0n) throw new LinuxError("EINVAL", "size is 0; at least a page is needed", spapr.name);
  for (const [name, value] of Object.entries(values)) {
    if (value % PAGE !== 0n)
      throw new LinuxError("EINVAL", `${name} ${hex(value)} is not a multiple of ${hex(PAGE)}`, spapr.name);
    if (name !== "size" && value + size > ADDRESS_SPACE)
      throw new LinuxError(
        "EINVAL",
        `${name} ${hex(value)} + size ${hex(size)} goes beyond 64 bits`,
        spapr.name,
      );
  }
};
