/**
 * The circular queues that an SMMUv3 writes (IHI 0070, §3.5): the event queue and the page request queue. PROD and CONS
 * are indices with a wrap bit; a queue that is full loses what comes, and says so once by its overflow flag.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import type { RegisterFile } from "./registers.ts";
import { OVERFLOW, QueueBase } from "./spec.ts";

export interface QueuePlace {
  /** Offsets of the registers. */
  readonly base: number;
  readonly prod: number;
  readonly cons: number;
  /** lg2 of the most entries, and of the bytes of one. */
  readonly maximumLg2: number;
  readonly entryLg2: number;
}

/** lg2 of the entries of a queue, and its address: aligned to its size. */
export const queueLg2 = (registers: RegisterFile, { base, maximumLg2 }: QueuePlace): number =>
  Math.min(registers.get(base) & QueueBase.LOG2SIZE, maximumLg2);
export const queueAddress = (registers: RegisterFile, place: QueuePlace): number => {
  const size = 2 ** (queueLg2(registers, place) + place.entryLg2);
  return Math.floor(registers.address(place.base, QueueBase.ADDRESS_LO) / size) * size;
};

/** What became of a record. */
export type Written = "written" | "full" | "abort";

export class RecordQueue {
  readonly #registers: RegisterFile;
  readonly #memory: HostMemory;
  readonly #place: QueuePlace;

  constructor(registers: RegisterFile, memory: HostMemory, place: QueuePlace) {
    this.#registers = registers;
    this.#memory = memory;
    this.#place = place;
  }

  /** Index mask with the wrap bit. */
  #mask(): number {
    return (2 << queueLg2(this.#registers, this.#place)) - 1;
  }

  get empty(): boolean {
    const { prod, cons } = this.#place;
    return ((this.#registers.get(prod) ^ this.#registers.get(cons)) & this.#mask()) === 0;
  }

  get full(): boolean {
    const { prod, cons } = this.#place;
    const mask = this.#mask();
    return ((this.#registers.get(prod) ^ this.#registers.get(cons)) & mask) === (mask + 1) / 2;
  }

  /** Writes a record of so many words as an entry has. */
  write(words: Uint32Array): Written {
    if (this.full) return "full";
    const { prod, entryLg2 } = this.#place;
    const mask = this.#mask();
    const at = this.#registers.get(prod);
    const address = queueAddress(this.#registers, this.#place) + (at & (mask >>> 1)) * 2 ** entryLg2;
    for (let i = 0; i < words.length; i += 2)
      if (!this.#memory.store64(address + 4 * i, words[i]!, words[i + 1]!)) return "abort";
    this.#registers.set(prod, (at & OVERFLOW) | ((at + 1) & mask));
    return "written";
  }

  /** Records were lost, and software has not acknowledged it. */
  get overflowing(): boolean {
    const { prod, cons } = this.#place;
    return ((this.#registers.get(prod) ^ this.#registers.get(cons)) & OVERFLOW) !== 0;
  }

  /** §7.4 Records were lost: the flag differs from the consumer's until it has seen it. */
  overflow(): void {
    const { prod } = this.#place;
    if (!this.overflowing) this.#registers.set(prod, this.#registers.get(prod) ^ OVERFLOW);
  }
}
