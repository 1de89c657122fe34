/**
 * Dirty tracking (linux/iommufd.h, "struct iommu_hwpt_set_dirty_tracking", "..._get_dirty_bitmap"): switching it on and
 * off, and adding what was written to to the caller's bitmap.
 */
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  IommuHwptGetDirtyBitmap,
  IommuHwptSetDirtyTracking,
} from "../uapi/iommufd.ts";
import { hex, MAX_ADDRESS } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { HwptPaging } from "./hwpt.ts";
import { request, requireFlags, requireZero } from "./request.ts";

const hwptOf = (context: IommufdContext, id: number): HwptPaging =>
  context.objects.get(id, HwptPaging, "hwpt_id");

/** The HWPT's dirty bits. Throws EOPNOTSUPP. */
const trackingOf = (hwpt: HwptPaging) => {
  const { dirty } = hwpt.domain;
  if (!dirty)
    throw new LinuxError(
      "EOPNOTSUPP",
      "it was not made for dirty tracking (IOMMU_HWPT_ALLOC_DIRTY_TRACKING)",
      hwpt.name,
    );
  return { hwpt, dirty };
};

export const setDirtyTracking = request(
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  IommuHwptSetDirtyTracking,
  "__reserved",
  ({ context, argument }) => {
    requireFlags(argument.flags, IOMMU_HWPT_DIRTY_TRACKING_ENABLE);
    const { hwpt, dirty } = trackingOf(hwptOf(context, argument.hwpt_id));
    const enable = (argument.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0;
    if (enable) clearAll(hwpt);
    dirty.set(enable);
    hwpt.tracking = enable;
  },
);

/** What was written to before is of no interest. */
const clearAll = ({ ioas, domain }: HwptPaging): void => {
  for (const { iova, length } of ioas.pagetable.areas)
    domain.dirty?.read(Number(iova), Number(length), true, () => {});
};

export const getDirtyBitmap = request(
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IommuHwptGetDirtyBitmap,
  "data",
  ({ context, call, argument }) => {
    requireFlags(argument.flags, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR);
    requireZero("__reserved", argument.__reserved);
    const { iova, length } = argument;
    const hwpt = hwptOf(context, argument.hwpt_id);
    const granule = requireRange(argument, hwpt.ioas.pagetable.alignment);
    const { dirty } = trackingOf(hwpt);
    const clear = (argument.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) === 0;
    context.allocate("a window of the bitmap");
    const bitmap = new Bitmap(call, argument.data, iova, granule);
    const [first, end] = [Number(iova), Number(iova + length)];
    if (hwpt.tracking || !clear)
      for (const aperture of hwpt.domain.apertures) {
        const from = Math.max(first, aperture.start);
        const to = Math.min(end, aperture.end);
        if (from >= to) continue;
        dirty.read(from, to - from, clear, (at, bytes) => {
          bitmap.set(Math.max(at, first), Math.min(at + bytes, end));
        });
      }
    bitmap.flush();
  },
);

/** Bytes of a bit: the lowest bit of page_size. Throws EOVERFLOW, EINVAL. */
const requireRange = (
  { iova, length, page_size }: { readonly iova: bigint; readonly length: bigint; readonly page_size: bigint },
  alignment: bigint,
): bigint => {
  const granule = page_size & -page_size;
  if (length === 0n || iova + length - 1n > MAX_ADDRESS)
    throw new LinuxError("EOVERFLOW", `iova ${hex(iova)} + length ${hex(length)} is no range of addresses`);
  if (granule === 0n || page_size === MAX_ADDRESS)
    throw new LinuxError("EINVAL", `page_size is ${hex(page_size)}; bits must stand for some bytes`);
  const unit = granule > alignment ? granule : alignment;
  if ((iova | length) % unit !== 0n)
    throw new LinuxError(
      "EINVAL",
      `iova ${hex(iova)} and length ${hex(length)} must be multiples of ${hex(unit)}`,
    );
  return granule;
};

/** Bits in the caller's memory. A word is fetched when a bit of it is set, and stored when another is wanted. */
class Bitmap {
  readonly #call: Call;
  readonly #at: bigint;
  readonly #base: number;
  readonly #granule: number;
  readonly #word = new Uint8Array(8);
  #index = -1;

  constructor(call: Call, at: bigint, base: bigint, granule: bigint) {
    this.#call = call;
    this.#at = at;
    this.#base = Number(base);
    this.#granule = Number(granule);
  }

  set(start: number, end: number): void {
    if (start >= end) return;
    const first = Math.floor((start - this.#base) / this.#granule);
    const last = Math.floor((end - 1 - this.#base) / this.#granule);
    for (let bit = first; bit <= last; bit += 1) {
      this.#seek(Math.floor(bit / 64));
      const within = bit % 64;
      this.#word[within >> 3]! |= 1 << (within & 7);
    }
  }

  flush(): void {
    if (this.#index >= 0) this.#reach(() => this.#call.memory.write(this.#wordAt, this.#word));
  }

  get #wordAt(): bigint {
    return this.#at + BigInt(this.#index * 8);
  }

  /** Bits that fall where no memory is are dropped, and no error is told. */
  #reach(access: () => void): void {
    try {
      access();
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
    }
  }

  #seek(index: number): void {
    if (index === this.#index) return;
    this.flush();
    this.#index = index;
    this.#word.fill(0);
    this.#reach(() => this.#call.memory.read(this.#wordAt, this.#word));
  }
}
