/**
 * What an ioctl asks for, on one line, as its caller wrote it: the request's name on that kind of file and its argument
 * decoded. For events only; it never fails and changes nothing.
 */
import type { UserMemory } from "../kernel/call.ts";
import { findRequest, printArgument, requestName } from "../uapi/requests.ts";

/** Most of an argument that is looked at: structures say how long they are, and may lie. */
const MOST = 256;
const PAGE = 4096n;

/** "VFIO_IOMMU_MAP_DMA { argsz=32, … }"; a plain number where the request takes one. */
export const describeIoctl = (
  kind: string,
  request: number,
  argument: bigint,
  memory: UserMemory,
): string => {
  const known = findRequest(kind, request);
  if (known === undefined) return `ioctl ${requestName(kind, request)}`;
  if (known.argument === undefined) return argument === 0n ? known.name : `${known.name} ${argument}`;
  const bytes = argumentBytes(memory, argument, known.argument.size);
  if (bytes === undefined) return `${known.name} { not readable at 0x${argument.toString(16)} }`;
  return `${known.name} ${printArgument(kind, request, bytes)}`;
};

/** The structure, and what follows when its first word (`argsz`) says that something does; undefined when unreadable. */
const argumentBytes = (memory: UserMemory, va: bigint, size: number): Uint8Array | undefined => {
  const toPageEnd = Number(PAGE - (va % PAGE));
  const head = readable(memory, va, size === 0 ? Math.min(MOST, toPageEnd) : size);
  if (head === undefined || size < 4) return head;
  const claimed = new DataView(head.buffer).getUint32(0, true);
  if (claimed <= size) return head;
  return readable(memory, va, Math.min(claimed, MOST)) ?? head;
};

const readable = (memory: UserMemory, va: bigint, length: number): Uint8Array | undefined => {
  const bytes = new Uint8Array(length);
  try {
    memory.read(va, bytes);
    return bytes;
  } catch {
    return undefined;
  }
};
