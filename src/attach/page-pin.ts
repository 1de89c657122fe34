/**
 * A pin as its holder sees it: extents of frames, given back in parts. It knows nothing of where the frames come from.
 */
import type { Pin } from "../kernel/call.ts";

/** Pages that lie together in host memory; `index` counts from their first page. */
export interface PinnedPages {
  /** Frame number of page `index`. */
  frame(index: number): number;
  /** Gives back pages [index, index + count). */
  release(index: number, count: number): void;
}

/** A part of a pin: `count` pages of `pages` from `first`. */
export interface Segment {
  readonly pages: PinnedPages;
  readonly first: number;
  readonly count: number;
}

export const releaseAll = (segments: readonly Segment[]): void => {
  for (const { pages, first, count } of segments) pages.release(first, count);
};

export class PagePin implements Pin {
  readonly va: number;
  readonly pages: number;
  readonly writable: boolean;
  readonly extents: Float64Array;
  readonly #segments: readonly Segment[];
  readonly #onRelease: (count: number) => void;
  /** 1: given back; only made when a part is. */
  #released: Uint8Array | undefined;
  #left: number;

  constructor(
    va: number,
    pages: number,
    writable: boolean,
    segments: readonly Segment[],
    onRelease: (count: number) => void,
  ) {
    this.va = va;
    this.pages = pages;
    this.writable = writable;
    this.#segments = segments;
    this.#onRelease = onRelease;
    this.#left = pages;
    const runs: number[] = [];
    for (const { pages: owner, first, count } of segments) {
      const frame = owner.frame(first);
      const last = runs.length - 2;
      if (last >= 0 && runs[last]! + runs[last + 1]! === frame) runs[last + 1]! += count;
      else runs.push(frame, count);
    }
    this.extents = Float64Array.from(runs);
  }

  unpin(first: number, count: number): void {
    const end = first + count;
    if (!(first >= 0 && count >= 0 && end <= this.pages) || count > this.#left)
      throw new RangeError(`pages ${first} to ${end - 1} of a pin of ${this.pages}, ${this.#left} left`);
    if (count === 0) return;
    if (count < this.pages) {
      this.#released ??= new Uint8Array(this.pages);
      if (this.#released.subarray(first, end).includes(1))
        throw new RangeError(`pages ${first} to ${end - 1} of a pin were given back before`);
      this.#released.fill(1, first, end);
    }
    this.#left -= count;
    let at = 0;
    for (const { pages, first: index, count: length } of this.#segments) {
      const from = Math.max(first, at);
      const to = Math.min(end, at + length);
      if (from < to) pages.release(index + (from - at), to - from);
      at += length;
    }
    this.#onRelease(count);
  }
}
