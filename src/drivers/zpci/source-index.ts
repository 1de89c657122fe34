/**
 * Which items came of a frame: doubly linked lists in two arrays of numbers, one list for each frame that has any. Items are
 * numbers from 0 on; memory is in proportion to the highest of them. To add, to remove and to find takes one step each.
 */
const NONE = -1;

export class SourceIndex {
  /** The item that was added last, by frame. */
  readonly #heads = new Map<number, number>();
  #next = new Int32Array(256);
  #previous = new Int32Array(256);

  /** Frames that items came of. */
  get frames(): number {
    return this.#heads.size;
  }

  /** It must not be in it. */
  add(item: number, frame: number): void {
    if (item >= this.#next.length) this.#grow(item);
    const head = this.first(frame);
    this.#next[item] = head;
    this.#previous[item] = NONE;
    if (head !== NONE) this.#previous[head] = item;
    this.#heads.set(frame, item);
  }

  /** It must have been added with this frame. */
  remove(item: number, frame: number): void {
    const [next, previous] = [this.#next[item]!, this.#previous[item]!];
    if (next !== NONE) this.#previous[next] = previous;
    if (previous !== NONE) this.#next[previous] = next;
    else if (next !== NONE) this.#heads.set(frame, next);
    else this.#heads.delete(frame);
  }

  /** Any that came of the frame, or -1. */
  first(frame: number): number {
    return this.#heads.get(frame) ?? NONE;
  }

  /**
   * Takes every item that came of frames [first, end) away by `take`, which must remove it. Tells how many frames were looked
   * at: those of the range, or all that there are when these are fewer.
   */
  sweep(first: number, end: number, take: (item: number) => void): number {
    let looked = 0;
    if (end - first <= this.frames)
      for (let frame = first; frame < end; frame++, looked++) this.#takeAll(frame, take);
    else
      for (const frame of this.#heads.keys()) {
        looked += 1;
        if (frame >= first && frame < end) this.#takeAll(frame, take);
      }
    return looked;
  }

  #takeAll(frame: number, take: (item: number) => void): void {
    for (let item = this.first(frame); item !== NONE; item = this.first(frame)) take(item);
  }

  #grow(item: number): void {
    const length = 2 ** Math.ceil(Math.log2(item + 1));
    const [next, previous] = [new Int32Array(length), new Int32Array(length)];
    next.set(this.#next);
    previous.set(this.#previous);
    this.#next = next;
    this.#previous = previous;
  }
}
