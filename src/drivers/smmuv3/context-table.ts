/**
 * The context descriptors of a function behind an SMMUv3 (IHI 0070, §3.3.2, §5.3, §5.4), by SubstreamID, which is what
 * Arm calls a PASID; 0 is for accesses without one. More than 64 of them lie in two levels, where the unit has those: a
 * table of the second level exists while one of its descriptors is valid.
 */
import { Cd, L1Cd } from "../../hardware/smmuv3/spec.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { storeStructure } from "../structure.ts";
import type { SteValues } from "./stream-table.ts";

const CD_BYTES = 64;
const NO_DESCRIPTOR = new Uint32Array(Cd.words);
/** Descriptors of a second level table, lg2: S1Fmt 1. */
const SPLIT = 6;
const FORMAT_TWO_LEVEL = 1;
/** Without two levels: descriptors that a function can have, lg2. */
const MOST_LINEAR_LG2 = 10;

/** Bits of a PASID for which there is a table, of a unit with so many bits of a SubstreamID. */
export const contextBits = (substreamIdBits: number, twoLevel: boolean): number =>
  twoLevel ? substreamIdBits : Math.min(substreamIdBits, MOST_LINEAR_LG2);

interface Part {
  readonly pa: number;
  /** Valid descriptors in it. */
  used: number;
}

export class ContextTable {
  /** What the stream table entry says of it. */
  readonly fields: SteValues;
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #twoLevel: boolean;
  readonly #base: number;
  readonly #frames: number;
  readonly #parts = new Map<number, Part>();
  readonly #valid = new Set<number>();

  /** For `2 ** bits` SubstreamIDs. Throws ENOMEM. */
  constructor(memory: HostMemory, name: string, bits: number, twoLevel: boolean) {
    this.#memory = memory;
    this.#name = name;
    this.#twoLevel = twoLevel && bits > SPLIT;
    const bytes = this.#twoLevel ? 2 ** (bits - SPLIT) * L1Cd.bytes : 2 ** bits * CD_BYTES;
    this.#frames = Math.ceil(bytes / FRAME_BYTES);
    this.#base = memory.allocate(this.#frames);
    if (this.#base < 0) throw new LinuxError("ENOMEM", "no host memory for context descriptors", name);
    this.fields = {
      S1CONTEXTPTR: this.#base,
      S1CDMAX: bits,
      S1FMT: this.#twoLevel ? FORMAT_TWO_LEVEL : 0,
    };
    try {
      this.reserve(0);
    } catch (error) {
      memory.free(this.#base, this.#frames);
      throw error;
    }
  }

  /** Makes room for a descriptor, so that writing it does not fail. Throws ENOMEM. */
  reserve(ssid: number): void {
    const index = ssid >>> SPLIT;
    if (!this.#twoLevel || this.#parts.has(index)) return;
    const pa = this.#memory.allocate(1);
    if (pa < 0) throw new LinuxError("ENOMEM", `no host memory for context ${ssid}`, this.#name);
    this.#parts.set(index, { pa, used: 0 });
    this.#describe(index, L1Cd.make({ V: true, L2PTR: pa }));
  }

  /** Makes this the descriptor of a SubstreamID that was reserved. */
  write(ssid: number, descriptor: Uint32Array): void {
    const part = this.#parts.get(ssid >>> SPLIT);
    if (part && !this.#valid.has(ssid)) part.used += 1;
    this.#valid.add(ssid);
    storeStructure(this.#memory, this.#at(ssid), descriptor);
  }

  /** It has no descriptor any more. `forget` tells the unit, before memory is given back. */
  clear(ssid: number, forget: () => void): void {
    if (!this.#valid.delete(ssid)) return;
    storeStructure(this.#memory, this.#at(ssid), NO_DESCRIPTOR);
    const index = ssid >>> SPLIT;
    const part = this.#parts.get(index);
    if (part) part.used -= 1;
    const goes = part && part.used === 0 && index !== 0;
    if (goes) this.#describe(index, 0n);
    forget();
    if (!goes) return;
    this.#parts.delete(index);
    this.#memory.free(part.pa, 1);
  }

  /** The unit does not use it any more. */
  free(): void {
    for (const { pa } of this.#parts.values()) this.#memory.free(pa, 1);
    this.#memory.free(this.#base, this.#frames);
  }

  #at(ssid: number): number {
    if (!this.#twoLevel) return this.#base + ssid * CD_BYTES;
    return this.#parts.get(ssid >>> SPLIT)!.pa + (ssid % 2 ** SPLIT) * CD_BYTES;
  }

  #describe(index: number, descriptor: bigint): void {
    this.#memory.store64(
      this.#base + index * L1Cd.bytes,
      Number(descriptor & 0xffff_ffffn),
      Number(descriptor >> 32n),
    );
  }
}
