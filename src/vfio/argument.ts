/**
 * How VFIO takes its arguments: a structure that begins with `argsz`, of which the first `minimum` bytes must be
 * there; what the caller's structure has beyond that is the call's own business. Information calls answer in place
 * and append capabilities as far as `argsz` reaches (linux/vfio.h, struct vfio_info_cap_header).
 */
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Members, Struct, StructValue } from "../uapi/struct.ts";
import { VfioInfoCapHeader } from "../uapi/vfio.ts";

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

type WithSize = { readonly argsz: number };

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
  const bytes = new Uint8Array(layout.size);
  call.memory.read(at, bytes.subarray(0, minimum));
  const value = layout.read(bytes);
  const { argsz } = value as unknown as WithSize;
  if (argsz < minimum)
    throw new LinuxError("EINVAL", `argsz is ${argsz}; struct ${layout.name} needs at least ${minimum}`);
  return value;
};

/** Reads a whole structure that lies somewhere in the caller's memory. */
export const readStruct = <F extends Members>(call: Call, at: bigint, layout: Struct<F>): StructValue<F> => {
  const bytes = new Uint8Array(layout.size);
  call.memory.read(at, bytes);
  return layout.read(bytes);
};

/** A capability of an information call, whole, with any `next`. */
export interface InfoCapability {
  readonly id: number;
  readonly version: number;
  /** The structure; its header is filled in here. */
  readonly bytes: Uint8Array;
}

const CAPABILITY_ALIGN = 8;

const aligned = (size: number): number => Math.ceil(size / CAPABILITY_ALIGN) * CAPABILITY_ALIGN;

/** Where the chain went. */
export interface ChainPlace {
  /** Bytes needed for the structure and its whole chain. */
  readonly needed: number;
  /** Where the first capability is; 0 when the chain did not fit, and then nothing of it was written. */
  readonly offset: number;
}

/** Writes the chain after a structure of `size` bytes if `argsz` has room for all of it. */
export const writeChain = (
  call: Call,
  at: bigint,
  room: { readonly size: number; readonly argsz: number },
  capabilities: readonly InfoCapability[],
): ChainPlace => {
  const start = aligned(room.size);
  const needed = capabilities.reduce((end, { bytes }) => end + aligned(bytes.length), start);
  if (capabilities.length === 0) return { needed: room.size, offset: 0 };
  if (room.argsz < needed) return { needed, offset: 0 };
  const chain = new Uint8Array(needed - start);
  let offset = 0;
  capabilities.forEach(({ id, version, bytes }, index) => {
    const end = offset + aligned(bytes.length);
    chain.set(bytes, offset);
    const next = index === capabilities.length - 1 ? 0 : start + end;
    VfioInfoCapHeader.write(chain, { id, version, next }, offset);
    offset = end;
  });
  call.memory.write(at + BigInt(start), chain);
  return { needed, offset: start };
};
