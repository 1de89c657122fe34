/**
 * The operations of the attach core: takes a request apart, calls the kernel file, says what the reply carries. Every
 * length in a body is checked; a body that does not fit its operation is EPROTO. What a KernelFile throws passes
 * through to the server, which turns it into an answer.
 */
import { posix } from "node:path";
import {
  type DeviceNode,
  type KernelFile,
  SUSPENDED,
  type Suspended,
  type UserMemory,
} from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { AttachedCall } from "./attached-call.ts";
import { describeIoctl } from "./describe.ts";
import type { EmulatedFile } from "./emulated-file.ts";
import type { WindowsPlace } from "./mapped-registers.ts";
import { Mapping, ownersOf } from "./mapping.ts";
import {
  FileBody,
  FstatReply,
  IoctlBody,
  MAX_BODY,
  MAX_FDS,
  MmapBody,
  MmapSegment,
  OpenBody,
  PagesBody,
  PagesReply,
  ReplyFlag,
  SeekBody,
  SegmentKind,
  TransferBody,
} from "./protocol.ts";

const S_IFMT = 0o170000;
const S_IFCHR = 0o020000;
const ANONYMOUS_INODE_MODE = 0o600;
const MAX_SEGMENTS = 64;

/** A body as it lies in the arena. */
export interface Body {
  readonly view: DataView;
  readonly bytes: Uint8Array;
}

/** What an operation answers with. */
export interface Answer {
  readonly value: number;
  readonly flags?: number;
  readonly payload?: Uint8Array;
  readonly fds?: readonly number[];
}

export interface Context {
  readonly body: Body;
  readonly call: AttachedCall;
  /** The emulated file that the body names; throws EBADF. */
  target(): EmulatedFile;
  /** What open(2) of a path reaches; undefined: nothing of ours. */
  node(path: string): DeviceNode | undefined;
  /** The memory of a process of the run. */
  memoryOf(pid: number): UserMemory | undefined;
  /** Opens a window of prefetched memory for the time of the call. */
  prefetch(va: bigint, window: Uint8Array): void;
  /** What is left to do when a suspended call is resumed with a value. */
  whenResumed(finish: (value: number) => void): void;
  /** Names what the call is about, for the event; asked only when somebody listens. */
  describe(details: () => string): void;
  /** The program's library keeps its windows there. */
  windowsAt(place: WindowsPlace): void;
  openNode(node: DeviceNode, file: KernelFile): EmulatedFile;
  /** A file that only tells when the caller, and whom it passed it on to, have closed it. */
  hold(file: KernelFile): EmulatedFile;
  backing(pa: number, length: number): { readonly fd: number; readonly offset: number };
}

export const expectLength = (body: Body, least: number): void => {
  if (body.bytes.length < least)
    throw new LinuxError(
      "EPROTO",
      `a request body of ${body.bytes.length} bytes; at least ${least} are needed`,
    );
};

const word64 = (view: DataView, at: number): number =>
  view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);

/** Linux lets one read or write transfer up to 2 GiB; the library sends pieces. */
const transferLength = (view: DataView): number => {
  const length = word64(view, TransferBody.length);
  if (length > MAX_BODY)
    throw new LinuxError("EINVAL", `a transfer of ${length} bytes; ${MAX_BODY} is the most`);
  return length;
};

const unsupported = (file: KernelFile, call: string): LinuxError =>
  new LinuxError("EINVAL", `${file.name} cannot be used with ${call}`, file.name);

export const open = (context: Context): Answer => {
  const { body, call } = context;
  expectLength(body, OpenBody.size);
  const length = body.view.getUint32(OpenBody.path_length, true);
  expectLength(body, OpenBody.size + length);
  const path = Buffer.from(body.bytes.subarray(OpenBody.size, OpenBody.size + length)).toString();
  const wanted = posix.normalize(path);
  const node = context.node(wanted);
  if (node === undefined) return { value: 0, flags: ReplyFlag.pass };
  const file = node.open(call.task, body.view.getUint32(OpenBody.flags, true));
  return { value: 0, fds: [context.openNode(node, file).theirs] };
};

