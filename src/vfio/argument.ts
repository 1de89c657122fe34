/** How VFIO's calls take their arguments from the caller's memory: `copyArgsz`'s rule, for a call. */
import type { IommufdContext } from "../iommufd/context.ts";
import { contextOf } from "../iommufd/file.ts";
import type { Call, KernelFile } from "../kernel/call.ts";
import { copyArgsz } from "../uapi/copy.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Members, Struct, StructValue } from "../uapi/struct.ts";

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/**
 * Reads the first `minimum` bytes; the rest of the value is zero. EFAULT when they cannot be read, EINVAL when `argsz`
 * says the caller has fewer.
 */
export const readArgument = <F extends Members>(
  call: Call,
  at: bigint,
  layout: Struct<F>,
  minimum: number,
): StructValue<F> => {
  const read = (offset: number, into: Uint8Array) => call.memory.read(at + BigInt(offset), into);
  return layout.read(copyArgsz(read, layout, minimum).bytes);
};

/** Reads a whole structure that lies somewhere in the caller's memory. */
export const readStruct = <F extends Members>(call: Call, at: bigint, layout: Struct<F>): StructValue<F> => {
  const bytes = new Uint8Array(layout.size);
  call.memory.read(at, bytes);
  return layout.read(bytes);
};

/** The kernel file behind a descriptor; undefined: a file of the caller's own. Throws EBADF where nothing is open. */
export const openFile = (call: Call, fd: number): KernelFile | undefined => {
  const file = fd < 0 ? undefined : call.file(fd);
  if (file) return file;
  try {
    call.backing(fd).close();
  } catch (error) {
    if (!(error instanceof LinuxError) || error.code === "EBADF")
      throw new LinuxError("EBADF", `descriptor ${fd} is not open`);
  }
  return undefined;
};

/** The iommufd behind a descriptor. Throws EBADF where nothing is open, EBADFD for another file. */
export const iommufdOf = (call: Call, fd: number): IommufdContext => {
  const file = openFile(call, fd);
  const context = contextOf(file);
  if (context) return context;
  throw new LinuxError("EBADFD", `descriptor ${fd} is ${file?.name ?? "an ordinary file"}, not /dev/iommu`);
};
