/**
 * The driver's side of a VT-d invalidation queue (§6.5.2): one page of descriptors, of 128 bits in legacy and of 256 in
 * scalable mode. Every submission ends with a wait descriptor whose status write tells that what stands before it is done.
 */
import {
  DESCRIPTOR_BYTES,
  DescriptorType,
  Fsts,
  Gcmd,
  InvalidationWait,
  IqaRegister,
  Register,
  WIDE_DESCRIPTOR_BYTES,
} from "../../hardware/vtd/spec.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { FRAME_BYTES } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Registers } from "./registers.ts";

/** What a wait descriptor writes when it is done. */
const DONE = 2;
/** ADDR is wider than a field setter takes; it is two words from here. */
const STATUS_ADDRESS_WORD = InvalidationWait.fields.ADDR.word;

export class InvalidationQueue {
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #base: number;
  readonly #bytes: number;
  readonly #slots: number;
  /** Where the status of a wait is written: a word a slot, as several waits may be under way. */
  readonly #status: number;
  readonly #wait = new Uint32Array(4);
  readonly #later: (() => void)[] = [];
  #tail = 0;
  #busy = false;

  constructor(registers: Registers, memory: HostMemory, name: string, wide: boolean) {
    this.#registers = registers;
    this.#memory = memory;
    this.#name = name;
    this.#bytes = wide ? WIDE_DESCRIPTOR_BYTES : DESCRIPTOR_BYTES;
    this.#slots = FRAME_BYTES / this.#bytes;
    this.#base = memory.allocate(1);
    this.#status = memory.allocate(1);
    if (this.#base < 0 || this.#status < 0)
      throw new LinuxError("ENOMEM", "no host memory for the invalidation queue", name);
    registers.write64(Register.IQT, 0n);
    registers.write64(Register.IQA, IqaRegister.make({ QS: 0, DW: wide, IQA: this.#base }));
    registers.command(Gcmd.QIE, true);
  }

  /** Performs one invalidation and waits for it. Throws EIO when the unit refuses the descriptor, which is then skipped. */
  submit(descriptor: Uint32Array): void {
    this.#perform(descriptor, false);
  }

  /** Waits until page requests that devices have made are in their queue (§7.11: PD). Throws EIO. */
  drain(): void {
    this.#perform(undefined, true);
  }

  /** Runs now, or when the submission that is under way is done: what it sets going may want to submit too. */
  whenIdle(run: () => void): void {
    if (this.#busy) this.#later.push(run);
    else run();
  }

  /** The queue must be off. */
  free(): void {
    this.#memory.free(this.#base, 1);
    this.#memory.free(this.#status, 1);
  }

  #perform(descriptor: Uint32Array | undefined, drains: boolean): void {
    this.#busy = true;
    try {
      if (descriptor) this.#put(descriptor);
      const status = this.#putWait(drains);
      this.#registers.write64(Register.IQT, BigInt(this.#tail * this.#bytes));
      if (!(this.#memory.load32(status) && this.#memory.lo === DONE)) this.#recover();
    } finally {
      this.#busy = false;
      while (this.#later.length > 0) this.#later.shift()!();
    }
  }

  #putWait(drains: boolean): number {
    const { TYPE, SW, FN, PD, STATUS } = InvalidationWait.fields;
    const wait = this.#wait;
    const status = this.#status + this.#tail * 4;
    this.#memory.store32(status, 0);
    wait.fill(0);
    TYPE.set(wait, DescriptorType.wait);
    SW.set(wait, 1);
    FN.set(wait, drains ? 1 : 0);
    PD.set(wait, drains ? 1 : 0);
    STATUS.set(wait, DONE);
    wait[STATUS_ADDRESS_WORD] = status;
    wait[STATUS_ADDRESS_WORD + 1] = Math.floor(status / 2 ** 32);
    this.#put(wait);
    return status;
  }

  #put(words: Uint32Array): void {
    const at = this.#base + this.#tail * this.#bytes;
    this.#memory.store64(at, words[0]!, words[1]!);
    this.#memory.store64(at + 8, words[2]!, words[3]!);
    for (let upper = DESCRIPTOR_BYTES; upper < this.#bytes; upper += 8)
      this.#memory.store64(at + upper, 0, 0);
    this.#tail = (this.#tail + 1) % this.#slots;
  }

  /** The queue stopped (§6.5.2.11): empty it, start it again, and say so. */
  #recover(): void {
    const errors = this.#registers.read32(Register.FSTS) & (Fsts.IQE | Fsts.ITE | Fsts.ICE);
    this.#registers.command(Gcmd.QIE, false);
    this.#registers.write32(Register.FSTS, errors);
    this.#tail = 0;
    this.#registers.write64(Register.IQT, 0n);
    this.#registers.command(Gcmd.QIE, true);
    throw new LinuxError(
      "EIO",
      `the unit did not complete an invalidation (FSTS 0x${errors.toString(16)})`,
      this.#name,
    );
  }
}
