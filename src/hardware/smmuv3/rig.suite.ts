/** An SMMUv3 on sparse memory with the little software its tests need: stream table, contexts, tables, queues. */
import { Random } from "../../base/clock.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { type Granule, levelShift, stage1Start } from "../../pagetable/vmsa.ts";
import type { Declarations, Layout } from "../../uapi/layout.ts";
import { decoded, EventLog, type UnitUnderTest } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import {
  COMMAND_BYTES,
  EVENT_BYTES,
  EventRecord,
  Opcode,
  StreamCommand,
  SyncCommand,
  TlbiCommand,
} from "./queue-spec.ts";
import { Cd, Config, Cr0, Register, Ste } from "./spec.ts";
import { type CachePolicy, type SmmuCapabilities, SmmuV3Unit, type Wire } from "./unit.ts";

export type Stages = "stage1" | "stage2" | "nested";

export interface RigOptions {
  readonly stages?: Stages;
  readonly cache?: CachePolicy;
  readonly seed?: number;
  readonly iotlbEntries?: number;
  readonly granuleLg2?: Granule;
  readonly capabilities?: SmmuCapabilities;
}

type Fields<L> =
  L extends Layout<infer F extends Declarations> ? { [K in keyof F]?: bigint | number | boolean } : never;
export type SteFields = Fields<typeof Ste>;
export type CdFields = Fields<typeof Cd>;

const MASK = (1n << 64n) - 1n;
/** lg2 of the entries of the queues, of StreamIDs, and of the bits that tables translate. */
const QUEUE_LG2 = 4;
const STREAM_BITS = 16;
const INPUT_BITS = 42;
/** Encodings of a granule in TG0 and S2TG, and in TG1. */
const TG0 = { 12: 0, 14: 2, 16: 1 } as const;

export class SmmuRig implements UnitUnderTest {
  readonly memory = new SparseMemory([{ start: 0x10_0000, end: 0x8_0000_0000 }], 0x2_0000_0000);
  readonly events = new EventLog();
  readonly messages: { readonly address: bigint; readonly data: number }[] = [];
  readonly wires: Wire[] = [];
  readonly unit: SmmuV3Unit;
  /** Up to the last register. */
  readonly registerBytes: number;
  readonly pageLg2s: readonly number[];
  readonly streams: number;
  readonly granuleLg2: Granule;
  readonly stages: Stages;
  readonly commands: number;
  readonly eventQueue: number;
  #prod = 0;
  #seen = 0;
  #ids = 0;
  readonly #tables = new Map<number, { readonly stage1: number; readonly stage2: number }>();

  constructor(options: RigOptions = {}) {
    const { stages = "stage1", cache, seed = 1, iotlbEntries, granuleLg2 = 12, capabilities } = options;
    this.stages = stages;
    this.granuleLg2 = granuleLg2;
    this.pageLg2s = { 12: [12, 21, 30], 14: [14, 25], 16: [16, 29] }[granuleLg2];
    this.unit = new SmmuV3Unit({
      name: "smmu0",
      memory: this.memory,
      events: this.events,
      interrupt: (address, data) => this.messages.push({ address, data }),
      wire: (line) => this.wires.push(line),
      capabilities: { substreamIdBits: 8, ...capabilities },
      random: new Random(seed),
      ...(cache && { cache }),
      ...(iotlbEntries && { iotlbEntries }),
    });
    this.registerBytes = Register.PRIQ_CONS + 4;
    this.streams = this.memory.allocate(2 ** (STREAM_BITS + 6 - 12));
    this.commands = this.memory.allocate(1);
    this.eventQueue = this.memory.allocate(1);
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

  // Configuration

  ste(sid: number, fields: SteFields): void {
    this.storeBig(this.streams + sid * 64, Ste.make({ V: true, ...fields }), 64);
  }

  cd(at: number, fields: CdFields): void {
    const standard = { V: true, AA64: true, A: true, R: true, IPS: 4, EPD1: true, T0SZ: 64 - INPUT_BITS };
    this.storeBig(at, Cd.make({ ...standard, TG0: TG0[this.granuleLg2], ...fields }), 64);
  }

  /** STE fields of stage 2 with a table. */
  stage2Fields(table: number, vmid: number): SteFields {
    const start = this.#start();
    return {
      S2VMID: vmid,
      S2T0SZ: 64 - INPUT_BITS,
      S2SL0: this.granuleLg2 === 12 ? 2 - start : 3 - start,
      S2TG: TG0[this.granuleLg2],
      S2PS: 4,
      S2AA64: true,
      S2R: true,
      S2TTB: table,
    };
  }

  #start(): number {
    return stage1Start(this.granuleLg2, INPUT_BITS);
  }

  /** A table: of the start level or of the others. */
  table(): number {
    return this.memory.allocate(2 ** (this.granuleLg2 - 12));
  }

  /** Where the entry of an address lies, at the level of pages of 2^lg2 bytes; tables on the way are made by `make`. */
  entryAddress(table: number, iova: number, lg2: number, make = () => this.table()): number {
    let at = table;
    for (let level = this.#start(); ; level++) {
      const shift = levelShift(this.granuleLg2, level);
      const slot = at + (Math.floor(iova / 2 ** shift) % 2 ** (this.granuleLg2 - 3)) * 8;
      if (shift === lg2) return slot;
      const entry = this.load64(slot);
      at = Number(entry & 0xffff_ffff_f000n);
      if ((entry & 3n) === 3n) continue;
      at = make();
      this.store64(slot, BigInt(at) | 3n);
    }
  }

