/**
 * The stream table of an SMMUv3 (IHI 0070, §3.3.1, §5.1, §5.2): two levels where the unit has them, with 256 streams, a
 * bus, in a table of the second; else linear. Entries are made ready when a function is found, so that attaching never
 * needs memory for them. Words of an entry are written with the valid bit last.
 */
import type { Capabilities } from "../../hardware/smmuv3/capabilities.ts";
import { L1Std, Register, Ste, StrtabBaseCfg, TWO_LEVEL } from "../../hardware/smmuv3/spec.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { storeStructure } from "../structure.ts";
import type { Registers } from "./registers.ts";

const STE_BYTES = 64;
/** Bits of a StreamID that the second level indexes. */
const SPLIT = 8;
const PART_FRAMES = (2 ** SPLIT * STE_BYTES) / FRAME_BYTES;

/** An entry as eight 64-bit words. */
export type SteValues = Parameters<typeof Ste.make>[0];

export class StreamTable {
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #bits: number;
  readonly #twoLevel: boolean;
  readonly #base: number;
  readonly #frames: number;
  /** Tables of the second level, by the upper bits of the StreamID. */
  readonly #parts = new Map<number, number>();
  readonly #words = new Uint32Array(Ste.words);

  /** The unit must be off. Throws ENOMEM. */
  constructor(registers: Registers, memory: HostMemory, name: string, unit: Capabilities) {
    this.#memory = memory;
    this.#name = name;
    this.#bits = unit.streamIdBits;
    this.#twoLevel = unit.twoLevelStreams && unit.streamIdBits > SPLIT;
    const bytes = this.#twoLevel ? 2 ** (this.#bits - SPLIT) * L1Std.bytes : 2 ** this.#bits * STE_BYTES;
    this.#frames = Math.ceil(bytes / FRAME_BYTES);
    this.#base = memory.allocate(this.#frames);
    if (this.#base < 0) throw new LinuxError("ENOMEM", "no host memory for the stream table", name);
    registers.write64(Register.STRTAB_BASE, BigInt(this.#base));
    const configuration = StrtabBaseCfg.make({
      LOG2SIZE: this.#bits,
      ...(this.#twoLevel && { SPLIT, FMT: TWO_LEVEL }),
    });
    registers.write32(Register.STRTAB_BASE_CFG, Number(configuration));
  }

  /** Makes room for the entry of a stream. Throws ENODEV when the unit has no such stream, ENOMEM. */
  open(sid: number): void {
    if (sid >= 2 ** this.#bits)
      throw new LinuxError("ENODEV", `stream ${sid}: the unit has ${this.#bits} bits for it`, this.#name);
    const part = sid >>> SPLIT;
    if (!this.#twoLevel || this.#parts.has(part)) return;
    const table = this.#memory.allocate(PART_FRAMES);
    if (table < 0)
      throw new LinuxError("ENOMEM", `no host memory for the stream table of bus ${part}`, this.#name);
    this.#parts.set(part, table);
    const descriptor = L1Std.make({ SPAN: SPLIT + 1, L2PTR: table });
    this.#memory.store64(
      this.#base + part * L1Std.bytes,
      Number(descriptor & 0xffff_ffffn),
      Number(descriptor >> 32n),
    );
  }

  /** Gives a stream that was opened this entry; 0n: none. */
  write(sid: number, entry: bigint): void {
    Ste.toWords(entry, this.#words);
    storeStructure(this.#memory, this.#at(sid), this.#words);
  }

  /** The unit must be off. */
  free(): void {
    for (const table of this.#parts.values()) this.#memory.free(table, PART_FRAMES);
    this.#memory.free(this.#base, this.#frames);
  }

  #at(sid: number): number {
    const table = this.#twoLevel ? this.#parts.get(sid >>> SPLIT)! : this.#base;
    return table + (this.#twoLevel ? sid % 2 ** SPLIT : sid) * STE_BYTES;
  }
}
