/**
 * Vendor data on its way between the caller's memory and a driver that knows its layout (linux/iommufd.h, `data_uptr`
 * and `data_len` of several requests).
 */
import type { UserArray, UserData } from "../iommu/driver.ts";
import type { Call } from "../kernel/call.ts";
import { copyStruct } from "../uapi/copy.ts";
import { LinuxError } from "../uapi/errno.ts";
import { hex } from "./address.ts";

export const userData = (call: Call, type: number, at: bigint, length: number): UserData => ({
  type,
  length,
  read(size, minSize = size) {
    if (length < minSize || length > size)
      throw new LinuxError("EINVAL", `data_len is ${length}; data of type ${hex(type)} has ${size} bytes`);
    const bytes = new Uint8Array(size);
    call.memory.read(at, bytes.subarray(0, length));
    return bytes;
  },
  write: (bytes) => call.memory.write(at, bytes.subarray(0, Math.min(bytes.length, length))),
});

export const userArray = (
  call: Call,
  {
    type,
    at,
    entryLength,
    count,
  }: { readonly type: number; readonly at: bigint; readonly entryLength: number; readonly count: number },
): UserArray => ({
  type,
  entryLength,
  count,
  read: (index, size, minSize = size) =>
    copyStruct(
      (offset, into) => call.memory.read(at + BigInt(index * entryLength + offset), into),
      { name: `of entry ${index}`, size },
      entryLength,
      minSize,
    ),
});