export const ioctl = (context: Context): Answer | Suspended => {
  const { body, call } = context;
  expectLength(body, IoctlBody.size);
  const { file } = context.target();
  const request = body.view.getUint32(IoctlBody.request, true);
  const argument = body.view.getBigUint64(IoctlBody.argument, true);
  const prefetched = body.view.getUint32(IoctlBody.prefetched, true);
  expectLength(body, IoctlBody.size + prefetched);
  if (prefetched > 0)
    context.prefetch(argument, body.bytes.subarray(IoctlBody.size, IoctlBody.size + prefetched));
  context.describe(() => describeIoctl(file.kind, request, argument, call.memory));
  if (file.ioctl === undefined) throw new LinuxError("ENOTTY", `${file.name} answers no ioctl`, file.name);
  const value = file.ioctl(call, request, argument);
  return value === SUSPENDED ? SUSPENDED : { value };
};

/** A read that waits stores its bytes when it ends. */
export const read = (context: Context): Answer | Suspended => {
  const { body, call } = context;
  expectLength(body, TransferBody.size);
  const { file } = context.target();
  const va = body.view.getBigUint64(TransferBody.va, true);
  if (file.readTo !== undefined) return { value: file.readTo(call, va, transferLength(body.view)) };
  if (file.read === undefined) throw unsupported(file, "read(2)");
  const into = new Uint8Array(transferLength(body.view));
  const store = (value: number): void => {
    if (value > 0) call.memory.write(va, into.subarray(0, value));
  };
  const value = file.read(call, into);
  if (value === SUSPENDED) {
    context.whenResumed(store);
    return SUSPENDED;
  }
  store(value);
  return { value };
};

/** The bytes of a write: those that came along, or fetched from the caller. */
const writtenBytes = (body: Body, call: AttachedCall): Uint8Array => {
  const length = transferLength(body.view);
  const prefetched = body.view.getUint32(TransferBody.prefetched, true);
  expectLength(body, TransferBody.size + prefetched);
  if (prefetched === length) return body.bytes.slice(TransferBody.size, TransferBody.size + prefetched);
  const data = new Uint8Array(length);
  if (length > 0) call.memory.read(body.view.getBigUint64(TransferBody.va, true), data);
  return data;
};

export const write = (context: Context): Answer | Suspended => {
  const { body, call } = context;
  expectLength(body, TransferBody.size);
  const { file } = context.target();
  if (file.writeFrom !== undefined) {
    const va = body.view.getBigUint64(TransferBody.va, true);
    const prefetched = body.view.getUint32(TransferBody.prefetched, true);
    expectLength(body, TransferBody.size + prefetched);
    if (prefetched > 0)
      context.prefetch(va, body.bytes.subarray(TransferBody.size, TransferBody.size + prefetched));
    return { value: file.writeFrom(call, va, transferLength(body.view)) };
  }
  if (file.write === undefined) throw unsupported(file, "write(2)");
  const value = file.write(call, writtenBytes(body, call));
  return value === SUSPENDED ? SUSPENDED : { value };
};

const notSeekable = (file: KernelFile, call: string): LinuxError =>
  new LinuxError("ESPIPE", `${file.name} has no positions; ${call} needs them`, file.name);

export const pread = (context: Context): Answer => {
  const { body, call } = context;
  expectLength(body, TransferBody.size);
  const { file } = context.target();
  if (file.pread === undefined) throw notSeekable(file, "pread(2)");
  const into = new Uint8Array(transferLength(body.view));
  const value = file.pread(call, body.view.getBigUint64(TransferBody.offset, true), into);
  if (value > 0) call.memory.write(body.view.getBigUint64(TransferBody.va, true), into.subarray(0, value));
  return { value };
};

export const pwrite = (context: Context): Answer => {
  const { body, call } = context;
  expectLength(body, TransferBody.size);
  const { file } = context.target();
  if (file.pwrite === undefined) throw notSeekable(file, "pwrite(2)");
  const offset = body.view.getBigUint64(TransferBody.offset, true);
  return { value: file.pwrite(call, offset, writtenBytes(body, call)) };
};

export const seek = (context: Context): Answer => {
  const { body } = context;
  expectLength(body, SeekBody.size);
  const { file } = context.target();
  if (file.seek === undefined) throw notSeekable(file, "lseek(2)");
  const offset = body.view.getBigInt64(SeekBody.offset, true);
  return { value: file.seek(offset, body.view.getUint32(SeekBody.whence, true)) };
};

