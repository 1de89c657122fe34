/**
 * VFIO's container requests on /dev/iommu (linux/vfio.h): on the IOAS that IOMMU_VFIO_IOAS names. They answer as a
 * type 1 container does, with the differences Linux 7.2 has here, as recorded in test/data/transcripts.
 */
import type { Call, Suspended } from "../kernel/call.ts";
import { copyArgsz } from "../uapi/copy.ts";
import { LinuxError } from "../uapi/errno.ts";
import { InfoChain } from "../uapi/info-chain.ts";
import type { Members, Struct, StructValue } from "../uapi/struct.ts";
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_CC_IOMMU,
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_GET_API_VERSION,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  VFIO_TYPE1_IOMMU,
  VFIO_TYPE1v2_IOMMU,
  VFIO_UNMAP_ALL,
  VfioInfoCapHeader,
  VfioIommuType1DmaMap,
  VfioIommuType1DmaUnmap,
  VfioIommuType1Info,
  VfioIommuType1InfoCapIovaRange,
  VfioIommuType1InfoDmaAvail,
} from "../uapi/vfio.ts";
import { hex, MAX_ADDRESS, PAGE_BYTES } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { compatIoasOf, Ioas } from "./ioas.ts";
import { mapUser } from "./ioas-calls.ts";
import { unknown } from "./request.ts";
import { unmapWaiting } from "./unmap.ts";

/** Mappings may be made without limit here. */
const UNLIMITED = 2 ** 32 - 1;

/**
 * What VFIO does with a group that is given to the file as its container: its requests need an IOAS from now on, and one
 * is made when none was named. Throws ENOMEM.
 */
export const ensureCompatIoas = (context: IommufdContext): Ioas => {
  const named = compatIoasOf(context);
  if (named) return named;
  const ioas = context.add(new Ioas(context));
  context.compatIoas = ioas;
  return ioas;
};

/** One of VFIO's requests. Throws ENOTTY when it is none, ENODEV without an IOAS. */
export const compatCall = (
  context: IommufdContext,
  call: Call,
  number: number,
  at: bigint,
): number | Suspended => {
  switch (number) {
    case VFIO_GET_API_VERSION:
      return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
      return extension(context, at);
    case VFIO_SET_IOMMU:
      return setIommu(context, at);
    case VFIO_IOMMU_GET_INFO:
      return getInfo(context, call, at);
    case VFIO_IOMMU_MAP_DMA:
      return mapDma(context, call, at);
    case VFIO_IOMMU_UNMAP_DMA:
      return unmapDma(context, call, at);
    default:
      throw unknown(number);
  }
};

const ioasOf = (context: IommufdContext): Ioas => {
  const ioas = compatIoasOf(context);
  if (ioas) return ioas;
  throw new LinuxError("ENODEV", "VFIO's requests have no IOAS here; IOMMU_VFIO_IOAS sets one", context.name);
};

const argumentOf = <F extends Members>(
  call: Call,
  at: bigint,
  layout: Struct<F>,
  minimum: number = layout.size,
): { readonly value: StructValue<F>; readonly argsz: number } => {
  const read = (offset: number, into: Uint8Array) => call.memory.read(at + BigInt(offset), into);
  const { bytes, argsz } = copyArgsz(read, layout, minimum);
  return { value: layout.read(bytes), argsz };
};

const extension = (context: IommufdContext, id: bigint): number => {
  switch (Number(id)) {
    case VFIO_TYPE1_IOMMU:
    case VFIO_TYPE1v2_IOMMU:
    case VFIO_UNMAP_ALL:
      return 1;
    case VFIO_DMA_CC_IOMMU:
      return [...ioasOf(context).hwpts].every(({ coherent }) => coherent) ? 1 : 0;
    default:
      return 0;
  }
};

/** Version 1 may unmap parts: pages are mapped one by one from then on, and areas are cut, whatever is set later. */
const setIommu = (context: IommufdContext, type: bigint): number => {
  const chosen = Number(type);
  if (chosen !== VFIO_TYPE1_IOMMU && chosen !== VFIO_TYPE1v2_IOMMU)
    throw new LinuxError(
      "EINVAL",
      `IOMMU type ${type} is not offered; ${VFIO_TYPE1_IOMMU} (type 1) and ${VFIO_TYPE1v2_IOMMU} (type 1 version 2) are`,
      context.name,
    );
  const { pagetable } = ioasOf(context);
  if (chosen === VFIO_TYPE1_IOMMU) pagetable.setLargePages(false);
  return 0;
};

