/**
 * The position of a mapper in its tables, and its hands: for each level the table used last, so that a run of pages is
 * one descent and a neighbour needs none; reading and writing entries there through the direct view of memory.
 *
 * An entry's deciding word (the less significant one, which holds what tells absent from present in every format that
 * has 32-bit halves to tear) is written last when the entry becomes valid and first when it is emptied, so that a walk at
 * the same time sees the old entry or the new one.
 */
import type { HostMemory } from "../memory/host-memory.ts";
import { absentAt, highWord, lowWord, type PageTableFormat } from "./format.ts";
import { type Leaf, type Rung, rungsOf, swap, WordTest } from "./rung.ts";

const WORD32 = 2 ** 32;

export class Cursor {
  readonly rungs: readonly Rung[];
  readonly top: number;
  /** The words of the entry read last, signed. */
  lo = 0;
  hi = 0;

  readonly #memory: HostMemory;
  /** For each level the first address the table translates; NaN: none. */
  readonly #start: Float64Array;
  readonly #bank: Int32Array;
  /** Index of the table's first word in its bank. */
  readonly #word: Int32Array;

  /** Of each level, the test for an absent entry. */
  readonly #absent: readonly WordTest[];
  readonly #swapped: boolean;
  /** Index, relative to an entry's first word, of its less and more significant word. */
  readonly #low: number;
  readonly #high: number;
  /** The same on words as they are in memory. */
  readonly #stored: readonly WordTest[];
  /** An empty entry, as words in memory. */
  readonly #lowEmpty: number;
  readonly #highEmpty: number;

  constructor(memory: HostMemory, format: PageTableFormat) {
    this.#memory = memory;
    this.rungs = rungsOf(format);
    this.top = format.levels.length - 1;
    this.#start = new Float64Array(this.rungs.length).fill(Number.NaN);
    this.#bank = new Int32Array(this.rungs.length);
    this.#word = new Int32Array(this.rungs.length);
    const tests = format.levels.map((_, index) => absentAt(format, index));
    this.#absent = tests.map((test) => new WordTest(test));
    this.#swapped = format.bigEndian;
    this.#low = format.bigEndian ? 1 : 0;
    this.#high = format.bigEndian ? 0 : 1;
    this.#stored = tests.map((test) => new WordTest(test, format.bigEndian));
    const stored = (word: number) => (format.bigEndian ? swap(word) : word | 0);
    this.#lowEmpty = stored(lowWord(format.empty));
    this.#highEmpty = stored(highWord(format.empty));
  }

  // --- Where

  /** Puts the cursor of a level on the table at `pa`, which translates addresses from `start` on. */
  place(level: number, start: number, pa: number): void {
    this.#start[level] = start;
    this.#bank[level] = pa / WORD32;
    this.#word[level] = (pa | 0) >>> 2;
  }

  /** Forgets the table of the level: it is a table no more. */
  leave(level: number): void {
    this.#start[level] = Number.NaN;
  }

  /** The first address the table of the level translates. */
  start(level: number): number {
    return this.#start[level]!;
  }

  /** Physical address of the table. */
  address(level: number): number {
    return this.#bank[level]! * WORD32 + this.#word[level]! * 4;
  }

  /** Number of the table's first frame. */
  frame(level: number): number {
    return this.#bank[level]! * 2 ** 20 + (this.#word[level]! >>> 10);
  }

