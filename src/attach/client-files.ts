/**
 * The files whose pages clients have pinned, each known by device and inode: every memfd, shared file and adopted
 * region is one kind of thing here. A range of a file that is pinned for the first time is mapped over slots of host
 * memory (a run); its pages answer while they are pinned, counted one by one. A run nobody pins stays mapped for a
 * while, because programs pin the same buffers again and again. Leaves out: who may pin, and what is adopted.
 */
import { closeSync, fstatSync, openSync, statfsSync } from "node:fs";
import { type EventSink, silent } from "../base/events.ts";
import * as libc from "../base/libc.ts";
import type { FileBacking, Pin } from "../kernel/call.ts";
import type { Banks } from "../memory/banks.ts";
import { MAX_CLIENT_RUN } from "../memory/banks.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { Errno, LinuxError } from "../uapi/errno.ts";
import { PagePin, type PinnedPages, releaseAll, type Segment } from "./page-pin.ts";

export const O_WRONLY = 1;
export const O_RDWR = 2;
const O_ACCMODE = 3;

export const roundUp = (bytes: number): number => Math.ceil(bytes / FRAME_BYTES) * FRAME_BYTES;

/** How a descriptor was opened: O_RDONLY 0, O_WRONLY, O_RDWR. */
export const accessMode = (fd: number): number => libc.fcntl(fd, libc.Fcntl.getFlags, 0) & O_ACCMODE;

/** Names a file as /proc/PID/maps does. */
export const keyOf = (major: number, minor: number, inode: number): string => `${major}:${minor}:${inode}`;

