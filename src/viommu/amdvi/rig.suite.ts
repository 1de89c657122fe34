/** A guest's AMD-Vi unit without a driver: its registers, a device table, a command buffer and logs in guest memory. */
import { silent } from "../../base/events.ts";
import { gcr3Fields } from "../../drivers/amdvi/gcr3-table.ts";
import type { AmdViCapabilities } from "../../hardware/amdvi/capabilities.ts";
import {
  Command,
  CompletionWait,
  ENTRY_BYTES,
  EventEntry,
  Opcode,
  PprEntry,
} from "../../hardware/amdvi/queue-spec.ts";
import { ControlRegister, Dte, Gcr3Entry, Register, RingBase, Status } from "../../hardware/amdvi/spec.ts";
import { type Banks, createMemory } from "../../memory/banks.ts";
import { AmdViFrontEnd } from "./front-end.ts";

export type DteFields = Parameters<typeof Dte.make>[0];
type ControlFields = Parameters<typeof ControlRegister.make>[0];

const TABLE = 0x10_0000;
const COMMANDS = 0x11_0000;
const EVENTS = 0x11_1000;
const PPRS = 0x11_2000;
const DONE_AT = 0x11_3000;
const RING_LG2 = 8;
const ON: ControlFields = {
  ...{ IOMMU_EN: true, EVENT_LOG_EN: true, CMD_BUF_EN: true, GT_EN: true },
  ...{ PPR_LOG_EN: true, PPR_EN: true },
};

/** Guest translation by the GCR3 table there, as an entry says it. */
export const gcr3At = (table: number): DteFields => ({ GV: true, ...gcr3Fields(BigInt(table)) });

export class FrontEndRig {
  readonly memory: Banks = createMemory({ ramBytes: 2 ** 22 });
  readonly front: AmdViFrontEnd;
  #tail = 0;

  constructor(capabilities: AmdViCapabilities = {}) {
    const { memory } = this;
    this.front = new AmdViFrontEnd({
      name: "vIOMMU",
      memory,
      events: silent,
      interrupt: () => {},
      capabilities,
    });
  }

  close(): void {
    this.memory.close();
  }

  /** Every device of the first bus has an entry under which nothing passes; then the unit is switched on. */
  start(): void {
    for (let rid = 0; rid < 128; rid++) this.entry(rid, { TV: false });
    const ring = (at: number) => RingBase.make({ BASE: at, LEN: RING_LG2 });
    this.set(Register.DEVTAB_BASE, BigInt(TABLE));
    this.set(Register.CMDBUF_BASE, ring(COMMANDS));
    this.set(Register.EVTLOG_BASE, ring(EVENTS));
    this.set(Register.PPRLOG_BASE, ring(PPRS));
    this.control(ON);
  }

  set(register: number, value: bigint): void {
    this.front.mmioWrite(register, 8, value);
  }
  get(register: number): number {
    return Number(this.front.mmioRead(register, 8));
  }
  control(bits: ControlFields): void {
    this.set(Register.CONTROL, ControlRegister.make(bits));
  }
  /** As after an error: what stopped goes on. */
  restart(): void {
    this.control({ ...ON, CMD_BUF_EN: false });
    this.control(ON);
  }
  get running(): boolean {
    return (this.get(Register.STATUS) & Status.CMD_BUF_RUN) !== 0;
  }

  entry(rid: number, fields: DteFields): void {
    const standard = { V: true, TV: true, IR: true, IW: true };
    const bytes = new Uint8Array(Dte.bytes);
    Dte.write(bytes, Dte.make({ ...standard, ...fields }));
    this.memory.writeBytes(TABLE + rid * Dte.bytes, bytes);
  }

  /** The root table of a PASID in a GCR3 table of one level. */
  root(gcr3: number, pasid: number, root: number): void {
    const entry = Gcr3Entry.make({ V: root !== 0, ADDR: root });
    this.memory.store64(gcr3 + 8 * pasid, Number(entry & 0xffff_ffffn), Number(entry >> 32n));
  }

  /** Puts commands into the buffer, and a COMPLETION_WAIT; where each is in memory. */
  put(...commands: readonly bigint[]): number[] {
    const wait = CompletionWait.make({ OPCODE: Opcode.COMPLETION_WAIT, S: true, ADDRESS: DONE_AT, DATA: 1 });
    this.memory.store64(DONE_AT, 0, 0);
    return [...commands, wait].map((command) => {
      const at = COMMANDS + this.#tail;
      const bytes = new Uint8Array(ENTRY_BYTES);
      Command.write(bytes, command);
      this.memory.writeBytes(at, bytes);
      this.#tail = (this.#tail + ENTRY_BYTES) % (ENTRY_BYTES * 2 ** RING_LG2);
      return at;
    });
  }
  run(): void {
    this.set(Register.CMDBUF_TAIL, BigInt(this.#tail));
  }
  /** Everything up to the COMPLETION_WAIT was carried out. */
  get done(): boolean {
    return this.memory.load32(DONE_AT) && this.memory.lo === 1;
  }
  /** Where the head is, in memory. */
  get head(): number {
    return COMMANDS + this.get(Register.CMDBUF_HEAD);
  }

  /** Of the events since the start: code and address. */
  get events(): readonly { readonly code: number; readonly address: number }[] {
    return this.#entries(EVENTS, Register.EVTLOG_TAIL).map((bytes) => {
      const { CODE, ADDRESS } = EventEntry.view(bytes);
      return { code: Number(CODE), address: Number(ADDRESS) };
    });
  }
  /** Of the page requests since the start: device, PASID, group and address. */
  get pageRequests() {
    return this.#entries(PPRS, Register.PPRLOG_TAIL).map((bytes) => {
      const { DEVICE, PASID, TAG, ADDRESS } = PprEntry.view(bytes);
      return [DEVICE, PASID, TAG, ADDRESS].map(Number);
    });
  }

  #entries(base: number, tail: number): Uint8Array[] {
    return Array.from({ length: this.get(tail) / ENTRY_BYTES }, (_, index) => {
      const bytes = new Uint8Array(ENTRY_BYTES);
      this.memory.readBytes(base + index * ENTRY_BYTES, bytes);
      return bytes;
    });
  }
}
