/**
 * The mapper: one algorithm that keeps the page tables of any declared format. It owns the tables under one root, takes
 * the largest leaves that fit, and works in runs: one descent, then as many entries as one table takes.
 *
 * Two promises to whoever drives a unit. A call that fails has changed nothing. And what is unlinked is not given
 * back: freed tables wait until `release`, which the owner calls after the units have forgotten what `gather` says.
 *
 * Addresses are numbers of bytes, multiples of a page and therefore exact over 64 bits; ends are exclusive.
 */
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { Cursor } from "./cursor.ts";
import { highWord, lowWord, mappedEnd, type PageTableFormat } from "./format.ts";
import { Gather } from "./gather.ts";
import type { Leaf } from "./rung.ts";

const FRAME = 4096;
const WORD32 = 2 ** 32;
const hex = (value: number): string => `0x${value.toString(16)}`;
const isMultiple = (value: number, of: number): boolean => Math.floor(value / of) * of === value;

/** Tables were written: for units that do not snoop them. */
export type TableWrite = (pa: number, bytes: number) => void;

/** Sees a leaf by its first address and the words of its entry; `rewrite` gives it others. */
type LeafVisit = (
  leaf: Leaf,
  from: number,
  lo: number,
  hi: number,
  rewrite: (lo: number, hi: number) => void,
) => void;

/** The words of a leaf entry that say a protection. */
interface LeafBits {
  readonly lo: number;
  readonly hi: number;
}

export class Mapper {
  readonly format: PageTableFormat;
  /** Physical address of the root table. */
  readonly root: number;
  /** What the units must forget before `release`. */
  readonly gather = new Gather();
  /** Told after each write of tables. */
  onTableWrite: TableWrite | undefined;

  readonly #memory: HostMemory;
  readonly #cursor: Cursor;
  /** Every leaf size, largest first. */
  readonly #leaves: readonly Leaf[];
  readonly #page: number;
  readonly #inputEnd: number;
  readonly #outputEnd: number;
  readonly #retired: { readonly pa: number; readonly frames: number }[] = [];
  readonly #protections = new Map<number, LeafBits>();
  /** Entries in use of each table, by the number of its first frame. */
  readonly #used = new Map<number, number>();

  /** Makes an empty root table. Throws ENOMEM. */
  constructor(memory: HostMemory, format: PageTableFormat) {
    this.format = format;
    this.#memory = memory;
    this.#cursor = new Cursor(memory, format);
    this.#leaves = this.#cursor.rungs.flatMap(({ leaves }) => leaves).sort((a, b) => b.size - a.size);
    this.#page = this.#leaves[this.#leaves.length - 1]!.size;
    this.#inputEnd = mappedEnd(format);
    this.#outputEnd = 2 ** format.outputBits;
    this.root = this.#newTable(this.#cursor.top, 0);
  }

