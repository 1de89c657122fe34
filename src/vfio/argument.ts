/** How VFIO's calls take their arguments from the caller's memory: `copyArgsz`'s rule, for a call. */
import type { Call } from "../kernel/call.ts";
import { copyArgsz } from "../uapi/copy.ts";
import type { Members, Struct, StructValue } from "../uapi/struct.ts";

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** Where an argument lies until its members have been read: more than any structure of VFIO has. */
const room = new Uint8Array(new ArrayBuffer(1024));

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
  return layout.read(copyArgsz(read, layout, minimum, room.subarray(0, layout.size)).bytes);
};

/** Reads a whole structure that lies somewhere in the caller's memory. */
export const readStruct = <F extends Members>(call: Call, at: bigint, layout: Struct<F>): StructValue<F> => {
  const bytes = new Uint8Array(layout.size);
  call.memory.read(at, bytes);
  return layout.read(bytes);
};
