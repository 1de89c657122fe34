/** Vendor data as tests of drivers give it. */
import type { UserArray, UserData } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";

/** Vendor data as a caller gives it: bytes of a structure. */
export const dataOf = (bytes: Uint8Array, type: number): UserData => ({
  type,
  length: bytes.length,
  read(size, minSize = size) {
    if (bytes.length < minSize || bytes.length > size)
      throw new LinuxError("EINVAL", `${bytes.length} bytes instead of ${size}`);
    const whole = new Uint8Array(size);
    whole.set(bytes);
    return whole;
  },
  write: () => {},
});

/** A list of structures. */
export const arrayOf = (entries: readonly Uint8Array[], type: number): UserArray => ({
  type,
  entryLength: entries[0]?.length ?? 0,
  count: entries.length,
  read: (index) => entries[index]!,
});
