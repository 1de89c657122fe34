/**
 * The logs that an AMD-Vi unit writes (48882, revision 3.07, §2.5 and §2.6): rings in memory with a head that software
 * moves and a tail that the unit moves. A log that is full when an entry comes has overflown: it stops, and says so, until
 * software disables and enables it again.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { ENTRY_BYTES } from "./queue-spec.ts";
import type { RegisterFile } from "./registers.ts";
import { POINTER_MASK, Register, RingBase } from "./spec.ts";

/** Fewer entries than 2^8 are not defined; the unit takes them for that many. */
const LEAST_LG2 = 8;

/** Bytes of the ring whose base register is at this offset. */
export const ringBytes = (registers: RegisterFile, base: number): number =>
  ENTRY_BYTES * 2 ** Math.max(LEAST_LG2, RingBase.fields.LEN.get(registers.words, base / 4));

/** Head or tail pointer of a ring of so many bytes. */
export const pointerOf = (registers: RegisterFile, offset: number, bytes: number): number =>
  (registers.get(offset) & POINTER_MASK) % bytes;

export interface LogPlace {
  readonly base: number;
  readonly head: number;
  readonly tail: number;
  /** Bits of STATUS: it runs, it has overflown, an entry was written. */
  readonly run: number;
  readonly overflow: number;
  readonly written: number;
}

export class Log {
  readonly #registers: RegisterFile;
  readonly #memory: HostMemory;
  readonly #place: LogPlace;
  /** STATUS changed. */
  readonly #changed: () => void;

  constructor(registers: RegisterFile, memory: HostMemory, place: LogPlace, changed: () => void) {
    this.#registers = registers;
    this.#memory = memory;
    this.#place = place;
    this.#changed = changed;
  }

  get running(): boolean {
    return (this.#registers.get(Register.STATUS) & this.#place.run) !== 0;
  }

  /** Writes an entry; false: it is lost. */
  write(words: Uint32Array): boolean {
    if (!this.running) return false;
    const registers = this.#registers;
    const { base, head, tail } = this.#place;
    const bytes = ringBytes(registers, base);
    const at = pointerOf(registers, tail, bytes);
    const next = (at + ENTRY_BYTES) % bytes;
    if (next === pointerOf(registers, head, bytes)) {
      this.#set(this.#place.overflow, this.#place.run);
      return false;
    }
    const address = registers.page(base) + at;
    for (let i = 0; i < words.length; i += 2)
      if (!this.#memory.store64(address + 4 * i, words[i]!, words[i + 1]!)) return false;
    registers.set(tail, next);
    this.#set(this.#place.written, 0);
    return true;
  }

  #set(set: number, clear: number): void {
    const registers = this.#registers;
    registers.set(Register.STATUS, (registers.get(Register.STATUS) & ~clear) | set);
    this.#changed();
  }
}
