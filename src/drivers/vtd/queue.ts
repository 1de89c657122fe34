/**
 * The driver's side of a VT-d invalidation queue (§6.5.2): one page of 128-bit descriptors. Every submission ends
 * with a wait descriptor whose status write tells that what stands before it is done.
 */
import {
  DESCRIPTOR_BYTES,
  DescriptorType,
  Fsts,
  Gcmd,
  InvalidationWait,
  IqaRegister,
  Register,
} from "../../hardware/vtd/spec.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { FRAME_BYTES } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Registers } from "./registers.ts";

const SLOTS = FRAME_BYTES / DESCRIPTOR_BYTES;
/** What a wait descriptor writes when it is done. */
const DONE = 2;
/** ADDR is wider than a field setter takes; it is two words from here. */
const STATUS_ADDRESS_WORD = InvalidationWait.fields.ADDR.word;

export class InvalidationQueue {
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #base: number;
  /** Where the status of a wait is written: a word a slot, as several waits may be under way. */
  readonly #status: number;
  readonly #wait = new Uint32Array(4);
  #tail = 0;

  constructor(registers: Registers, memory: HostMemory, name: string) {
    this.#registers = registers;
    this.#memory = memory;
    this.#name = name;
    this.#base = memory.allocate(1);
    this.#status = memory.allocate(1);
    if (this.#base < 0 || this.#status < 0)
      throw new LinuxError("ENOMEM", "no host memory for the invalidation queue", name);
    registers.write64(Register.IQT, 0n);
    registers.write64(Register.IQA, IqaRegister.make({ QS: 0, IQA: this.#base }));
    registers.command(Gcmd.QIE, true);
    const { fields } = InvalidationWait;
    fields.TYPE.set(this.#wait, DescriptorType.wait);
    fields.SW.set(this.#wait, 1);
    fields.STATUS.set(this.#wait, DONE);
  }

  /** Performs one invalidation and waits for it. Throws EIO when the unit refuses the descriptor, which is then skipped. */
  submit(descriptor: Uint32Array): void {
    this.#put(descriptor);
    const status = this.#status + this.#tail * 4;
    this.#memory.store32(status, 0);
    this.#wait[STATUS_ADDRESS_WORD] = status;
    this.#wait[STATUS_ADDRESS_WORD + 1] = Math.floor(status / 2 ** 32);
    this.#put(this.#wait);
    this.#registers.write64(Register.IQT, BigInt(this.#tail * DESCRIPTOR_BYTES));
    if (this.#memory.load32(status) && this.#memory.lo === DONE) return;
    this.#recover();
  }

  /** The queue must be off. */
  free(): void {
    this.#memory.free(this.#base, 1);
    this.#memory.free(this.#status, 1);
  }

  #put(words: Uint32Array): void {
    const at = this.#base + this.#tail * DESCRIPTOR_BYTES;
    this.#memory.store64(at, words[0]!, words[1]!);
    this.#memory.store64(at + 8, words[2]!, words[3]!);
    this.#tail = (this.#tail + 1) % SLOTS;
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