/** Page sizes of all domains, without those below a page of the host. */
const pageSizes = ({ pagetable }: Ioas): bigint =>
  pagetable.domains.reduce((sizes, domain) => sizes & domain.pageSizes, MAX_ADDRESS ^ BigInt(PAGE_BYTES - 1));

/**
 * Unlike a container this one writes the capabilities that fit, links those whose successor would begin within the
 * caller's structure, and names the first one only when all fit.
 */
const getInfo = (context: IommufdContext, call: Call, at: bigint): number => {
  const minimum = VfioIommuType1Info.fieldEnd("iova_pgsizes");
  const { argsz } = argumentOf(call, at, VfioIommuType1Info, minimum);
  const ioas = ioasOf(context);
  const ranges = ioas.pagetable.space.usable;
  context.allocate("a list of ranges");
  const chain = new InfoChain(VfioIommuType1Info.size)
    .add(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, VfioIommuType1InfoDmaAvail, { avail: UNLIMITED })
    .add(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, VfioIommuType1InfoCapIovaRange, {
      nr_iovas: ranges.length,
      iova_ranges: ranges.map(({ start, last }) => ({ start, end: last })),
    });
  const fits = chain.needed <= argsz;
  for (const capability of chain.capabilities) {
    if (capability.at + capability.bytes.length > argsz) continue;
    const bytes = new Uint8Array(capability.bytes);
    const header = VfioInfoCapHeader.view(bytes);
    if (header.next > argsz) header.next = 0;
    call.memory.write(at + BigInt(capability.at), bytes);
  }
  const info = VfioIommuType1Info.bytes({
    argsz: chain.needed,
    flags: VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS,
    iova_pgsizes: pageSizes(ioas),
    cap_offset: fits ? chain.capabilities[0]!.at : 0,
  });
  call.memory.write(at, info.subarray(0, Math.min(argsz, info.length)));
  return 0;
};

const mapDma = (context: IommufdContext, call: Call, at: bigint): number => {
  const { flags, vaddr, iova, size } = argumentOf(call, at, VfioIommuType1DmaMap).value;
  if (flags & ~(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE))
    throw new LinuxError("EINVAL", `flags ${hex(flags)}: only READ (1) and WRITE (2) are known here`);
  const ioas = ioasOf(context);
  mapUser(context, call, ioas, {
    va: vaddr,
    length: size,
    iova,
    protection: flags,
  });
  return 0;
};

const unmapDma = (context: IommufdContext, call: Call, at: bigint): number | Suspended => {
  const { flags, iova, size } = argumentOf(call, at, VfioIommuType1DmaUnmap).value;
  const all = (flags & VFIO_DMA_UNMAP_FLAG_ALL) !== 0;
  if (flags & ~VFIO_DMA_UNMAP_FLAG_ALL)
    throw new LinuxError("EINVAL", `flags ${hex(flags)}: only ALL (2) is known here`);
  const ioas = ioasOf(context);
  if (all && (iova !== 0n || size !== 0n))
    throw new LinuxError("EINVAL", `ALL with iova ${hex(iova)} and size ${hex(size)}: both must be 0`);
  const report = (bytes: bigint, error?: unknown) => {
    const where = at + BigInt(VfioIommuType1DmaUnmap.offsets.size);
    call.memory.write(where, new Uint8Array(new BigUint64Array([bytes]).buffer));
    if (error) throw error;
    return 0;
  };
  const range = all ? { start: 0n, last: MAX_ADDRESS } : { start: iova, last: iova + size - 1n };
  try {
    if (!all) requireUnmappable(iova, size);
    if (!all && !ioas.pagetable.largePages) ioas.pagetable.cut(range);
  } catch (error) {
    return report(0n, error);
  }
  if (!ioas.pagetable.areas.in(range)) return report(0n);
  return unmapWaiting(context, call, ioas, range, report);
};

const requireUnmappable = (iova: bigint, size: bigint): void => {
  if (size === 0n) throw new LinuxError("EINVAL", "size is 0; a range of pages is needed");
  if (iova + size - 1n > MAX_ADDRESS)
    throw new LinuxError("EOVERFLOW", `iova ${hex(iova)} + size ${hex(size)} goes beyond 64 bits`);
};
