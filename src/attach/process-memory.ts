/**
 * The memory of a client process as the kernel rooms see it: read, write, pin. A pin looks up what lies at the address
 * *now* and takes frames of that: pages of a shared file or memfd are mapped over slots of host memory; private
 * anonymous memory is first adopted by its owner (`Restart`, then shim/adopt.c) and is a memfd's from then on; the rest
 * is reached page by page (remote-frames.ts). After the pin no address is trusted again: frames belong to
 * file pages, and the kernel's maps, not the interposed calls, say what the program still has. Leaves out: pinning
 * of huge-page mappings as such (they are remote unless their file can be mapped 4 KiB at a time).
 */
import { closeSync, fstatSync, readdirSync, statSync } from "node:fs";
import * as libc from "../base/libc.ts";
import { type Adopter, type Pin, Restart, type UserMemory, type UserRange } from "../kernel/call.ts";
import { EXPOSED_NAME } from "../memory/banks.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { Adoption } from "./adoption.ts";
import {
  accessMode,
  type ClientFile,
  type ClientFiles,
  keyOf,
  keyOfStat,
  O_RDWR,
  O_WRONLY,
  roundUp,
} from "./client-files.ts";
import type { OpHandler, OpHandlers } from "./connection.ts";
import { Maps, openOr, type Vma } from "./maps.ts";
import { PagePin, releaseAll, type Segment } from "./page-pin.ts";
import { RemoteFrames } from "./remote-frames.ts";

/** Addresses a user may have: 47 bits. */
const USER_END = 0x8000_0000_0000;
/** The most ranges one answer may ask the caller to adopt; the call comes again for the next ones. */
const MAX_ADOPTIONS = 64;
/** Mappings of one call that are looked at for adoption: a pin of more leaves the rest remote. */
const MAX_PIECES = 512;
/** Tenths of a millisecond that a write waits for a range that is being adopted. */
const ADOPTION_WAITS = 1000;
const sleeper = new Int32Array(new SharedArrayBuffer(4));
/** Ranges that could not be adopted are remembered until the call comes again; no client makes us keep more. */
const MAX_REFUSALS = 1024;
/** Sealed files of a process that stay mapped although it maps them no more. */
const MAX_SEALED = 64;
/** Pins of files between two looks at which files the program still maps. */
const SWEEP_PINS = 4096;

/** Operations of shim/adopt.c. */
export const AdoptOp = {
  /**
   * body: va, length (u64 each); reply: offset in the memfd, protection (u64 each), and the memfd. Value 1: it is not
   * there to be moved any more, the call shall look again.
   */
  plan: 100,
  /** body: va, length, offset (u64 each): the range could not be adopted. */
  refused: 101,
  /** A fork begins: adopted memory is write-protected until `forked`. Reply: the memfd. */
  forking: 102,
  /** The fork is over, in the parent. */
  forked: 103,
  /** A file comes along that is about to be sealed against mappings that can be written. */
  seal: 104,
  /** A descriptor of ours is about to get to another process. Reply: ranges (va, length) to adopt before; ask again. */
  sharing: 105,
} as const;

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

const fault = (va: number | bigint, why: string): LinuxError =>
  new LinuxError("EFAULT", `user address ${hex(va)} ${why}`);

/** A range of the process within one mapping. */
interface Piece {
  readonly vma: Vma;
  readonly va: number;
  readonly end: number;
}

let nextId = 1;

export class ProcessMemory implements UserMemory, Adopter {
  readonly id = nextId++;
  lockedPages = 0;
  pinnedPages = 0;
  readonly expected = new Set<UserRange>();
  readonly pid: number;
  readonly maps: Maps;
  /** /proc/PID/mem, bound to this address space. */
  readonly memFd: number;
  readonly #pidfd: number;
  readonly #files: ClientFiles;
  readonly #owned = new Set<ClientFile>();
  /** Those of them that could not be mapped again, in the order in which they were sealed. */
  readonly #sealed = new Set<ClientFile>();
  readonly #remote = new Map<string, RemoteFrames>();
  #adoption: Adoption | undefined;
  /** First address of a range that could not be adopted → its end. */
  readonly #refused = new Map<number, number>();
  /** What the program moves now, or moved last, of writable memory. */
  #latestPlan: { readonly va: number; readonly end: number } | undefined;
  /** Between the write protection of adopted memory for a fork and its end. */
  forking = false;
  #open = true;
  #framesPinned = 0;
  #pinsSinceSweep = 0;