/** The same of what stat(2) says; st_dev is in glibc's encoding. */
export const keyOfStat = ({ dev, ino }: { readonly dev: bigint; readonly ino: bigint }): string =>
  keyOf(
    Number(((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n)),
    Number((dev & 0xffn) | ((dev >> 12n) & 0xffffff00n)),
    Number(ino),
  );

/** Kinds of file systems whose files are memory: tmpfs, memfds included, and hugetlbfs. */
const IN_MEMORY: ReadonlySet<number> = new Set([0x0102_1994, 0x9584_58f6]);

/** The file opened for reading and writing, and whether that could be; else as it was, or for reading. Closes `fd` unless it is that. */
const writableCopy = (fd: number): [fd: number, writable: boolean] => {
  if (accessMode(fd) === O_RDWR) return [fd, true];
  for (const mode of ["r+", "r"])
    try {
      const copy = openSync(`/proc/self/fd/${fd}`, mode);
      closeSync(fd);
      return [copy, mode === "r+"];
    } catch {
      // not that way, then
    }
  return [fd, false];
};

/** Mappings the daemon allows itself; the kernel's default is 65530, and a run costs two. */
const MAX_RUNS = 24_000;
/** Runs that nobody pins but that stay mapped. */
const MAX_IDLE = 256;
const LARGE_PAGES = 512;

class Run implements PinnedPages {
  readonly file: ClientFile;
  /** Its first page in the file. */
  readonly first: number;
  readonly count: number;
  readonly base: number;
  /** False where the file does not let itself be mapped so, because it is sealed. */
  readonly writable: boolean;
  readonly #pins: Uint32Array;
  /** Pins of all pages together. */
  total = 0;
  /** A page was lost to a truncation, and other memory lies in its place: not to be pinned again. */
  damaged = false;

  constructor(
    file: ClientFile,
    { first, count, base, writable }: Pick<Run, "first" | "count" | "base" | "writable">,
  ) {
    this.file = file;
    this.first = first;
    this.count = count;
    this.base = base;
    this.writable = writable;
    this.#pins = new Uint32Array(count);
  }

  frame(index: number): number {
    return this.base + index;
  }

  isPinned(index: number): boolean {
    return this.#pins[index] !== 0;
  }

  pin(index: number, count: number): void {
    const { banks } = this.file.files;
    for (let i = index; i < index + count; ) {
      if (this.#pins[i]! > 0) {
        this.#pins[i]! += 1;
        i += 1;
        continue;
      }
      const from = i;
      while (i < index + count && this.#pins[i] === 0) this.#pins[i++] = 1;
      banks.grant(this.base + from, i - from, this.writable);
    }
    this.total += count;
  }

  release(index: number, count: number): void {
    for (let i = index; i < index + count; ) {
      if (this.#pins[i]! === 0) throw new Error(`page ${this.first + i} of ${this.file.key} is not pinned`);
      if (this.#pins[i]! > 1) {
        this.#pins[i]! -= 1;
        i += 1;
        continue;
      }
      const from = i;
      while (i < index + count && this.#pins[i] === 1) this.#pins[i++] = 0;
      this.#withdraw(from, i - from);
    }
    this.total -= count;
    if (this.total > 0) return;
    if (this.damaged) this.file.files.drop(this);
    else this.file.files.idle(this);
  }

  #withdraw(index: number, count: number): void {
    const { banks } = this.file.files;
    for (let i = index; i < index + count; i++) this.damaged ||= banks.isPoisoned(this.base + i);
    banks.revoke(this.base + index, count);
  }
}

/** What a pin needs to know of where it came from. */
export interface FileRange {
  /** Pages of the file. */
  readonly first: number;
  readonly count: number;
  /** Where page `first` lies in the program, for the alignment of large pages. */
  readonly va: number;
  /** How many pages before and after the range belong to the same mapping: they may be mapped along with it. */
  readonly before: number;
  readonly after: number;
  /** Pages that cannot be written will not do. */
  readonly written: boolean;
}

export class ClientFile {
  readonly files: ClientFiles;
  readonly key: string;
  readonly fd: number;
  readonly writable: boolean;
  /** Address spaces that map it, and `FileBacking`s that are open. */
  readonly owners = new Set<object>();
  /** Ascending, disjoint. */
  readonly runs: Run[] = [];
  /** It cannot be mapped for writing again: what is mapped stays so. */
  sealed = false;

  constructor(files: ClientFiles, key: string, fd: number, writable: boolean) {
    this.files = files;
    this.key = key;
    this.fd = fd;
    this.writable = writable;
  }

  get size(): number {
    return fstatSync(this.fd).size;
  }

  /**
   * Pins a range of the file; undefined when it cannot be mapped: no more room, a kind of file whose pages are larger,
   * a part that was lost and is still pinned, or one that is sealed.
   */
  pin(range: FileRange): Segment[] | undefined {
    const segments: Segment[] = [];
    const end = range.first + range.count;
    for (let page = range.first; page < end; ) {
      const run = this.#covering(page) ?? this.#map(page, range);
      if (run === undefined || run.damaged || (range.written && !run.writable)) {
        releaseAll(segments);
        return undefined;
      }
      const first = page - run.first;
      const count = Math.min(run.count - first, end - page);
      run.pin(first, count);
      this.files.busy(run);
      segments.push({ pages: run, first, count });
      page += count;
    }
    return segments;
  }

  /** Maps all of it, for good. As much as there is room for. */
  seal(): void {
    const count = Math.ceil(this.size / FRAME_BYTES);
    const range = { first: 0, count, va: 0, before: 0, after: 0, written: true };
    for (let page = 0; page < count; ) {
      const run = this.#covering(page) ?? this.#map(page, range);
      if (run === undefined) break;
      this.files.busy(run);
      page = run.first + run.count;
    }
    this.sealed = true;
  }

  /** Whether any page of [first, end) is pinned. */
  isPinned(first: number, end: number): boolean {
    const [gap, second] = this.unpinned(first, end);
    return second !== undefined || gap === undefined || gap.first !== first || gap.end !== end;
  }

  /** Pages of [first, end) that are not pinned, as ranges. */
  unpinned(first: number, end: number): { first: number; end: number }[] {
    const ranges: { first: number; end: number }[] = [];
    let from = first;
    for (let at = Math.max(0, this.#after(first) - 1); at < this.runs.length; at++) {
      const run = this.runs[at]!;
      if (run.first >= end) break;
      if (run.total === 0) continue;
      const last = Math.min(end, run.first + run.count);
      for (let page = Math.max(first, run.first); page < last; page++) {
        if (!run.isPinned(page - run.first)) continue;
        if (page > from) ranges.push({ first: from, end: page });
        from = page + 1;
      }
    }
    if (from < end) ranges.push({ first: from, end });
    return ranges;
  }

  /** Unmaps what nobody pins in [first, end). */
  dropIdle(first = 0, end = Number.POSITIVE_INFINITY): void {
    const touched: Run[] = [];
    for (let at = Math.max(0, this.#after(first) - 1); at < this.runs.length; at++) {
      const run = this.runs[at]!;
      if (run.first >= end) break;
      if (run.total === 0 && run.first + run.count > first) touched.push(run);
    }
    for (const run of touched) this.files.drop(run);
  }

  remove(run: Run): void {
    const at = this.runs.indexOf(run);
    if (at >= 0) this.runs.splice(at, 1);
  }

  #covering(page: number): Run | undefined {
    const run = this.runs[this.#after(page) - 1];
    return run !== undefined && page < run.first + run.count ? run : undefined;
  }

  /** Index of the first run that starts beyond `page`. */
  #after(page: number): number {
    let low = 0;
    let high = this.runs.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.runs[middle]!.first <= page) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /**
   * Maps a run from `page` on. It is widened to whole 2 MiB of the program's addresses as far as mapping, file and
   * neighbouring runs go: a file pinned page by page must not cost a mapping a page.
   */
  #map(page: number, range: FileRange): Run | undefined {
    const vaPage = range.va / FRAME_BYTES + (page - range.first);
    const at = this.#after(page);
    const previous = this.runs[at - 1];
    const floor = Math.max(range.first - range.before, previous ? previous.first + previous.count : 0);
    const pages = Math.ceil(this.size / FRAME_BYTES);
    const ceiling = Math.min(
      range.first + range.count + range.after,
      this.runs[at]?.first ?? Number.POSITIVE_INFINITY,
      Math.max(pages, page + 1),
    );
    const wanted = Math.min(range.first + range.count, ceiling) - page;
    const first = Math.max(floor, page - (vaPage % LARGE_PAGES));
    const last = vaPage + wanted;
    const end = Math.min(ceiling, page + wanted + ((LARGE_PAGES - (last % LARGE_PAGES)) % LARGE_PAGES));
    const count = Math.min(end - first, MAX_CLIENT_RUN);
    return this.files.map(this, at, first, count, (vaPage - (page - first)) * FRAME_BYTES);
  }
}

export class ClientFiles {
  readonly banks: Banks;
  readonly events: EventSink;
  readonly #files = new Map<string, ClientFile>();
  /** In the order in which they became idle. */
  readonly #idle = new Set<Run>();

  /** `events` is told of adoptions. */
  constructor(banks: Banks, events: EventSink = silent) {
    this.banks = banks;
    this.events = events;
  }

  /** Files that are held open. */
  get count(): number {
    return this.#files.size;
  }

  get(key: string): ClientFile | undefined {
    return this.#files.get(key);
  }

  /** Takes over `fd`. */
  add(key: string, fd: number, writable: boolean): ClientFile {
    const file = new ClientFile(this, key, fd, writable);
    this.#files.set(key, file);
    return file;
  }

  /**
   * A client's memfd or file in memory, for mapping; `fd` is ours from now on. How it was opened does not matter, as on
   * Linux, which takes the file's pages and asks no more. Throws EINVAL for other files.
   */
  backing(fd: number): FileBacking {
    const file = this.#fileOf(fd);
    if (file === undefined)
      throw new LinuxError("EINVAL", "the descriptor is not a memfd or a file in memory");
    const owner = {};
    file.owners.add(owner);
    return {
      get size() {
        return file.size;
      },
      writable: file.writable,
      pin: (offset, length, writable) => {
        if (writable && !file.writable)
          throw new LinuxError("EACCES", "the file cannot be opened for writing");
        return this.#pinFile(file, offset, length, writable);
      },
      close: () => this.disown(file, owner),
    };
  }

  /** A file in memory that is mapped as a whole before it is sealed; `fd` is ours from now on. Undefined when that cannot be. */
  sealing(fd: number): ClientFile | undefined {
    const file = this.#fileOf(fd);
    if (file?.writable) {
      file.seal();
      return file;
    }
    if (file) this.#retire(file);
    return undefined;
  }

  /** Takes over `fd`. Undefined: not a file in memory. */
  #fileOf(fd: number): ClientFile | undefined {
    const stat = fstatSync(fd, { bigint: true });
    if (!stat.isFile() || !IN_MEMORY.has(statfsSync(`/proc/self/fd/${fd}`).type)) {
      closeSync(fd);
      return undefined;
    }
    const key = keyOfStat(stat);
    const known = this.#files.get(key);
    if (known !== undefined) {
      closeSync(fd);
      return known;
    }
    const [best, writable] = writableCopy(fd);
    return this.add(key, best, writable);
  }

  #pinFile(file: ClientFile, offset: number, length: number, writable: boolean): Pin {
    if (offset + length > roundUp(file.size))
      throw new LinuxError("EFAULT", `the file has ${file.size} bytes; ${offset + length} are asked for`);
    const first = offset / FRAME_BYTES;
    const count = length / FRAME_BYTES;
    const around = { before: first, after: Number.POSITIVE_INFINITY };
    const segments = file.pin({ first, count, va: offset, ...around, written: false });
    if (segments === undefined)
      throw new LinuxError("ENOMEM", "the file's pages cannot be mapped into host memory");
    return new PagePin(offset, count, writable, segments, () => {});
  }

  /** An owner let go; without owners and pins the file is closed. */
  disown(file: ClientFile, owner: object): void {
    file.owners.delete(owner);
    this.#retire(file);
  }

  map(file: ClientFile, at: number, first: number, count: number, va: number): Run | undefined {
    while (this.banks.clientRuns >= MAX_RUNS) {
      const [oldest] = this.#idle;
      if (oldest === undefined) return undefined;
      this.drop(oldest);
      at = file.runs.findIndex((run) => run.first > first);
      if (at < 0) at = file.runs.length;
    }
    const placed = this.#place(file, { first, count, va });
    if (placed === undefined) return undefined;
    const run = new Run(file, { first, count, ...placed });
    file.runs.splice(at, 0, run);
    return run;
  }

  /** Undefined: no room, or hugetlbfs, which wants whole huge pages. */
  #place(
    file: ClientFile,
    { first, count, va }: { readonly first: number; readonly count: number; readonly va: number },
  ): { readonly base: number; readonly writable: boolean } | undefined {
    for (const writable of file.writable ? [true, false] : [false])
      try {
        const base = this.banks.mapClient(file.fd, first * FRAME_BYTES, count, va, writable);
        return base < 0 ? undefined : { base, writable };
      } catch (error) {
        if (!(error instanceof libc.SystemError)) throw error;
        if (error.errno !== Errno.EPERM) return undefined;
      }
    return undefined;
  }

  busy(run: Run): void {
    this.#idle.delete(run);
  }

  idle(run: Run): void {
    if (!run.file.sealed) this.#idle.add(run);
    this.#retire(run.file);
    if (this.#idle.size <= MAX_IDLE) return;
    const [oldest] = this.#idle;
    this.drop(oldest!);
  }

  drop(run: Run): void {
    this.#idle.delete(run);
    run.file.remove(run);
    this.banks.unmapClient(run.base, run.count);
  }

  #retire(file: ClientFile): void {
    if (file.owners.size > 0 || file.runs.some(({ total }) => total > 0)) return;
    if (this.#files.get(file.key) !== file) return;
    file.dropIdle();
    this.#files.delete(file.key);
    closeSync(file.fd);
  }
}
