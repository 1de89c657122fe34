/** One pin of some memory, and where each page of it lies. */
import type { Pin } from "../kernel/call.ts";

export class PinnedRun {
  readonly pin: Pin;
  /** Page number of the pin's first page. */
  readonly base: number;
  /** First page of each extent, counted from `base`. */
  readonly #starts: Float64Array;

  constructor(pin: Pin, base: number) {
    this.pin = pin;
    this.base = base;
    const { extents } = pin;
    this.#starts = new Float64Array(extents.length / 2);
    for (let i = 0, at = 0; i < this.#starts.length; i += 1) {
      this.#starts[i] = at;
      at += extents[2 * i + 1]!;
    }
  }

  /** The frames from a page on: `visit(pfn, count)` for each contiguous run, at most `count` pages in all. */
  frames(page: number, count: number, visit: (pfn: number, count: number) => void): void {
    let at = page - this.base;
    const end = at + count;
    const starts = this.#starts;
    let low = 0;
    let high = starts.length;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (starts[middle]! <= at) low = middle;
      else high = middle;
    }
    const { extents } = this.pin;
    for (let i = low; at < end; i += 1) {
      const within = at - starts[i]!;
      const length = Math.min(extents[2 * i + 1]! - within, end - at);
      visit(extents[2 * i]! + within, length);
      at += length;
    }
  }
}
