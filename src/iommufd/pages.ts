/**
 * Memory that was mapped once and may be used many times: by the domains of several address spaces, by copies and by
 * accesses. A page is pinned, and paid for, when its first user comes and given back when its last one leaves; pages
 * nobody uses are not pinned at all. Memory is that of a process, by user address, or that of a file, by offset; a
 * device's is `dma-buf-source.ts`.
 */

import { allocate } from "../kernel/allocations.ts";
import {
  type Adopter,
  type FileBacking,
  type Pin,
  Restart,
  type UserMemory,
  type UserRange,
} from "../kernel/call.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Payer } from "./accounting.ts";
import { hex, PAGE_BYTES } from "./address.ts";
import { PinnedRun } from "./pinned-run.ts";
import { type Segment, Segments } from "./segments.ts";

/** Where pages come from. Page numbers count from the first page of the source. */
export interface PageSource {
  /** User address, or offset in the file, of page 0. */
  readonly base: bigint;
  /** Throws EFAULT, ENOMEM, EINVAL or `Restart`. */
  pin(first: number, count: number, writable: boolean): Pin;
  /** Bytes as the owner sees them now, without pinning; undefined when the source cannot do that. */
  read?(page: number, offset: number, into: Uint8Array): void;
  write?(page: number, offset: number, data: Uint8Array): void;
  /**
   * Only of a device's memory: nothing is paid for it, accesses cannot have it, and its owner may take it back, which
   * `taken` is told.
   */
  whenTaken?(taken: () => void): void;
  /** Nobody has the pages any more. */
  close?(): void;
}

/** Where areas of pages are mapped in domains. */
export interface PageMapper {
  /** The pages are no more: no domain may map them when this returns. */
  withdraw(pages: Pages): void;
}

/** Doubles are exact up to here; no user address is higher. */
const HIGHEST = 2 ** 53;

/** The memory of a process from a user address on. */
export class UserSource implements PageSource, UserRange {
  readonly memory: UserMemory;
  readonly base: bigint;
  readonly va: number;
  readonly length: number;

  /** Of `length` bytes from `base`, a multiple of a page. */
  constructor(memory: UserMemory, base: bigint, length: number) {
    this.memory = memory;
    this.base = base;
    this.va = Number(base);
    this.length = length;
    memory.expected?.add(this);
  }
  close(): void {
    this.memory.expected?.delete(this);
  }
  pin(first: number, count: number, writable: boolean): Pin {
    const va = this.va + first * PAGE_BYTES;
    const length = count * PAGE_BYTES;
    if (va + length >= HIGHEST)
      throw new LinuxError(
        "EFAULT",
        `user addresses ${hex(va)} + ${hex(length)} are beyond what a process has`,
      );
    return this.memory.pin(va, length, writable);
  }
  read(page: number, offset: number, into: Uint8Array): void {
    this.memory.read(this.#address(page, offset), into);
  }
  write(page: number, offset: number, data: Uint8Array): void {
    this.memory.write(this.#address(page, offset), data);
  }
  #address(page: number, offset: number): bigint {
    return this.base + BigInt(page) * BigInt(PAGE_BYTES) + BigInt(offset);
  }
}

/** The pages of a file from an offset on. A file without pages, or a range beyond its end, is found out by pinning. */
export class FileSource implements PageSource {
  readonly base: bigint;
  readonly #backing: FileBacking | undefined;

