/**
 * The driver's side of a queue that an SMMUv3 writes (IHI 0070, §3.5, §7.4, §8): the event queue and the page request
 * queue. Records are taken in their order; the place of each is given back before it is looked at.
 */
import { OVERFLOW, QUEUE_INDEX, QueueBase } from "../../hardware/smmuv3/spec.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Registers } from "./registers.ts";

/** Log2 of the frames of a queue. */
const FRAMES_LG2 = 2;
const FRAMES = 2 ** FRAMES_LG2;

export interface QueueShape {
  /** For messages: "event queue". */
  readonly what: string;
  /** Offsets of its registers. */
  readonly base: number;
  readonly prod: number;
  readonly cons: number;
  /** Log2 of the most entries that the unit takes. */
  readonly maximumLg2: number;
  readonly recordBytes: number;
}

export class RecordQueue {
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #shape: QueueShape;
  readonly #base: number;
  readonly #entries: number;
  readonly #words: Uint32Array;
  #cons = 0;
  #busy = false;

  /** The queue must be off. Throws ENOMEM. */
  constructor(registers: Registers, memory: HostMemory, name: string, shape: QueueShape) {
    this.#registers = registers;
    this.#memory = memory;
    this.#shape = shape;
    const lg2 = Math.min(Math.log2((FRAMES * FRAME_BYTES) / shape.recordBytes), shape.maximumLg2);
    this.#entries = 2 ** lg2;
    this.#words = new Uint32Array(shape.recordBytes / 4);
    this.#base = memory.allocate(FRAMES);
    if (this.#base < 0) throw new LinuxError("ENOMEM", `no host memory for the ${shape.what}`, name);
    registers.write64(shape.base, BigInt(this.#base + (lg2 & QueueBase.LOG2SIZE)));
    registers.write32(shape.prod, 0);
    registers.write32(shape.cons, 0);
  }

  /**
   * Takes every record. What is taken may make the unit write more; those are taken too. `words` are good for the call.
   * True: the unit found the queue full since it was last looked at, and lost what it had to say.
   */
  drain(take: (words: Uint32Array) => void): boolean {
    if (this.#busy) return false;
    this.#busy = true;
    let overflowed = false;
    try {
      for (let prod = this.#prod(); this.#cons !== (prod & QUEUE_INDEX); prod = this.#prod()) {
        this.#load(this.#cons % this.#entries);
        this.#cons = (this.#cons + 1) % (2 * this.#entries);
        overflowed = this.#give(prod) || overflowed;
        take(this.#words);
      }
      return this.#give(this.#prod()) || overflowed;
    } finally {
      this.#busy = false;
    }
  }

  /** The queue must be off. */
  free(): void {
    this.#memory.free(this.#base, FRAMES);
  }

  #prod(): number {
    return this.#registers.read32(this.#shape.prod);
  }

  /** §7.4 CONS moves on, and an overflow is acknowledged: whether there was one. */
  #give(prod: number): boolean {
    const before = this.#registers.read32(this.#shape.cons);
    const cons = ((prod & OVERFLOW) | this.#cons) >>> 0;
    if (cons !== before) this.#registers.write32(this.#shape.cons, cons);
    return ((before ^ cons) & OVERFLOW) !== 0;
  }

  #load(index: number): void {
    const at = this.#base + index * this.#shape.recordBytes;
    const words = this.#words;
    for (let word = 0; word < words.length; word += 2) {
      this.#memory.load64(at + 4 * word);
      words[word] = this.#memory.lo;
      words[word + 1] = this.#memory.hi;
    }
  }
}
