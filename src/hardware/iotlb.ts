/**
 * The translation cache of an IOMMU: (context, page) → physical page and what is denied there, in one typed array with
 * linear probing over a short window. A context stands for an address space (domain id and PASID) and is a small
 * integer. Every unit's front end uses it; what tags an address space and what an invalidation reaches is theirs.
 *
 * A context has a tag that is part of the key. Invalidating an address space gives it a new tag, invalidating all
 * makes every tag of before too old: both without touching an entry. Pages of several sizes share the table; a lookup
 * probes once for each size that was ever entered. Replacement takes a dead entry of the window, else the next victim
 * in turn. Leaves larger than 1 GiB are entered as the 1 GiB that was asked for.
 *
 * `compileIotlb` makes one whose lookups are compiled for it alone: its arrays and its size are constants there, which
 * saves a third of a hit. That is for one or two tables that are looked up in one place; among more, the method that all share is
 * the faster one. `unitIotlb` gives a unit the better of the two.
 */

/** Entries a key may lie in, from its hash on. */
const WINDOW = 8;
/** Words of an entry, and their lg2. */
const STRIDE_LG2 = 3;
const STRIDE = 1 << STRIDE_LG2;
/** Words of an entry. The key: page address with the lg2 of its size in the low bits, its upper half, the tag. */
const KEY_LO = 0;
const KEY_HI = 1;
const TAG = 2;
const DENIED = 3;
const CONTEXT = 6;
/** Of an entry as doubles: the physical address. */
const PA = 2;
/** An entry that was taken out: never a tag, never empty, so that a probe goes on behind it. */
const DEAD = -1;
const LARGEST_LG2 = 30;
const PAGE_LG2 = 12;
const PAGE_MASK = -1 << PAGE_LG2;
/** Bits of the key that hold the lg2 of the size. */
const LG2_MASK = 0x3f;
/** Of a table's state: the oldest tag that is still good; bit n, that a page of 2^(12+n) bytes was entered since everything was invalidated. */
const FLOOR = 0;
const SIZES = 1;
/** A range of more pages than this is invalidated as the whole address space. */
const PAGEWISE_LIMIT = 512;

/** Odd multipliers of the hash. */
const HASH = 0x9e37_79b1;
const HASH_HI = 0x85eb_ca6b;
const HASH_TAG = 0xc2b2_ae35;

/** Index of the first word of the window of a key. */
const hash = (shift: number, tag: number, keyLo: number, keyHi: number): number => {
  const mixed = (keyLo >>> PAGE_LG2) ^ Math.imul(keyHi, HASH_HI) ^ Math.imul(tag, HASH_TAG);
  return (Math.imul(mixed, HASH) >>> shift) << STRIDE_LG2;
};

/** Index of the first word of the entry with a key, or -1. */
const find = (words: Int32Array, shift: number, tag: number, keyLo: number, keyHi: number): number => {
  let at = hash(shift, tag, keyLo, keyHi);
  const end = at + WINDOW * STRIDE;
  do {
    const found = words[at + TAG]!;
    if (found === tag && words[at + KEY_LO] === keyLo && words[at + KEY_HI] === keyHi) return at;
    if (found === 0) return -1;
    at += STRIDE;
  } while (at < end);
  return -1;
};

export interface IotlbOptions {
  /** Entries, a power of two. */
  readonly capacity?: number;
  /** Contexts are 0 … contexts − 1. */
  readonly contexts: number;
  /** Tags are 1 … tagLimit − 1; when they are used up the table is cleared. */
  readonly tagLimit?: number;
}

/** What a table keeps, in arrays. */
class Tables {
  /** The entries. */
  readonly words: Int32Array;
  /** The same entries as doubles. */
  readonly pages: Float64Array;
  /** By context. */
  readonly tags: Int32Array;
  /** `FLOOR` and `SIZES`. */
  readonly state = new Int32Array(new ArrayBuffer(8));
  readonly shift: number;