  constructor(backing: FileBacking | undefined, base: bigint) {
    this.#backing = backing;
    this.base = base;
  }
  pin(first: number, count: number, writable: boolean): Pin {
    const offset = Number(this.base) + first * PAGE_BYTES;
    const length = count * PAGE_BYTES;
    if (!this.#backing)
      throw new LinuxError("EINVAL", "the file has no pages that can be pinned; a memfd has");
    if (offset + length > this.#backing.size)
      throw new LinuxError(
        "EINVAL",
        `bytes ${hex(offset)} + ${hex(length)} are beyond the file's ${hex(this.#backing.size)}`,
      );
    return this.#backing.pin(offset, length, writable);
  }
  close(): void {
    this.#backing?.close();
  }
}

export class Pages {
  /** Whether its owner may have it written. */
  readonly writable: boolean;
  readonly source: PageSource;
  #payer: Payer;
  /** Areas that map some of it. */
  #areas = 0;
  /** Whose areas, when the source may take its memory back. */
  readonly #mappers = new Map<PageMapper, number>();
  #taken = false;
  readonly #segments = new Segments();

  constructor(source: PageSource, writable: boolean, payer: Payer) {
    this.source = source;
    this.writable = writable;
    this.#payer = payer;
    source.whenTaken?.(() => this.#withdraw());
  }

  /** Whether the source has taken its memory back: for good, and no domain maps it. */
  get taken(): boolean {
    return this.#taken;
  }
  get payer(): Payer {
    return this.#payer;
  }
  /** Pages that are pinned now. */
  get pinned(): number {
    let sum = 0;
    for (const { first, last } of this.#segments) sum += last - first + 1;
    return sum;
  }

  /** How often the frame is pinned by these pages. */
  pinsOf(pfn: number): number {
    let pins = 0;
    for (const { first, last, run } of this.#segments)
      run.frames(first, last - first + 1, (start, count) => {
        if (pfn >= start && pfn < start + count) pins += 1;
      });
    return pins;
  }

  /** Throws EINVAL when it is a device's memory, which no part of the kernel reaches. */
  requireOrdinary(): void {
    if (this.source.whenTaken)
      throw new LinuxError(
        "EINVAL",
        "the area maps memory of a device (a dma-buf), which only devices reach",
      );
  }

  /** An area maps some of it. */
  retain(mapper: PageMapper): void {
    this.#areas += 1;
    if (this.source.whenTaken) this.#mappers.set(mapper, (this.#mappers.get(mapper) ?? 0) + 1);
  }
  /** An area of it went. */
  drop(mapper: PageMapper): void {
    this.#areas -= 1;
    if (this.source.whenTaken) this.#forget(mapper);
    if (this.#areas === 0) this.source.close?.();
  }

  #forget(mapper: PageMapper): void {
    const left = this.#mappers.get(mapper)! - 1;
    if (left > 0) this.#mappers.set(mapper, left);
    else this.#mappers.delete(mapper);
  }

  #withdraw(): void {
    if (this.#taken) return;
    this.#taken = true;
    for (const mapper of this.#mappers.keys()) mapper.withdraw(this);
  }

  /** From now on somebody else pays. Throws ENOMEM when their limit is reached; then nothing has changed. */
  transfer(payer: Payer): void {
    this.#payer.handOver(this.pinned, payer);
    this.#payer = payer;
  }
  /** It did not come to that after all. */
  transferBack(payer: Payer): void {
    payer.takeBack(this.pinned, this.#payer);
    this.#payer = payer;
  }

  /** One user more for pages [first, last]: pins those that had none. Throws what pinning throws; then nothing has changed. */
  hold(first: number, last: number): void {
    const made = this.#pinGaps(first, last);
    for (const segment of made) this.#segments.insert(segment);
    this.#cut(first);
    this.#cut(last + 1);
    const segments = this.#segments;
    for (let segment = segments.seek(first); segment && segment.first <= last; segment = segments.next())
      segment.users += 1;
  }

  /** One user less; pages without users are unpinned. */
  release(first: number, last: number): void {
    this.#cut(first);
    this.#cut(last + 1);
    const segments = this.#segments;
    for (let segment = segments.seek(first); segment && segment.first <= last; ) {
      segment.users -= 1;
      if (segment.users > 0) segment = segments.next();
      else {
        this.#unpin(segment);
        segment = segments.remove();
      }
    }
  }

  /** Whether every page of [first, last] is pinned. */
  holds(first: number, last: number): boolean {
    const segments = this.#segments;
    let next = first;
    for (let segment = segments.seek(first); segment && next <= last; segment = segments.next()) {
      if (segment.first > next) return false;
      next = segment.last + 1;
    }
    return next > last;
  }

  /** Users of a page. */
  usersOf(page: number): number {
    const segment = this.#segments.seek(page);
    return segment && segment.first <= page ? segment.users : 0;
  }

  /** Physical memory of pinned bytes [start, start + length), run by run. */
  physical(start: number, length: number, visit: (pa: number, length: number) => void): void {
    let page = Math.floor(start / PAGE_BYTES);
    let skip = start - page * PAGE_BYTES;
    let left = length;
    while (left > 0) {
      const segment = this.#segments.seek(page)!;
      const count = Math.min(segment.last + 1 - page, Math.ceil((skip + left) / PAGE_BYTES));
      segment.run.frames(page, count, (pfn, frames) => {
        const bytes = Math.min(frames * PAGE_BYTES - skip, left);
        visit(pfn * PAGE_BYTES + skip, bytes);
        left -= bytes;
        skip = 0;
      });
      page += count;
    }
  }

  /** Copies bytes out of the pages, pinned or not. Throws EFAULT. */
  read(memory: HostMemory, page: number, offset: number, into: Uint8Array): void {
    this.#transfer(page, offset, into.length, {
      direct: () => this.source.read?.(page, offset, into),
      frames: (pa, from, to) => memory.readBytes(pa, into.subarray(from, to)),
    });
  }

  /** Copies bytes into the pages, pinned or not. Throws EFAULT. */
  write(memory: HostMemory, page: number, offset: number, data: Uint8Array): void {
    this.#transfer(page, offset, data.length, {
      direct: () => this.source.write?.(page, offset, data),
      frames: (pa, from, to) => memory.writeBytes(pa, data.subarray(from, to)),
    });
  }

  #transfer(
    page: number,
    offset: number,
    length: number,
    how: { readonly direct: () => void; readonly frames: (pa: number, from: number, to: number) => boolean },
  ): void {
    const last = page + Math.floor((offset + length - 1) / PAGE_BYTES);
    if (!this.holds(page, last) && this.source.read) {
      how.direct();
      return;
    }
    this.hold(page, last);
    try {
      let done = 0;
      this.physical(page * PAGE_BYTES + offset, length, (pa, bytes) => {
        if (!how.frames(pa, done, done + bytes))
          throw new LinuxError("EFAULT", `the frame at ${hex(pa)} cannot be reached`);
        done += bytes;
      });
    } finally {
      this.release(page, last);
    }
  }

  /** Pins what of [first, last] is not pinned. */
  #pinGaps(first: number, last: number): Segment[] {
    const made: Segment[] = [];
    let next = first;
    try {
      while (next <= last) {
        const segment = this.#segments.seek(next);
        const end = segment && segment.first <= last ? segment.first - 1 : last;
        if (end >= next) made.push(this.#pin(next, end));
        next = segment && segment.first <= last ? segment.last + 1 : last + 1;
      }
    } catch (error) {
      for (const segment of made) this.#unpin(segment);
      throw error;
    }
    return made;
  }

  #pin(first: number, last: number): Segment {
    const count = last - first + 1;
    allocate("a list of pinned pages");
    const pin = this.source.pin(first, count, this.writable);
    try {
      if (!this.source.whenTaken) this.#payer.charge(count);
    } catch (error) {
      pin.unpin(0, count);
      throw error;
    }
    return { first, last, users: 0, run: new PinnedRun(pin, first) };
  }

  #unpin({ first, last, run }: Segment): void {
    const count = last - first + 1;
    run.pin.unpin(first - run.base, count);
    if (!this.source.whenTaken) this.#payer.refund(count);
  }

