/**
 * The calls of a type 1 container: GET_INFO, MAP_DMA, UNMAP_DMA, DIRTY_PAGES (linux/vfio.h). Checks come in the order
 * in which Linux 7.2 makes them, as recorded in test/data/transcripts. Left out: what only mediated devices need.
 */
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { InfoChain } from "../uapi/info-chain.ts";
import type { ValueOf } from "../uapi/struct.ts";
import {
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_VADDR,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  VFIO_DMA_UNMAP_FLAG_VADDR,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
  VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
  VFIO_IOMMU_UNMAP_DMA,
  VfioBitmap,
  VfioIommuType1DirtyBitmap,
  VfioIommuType1DirtyBitmapGet,
  VfioIommuType1DmaMap,
  VfioIommuType1DmaUnmap,
  VfioIommuType1Info,
  VfioIommuType1InfoCapIovaRange,
  VfioIommuType1InfoCapMigration,
  VfioIommuType1InfoDmaAvail,
} from "../uapi/vfio.ts";
import { hex, readArgument, readStruct } from "./argument.ts";
import { checkBitmap, markDirty } from "./dirty-bitmap.ts";
import type { Type1 } from "./type1.ts";

/** Bytes of the largest dirty bitmap: one bit a page for 2^31 pages. */
export const MAX_BITMAP_BYTES = 2 ** 28;
const ADDRESS_SPACE = 1n << 64n;

/** One call on a container of type 1; `undefined` when it knows no such request. */
export const type1Call = (
  type1: Type1,
  call: Call,
  request: number,
  argument: bigint,
): number | undefined => {
  switch (request) {
    case VFIO_IOMMU_GET_INFO:
      return getInfo(type1, call, argument);
    case VFIO_IOMMU_MAP_DMA:
      return mapDma(type1, call, argument);
    case VFIO_IOMMU_UNMAP_DMA:
      return unmapDma(type1, call, argument);
    case VFIO_IOMMU_DIRTY_PAGES:
      return dirtyPages(type1, call, argument);
    default:
      return undefined;
  }
};

/** The order is Linux's: migration, what is the type's own, IOVA ranges. */
const chainOf = (type1: Type1, own: (chain: InfoChain) => void): InfoChain => {
  const chain = new InfoChain(VfioIommuType1Info.size).add(
    VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
    1,
    VfioIommuType1InfoCapMigration,
    { pgsize_bitmap: BigInt(type1.granule), max_dirty_bitmap_size: BigInt(MAX_BITMAP_BYTES) },
  );
  own(chain);
  if (type1.ranges.length > 0)
    chain.add(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, VfioIommuType1InfoCapIovaRange, {
      nr_iovas: type1.ranges.length,
      iova_ranges: type1.ranges.map(({ start, end }) => ({ start: BigInt(start), end: BigInt(end) - 1n })),
    });
  return chain;
};

/** GET_INFO with the capabilities that `own` adds. The structure grew: callers may know it only up to `iova_pgsizes`. */
export const answerInfo = (type1: Type1, call: Call, at: bigint, own: (chain: InfoChain) => void): number => {
  const { argsz } = readArgument(call, at, VfioIommuType1Info, VfioIommuType1Info.fieldEnd("iova_pgsizes"));
  const info = {
    flags: VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS,
    iova_pgsizes: type1.pageSizes,
  };
  call.memory.write(at, chainOf(type1, own).answer(VfioIommuType1Info, info, argsz));
  return 0;
};

const getInfo = (type1: Type1, call: Call, at: bigint): number =>
  answerInfo(type1, call, at, (chain) =>
    chain.add(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, VfioIommuType1InfoDmaAvail, { avail: type1.available }),
  );

const mapDma = (type1: Type1, call: Call, at: bigint): number => {
  const request = readArgument(call, at, VfioIommuType1DmaMap, VfioIommuType1DmaMap.size);
  const { flags, iova, vaddr, size } = request;
  const known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE | VFIO_DMA_MAP_FLAG_VADDR;
  if (flags & ~known)
    throw new LinuxError(
      "EINVAL",
      `flags ${hex(flags)}: only READ (1), WRITE (2) and VADDR (4) are known`,
      type1.name,
    );
  if (size === 0n) throw new LinuxError("EINVAL", "size is 0; at least a page can be mapped", type1.name);
  for (const [what, start] of [
    ["iova", iova],
    ["vaddr", vaddr],
  ] as const)
    if (start + size > ADDRESS_SPACE)
      throw new LinuxError(
        "EOVERFLOW",
        `${what} ${hex(start)} + size ${hex(size)} goes beyond 64 bits`,
        type1.name,
      );
  const read = (flags & VFIO_DMA_MAP_FLAG_READ) !== 0;
  const write = (flags & VFIO_DMA_MAP_FLAG_WRITE) !== 0;
  const update = (flags & VFIO_DMA_MAP_FLAG_VADDR) !== 0;
  if (update === (read || write))
    throw new LinuxError(
      "EINVAL",
      update
        ? "VADDR goes without READ and WRITE: it changes the user address of a mapping that exists"
        : "neither READ nor WRITE: a mapping must allow one of them",
      type1.name,
    );
  checkAligned(type1, { iova, vaddr, size });
  const [ioVirtual, userVirtual, length] = [Number(iova), Number(vaddr), Number(size)];
  if (update) type1.updateVaddr(call.task, ioVirtual, userVirtual, length);
  else type1.map(call.task, { iova: ioVirtual, vaddr: userVirtual, length, read, write });
  return 0;
};

