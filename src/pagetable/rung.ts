/** A format's levels in the form the mapper works with: 32-bit words instead of BigInt, made once for a format. */
import {
  type EntryTest,
  highWord,
  type LeafKind,
  lowWord,
  type PageTableFormat,
  tableBytes,
} from "./format.ts";

/** Swaps the bytes of a word. */
export const swap = (x: number): number =>
  (x << 24) | ((x & 0xff00) << 8) | ((x >>> 8) & 0xff00) | (x >>> 24);

/** A test on the two words of an entry, signed or not; of words as they are in memory when made so. */
export class WordTest {
  readonly maskLo: number;
  readonly maskHi: number;
  readonly valueLo: number;
  readonly valueHi: number;

  constructor({ mask, value }: EntryTest, swapped = false) {
    const word = (half: number) => (swapped ? swap(half) : half | 0);
    this.maskLo = word(lowWord(mask));
    this.maskHi = word(highWord(mask));
    this.valueLo = word(lowWord(value));
    this.valueHi = word(highWord(value));
  }

  holds(lo: number, hi: number): boolean {
    return (lo & this.maskLo) === this.valueLo && (hi & this.maskHi) === this.valueHi;
  }
}

/** A leaf size, at the level that has it. */
export class Leaf {
  readonly level: number;
  readonly size: number;
  /** The size in frames, less one: the bits that must be zero in a frame number to start a leaf (up to 2^43 bytes). */
  readonly alignment: number;
  /** Entries one leaf takes. */
  readonly copies: number;
  readonly test: WordTest;
  /** The same on words as they are in memory. */
  readonly stored: WordTest;
  readonly addressLo: number;
  readonly addressHi: number;
  readonly bitsLo: number;
  readonly bitsHi: number;
  /** Words of the bit that tells dirty from clean, and what it is when clean; all zero without. */
  readonly dirtyLo: number;
  readonly dirtyHi: number;
  readonly cleanLo: number;
  readonly cleanHi: number;
  /** The bit that tells that the entry was used. */
  readonly accessedLo: number;
  readonly accessedHi: number;
  /** What `protect` leaves as it is. */
  readonly keptLo: number;
  readonly keptHi: number;

  constructor(kind: LeafKind, level: number, { levels, bigEndian }: PageTableFormat) {
    const clean = kind.dirtyCleared ?? 0n;
    const dirty = kind.dirty ?? clean;
    // A dirty bit that grants is part of the protection: the page is clean afterwards.
    const granting = kind.denials.some(({ mask }) => mask & dirty);
    const accessed = kind.accessed ?? 0n;
    const kept = kind.address | kind.test.mask | kind.bits | (granting ? 0n : dirty) | accessed;
    this.level = level;
    this.size = 2 ** kind.lg2;
    this.alignment = this.size / 4096 - 1;
    this.copies = 1 << (kind.lg2 - levels[level]!.shift);
    this.test = new WordTest(kind.test);
    this.stored = new WordTest(kind.test, bigEndian);
    this.addressLo = lowWord(kind.address);
    this.addressHi = highWord(kind.address);
    this.bitsLo = lowWord(kind.bits) | 0;
    this.bitsHi = highWord(kind.bits) | 0;
    this.dirtyLo = lowWord(dirty);
    this.dirtyHi = highWord(dirty);
    this.cleanLo = lowWord(clean);
    this.cleanHi = highWord(clean);
    this.accessedLo = lowWord(accessed);
    this.accessedHi = highWord(accessed);
    this.keptLo = lowWord(kept);
    this.keptHi = highWord(kept);
  }

  /** The address in an entry of this kind. */
  address(lo: number, hi: number): number {
    return ((hi & this.addressHi) >>> 0) * 2 ** 32 + ((lo & this.addressLo) >>> 0);
  }
}

/** One level. */
export class Rung {
  readonly entries: number;
  /** Bytes one entry covers, and the whole table. */
  readonly size: number;
  readonly span: number;
  /** Frames of a table. */
  readonly frames: number;
  readonly leaves: readonly Leaf[];
  /** What an entry that points to a table holds apart from the address. */
  readonly tableLo: number;
  readonly tableHi: number;
  readonly #addressLo: number;
  readonly #addressHi: number;

  constructor(format: PageTableFormat, index: number) {
    const level = format.levels[index]!;
    this.entries = 1 << level.bits;
    this.size = 2 ** level.shift;
    this.span = 2 ** (level.shift + level.bits);
    this.frames = tableBytes(level) / 4096;
    this.leaves = level.leaves.map((kind) => new Leaf(kind, index, format));
    const table = level.tables.find(({ to }) => to === index - 1);
    this.tableLo = lowWord(table?.bits ?? 0n) | 0;
    this.tableHi = highWord(table?.bits ?? 0n) | 0;
    this.#addressLo = lowWord(table?.address ?? 0n);
    this.#addressHi = highWord(table?.address ?? 0n);
  }

  /** The table an entry points to. */
  tableAddress(lo: number, hi: number): number {
    return ((hi & this.#addressHi) >>> 0) * 2 ** 32 + ((lo & this.#addressLo) >>> 0);
  }

  /** The leaf an entry is; undefined: it points to a table. The entry is not absent. */
  leafOf(lo: number, hi: number): Leaf | undefined {
    const { leaves } = this;
    for (let i = 0; i < leaves.length; i++) if (leaves[i]!.test.holds(lo, hi)) return leaves[i];
    return undefined;
  }
}

const made = new WeakMap<PageTableFormat, readonly Rung[]>();

/** The levels of a format; all its mappers have the same. */
export const rungsOf = (format: PageTableFormat): readonly Rung[] => {
  let rungs = made.get(format);
  if (!rungs) {
    rungs = format.levels.map((_, index) => new Rung(format, index));
    made.set(format, rungs);
  }
  return rungs;
};
