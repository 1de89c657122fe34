/** A VT-d unit in scalable mode with the little software its tests need: context and PASID entries, both stages, a queue. */

import type { UnitUnderTest } from "../unit.suite.ts";
import { type RigOptions, VtdRig } from "./rig.suite.ts";
import {
  PasidDirectoryEntry,
  PasidEntry,
  Pgtt,
  ScalableContextEntry,
  ScalableRootEntry,
} from "./scalable-spec.ts";
import { Gcmd, Register, RtaddrRegister, Ttm, WIDE_DESCRIPTOR_BYTES } from "./spec.ts";
import type { ScalableCapabilities } from "./unit.ts";

const MASK = (1n << 64n) - 1n;
type Values<L extends { readonly fields: object }> = { [K in keyof L["fields"]]?: bigint | number | boolean };

/** Everything a scalable-mode unit can have. */
export const everything: ScalableCapabilities = {
  secondStage: true,
  firstStage: true,
  nested: true,
  fiveLevels: true,
  firstStageGigabyte: true,
  pasidBits: 20,
  ridPasid: true,
  supervisorRequests: true,
  executeRequests: true,
  extendedAccessed: true,
  secondStageAccessedDirty: true,
  pageRequests: true,
  memoryTypes: true,
  pageWalkCoherency: true,
};

export interface ScalableOptions extends RigOptions {
  /** What `map` makes: a first stage, a second, or both. */
  readonly pgtt?: number;
}

export class ScalableRig extends VtdRig implements UnitUnderTest {
  readonly #pgtt: number;
  readonly #made = new Map<number, { first: number; second: number }>();
  #domain = 0;

  constructor({ pgtt = Pgtt.first, capabilities, ...rest }: ScalableOptions = {}) {
    super({
      ...rest,
      capabilities: { deviceTlb: true, scalable: everything, ...capabilities },
    });
    this.#pgtt = pgtt;
  }

  storeWide(pa: number, value: bigint, bytes: number): void {
    for (let at = 0; at < bytes; at += 8) this.store64(pa + at, (value >> BigInt(at * 8)) & MASK);
  }

  /** Where the scalable-mode context entry of a requester lies. */
  override contextAddress(rid: number): number {
    const at = this.root + (rid >>> 8) * ScalableRootEntry.bytes + ((rid & 0x80) !== 0 ? 8 : 0);
    let table = Number(this.load64(at) & ~0xfffn);
    if (table === 0) {
      table = this.memory.allocate(1);
      this.store64(at, BigInt(table) | 1n);
    }
    return table + (rid & 0x7f) * ScalableContextEntry.bytes;
  }

  /** Writes a context entry; the directory is kept, or made. */
  scalableContext(rid: number, values: Values<typeof ScalableContextEntry> = {}): void {
    const at = this.contextAddress(rid);
    const { PASIDDIRPTR } = ScalableContextEntry.fields;
    const directory = Number(PASIDDIRPTR.of(this.load64(at))) || this.memory.allocate(4);
    const entry = { P: true, PASIDE: true, DTE: true, PRE: true, PDTS: 4, PASIDDIRPTR: directory, ...values };
    this.storeWide(at, ScalableContextEntry.make(entry), ScalableContextEntry.bytes);
  }

  /** Where the PASID table entry lies; tables on the way are made. */
  pasidAddress(rid: number, pasid: number): number {
    const { PASIDDIRPTR } = ScalableContextEntry.fields;
    if (this.load64(this.contextAddress(rid)) === 0n) this.scalableContext(rid);
    const directory = Number(PASIDDIRPTR.of(this.load64(this.contextAddress(rid))));
    const at = directory + (pasid >>> 6) * PasidDirectoryEntry.bytes;
    let table = Number(PasidDirectoryEntry.fields.SMPTBLPTR.of(this.load64(at)));
    if (table === 0) {
      table = this.memory.allocate(1);
      this.store64(at, PasidDirectoryEntry.make({ P: true, SMPTBLPTR: table }));
    }
    return table + (pasid & 63) * PasidEntry.bytes;
  }

  pasid(rid: number, pasid: number, values: Values<typeof PasidEntry>): void {
    const entry = PasidEntry.make({ P: true, AW: 2, DID: 1, ...values });
    this.storeWide(this.pasidAddress(rid, pasid), entry, PasidEntry.bytes);
  }

  /** Maps a page of a first stage of 4 levels; tables on the way allow everything. `guest`: where its tables lie. */
  mapFirst(table: number, iova: number, pa: number, lg2: number, access: number, user = true): void {
    let at = table;
    for (let shift = 39; ; shift -= 9) {
      const slot = at + (Math.floor(iova / 2 ** shift) % 512) * 8;
      if (shift === lg2) {
        const bits = (access & 1) | (access & 2) | (user ? 4 : 0) | (lg2 > 12 ? 0x80 : 0);
        this.store64(slot, access === 0 ? 0n : BigInt(pa) | BigInt(bits | 1));
        return;
      }
      at = Number(this.load64(slot) & ~0xfffn & MASK);
      if (at !== 0) continue;
      at = this.memory.allocate(1);
      this.store64(slot, BigInt(at) | 7n);
    }
  }

  /** The tables of a requester, made and entered when it has none. */
  tablesOf(rid: number): { first: number; second: number } {
    let tables = this.#made.get(rid);
    if (tables) return tables;
    tables = { first: this.memory.allocate(1), second: this.memory.allocate(1) };
    this.#made.set(rid, tables);
    const nested = this.#pgtt === Pgtt.nested;
    // A nested second stage maps the tables and data of the tests to themselves.
    if (nested)
      for (let at = 0; at < 8; at++) this.mapPage(tables.second, 4, at * 2 ** 30, at * 2 ** 30, 30, 3);
    this.pasid(rid, 0, {
      PGTT: this.#pgtt,
      DID: ++this.#domain,
      FSPTPTR: tables.first,
      SSPTPTR: tables.second,
      WPE: true,
    });
    return tables;
  }

  override readonly descriptorBytes = WIDE_DESCRIPTOR_BYTES;

  override map(rid: number, iova: number, pa: number, lg2: number, access: number): void {
    const { first, second } = this.tablesOf(rid);
    if (this.#pgtt === Pgtt.second) this.mapPage(second, 4, iova, pa, lg2, access);
    // A first stage cannot forbid reading.
    else this.mapFirst(first, iova, pa, lg2, access & 2 ? 3 : access & 1);
  }

  override enable(): void {
    this.write(Register.RTADDR, RtaddrRegister.make({ RTA: this.root, TTM: Ttm.scalable }), 8);
    this.command(Gcmd.SRTP);
    this.command(Gcmd.TE);
  }
}
