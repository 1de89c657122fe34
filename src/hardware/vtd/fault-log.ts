/**
 * Primary fault logging of a VT-d unit (revision 4.1, §7.2.1 and §11.4.9): the ring of fault recording registers, the
 * fault status register, and the fault event. A fault of a requester that already has a pending record is merged into
 * it, as the specification allows.
 */
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import type { EventMessage } from "./event-message.ts";
import type { RegisterFile } from "./registers.ts";
import { FaultRecording, Fsts, FstsRegister, Register } from "./spec.ts";

const { FI, SID, T2, PRIV, EXE, PP, FR, PV, T1, F } = FaultRecording.fields;
const RECORD_WORDS = FaultRecording.words;
/** What the fault event is about. */
const CONDITIONS = Fsts.PFO | Fsts.PPF | Fsts.IQE | Fsts.ICE | Fsts.ITE;

export class FaultLog {
  readonly #registers: RegisterFile;
  /** Index of the first record's first word. */
  readonly #base: number;
  readonly #count: number;
  readonly #event: EventMessage;
  /** The record that the next fault goes to. */
  #next = 0;

  constructor(registers: RegisterFile, offset: number, count: number, event: EventMessage) {
    this.#registers = registers;
    this.#base = offset / 4;
    this.#count = count;
    this.#event = event;
  }

  reset(): void {
    this.#next = 0;
  }

  /** False: the fault was merged, or lost to the overflow. */
  record({ rid, pasid, lo, hi, access }: Transaction, code: number): boolean {
    const { words } = this.#registers;
    if ((this.#registers.get(Register.FSTS) & Fsts.PFO) !== 0 || this.#pending(rid)) return false;
    const at = this.#base + this.#next * RECORD_WORDS;
    if ((words[at + F.word]! & F.mask) !== 0) {
      this.raise(Fsts.PFO);
      return false;
    }
    const atomic = (access & Access.atomic) !== 0;
    words.fill(0, at, at + RECORD_WORDS);
    words[at] = lo & FI.mask;
    words[at + 1] = hi;
    SID.set(words, rid, at);
    T1.set(words, atomic || (access & Access.write) === 0 ? 1 : 0, at);
    T2.set(words, atomic ? 1 : 0, at);
    FR.set(words, code, at);
    F.set(words, 1, at);
    if (pasid !== NO_PASID) {
      PP.set(words, 1, at);
      PV.set(words, pasid, at);
      PRIV.set(words, (access & Access.privileged) !== 0 ? 1 : 0, at);
      EXE.set(words, (access & Access.execute) !== 0 ? 1 : 0, at);
    }
    if ((this.#registers.get(Register.FSTS) & Fsts.PPF) === 0)
      FstsRegister.fields.FRI.set(words, this.#next, Register.FSTS / 4);
    this.#next = (this.#next + 1) % this.#count;
    this.raise(Fsts.PPF);
    return true;
  }

  /** Sets a bit of FSTS; an interrupt condition unless one was already there (§11.4.10, IP). */
  raise(condition: number): void {
    const status = this.#registers.get(Register.FSTS);
    this.#registers.set(Register.FSTS, status | condition);
    if ((status & CONDITIONS) === 0) this.#event.trigger();
  }

  /** Software cleared an F or a bit of FSTS: PPF follows the records; with nothing left, nothing is pending. */
  settle(): void {
    let status = this.#registers.get(Register.FSTS);
    if ((status & Fsts.PPF) !== 0 && !this.#anyPending()) status &= ~(Fsts.PPF | Fsts.FRI);
    this.#registers.set(Register.FSTS, status);
    if ((status & CONDITIONS) === 0) this.#event.serviced();
  }

  #isPending(index: number): boolean {
    return (this.#registers.words[this.#base + index * RECORD_WORDS + F.word]! & F.mask) !== 0;
  }

  #anyPending(): boolean {
    for (let i = 0; i < this.#count; i++) if (this.#isPending(i)) return true;
    return false;
  }

  #pending(rid: number): boolean {
    const { words } = this.#registers;
    for (let i = 0; i < this.#count; i++)
      if (this.#isPending(i) && SID.get(words, this.#base + i * RECORD_WORDS) === rid) return true;
    return false;
  }
}