  constructor({ capacity = 4096, contexts }: IotlbOptions) {
    if (capacity < 2 || (capacity & (capacity - 1)) !== 0)
      throw new RangeError(`capacity ${capacity} is not a power of two`);
    this.words = new Int32Array((capacity + WINDOW - 1) * STRIDE);
    this.pages = new Float64Array(this.words.buffer);
    this.tags = new Int32Array(contexts);
    this.state[FLOOR] = 1;
    this.shift = Math.clz32(capacity) + 1;
  }
}

export class Iotlb {
  /** Changes with every invalidation; what was copied out of the table is good while it stays. */
  stamp = 0;
  readonly #words: Int32Array;
  readonly #pages: Float64Array;
  readonly #tags: Int32Array;
  readonly #state: Int32Array;
  readonly #shift: number;
  readonly #tagLimit: number;
  /** The next tag to give. */
  #next = 1;
  #victim = 0;

  constructor(options: IotlbOptions, tables = new Tables(options)) {
    this.#words = tables.words;
    this.#pages = tables.pages;
    this.#tags = tables.tags;
    this.#state = tables.state;
    this.#shift = tables.shift;
    this.#tagLimit = options.tagLimit ?? 0x7fff_ffff;
  }

  /** The entry for an address, or -1; valid until the next `enter`. */
  lookup(context: number, lo: number, hi: number): number {
    const tag = this.#tags[context]!;
    if (!(tag >= this.#state[FLOOR]!)) return -1;
    const at = find(this.#words, this.#shift, tag, (lo & PAGE_MASK) | PAGE_LG2, hi | 0);
    return at >= 0 ? at : this.search(tag, lo, hi | 0);
  }

  /** Physical address of an entry's page, the lg2 of its size, and the `Access` bits it refuses, as it was entered. */
  page(entry: number): number {
    return this.#pages[(entry >> 1) + PA]!;
  }
  lg2(entry: number): number {
    return this.#words[entry + KEY_LO]! & LG2_MASK;
  }
  denied(entry: number): number {
    return this.#words[entry + DENIED]!;
  }

  /** The entry of a page larger than 4 KiB, or -1. */
  protected search(tag: number, lo: number, keyHi: number): number {
    for (let sizes = this.#state[SIZES]! & ~1; sizes !== 0; sizes &= sizes - 1) {
      const lg2 = PAGE_LG2 + 31 - Math.clz32(sizes & -sizes);
      const at = find(this.#words, this.#shift, tag, (lo & (-1 << lg2)) | lg2, keyHi);
      if (at >= 0) return at;
    }
    return -1;
  }

  /** Enters the page of 2^lg2 bytes around an address; `paLo` and `paHi` are where the address itself goes. */
  enter(
    context: number,
    lo: number,
    hi: number,
    lg2: number,
    paLo: number,
    paHi: number,
    denied: number,
  ): void {
    const size = Math.min(lg2, LARGEST_LG2);
    const tag = this.#tag(context);
    const keyLo = (lo & (-1 << size)) | size;
    const keyHi = hi | 0;
    const words = this.#words;
    let at = find(this.#words, this.#shift, tag, keyLo, keyHi);
    if (at < 0) at = this.#place(hash(this.#shift, tag, keyLo, keyHi));
    words[at + KEY_LO] = keyLo;
    words[at + KEY_HI] = keyHi;
    words[at + TAG] = tag;
    words[at + DENIED] = denied;
    this.#pages[(at >> 1) + PA] = paHi * 0x1_0000_0000 + ((paLo & (-1 << size)) >>> 0);
    words[at + CONTEXT] = context;
    this.#state[SIZES]! |= 1 << (size - PAGE_LG2);
  }

  invalidateAll(): void {
    this.stamp += 1;
    this.#state[FLOOR] = this.#next;
    this.#state[SIZES] = 0;
  }

  invalidateContext(context: number): void {
    this.stamp += 1;
    this.#tags[context] = 0;
  }

  /** Drops whatever overlaps the 2^lg2 bytes around an address; may drop more. */
  invalidateRange(context: number, lo: number, hi: number, lg2: number): void {
    if (lg2 > 31 || 2 ** (lg2 - PAGE_LG2) > PAGEWISE_LIMIT) {
      this.invalidateContext(context);
      return;
    }
    this.stamp += 1;
    const tag = this.#tags[context]!;
    if (tag < this.#state[FLOOR]!) return;
    for (let sizes = this.#state[SIZES]!; sizes !== 0; sizes &= sizes - 1) {
      const size = PAGE_LG2 + 31 - Math.clz32(sizes & -sizes);
      const base = lo & (-1 << Math.max(size, lg2));
      const count = size < lg2 ? 1 << (lg2 - size) : 1;
      for (let i = 0; i < count; i++) {
        const at = find(this.#words, this.#shift, tag, (base + (i << size)) | size, hi | 0);
        if (at >= 0) this.#words[at + TAG] = DEAD;
      }
    }
  }

  /** Where a new entry goes in the window that begins here. */
  #place(start: number): number {
    const words = this.#words;
    for (let at = start; at < start + WINDOW * STRIDE; at += STRIDE) {
      const tag = words[at + TAG]!;
      if (tag < this.#state[FLOOR]! || tag !== this.#tags[words[at + CONTEXT]!]) return at;
    }
    this.#victim = (this.#victim + 1) % WINDOW;
    return start + this.#victim * STRIDE;
  }

  #tag(context: number): number {
    const tag = this.#tags[context]!;
    if (tag >= this.#state[FLOOR]!) return tag;
    if (this.#next >= this.#tagLimit) this.#clear();
    return (this.#tags[context] = this.#next++);
  }

  /** The tags are used up: begin again. */
  #clear(): void {
    this.stamp += 1;
    this.#words.fill(0);
    this.#tags.fill(0);
    this.#state[FLOOR] = 1;
    this.#next = 1;
    this.#state[SIZES] = 0;
  }
}

/** The text of what a hit takes, with a table's arrays in scope and everything else a literal: as `find` does it. */
const compiledSource = ({ shift }: Tables, serial: number): string => `
// IOTLB ${serial}: code of its own, which knows its arrays
return class extends Iotlb {
  lookup(context, lo, hi) {
    const tag = tags[context];
    if (!(tag >= state[${FLOOR}])) return -1;
    const keyLo = (lo & ${PAGE_MASK}) | ${PAGE_LG2}, keyHi = hi | 0;
    const mixed = (lo >>> ${PAGE_LG2}) ^ Math.imul(keyHi, ${HASH_HI}) ^ Math.imul(tag, ${HASH_TAG});
    let at = (Math.imul(mixed, ${HASH}) >>> ${shift}) << ${STRIDE_LG2};
    const end = at + ${WINDOW * STRIDE};
    do {
      const found = words[at + ${TAG}];
      if (found === tag && words[at + ${KEY_LO}] === keyLo && words[at + ${KEY_HI}] === keyHi) return at;
      if (found === 0) break;
      at += ${STRIDE};
    } while (at < end);
    return state[${SIZES}] <= 1 ? -1 : this.search(tag, lo, keyHi);
  }
  page(entry) {
    return pages[(entry >> 1) + ${PA}];
  }
  lg2(entry) {
    return words[entry + ${KEY_LO}] & ${LG2_MASK};
  }
  denied(entry) {
    return words[entry + ${DENIED}];
  }
};`;

let compiled = 0;

/** A table with lookups compiled for it. */
export const compileIotlb = (options: IotlbOptions): Iotlb => {
  const tables = new Tables(options);
  const { words, pages, tags, state } = tables;
  // The same text would be the same code for all: it is told apart by its number.
  const source = compiledSource(tables, compiled++);
  const define = new Function("Iotlb", "words", "pages", "tags", "state", `"use strict";${source}`);
  const Compiled = define(Iotlb, words, pages, tags, state) as typeof Iotlb;
  return new Compiled(options, tables);
};

/** So many units of a process have lookups of their own: a machine has one or two, and what comes after them are other machines. */
const OWN_LOOKUPS = 2;
let units = 0;

/** The table of a unit. */
export const unitIotlb = (options: IotlbOptions): Iotlb =>
  units++ < OWN_LOOKUPS ? compileIotlb(options) : new Iotlb(options);