  /**
   * Goes to the table that translates the address at level `target`, or to the lowest there is above it, and returns its
   * level. Begins where the cursor is, as far as that is on the way. The root must have been placed.
   */
  descend(iova: number, target: number): number {
    let level = target;
    while (!(iova - this.#start[level]! >= 0 && iova - this.#start[level]! < this.rungs[level]!.span))
      level++;
    while (level > target) {
      const rung = this.rungs[level]!;
      const index = this.seek(level, iova);
      if (this.absent(level) || rung.leafOf(this.lo, this.hi)) return level;
      level -= 1;
      this.place(level, this.#start[level + 1]! + index * rung.size, rung.tableAddress(this.lo, this.hi));
    }
    return level;
  }

  // --- Reading

  /** Reads the entry for the address in the table of the level; returns its index. */
  seek(level: number, iova: number): number {
    const index = Math.floor((iova - this.#start[level]!) / this.rungs[level]!.size);
    this.read(level, index);
    return index;
  }

  read(level: number, index: number): void {
    const words = this.#memory.words[this.#bank[level]!]!;
    const at = this.#word[level]! + 2 * index;
    const lo = words[at + this.#low]! | 0;
    const hi = words[at + this.#high]! | 0;
    this.lo = this.#swapped ? swap(lo) : lo;
    this.hi = this.#swapped ? swap(hi) : hi;
  }

  /** The entry read last, in a table of the level, maps nothing. */
  absent(level: number): boolean {
    return this.#absent[level]!.holds(this.lo, this.hi);
  }

  /** Index of the first entry in [from, to) that is not absent, or -1. */
  used(level: number, from: number, to: number): number {
    const words = this.#memory.words[this.#bank[level]!]!;
    const { maskLo, valueLo, maskHi, valueHi } = this.#stored[level]!;
    const low = this.#word[level]! + this.#low;
    const high = this.#word[level]! + this.#high;
    for (let i = from; i < to; i++) {
      if ((words[low + 2 * i]! & maskLo) !== valueLo) return i;
      if ((words[high + 2 * i]! & maskHi) !== valueHi) return i;
    }
    return -1;
  }

  /** Index of the first entry in [from, to) that is not such a leaf, or `to`. */
  unlike(level: number, from: number, to: number, leaf: Leaf): number {
    const words = this.#memory.words[this.#bank[level]!]!;
    const { maskLo, valueLo, maskHi, valueHi } = leaf.stored;
    const absent = this.#stored[level]!;
    const low = this.#word[level]! + this.#low;
    const high = this.#word[level]! + this.#high;
    for (let i = from; i < to; i++) {
      const lo = words[low + 2 * i]!;
      const hi = words[high + 2 * i]!;
      if ((lo & maskLo) !== valueLo || (hi & maskHi) !== valueHi || absent.holds(lo, hi)) return i;
    }
    return to;
  }

  // --- Writing

  write(level: number, index: number, lo: number, hi: number): void {
    const words = this.#memory.words[this.#bank[level]!]!;
    const at = this.#word[level]! + 2 * index;
    words[at + this.#high] = this.#swapped ? swap(hi) : hi;
    words[at + this.#low] = this.#swapped ? swap(lo) : lo;
  }

  /** Writes entries for consecutive pages from `pa`, a multiple of the leaf's size, with these other bits. */
  fill(
    level: number,
    first: number,
    count: number,
    leaf: Leaf,
    pa: number,
    bitsLo: number,
    bitsHi: number,
  ): void {
    const { copies, size } = leaf;
    // The low word of a multiple of the size comes round to exactly zero.
    const step = (size < WORD32 ? size : 0) | 0;
    const carry = (size < WORD32 ? 1 : size / WORD32) | 0;
    let lo = pa | 0;
    let hi = (pa / WORD32) | 0;
    const words = this.#memory.words[this.#bank[level]!]!;
    const low = this.#word[level]! + this.#low;
    const high = this.#word[level]! + this.#high;
    const swapped = this.#swapped;
    let copy = 0;
    for (let i = first; i < first + count; i++) {
      const entryLo = lo | bitsLo;
      const entryHi = hi | bitsHi;
      words[high + 2 * i] = swapped ? swap(entryHi) : entryHi;
      words[low + 2 * i] = swapped ? swap(entryLo) : entryLo;
      if (++copy < copies) continue;
      copy = 0;
      lo = (lo + step) | 0;
      if (lo === 0) hi = (hi + carry) | 0;
    }
  }

  /** Empties the entries [from, to). */
  clear(level: number, from: number, to: number): void {
    const words = this.#memory.words[this.#bank[level]!]!;
    const low = this.#word[level]! + this.#low;
    const high = this.#word[level]! + this.#high;
    const [lowEmpty, highEmpty] = [this.#lowEmpty, this.#highEmpty];
    for (let i = from; i < to; i++) {
      words[low + 2 * i] = lowEmpty;
      words[high + 2 * i] = highEmpty;
    }
  }
}
