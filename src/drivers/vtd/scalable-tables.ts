/**
 * Root, context and PASID tables of a VT-d unit in scalable mode (revision 4.1, §9.2 to §9.6), with the invalidations
 * that changes of them need, in the order of §6.5.3.3: PASID cache, IOTLB, device-TLB. A function has a PASID directory of
 * its own; the table of its first PASIDs is there with it, the others come and go with their entries.
 */
import {
  PASID_DIRECTORY_BITS,
  PASID_TABLE_BITS,
  PasidCacheGranularity,
  PasidDirectoryEntry,
  PasidEntry,
  Pgtt,
  ScalableContextEntry,
  ScalableRootEntry,
} from "../../hardware/vtd/scalable-spec.ts";
import { Granularity, RtaddrRegister, Ttm } from "../../hardware/vtd/spec.ts";
import { FRAME_BYTES } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { EVERYTHING } from "../range.ts";
import { RID_PASID, type VtdDevice } from "./device.ts";
import { isSame, type Translation } from "./translation.ts";
import type { Tables, Unit } from "./unit.ts";

interface PasidTable {
  readonly pa: number;
  used: number;
}
interface Directory {
  readonly pa: number;
  readonly frames: number;
  /** PDTS: 2^(PDTS + 7) entries. */
  readonly sizeLg2: number;
  readonly tables: Map<number, PasidTable>;
}

const WORD = 2 ** 32;
const TABLE_MASK = 2 ** PASID_TABLE_BITS - 1;
const NO_ENTRY = new Uint32Array(PasidEntry.words);

export class ScalableTables implements Tables {
  readonly #unit: Unit;
  readonly #root: number;
  /** Context tables by bus and half: bus · 2, plus 1 for devices 16 to 31. */
  readonly #contexts = new Map<number, number>();
  readonly #directories = new Map<number, Directory>();
  readonly #words = new Uint32Array(PasidEntry.words);
  /** The last PASID table entry that was made, and of what: many PASIDs are given the same. */
  readonly #made = new Uint32Array(PasidEntry.words);
  #madeOf: Translation | undefined;

  constructor(unit: Unit) {
    this.#unit = unit;
    this.#root = this.#allocate(1, "root table");
  }

