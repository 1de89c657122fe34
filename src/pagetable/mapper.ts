/**
 * The mapper: one algorithm that keeps the page tables of any declared format. It owns the tables under one root, takes
 * the largest leaves that fit, and keeps its position (a cursor: for each level, which table was used last), so that a
 * run of pages is one descent and neighbouring calls need none.
 *
 * Two promises to whoever drives a unit. A call that fails has changed nothing. And what is unlinked is not given
 * back: freed tables wait in `retired` until `release`, which the owner calls after the units have forgotten what
 * `gather` says.
 *
 * Addresses are numbers of bytes, multiples of a page and therefore exact over 64 bits; ends are exclusive. Tables are
 * the host's own frames and are written through the direct view. An entry's more significant word is written first when
 * it becomes valid and last when it is emptied, so that a walk sees the old entry or the new one.
 */
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { highWord, inputBits, lowWord, type PageTableFormat } from "./format.ts";
import { Gather } from "./gather.ts";
import { type Leaf, Rung, WordTest } from "./rung.ts";

const FRAME = 4096;
const WORD32 = 2 ** 32;
const hex = (value: number): string => `0x${value.toString(16)}`;

/** Swaps the bytes of a word. */
const swap = (x: number): number => (x << 24) | ((x & 0xff00) << 8) | ((x >>> 8) & 0xff00) | (x >>> 24);

/** Entries [from, from + count) of a table were written: for units that do not snoop their tables. */
export type TableWrite = (pa: number, bytes: number) => void;

export class Mapper {
  readonly format: PageTableFormat;
  /** Physical address of the root table. */
  readonly root: number;
  /** What the units must forget before `release`. */
  readonly gather = new Gather();
  /** Told after each write of tables, in bytes. */
  onTableWrite: TableWrite | undefined;

  readonly #memory: HostMemory;
  readonly #rungs: readonly Rung[];
  readonly #top: number;
  /** Every leaf size, largest first. */
  readonly #leaves: readonly Leaf[];
  readonly #absent: WordTest;
  readonly #emptyLo: number;
  readonly #emptyHi: number;
  /** Index, relative to an entry's first word, of its less and more significant word. */
  readonly #low: number;
  readonly #high: number;
  readonly #swapped: boolean;
  readonly #inputEnd: number;
  readonly #outputEnd: number;

  /** The cursor: for each level the table used last, by the first address it translates (NaN: none). */
  readonly #start: Float64Array;
  readonly #bank: Int32Array;
  /** Index of the table's first word in its bank. */
  readonly #word: Int32Array;

  readonly #retired: { pa: number; frames: number }[] = [];
  #tables = 0;
  /** The words of the last entry read. */
  #lo = 0;
  #hi = 0;

  /** Makes an empty root table. Throws ENOMEM. */
  constructor(memory: HostMemory, format: PageTableFormat) {
    this.format = format;
    this.#memory = memory;
    this.#rungs = format.levels.map((_, index) => new Rung(format, index));
    this.#top = format.levels.length - 1;
    this.#leaves = this.#rungs.flatMap(({ leaves }) => leaves).sort((a, b) => b.size - a.size);
    this.#absent = new WordTest(format.absent);
    this.#swapped = format.bigEndian;
    this.#low = format.bigEndian ? 1 : 0;
    this.#high = format.bigEndian ? 0 : 1;
    this.#emptyLo = lowWord(format.empty) | 0;
    this.#emptyHi = highWord(format.empty) | 0;
    this.#inputEnd = 2 ** inputBits(format);
    this.#outputEnd = 2 ** format.outputBits;
    this.#start = new Float64Array(this.#rungs.length).fill(Number.NaN);
    this.#bank = new Int32Array(this.#rungs.length);
    this.#word = new Int32Array(this.#rungs.length);
    this.root = this.#newTable(this.#top);
    this.#place(this.#top, 0, this.root);
  }

  /** Tables in use, the root included. */
  get tables(): number {
    return this.#tables;
  }

  /** Unlinked tables that wait for `release`. */
  get retired(): number {
    return this.#retired.length;
  }

