/**
 * What an operation asks its engine for, one request at a time: memory to be read or written, or that what its queue took
 * before it has ended. An operation is a generator that yields the engine's one `EngineAccess` and is told whether it worked.
 */
import type { Descriptor } from "./descriptor.ts";

const WORD = 2 ** 32;
/** Bytes moved at once. */
export const CHUNK = 64 * 1024;

export type Program<Result> = Generator<EngineAccess, Result, boolean>;

export class EngineAccess {
  kind: "read" | "write" | "drain" = "drain";
  lo = 0;
  hi = 0;
  bytes: Uint8Array = new Uint8Array(0);
  /** It may ask for pages that are not there, and wait. */
  waits = false;
  /** Bytes of it that were moved. */
  done = 0;
  readonly #buffers: Uint8Array[] = [];

  /** Memory of the engine: two buffers of up to `CHUNK` bytes. */
  buffer(which: 0 | 1, bytes: number): Uint8Array {
    const whole = this.#buffers[which] ?? new Uint8Array(CHUNK);
    this.#buffers[which] = whole;
    return whole.subarray(0, bytes);
  }

  /** Data, `plus` bytes behind the address at `offset` of the descriptor. */
  read(descriptor: Descriptor, offset: number, plus: number, bytes: Uint8Array): this {
    return this.#set("read", descriptor, offset, plus, bytes, descriptor.waitsForPages);
  }
  write(descriptor: Descriptor, offset: number, plus: number, bytes: Uint8Array): this {
    return this.#set("write", descriptor, offset, plus, bytes, descriptor.waitsForPages);
  }
  /** The same for what is no data, which always waits. */
  fetch(descriptor: Descriptor, offset: number, plus: number, bytes: Uint8Array): this {
    return this.#set("read", descriptor, offset, plus, bytes, true);
  }
  post(descriptor: Descriptor, offset: number, plus: number, bytes: Uint8Array): this {
    return this.#set("write", descriptor, offset, plus, bytes, true);
  }
  drain(): this {
    this.kind = "drain";
    return this;
  }

  /** The first address that was not reached. */
  get stop(): { readonly lo: number; readonly hi: number } {
    const low = this.lo + this.done;
    return { lo: low % WORD, hi: (this.hi + Math.floor(low / WORD)) % WORD };
  }

  #set(
    kind: "read" | "write",
    descriptor: Descriptor,
    offset: number,
    plus: number,
    bytes: Uint8Array,
    waits: boolean,
  ): this {
    const low = descriptor.word(offset) + plus;
    this.kind = kind;
    this.lo = low % WORD;
    this.hi = (descriptor.word(offset + 4) + Math.floor(low / WORD)) % WORD;
    this.bytes = bytes;
    this.waits = waits;
    this.done = 0;
    return this;
  }
}
