/**
 * A register file as storage: which words exist, which bits software may write or clears by writing 1, and what they are
 * after reset. A 64-bit access is its lower half, then its upper half. An access that is not aligned, or of another width,
 * is not made: reads give 0.
 */

export interface RegisterWord {
  readonly offset: number;
  /** Bits software may write. */
  readonly writable?: number;
  /** Bits software clears by writing 1. */
  readonly clear?: number;
  readonly reset?: number;
}

const low = (value: bigint): number => Number(value & 0xffff_ffffn);
const high = (value: bigint): number => Number((value >> 32n) & 0xffff_ffffn);

/** A register of 64 bits, of which software may write these. */
export const wideRegister = (offset: number, writable: bigint): RegisterWord[] => [
  { offset, writable: low(writable) },
  { offset: offset + 4, writable: high(writable) },
];
/** One that software cannot change. */
export const fixedRegister = (offset: number, value: bigint): RegisterWord[] => [
  { offset, reset: low(value) },
  { offset: offset + 4, reset: high(value) },
];

export class RegisterWords {
  /** Every register, by offset / 4, as it reads. */
  readonly words: Uint32Array;
  readonly #writable: Uint32Array;
  readonly #clear: Uint32Array;
  readonly #declared: readonly RegisterWord[];

  constructor(bytes: number, declared: readonly RegisterWord[]) {
    this.words = new Uint32Array(bytes / 4);
    this.#writable = new Uint32Array(bytes / 4);
    this.#clear = new Uint32Array(bytes / 4);
    this.#declared = declared;
    for (const { offset, writable = 0, clear = 0 } of declared) {
      this.#writable[offset / 4] = writable;
      this.#clear[offset / 4] = clear;
    }
    this.reset();
  }

  reset(): void {
    this.words.fill(0);
    for (const { offset, reset = 0 } of this.#declared) this.words[offset / 4] = reset;
  }

  /** Whether an access is one the register file takes. */
  takes(offset: number, width: number): boolean {
    const inside = offset >= 0 && offset % width === 0 && offset + width <= this.words.length * 4;
    return (width === 4 || width === 8) && inside;
  }

  read(offset: number, width: number): bigint {
    if (!this.takes(offset, width)) return 0n;
    const lower = BigInt(this.words[offset / 4]!);
    return width === 4 ? lower : lower | (BigInt(this.words[offset / 4 + 1]!) << 32n);
  }

  /** Stores what software may change of a word; false: nothing of it. */
  store(offset: number, value: number): boolean {
    const at = offset / 4;
    const writable = this.#writable[at]!;
    const clear = this.#clear[at]!;
    this.words[at] = (this.words[at]! & ~writable & ~(value & clear)) | (value & writable);
    return (writable | clear) !== 0;
  }

  get(offset: number): number {
    return this.words[offset / 4]!;
  }

  set(offset: number, value: number): void {
    this.words[offset / 4] = value;
  }
}

/** The names of registers by offset, for people; the upper half of a wide one has its name. */
export const registerNames = (registers: { readonly [name: string]: number }) => {
  const names = new Map<number, string>(Object.entries(registers).map(([name, offset]) => [offset, name]));
  return (offset: number): string => names.get(offset) ?? names.get(offset & ~7) ?? "reserved";
};
