/**
 * Configuration space as registers of bytes: what they are after power-on, which bits software may write, which are
 * cleared by writing one. Everything else is read-only, so sizing a BAR (PCI §6.2.5.1: write ones, read the size
 * back) needs no code: the address bits below the size cannot be written.
 *
 * What a write *means* is told to `onWrite` after the bits have changed.
 */
import {
  CONFIG_BYTES,
  EXTENDED_CONFIG_BYTES,
  ExtendedHeader,
  FIRST_CAPABILITY,
  FIRST_EXTENDED_CAPABILITY,
  Header,
} from "./spec.ts";

/** One register. Values are little-endian integers of `width` bytes. */
export interface ConfigRegister {
  readonly offset: number;
  readonly width: 1 | 2 | 4;
  /** After power-on. */
  readonly value: number;
  /** Bits software may write. */
  readonly writable?: number;
  /** Bits that are cleared by writing 1. */
  readonly clears?: number;
}

/** A capability: its registers at offsets from its own start. The list's links are made when it is placed. */
export interface Capability {
  readonly id: number;
  /** Bytes it takes, its header included. */
  readonly bytes: number;
  readonly registers: readonly ConfigRegister[];
  /** Set: an extended capability of this version. */
  readonly version?: number;
}

export type ConfigWidth = 1 | 2 | 4;

export class ConfigSpace {
  readonly size: number;
  readonly #bytes: Uint8Array;
  readonly #initial: Uint8Array;
  readonly #writable: Uint8Array;
  readonly #clears: Uint8Array;
  #nextCapability = FIRST_CAPABILITY;
  #lastLink: number = Header.CAPABILITIES_POINTER;
  #nextExtended = FIRST_EXTENDED_CAPABILITY;
  #lastExtended = -1;
  /** A write to [offset, offset + width) has been done. */
  onWrite: (offset: number, width: number) => void = () => {};

  constructor(size: 256 | 4096) {
    this.size = size;
    this.#bytes = new Uint8Array(size);
    this.#initial = new Uint8Array(size);
    this.#writable = new Uint8Array(size);
    this.#clears = new Uint8Array(size);
  }

  /** Declares a register. RangeError when it leaves the space. */
  declare({ offset, width, value, writable = 0, clears = 0 }: ConfigRegister): void {
    if (offset + width > this.size)
      throw new RangeError(`config register at ${offset} is beyond ${this.size} bytes`);
    for (let i = 0; i < width; i++) {
      this.#initial[offset + i] = value >>> (8 * i);
      this.#writable[offset + i] = writable >>> (8 * i);
      this.#clears[offset + i] = clears >>> (8 * i);
      this.#bytes[offset + i] = value >>> (8 * i);
    }
  }

  /** Appends a capability to its list; returns its offset. RangeError when there is no room. */
  add(capability: Capability): number {
    const { version, bytes } = capability;
    const at = version === undefined ? this.#link(capability) : this.#linkExtended(capability, version);
    const end = version === undefined ? CONFIG_BYTES : EXTENDED_CONFIG_BYTES;
    if (at + bytes > end) throw new RangeError(`capability ${capability.id}: no room at ${at}`);
    for (const register of capability.registers) this.declare({ ...register, offset: at + register.offset });
    return at;
  }

  #link({ id, bytes }: Capability): number {
    const at = this.#nextCapability;
    this.#nextCapability = (at + bytes + 3) & ~3;
    this.declare({ offset: this.#lastLink, width: 1, value: at });
    this.declare({ offset: at, width: 2, value: id });
    this.#lastLink = at + 1;
    return at;
  }

  #linkExtended({ id, bytes }: Capability, version: number): number {
    const at = this.#nextExtended;
    this.#nextExtended = (at + bytes + 3) & ~3;
    if (this.#lastExtended >= 0) {
      const header = this.read(this.#lastExtended, 4) | Number(ExtendedHeader.fields.Next.put(BigInt(at)));
      this.declare({ offset: this.#lastExtended, width: 4, value: header >>> 0 });
    }
    this.declare({ offset: at, width: 4, value: Number(ExtendedHeader.make({ Id: id, Version: version })) });
    this.#lastExtended = at;
    return at;
  }

  /** Little-endian; bytes beyond the space read as ones. */
  read(offset: number, width: ConfigWidth): number {
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = value * 256 + (this.#bytes[offset + i] ?? 0xff);
    return value;
  }

  /** A write from the bus: only what software may write changes. */
  write(offset: number, width: ConfigWidth, value: number): void {
    if (!(offset >= 0 && offset + width <= this.size)) return;
    for (let i = 0; i < width; i++) {
      const at = offset + i;
      const written = (value >>> (8 * i)) & 0xff;
      const writable = this.#writable[at]!;
      this.#bytes[at] =
        (this.#bytes[at]! & ~writable & ~(written & this.#clears[at]!)) | (written & writable);
    }
    this.onWrite(offset, width);
  }

  /** The function itself sets a register: read-only bits too. */
  set(offset: number, width: ConfigWidth, value: number): void {
    for (let i = 0; i < width; i++) this.#bytes[offset + i] = value >>> (8 * i);
  }

  /** Power-on state. */
  reset(): void {
    this.#bytes.set(this.#initial);
  }
}
