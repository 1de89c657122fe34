/** An AMD-Vi unit on sparse memory with the little software its tests need: device table, tables, GCR3, rings. */
import { Random } from "../../base/clock.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import type { Declarations, Layout } from "../../uapi/layout.ts";
import type { Rmp } from "../rmp.ts";
import { decoded, EventLog, type UnitUnderTest } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import {
  CompletionWait,
  DeviceCommand,
  ENTRY_BYTES,
  EventEntry,
  InvalidatePages,
  Opcode,
  PprEntry,
} from "./queue-spec.ts";
import { ControlRegister, Dte, Gcr3Entry, MsiCapability, Register, RingBase } from "./spec.ts";
import { type AmdViCapabilities, AmdViUnit, type CachePolicy } from "./unit.ts";

export type Stages = "host" | "guest" | "nested";

export interface RigOptions {
  readonly stages?: Stages;
  readonly cache?: CachePolicy;
  readonly seed?: number;
  readonly iotlbEntries?: number;
  readonly capabilities?: AmdViCapabilities;
  /** Levels of host tables. */
  readonly mode?: number;
  /** Secure nested paging is on. */
  readonly rmp?: Rmp;
}

type Fields<L> =
  L extends Layout<infer F extends Declarations> ? { [K in keyof F]?: bigint | number | boolean } : never;
export type DteFields = Fields<typeof Dte>;
export type ControlFields = Fields<typeof ControlRegister>;

const MASK = (1n << 64n) - 1n;
const LEVEL_BITS = 9;
const IR = 1n << 61n;
const IW = 1n << 62n;
/** lg2 of the entries of the rings. */
const RING_LG2 = 8;
const RING_BYTES = ENTRY_BYTES * 2 ** RING_LG2;
const MEMORY_END = 0x8_0000_0000;

export const readWrite = Access.read | Access.write;
export const running: ControlFields = { IOMMU_EN: true, EVENT_LOG_EN: true, CMD_BUF_EN: true };

export class AmdViRig implements UnitUnderTest {
  readonly memory = new SparseMemory([{ start: 0x10_0000, end: MEMORY_END }], 0x2_0000_0000);
  readonly events = new EventLog();
  readonly messages: { readonly address: bigint; readonly data: number }[] = [];
  readonly unit: AmdViUnit;
  readonly registerBytes = Register.PPRLOG_TAIL + 8;
  readonly pageLg2s: readonly number[];
  readonly stages: Stages;
  readonly mode: number;
  readonly deviceTable: number;
  readonly commands: number;
  readonly eventLog: number;
  readonly pprLog: number;
  #tail = 0;
  #seen = 0;
  #seenPpr = 0;
  #domains = 0;
  readonly #tables = new Map<number, { readonly host: number; readonly guest: number }>();

  constructor(options: RigOptions = {}) {
    const { stages = "host", cache, seed = 1, iotlbEntries, capabilities, mode = 4, rmp } = options;
    this.stages = stages;
    this.mode = mode;
    this.pageLg2s = stages === "host" ? [12, 14, 21, 24, 30] : [12, 21, 30];
    this.unit = new AmdViUnit({
      name: "amdvi0",
      memory: this.memory,
      events: this.events,
      interrupt: (address, data) => this.messages.push({ address, data }),
      random: new Random(seed),
      ...(capabilities && { capabilities }),
      ...(cache && { cache }),
      ...(iotlbEntries && { iotlbEntries }),
      ...(rmp && { rmp }),
    });
    this.deviceTable = this.memory.allocate(512);
    // What is all zero passes: the devices of the first bus are stopped instead, until they are set up.
    for (let rid = 0; rid < 0x100; rid++) this.dte(rid, { TV: false });
    this.commands = this.memory.allocate(1);
    this.eventLog = this.memory.allocate(1);
    this.pprLog = this.memory.allocate(1);
  }

  store64(pa: number, value: bigint): void {
    this.memory.store64(pa, Number(value & 0xffff_ffffn), Number((value >> 32n) & 0xffff_ffffn));
  }

  load64(pa: number): bigint {
    this.memory.load64(pa);
    return (BigInt(this.memory.hi) << 32n) | BigInt(this.memory.lo);
  }

  storeBig(pa: number, value: bigint, bytes: number): void {
    for (let at = 0; at < bytes; at += 8) this.store64(pa + at, (value >> BigInt(8 * at)) & MASK);
  }

  loadEntry(pa: number): bigint {
    return (this.load64(pa + 8) << 64n) | this.load64(pa);
  }

