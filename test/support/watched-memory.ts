/** Host memory of which every access is told to somebody before it is made. */
import { CheckedMemory } from "../../src/memory/checked-memory.ts";
import type { HostMemory } from "../../src/memory/host-memory.ts";

/** Told of `length` bytes at `pa`. */
export type Watch = (pa: number, length: number, write: boolean) => void;

export class WatchedMemory extends CheckedMemory {
  readonly #watch: Watch;

  constructor(memory: HostMemory, watch: Watch) {
    super(memory);
    this.#watch = watch;
  }

  protected allows(pa: number, length: number, write: boolean): boolean {
    this.#watch(pa, length, write);
    return true;
  }
}