const checkAligned = (type1: Type1, values: { readonly [name: string]: bigint }): void => {
  const granule = BigInt(type1.granule);
  for (const [name, value] of Object.entries(values))
    if (value % granule !== 0n)
      throw new LinuxError(
        "EINVAL",
        `${name} ${hex(value)} is not a multiple of ${hex(granule)}, the smallest page of the container`,
        type1.name,
      );
};

const unmapDma = (type1: Type1, call: Call, at: bigint): number => {
  const minimum = VfioIommuType1DmaUnmap.size;
  const { argsz, flags, iova, size } = readArgument(call, at, VfioIommuType1DmaUnmap, minimum);
  const all = (flags & VFIO_DMA_UNMAP_FLAG_ALL) !== 0;
  const invalidate = (flags & VFIO_DMA_UNMAP_FLAG_VADDR) !== 0;
  const report = (flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) !== 0;
  checkUnmapFlags(type1, flags);
  const bitmap = report ? readBitmap(type1, call, at + BigInt(minimum), { argsz, minimum, size }) : undefined;
  if (bitmap && !type1.tracking)
    throw new LinuxError("EINVAL", "dirty pages are not tracked; start tracking first", type1.name);
  checkAligned(type1, { iova });
  if (all && (iova !== 0n || size !== 0n))
    throw new LinuxError(
      "EINVAL",
      `ALL with iova ${hex(iova)} and size ${hex(size)}: both must be 0`,
      type1.name,
    );
  if (!all) checkRange(type1, iova, size);
  const mappings = all ? type1.all() : type1.covered(Number(iova), Number(size));
  if (bitmap) for (const mapping of mappings) markDirty(call.memory, bitmap, mapping, Number(iova));
  const done = invalidate ? type1.invalidateVaddr(mappings) : type1.unmap(mappings);
  const sizeAt = at + BigInt(VfioIommuType1DmaUnmap.offsets.size);
  call.memory.write(sizeAt, new Uint8Array(new BigUint64Array([BigInt(done)]).buffer));
  return 0;
};

const checkUnmapFlags = (type1: Type1, flags: number): void => {
  const known = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR;
  if (flags & ~known)
    throw new LinuxError(
      "EINVAL",
      `flags ${hex(flags)}: only GET_DIRTY_BITMAP (1), ALL (2) and VADDR (4) are known`,
      type1.name,
    );
  if (
    flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP &&
    flags & (VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR)
  )
    throw new LinuxError("EINVAL", "GET_DIRTY_BITMAP cannot be combined with ALL or VADDR", type1.name);
};

const checkRange = (type1: Type1, iova: bigint, size: bigint): void => {
  if (size === 0n) throw new LinuxError("EINVAL", "size is 0; a range of pages is needed", type1.name);
  checkAligned(type1, { size });
  if (iova + size > ADDRESS_SPACE)
    throw new LinuxError(
      "EOVERFLOW",
      `iova ${hex(iova)} + size ${hex(size)} goes beyond 64 bits`,
      type1.name,
    );
};

/** The bitmap that follows the arguments of an unmap. */
const readBitmap = (
  type1: Type1,
  call: Call,
  at: bigint,
  { argsz, minimum, size }: { readonly argsz: number; readonly minimum: number; readonly size: bigint },
): ValueOf<typeof VfioBitmap> => {
  if (argsz - minimum < VfioBitmap.size)
    throw new LinuxError(
      "EINVAL",
      `argsz is ${argsz}; with GET_DIRTY_BITMAP a struct vfio_bitmap follows, ${minimum + VfioBitmap.size} bytes in all`,
      type1.name,
    );
  const bitmap = readStruct(call, at, VfioBitmap);
  checkBitmap(bitmap, { size, granule: type1.granule, limit: MAX_BITMAP_BYTES, object: type1.name });
  return bitmap;
};

const dirtyPages = (type1: Type1, call: Call, at: bigint): number => {
  if (type1.version === 1)
    throw new LinuxError(
      "EACCES",
      "a container of version 1 tracks no dirty pages; SET_IOMMU(3) is needed",
      type1.name,
    );
  const minimum = VfioIommuType1DirtyBitmap.size;
  const { argsz, flags } = readArgument(call, at, VfioIommuType1DirtyBitmap, minimum);
  switch (flags) {
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
      type1.tracking = true;
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
      type1.tracking = false;
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
      if (argsz - minimum < VfioIommuType1DirtyBitmapGet.size)
        throw new LinuxError(
          "EINVAL",
          `argsz is ${argsz}; with GET_BITMAP ${minimum + VfioIommuType1DirtyBitmapGet.size} bytes are needed`,
          type1.name,
        );
      return getBitmap(type1, call, at + BigInt(minimum));
    default:
      throw new LinuxError("EINVAL", `flags ${hex(flags)}: exactly one of 1, 2 and 4 is needed`, type1.name);
  }
};

const getBitmap = (type1: Type1, call: Call, at: bigint): number => {
  const { iova, size, bitmap } = readStruct(call, at, VfioIommuType1DirtyBitmapGet);
  if (size > 0n && iova + size > ADDRESS_SPACE)
    throw new LinuxError(
      "EOVERFLOW",
      `iova ${hex(iova)} + size ${hex(size)} goes beyond 64 bits`,
      type1.name,
    );
  if (size === 0n) throw new LinuxError("EINVAL", "size is 0; a range of pages is needed", type1.name);
  checkAligned(type1, { iova, size });
  checkBitmap(bitmap, { size, granule: type1.granule, limit: MAX_BITMAP_BYTES, object: type1.name });
  if (!type1.tracking)
    throw new LinuxError("EINVAL", "dirty pages are not tracked; start tracking first", type1.name);
  for (const mapping of type1.covered(Number(iova), Number(size)))
    markDirty(call.memory, bitmap, mapping, Number(iova));
  return 0;
};