  // Tables

  dte(rid: number, fields: DteFields): void {
    const standard = { V: true, TV: true, IR: true, IW: true };
    this.storeBig(this.deviceTable + rid * Dte.bytes, Dte.make({ ...standard, ...fields }), Dte.bytes);
  }

  /** Fields of a GCR3 table pointer. */
  gcr3Fields(table: number): DteFields {
    return {
      GV: true,
      GCR3_TRP_14: table & 0x7000,
      GCR3_TRP_30: table & 0x7fff_8000,
      GCR3_TRP_51: BigInt(table) & ~0x7fff_ffffn,
    };
  }

  /** Where the entry of an address lies in the table of a level (1: of 4 KiB pages); tables on the way are made by `link`. */
  entryAddress(
    table: number,
    levels: number,
    iova: number,
    level: number,
    link: (below: number, level: number) => bigint,
  ): number {
    let at = table;
    for (let here = levels; ; here--) {
      const shift = 12 + LEVEL_BITS * (here - 1);
      const slot = at + (Math.floor(iova / 2 ** shift) % 512) * 8;
      if (here === level) return slot;
      const entry = this.load64(slot);
      at = Number(entry & 0xf_ffff_ffff_f000n);
      if (entry !== 0n) continue;
      at = this.memory.allocate(1);
      this.store64(slot, link(at, here));
    }
  }

  /** A page of host tables; between the sizes of the levels by NextLevel 7, in all its entries. */
  mapHost(table: number, iova: number, pa: number, lg2: number, access: number, more = 0n): void {
    const level = Math.floor((lg2 - 12) / LEVEL_BITS) + 1;
    const shift = 12 + LEVEL_BITS * (level - 1);
    const allowed = (access & Access.read ? IR : 0n) | (access & Access.write ? IW : 0n);
    const size = lg2 === shift ? 0n : 0xe00n | ((1n << BigInt(lg2 - 1)) - 0x1000n);
    const entry = BigInt(pa) | size | allowed | more | (access & 3 ? 1n : 0n);
    const link = (below: number, at: number) => BigInt(below) | IR | IW | 1n | (BigInt(at - 1) << 9n);
    for (let at = iova; at < iova + 2 ** lg2; at += 2 ** shift)
      this.store64(this.entryAddress(table, this.mode, at, level, link), entry);
  }

  /** A page of guest tables, for requests with and without privilege. */
  mapGuest(table: number, va: number, pa: number, lg2: number, access: number, more = 0n): void {
    const level = (lg2 - 12) / LEVEL_BITS + 1;
    const present = access & Access.read ? 0x5n : 0n;
    const entry = BigInt(pa) | present | (access & Access.write ? 2n : 0n) | (level > 1 ? 0x80n : 0n) | more;
    const link = (below: number) => BigInt(below) | 7n;
    this.store64(this.entryAddress(table, 4, va, level, link), entry);
  }

  /** Host tables in which all memory is where it is. */
  identityTable(): number {
    const table = this.memory.allocate(1);
    for (let pa = 0; pa < MEMORY_END; pa += 2 ** 30) this.mapHost(table, pa, pa, 30, readWrite);
    return table;
  }

  /** A GCR3 table of one level with the root tables of these PASIDs. */
  gcr3(roots: { readonly [pasid: number]: number }): number {
    const table = this.memory.allocate(1);
    for (const [pasid, root] of Object.entries(roots))
      this.store64(table + 8 * Number(pasid), Gcr3Entry.make({ V: true, ADDR: root }));
    return table;
  }

  /** Where the GCR3 table of a device is. */
  gcr3Of(rid: number): number {
    const words = new Uint32Array(Dte.words);
    const at = this.deviceTable + rid * Dte.bytes;
    Dte.toWords((this.loadEntry(at + ENTRY_BYTES) << 128n) | this.loadEntry(at), words);
    const { GCR3_TRP_14, GCR3_TRP_30, GCR3_TRP_51 } = Dte.fields;
    return GCR3_TRP_14.get(words) + GCR3_TRP_30.get(words) + GCR3_TRP_51.get(words);
  }

