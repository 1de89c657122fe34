/** A host bridge's translation on sparse memory with the little software its tests need: RTT, windows, TCE tables, PEST. */
import { Random } from "../../base/clock.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { type TceGeometry, tceGeometry, tceUnfit } from "../../pagetable/tce.ts";
import type { Declarations, Layout } from "../../uapi/layout.ts";
import { answer, EventLog, request, type UnitUnderTest } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import {
  IodaAddr,
  PEST_BYTES,
  Pest0,
  Pest1,
  PestBar,
  Phb4Config,
  Register,
  RTE_BYTES,
  RttBar,
  SIZE_LG2,
  Table,
  TceKill,
  Tve,
  WINDOWS,
} from "./spec.ts";
import { type CachePolicy, TceUnit } from "./unit.ts";

export const readWrite = Access.read | Access.write;
/** Log2 of the reach of a window. */
const REACH_LG2 = 40;
const NOTIFY = { address: 0xfee0_0000n, data: 7 } as const;

export interface RigOptions {
  readonly cache?: CachePolicy;
  readonly levels?: number;
  readonly iotlbEntries?: number;
  readonly pageLg2s?: readonly number[];
}

/** TCE tables in memory. */
interface Tables {
  readonly pe: number;
  readonly root: number;
  readonly geometry: TceGeometry;
}

type Fields<L> =
  L extends Layout<infer F extends Declarations> ? { [K in keyof F]?: bigint | number | boolean } : never;

export class TceRig implements UnitUnderTest {
  readonly memory = new SparseMemory([{ start: 0x10_0000, end: 0x8_0000_0000 }], 0x2_0000_0000);
  readonly events = new EventLog();
  readonly messages: { readonly address: bigint; readonly data: number }[] = [];
  readonly unit: TceUnit;
  readonly registerBytes: number;
  readonly pageLg2s: readonly number[];
  readonly rtt: number;
  readonly pest: number;
  readonly #levels: number;
  readonly #tables = new Map<number, Tables>();
  #pes = 0;

  constructor({ cache, levels = 3, iotlbEntries, pageLg2s }: RigOptions = {}) {
    this.unit = new TceUnit({
      name: "phb0",
      memory: this.memory,
      events: this.events,
      interrupt: (address, data) => this.messages.push({ address, data }),
      messages: { start: 0xfee0_0000, length: 0x10_0000 },
      random: new Random(1),
      ...(cache && { cache }),
      ...(iotlbEntries && { iotlbEntries }),
      ...(pageLg2s && { pageLg2s }),
    });
    this.registerBytes = this.unit.registerBytes;
    this.#levels = levels;
    this.pageLg2s = [12, 16, 24, 30].filter((lg2) => !tceUnfit(tceGeometry(REACH_LG2, lg2, levels)));
    this.rtt = this.memory.allocate(32);
    this.pest = this.memory.allocate(2);
  }

  write(register: number, value: bigint | number, width: 4 | 8 = 8): void {
    this.unit.mmioWrite(register, width, BigInt(value));
  }
  read(register: number): bigint {
    return this.unit.mmioRead(register, 8);
  }

  /** An entry of a table on the chip. */
  chip(table: number, entry: number, value: bigint): void {
    this.write(Register.IODA_ADDR, IodaAddr.make({ TSEL: table, TADR: entry }));
    this.write(Register.IODA_DATA0, value);
  }
  readChip(table: number, entry: number): bigint {
    this.write(Register.IODA_ADDR, IodaAddr.make({ TSEL: table, TADR: entry }));
    return this.read(Register.IODA_DATA0);
  }

  enable(): void {
    this.write(Register.PEST_BAR, PestBar.make({ ENABLE: true, BASE: this.pest }));
    this.write(Register.INT_NOTIFY_ADDR, NOTIFY.address);
    this.write(Register.INT_NOTIFY_INDEX, NOTIFY.data);
    this.write(Register.PHB4_CONFIG, Phb4Config.make({ MSI64_EN: true }));
    this.write(Register.RTT_BAR, RttBar.make({ ENABLE: true, BASE: this.rtt }));
  }

