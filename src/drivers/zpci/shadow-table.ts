/**
 * The product of a guest's tables and those of its nest parent, in tables of the host's: a function walks them, and never the
 * guest's. Entries are read where the parent's own table has the guest's pages, and what they name is looked up there as
 * well; nothing else of the guest is known, nothing is pinned. Tables of the product are made as the guest's are met,
 * a bounded number of them; beside each entry of a page table, in the half of the frame that the table leaves free, is
 * the guest address that it came of. What came of a frame of the parent's is found by an index, so that taking it back costs
 * what it is, however much else there is.
 *
 * Everything in a guest's tables is the guest's: they may be malformed, cyclic, shared a million times, or change meanwhile.
 * What is looked at for one request has its bound (`MOST_FETCHES`).
 */
import { Ids } from "../../base/ids.ts";
import type { Stage } from "../../hardware/zpci/parameters.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { compileWalker } from "../../pagetable/compile.ts";
import {
  absentAt,
  highWord,
  lowWord,
  type PageTableFormat,
  Permission,
  Protection,
  tableBytes,
} from "../../pagetable/format.ts";
import { WordTest } from "../../pagetable/rung.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { hostFormat, type ZpciDomain } from "./domain.ts";
import { SourceIndex } from "./source-index.ts";

/** Entries of guests' tables that are read for one request. */
export const MOST_FETCHES = 2 ** 20;
/** Tables of one product: page tables of 4 GiB. */
export const MOST_TABLES = 4096;

const WORD = 2 ** 32;
const PAGE = 4096;
/** From a page-table entry to the guest address it came of. */
const SOURCE = 2048;
/** Entries of a page table: numbers of pages in the index are the table's, times this, and the entry. */
const ENTRIES = 256;

/** How an entry of a level is read, in words. */
class EntryReader {
  readonly absent: WordTest;
  readonly #checks: readonly WordTest[];
  readonly #protected: WordTest;
  readonly #addressLo: number;
  readonly #addressHi: number;

  constructor(format: PageTableFormat, level: number) {
    const { tables, leaves } = format.levels[level]!;
    const kind = tables[0] ?? leaves[0]!;
    this.absent = new WordTest(absentAt(format, level));
    this.#checks = kind.checks.map((check) => new WordTest(check));
    this.#protected = new WordTest(kind.denials[0]!);
    this.#addressLo = lowWord(kind.address);
    this.#addressHi = highWord(kind.address);
  }

