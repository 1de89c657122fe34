/** A group: which of its queues an engine gets the next descriptor from. Each has as many turns in a row as its priority. */
import type { Descriptor } from "./descriptor.ts";
import type { DsaQueue } from "./queue.ts";

export class Group {
  readonly queues: readonly DsaQueue[];
  #turn = 0;
  #turns = 0;

  constructor(queues: readonly DsaQueue[]) {
    this.queues = queues;
  }

  next(): Descriptor | undefined {
    for (let tried = 0; tried <= this.queues.length; tried++) {
      const queue = this.queues[this.#turn % this.queues.length];
      const descriptor = queue && this.#turns < queue.priority ? queue.next() : undefined;
      if (descriptor) {
        this.#turns += 1;
        return descriptor;
      }
      this.#turn += 1;
      this.#turns = 0;
    }
    return undefined;
  }
}
