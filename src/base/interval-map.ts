/**
 * An ordered map of disjoint intervals over the whole 64-bit address space: IOVA areas, mappings, reserved ranges.
 *
 * A 64-bit key is a page number (a double, exact: 52 bits) and an offset within the page (12 bits), both ends
 * inclusive, so that [0, 2^64 - 1] can be said. Entries stand in blocks of at most 64 in typed arrays, blocks in shelves
 * of at most 128; a directory holds the last key of each block and of each shelf, and the widest hole within it. Find, insert and
 * remove cost three binary searches and moves within a block, the next hole of a length three short scans; the cost of one
 * area stays flat to a million of them.
 *
 * The map has one cursor. `seek`, `first` and `next` place it, and the entry under it is read from `startPage`,
 * `startOffset`, `lastPage`, `lastOffset` and `value`.
 */
const BLOCK = 64;
const SHELF = 128;
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

/** What is known of a row of parts, blocks or shelves: the last key of each, and the widest hole before an interval of it. */
class Directory {
  count = 0;
  #lastPage: Float64Array;
  #lastOffset: Uint16Array;
  /** Bytes; NaN: not known. */
  #widest: Float64Array;

  constructor(capacity: number) {
    this.#lastPage = new Float64Array(capacity);
    this.#lastOffset = new Uint16Array(capacity);
    this.#widest = new Float64Array(capacity);
  }

