/** A zPCI unit on sparse memory with the little software its tests need: tables, anchors, instructions. */
import { Random } from "../../base/clock.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { answer, EventLog, request, type UnitUnderTest } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import {
  Control,
  Designation,
  ErrorEvent,
  EventControl,
  Fib,
  FunctionControl,
  HANDLE_ENABLED,
  Instruction,
  Iota,
  Register,
} from "./spec.ts";
import { type CachePolicy, type FunctionHost, ZpciUnit } from "./unit.ts";

export interface RigOptions {
  readonly cache?: CachePolicy;
  readonly iotlbEntries?: number;
  readonly host?: FunctionHost;
}

export const MSI_ADDRESS = 0xfee0_0000;
const END = 2n ** 42n;
const EMPTY = 0x420n;
const PROTECTED = 0x200n;
const TABLE_FRAMES = 4;
const ENTRIES = 2048;

export const handleOf = (rid: number): number => (HANDLE_ENABLED | rid) >>> 0;

export class ZpciRig implements UnitUnderTest {
  readonly memory = new SparseMemory([{ start: 0x10_0000, end: 0x8_0000_0000 }], 0x2_0000_0000);
  readonly events = new EventLog();
  readonly messages: { readonly address: bigint; readonly data: number }[] = [];
  readonly unit: ZpciUnit;
  readonly registerBytes = Register.EVENT_CONTROL + 4;
  readonly pageLg2s = [12];
  readonly block: number;
  readonly #roots = new Map<number, number>();

  constructor(options: RigOptions = {}) {
    this.unit = new ZpciUnit({
      name: "zpci0",
      memory: this.memory,
      events: this.events,
      interrupt: (address, data) => this.messages.push({ address, data }),
      msiAddress: MSI_ADDRESS,
      random: new Random(1),
      ...options,
    });
    this.block = this.memory.allocate(1);
  }

  // Tables

  store(pa: number, value: bigint): void {
    this.memory.store64be(pa, Number(value & 0xffff_ffffn), Number(value >> 32n));
  }
  load(pa: number): bigint {
    this.memory.load64be(pa);
    return (BigInt(this.memory.hi >>> 0) << 32n) | BigInt(this.memory.lo >>> 0);
  }

  table(frames = TABLE_FRAMES): number {
    const table = this.memory.allocate(frames);
    for (let index = 0; index < (frames === 1 ? 256 : ENTRIES); index++) this.store(table + 8 * index, EMPTY);
    return table;
  }

  /** The region-third table of a function. */
  root(rid: number): number {
    let root = this.#roots.get(rid);
    if (root === undefined) this.#roots.set(rid, (root = this.table()));
    return root;
  }

  /** Where the page-table entry of an address is; tables on the way are made. */
  place(root: number, iova: number): number {
    const region = root + 8 * (Math.floor(iova / 2 ** 31) % ENTRIES);
    if (this.load(region) === EMPTY) this.store(region, BigInt(this.table()) | 7n);
    const segment = Number(this.load(region) & ~0xfffn) + 8 * (Math.floor(iova / 2 ** 20) % ENTRIES);
    if (this.load(segment) === EMPTY) this.store(segment, BigInt(this.table(1)));
    return Number(this.load(segment) & ~0x7ffn) + 8 * (Math.floor(iova / 2 ** 12) % 256);
  }

  /** What is not to be read has no entry. */
  map(rid: number, iova: number, pa: number, _lg2: number, access: number): void {
    const protect = access & Access.write ? 0n : PROTECTED;
    this.store(this.place(this.root(rid), iova), access & Access.read ? BigInt(pa) | protect : EMPTY);
  }

  // Instructions

  write(register: number, value: number | bigint, width: 4 | 8 = 8): void {
    this.unit.mmioWrite(register, width, BigInt(value));
  }
  read(register: number, width: 4 | 8 = 4): number {
    return Number(this.unit.mmioRead(register, width));
  }

  /** Condition code and status. */
  instruct(instruction: number, handle: number, first: number | bigint, second: number | bigint) {
    this.write(Register.HANDLE, handle, 4);
    this.write(Register.OPERAND1, first);
    this.write(Register.OPERAND2, second);
    this.write(Register.INSTRUCTION, instruction, 4);
    return [this.read(Register.CONDITION), this.read(Register.STATUS)];
  }

  anchor(origin: number, designation: number = Designation.regionThird): bigint {
    return Iota.make({ ORIGIN: BigInt(origin), T: true, DT: designation });
  }

  modify(rid: number, operation: number, iota: bigint, pba = 0n, pal = END - 1n) {
    const bytes = new Uint8Array(Fib.bytes);
    Fib.write(bytes, Fib.make({ PBA: pba, PAL: pal, IOTA: iota }));
    this.memory.writeBytes(this.block, bytes);
    return this.instruct(Instruction.MPCIFC, handleOf(rid), this.block, operation);
  }

  refresh(rid: number, start: number | bigint, length: number | bigint) {
    return this.instruct(Instruction.RPCIT, handleOf(rid), start, length);
  }

  enable(): void {
    for (const [rid, root] of this.#roots) this.modify(rid, FunctionControl.REGISTER, this.anchor(root));
    this.write(Register.CONTROL, Control.REQUIRED, 4);
  }

  interruptAt(address: number, data: number): void {
    this.write(Register.EVENT_ADDRESS, address);
    this.write(Register.EVENT_DATA, data, 4);
    this.write(Register.EVENT_CONTROL, EventControl.ENABLE, 4);
  }

  /** The next event, decoded; undefined: there is none. */
  takeEvent(): Record<string, bigint> | undefined {
    const [condition] = this.instruct(Instruction.SEI, 0, this.block, 0);
    if (condition !== 0) return undefined;
    const bytes = new Uint8Array(ErrorEvent.bytes);
    this.memory.readBytes(this.block, bytes);
    const decoded = ErrorEvent.decode(ErrorEvent.read(bytes));
    return Object.fromEntries(decoded.map(({ name, value }) => [name, value]));
  }

  access(rid: number, iova: number, what: number = Access.read) {
    return answer(this.unit, request(rid, iova, what));
  }
}
