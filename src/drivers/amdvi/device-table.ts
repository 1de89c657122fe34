/**
 * The device table of an AMD-Vi unit (48882, revision 3.07, §2.2.2): one table with an entry for every requester id up to
 * the last one that firmware names. An entry that is all zero lets its device reach everything, so that every entry says
 * V = 1, TV = 0 from the start: nothing is translated, and nothing passes.
 */
import { DeviceTableBase, Dte, Register } from "../../hardware/amdvi/spec.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { storeStructure } from "../structure.ts";
import type { Registers } from "./registers.ts";

export type DteValues = Parameters<typeof Dte.make>[0];

/** §2.2.2.1 Nothing passes. */
export const BLOCKING: DteValues = { V: true };

export class DeviceTable {
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #base: number;
  readonly #frames: number;
  readonly #last: number;
  readonly #words = new Uint32Array(Dte.words);

  /** For requester ids up to `last`. The unit must be off. Throws ENOMEM. */
  constructor(registers: Registers, memory: HostMemory, name: string, last: number) {
    this.#memory = memory;
    this.#name = name;
    this.#frames = Math.ceil(((last + 1) * Dte.bytes) / FRAME_BYTES);
    this.#last = (this.#frames * FRAME_BYTES) / Dte.bytes - 1;
    this.#base = memory.allocate(this.#frames);
    if (this.#base < 0) throw new LinuxError("ENOMEM", "no host memory for the device table", name);
    for (let rid = 0; rid <= this.#last; rid++)
      memory.store64(this.#base + rid * Dte.bytes, Dte.fields.V.mask, 0);
    registers.write64(
      Register.DEVTAB_BASE,
      DeviceTableBase.make({ BASE: this.#base, SIZE: this.#frames - 1 }),
    );
  }

  /** Throws ENODEV when there is no entry for the requester. */
  require(rid: number): void {
    if (rid > this.#last)
      throw new LinuxError(
        "ENODEV",
        `requester 0x${rid.toString(16)}: its device table ends at 0x${this.#last.toString(16)}`,
        this.#name,
      );
  }

  /** Gives a requester this entry. The unit must be told. */
  write(rid: number, entry: DteValues): void {
    Dte.toWords(Dte.make(entry), this.#words);
    storeStructure(this.#memory, this.#base + rid * Dte.bytes, this.#words);
  }

  /** The unit must be off. */
  free(): void {
    this.#memory.free(this.#base, this.#frames);
  }
}
