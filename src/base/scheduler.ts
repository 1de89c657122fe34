/**
 * Work that happens after the present call has been answered: a device that was told by a doorbell, an unmap that
 * waits. The loop in `attach/` drains it between calls, a test drains it by hand. First come, first served.
 */
export interface Scheduler {
  defer(work: () => void): void;
}

export class WorkQueue implements Scheduler {
  #queue: (() => void)[] = [];
  #head = 0;

  defer(work: () => void): void {
    this.#queue.push(work);
  }

  get pending(): number {
    return this.#queue.length - this.#head;
  }

  /** Runs at most `budget` pieces of work, those that they defer included; returns how many ran. */
  run(budget = Number.POSITIVE_INFINITY): number {
    let ran = 0;
    while (ran < budget && this.#head < this.#queue.length) {
      const work = this.#queue[this.#head]!;
      this.#head += 1;
      if (this.#head === this.#queue.length) {
        this.#queue = [];
        this.#head = 0;
      }
      work();
      ran += 1;
    }
    return ran;
  }
}
