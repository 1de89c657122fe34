/**
 * An ordered map of disjoint intervals over the whole 64-bit address space: IOVA areas, mappings, reserved ranges.
 *
 * A 64-bit key is a page number (a double, exact: 52 bits) and an offset within the page (12 bits), both ends
 * inclusive, so that [0, 2^64 - 1] can be said. Entries stand in blocks of at most 64 in typed arrays; a directory
 * holds the first key of each block. Find, insert and remove cost two binary searches and a move within a block; the
 * cost of one area stays flat to a million of them.
 *
 * The map has one cursor. `seek`, `first` and `next` place it, and the entry under it is read from `startPage`,
 * `startOffset`, `lastPage`, `lastOffset` and `value`.
 */
const BLOCK = 64;
const PAGE = 4096;

class Block<V> {
  count = 0;
  readonly startPage = new Float64Array(BLOCK);
  readonly lastPage = new Float64Array(BLOCK);
  readonly startOffset = new Uint16Array(BLOCK);
  readonly lastOffset = new Uint16Array(BLOCK);
  readonly values: V[] = [];

  /** Moves entries [from, count) by one to make room, or to close a gap before `from`. */
  shift(from: number, by: 1 | -1): void {
    this.startPage.copyWithin(from + by, from, this.count);
    this.lastPage.copyWithin(from + by, from, this.count);
    this.startOffset.copyWithin(from + by, from, this.count);
    this.lastOffset.copyWithin(from + by, from, this.count);
    this.count += by;
  }

  /** Cuts the upper half off into a block of its own. */
  split(): Block<V> {
    const upper = new Block<V>();
    const half = this.count >> 1;
    upper.startPage.set(this.startPage.subarray(half, this.count));
    upper.lastPage.set(this.lastPage.subarray(half, this.count));
    upper.startOffset.set(this.startOffset.subarray(half, this.count));
    upper.lastOffset.set(this.lastOffset.subarray(half, this.count));
    upper.values.push(...this.values.splice(half));
    upper.count = this.count - half;
    this.count = half;
    return upper;
  }
}

export class IntervalMap<V> {
  readonly #blocks: Block<V>[] = [];
  /** Last key of each block: where a search for an address ends. */
  #lastPages = new Float64Array(16);
  #lastOffsets = new Uint16Array(16);
  /** Widest hole before an interval of each block, in bytes; NaN: not known. */
  #widest = new Float64Array(16).fill(Number.NaN);
  #size = 0;
  #block = 0;
  #index = 0;

  get size(): number {
    return this.#size;
  }
  get startPage(): number {
    return this.#blocks[this.#block]!.startPage[this.#index]!;
  }
  get startOffset(): number {
    return this.#blocks[this.#block]!.startOffset[this.#index]!;
  }
  get lastPage(): number {
    return this.#blocks[this.#block]!.lastPage[this.#index]!;
  }
  get lastOffset(): number {
    return this.#blocks[this.#block]!.lastOffset[this.#index]!;
  }
  get value(): V {
    return this.#blocks[this.#block]!.values[this.#index]!;
  }