  /** What RTADDR is to say. */
  get rootPointer(): bigint {
    return RtaddrRegister.make({ TTM: Ttm.scalable, RTA: this.#root });
  }

  admit(device: VtdDevice): void {
    if (this.#directories.has(device.rid)) return;
    const entry = this.#contextEntry(device.rid);
    const directory = this.#makeDirectory(device.pasidBits);
    this.#directories.set(device.rid, directory);
    this.#writeContext(entry, device, directory);
    if (this.#unit.abilities.cachingMode) this.#contextChanged(device);
  }

  /** The function keeps no translations from now on, and is believed none. */
  distrust(device: VtdDevice): void {
    const directory = this.#directories.get(device.rid);
    if (!directory) return;
    this.#writeContext(this.#contextEntry(device.rid), device, directory);
    this.#contextChanged(device);
  }

  expel(device: VtdDevice): void {
    const directory = this.#directories.get(device.rid);
    if (!directory) return;
    this.#store(this.#contextEntry(device.rid), ScalableContextEntry.words, 0n, ScalableContextEntry.toWords);
    this.#contextChanged(device);
    this.#directories.delete(device.rid);
    this.#freeDirectory(directory);
  }

  write(
    device: VtdDevice,
    pasid: number,
    next: Translation | undefined,
    before: Translation | undefined,
  ): void {
    const directory = this.#directories.get(device.rid)!;
    const table = this.#table(directory, pasid);
    const entry = table.pa + (pasid & TABLE_MASK) * PasidEntry.bytes;
    this.#storeWords(entry, next ? this.#entryWords(next) : NO_ENTRY);
    table.used += (next ? 1 : 0) - (before ? 1 : 0);
    const empty = table.used === 0 && pasid >>> PASID_TABLE_BITS !== 0;
    if (empty) this.#unlink(directory, pasid);
    if (before) this.#changed(device, pasid, before);
    else if (this.#unit.abilities.cachingMode) this.#appeared(next!);
    if (empty) this.#unit.memory.free(table.pa, 1);
  }

  free(): void {
    const { memory } = this.#unit;
    for (const directory of this.#directories.values()) this.#freeDirectory(directory);
    for (const table of this.#contexts.values()) memory.free(table, 1);
    memory.free(this.#root, 1);
  }

  // Invalidations

  #contextChanged({ rid }: VtdDevice): void {
    const { invalidations } = this.#unit;
    invalidations.context(Granularity.device, 0, rid);
    invalidations.pasidCacheAll();
  }

  /** An entry that was present says something else, or nothing. */
  #changed(device: VtdDevice, pasid: number, before: Translation): void {
    const { invalidations } = this.#unit;
    invalidations.pasidCache(PasidCacheGranularity.pasid, before.id, pasid);
    if (before.first && !before.second) invalidations.pasidIotlb(before.id, pasid, EVERYTHING);
    else invalidations.iotlb(Granularity.domain, before.id);
    this.#unit.flushDevice(device, pasid, EVERYTHING);
  }

  /** With CAP.CM the unit may know that nothing was there, under domain id 0 (§6.5.3.4). */
  #appeared(next: Translation): void {
    const { invalidations } = this.#unit;
    invalidations.pasidCacheAll();
    invalidations.iotlb(Granularity.domain, next.id);
  }

  // Entries

  #writeContext(entry: number, device: VtdDevice, directory: Directory): void {
    const value = ScalableContextEntry.make({
      P: 1,
      DTE: device.ats,
      PASIDE: device.pasidBits > 0,
      PRE: device.pri && device.ats,
      PDTS: directory.sizeLg2,
      PASIDDIRPTR: directory.pa,
      RID_PASID,
    });
    this.#store(entry, ScalableContextEntry.words, value, ScalableContextEntry.toWords);
  }

  #entryWords(next: Translation): Uint32Array {
    if (!this.#madeOf || !isSame(this.#madeOf, next)) {
      PasidEntry.toWords(this.#entryOf(next), this.#made);
      this.#madeOf = next;
    }
    return this.#made;
  }

  #entryOf({ id, first, second, snoop }: Translation): bigint {
    const { abilities } = this.#unit;
    return PasidEntry.make({
      P: 1,
      PGTT: first ? (second ? Pgtt.nested : Pgtt.first) : second ? Pgtt.second : Pgtt.passThrough,
      DID: id,
      AW: (second?.levels ?? abilities.secondLevels[0]!) - 2,
      ...(second && { SSPTPTR: second.root, SSADE: second.accessedDirty }),
      ...(first && {
        FSPTPTR: first.root,
        FSPM: first.levels - 4,
        SRE: first.supervisor,
        EAFE: first.extendedAccessed,
        WPE: first.writeProtect,
      }),
      PWSNP: abilities.walksSnoop,
      PGSNP: snoop,
    });
  }

  /** Words from the last to the first, which says that the entry is present: no access comes in between. */
  #store(
    pa: number,
    words: number,
    value: bigint,
    toWords: (value: bigint, words: Uint32Array) => void,
  ): void {
    toWords(value, this.#words);
    this.#storeWords(pa, this.#words.subarray(0, words));
  }

  #storeWords(pa: number, words: Uint32Array): void {
    for (let at = words.length - 2; at >= 0; at -= 2)
      this.#unit.memory.store64(pa + at * 4, words[at]!, words[at + 1]!);
  }

  /** Where the context entry of a requester is; makes its table when it is the first there. */
  #contextEntry(rid: number): number {
    const half = rid >>> 7;
    let table = this.#contexts.get(half);
    if (table === undefined) {
      table = this.#allocate(1, "context table");
      this.#contexts.set(half, table);
      const root = this.#root + (half >>> 1) * ScalableRootEntry.bytes + (half & 1) * 8;
      this.#unit.memory.store64(root, table + 1, Math.floor(table / WORD)); // LP or UP, and the pointer
    }
    return table + (rid & 0x7f) * ScalableContextEntry.bytes;
  }

  #makeDirectory(pasidBits: number): Directory {
    const sizeLg2 = Math.max(0, pasidBits - PASID_TABLE_BITS - PASID_DIRECTORY_BITS);
    const bytes = 2 ** (sizeLg2 + PASID_DIRECTORY_BITS) * PasidDirectoryEntry.bytes;
    const frames = Math.ceil(bytes / FRAME_BYTES);
    const pa = this.#allocate(frames, "PASID directory");
    const directory = { pa, frames, sizeLg2, tables: new Map<number, PasidTable>() };
    try {
      this.#table(directory, RID_PASID);
    } catch (error) {
      this.#unit.memory.free(pa, frames);
      throw error;
    }
    return directory;
  }

  /** The table a PASID's entry is in; made when it is not there. */
  #table(directory: Directory, pasid: number): PasidTable {
    const index = pasid >>> PASID_TABLE_BITS;
    const known = directory.tables.get(index);
    if (known) return known;
    const table = { pa: this.#allocate(1, "PASID table"), used: 0 };
    directory.tables.set(index, table);
    this.#link(directory, index, PasidDirectoryEntry.make({ P: 1, SMPTBLPTR: table.pa }));
    return table;
  }

  #unlink(directory: Directory, pasid: number): void {
    const index = pasid >>> PASID_TABLE_BITS;
    directory.tables.delete(index);
    this.#link(directory, index, 0n);
  }

  #link(directory: Directory, index: number, value: bigint): void {
    const at = directory.pa + index * PasidDirectoryEntry.bytes;
    this.#unit.memory.store64(at, Number(value & 0xffff_ffffn), Number(value >> 32n));
  }

  #freeDirectory({ pa, frames, tables }: Directory): void {
    for (const table of tables.values()) this.#unit.memory.free(table.pa, 1);
    this.#unit.memory.free(pa, frames);
  }

  #allocate(frames: number, what: string): number {
    const pa = this.#unit.memory.allocate(frames);
    if (pa < 0) throw new LinuxError("ENOMEM", `no host memory for a ${what}`, this.#unit.name);
    return pa;
  }
}
