/** A VT-d unit on sparse memory with the little software its tests need: entries, tables, queue. */
import { Random } from "../../base/clock.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import type { Declarations, Layout } from "../../uapi/layout.ts";
import { EventLog, type UnitUnderTest } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import {
  ContextCacheInvalidate,
  ContextEntry,
  DESCRIPTOR_BYTES,
  DescriptorType,
  Gcmd,
  InvalidationWait,
  IotlbInvalidate,
  IqaRegister,
  Register,
  RootEntry,
  WIDE_DESCRIPTOR_BYTES,
} from "./spec.ts";
import { type CachePolicy, type VtdCapabilities, VtdUnit } from "./unit.ts";

export interface RigOptions {
  readonly cache?: CachePolicy;
  readonly seed?: number;
  readonly iotlbEntries?: number;
  readonly capabilities?: Partial<VtdCapabilities>;
}

export interface Entry {
  readonly aw?: number;
  readonly domain?: number;
  readonly table?: number;
  readonly type?: number;
  readonly fpd?: boolean;
  readonly present?: boolean;
}

const MASK = (1n << 64n) - 1n;

export class VtdRig implements UnitUnderTest {
  readonly memory = new SparseMemory([{ start: 0x10_0000, end: 0x8000_0000 }], 0x1000_0000);
  readonly events = new EventLog();
  readonly messages: { readonly address: bigint; readonly data: number }[] = [];
  readonly unit: VtdUnit;
  readonly pageLg2s = [12, 21, 30];
  readonly root: number;
  queue = -1;
  /** Bytes of the queue, and where the next descriptor goes. */
  queueBytes = 0x1000;
  tail = 0;
  readonly #tables = new Map<number, number>();
  #domains = 0;

  constructor({ cache, seed = 1, iotlbEntries, capabilities }: RigOptions = {}) {
    this.unit = new VtdUnit({
      name: "vtd0",
      memory: this.memory,
      events: this.events,
      interrupt: (address, data) => this.messages.push({ address, data }),
      capabilities: { addressWidths: [39, 48, 57], hostAddressWidth: 40, faultRecords: 4, ...capabilities },
      random: new Random(seed),
      ...(cache && { cache }),
      ...(iotlbEntries && { iotlbEntries }),
    });
    this.root = this.memory.allocate(1);
  }

  get registerBytes(): number {
    return this.unit.registerBytes;
  }

  store128(pa: number, value: bigint): void {
    this.store64(pa, value & MASK);
    this.store64(pa + 8, value >> 64n);
  }

  store64(pa: number, value: bigint): void {
    this.memory.store64(pa, Number(value & 0xffff_ffffn), Number((value >> 32n) & 0xffff_ffffn));
  }

  load64(pa: number): bigint {
    this.memory.load64(pa);
    return (BigInt(this.memory.hi) << 32n) | BigInt(this.memory.lo);
  }

  /** Where the context entry of a requester lies; its table is made when there is none. */
  contextAddress(rid: number): number {
    const at = this.root + (rid >>> 8) * 16;
    let table = Number(RootEntry.fields.CTP.of(this.load64(at)));
    if (table === 0) {
      table = this.memory.allocate(1);
      this.store128(at, RootEntry.make({ P: true, CTP: table }));
    }
    return table + (rid & 0xff) * 16;
  }

  context(
    rid: number,
    { aw = 2, domain = 1, table = 0, type = 0, fpd = false, present = true }: Entry,
  ): void {
    const entry = { P: present, FPD: fpd, TT: type, SSPTPTR: table, AW: aw, DID: domain };
    this.store128(this.contextAddress(rid), ContextEntry.make(entry));
  }

  /** Where the entry of an address lies, at the level of pages of 2^lg2 bytes; tables on the way are made. */
  entryAddress(table: number, levels: number, iova: number, lg2: number): number {
    let at = table;
    for (let shift = 12 + 9 * (levels - 1); ; shift -= 9) {
      const slot = at + (Math.floor(iova / 2 ** shift) % 512) * 8;
      if (shift === lg2) return slot;
      const entry = this.load64(slot);
      at = Number(entry & ~0xfffn);
      if (entry !== 0n) continue;
      at = this.memory.allocate(1);
      this.store64(slot, BigInt(at) | 3n);
    }
  }

  mapPage(table: number, levels: number, iova: number, pa: number, lg2: number, access: number): void {
    const leaf = BigInt(pa) | BigInt(access & 3) | (lg2 > 12 ? 0x80n : 0n);
    this.store64(this.entryAddress(table, levels, iova, lg2), leaf);
  }

  map(rid: number, iova: number, pa: number, lg2: number, access: number): void {
    let table = this.#tables.get(rid);
    if (table === undefined) {
      table = this.memory.allocate(1);
      this.#tables.set(rid, table);
      this.context(rid, { table, domain: ++this.#domains });
    }
    this.mapPage(table, 4, iova, pa, lg2, access);
  }

  write(register: number, value: number | bigint, width: 4 | 8 = 4): void {
    this.unit.mmioWrite(register, width, BigInt(value));
  }

  read(register: number, width: 4 | 8 = 4): bigint {
    return this.unit.mmioRead(register, width);
  }

  /** Sets bits of GCMD, with the enables that are on. */
  command(set: number, clear = 0): void {
    const enables = Number(this.read(Register.GSTS)) & (Gcmd.TE | Gcmd.QIE | Gcmd.IRE | Gcmd.CFI);
    this.write(Register.GCMD, ((enables & ~clear) | set) >>> 0);
  }

  enable(): void {
    this.write(Register.RTADDR, this.root, 8);
    this.command(Gcmd.SRTP);
    this.command(Gcmd.TE);
  }

  /** Makes a queue of 2^lg2 pages and enables it. */
  /** Of a descriptor; the upper half of a wide one is 0. */
  readonly descriptorBytes: number = DESCRIPTOR_BYTES;

  enableQueue(lg2 = 0): void {
    this.queue = this.memory.allocate(2 ** lg2);
    this.queueBytes = 0x1000 * 2 ** lg2;
    this.tail = 0;
    this.write(Register.IQT, 0, 8);
    const wide = this.descriptorBytes === WIDE_DESCRIPTOR_BYTES;
    this.write(Register.IQA, IqaRegister.make({ QS: lg2, DW: wide, IQA: this.queue }), 8);
    this.command(Gcmd.QIE);
  }

  /** Puts a descriptor in the queue without telling. */
  put(descriptor: bigint): void {
    this.store128(this.queue + this.tail, descriptor);
    this.tail = (this.tail + this.descriptorBytes) % this.queueBytes;
  }

  kick(): void {
    this.write(Register.IQT, this.tail, 8);
  }

  submit(...descriptors: bigint[]): void {
    for (const descriptor of descriptors) this.put(descriptor);
    this.kick();
  }

  get head(): number {
    return Number(this.read(Register.IQH, 8));
  }
}

type Values<L> =
  L extends Layout<infer F extends Declarations> ? { [K in keyof F]?: bigint | number | boolean } : never;

export const iotlb = (values: Values<typeof IotlbInvalidate>): bigint =>
  IotlbInvalidate.make({ TYPE: DescriptorType.iotlb, ...values });
export const contextCache = (values: Values<typeof ContextCacheInvalidate>): bigint =>
  ContextCacheInvalidate.make({ TYPE: DescriptorType.contextCache, ...values });
export const wait = (values: Values<typeof InvalidationWait>): bigint =>
  InvalidationWait.make({ TYPE: DescriptorType.wait, ...values });

export const readWrite = Access.read | Access.write;