  /** A leaf of stage 1: unprivileged, not global. `access` 0: nothing is mapped. */
  leaf1(pa: number, lg2: number, access: number, more = 0n): bigint {
    if ((access & 3) === 0) return 0n;
    const readOnly = access & Access.write ? 0n : 0x80n;
    // Stage 1 cannot keep the unprivileged from reading what they may write.
    return BigInt(pa) | (lg2 === this.granuleLg2 ? 3n : 1n) | 0xc40n | readOnly | more;
  }

  leaf2(pa: number, lg2: number, access: number): bigint {
    if ((access & 3) === 0) return 0n;
    return BigInt(pa) | (lg2 === this.granuleLg2 ? 3n : 1n) | 0x43cn | (BigInt(access & 3) << 6n);
  }

  mapStage1(table: number, iova: number, pa: number, lg2: number, access: number, more = 0n): void {
    this.store64(this.entryAddress(table, iova, lg2), this.leaf1(pa, lg2, access, more));
  }

  mapStage2(table: number, ipa: number, pa: number, lg2: number, access: number): void {
    this.store64(this.entryAddress(table, ipa, lg2), this.leaf2(pa, lg2, access));
  }

  /** A stream of its own for a requester, made when it is its first. */
  stream(rid: number): { readonly stage1: number; readonly stage2: number } {
    const known = this.#tables.get(rid);
    if (known) return known;
    const made = { stage1: this.table(), stage2: this.table() };
    this.#tables.set(rid, made);
    this.#ids += 1;
    const { stages } = this;
    const cd = this.memory.allocate(1);
    this.cd(cd, { ASID: this.#ids, TTB0: made.stage1 });
    // Stage 2 has all memory where it is, for the structures of stage 1.
    if (stages === "nested")
      for (let pa = 0; pa < 0x8_0000_0000; pa += 2 ** this.pageLg2s.at(-1)!)
        this.mapStage2(made.stage2, pa, pa, this.pageLg2s.at(-1)!, Access.read | Access.write);
    this.ste(rid, {
      CONFIG: { stage1: Config.stage1, stage2: Config.stage2, nested: Config.nested }[stages],
      ...(stages !== "stage2" && { S1CONTEXTPTR: cd }),
      ...(stages !== "stage1" && this.stage2Fields(made.stage2, this.#ids)),
    });
    return made;
  }

  map(rid: number, iova: number, pa: number, lg2: number, access: number): void {
    const { stage1, stage2 } = this.stream(rid);
    const size = Math.max(lg2, this.granuleLg2);
    if (this.stages === "stage2") this.mapStage2(stage2, iova, pa, size, access);
    else this.mapStage1(stage1, iova, pa, size, access);
  }

  // Registers and queues

  write(register: number, value: number | bigint, width: 4 | 8 = 4): void {
    this.unit.mmioWrite(register, width, BigInt(value));
  }

  read(register: number, width: 4 | 8 = 4): bigint {
    return this.unit.mmioRead(register, width);
  }

  enable(cr0 = Cr0.SMMUEN | Cr0.EVENTQEN | Cr0.CMDQEN): void {
    this.write(Register.STRTAB_BASE, this.streams, 8);
    this.write(Register.STRTAB_BASE_CFG, STREAM_BITS);
    this.write(Register.CMDQ_BASE, this.commands + QUEUE_LG2, 8);
    this.write(Register.EVENTQ_BASE, this.eventQueue + QUEUE_LG2, 8);
    this.write(Register.CR0, cr0);
  }

  /** Puts commands in the queue and tells the unit; each at the place after the one before. */
  submit(...commands: bigint[]): void {
    for (const command of commands) {
      this.storeBig(this.commands + (this.#prod % 2 ** QUEUE_LG2) * COMMAND_BYTES, command, COMMAND_BYTES);
      this.#prod = (this.#prod + 1) % 2 ** (QUEUE_LG2 + 1);
    }
    this.write(Register.CMDQ_PROD, this.#prod);
  }

  /** CONS, and its error. */
  get consumed(): { readonly at: number; readonly error: number } {
    const value = Number(this.read(Register.CMDQ_CONS));
    return { at: value & 0xf_ffff, error: value >>> 24 };
  }

  get produced(): number {
    return this.#prod;
  }

  /** The events since the last time, decoded; the queue is told that they were read. */
  takeEvents(): Record<string, bigint>[] {
    const prod = Number(this.read(Register.EVENTQ_PROD)) & 0xf_ffff;
    const taken: Record<string, bigint>[] = [];
    for (; this.#seen !== prod; this.#seen = (this.#seen + 1) % 2 ** (QUEUE_LG2 + 1)) {
      let value = 0n;
      const at = this.eventQueue + (this.#seen % 2 ** QUEUE_LG2) * EVENT_BYTES;
      for (let offset = 24; offset >= 0; offset -= 8) value = (value << 64n) | this.load64(at + offset);
      taken.push(decoded(EventRecord, value));
    }
    const flag = Number(this.read(Register.EVENTQ_PROD)) & 0x8000_0000;
    this.write(Register.EVENTQ_CONS, (prod | flag) >>> 0);
    return taken;
  }
}

const addressed = (layout: typeof TlbiCommand, opcode: number, values: Fields<typeof TlbiCommand>): bigint =>
  layout.make({ OPCODE: opcode, ...values });
export const tlbi = (opcode: number, values: Fields<typeof TlbiCommand> = {}): bigint =>
  addressed(TlbiCommand, opcode, values);
export const cfgi = (opcode: number, values: Fields<typeof StreamCommand> = {}): bigint =>
  StreamCommand.make({ OPCODE: opcode, ...values });
export const sync = (values: Fields<typeof SyncCommand> = {}): bigint =>
  SyncCommand.make({ OPCODE: Opcode.SYNC, ...values });

export const readWrite = Access.read | Access.write;
