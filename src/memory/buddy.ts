/**
 * A binary buddy allocator of frames: runs of 2^n frames, aligned to their size. It hands out numbers and touches no
 * memory. Single frames go through a small stash, so that taking and returning one costs no splitting and merging.
 */

/** The largest run is a bank: 2^20 frames of 4 KiB. */
export const MAX_LG2 = 20;

const STASH = 256;
const TAKEN = 0x80;

/** lg2 of the smallest power of two that is at least `count` (count ≥ 1). */
export const ceilLg2 = (count: number): number => 32 - Math.clz32(count - 1);

export class Buddy {
  readonly #first: number;
  readonly #end: number;
  /** Frame number of index 0; a multiple of the largest run, so that alignment is that of the frame number. */
  readonly #base: number;
  /** Free blocks of an order: a doubly linked list of index + 1; 0 is nobody. */
  readonly #heads = new Int32Array(MAX_LG2 + 1);
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  /** Of a block's first frame: order + 1 when free, `TAKEN | order` when handed out, else 0. */
  readonly #mark: Uint8Array;
  readonly #stash = new Int32Array(STASH);
  #stashed = 0;

  /** Frames [first, first + count) are free. */
  constructor(first: number, count: number) {
    this.#first = first;
    this.#end = first + count;
    const largest = 2 ** Math.min(MAX_LG2, ceilLg2(Math.max(count, 1)));
    this.#base = Math.floor(first / largest) * largest;
    const indices = this.#end - this.#base;
    this.#next = new Int32Array(indices + 1);
    this.#previous = new Int32Array(indices + 1);
    this.#mark = new Uint8Array(indices);
    // Highest first: a list is last in, first out, so that the lowest addresses are handed out first.
    let end = this.#end;
    while (end > first) {
      let lg2 = 0;
      while (lg2 < MAX_LG2 && end % 2 ** (lg2 + 1) === 0 && end - 2 ** (lg2 + 1) >= first) lg2 += 1;
      end -= 2 ** lg2;
      this.#push(end - this.#base, lg2);
    }
  }

  contains(frame: number): boolean {
    return frame >= this.#first && frame < this.#end;
  }

  /** The first frame of a free run of 2^lg2 frames, or -1. */
  allocate(lg2: number): number {
    if (lg2 === 0 && this.#stashed > 0) {
      this.#stashed -= 1;
      const index = this.#stash[this.#stashed]!;
      this.#mark[index] = TAKEN;
      return this.#base + index;
    }
    const index = this.#take(lg2);
    if (index >= 0) return this.#base + index;
    if (this.#stashed === 0) return -1;
    this.#unstash();
    const again = this.#take(lg2);
    return again < 0 ? -1 : this.#base + again;
  }

  /** Takes back a run; throws when it is not one that was handed out. */
  free(frame: number, lg2: number): void {
    const index = frame - this.#base;
    if (this.#mark[index] !== (TAKEN | lg2))
      throw new Error(`frames ${frame} to ${frame + 2 ** lg2 - 1} are not a run that was allocated`);
    if (lg2 === 0 && this.#stashed < STASH) {
      this.#mark[index] = 0;
      this.#stash[this.#stashed] = index;
      this.#stashed += 1;
      return;
    }
    this.#merge(index, lg2);
  }

  #take(lg2: number): number {
    let order = lg2;
    while (order <= MAX_LG2 && this.#heads[order] === 0) order += 1;
    if (order > MAX_LG2) return -1;
    const index = this.#heads[order]! - 1;
    this.#remove(index, order);
    while (order > lg2) {
      order -= 1;
      this.#push(index + (1 << order), order);
    }
    this.#mark[index] = TAKEN | lg2;
    return index;
  }

  #merge(index: number, lg2: number): void {
    this.#mark[index] = 0;
    while (lg2 < MAX_LG2) {
      const buddy = index ^ (1 << lg2);
      if (this.#mark[buddy] !== lg2 + 1) break;
      this.#remove(buddy, lg2);
      index &= ~(1 << lg2);
      lg2 += 1;
    }
    this.#push(index, lg2);
  }

  #unstash(): void {
    while (this.#stashed > 0) {
      this.#stashed -= 1;
      this.#merge(this.#stash[this.#stashed]!, 0);
    }
  }

  #push(index: number, lg2: number): void {
    const head = this.#heads[lg2]!;
    this.#next[index + 1] = head;
    this.#previous[index + 1] = 0;
    if (head !== 0) this.#previous[head] = index + 1;
    this.#heads[lg2] = index + 1;
    this.#mark[index] = lg2 + 1;
  }

  #remove(index: number, lg2: number): void {
    const next = this.#next[index + 1]!;
    const previous = this.#previous[index + 1]!;
    if (previous === 0) this.#heads[lg2] = next;
    else this.#next[previous] = next;
    if (next !== 0) this.#previous[next] = previous;
    this.#mark[index] = 0;
  }
}