  /**
   * Maps [iova, iova + length) to physical memory at `pa`. All or nothing. Throws EINVAL for what is not a multiple of a
   * page or for a protection the format cannot say, ERANGE beyond the width of either address, EEXIST where something is
   * mapped, ENOMEM when tables cannot be had.
   */
  map(iova: number, pa: number, length: number, protection: number): void {
    this.#checkRange(iova, length);
    this.#checkTarget(pa, length);
    const bits = this.#leafBits(protection);
    const end = iova + length;
    let at = iova;
    try {
      while (at < end) at = this.#mapRun(at, pa + (at - iova), end, lowWord(bits), highWord(bits));
    } catch (error) {
      this.#undo(iova, at);
      throw error;
    }
  }

  /** Unmaps the leaves that lie within the range, frees tables that have become empty, and returns the bytes unmapped. */
  unmap(iova: number, length: number): number {
    this.#checkRange(iova, length);
    return this.#clear(iova, iova + length, true);
  }

  /** The physical address behind a byte, or -1. */
  physical(iova: number): number {
    if (!(iova >= 0 && iova < this.#inputEnd)) return -1;
    const level = this.#descend(iova, 0);
    const rung = this.#rungs[level]!;
    const index = this.#read(level, iova);
    if (this.#absent.holds(this.#lo, this.#hi)) return -1;
    const leaf = rung.leafOf(this.#lo, this.#hi)!;
    const from = this.#start[level]! + (index - (index % leaf.copies)) * rung.size;
    return leaf.address(this.#lo, this.#hi) + (iova - from);
  }

  /**
   * Gives the leaves that lie within the range another protection, and returns their bytes. What else the entries say
   * stays. Throws as `map` does for a protection the format cannot say.
   */
  protect(iova: number, length: number, protection: number): number {
    this.#checkRange(iova, length);
    const bits = this.#leafBits(protection);
    const [bitsLo, bitsHi] = [lowWord(bits), highWord(bits)];
    const end = iova + length;
    let bytes = 0;
    this.#eachLeaf(iova, end, (leaf, from, lo, hi, rewrite) => {
      if (from < iova || from + leaf.size > end) return;
      rewrite((lo & leaf.keptLo) | bitsLo, (hi & leaf.keptHi) | bitsHi);
      bytes += leaf.size;
    });
    return bytes;
  }

  /**
   * Tells every leaf that touches the range and was written to since its dirty bit was cleared; clears it when asked, and
   * then the units must forget what `gather` says before the next scan. Throws EOPNOTSUPP when the format has no dirty bit.
   */
  scanDirty(
    iova: number,
    length: number,
    clear: boolean,
    visit: (iova: number, bytes: number) => void,
  ): void {
    this.#checkRange(iova, length);
    if (!this.#leaves.some((leaf) => leaf.dirtyLo || leaf.dirtyHi))
      throw new LinuxError("EOPNOTSUPP", `${this.format.name} has no dirty bits, or they are not in use`);
    this.#eachLeaf(iova, iova + length, (leaf, from, lo, hi, rewrite) => {
      if (!((lo & leaf.dirtyLo) | (hi & leaf.dirtyHi))) return;
      visit(from, leaf.size);
      if (clear) rewrite(lo & ~leaf.dirtyLo, hi & ~leaf.dirtyHi);
    });
  }

  /** The units have forgotten what `gather` says: unlinked tables go back to memory. */
  release(): void {
    for (const { pa, frames } of this.#retired) this.#memory.free(pa, frames);
    this.#retired.length = 0;
    this.gather.reset();
  }

  /** No unit uses the tables any more: all of them, the root too, go back to memory. The mapper is of no use afterwards. */
  destroy(): void {
    this.release();
    this.#freeBelow(this.#top, this.root);
    this.#start.fill(Number.NaN);
  }

  // --- Arguments

  #checkRange(iova: number, length: number): void {
    const page = this.#leaves[this.#leaves.length - 1]!.size;
    if (!(length > 0) || iova % page !== 0 || length % page !== 0)
      throw new LinuxError(
        "EINVAL",
        `iova ${hex(iova)} and length ${hex(length)} must be multiples of ${hex(page)}, the length not zero`,
      );
    if (!(iova >= 0 && iova + length <= this.#inputEnd))
      throw new LinuxError(
        "ERANGE",
        `iova ${hex(iova)} + ${hex(length)} is beyond ${hex(this.#inputEnd)}, the end of ${this.format.name}`,
      );
  }

  #checkTarget(pa: number, length: number): void {
    const page = this.#leaves[this.#leaves.length - 1]!.size;
    if (pa % page !== 0)
      throw new LinuxError("EINVAL", `physical address ${hex(pa)} must be a multiple of ${hex(page)}`);
    if (!(pa >= 0 && pa + length <= this.#outputEnd))
      throw new LinuxError(
        "ERANGE",
        `physical address ${hex(pa)} + ${hex(length)} is beyond ${hex(this.#outputEnd)}, which entries can hold`,
      );
  }

  #leafBits(protection: number): bigint {
    const bits = this.format.leafBits(protection);
    if (bits < 0n)
      throw new LinuxError("EINVAL", `${this.format.name} has no entry for protection ${hex(protection)}`);
    return bits;
  }

  // --- Position

  /** Puts the cursor of a level on the table at `pa`, which translates addresses from `start` on. */
  #place(level: number, start: number, pa: number): void {
    this.#start[level] = start;
    this.#bank[level] = pa / WORD32;
    this.#word[level] = (pa % WORD32) / 4;
  }

  #address(level: number): number {
    return this.#bank[level]! * WORD32 + this.#word[level]! * 4;
  }

  /**
   * Puts the cursor on the table that translates the address at level `target`, or on the lowest there is above it, and
   * returns its level. Starts where the cursor is, as far as that is on the way.
   */
  #descend(iova: number, target: number): number {
    let level = target;
    while (!(iova - this.#start[level]! >= 0 && iova - this.#start[level]! < this.#rungs[level]!.span))
      level++;
    while (level > target) {
      const rung = this.#rungs[level]!;
      const index = this.#read(level, iova);
      const [lo, hi] = [this.#lo, this.#hi];
      if (this.#absent.holds(lo, hi) || rung.leafOf(lo, hi)) return level;
      const pa = ((hi & rung.addressHi) >>> 0) * WORD32 + ((lo & rung.addressLo) >>> 0);
      level -= 1;
      this.#place(level, this.#start[level + 1]! + index * rung.size, pa);
    }
    return level;
  }

  /** Reads the entry for the address in the cursor's table of the level into `#lo`, `#hi`; returns its index. */
  #read(level: number, iova: number): number {
    const index = Math.floor((iova - this.#start[level]!) / this.#rungs[level]!.size);
    this.#readAt(this.#memory.words[this.#bank[level]!]!, this.#word[level]! + 2 * index);
    return index;
  }

  #readAt(words: Uint32Array, at: number): void {
    const lo = words[at + this.#low]! | 0;
    const hi = words[at + this.#high]! | 0;
    this.#lo = this.#swapped ? swap(lo) : lo;
    this.#hi = this.#swapped ? swap(hi) : hi;
  }

  /** Writes an entry, the word that decides last. */
  #writeAt(words: Uint32Array, at: number, lo: number, hi: number): void {
    words[at + this.#high] = this.#swapped ? swap(hi) : hi;
    words[at + this.#low] = this.#swapped ? swap(lo) : lo;
  }

  #wrote(level: number, index: number, count: number): void {
    this.onTableWrite?.(this.#address(level) + 8 * index, 8 * count);
  }

  // --- Mapping

  /** The largest leaf that fits here. */
  #choose(iova: number, pa: number, bytes: number): number {
    const frames = (iova / FRAME) | 0 | ((pa / FRAME) | 0);
    let choice = 0;
    for (; choice < this.#leaves.length - 1; choice++) {
      const { size, alignment } = this.#leaves[choice]!;
      if (size <= bytes && (frames & alignment) === 0) break;
    }
    return choice;
  }

  /** Maps as many leaves of one size as one table and the range can take; returns where the next run begins. */
  #mapRun(iova: number, pa: number, end: number, bitsLo: number, bitsHi: number): number {
    const choice = this.#choose(iova, pa, end - iova);
    const leaf = this.#leaves[choice]!;
    const level = this.#descendMaking(iova, leaf.level);
    const rung = this.#rungs[level]!;
    const start = this.#start[level]!;
    const first = Math.floor((iova - start) / rung.size);
    // Within a table a larger leaf of the same level may fit from its next multiple on.
    const larger =
      choice > 0 && this.#leaves[choice - 1]!.level === level ? this.#leaves[choice - 1]!.copies : 0;
    const stop = larger ? Math.min(rung.entries, first - (first % larger) + larger) : rung.entries;
    const wanted = Math.floor((end - iova) / leaf.size) * leaf.copies;
    const count = level === leaf.level ? Math.min(stop - first, wanted) : 1;
    const words = this.#memory.words[this.#bank[level]!]!;
    const at = this.#word[level]! + 2 * first;
    this.#demandEmpty(words, at, count, start + first * rung.size, rung.size);
    this.#fill(words, at, count, leaf, pa, leaf.bitsLo | bitsLo, leaf.bitsHi | bitsHi);
    this.#wrote(level, first, count);
    return start + (first + count) * rung.size;
  }

  #demandEmpty(words: Uint32Array, at: number, count: number, iova: number, size: number): void {
    for (let i = 0; i < count; i++) {
      this.#readAt(words, at + 2 * i);
      if (!this.#absent.holds(this.#lo, this.#hi))
        throw new LinuxError("EEXIST", `iova ${hex(iova + i * size)} is mapped already; unmap it first`);
    }
  }

  #fill(
    words: Uint32Array,
    at: number,
    count: number,
    { size, copies }: Leaf,
    pa: number,
    bitsLo: number,
    bitsHi: number,
  ): void {
    // The address is a multiple of the size: its low word comes round to exactly zero.
    const step = size < WORD32 ? size : 0;
    const carry = size < WORD32 ? 1 : size / WORD32;
    let lo = (pa % WORD32) | 0;
    let hi = (pa / WORD32) | 0;
    for (let i = 0; i < count; i += copies) {
      for (let copy = 0; copy < copies; copy++)
        this.#writeAt(words, at + 2 * (i + copy), lo | bitsLo, hi | bitsHi);
      lo = (lo + step) | 0;
      if (lo === 0) hi += carry;
    }
  }

  /** As `#descend`, but makes the tables that are not there. Stops above `target` only at a leaf. */
  #descendMaking(iova: number, target: number): number {
    for (;;) {
      const level = this.#descend(iova, target);
      if (level === target) return level;
      const index = this.#read(level, iova);
      if (!this.#absent.holds(this.#lo, this.#hi)) return level;
      const pa = this.#newTable(level - 1);
      const { tableLo, tableHi } = this.#rungs[level]!;
      const words = this.#memory.words[this.#bank[level]!]!;
      const at = this.#word[level]! + 2 * index;
      this.#writeAt(words, at, (pa % WORD32) | tableLo, (pa / WORD32) | 0 | tableHi);
      this.#wrote(level, index, 1);
    }
  }

  #newTable(level: number): number {
    const { frames, entries } = this.#rungs[level]!;
    const pa = this.#memory.allocate(frames);
    if (pa < 0)
      throw new LinuxError(
        "ENOMEM",
        `no ${frames} free frames of host memory for a table of ${this.format.name}`,
      );
    if (this.#emptyLo | this.#emptyHi) {
      const words = this.#memory.words[Math.floor(pa / WORD32)]!;
      const at = (pa % WORD32) / 4;
      for (let i = 0; i < entries; i++) this.#writeAt(words, at + 2 * i, this.#emptyLo, this.#emptyHi);
    }
    this.#tables += 1;
    this.onTableWrite?.(pa, frames * FRAME);
    return pa;
  }

  /**
   * Takes back what a failed map wrote: whole leaves up to `end`, and the tables made on the way. No unit can have walked
   * them, as nothing else ran, so they go back at once.
   */
  #undo(iova: number, end: number): void {
    // `end` is where the map failed: it is below the end of the range.
    const kept = this.#retired.length;
    if (end > iova) this.#clear(iova, end, false);
    this.#prune(this.#descend(end, 0), 0, 0, false);
    for (const { pa, frames } of this.#retired.splice(kept)) this.#memory.free(pa, frames);
  }

  // --- Unmapping

  #clear(iova: number, end: number, gather: boolean): number {
    let at = iova;
    let bytes = 0;
    while (at < end) {
      const level = this.#descend(at, 0);
      const rung = this.#rungs[level]!;
      const start = this.#start[level]!;
      const words = this.#memory.words[this.#bank[level]!]!;
      const base = this.#word[level]!;
      const first = Math.floor((at - start) / rung.size);
      const stop = Math.min(rung.entries, Math.ceil((end - start) / rung.size));
      let cleared = 0;
      let i = first;
      while (i < stop) {
        this.#readAt(words, base + 2 * i);
        if (this.#absent.holds(this.#lo, this.#hi)) {
          i += 1;
          continue;
        }
        const leaf = rung.leafOf(this.#lo, this.#hi);
        if (!leaf) break;
        const head = i - (i % leaf.copies);
        const from = start + head * rung.size;
        i = head + leaf.copies;
        if (from < iova || from + leaf.size > end) continue;
        for (let copy = head; copy < i; copy++) this.#emptyAt(words, base + 2 * copy);
        bytes += leaf.size;
        cleared += leaf.copies;
      }
      at = start + i * rung.size;
      if (cleared === 0) continue;
      this.#wrote(level, first, i - first);
      if (gather) this.gather.add(start + first * rung.size, at);
      this.#prune(level, first, i, gather);
    }
    return bytes;
  }

  /** Empties an entry, the word that decides first. */
  #emptyAt(words: Uint32Array, at: number): void {
    words[at + this.#low] = this.#swapped ? swap(this.#emptyLo) : this.#emptyLo;
    words[at + this.#high] = this.#swapped ? swap(this.#emptyHi) : this.#emptyHi;
  }

  /** Whether the cursor's table of the level holds nothing, where [from, to) is known to hold nothing. */
  #isEmpty(level: number, from: number, to: number): boolean {
    const words = this.#memory.words[this.#bank[level]!]!;
    const base = this.#word[level]!;
    const { entries } = this.#rungs[level]!;
    const full = (index: number) => {
      this.#readAt(words, base + 2 * index);
      return !this.#absent.holds(this.#lo, this.#hi);
    };
    // The neighbours first: a table that is emptied in order is answered at once.
    if (from > 0 && full(from - 1)) return false;
    for (let i = to; i < entries; i++) if (full(i)) return false;
    for (let i = from - 2; i >= 0; i--) if (full(i)) return false;
    return true;
  }

  /** Unlinks the cursor's table of the level when it is empty, given that [from, to) is, and then those above it. */
  #prune(level: number, from: number, to: number, gather: boolean): void {
    while (level < this.#top && this.#isEmpty(level, from, to)) {
      const start = this.#start[level]!;
      this.#retired.push({ pa: this.#address(level), frames: this.#rungs[level]!.frames });
      this.#tables -= 1;
      if (gather) this.gather.tables = true;
      this.#start[level] = Number.NaN;
      level = this.#descend(start, level + 1);
      from = this.#read(level, start);
      to = from + 1;
      this.#emptyAt(this.#memory.words[this.#bank[level]!]!, this.#word[level]! + 2 * from);
      this.#wrote(level, from, 1);
    }
  }

  // --- Visiting

  /** Every leaf that touches [iova, end), in order, with a function that writes it anew. */
  #eachLeaf(
    iova: number,
    end: number,
    visit: (
      leaf: Leaf,
      from: number,
      lo: number,
      hi: number,
      rewrite: (lo: number, hi: number) => void,
    ) => void,
  ): void {
    let at = iova;
    while (at < end) {
      const level = this.#descend(at, 0);
      const rung = this.#rungs[level]!;
      const index = this.#read(level, at);
      const [lo, hi] = [this.#lo, this.#hi];
      const leaf = this.#absent.holds(lo, hi) ? undefined : rung.leafOf(lo, hi);
      const head = leaf ? index - (index % leaf.copies) : index;
      const count = leaf?.copies ?? 1;
      const from = this.#start[level]! + head * rung.size;
      if (leaf) {
        const words = this.#memory.words[this.#bank[level]!]!;
        const first = this.#word[level]! + 2 * head;
        visit(leaf, from, lo, hi, (newLo, newHi) => {
          for (let copy = 0; copy < count; copy++) this.#writeAt(words, first + 2 * copy, newLo, newHi);
          this.#wrote(level, head, count);
          this.gather.add(from, from + leaf.size);
        });
      }
      at = from + count * rung.size;
    }
  }

  #freeBelow(level: number, pa: number): void {
    const { entries, frames, addressLo, addressHi } = this.#rungs[level]!;
    const words = this.#memory.words[Math.floor(pa / WORD32)]!;
    const base = (pa % WORD32) / 4;
    for (let i = 0; level > 0 && i < entries; i++) {
      this.#readAt(words, base + 2 * i);
      const [lo, hi] = [this.#lo, this.#hi];
      if (this.#absent.holds(lo, hi) || this.#rungs[level]!.leafOf(lo, hi)) continue;
      this.#freeBelow(level - 1, ((hi & addressHi) >>> 0) * WORD32 + ((lo & addressLo) >>> 0));
    }
    this.#memory.free(pa, frames);
    this.#tables -= 1;
  }
}
