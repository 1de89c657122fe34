/**
 * How software reaches a unit's registers: an access that the file takes is told to who listens and made word by word, the
 * lower one first. What a write sets in motion is the unit's.
 */
import type { EventSink } from "../base/events.ts";
import type { RegisterWords } from "./register-words.ts";

export interface RegisterPortOptions {
  /** The unit's name. */
  readonly unit: string;
  readonly events: EventSink;
  readonly registers: Pick<RegisterWords, "takes" | "read">;
  /** The name of the register at an offset, for people. */
  nameOf(offset: number): string;
  /** Writes a word, and does what that means. */
  write(offset: number, value: number): void;
}

export class RegisterPort {
  readonly #options: RegisterPortOptions;

  constructor(options: RegisterPortOptions) {
    this.#options = options;
  }

  read(offset: number, width: 4 | 8): bigint {
    return this.#options.registers.read(offset, width);
  }

  write(offset: number, width: 4 | 8, value: bigint): void {
    const { unit, events, registers } = this.#options;
    if (!registers.takes(offset, width)) return;
    if (events.on)
      events.emit("register", { unit, register: this.#options.nameOf(offset), offset, width, value });
    this.#options.write(offset, Number(value & 0xffff_ffffn));
    if (width === 8) this.#options.write(offset + 4, Number((value >> 32n) & 0xffff_ffffn));
  }
}
