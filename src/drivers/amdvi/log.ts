/**
 * The driver's side of a log that an AMD-Vi unit writes (48882, revision 3.07, §2.5, §2.6): the event log and the PPR log.
 * Entries are taken in their order; the place of each is given back before it is looked at. A log that has overflown has
 * stopped; it is emptied and started again.
 */
import { ENTRY_BYTES } from "../../hardware/amdvi/queue-spec.ts";
import { Register, RingBase, Status } from "../../hardware/amdvi/spec.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Registers } from "./registers.ts";

/** Log2 of the frames of a log, unless other is asked for. */
const FRAMES_LG2 = 2;
const FRAME_ENTRIES_LG2 = Math.log2(FRAME_BYTES / ENTRY_BYTES);

/** Which log: its registers, its bits of STATUS, and how it is started. */
export interface LogShape {
  /** For messages. */
  readonly what: string;
  readonly base: number;
  readonly head: number;
  readonly tail: number;
  readonly written: number;
  readonly overflow: number;
  readonly enable: "EVENT_LOG_EN" | "PPR_LOG_EN";
}

export const EVENT_LOG: LogShape = {
  what: "event log",
  base: Register.EVTLOG_BASE,
  head: Register.EVTLOG_HEAD,
  tail: Register.EVTLOG_TAIL,
  written: Status.EVENT_LOG_INT,
  overflow: Status.EVENT_OVERFLOW,
  enable: "EVENT_LOG_EN",
};
export const PPR_LOG: LogShape = {
  what: "PPR log",
  base: Register.PPRLOG_BASE,
  head: Register.PPRLOG_HEAD,
  tail: Register.PPRLOG_TAIL,
  written: Status.PPR_INT,
  overflow: Status.PPR_OVERFLOW,
  enable: "PPR_LOG_EN",
};

export class Log {
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #shape: LogShape;
  readonly #base: number;
  readonly #frames: number;
  readonly #words = new Uint32Array(ENTRY_BYTES / 4);
  #head = 0;
  #busy = false;

  /** The log must be off. Throws ENOMEM. */
  constructor(
    registers: Registers,
    memory: HostMemory,
    name: string,
    shape: LogShape,
    framesLg2 = FRAMES_LG2,
  ) {
    this.#registers = registers;
    this.#memory = memory;
    this.#shape = shape;
    this.#frames = 2 ** framesLg2;
    this.#base = memory.allocate(this.#frames);
    if (this.#base < 0) throw new LinuxError("ENOMEM", `no host memory for the ${shape.what}`, name);
    const LEN = FRAME_ENTRIES_LG2 + framesLg2;
    registers.write64(shape.base, RingBase.make({ BASE: this.#base, LEN }));
  }

  /**
   * Takes every entry. What is taken may make the unit write more; those are taken too. `words` are good for the call.
   * True: the unit found the log full since it was last looked at, and lost what it had to say.
   */
  drain(take: (words: Uint32Array) => void): boolean {
    if (this.#busy) return false;
    this.#busy = true;
    let overflowed = false;
    try {
      for (;;) {
        const status = this.#registers.status;
        const { written, overflow, enable } = this.#shape;
        if ((status & (written | overflow)) === 0) return overflowed;
        this.#registers.acknowledge(written);
        this.#takeAll(take);
        if ((status & overflow) === 0) continue;
        overflowed = true;
        this.#registers.acknowledge(overflow);
        this.#registers.restart(enable);
      }
    } finally {
      this.#busy = false;
    }
  }

  /** The log must be off. */
  free(): void {
    this.#memory.free(this.#base, this.#frames);
  }

  #takeAll(take: (words: Uint32Array) => void): void {
    const { head, tail } = this.#shape;
    const bytes = this.#frames * FRAME_BYTES;
    while (this.#head !== this.#registers.read32(tail)) {
      const words = this.#words;
      for (let word = 0; word < words.length; word += 2) {
        this.#memory.load64(this.#base + this.#head + 4 * word);
        words[word] = this.#memory.lo;
        words[word + 1] = this.#memory.hi;
      }
      this.#head = (this.#head + ENTRY_BYTES) % bytes;
      this.#registers.write32(head, this.#head);
      take(words);
    }
  }
}