  /** A domain of its own for a device, made when it is its first. */
  domain(rid: number): { readonly host: number; readonly guest: number } {
    const known = this.#tables.get(rid);
    if (known) return known;
    const { stages } = this;
    const host = stages === "nested" ? this.identityTable() : this.memory.allocate(1);
    const made = { host, guest: this.memory.allocate(1) };
    this.#tables.set(rid, made);
    this.#domains += 1;
    this.dte(rid, {
      DOMAIN: this.#domains,
      ...(stages !== "guest" && { MODE: this.mode, HOST_TRP: host }),
      ...(stages !== "host" && { ...this.gcr3Fields(this.gcr3({ 0: made.guest })), GIOV: true }),
    });
    return made;
  }

  map(rid: number, iova: number, pa: number, lg2: number, access: number): void {
    const { host, guest } = this.domain(rid);
    if (this.stages === "host") this.mapHost(host, iova, pa, lg2, access);
    else this.mapGuest(guest, iova, pa, lg2, access);
  }

  // Registers and rings

  write(register: number, value: number | bigint, width: 4 | 8 = 8): void {
    this.unit.mmioWrite(register, width, BigInt(value));
  }

  read(register: number, width: 4 | 8 = 8): number {
    return Number(this.unit.mmioRead(register, width));
  }

  control(fields: ControlFields): void {
    this.write(Register.CONTROL, ControlRegister.make(fields));
  }

  enable(fields: ControlFields = {}): void {
    const ring = (base: number) => RingBase.make({ BASE: base, LEN: RING_LG2 });
    this.write(Register.DEVTAB_BASE, this.deviceTable + 511);
    this.write(Register.CMDBUF_BASE, ring(this.commands));
    this.write(Register.EVTLOG_BASE, ring(this.eventLog));
    this.write(Register.PPRLOG_BASE, ring(this.pprLog));
    this.control({ ...running, GT_EN: this.stages !== "host", ...fields });
  }

  /** Sets up messages. */
  enableMessages(address: number, data: number): void {
    this.write(Register.MSI_ADDRESS, address, 4);
    this.write(Register.MSI_DATA, data, 4);
    this.write(Register.MSI_CAPABILITY, MsiCapability.fields.EN.mask, 4);
  }

  /** Puts commands in the buffer and tells the unit. */
  submit(...commands: bigint[]): void {
    for (const command of commands) {
      this.storeBig(this.commands + this.#tail, command, ENTRY_BYTES);
      this.#tail = (this.#tail + ENTRY_BYTES) % RING_BYTES;
    }
    this.write(Register.CMDBUF_TAIL, this.#tail);
  }

  /** The entries of the event log since the last time, decoded; the log is told that they were read. */
  takeEvents(): Record<string, bigint>[] {
    const tail = this.read(Register.EVTLOG_TAIL);
    const taken: Record<string, bigint>[] = [];
    for (; this.#seen !== tail; this.#seen = (this.#seen + ENTRY_BYTES) % RING_BYTES)
      taken.push(decoded(EventEntry, this.loadEntry(this.eventLog + this.#seen)));
    this.write(Register.EVTLOG_HEAD, tail);
    return taken;
  }

  /** The same of the PPR log. */
  takePageRequests(): Record<string, bigint>[] {
    const tail = this.read(Register.PPRLOG_TAIL);
    const taken: Record<string, bigint>[] = [];
    for (; this.#seenPpr !== tail; this.#seenPpr = (this.#seenPpr + ENTRY_BYTES) % RING_BYTES)
      taken.push(decoded(PprEntry, this.loadEntry(this.pprLog + this.#seenPpr)));
    this.write(Register.PPRLOG_HEAD, tail);
    return taken;
  }
}

export const wait = (values: Fields<typeof CompletionWait> = {}): bigint =>
  CompletionWait.make({ OPCODE: Opcode.COMPLETION_WAIT, ...values });
export const invalidateDevice = (rid: number): bigint =>
  DeviceCommand.make({ OPCODE: Opcode.INVALIDATE_DEVTAB_ENTRY, DEVICE: rid });
/** Of the 2^lg2 bytes around an address; 64: of all. */
export const invalidatePages = (
  domain: number,
  address: number,
  lg2: number,
  values: Fields<typeof InvalidatePages> = {},
): bigint => {
  const size = lg2 === 64 ? (1n << 63n) - 0x1000n : ((1n << BigInt(lg2 - 1)) - 1n) & ~0xfffn;
  const start = lg2 === 64 ? 0n : BigInt(address) & ~((1n << BigInt(lg2)) - 1n);
  return InvalidatePages.make({
    OPCODE: Opcode.INVALIDATE_IOMMU_PAGES,
    DOMAIN: domain,
    S: lg2 > 12,
    ADDRESS: start | size,
    ...values,
  });
};
