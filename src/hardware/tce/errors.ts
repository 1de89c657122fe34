/** How a bridge tells errors: the PE's entry in the PE state table, its bit in PEEV, a write to INT_NOTIFY_ADDR. */
import type { HostMemory } from "../../memory/host-memory.ts";
import { Access, type SendMessage, type Transaction } from "../unit.ts";
import type { ChipTables } from "./chip-tables.ts";
import { TceFault } from "./faults.ts";
import type { RegisterFile } from "./registers.ts";
import { PEST_BYTES, Pest0, Pest1, PestBar, Register, TransactionType } from "./spec.ts";

const FAIL_ADDR = (1n << 61n) - 1n;

export class Errors {
  readonly #registers: RegisterFile;
  readonly #memory: HostMemory;
  readonly #chip: ChipTables;
  readonly #send: SendMessage;

  constructor(registers: RegisterFile, memory: HostMemory, chip: ChipTables, send: SendMessage) {
    this.#registers = registers;
    this.#memory = memory;
    this.#chip = chip;
    this.#send = send;
  }

  /** False: the PE had an error before that is not cleared yet, or there is no table. */
  record(pe: number, { rid, lo, hi, access }: Transaction, code: number): boolean {
    const bar = this.#registers.get(Register.PEST_BAR);
    if (PestBar.fields.ENABLE.of(bar) === 0n || this.#chip.hasFailed(pe)) return false;
    const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    const at = Number(PestBar.fields.BASE.of(bar)) + pe * PEST_BYTES;
    const first = Pest0.make({
      TTYPE: access & Access.write ? TransactionType.write : TransactionType.read,
      PARITY_UE: code === TceFault.memory,
      IODA_ERROR: code === TceFault.ioda,
      TCE_PAGE_FAULT: code === TceFault.pageFault,
      TCE_ACCESS_FAULT: code === TceFault.accessFault,
      RID: rid,
    });
    if (!this.#store(at, first) || !this.#store(at + 8, Pest1.make({ FAIL_ADDR: address & FAIL_ADDR })))
      return false;
    this.#chip.fail(pe);
    const notify = this.#registers.get(Register.INT_NOTIFY_ADDR);
    if (notify !== 0n)
      this.#send(notify, Number(this.#registers.get(Register.INT_NOTIFY_INDEX) & 0xffff_ffffn));
    return true;
  }

  #store(pa: number, value: bigint): boolean {
    return this.#memory.store64be(pa, Number(value & 0xffff_ffffn), Number(value >> 32n));
  }
}