  /** Places the cursor on the first interval that ends at or after the address: the one that holds it, or the next one. */
  seek(page: number, offset: number): boolean {
    let low = 0;
    let high = this.#blocks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const last = this.#lastPages[middle]!;
      if (last < page || (last === page && this.#lastOffsets[middle]! < offset)) low = middle + 1;
      else high = middle;
    }
    this.#block = low;
    this.#index = 0;
    if (low === this.#blocks.length) return false;
    const block = this.#blocks[low]!;
    low = 0;
    high = block.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const last = block.lastPage[middle]!;
      if (last < page || (last === page && block.lastOffset[middle]! < offset)) low = middle + 1;
      else high = middle;
    }
    this.#index = low;
    return true;
  }

  /** The interval that holds the address is under the cursor. */
  find(page: number, offset: number): boolean {
    if (!this.seek(page, offset)) return false;
    const start = this.startPage;
    return start < page || (start === page && this.startOffset <= offset);
  }

  first(): boolean {
    this.#block = 0;
    this.#index = 0;
    return this.#size > 0;
  }

  /** Moves the cursor to the next interval in order. */
  next(): boolean {
    this.#index += 1;
    if (this.#block < this.#blocks.length && this.#index < this.#blocks[this.#block]!.count) return true;
    this.#block += 1;
    this.#index = 0;
    return this.#block < this.#blocks.length;
  }

  /** Moves the cursor to the interval before; false at the first one. Also from past the end. */
  previous(): boolean {
    if (this.#index > 0) {
      this.#index -= 1;
      return true;
    }
    if (this.#block === 0) return false;
    this.#block -= 1;
    this.#index = this.#blocks[this.#block]!.count - 1;
    return true;
  }

  /** Whether any interval touches [start, last]; if so, the first such is under the cursor. */
  overlaps(startPage: number, startOffset: number, lastPage: number, lastOffset: number): boolean {
    if (!this.seek(startPage, startOffset)) return false;
    const start = this.startPage;
    return start < lastPage || (start === lastPage && this.startOffset <= lastOffset);
  }

  /**
   * Moves the cursor from the interval under it to the first later one with a hole of about `bytes` or more before it;
   * false: only what follows the last interval is left. A hole counts also when it is shorter by less than rounding.
   */
  nextHole(bytes: number): boolean {
    const least = bytes * (1 - 2 ** -50);
    while (this.next()) {
      if (this.#index === 0) {
        while (this.#block < this.#blocks.length && this.#widestOf(this.#block) < least) this.#block += 1;
        if (this.#block === this.#blocks.length) return false;
      }
      if (this.#holeBefore(this.#block, this.#index) >= least) return true;
    }
    return false;
  }

  /** Adds an interval; false, and nothing changes, when it overlaps another. The cursor is on it afterwards. */
  insert(startPage: number, startOffset: number, lastPage: number, lastOffset: number, value: V): boolean {
    if (this.overlaps(startPage, startOffset, lastPage, lastOffset)) return false;
    if (this.#block === this.#blocks.length) this.#placeAtEnd();
    let block = this.#blocks[this.#block]!;
    if (block.count === BLOCK) {
      this.#insertBlock(this.#block + 1, block.split());
      this.#noteLast(this.#block);
      this.#noteLast(this.#block + 1);
      this.#forgetHoles();
      if (this.#index > block.count) {
        this.#index -= block.count;
        this.#block += 1;
        block = this.#blocks[this.#block]!;
      }
    }
    const at = this.#index;
    block.shift(at, 1);
    block.startPage[at] = startPage;
    block.startOffset[at] = startOffset;
    block.lastPage[at] = lastPage;
    block.lastOffset[at] = lastOffset;
    block.values.splice(at, 0, value);
    if (at === block.count - 1) this.#noteLast(this.#block);
    this.#forgetHoles();
    this.#size += 1;
    return true;
  }

  /** Removes the interval under the cursor; the cursor is on the next one, if the answer is true. */
  remove(): boolean {
    const block = this.#blocks[this.#block]!;
    const at = this.#index;
    block.shift(at + 1, -1);
    block.values.splice(at, 1);
    this.#forgetHoles();
    this.#size -= 1;
    if (block.count === 0) {
      this.#removeBlock(this.#block);
      this.#index = 0;
      return this.#block < this.#blocks.length;
    }
    if (at < block.count) return true;
    this.#noteLast(this.#block);
    this.#block += 1;
    this.#index = 0;
    return this.#block < this.#blocks.length;
  }

  /** Gives the interval under the cursor another value. */
  replace(value: V): void {
    this.#blocks[this.#block]!.values[this.#index] = value;
  }

  clear(): void {
    this.#blocks.length = 0;
    this.#size = 0;
    this.#block = 0;
    this.#index = 0;
  }

  /** Holes before the intervals of this block and before the first of the next one may have changed. */
  #forgetHoles(): void {
    this.#widest[this.#block] = Number.NaN;
    this.#widest[this.#block + 1] = Number.NaN;
  }

  #widestOf(at: number): number {
    const known = this.#widest[at]!;
    if (!Number.isNaN(known)) return known;
    let widest = 0;
    for (let index = 0; index < this.#blocks[at]!.count; index += 1)
      widest = Math.max(widest, this.#holeBefore(at, index));
    this.#widest[at] = widest;
    return widest;
  }

  /** Bytes between an interval and the one before it, or address 0. */
  #holeBefore(at: number, index: number): number {
    const block = this.#blocks[at]!;
    const bytes = block.startPage[index]! * PAGE + block.startOffset[index]!;
    if (index === 0 && at === 0) return bytes;
    const before = index === 0 ? this.#blocks[at - 1]! : block;
    const last = (index === 0 ? before.count : index) - 1;
    const pages = block.startPage[index]! - before.lastPage[last]!;
    return pages * PAGE + (block.startOffset[index]! - before.lastOffset[last]!) - 1;
  }

  #placeAtEnd(): void {
    if (this.#blocks.length === 0) this.#insertBlock(0, new Block<V>());
    this.#block = this.#blocks.length - 1;
    this.#index = this.#blocks[this.#block]!.count;
  }

  #insertBlock(at: number, block: Block<V>): void {
    const count = this.#blocks.length;
    if (count === this.#lastPages.length) {
      const pages = new Float64Array(count * 2);
      const offsets = new Uint16Array(count * 2);
      pages.set(this.#lastPages);
      offsets.set(this.#lastOffsets);
      this.#lastPages = pages;
      this.#lastOffsets = offsets;
      const widest = new Float64Array(count * 2);
      widest.set(this.#widest);
      this.#widest = widest;
    }
    this.#blocks.splice(at, 0, block);
    this.#lastPages.copyWithin(at + 1, at, count);
    this.#lastOffsets.copyWithin(at + 1, at, count);
    this.#widest.copyWithin(at + 1, at, count);
    this.#widest[at] = Number.NaN;
  }

  #removeBlock(at: number): void {
    this.#blocks.splice(at, 1);
    this.#lastPages.copyWithin(at, at + 1);
    this.#lastOffsets.copyWithin(at, at + 1);
    this.#widest.copyWithin(at, at + 1);
  }

  #noteLast(at: number): void {
    const block = this.#blocks[at]!;
    this.#lastPages[at] = block.lastPage[block.count - 1]!;
    this.#lastOffsets[at] = block.lastOffset[block.count - 1]!;
  }
}
