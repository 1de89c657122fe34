/**
 * MSI-X (PCIe §7.7.2): a table of vectors, each with its own address and data, and their pending bits, both in a BAR.
 * A masked vector remembers one event and sends it when it is unmasked.
 */
import type { MsixPlace } from "./capabilities.ts";
import type { SendVector } from "./msi.ts";
import { MsixEntry, VECTOR_MASKED } from "./spec.ts";

const WORDS = MsixEntry.BYTES / 4;
const CONTROL = MsixEntry.VECTOR_CONTROL / 4;

export class Msix {
  readonly place: MsixPlace;
  enabled = false;
  #functionMasked = false;
  readonly #words: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #pending: Uint32Array;
  readonly #pendingBytes: Uint8Array;
  readonly #send: SendVector;

  constructor(place: MsixPlace, send: SendVector) {
    this.place = place;
    this.#send = send;
    this.#words = new Uint32Array(place.vectors * WORDS);
    this.#bytes = new Uint8Array(this.#words.buffer);
    this.#pending = new Uint32Array(2 * Math.ceil(place.vectors / 64));
    this.#pendingBytes = new Uint8Array(this.#pending.buffer);
    this.reset();
  }

  /** The access touches the table or the pending bits. */
  covers(bar: number, offset: number, length: number): boolean {
    const { bar: own, table, pending } = this.place;
    if (bar !== own) return false;
    return (
      overlaps(offset, length, table, this.#bytes.length) ||
      overlaps(offset, length, pending, this.#pendingBytes.length)
    );
  }

  /** The vector's event has happened. */
  signal(vector: number): void {
    if (!this.enabled || vector >= this.place.vectors) return;
    if (this.#functionMasked || this.#words[vector * WORDS + CONTROL]! & VECTOR_MASKED)
      this.#pending[vector >>> 5]! |= 1 << (vector & 31);
    else this.#emit(vector);
  }

  /** Message Control was written. */
  control(enabled: boolean, masked: boolean): void {
    this.enabled = enabled;
    this.#functionMasked = masked;
    if (enabled && !masked) this.#deliver(0, this.place.vectors);
  }

  read(offset: number, into: Uint8Array): void {
    const { table, pending } = this.place;
    for (let i = 0; i < into.length; i++)
      into[i] = this.#bytes[offset + i - table] ?? this.#pendingBytes[offset + i - pending] ?? 0;
  }

  /** Pending bits are read-only. */
  write(offset: number, data: Uint8Array): void {
    const from = Math.max(0, offset - this.place.table);
    const to = Math.min(this.#bytes.length, offset + data.length - this.place.table);
    if (from >= to) return;
    for (let at = from; at < to; at++) this.#bytes[at] = data[at + this.place.table - offset]!;
    const first = Math.floor(from / MsixEntry.BYTES);
    const end = Math.ceil(to / MsixEntry.BYTES);
    for (let entry = first; entry < end; entry++) {
      this.#words[entry * WORDS]! &= ~3;
      this.#words[entry * WORDS + CONTROL]! &= VECTOR_MASKED;
    }
    if (this.enabled && !this.#functionMasked) this.#deliver(first, end);
  }

  reset(): void {
    this.enabled = false;
    this.#functionMasked = false;
    this.#words.fill(0);
    this.#pending.fill(0);
    for (let at = CONTROL; at < this.#words.length; at += WORDS) this.#words[at] = VECTOR_MASKED;
  }

  /** Sends what is pending and no longer masked among vectors [first, end). */
  #deliver(first: number, end: number): void {
    for (let vector = first; vector < end; vector++) {
      const mark = 1 << (vector & 31);
      if (!(this.#pending[vector >>> 5]! & mark)) continue;
      if (this.#words[vector * WORDS + CONTROL]! & VECTOR_MASKED) continue;
      this.#pending[vector >>> 5]! &= ~mark;
      this.#emit(vector);
    }
  }

  #emit(vector: number): void {
    const at = vector * WORDS;
    this.#send(vector, this.#words[at]!, this.#words[at + 1]!, this.#words[at + 2]!);
  }
}

const overlaps = (offset: number, length: number, start: number, size: number): boolean =>
  offset < start + size && start < offset + length;
