/**
 * Runs of pages with the same users, by page and disjoint: what of some memory is pinned, and how often. They lie in
 * blocks of limited length, so that many parts that come and go one by one cost no more each than few do.
 */
import type { PinnedRun } from "./pinned-run.ts";

/** Pages [first, last] with the same users. */
export interface Segment {
  first: number;
  last: number;
  users: number;
  readonly run: PinnedRun;
}

/** A block that grows beyond this is split. */
const MOST = 256;

export class Segments {
  /** None is empty. */
  readonly #blocks: Segment[][] = [];
  /** The cursor: a block, and a segment of it. */
  #block = 0;
  #at = 0;
  /** Places that were moved so far to make room or close gaps: what changes cost. */
  moved = 0;

  /** The segment under the cursor; undefined behind the last one. */
  get current(): Segment | undefined {
    return this.#blocks[this.#block]?.[this.#at];
  }

  *[Symbol.iterator](): Iterator<Segment> {
    for (const block of this.#blocks) yield* block;
  }

  /** Places the cursor on the first segment that ends at or after the page. */
  seek(page: number): Segment | undefined {
    const blocks = this.#blocks;
    let low = 0;
    let high = blocks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (blocks[middle]!.at(-1)!.last < page) low = middle + 1;
      else high = middle;
    }
    this.#block = low;
    const block = blocks[low];
    this.#at = block ? firstFrom(block, page) : 0;
    return this.current;
  }

  /** Moves the cursor to the next segment. */
  next(): Segment | undefined {
    this.#at += 1;
    this.#settle();
    return this.current;
  }

  /** Puts a segment where it belongs; the cursor is on it. */
  insert(segment: Segment): void {
    this.seek(segment.first);
    if (this.#block === this.#blocks.length) {
      if (this.#block === 0) this.#blocks.push([]);
      else this.#block -= 1;
      this.#at = this.#blocks[this.#block]!.length;
    }
    const block = this.#blocks[this.#block]!;
    this.moved += block.length - this.#at;
    block.splice(this.#at, 0, segment);
    if (block.length <= MOST) return;
    const upper = block.splice(MOST / 2);
    this.moved += upper.length + this.#blocks.length - this.#block;
    this.#blocks.splice(this.#block + 1, 0, upper);
    this.seek(segment.first);
  }

  /** Takes the segment under the cursor away; the cursor is on the next one. */
  remove(): Segment | undefined {
    const block = this.#blocks[this.#block]!;
    this.moved += block.length - this.#at;
    block.splice(this.#at, 1);
    if (block.length === 0) {
      this.moved += this.#blocks.length - this.#block;
      this.#blocks.splice(this.#block, 1);
      this.#at = 0;
    } else this.#settle();
    return this.current;
  }

  /** Behind the last segment of a block it goes on with the next block. */
  #settle(): void {
    const block = this.#blocks[this.#block];
    if (!block || this.#at < block.length) return;
    this.#block += 1;
    this.#at = 0;
  }
}

/** Index of the first segment that ends at or after the page. */
const firstFrom = (block: readonly Segment[], page: number): number => {
  let low = 0;
  let high = block.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (block[middle]!.last < page) low = middle + 1;
    else high = middle;
  }
  return low;
};
