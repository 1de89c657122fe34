/**
 * Root and context tables of a VT-d unit in legacy mode (revision 4.1, §9.1 and §9.3), with the invalidations that changes
 * of them need (§6.5.3.2): context cache, IOTLB. There are no PASIDs.
 */
import {
  ContextEntry,
  Granularity,
  RootEntry,
  RtaddrRegister,
  TranslationType,
  Ttm,
} from "../../hardware/vtd/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { VtdDevice } from "./device.ts";
import type { Translation } from "./translation.ts";
import type { Tables, Unit } from "./unit.ts";

export class LegacyTables implements Tables {
  readonly #unit: Unit;
  readonly #root: number;
  /** By bus. */
  readonly #contexts = new Map<number, number>();

  constructor(unit: Unit) {
    this.#unit = unit;
    this.#root = unit.memory.allocate(1);
    if (this.#root < 0) throw new LinuxError("ENOMEM", "no host memory for the root table", unit.name);
  }

  /** What RTADDR is to say. */
  get rootPointer(): bigint {
    return RtaddrRegister.make({ TTM: Ttm.legacy, RTA: this.#root });
  }

  /** The bus's table is made now, so that giving a domain never needs memory. */
  admit(device: VtdDevice): void {
    this.#contextEntry(device.rid);
  }

  expel(): void {}

  distrust(): void {}

  write(
    { rid }: VtdDevice,
    _pasid: number,
    next: Translation | undefined,
    before: Translation | undefined,
  ): void {
    const { invalidations, abilities } = this.#unit;
    const entry = this.#contextEntry(rid);
    this.#store(entry, next ? this.#entryOf(next) : 0n);
    if (before) {
      invalidations.context(Granularity.device, before.id, rid);
      invalidations.iotlb(Granularity.domain, before.id);
    }
    if (next && abilities.cachingMode) {
      invalidations.context(Granularity.device, 0, rid);
      invalidations.iotlb(Granularity.domain, next.id);
    }
  }

  free(): void {
    for (const table of this.#contexts.values()) this.#unit.memory.free(table, 1);
    this.#unit.memory.free(this.#root, 1);
  }

  #entryOf({ id, second }: Translation): bigint {
    const { secondLevels } = this.#unit.abilities;
    return second
      ? ContextEntry.make({
          P: 1,
          TT: TranslationType.secondStage,
          SSPTPTR: second.root,
          AW: second.levels - 2,
          DID: id,
        })
      : ContextEntry.make({ P: 1, TT: TranslationType.passThrough, AW: secondLevels[0]! - 2, DID: id });
  }

  #contextEntry(rid: number): number {
    const { memory, abilities, invalidations, name } = this.#unit;
    const bus = rid >>> 8;
    let table = this.#contexts.get(bus);
    if (table === undefined) {
      table = memory.allocate(1);
      if (table < 0)
        throw new LinuxError("ENOMEM", `no host memory for the context table of bus ${bus}`, name);
      this.#contexts.set(bus, table);
      this.#store(this.#root + bus * RootEntry.bytes, RootEntry.make({ P: 1, CTP: table }));
      if (abilities.cachingMode) invalidations.context(Granularity.global, 0, 0);
    }
    return table + (rid & 0xff) * ContextEntry.bytes;
  }

  /** 128 bits; the half with the present bit last. */
  #store(pa: number, value: bigint): void {
    const { memory } = this.#unit;
    const word = (index: number): number => Number((value >> BigInt(32 * index)) & 0xffff_ffffn);
    memory.store64(pa + 8, word(2), word(3));
    memory.store64(pa, word(0), word(1));
  }
}