/** The segments of a mapping, their memory, and with value 1 what the caller keeps as long as it has pages of it. */
export const mmap = (context: Context): Answer => {
  const { body, call } = context;
  expectLength(body, MmapBody.size);
  const { file } = context.target();
  if (file.mmap === undefined) throw new LinuxError("ENODEV", `${file.name} cannot be mapped`, file.name);
  context.windowsAt({
    table: body.view.getBigUint64(MmapBody.windows, true),
    used: body.view.getBigUint64(MmapBody.windows_used, true),
  });
  const offset = body.view.getBigUint64(MmapBody.offset, true);
  const length = word64(body.view, MmapBody.length);
  if (length > 2 ** 47) throw new LinuxError("ENOMEM", `a mapping of ${length} bytes`, file.name);
  const { protection, flags } = MmapBody;
  const segments = file.mmap(
    call,
    offset,
    length,
    body.view.getUint32(protection, true),
    body.view.getUint32(flags, true),
  );
  if (segments.length > MAX_SEGMENTS) throw new LinuxError("ENOMEM", "too many segments", file.name);
  const payload = new Uint8Array(segments.length * MmapSegment.size);
  const view = new DataView(payload.buffer);
  const fds: number[] = [];
  for (const [i, segment] of segments.entries()) {
    const at = i * MmapSegment.size;
    view.setBigUint64(at + MmapSegment.offset, BigInt(segment.offset), true);
    view.setBigUint64(at + MmapSegment.length, BigInt(segment.length), true);
    if (segment.kind === "trap") {
      view.setUint32(at + MmapSegment.kind, SegmentKind.trap, true);
      view.setBigUint64(at + MmapSegment.fd_offset, offset + BigInt(segment.offset), true);
      continue;
    }
    const source = context.backing(segment.pa, segment.length);
    if (!fds.includes(source.fd)) fds.push(source.fd);
    if (fds.length >= MAX_FDS) throw new LinuxError("ENOMEM", "too many kinds of memory", file.name);
    view.setUint32(at + MmapSegment.kind, SegmentKind.memory, true);
    view.setUint32(at + MmapSegment.fd_index, fds.indexOf(source.fd), true);
    view.setBigUint64(at + MmapSegment.fd_offset, BigInt(source.offset), true);
  }
  const owners = ownersOf(segments);
  if (owners.length === 0) return { value: 0, payload, fds };
  return { value: 1, payload, fds: [...fds, context.hold(new Mapping(owners)).theirs] };
};

const typed = (mode: number): number => (mode & S_IFMT ? mode : S_IFCHR | mode);

export const fstat = (context: Context): Answer => {
  const { body } = context;
  expectLength(body, FileBody.size);
  const { node, cookie, file } = context.target();
  const payload = new Uint8Array(FstatReply.size);
  const view = new DataView(payload.buffer);
  view.setUint32(FstatReply.mode, node ? typed(node.mode) : ANONYMOUS_INODE_MODE, true);
  view.setUint32(FstatReply.major, node?.major ?? 0, true);
  view.setUint32(FstatReply.minor, node?.minor ?? 0, true);
  view.setUint32(FstatReply.pollable, file.poll === undefined ? 0 : 1, true);
  view.setBigUint64(FstatReply.inode, BigInt(cookie), true);
  return { value: 0, payload };
};

export const ring = (context: Context): Answer => {
  const { body } = context;
  expectLength(body, FileBody.size);
  context.target().ringAgain();
  return { value: 0 };
};

/** What is held of a process, for its status file in /proc. */
export const pages = (context: Context): Answer => {
  const { body } = context;
  expectLength(body, PagesBody.size);
  const memory = context.memoryOf(body.view.getUint32(PagesBody.process, true));
  const payload = new Uint8Array(PagesReply.size);
  const view = new DataView(payload.buffer);
  view.setBigUint64(PagesReply.locked, BigInt(memory?.lockedPages ?? 0), true);
  view.setBigUint64(PagesReply.pinned, BigInt(memory?.pinnedPages ?? 0), true);
  return { value: 0, payload };
};