  /** It names a page or a table, and nothing in it is malformed. */
  leads(lo: number, hi: number): boolean {
    if (this.absent.holds(lo, hi)) return false;
    for (let check = 0; check < this.#checks.length; check++)
      if (!this.#checks[check]!.holds(lo, hi)) return false;
    return true;
  }
  protects(lo: number, hi: number): boolean {
    return this.#protected.holds(lo, hi);
  }
  address(lo: number, hi: number): number {
    return ((hi & this.#addressHi) >>> 0) * WORD + ((lo & this.#addressLo) >>> 0);
  }
}

/** A table of the product. */
interface Table {
  readonly level: number;
  /** First address that it translates. */
  readonly start: number;
  /** Physical address. */
  readonly pa: number;
  /** Its number in the index. */
  readonly slot: number;
  /** Guest address of the table it came of. */
  readonly source: number;
  /** The guest's entries above it forbid writing. */
  readonly protect: boolean;
  /** Entries in use. */
  used: number;
  /** The table whose entry `place` leads to it, while one does. */
  above: Table | undefined;
  place: number;
  /** Tables below, by entry. */
  readonly below: Map<number, Table>;
}

const hex = (value: number): string => `0x${value.toString(16)}`;
const frameOf = (guest: number): number => Math.floor(guest / PAGE);
const walkParent = compileWalker(hostFormat);

export class ShadowTable {
  readonly format: PageTableFormat;
  /** Entries of the guest's tables that were read, in all; tables of the product. */
  fetched = 0;
  tables = 0;
  /** Frames of the parent's that were looked up, and what was found to have come of them, for all that it took back. */
  sought = 0;
  readonly #memory: HostMemory;
  readonly #parent: ZpciDomain;
  readonly #root: Table;
  readonly #mostTables: number;
  readonly #mostFetches: number;
  readonly #readers: readonly EntryReader[];
  /** Lower words of an entry that maps nothing, and of the bit that forbids writing. */
  readonly #none: number;
  readonly #protected: number;
  readonly #page = new WalkResult();
  readonly #slots: Ids;
  readonly #bySlot: Table[] = [];
  /** Entries of page tables, by the guest page; tables by where the entry is that leads to them; page tables by where they are. */
  readonly #pages = new SourceIndex();
  readonly #entries = new SourceIndex();
  readonly #bodies = new SourceIndex();
  /** Tables that are not linked any more, until every unit has forgotten them. */
  readonly #retired: Table[] = [];
  /** Where entries went or changed since `settle`: [start, end). */
  #goneStart = Number.POSITIVE_INFINITY;
  #goneEnd = 0;
  /** Entries that may still be read for the request. */
  #left: number;
  #refusal: string | undefined;
  /** The guest page that was looked up last, and where it is. */
  #known = -1;
  #knownAt = 0;

  /** Empty. Throws ENOMEM. */
  constructor(
    parent: ZpciDomain,
    { format }: Stage,
    origin: number,
    { mostTables = MOST_TABLES, mostFetches = MOST_FETCHES } = {},
  ) {
    this.format = format;
    this.#parent = parent;
    this.#memory = parent.memory;
    this.#mostTables = mostTables;
    this.#slots = new Ids(0, mostTables);
    this.#mostFetches = mostFetches;
    this.#left = mostFetches;
    this.#readers = format.levels.map((_, level) => new EntryReader(format, level));
    this.#none = lowWord(format.empty);
    this.#protected = lowWord(format.leafBits(Protection.read));
    this.#root = this.#make(format.levels.length - 1, 0, origin, false);
  }

  /** Physical address of the top table. */
  get root(): number {
    return this.#root.pa;
  }

  /** Another request begins: its bound is that of all its ranges together. */
  begin(): void {
    this.#left = this.#mostFetches;
  }

  /**
   * Makes the product of [start, end) what the guest's tables say now; what they name outside the parent is not valid there,
   * and the first of it is returned in a sentence.
   * Throws ENOSPC beyond a bound, ENOMEM; then nothing of the range is valid. `settle` must follow.
   */
  synchronize(start: number, end: number): string | undefined {
    this.#refusal = undefined;
    this.#known = -1;
    try {
      this.#follow(this.#root, start, end);
    } catch (error) {
      this.#drop(this.#root, start, end);
      throw error;
    }
    return this.#refusal;
  }

  /** What came of the parent's [start, end) goes: pages there, and what was derived from tables there. `settle` must follow. */
  revoke(start: number, end: number): void {
    const [first, last] = [frameOf(start), Math.ceil(end / PAGE)];
    const cut = (slot: number): void => {
      const { above, place } = this.#bySlot[slot]!;
      this.sought += 1;
      this.#cut(above!, place);
      this.#prune(above!);
    };
    const empty = (page: number): void => {
      const table = this.#bySlot[Math.floor(page / ENTRIES)]!;
      this.sought += 1;
      this.#empty(table, page % ENTRIES);
      this.#prune(table);
    };
    const entries = this.#entries.sweep(first, last, cut);
    const bodies = this.#bodies.sweep(first, last, cut);
    const pages = this.#pages.sweep(first, last, empty);
    this.sought += entries + bodies + pages;
  }

  /** Where functions must forget what they know, if anywhere; then `release` gives tables back. */
  settle(forget: (start: number, end: number) => void): void {
    if (this.#goneEnd > 0) forget(this.#goneStart, this.#goneEnd);
    this.#goneStart = Number.POSITIVE_INFINITY;
    this.#goneEnd = 0;
    for (const table of this.#retired.splice(0)) this.#free(table);
  }

  /** No function has it any more. */
  free(): void {
    this.#drop(this.#root, 0, 2 ** 64);
    this.settle(() => {});
    this.#free(this.#root);
  }

  // --- Following the guest

  #follow(table: Table, start: number, end: number): void {
    const { level, start: first } = table;
    const { shift, bits } = this.format.levels[level]!;
    const size = 2 ** shift;
    const from = Math.max(0, Math.floor((start - first) / size));
    const to = Math.min(2 ** bits, Math.ceil((end - first) / size));
    for (let index = from; index < to; index++) {
      const lo = this.#fetch(table.source + 8 * index);
      if (level === 0) this.#followPage(table, index, lo);
      else this.#followTable(table, index, lo, start, end);
    }
  }

  #followPage(table: Table, index: number, lo: number): void {
    const { hi } = this.#memory;
    const reader = this.#readers[0]!;
    if (!reader.leads(lo, hi)) {
      this.#empty(table, index);
      return;
    }
    const guest = reader.address(lo, hi);
    const pa = this.#locate(guest);
    if (pa < 0) {
      this.#refuse(`the guest's page-table entry for ${hex(table.start + index * PAGE)} names`, guest);
      this.#empty(table, index);
      return;
    }
    const parentForbids = (this.#page.allowed & Permission.write) === 0;
    const protect = table.protect || parentForbids || reader.protects(lo, hi);
    this.#write(table, index, pa, protect ? this.#protected : 0, guest);
  }

  #followTable(table: Table, index: number, lo: number, start: number, end: number): void {
    const { hi } = this.#memory;
    const { level } = table;
    const reader = this.#readers[level]!;
    if (!reader.leads(lo, hi)) {
      this.#cut(table, index);
      return;
    }
    const source = reader.address(lo, hi);
    const protect = table.protect || reader.protects(lo, hi);
    const size = 2 ** this.format.levels[level]!.shift;
    const first = table.start + index * size;
    const known = table.below.get(index);
    if (known && known.source === source && known.protect === protect) {
      this.#follow(known, start, end);
      if (known.used === 0) this.#cut(table, index);
      return;
    }
    // All that the entry leads to has changed with it.
    this.#cut(table, index);
    const [from, to] = known ? [first, first + size] : [start, end];
    const below = this.#make(level - 1, first, source, protect);
    try {
      this.#follow(below, from, to);
    } catch (error) {
      this.#retire(below);
      throw error;
    }
    if (below.used > 0) this.#link(table, index, below);
    else this.#free(below);
  }

  /** The lower word of an entry of the guest's; the upper one is memory's. Throws ENOSPC. */
  #fetch(at: number): number {
    if (this.#left === 0)
      throw new LinuxError(
        "ENOSPC",
        `a refresh takes more than ${this.#mostFetches} entries of the guest's tables`,
        this.#parent.name,
      );
    this.#left -= 1;
    this.fetched += 1;
    const page = at - (at % PAGE);
    if (page !== this.#known) {
      this.#known = this.#locate(page) < 0 ? -1 : page;
      this.#knownAt = this.#page.pa;
    }
    if (this.#known >= 0 && this.#memory.load64be(this.#knownAt + (at % PAGE))) return this.#memory.lo;
    this.#refuse("the guest has a table at", page);
    this.#memory.hi = 0;
    return this.#none;
  }

  #refuse(what: string, guest: number): void {
    this.#refusal ??= `${what} ${hex(guest)}, which its nest parent does not map`;
  }

  /** Where the parent has a guest page, or -1. */
  #locate(guest: number): number {
    const page = this.#page;
    const { root } = this.#parent;
    const fault = walkParent(
      this.#memory,
      root,
      guest | 0,
      Math.floor(guest / WORD) | 0,
      Permission.read,
      page,
    );
    return fault === 0 ? page.pa : -1;
  }

  // --- Writing

  #write(table: Table, index: number, pa: number, bits: number, guest: number): void {
    const memory = this.#memory;
    const at = table.pa + 8 * index;
    memory.load64be(at);
    const [lo, hi] = [memory.lo | 0, memory.hi | 0];
    const [newLo, newHi] = [pa | bits, Math.floor(pa / WORD)];
    const absent = this.#readers[0]!.absent.holds(lo, hi);
    const source = absent ? -1 : this.#source(at);
    if (source !== guest) {
      const page = table.slot * ENTRIES + index;
      if (!absent) this.#pages.remove(page, frameOf(source));
      memory.store64(at + SOURCE, guest | 0, Math.floor(guest / WORD));
      this.#pages.add(page, frameOf(guest));
    }
    if (lo === (newLo | 0) && hi === newHi) return;
    if (absent) table.used += 1;
    else this.#gone(table.start + index * PAGE, PAGE);
    memory.store64be(at, newLo, newHi);
  }

  #empty(table: Table, index: number): void {
    if (!this.#disown(table, index)) return;
    this.#memory.store64be(table.pa + 8 * index, this.#none, 0);
    table.used -= 1;
    this.#gone(table.start + index * PAGE, PAGE);
  }

  /** The index has the page no longer; false: there is none. */
  #disown(table: Table, index: number): boolean {
    const memory = this.#memory;
    const at = table.pa + 8 * index;
    memory.load64be(at);
    if (this.#readers[0]!.absent.holds(memory.lo, memory.hi)) return false;
    this.#pages.remove(table.slot * ENTRIES + index, frameOf(this.#source(at)));
    return true;
  }

  /** The guest address that an entry in use came of. */
  #source(at: number): number {
    const memory = this.#memory;
    memory.load64(at + SOURCE);
    return (memory.hi >>> 0) * WORD + (memory.lo >>> 0);
  }

  #link(table: Table, index: number, below: Table): void {
    const { tables } = this.format.levels[table.level]!;
    const { pa, slot, source } = below;
    const bits = Number(tables[0]!.bits);
    this.#memory.store64be(table.pa + 8 * index, pa | bits, Math.floor(pa / WORD));
    table.below.set(index, below);
    table.used += 1;
    below.above = table;
    below.place = index;
    this.#entries.add(slot, frameOf(table.source + 8 * index));
    // Page tables lie within one page: with it all of theirs goes.
    if (below.level === 0) this.#bodies.add(slot, frameOf(source));
  }

