/**
 * The dirty bitmaps callers hand in: one bit a page from the start of the range they ask about (linux/vfio.h, struct
 * vfio_bitmap). Every page of a mapping counts as dirty; bits of pages that are not mapped stay as they are.
 */
import type { UserMemory } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { hex } from "./argument.ts";

export interface Bitmap {
  readonly pgsize: bigint;
  readonly size: bigint;
  readonly data: bigint;
}

export interface BitmapNeeds {
  /** Bytes of IOVA the bitmap is about. */
  readonly size: bigint;
  /** Bytes a bit must stand for. */
  readonly granule: number;
  /** Bytes a bitmap may have. */
  readonly limit: number;
  /** Names the container in errors. */
  readonly object: string;
}

/** Addresses a user can have. */
const USER_END = 1n << 47n;
const WORD_BITS = 64n;
/** Bytes of the caller's bitmap that are brought in at once. */
const PIECE = 4096;

/** EINVAL when the bitmap is not for these pages, is too small or too large, or can be nobody's memory. */
export const checkBitmap = (bitmap: Bitmap, { size, granule, limit, object }: BitmapNeeds): void => {
  if (bitmap.pgsize !== BigInt(granule))
    throw new LinuxError(
      "EINVAL",
      `bitmap.pgsize is ${hex(bitmap.pgsize)}; dirty pages are tracked in pages of ${hex(granule)}`,
      object,
    );
  const pages = size / bitmap.pgsize;
  const needed = ((pages + WORD_BITS - 1n) / WORD_BITS) * (WORD_BITS / 8n);
  if (bitmap.size < needed || bitmap.size > BigInt(limit) || pages === 0n)
    throw new LinuxError(
      "EINVAL",
      `bitmap.size is ${hex(bitmap.size)}; for ${pages} pages it must be from ${needed} to ${limit} bytes`,
      object,
    );
  if (bitmap.data + bitmap.size > USER_END)
    throw new LinuxError("EINVAL", `bitmap.data ${hex(bitmap.data)} is beyond the user's addresses`, object);
};

/** Sets the bits of a mapping in the bitmap of a range that begins at `start`. Throws EFAULT. */
export const markDirty = (
  memory: UserMemory,
  bitmap: Bitmap,
  mapping: { readonly iova: number; readonly length: number },
  start: number,
): void => {
  const granule = Number(bitmap.pgsize);
  let bit = (mapping.iova - start) / granule;
  const endBit = bit + mapping.length / granule;
  while (bit < endBit) {
    const firstByte = Math.floor(bit / 8);
    const stop = Math.min(endBit, (firstByte + PIECE) * 8);
    const piece = new Uint8Array(Math.ceil(stop / 8) - firstByte);
    const at = bitmap.data + BigInt(firstByte);
    memory.read(at, piece);
    for (; bit < stop; bit += 1) piece[Math.floor(bit / 8) - firstByte]! |= 1 << (bit % 8);
    memory.write(at, piece);
  }
};