  /** The requester belongs to the PE. */
  rte(rid: number, pe: number): void {
    const bytes = new Uint8Array([pe >>> 8, pe]);
    this.memory.writeBytes(this.rtt + rid * RTE_BYTES, bytes);
  }

  /** Fields of a TVE for tables. */
  tveOf(root: number, { pageLg2, levels, tableLg2 }: TceGeometry): Fields<typeof Tve> {
    return { TABLE: root, LEVELS: levels - 1, TABLE_SIZE: tableLg2 - SIZE_LG2, PSIZE: pageLg2 - SIZE_LG2 };
  }
  tve(index: number, fields: Fields<typeof Tve>): void {
    this.chip(Table.TVT, index, Tve.make(fields));
  }

  table({ tableLg2 }: TceGeometry): number {
    return this.memory.allocate(2 ** (tableLg2 - 12));
  }

  /** What is mapped for a requester, in a PE of its own with window 0, made when it is its first. */
  tables(rid: number, pageLg2 = 12): Tables {
    const known = this.#tables.get(rid);
    if (known) return known;
    const geometry = tceGeometry(REACH_LG2, pageLg2, this.#levels);
    this.#pes += 1;
    const made = { pe: this.#pes, root: this.table(geometry), geometry };
    this.#tables.set(rid, made);
    this.rte(rid, made.pe);
    this.tve(made.pe * WINDOWS, this.tveOf(made.root, geometry));
    return made;
  }

  /** Where the TCE of an address lies; tables on the way are made. */
  place({ root, geometry }: Tables, iova: number): number {
    const width = geometry.tableLg2 - 3;
    let at = root;
    for (let level = geometry.levels - 1; ; level--) {
      const slot = at + (Math.floor(iova / 2 ** (geometry.pageLg2 + level * width)) % 2 ** width) * 8;
      if (level === 0) return slot;
      this.memory.load64be(slot);
      at = (this.memory.hi >>> 0) * 2 ** 32 + ((this.memory.lo & 0xffff_f000) >>> 0);
      if (at !== 0) continue;
      at = this.table(geometry);
      this.tce(slot, BigInt(at) | 3n);
    }
  }

  tce(at: number, value: bigint): void {
    this.memory.store64be(at, Number(value & 0xffff_ffffn), Number(value >> 32n));
  }

  map(rid: number, iova: number, pa: number, lg2: number, access: number): void {
    const tables = this.tables(rid, lg2);
    this.tce(this.place(tables, iova), BigInt(pa) | BigInt(access & 3));
  }

  kill(fields: Fields<typeof TceKill>): void {
    this.write(Register.TCE_KILL, TceKill.make(fields));
  }

  /** The PE's entry in the PE state table, decoded, without what is zero. */
  stateOf(pe: number): Record<string, bigint> {
    const word = (at: number) => {
      this.memory.load64be(at);
      return (BigInt(this.memory.hi >>> 0) << 32n) | BigInt(this.memory.lo >>> 0);
    };
    const at = this.pest + pe * PEST_BYTES;
    const fields = [...Pest0.decode(word(at)), ...Pest1.decode(word(at + 8))];
    return Object.fromEntries(
      fields.filter(({ value }) => value !== 0n).map(({ name, value }) => [name, value]),
    );
  }
}

/** What a read, or other access, of a requester does. */
export const access = (rig: TceRig, rid: number, iova: number | bigint, what: number = Access.read) => {
  const transaction = request(rid, 0, what);
  transaction.lo = Number(BigInt(iova) & 0xffff_ffffn);
  transaction.hi = Number(BigInt(iova) >> 32n);
  return answer(rig.unit, transaction);
};
