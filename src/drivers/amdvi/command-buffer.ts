/**
 * The driver's side of an AMD-Vi command buffer (48882, revision 3.07, §2.4): commands are put into one page of memory, and
 * every list of them ends with a COMPLETION_WAIT, which stores a number when all before it is done. A command that the unit
 * refuses stops it; it is replaced by one that does nothing, so that the buffer goes on, and told as EIO.
 */
import { Command, CompletionWait, ENTRY_BYTES, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import { Register, RingBase, Status } from "../../hardware/amdvi/spec.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Registers } from "./registers.ts";

const ENTRIES = FRAME_BYTES / ENTRY_BYTES;
const LENGTH_LG2 = Math.log2(ENTRIES);
/** Index of the first word of what COMPLETION_WAIT stores. */
const DATA = CompletionWait.fields.DATA.word;

export class CommandBuffer {
  /** Times that the unit refused a command. */
  errors = 0;
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #base: number;
  /** Where numbers are stored. */
  readonly #completed: number;
  readonly #wait = new Uint32Array(CompletionWait.words);
  readonly #nothing = new Uint32Array(CompletionWait.words);
  /** Entry that the next command goes to; how many the unit was not told of yet; the last number that was waited for. */
  #tail = 0;
  #pending = 0;
  #number = 0;

  /** The buffer must be off. Throws ENOMEM. */
  constructor(registers: Registers, memory: HostMemory, name: string) {
    this.#registers = registers;
    this.#memory = memory;
    this.#name = name;
    this.#base = memory.allocate(2);
    if (this.#base < 0) throw new LinuxError("ENOMEM", "no host memory for the command buffer", name);
    this.#completed = this.#base + FRAME_BYTES;
    CompletionWait.toWords(
      CompletionWait.make({ OPCODE: Opcode.COMPLETION_WAIT, S: true, ADDRESS: this.#completed }),
      this.#wait,
    );
    Command.fields.OPCODE.set(this.#nothing, Opcode.COMPLETION_WAIT);
    registers.write64(Register.CMDBUF_BASE, RingBase.make({ BASE: this.#base, LEN: LENGTH_LG2 }));
  }

  /** Puts a command of four words into the buffer; `sync` makes it happen. */
  push(command: Uint32Array): void {
    if (this.#pending === ENTRIES - 2) this.sync();
    this.#put(command);
  }

  /** Everything pushed is done when it returns. Throws EIO when the unit refused one of the commands; the others are done. */
  sync(): void {
    if (this.#pending === 0) return;
    this.#number = (this.#number + 1) >>> 0;
    this.#wait[DATA] = this.#number;
    this.#put(this.#wait);
    this.#pending = 0;
    this.#registers.write32(Register.CMDBUF_TAIL, this.#tail * ENTRY_BYTES);
    const refused = this.#await();
    if (refused !== undefined) throw new LinuxError("EIO", `the unit refused ${refused}`, this.#name);
  }

  /** The buffer must be off. */
  free(): void {
    this.#memory.free(this.#base, 2);
  }

  #put(words: Uint32Array): void {
    this.#store(this.#tail, words);
    this.#tail = (this.#tail + 1) % ENTRIES;
    this.#pending += 1;
  }

  #store(entry: number, words: Uint32Array): void {
    const at = this.#base + entry * ENTRY_BYTES;
    this.#memory.store64(at, words[0]!, words[1]!);
    this.#memory.store64(at + 8, words[2]!, words[3]!);
  }

  /** Until the number is stored: what was refused on the way, for people. */
  #await(): string | undefined {
    let refused: string | undefined;
    // Every round leaves one command behind, so that there are no more of them than commands.
    for (let round = 0; round <= ENTRIES; round++) {
      if (this.#memory.load32(this.#completed) && this.#memory.lo >>> 0 === this.#number) return refused;
      if (this.#registers.status & Status.CMD_BUF_RUN) break;
      this.errors += 1;
      const entry = this.#registers.read32(Register.CMDBUF_HEAD) / ENTRY_BYTES;
      refused ??= `command ${this.#show(entry)}`;
      this.#store(entry, this.#nothing);
      this.#registers.restart("CMD_BUF_EN");
    }
    throw new LinuxError("EIO", "the unit does not take commands", this.#name);
  }

  #show(entry: number): string {
    const at = this.#base + entry * ENTRY_BYTES;
    const word = (offset: number): string => {
      this.#memory.load64(at + offset);
      const { hi, lo } = this.#memory;
      return `0x${(hi >>> 0).toString(16)}${(lo >>> 0).toString(16).padStart(8, "0")}`;
    };
    return `${word(0)} ${word(8)}`;
  }
}