  /** Makes a segment begin at this page, if it lies within one. */
  #cut(page: number): void {
    const segment = this.#segments.seek(page);
    if (!segment || segment.first >= page) return;
    const upper = { ...segment, first: page };
    segment.last = page - 1;
    this.#segments.insert(upper);
  }
}

/** A part of some pages that has or gets a user. */
export interface PageRange {
  readonly pages: Pages;
  readonly first: number;
  readonly last: number;
}

/**
 * One user more for many ranges, all or none. What has first to be adopted by its owner is asked for in one go, so
 * that the call is restarted once for each owner and not once a range.
 */
export const holdAll = (ranges: Iterable<PageRange>): void => {
  const held: PageRange[] = [];
  const wanted: UserRange[] = [];
  let owner: Adopter | undefined;
  let failure: unknown;
  for (const range of ranges)
    try {
      range.pages.hold(range.first, range.last);
      held.push(range);
    } catch (error) {
      if (!(error instanceof Restart)) {
        failure = error;
        break;
      }
      owner ??= error.owner;
      if (error.owner === owner) wanted.push(...error.ranges);
    }
  if (failure === undefined && owner === undefined) return;
  for (const { pages, first, last } of held.reverse()) pages.release(first, last);
  throw failure ?? new Restart(owner!, wanted);
};
