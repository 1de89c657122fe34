/** Numbers given out lowest first and given back, as the kernel's id allocators do. */
export class Ids {
  readonly #first: number;
  readonly #limit: number;
  readonly #used = new Set<number>();
  /** Every number below it is in use. */
  #lowest: number;

  /** Numbers from `first` up to, not including, `limit`. */
  constructor(first = 0, limit = 2 ** 31) {
    this.#first = first;
    this.#limit = limit;
    this.#lowest = first;
  }

  get inUse(): number {
    return this.#used.size;
  }

  /** The lowest free number, or -1 when all are taken. */
  take(): number {
    while (this.#used.has(this.#lowest)) this.#lowest += 1;
    if (this.#lowest >= this.#limit) return -1;
    this.#used.add(this.#lowest);
    return this.#lowest;
  }

  /** Takes this number; false when it is taken or outside the range. */
  claim(id: number): boolean {
    if (id < this.#first || id >= this.#limit || this.#used.has(id)) return false;
    this.#used.add(id);
    return true;
  }

  give(id: number): void {
    if (this.#used.delete(id) && id < this.#lowest) this.#lowest = id;
  }
}
