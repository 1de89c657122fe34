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

/** The HWPT and its dirty bits. Throws ENOENT, EOPNOTSUPP. */
const trackingOf = (context: IommufdContext, id: number) => {
  const hwpt = context.objects.get(id, HwptPaging, "hwpt_id");
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
    requireZero("__reserved", argument.__reserved);
    const { hwpt, dirty } = trackingOf(context, argument.hwpt_id);
    const enable = (argument.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0;
    if (enable && !hwpt.tracking) clearAll(hwpt);
    dirty.set(enable);
    hwpt.tracking = enable;
  },
);

/** What was written to before is of no interest. */
const clearAll = ({ ioas, domain }: HwptPaging): void => {
  for (const { iova, length } of ioas.pagetable.areas())
    domain.dirty?.read(Number(iova), Number(length), true, () => {});
};

export const getDirtyBitmap = request(
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IommuHwptGetDirtyBitmap,
  "data",
  ({ context, call, argument }) => {
    requireFlags(argument.flags, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR);
    requireZero("__reserved", argument.__reserved);
    const { hwpt, dirty } = trackingOf(context, argument.hwpt_id);
    const { iova, length, page_size } = argument;
    const granule = page_size & -page_size;
    if (length === 0n || iova + length - 1n > MAX_ADDRESS)
      throw new LinuxError("EOVERFLOW", `iova ${hex(iova)} + length ${hex(length)} is no range of addresses`);
    if (granule === 0n) throw new LinuxError("EINVAL", "page_size is 0; bits must stand for some bytes");
    const { alignment } = hwpt.ioas.pagetable;
    for (const [name, value] of [
      ["page_size", page_size],
      ["iova", iova],
      ["length", length],
    ] as const)
      if (value % (name === "page_size" ? alignment : granule) !== 0n)
        throw new LinuxError("EINVAL", `${name} ${hex(value)} is not a multiple of ${hex(granule)}`);
    const bitmap = new Bitmap(call, argument.data, iova, granule);
    const clear = (argument.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) === 0;
    hwpt.ioas.pagetable.walk(iova, length, (_area, from, bytes) => {
      if (hwpt.tracking || !clear)
        dirty.read(Number(from), Number(bytes), clear, (at, size) => {
          const start = Math.max(at, Number(from));
          const end = Math.min(at + size, Number(from + bytes));
          bitmap.set(start, end);
        });
    });
    bitmap.flush();
  },
);

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
    const first = Math.floor((start - this.#base) / this.#granule);
    const last = Math.floor((end - 1 - this.#base) / this.#granule);
    for (let bit = first; bit <= last; bit += 1) {
      this.#seek(Math.floor(bit / 64));
      const within = bit % 64;
      this.#word[within >> 3]! |= 1 << (within & 7);
    }
  }

  flush(): void {
    if (this.#index >= 0) this.#call.memory.write(this.#at + BigInt(this.#index * 8), this.#word);
  }

  #seek(index: number): void {
    if (index === this.#index) return;
    this.flush();
    this.#call.memory.read(this.#at + BigInt(index * 8), this.#word);
    this.#index = index;
  }
}
