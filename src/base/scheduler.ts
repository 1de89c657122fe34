/**
 * Work that happens after the present call has been answered: a device that was told by a doorbell, an unmap that
 * waits. The loop in `attach/` drains it between calls, a test drains it by hand. First come, first served.
 */
export interface Scheduler {
  defer(work: () => void): void;
  /**
   * The same, but programs get the processor first: what a program does right after its call was answered should come
   * before this, as it would with a device that takes its time.
   */
  deferPastPrograms(work: () => void): void;
}

/** Has the work done later when it is called; however often it is called before, the work is done once. */
export const once = (scheduler: Pick<Scheduler, "defer">, work: () => void): (() => void) => {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    scheduler.defer(() => {
      scheduled = false;
      work();
    });
  };
};

export class WorkQueue implements Scheduler {
  #queue: (() => void)[] = [];
  #head = 0;
  #pastPrograms: (() => void)[] = [];

  defer(work: () => void): void {
    this.#queue.push(work);
  }

  deferPastPrograms(work: () => void): void {
    this.#pastPrograms.push(work);
  }

  get pending(): number {
    return this.#queue.length - this.#head + this.#pastPrograms.length;
  }

  /** Whether there is work before which programs should get the processor; `programsRan` is to be called then. */
  get waitsForPrograms(): boolean {
    return this.#pastPrograms.length > 0;
  }

  programsRan(): void {
    for (const work of this.#pastPrograms.splice(0)) this.#queue.push(work);
  }

  /** Runs at most `budget` pieces of work, those that they defer included, past programs or not; returns how many. */
  run(budget = Number.POSITIVE_INFINITY): number {
    let ran = 0;
    do {
      ran += this.runPrompt(budget - ran);
      this.programsRan();
    } while (ran < budget && this.#head < this.#queue.length);
    return ran;
  }

  /** The same, but what waits for programs stays. */
  runPrompt(budget: number): number {
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