  /** The first part that ends at or after the address. */
  seek(page: number, offset: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const last = this.#lastPage[middle]!;
      if (last < page || (last === page && this.#lastOffset[middle]! < offset)) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  note(at: number, page: number, offset: number): void {
    this.#lastPage[at] = page;
    this.#lastOffset[at] = offset;
  }

  /** The last key of a part is that of another directory's part. */
  noteFrom(at: number, other: Directory, part: number): void {
    this.note(at, other.#lastPage[part]!, other.#lastOffset[part]!);
  }

  widest(at: number): number {
    return this.#widest[at]!;
  }

  noteWidest(at: number, bytes: number): void {
    this.#widest[at] = bytes;
  }

  /** Makes room for a part of which nothing is known. */
  insert(at: number): void {
    if (this.count === this.#lastPage.length) this.#grow();
    this.#lastPage.copyWithin(at + 1, at, this.count);
    this.#lastOffset.copyWithin(at + 1, at, this.count);
    this.#widest.copyWithin(at + 1, at, this.count);
    this.#widest[at] = Number.NaN;
    this.count += 1;
  }

  remove(at: number): void {
    this.#lastPage.copyWithin(at, at + 1, this.count);
    this.#lastOffset.copyWithin(at, at + 1, this.count);
    this.#widest.copyWithin(at, at + 1, this.count);
    this.count -= 1;
  }

  /** Moves the parts from `half` on to an empty directory. */
  splitTo(upper: Directory, half: number): void {
    upper.#lastPage.set(this.#lastPage.subarray(half, this.count));
    upper.#lastOffset.set(this.#lastOffset.subarray(half, this.count));
    upper.#widest.set(this.#widest.subarray(half, this.count));
    upper.count = this.count - half;
    this.count = half;
  }

  #grow(): void {
    const [pages, offsets, widest] = [this.#lastPage, this.#lastOffset, this.#widest];
    this.#lastPage = new Float64Array(this.count * 2);
    this.#lastOffset = new Uint16Array(this.count * 2);
    this.#widest = new Float64Array(this.count * 2);
    this.#lastPage.set(pages);
    this.#lastOffset.set(offsets);
    this.#widest.set(widest);
  }
}

class Shelf<V> {
  readonly blocks: Block<V>[] = [];
  readonly directory = new Directory(SHELF);

  insert(at: number, block: Block<V>): void {
    this.blocks.splice(at, 0, block);
    this.directory.insert(at);
    this.note(at);
  }

  remove(at: number): void {
    this.blocks.splice(at, 1);
    this.directory.remove(at);
  }

  /** The last key of a block has changed. */
  note(at: number): void {
    const block = this.blocks[at]!;
    const last = block.count - 1;
    if (last >= 0) this.directory.note(at, block.lastPage[last]!, block.lastOffset[last]!);
  }

  /** Cuts the upper half off into a shelf of its own. */
  split(): Shelf<V> {
    const upper = new Shelf<V>();
    const half = this.blocks.length >> 1;
    upper.blocks.push(...this.blocks.splice(half));
    this.directory.splitTo(upper.directory, half);
    return upper;
  }
}

export class IntervalMap<V> {
  readonly #shelves: Shelf<V>[] = [];
  #directory = new Directory(16);
  #size = 0;
  /** Where the cursor is; past the end, the shelf is one that does not exist. */
  #shelf = 0;
  #block = 0;
  #index = 0;
  #looked = 0;
  /** What went last, for the next time: a map that is filled and emptied again and again makes nothing. */
  #idleShelf: Shelf<V> | undefined;
  #idleBlock: Block<V> | undefined;

  get size(): number {
    return this.#size;
  }
  get startPage(): number {
    return this.#current.startPage[this.#index]!;
  }
  get startOffset(): number {
    return this.#current.startOffset[this.#index]!;
  }
  get lastPage(): number {
    return this.#current.lastPage[this.#index]!;
  }
  get lastOffset(): number {
    return this.#current.lastOffset[this.#index]!;
  }
  get value(): V {
    return this.#current.values[this.#index]!;
  }
  /** Shelves, blocks and intervals that searches for holes have looked at so far: what they cost. */
  get looked(): number {
    return this.#looked;
  }

  get #current(): Block<V> {
    return this.#shelves[this.#shelf]!.blocks[this.#block]!;
  }

  /** Places the cursor on the first interval that ends at or after the address: the one that holds it, or the next one. */
  seek(page: number, offset: number): boolean {
    this.#shelf = this.#directory.seek(page, offset);
    this.#block = 0;
    this.#index = 0;
    const shelf = this.#shelves[this.#shelf];
    if (!shelf) return false;
    this.#block = shelf.directory.seek(page, offset);
    const block = shelf.blocks[this.#block]!;
    let low = 0;
    let high = block.count;
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
    const block = this.#current;
    const start = block.startPage[this.#index]!;
    return start < page || (start === page && block.startOffset[this.#index]! <= offset);
  }

  first(): boolean {
    this.#shelf = 0;
    this.#block = 0;
    this.#index = 0;
    return this.#size > 0;
  }

  /** Moves the cursor to the next interval in order. */
  next(): boolean {
    if (this.#shelf === this.#shelves.length) return false;
    this.#index += 1;
    return this.#settle();
  }

  /** Moves the cursor to the interval before; false at the first one. Also from past the end. */
  previous(): boolean {
    if (this.#index > 0) {
      this.#index -= 1;
      return true;
    }
    if (this.#block === 0) {
      if (this.#shelf === 0) return false;
      this.#shelf -= 1;
      this.#block = this.#shelves[this.#shelf]!.blocks.length;
    }
    this.#block -= 1;
    this.#index = this.#current.count - 1;
    return true;
  }

  /** Whether any interval touches [start, last]; if so, the first such is under the cursor. */
  overlaps(startPage: number, startOffset: number, lastPage: number, lastOffset: number): boolean {
    if (!this.seek(startPage, startOffset)) return false;
    const block = this.#current;
    const start = block.startPage[this.#index]!;
    return start < lastPage || (start === lastPage && block.startOffset[this.#index]! <= lastOffset);
  }

  /**
   * Moves the cursor from the interval under it to the first later one with a hole of about `bytes` or more before it;
   * false: only what follows the last interval is left. A hole counts also when it is shorter by less than rounding.
   */
  nextHole(bytes: number): boolean {
    const least = bytes * (1 - 2 ** -50);
    while (this.next()) {
      if (this.#index === 0 && !this.#skipTo(least)) return false;
      this.#looked += 1;
      if (this.#holeBefore(this.#index) >= least) return true;
    }
    return false;
  }

  /** Adds an interval; false, and nothing changes, when it overlaps another. The cursor is on it afterwards. */
  insert(startPage: number, startOffset: number, lastPage: number, lastOffset: number, value: V): boolean {
    if (this.overlaps(startPage, startOffset, lastPage, lastOffset)) return false;
    if (this.#shelf === this.#shelves.length) this.#placeAtEnd();
    if (this.#current.count === BLOCK) this.#makeRoom();
    const block = this.#current;
    const at = this.#index;
    block.shift(at, 1);
    block.startPage[at] = startPage;
    block.startOffset[at] = startOffset;
    block.lastPage[at] = lastPage;
    block.lastOffset[at] = lastOffset;
    block.values.splice(at, 0, value);
    if (at === block.count - 1) this.#noteLast();
    this.#forgetHoles();
    this.#size += 1;
    return true;
  }

  /** Removes the interval under the cursor; the cursor is on the next one, if the answer is true. */
  remove(): boolean {
    const block = this.#current;
    const at = this.#index;
    block.shift(at + 1, -1);
    block.values.splice(at, 1);
    this.#forgetHoles();
    this.#size -= 1;
    if (block.count === 0) this.#removeBlock();
    else if (at === block.count) this.#noteLast();
    return this.#settle();
  }

  /** Gives the interval under the cursor another value. */
  replace(value: V): void {
    this.#current.values[this.#index] = value;
  }

  clear(): void {
    this.#shelves.length = 0;
    this.#directory = new Directory(16);
    this.#size = 0;
    this.first();
  }

  /** A cursor behind the last interval of a block, or behind the last block of a shelf, goes on to the next one. */
  #settle(): boolean {
    const shelf = this.#shelves[this.#shelf];
    if (!shelf) return false;
    const block = shelf.blocks[this.#block];
    if (block) {
      if (this.#index < block.count) return true;
      this.#block += 1;
    }
    this.#index = 0;
    if (this.#block < shelf.blocks.length) return true;
    this.#shelf += 1;
    this.#block = 0;
    return this.#shelf < this.#shelves.length;
  }

  /** From the beginning of a block: to the first block with a hole so wide. */
  #skipTo(least: number): boolean {
    for (; this.#shelf < this.#shelves.length; this.#shelf += 1) {
      this.#looked += 1;
      const { blocks } = this.#shelves[this.#shelf]!;
      const wide = this.#block > 0 || this.#widestOfShelf() >= least;
      for (; wide && this.#block < blocks.length; this.#block += 1) {
        this.#looked += 1;
        if (this.#widestOfBlock() >= least) return true;
      }
      this.#block = 0;
    }
    return false;
  }

  /** Holes before the intervals of this block and before the first of the next one may have changed. */
  #forgetHoles(): void {
    const { directory, blocks } = this.#shelves[this.#shelf]!;
    directory.noteWidest(this.#block, Number.NaN);
    this.#directory.noteWidest(this.#shelf, Number.NaN);
    if (this.#block + 1 < blocks.length) directory.noteWidest(this.#block + 1, Number.NaN);
    else if (this.#shelf + 1 < this.#shelves.length) {
      this.#shelves[this.#shelf + 1]!.directory.noteWidest(0, Number.NaN);
      this.#directory.noteWidest(this.#shelf + 1, Number.NaN);
    }
  }

  /** Of the shelf under the cursor, which is at its beginning. */
  #widestOfShelf(): number {
    const known = this.#directory.widest(this.#shelf);
    if (!Number.isNaN(known)) return known;
    const count = this.#shelves[this.#shelf]!.blocks.length;
    let widest = 0;
    for (this.#block = 0; this.#block < count; this.#block += 1)
      widest = Math.max(widest, this.#widestOfBlock());
    this.#block = 0;
    this.#directory.noteWidest(this.#shelf, widest);
    return widest;
  }

  #widestOfBlock(): number {
    const { directory } = this.#shelves[this.#shelf]!;
    const known = directory.widest(this.#block);
    if (!Number.isNaN(known)) return known;
    const { count } = this.#current;
    let widest = 0;
    for (let index = 0; index < count; index += 1) widest = Math.max(widest, this.#holeBefore(index));
    this.#looked += count;
    directory.noteWidest(this.#block, widest);
    return widest;
  }

  /** Bytes between an interval of the block under the cursor and the one before it, or address 0. */
  #holeBefore(index: number): number {
    const block = this.#current;
    const before = index > 0 ? block : this.#blockBefore();
    if (!before) return block.startPage[0]! * PAGE + block.startOffset[0]!;
    const last = (index > 0 ? index : before.count) - 1;
    const pages = block.startPage[index]! - before.lastPage[last]!;
    return pages * PAGE + (block.startOffset[index]! - before.lastOffset[last]!) - 1;
  }

  #blockBefore(): Block<V> | undefined {
    return this.#block > 0
      ? this.#shelves[this.#shelf]!.blocks[this.#block - 1]
      : this.#shelves[this.#shelf - 1]?.blocks.at(-1);
  }

  /** The cursor goes behind the last interval of the last block. */
  #placeAtEnd(): void {
    if (this.#shelves.length === 0) {
      this.#insertShelf(0, this.#idleShelf ?? new Shelf<V>());
      this.#shelves[0]!.insert(0, this.#newBlock());
      this.#idleShelf = undefined;
    }
    this.#shelf = this.#shelves.length - 1;
    this.#block = this.#shelves[this.#shelf]!.blocks.length - 1;
    this.#index = this.#current.count;
  }

  /** The block under the cursor is full: it is split, and its shelf too when that is full. Behind the last one, a new one begins. */
  #makeRoom(): void {
    if (this.#shelves[this.#shelf]!.blocks.length === SHELF) this.#splitShelf();
    const shelf = this.#shelves[this.#shelf]!;
    const block = this.#current;
    const upper = this.#index === BLOCK ? this.#newBlock() : block.split();
    shelf.note(this.#block);
    shelf.insert(this.#block + 1, upper);
    this.#forgetHoles();
    this.#directory.noteFrom(this.#shelf, shelf.directory, shelf.blocks.length - 1);
    if (this.#index <= block.count && upper.count > 0) return;
    this.#index -= block.count;
    this.#block += 1;
  }

  #splitShelf(): void {
    const lower = this.#shelves[this.#shelf]!;
    this.#insertShelf(this.#shelf + 1, lower.split());
    this.#directory.noteFrom(this.#shelf, lower.directory, lower.blocks.length - 1);
    this.#directory.noteWidest(this.#shelf, Number.NaN);
    if (this.#block < lower.blocks.length) return;
    this.#block -= lower.blocks.length;
    this.#shelf += 1;
  }

  #insertShelf(at: number, shelf: Shelf<V>): void {
    this.#shelves.splice(at, 0, shelf);
    this.#directory.insert(at);
    if (shelf.blocks.length > 0) this.#directory.noteFrom(at, shelf.directory, shelf.blocks.length - 1);
  }

  /** The block under the cursor is empty. */
  #removeBlock(): void {
    const shelf = this.#shelves[this.#shelf]!;
    this.#idleBlock = this.#current;
    shelf.remove(this.#block);
    this.#index = 0;
    const { length } = shelf.blocks;
    if (length > 0) {
      this.#directory.noteFrom(this.#shelf, shelf.directory, length - 1);
      return;
    }
    this.#shelves.splice(this.#shelf, 1);
    this.#directory.remove(this.#shelf);
    this.#idleShelf = shelf;
    this.#block = 0;
  }

  #newBlock(): Block<V> {
    const block = this.#idleBlock ?? new Block<V>();
    this.#idleBlock = undefined;
    return block;
  }

  /** The last interval of the block under the cursor is another one. */
  #noteLast(): void {
    const shelf = this.#shelves[this.#shelf]!;
    shelf.note(this.#block);
    if (this.#block === shelf.blocks.length - 1)
      this.#directory.noteFrom(this.#shelf, shelf.directory, this.#block);
  }
}
