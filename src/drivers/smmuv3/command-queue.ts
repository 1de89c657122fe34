/**
 * The driver's side of an SMMUv3 command queue (IHI 0070, §4): commands are put into one page of memory, and every list of
 * them ends with a SYNC. The unit has done them when CONS has come to PROD. A command that it refuses is replaced by a
 * SYNC, so that the queue goes on, and told as EIO.
 */
import { COMMAND_BYTES, Opcode, SyncCommand } from "../../hardware/smmuv3/queue-spec.ts";
import {
  CMDQ_ERR_SHIFT,
  CommandError,
  Gerror,
  QUEUE_INDEX,
  QueueBase,
  Register,
} from "../../hardware/smmuv3/spec.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Registers } from "./registers.ts";

const FRAME_LG2 = Math.log2(FRAME_BYTES / COMMAND_BYTES);
const ERROR_MASK = 0x7f;

export class CommandQueue {
  /** Times that the unit refused a command, or a function did not answer an ATC_INV. */
  errors = 0;
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #base: number;
  readonly #entries: number;
  readonly #sync = new Uint32Array(SyncCommand.words);
  /** Where the next command goes, with the wrap bit; and how many the unit was not told of yet. */
  #prod = 0;
  #pending = 0;

  /** The queue must be off; `maximumLg2` is what the unit takes. Throws ENODEV, ENOMEM. */
  constructor(registers: Registers, memory: HostMemory, name: string, maximumLg2: number) {
    const lg2 = Math.min(FRAME_LG2, maximumLg2);
    if (lg2 < 1)
      throw new LinuxError("ENODEV", "its command queue has no room for a command and a SYNC (IDR1)", name);
    this.#registers = registers;
    this.#memory = memory;
    this.#name = name;
    this.#entries = 2 ** lg2;
    this.#base = memory.allocate(1);
    if (this.#base < 0) throw new LinuxError("ENOMEM", "no host memory for the command queue", name);
    SyncCommand.fields.OPCODE.set(this.#sync, Opcode.SYNC);
    registers.write64(Register.CMDQ_BASE, BigInt(this.#base + (lg2 & QueueBase.LOG2SIZE)));
    registers.write32(Register.CMDQ_PROD, 0);
    registers.write32(Register.CMDQ_CONS, 0);
  }

  /** Puts a command of four words into the queue; `sync` makes it happen. */
  push(command: Uint32Array): void {
    if (this.#pending === this.#entries - 1) this.sync();
    this.#put(command);
  }

  /** Everything pushed is done when it returns. Throws EIO when the unit refused one of the commands; the others are done. */
  sync(): void {
    if (this.#pending === 0) return;
    this.#put(this.#sync);
    this.#pending = 0;
    this.#registers.write32(Register.CMDQ_PROD, this.#prod);
    const refused = this.#wait();
    if (refused !== undefined) throw new LinuxError("EIO", `the unit refused ${refused}`, this.#name);
  }

  /** The queue must be off. */
  free(): void {
    this.#memory.free(this.#base, 1);
  }

  #put(words: Uint32Array): void {
    this.#store(this.#prod % this.#entries, words);
    this.#prod = (this.#prod + 1) % (2 * this.#entries);
    this.#pending += 1;
  }

  #store(index: number, words: Uint32Array): void {
    const at = this.#base + index * COMMAND_BYTES;
    this.#memory.store64(at, words[0]!, words[1]!);
    this.#memory.store64(at + 8, words[2]!, words[3]!);
  }

  /** Until CONS is at PROD (§7.1): what was refused on the way, for people. */
  #wait(): string | undefined {
    let refused: string | undefined;
    // Every round leaves one command behind, so that there are no more of them than commands.
    for (let round = 0; round <= 2 * this.#entries; round++) {
      const cons = this.#registers.read32(Register.CMDQ_CONS);
      if ((cons & QUEUE_INDEX) === this.#prod) return refused;
      this.errors += 1;
      const code = (cons >>> CMDQ_ERR_SHIFT) & ERROR_MASK;
      // §7.1 A SYNC that waited for a function is tried again; the function did not answer, and that is that.
      if (code !== CommandError.atcTimeout) {
        const index = (cons & QUEUE_INDEX) % this.#entries;
        refused ??= `command ${this.#show(index)} (CMDQ_CONS.ERR ${code})`;
        this.#store(index, this.#sync);
      }
      this.#registers.acknowledge(Gerror.CMDQ_ERR);
    }
    throw new LinuxError("EIO", "the unit does not take commands", this.#name);
  }

  #show(index: number): string {
    const at = this.#base + index * COMMAND_BYTES;
    const word = (offset: number): string => {
      this.#memory.load64(at + offset);
      const { hi, lo } = this.#memory;
      return `0x${(hi >>> 0).toString(16)}${(lo >>> 0).toString(16).padStart(8, "0")}`;
    };
    return `${word(0)} ${word(8)}`;
  }
}
