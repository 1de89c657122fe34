/**
 * How a structure whose first member is its own size crosses between caller and kernel, as functions of their
 * arguments. iommufd (`size`): a shorter structure than the kernel's is filled up with zeros, a longer one must be
 * zero beyond what the kernel knows, and the answer is cut to what the caller has. VFIO (`argsz`): the kernel reads
 * the members it needs and asks only that the caller's structure has them.
 */
import { LinuxError } from "./errno.ts";

/** Reads the caller's memory from `at` bytes after the start of the argument; throws EFAULT. */
export type ReadArgument = (at: number, into: Uint8Array) => void;

interface Sized {
  readonly name: string;
  readonly size: number;
}

/** Bytes looked at in one go when the tail of a long structure is checked. */
const CHUNK = 65_536;

const firstWord = (bytes: Uint8Array): number =>
  (bytes[0]! | (bytes[1]! << 8) | (bytes[2]! << 16) | (bytes[3]! << 24)) >>> 0;

const sizeWord = new Uint8Array(new ArrayBuffer(4));
const sizeView = new DataView(sizeWord.buffer);

/** The first member of the argument, its size as the caller states it. Throws EFAULT. */
export const readSize = (read: ReadArgument): number => {
  read(0, sizeWord);
  return sizeView.getUint32(0, true);
};

const nonZero = (at: number, of: Sized): LinuxError =>
  new LinuxError(
    "E2BIG",
    `byte ${at} of struct ${of.name} is not zero, and the kernel knows only its first ${of.size} bytes`,
  );

/** What cannot be read whole is read in halves: a non-zero byte before the fault counts first. */
const requirePieceZero = (read: ReadArgument, at: number, piece: Uint8Array, of: Sized): void => {
  try {
    read(at, piece);
  } catch (error) {
    if (piece.length === 1) throw error;
    const half = piece.length >>> 1;
    requirePieceZero(read, at, piece.subarray(0, half), of);
    requirePieceZero(read, at + half, piece.subarray(half), of);
    return;
  }
  const found = piece.findIndex((byte) => byte !== 0);
  if (found >= 0) throw nonZero(at + found, of);
};

const requireZero = (read: ReadArgument, from: number, to: number, of: Sized): void => {
  const chunk = new Uint8Array(Math.min(CHUNK, to - from));
  for (let at = from; at < to; at += chunk.length)
    requirePieceZero(read, at, chunk.subarray(0, Math.min(chunk.length, to - at)), of);
};

/**
 * iommufd's rule for an argument whose `size` the caller gave. Returns the kernel's whole structure, missing members
 * zero. EINVAL: shorter than `minSize`, the end of the last member the command had in its first version. E2BIG: longer
 * than the kernel's and not zero there. EFAULT: not readable. `into`, of the structure's size, is used when it is given.
 */
export const copyStruct = (
  read: ReadArgument,
  of: Sized,
  userSize: number,
  minSize: number = of.size,
  into: Uint8Array<ArrayBuffer> = new Uint8Array(of.size),
): Uint8Array<ArrayBuffer> => {
  if (userSize < minSize)
    throw new LinuxError("EINVAL", `size is ${userSize}, struct ${of.name} has at least ${minSize} bytes`);
  if (userSize > of.size) requireZero(read, of.size, userSize, of);
  if (userSize >= of.size) read(0, into);
  else {
    into.fill(0, userSize);
    read(0, into.subarray(0, userSize));
  }
  return into;
};

/** What of an answer the caller has room for. */
export const cutToSize = (answer: Uint8Array, userSize: number): Uint8Array =>
  userSize < answer.length ? answer.subarray(0, userSize) : answer;

export interface ArgszArgument {
  /** The kernel's whole structure; what lies beyond `minSize` is zero. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Bytes the caller says it has, the structure and whatever follows it. */
  readonly argsz: number;
}

/**
 * VFIO's rule: reads the first `minSize` bytes (`fieldEnd` of the last member needed) and requires argsz to cover
 * them. EFAULT: not readable. EINVAL: argsz is less than `minSize`. `bytes`, of the structure's size, is used when it is
 * given.
 */
export const copyArgsz = (
  read: ReadArgument,
  of: Sized,
  minSize: number = of.size,
  bytes: Uint8Array<ArrayBuffer> = new Uint8Array(of.size),
): ArgszArgument => {
  bytes.fill(0, minSize);
  read(0, minSize === of.size ? bytes : bytes.subarray(0, minSize));
  const argsz = firstWord(bytes);
  if (argsz < minSize)
    throw new LinuxError("EINVAL", `argsz is ${argsz}, struct ${of.name} needs at least ${minSize} bytes`);
  return { bytes, argsz };
};