  /** `pidfd` stays the caller's. Of a process that is gone or may not be looked at, nothing can be pinned. */
  constructor(pid: number, pidfd: number, files: ClientFiles) {
    this.pid = pid;
    this.#pidfd = pidfd;
    this.#files = files;
    this.maps = new Maps(pid);
    this.memFd = openOr(`/proc/${pid}/mem`, "r+");
  }

  get open(): boolean {
    return this.#open;
  }

  /** Pages that pins of this address space hold now. */
  get heldPages(): number {
    return this.#framesPinned;
  }

  read(va: bigint, into: Uint8Array): void {
    if (into.length === 0) return;
    const start = this.#userAddress(va, into.length);
    if (!this.#open) throw fault(va, `is in process ${this.pid}, which is gone`);
    const done = libc.processRead(this.pid, start, into);
    if (done < into.length) throw fault(start + Math.max(done, 0), "cannot be read");
  }

  write(va: bigint, data: Uint8Array): void {
    if (data.length === 0) return;
    const start = this.#userAddress(va, data.length);
    if (!this.#open) throw fault(va, `is in process ${this.pid}, which is gone`);
    let done = libc.processWrite(this.pid, start, data);
    for (
      let wait = 0;
      done < data.length && wait < ADOPTION_WAITS && this.#isMoving(start, data.length);
      wait++
    ) {
      Atomics.wait(sleeper, 0, 0, 0.1);
      done = libc.processWrite(this.pid, start, data);
    }
    if (done < data.length) throw fault(start + Math.max(done, 0), "cannot be written");
  }

  pin(va: number, length: number, writable: boolean): Pin {
    if (!(va >= 0 && length > 0 && va % FRAME_BYTES === 0 && length % FRAME_BYTES === 0))
      throw new RangeError(`${hex(va)} + ${hex(length)}: whole pages are needed`);
    if (va + length > USER_END) throw fault(va, "is beyond the user's addresses");
    if (!this.#open || !this.maps.readable || this.memFd < 0)
      throw fault(va, `is in process ${this.pid}, which is gone or which the daemon may not look at`);
    const pieces = this.#pieces(va, va + length, writable);
    this.#askForAdoption(pieces);
    const segments: Segment[] = [];
    try {
      for (const piece of pieces) segments.push(...this.#pinPiece(piece, writable));
    } catch (error) {
      releaseAll(segments);
      throw error;
    }
    const pages = length / FRAME_BYTES;
    this.#framesPinned += pages;
    this.#pinsSinceSweep += 1;
    if (this.#pinsSinceSweep >= SWEEP_PINS) this.sweep();
    return new PagePin(va, pages, writable, segments, (count) => {
      this.#framesPinned -= count;
    });
  }

  /** What the program has unmapped and nobody pins is given back. */
  sweep(): void {
    this.#pinsSinceSweep = 0;
    const vmas = this.maps.all();
    if (vmas.length === 0) return; // it is dying; `close` will come
    const adopted = this.#adoption;
    if (adopted !== undefined)
      adopted.sweep(vmas.filter((vma) => keyOf(vma.major, vma.minor, vma.inode) === adopted.file.key));
    const mapped = new Set(vmas.map(({ major, minor, inode }) => keyOf(major, minor, inode)));
    for (const file of this.#owned)
      if (file !== adopted?.file && !mapped.has(file.key) && !this.#sealed.has(file)) {
        this.#owned.delete(file);
        this.#files.disown(file, this);
      }
  }

  /** The process is gone. Frames that are still pinned stay until they are given back. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    for (const file of this.#owned) this.#files.disown(file, this);
    this.#owned.clear();
    this.maps.close();
    if (this.memFd >= 0) closeSync(this.memFd);
  }

  /** Whether a part is write-protected only because the program is moving it just now, or forks. */
  #isMoving(start: number, length: number): boolean {
    for (let at = start; at < start + length; ) {
      const vma = this.maps.at(at);
      if (vma === undefined || vma.start > at) return false;
      if ((vma.prot & libc.Prot.write) === 0) return this.#isHeldBack(vma, at);
      at = vma.end;
    }
    return true; // it is over since the write failed
  }

  /** Whether `va`, in a mapping without write permission, will have it again. */
  #isHeldBack(vma: Vma, va: number): boolean {
    const plan = this.#latestPlan;
    if (plan !== undefined && va >= plan.va && va < plan.end && !vma.shared) return true;
    return this.forking && keyOf(vma.major, vma.minor, vma.inode) === this.#adoption?.file.key;
  }

  // ---- adoption ----------------------------------------------------------------------------------------------

  /**
   * Where the client is to move [va, va + length); the descriptor stays ours. Undefined: that is not (any more) private
   * anonymous memory in one mapping; another thread may have moved it.
   */
  planAdoption(va: number, length: number): { fd: number; offset: number; prot: number } | undefined {
    const vma = this.maps.at(va);
    if (vma === undefined || vma.start > va || vma.end < va + length || !adoptable(vma)) return undefined;
    this.#adoption ??= this.#createAdoption();
    if (this.#adoption.due) this.sweep();
    const offset = this.#adoption.plan(va, length);
    if (offset < 0) throw new LinuxError("ENOMEM", "the file for adopted memory is full");
    const { events } = this.#files;
    if (events.on) events.emit("adopt", { pid: this.pid, va, length, offset });
    this.#latestPlan = (vma.prot & libc.Prot.write) !== 0 ? { va, end: va + length } : undefined;
    return { fd: this.#adoption.file.fd, offset, prot: vma.prot };
  }

  /** The client could not move it: the next pin reaches it as it is. `offset` -1: nothing had been planned. */
  refuseAdoption(va: number, length: number, offset: number): void {
    this.#refuse(va, length);
    const { events } = this.#files;
    if (events.on) events.emit("adopt", { pid: this.pid, va, length, refused: true });
    if (offset >= 0) this.#adoption?.cancel(offset);
  }

  /** Maps a file while that can be done for writing; `fd` is ours from now on. The kernel writes to sealed memory as to any. */
  seal(fd: number): void {
    const file = this.#files.sealing(fd);
    if (file === undefined) return;
    this.#own(file);
    this.#sealed.add(file);
    const [oldest] = this.#sealed;
    if (this.#sealed.size > MAX_SEALED) this.#sealed.delete(oldest!);
  }

  /** The descriptor of the memfd with adopted memory; -1 when there is none. */
  get adoptedFd(): number {
    return this.#adoption?.file.fd ?? -1;
  }

  #createAdoption(): Adoption {
    const fd = Adoption.createFile();
    const file = this.#files.add(keyOfStat(fstatSync(fd, { bigint: true })), fd, true);
    file.owners.add(this);
    this.#owned.add(file);
    return new Adoption(file);
  }

  #askForAdoption(pieces: readonly Piece[]): void {
    const ranges: UserRange[] = [];
    const refused: number[] = [];
    for (const { vma, va, end } of pieces.slice(0, MAX_PIECES)) {
      if (!adoptable(vma)) continue;
      if (this.#refused.has(va)) refused.push(va);
      else if (ranges.length < MAX_ADOPTIONS && !this.#adoption?.full && !this.#isRemote(va, end))
        ranges.push({ va, length: end - va });
    }
    if (ranges.length > 0) throw new Restart(this, ranges);
    for (const va of refused) this.#refused.delete(va);
  }

  giveUp(ranges: readonly UserRange[]): void {
    for (const { va, length } of ranges) this.#refuse(va, length);
  }

  /** What of the expected ranges is to be adopted now, before another process may pin it; a part of it when it is much. */
  expectedAdoptions(): UserRange[] {
    if (this.expected.size === 0 || !this.#open) return [];
    const wanted = merged(this.expected);
    const ranges: UserRange[] = [];
    let next = 0;
    for (const vma of this.maps.all()) {
      while (next < wanted.length && wanted[next]!.va + wanted[next]!.length <= vma.start) next += 1;
      for (let at = next; at < wanted.length && wanted[at]!.va < vma.end; at += 1) {
        const va = Math.max(vma.start, wanted[at]!.va);
        const end = Math.min(vma.end, wanted[at]!.va + wanted[at]!.length);
        if (!adoptable(vma) || this.#adoption?.full || this.#refused.has(va) || this.#isRemote(va, end))
          continue;
        ranges.push({ va, length: end - va });
        if (ranges.length === MAX_ADOPTIONS) return ranges;
      }
    }
    return ranges;
  }

  #refuse(va: number, length: number): void {
    if (this.#refused.size >= MAX_REFUSALS) this.#refused.clear();
    this.#refused.set(va, va + length);
  }

  /** Whether somebody has pinned a part as it is: it must stay where it is then. */
  #isRemote(va: number, end: number): boolean {
    for (const frames of this.#remote.values())
      if (frames.va < end && frames.va + frames.count * FRAME_BYTES > va) return true;
    return false;
  }

  // ---- pinning -----------------------------------------------------------------------------------------------

  /** The mappings under [va, end). Throws EFAULT where there is none, or not one that may be used so. */
  #pieces(va: number, end: number, writable: boolean): Piece[] {
    const pieces: Piece[] = [];
    for (let at = va; at < end; ) {
      const vma = this.maps.at(at);
      if (vma === undefined || vma.start > at) throw fault(at, "is not mapped");
      if ((vma.prot & libc.Prot.read) === 0) throw fault(at, "may not be read (PROT_NONE)");
      if (writable && (vma.prot & libc.Prot.write) === 0 && !this.#isHeldBack(vma, at))
        throw fault(at, "is mapped read-only");
      if (vma.name.startsWith("[v") && vma.name !== "[vdso]") throw fault(at, `is no memory (${vma.name})`);
      if (vma.name.startsWith(`/memfd:${EXPOSED_NAME}`)) throw fault(at, "is mapped from a device file");
      const stop = Math.min(end, vma.end);
      pieces.push({ vma, va: at, end: stop });
      at = stop;
    }
    return pieces;
  }

  #pinPiece(piece: Piece, writable: boolean): Segment[] {
    const { vma, va, end } = piece;
    const file = vma.shared && vma.inode !== 0 ? this.#fileOf(vma) : undefined;
    if (file === undefined || (writable && !file.writable)) return this.#pinRemote(piece);
    const offset = vma.offset + (va - vma.start);
    if (file !== this.#adoption?.file && offset + (end - va) > roundUp(file.size))
      throw fault(va, "is mapped beyond the end of its file");
    const segments = file.pin({
      first: offset / FRAME_BYTES,
      count: (end - va) / FRAME_BYTES,
      va,
      before: (va - vma.start) / FRAME_BYTES,
      after: (vma.end - end) / FRAME_BYTES,
      written: writable,
    });
    return segments ?? this.#pinRemote(piece);
  }

  #pinRemote({ vma, va, end }: Piece): Segment[] {
    const count = (end - va) / FRAME_BYTES;
    const key = `${va}:${count}:${vma.prot}`;
    let frames = this.#remote.get(key);
    if (frames === undefined) {
      frames = new RemoteFrames(this.#files.banks, this, { vma, va, count }, () => this.#remote.delete(key));
      if (!frames.place()) throw new LinuxError("ENOMEM", "host memory has no room for more client pages");
      this.#remote.set(key, frames);
    }
    frames.pin();
    return [{ pages: frames, first: 0, count }];
  }

  /** The file behind a shared mapping, when we have or can get a descriptor of it. */
  #fileOf(vma: Vma): ClientFile | undefined {
    const key = keyOf(vma.major, vma.minor, vma.inode);
    let file = this.#files.get(key);
    if (file === undefined) {
      const found = this.#findDescriptor(key);
      if (found === undefined) return undefined;
      file = this.#files.add(key, found.fd, found.writable);
    }
    this.#own(file);
    return file;
  }

  #own(file: ClientFile): void {
    this.#owned.add(file);
    file.owners.add(this);
  }

  /** Looks through the process's descriptors for one of this file; a writable one is preferred. */
  #findDescriptor(key: string): { fd: number; writable: boolean } | undefined {
    let best: { fd: number; writable: boolean } | undefined;
    for (const name of descriptorsOf(this.pid, key)) {
      const fd = libc.pidfdGetfd(this.#pidfd, Number(name));
      if (fd < 0) continue;
      const mode = accessMode(fd);
      const same = keyOfStat(fstatSync(fd, { bigint: true })) === key;
      if (!same || mode === O_WRONLY || (best !== undefined && mode !== O_RDWR)) {
        closeSync(fd);
        continue;
      }
      if (best !== undefined) closeSync(best.fd);
      best = { fd, writable: mode === O_RDWR };
      if (best.writable) break;
    }
    return best;
  }

  #userAddress(va: bigint, length: number): number {
    if (va + BigInt(length) > BigInt(USER_END)) throw fault(va, "is beyond the user's addresses");
    return Number(va);
  }
}

/** Ascending and disjoint. */
const merged = (ranges: Iterable<UserRange>): UserRange[] => {
  const result: { va: number; length: number }[] = [];
  for (const { va, length } of [...ranges].sort((a, b) => a.va - b.va)) {
    const last = result.at(-1);
    if (last && va <= last.va + last.length) last.length = Math.max(last.length, va + length - last.va);
    else result.push({ va, length });
  }
  return result;
};

/** Numbers of a process's descriptors that lead to this file. */
const descriptorsOf = (pid: number, key: string): string[] => {
  try {
    return readdirSync(`/proc/${pid}/fd`).filter((name) => {
      const stat = statSync(`/proc/${pid}/fd/${name}`, { bigint: true, throwIfNoEntry: false });
      return stat?.isFile() && keyOfStat(stat) === key;
    });
  } catch {
    return []; // it is dying
  }
};

/** Private memory that may be moved onto a memfd without anybody noticing. */
const adoptable = ({ shared, inode, prot, name }: Vma): boolean =>
  !shared &&
  inode === 0 &&
  (prot & libc.Prot.exec) === 0 &&
  (prot & libc.Prot.read) !== 0 &&
  (name === "" || name === "[heap]" || name.startsWith("[anon:"));

// ---- operations of the preload library -----------------------------------------------------------------------

const memoryOf = (connection: Parameters<OpHandler>[0]): ProcessMemory => {
  const { memory } = connection.process;
  if (!(memory instanceof ProcessMemory)) throw new LinuxError("ENOSYS", "this process's memory is a model");
  return memory;
};

const words = (body: Uint8Array, count: number): number[] => {
  if (body.length < count * 8) throw new LinuxError("EINVAL", `a body of ${count * 8} bytes was expected`);
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  return Array.from({ length: count }, (_, i) => Number(view.getBigUint64(i * 8, true)));
};

const wholePages = (va: number, length: number): void => {
  if (va % FRAME_BYTES !== 0 || length % FRAME_BYTES !== 0 || length <= 0 || va + length > USER_END)
    throw new LinuxError("EINVAL", `${hex(va)} + ${hex(length)} are not whole pages of a user`);
};

export const handlers: OpHandlers = new Map<number, OpHandler>([
  [
    AdoptOp.plan,
    (connection, body) => {
      const [va, length] = words(body, 2) as [number, number];
      wholePages(va, length);
      const plan = memoryOf(connection).planAdoption(va, length);
      if (plan === undefined) return { value: 1 };
      const { fd, offset, prot } = plan;
      return { body: new Uint8Array(BigUint64Array.of(BigInt(offset), BigInt(prot)).buffer), fds: [fd] };
    },
  ],
  [
    AdoptOp.refused,
    (connection, body) => {
      const [va, length, offset] = words(body, 3) as [number, number, number];
      wholePages(va, length);
      memoryOf(connection).refuseAdoption(va, length, offset < 2 ** 62 ? offset : -1);
      return {};
    },
  ],
  [
    AdoptOp.forking,
    (connection) => {
      const memory = memoryOf(connection);
      if (memory.adoptedFd < 0) throw new LinuxError("ENOENT", "nothing was adopted");
      memory.forking = true;
      return { fds: [memory.adoptedFd] };
    },
  ],
  [
    AdoptOp.forked,
    (connection) => {
      memoryOf(connection).forking = false;
      return {};
    },
  ],
  [
    AdoptOp.seal,
    (connection, _body, fds) => {
      const [fd] = fds;
      if (fd === undefined) throw new LinuxError("EINVAL", "a file was expected");
      for (const other of fds.slice(1)) closeSync(other);
      memoryOf(connection).seal(fd);
      return {};
    },
  ],
  [
    AdoptOp.sharing,
    (connection) => {
      const ranges = memoryOf(connection).expectedAdoptions();
      const flat = ranges.flatMap(({ va, length }) => [BigInt(va), BigInt(length)]);
      return { value: ranges.length, body: new Uint8Array(BigUint64Array.from(flat).buffer) };
    },
  ],
]);
