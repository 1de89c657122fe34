/**
 * MSI (PCIe §7.7.1): up to 32 vectors that share one address and differ in the low bits of the data. The registers
 * are in config space; this answers what a signal does.
 */
import type { ConfigSpace } from "./config.ts";
import { MsiCapability, MsiControl } from "./spec.ts";

/** Sends the message of a vector. */
export type SendVector = (vector: number, lo: number, hi: number, data: number) => void;

const { Enable, MultipleMessageEnable } = MsiControl.fields;

export class Msi {
  enabled = false;
  readonly #config: ConfigSpace;
  readonly #at: number;
  readonly #send: SendVector;
  #vectors = 1;
  #masked = 0;
  #pending = 0;

  /** `at`: where the capability lies in the config space. */
  constructor(config: ConfigSpace, at: number, send: SendVector) {
    this.#config = config;
    this.#at = at;
    this.#send = send;
  }

  /** The vector's event has happened. A vector beyond those given is folded onto them. */
  signal(vector: number): void {
    if (!this.enabled) return;
    const given = vector % this.#vectors;
    const mark = (1 << given) >>> 0;
    if (this.#masked & mark) this.#setPending(this.#pending | mark);
    else this.#emit(given);
  }

  /** The registers were written. */
  update(): void {
    const control = this.#config.read(this.#at + MsiCapability.MESSAGE_CONTROL, 2);
    this.enabled = (control & Enable.mask) !== 0;
    const given = (control & MultipleMessageEnable.mask) >>> MultipleMessageEnable.shift;
    this.#vectors = 2 ** Math.min(given, 5);
    this.#masked = this.#config.read(this.#at + MsiCapability.MASK, 4);
    if (!this.enabled) this.#setPending(0);
    const due = this.#pending & ~this.#masked;
    this.#setPending(this.#pending & this.#masked);
    for (let vector = 0; vector < 32; vector++) if (due & (1 << vector)) this.#emit(vector);
  }

  #setPending(pending: number): void {
    this.#pending = pending >>> 0;
    this.#config.set(this.#at + MsiCapability.PENDING, 4, this.#pending);
  }

  #emit(vector: number): void {
    const config = this.#config;
    const data = config.read(this.#at + MsiCapability.DATA, 2);
    this.#send(
      vector,
      config.read(this.#at + MsiCapability.ADDRESS, 4),
      config.read(this.#at + MsiCapability.UPPER_ADDRESS, 4),
      (data & ~(this.#vectors - 1)) | vector,
    );
  }
}
