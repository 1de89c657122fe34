/**
 * The chain of capabilities behind VFIO's information structures (linux/vfio.h, "information capability chains"): each
 * begins with struct vfio_info_cap_header at a multiple of 8 bytes, and `next` counts from the start of the
 * information structure.
 */
import type { Members, Struct, StructWrite } from "./struct.ts";
import { VfioInfoCapHeader } from "./vfio/container.ts";

const ALIGN = 8;
const align = (size: number): number => Math.ceil(size / ALIGN) * ALIGN;

/** An information structure that capabilities may follow. */
interface InfoStruct<W> {
  readonly size: number;
  readonly offsets: { readonly argsz: number; readonly cap_offset: number };
  write(bytes: Uint8Array, value: W): void;
}

/** A capability and where it lies, counted from the start of the information structure. */
export interface PlacedCapability {
  readonly at: number;
  /** The capability without the padding after it; `next` is that of a chain which goes on. */
  readonly bytes: Uint8Array;
}

/** Builds an answer: capabilities in the order they were added. */
export class InfoChain {
  readonly #base: number;
  readonly #placed: PlacedCapability[] = [];
  #end: number;

  /** `base`: bytes of the information structure, where the first capability goes. */
  constructor(base: number) {
    this.#base = align(base);
    this.#end = this.#base;
  }

  /** Adds a capability; its header's id and version are given here, `next` is the chain's. */
  add<F extends Members>(id: number, version: number, capability: Struct<F>, value: StructWrite<F>): this {
    const bytes = capability.bytes(value);
    VfioInfoCapHeader.write(bytes, { id, version, next: 0 });
    const last = this.#placed.at(-1);
    if (last) VfioInfoCapHeader.view(last.bytes).next = this.#end;
    this.#placed.push({ at: this.#end, bytes });
    this.#end += align(bytes.length);
    return this;
  }

  get capabilities(): readonly PlacedCapability[] {
    return this.#placed;
  }

  /** Bytes of the information structure with all capabilities: what argsz must be. Padding after the last one counts. */
  get needed(): number {
    return this.#end;
  }

  /**
   * The bytes to give a caller that has `argsz` of them. Without room for every capability none is written, cap_offset
   * is 0 and argsz says what is needed. Never more than `argsz` bytes.
   */
  answer<W>(info: InfoStruct<W>, value: W, argsz: number): Uint8Array {
    const fits = argsz >= this.#end;
    const whole = new Uint8Array(fits ? this.#end : info.size);
    info.write(whole, value);
    const data = new DataView(whole.buffer);
    const some = this.#placed.length > 0;
    data.setUint32(info.offsets.argsz, some && !fits ? this.#end : argsz, true);
    data.setUint32(info.offsets.cap_offset, some && fits ? this.#base : 0, true);
    if (fits) for (const { at, bytes } of this.#placed) whole.set(bytes, at);
    return whole.subarray(0, Math.min(argsz, whole.length));
  }
}

export interface FoundCapability {
  readonly id: number;
  readonly version: number;
  /** Offset in the answer, for the capability's own `read`. */
  readonly at: number;
}

/** The capabilities of an answer that begin at `cap_offset`. Ends where a header is not within the bytes or comes again. */
export const findCapabilities = (answer: Uint8Array, capOffset: number): FoundCapability[] => {
  const found: FoundCapability[] = [];
  const seen = new Set<number>();
  for (let at = capOffset; at !== 0 && !seen.has(at) && at + VfioInfoCapHeader.size <= answer.length; ) {
    seen.add(at);
    const { id, version, next } = VfioInfoCapHeader.read(answer, at);
    found.push({ id, version, at });
    at = next;
  }
  return found;
};