  /** Tables in use, the root included. */
  get tables(): number {
    return this.#used.size;
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
      while (at < end) at = this.#mapRun(at, pa + (at - iova), end, bits);
    } catch (error) {
      this.#undo(iova, at);
      throw error;
    }
  }

  /**
   * Unmaps the leaves that lie within the range and returns their bytes. Tables that have become empty are unlinked. A
   * leaf that reaches beyond the range stays. Throws EINVAL and ERANGE as `map`.
   */
  unmap(iova: number, length: number): number {
    this.#checkRange(iova, length);
    return this.#clear(iova, iova + length, true);
  }

  /** The physical address behind a byte, or -1. */
  physical(iova: number): number {
    if (!(iova >= 0 && iova < this.#inputEnd)) return -1;
    const cursor = this.#cursor;
    const level = cursor.descend(iova, 0);
    const index = cursor.seek(level, iova);
    if (cursor.absent(level)) return -1;
    const rung = cursor.rungs[level]!;
    const leaf = rung.leafOf(cursor.lo, cursor.hi)!;
    const from = cursor.start(level) + (index - (index % leaf.copies)) * rung.size;
    return leaf.address(cursor.lo, cursor.hi) + (iova - from);
  }

  /**
   * Gives the leaves that lie within the range another protection, and returns their bytes. What else the entries say
   * stays. Throws as `map` for the range and for a protection the format cannot say.
   */
  protect(iova: number, length: number, protection: number): number {
    this.#checkRange(iova, length);
    const bits = this.#leafBits(protection);
    const end = iova + length;
    let bytes = 0;
    this.#eachLeaf(iova, end, (leaf, from, lo, hi, rewrite) => {
      if (from < iova || from + leaf.size > end) return;
      rewrite((lo & leaf.keptLo) | bits.lo, (hi & leaf.keptHi) | bits.hi);
      bytes += leaf.size;
    });
    return bytes;
  }

  /**
   * Tells every leaf that touches the range and was written to since its dirty bit was cleared; clears it when asked, and
   * then the units must forget what `gather` says before the next scan. Throws EOPNOTSUPP when the format has no dirty
   * bit, EINVAL and ERANGE as `map`.
   */
  scanDirty(
    iova: number,
    length: number,
    clear: boolean,
    visit: (iova: number, bytes: number) => void,
  ): void {
    this.#checkRange(iova, length);
    if (!this.#leaves.some(({ dirtyLo, dirtyHi }) => dirtyLo || dirtyHi))
      throw new LinuxError("EOPNOTSUPP", `${this.format.name} has no dirty bits, or they are not in use`);
    this.#eachLeaf(iova, iova + length, (leaf, from, lo, hi, rewrite) => {
      const { dirtyLo, dirtyHi, cleanLo, cleanHi } = leaf;
      if (!(((lo & dirtyLo) ^ cleanLo) | ((hi & dirtyHi) ^ cleanHi))) return;
      visit(from, leaf.size);
      if (clear) rewrite((lo & ~dirtyLo) | cleanLo, (hi & ~dirtyHi) | cleanHi);
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
    this.#clear(0, this.#inputEnd, false);
    this.release();
    this.#memory.free(this.root, this.#cursor.rungs[this.#cursor.top]!.frames);
    this.#used.clear();
  }

  // --- Arguments

  #checkRange(iova: number, length: number): void {
    if (!(length > 0 && isMultiple(iova, this.#page) && isMultiple(length, this.#page)))
      throw new LinuxError(
        "EINVAL",
        `iova ${hex(iova)} and length ${hex(length)} must be multiples of ${hex(this.#page)}, the length not zero`,
      );
    if (!(iova >= 0 && iova + length <= this.#inputEnd))
      throw new LinuxError(
        "ERANGE",
        `iova ${hex(iova)} + ${hex(length)} is beyond ${hex(this.#inputEnd)}, the end of ${this.format.name}`,
      );
  }

  #checkTarget(pa: number, length: number): void {
    if (!isMultiple(pa, this.#page))
      throw new LinuxError("EINVAL", `physical address ${hex(pa)} must be a multiple of ${hex(this.#page)}`);
    if (!(pa >= 0 && pa + length <= this.#outputEnd))
      throw new LinuxError(
        "ERANGE",
        `physical address ${hex(pa)} + ${hex(length)} is beyond ${hex(this.#outputEnd)}, the most an entry holds`,
      );
  }

  #leafBits(protection: number): LeafBits {
    const known = this.#protections.get(protection);
    if (known) return known;
    const bits = this.format.leafBits(protection);
    if (bits < 0n)
      throw new LinuxError("EINVAL", `${this.format.name} has no entry for protection ${hex(protection)}`);
    const words = { lo: lowWord(bits) | 0, hi: highWord(bits) | 0 };
    this.#protections.set(protection, words);
    return words;
  }

  // --- Mapping

  /** Index of the largest leaf that fits here. */
  #choose(iova: number, pa: number, bytes: number): number {
    const frames = (iova / FRAME) | 0 | ((pa / FRAME) | 0);
    const last = this.#leaves.length - 1;
    for (let choice = 0; choice < last; choice++) {
      const { size, alignment } = this.#leaves[choice]!;
      if (size <= bytes && (frames & alignment) === 0) return choice;
    }
    return last;
  }

  /** Maps as many leaves of one size as one table and the range can take; returns where the next run begins. */
  #mapRun(iova: number, pa: number, end: number, bits: LeafBits): number {
    const cursor = this.#cursor;
    const choice = this.#choose(iova, pa, end - iova);
    const leaf = this.#leaves[choice]!;
    const level = this.#descendMaking(iova, leaf.level);
    const rung = cursor.rungs[level]!;
    const start = cursor.start(level);
    const first = Math.floor((iova - start) / rung.size);
    // Within a table a larger leaf of the same level may fit from its next multiple on.
    const larger =
      choice > 0 && this.#leaves[choice - 1]!.level === level ? this.#leaves[choice - 1]!.copies : 0;
    const stop = larger ? first - (first % larger) + larger : rung.entries;
    const count = Math.min(stop - first, Math.floor((end - iova) / leaf.size) * leaf.copies);
    // A leaf above the wanted level is in the way, as is anything in the run.
    const met = level > leaf.level ? first : cursor.used(level, first, first + count);
    if (met >= 0)
      throw new LinuxError(
        "EEXIST",
        `iova ${hex(start + met * rung.size)} is mapped already: unmap it first`,
      );
    cursor.fill(level, first, count, leaf, pa, leaf.bitsLo | bits.lo, leaf.bitsHi | bits.hi);
    this.#count(level, count);
    this.#wrote(level, first, count);
    return start + (first + count) * rung.size;
  }

  /** Goes to the table at level `target`, making what tables are not there. Stops above it only at a leaf. */
  #descendMaking(iova: number, target: number): number {
    const cursor = this.#cursor;
    let level = cursor.descend(iova, target);
    while (level > target) {
      const index = cursor.seek(level, iova);
      if (!cursor.absent(level)) return level;
      const { tableLo, tableHi, size } = cursor.rungs[level]!;
      const pa = this.#newTable(level - 1, cursor.start(level) + index * size);
      cursor.write(level, index, pa | tableLo, (pa / WORD32) | tableHi);
      this.#count(level, 1);
      this.#wrote(level, index, 1);
      level -= 1;
    }
    return level;
  }

  /** Makes an empty table, not linked yet, and puts the cursor on it. */
  #newTable(level: number, start: number): number {
    const cursor = this.#cursor;
    const { frames, entries } = cursor.rungs[level]!;
    const pa = this.#memory.allocate(frames);
    if (pa < 0)
      throw new LinuxError(
        "ENOMEM",
        `host memory has no ${frames} free frames for a table of ${this.format.name}`,
      );
    cursor.place(level, start, pa);
    if (this.format.empty !== 0n) cursor.clear(level, 0, entries);
    this.#used.set(cursor.frame(level), 0);
    this.onTableWrite?.(pa, frames * FRAME);
    return pa;
  }

  /** Counts entries of the cursor's table of the level that came into use, or went; how many are in use now. */
  #count(level: number, more: number): number {
    const frame = this.#cursor.frame(level);
    const used = this.#used.get(frame)! + more;
    this.#used.set(frame, used);
    return used;
  }

  #wrote(level: number, index: number, count: number): void {
    this.onTableWrite?.(this.#cursor.address(level) + 8 * index, 8 * count);
  }

  /**
   * Takes back what a failed map wrote: its leaves up to `end`, where it failed, and the tables made on the way. No unit
   * can have walked them, as nothing else ran, so they go back at once.
   */
  #undo(iova: number, end: number): void {
    const before = this.#retired.length;
    this.#clear(iova, end, false);
    const level = this.#cursor.descend(end, 0);
    if (this.#count(level, 0) === 0) this.#unlink(level, false);
    for (const { pa, frames } of this.#retired.splice(before)) this.#memory.free(pa, frames);
  }

  // --- Unmapping

  /** Unmaps the leaves within [iova, end); returns their bytes. */
  #clear(iova: number, end: number, gather: boolean): number {
    let at = iova;
    let bytes = 0;
    while (at < end) {
      const level = this.#cursor.descend(at, 0);
      const start = this.#cursor.start(level);
      const { size, entries } = this.#cursor.rungs[level]!;
      const first = Math.floor((at - start) / size);
      const stop = Math.min(entries, Math.ceil((end - start) / size));
      const run = this.#clearRun(level, first, stop, iova, end);
      at = start + run.next * size;
      if (run.bytes === 0) continue;
      bytes += run.bytes;
      this.#wrote(level, first, run.next - first);
      if (gather) this.gather.add(start + first * size, at);
      if (this.#count(level, -run.bytes / size) === 0) this.#unlink(level, gather);
    }
    return bytes;
  }

  /** Unmaps in one table from entry `first` on, to `stop` or to an entry that points to a table. */
  #clearRun(
    level: number,
    first: number,
    stop: number,
    iova: number,
    end: number,
  ): { next: number; bytes: number } {
    const cursor = this.#cursor;
    const rung = cursor.rungs[level]!;
    const start = cursor.start(level);
    let bytes = 0;
    let next = first;
    while (next < stop) {
      cursor.read(level, next);
      if (cursor.absent(level)) {
        next += 1;
        continue;
      }
      const leaf = rung.leafOf(cursor.lo, cursor.hi);
      if (!leaf) break;
      const head = next - (next % leaf.copies);
      const from = start + head * rung.size;
      if (from < iova || from + leaf.size > end) {
        next = head + leaf.copies;
        continue;
      }
      // All of its kind that follow and lie within.
      const whole = Math.floor((end - from) / leaf.size) * leaf.copies;
      next = cursor.unlike(level, head, Math.min(rung.entries, head + whole), leaf);
      cursor.clear(level, head, next);
      bytes += (next - head) * rung.size;
    }
    return { next, bytes };
  }

  /** Unlinks the cursor's table of the level, which is empty, unless it is the root; and then those above that become empty. */
  #unlink(level: number, gather: boolean): void {
    const cursor = this.#cursor;
    for (let left = 0; left === 0 && level < cursor.top; left = this.#count(level, -1)) {
      const start = cursor.start(level);
      this.#retired.push({ pa: cursor.address(level), frames: cursor.rungs[level]!.frames });
      this.#used.delete(cursor.frame(level));
      if (gather) this.gather.tables = true;
      cursor.leave(level);
      level = cursor.descend(start, level + 1);
      const index = cursor.seek(level, start);
      cursor.clear(level, index, index + 1);
      this.#wrote(level, index, 1);
    }
  }

  // --- Visiting

  /** Every leaf that touches [iova, end), in order. */
  #eachLeaf(iova: number, end: number, visit: LeafVisit): void {
    const cursor = this.#cursor;
    let at = iova;
    while (at < end) {
      const level = cursor.descend(at, 0);
      const { size, leaves } = cursor.rungs[level]!;
      const index = cursor.seek(level, at);
      const leaf = cursor.absent(level)
        ? undefined
        : leaves.find(({ test }) => test.holds(cursor.lo, cursor.hi));
      const copies = leaf?.copies ?? 1;
      const head = index - (index % copies);
      const from = cursor.start(level) + head * size;
      if (leaf) {
        if (copies > 1) this.#gatherUse(level, head, leaf);
        visit(leaf, from, cursor.lo, cursor.hi, (lo, hi) => {
          for (let copy = head; copy < head + copies; copy++) cursor.write(level, copy, lo, hi);
          this.#wrote(level, head, copies);
          this.gather.add(from, from + leaf.size);
        });
      }
      at = from + copies * size;
    }
  }

  /** Reads the leaf's entries as one: used and written where one of them is. */
  #gatherUse(level: number, head: number, leaf: Leaf): void {
    const cursor = this.#cursor;
    let setLo = 0;
    let setHi = 0;
    let clearLo = 0;
    let clearHi = 0;
    for (let copy = head; copy < head + leaf.copies; copy++) {
      cursor.read(level, copy);
      const { lo, hi } = cursor;
      setLo |= lo;
      setHi |= hi;
      clearLo |= ~lo & leaf.cleanLo;
      clearHi |= ~hi & leaf.cleanHi;
    }
    const usedLo = (leaf.dirtyLo & ~leaf.cleanLo) | leaf.accessedLo;
    const usedHi = (leaf.dirtyHi & ~leaf.cleanHi) | leaf.accessedHi;
    cursor.lo = (cursor.lo & ~clearLo) | (setLo & usedLo);
    cursor.hi = (cursor.hi & ~clearHi) | (setHi & usedHi);
  }
}