  /** The table below an entry goes with all under it. */
  #cut(table: Table, index: number): void {
    const below = table.below.get(index);
    if (!below) return;
    this.#memory.store64be(table.pa + 8 * index, this.#none, 0);
    table.below.delete(index);
    table.used -= 1;
    const size = 2 ** this.format.levels[table.level]!.shift;
    this.#gone(table.start + index * size, size);
    this.#retire(below);
  }

  #retire(table: Table): void {
    const { above, place, slot, source } = table;
    if (above) this.#entries.remove(slot, frameOf(above.source + 8 * place));
    if (above && table.level === 0) this.#bodies.remove(slot, frameOf(source));
    table.above = undefined;
    if (table.level === 0) for (let index = 0; index < ENTRIES; index++) this.#disown(table, index);
    for (const below of table.below.values()) this.#retire(below);
    this.#retired.push(table);
  }

  /** Tables that nothing is left in go, from this one up. */
  #prune(table: Table): void {
    for (let one = table; one.used === 0 && one.above; ) {
      const { above, place } = one;
      this.#cut(above, place);
      one = above;
    }
  }

  #gone(start: number, length: number): void {
    this.#goneStart = Math.min(this.#goneStart, start);
    this.#goneEnd = Math.max(this.#goneEnd, start + length);
  }

  /** Nothing of [start, end) is valid any more. */
  #drop(table: Table, start: number, end: number): void {
    const size = 2 ** this.format.levels[table.level]!.shift;
    if (table.level === 0) {
      const from = Math.max(0, (start - table.start) / size);
      const to = Math.min(2 ** this.format.levels[0]!.bits, (end - table.start) / size);
      for (let index = from; index < to; index++) this.#empty(table, index);
      return;
    }
    for (const [index, below] of table.below) {
      const first = table.start + index * size;
      if (first >= end || first + size <= start) continue;
      const whole = first >= start && first + size <= end;
      if (!whole) this.#drop(below, start, end);
      if (whole || below.used === 0) this.#cut(table, index);
    }
  }

  // --- Frames

  /** An empty table, not linked. Throws ENOSPC, ENOMEM. */
  #make(level: number, start: number, source: number, protect: boolean): Table {
    if (this.tables === this.#mostTables)
      throw new LinuxError(
        "ENOSPC",
        `a guest's tables take more than ${this.#mostTables} of the host's`,
        this.#parent.name,
      );
    const memory = this.#memory;
    const shape = this.format.levels[level]!;
    const frames = tableBytes(shape) / PAGE;
    const pa = memory.allocate(frames);
    if (pa < 0)
      throw new LinuxError(
        "ENOMEM",
        `host memory has no ${frames} free frames for a table`,
        this.#parent.name,
      );
    for (let index = 0; index < 2 ** shape.bits; index++) memory.store64be(pa + 8 * index, this.#none, 0);
    this.tables += 1;
    const slot = this.#slots.take();
    const above = undefined;
    const table = { level, start, pa, slot, source, protect, used: 0, above, place: 0, below: new Map() };
    this.#bySlot[slot] = table;
    return table;
  }

  #free({ pa, level, slot }: Table): void {
    this.#slots.give(slot);
    this.#memory.free(pa, tableBytes(this.format.levels[level]!) / PAGE);
    this.tables -= 1;
  }
}
