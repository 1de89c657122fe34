/**
 * The `edu` device (1234:11e8) for people who learn to write drivers, by its description in QEMU's manual
 * (docs/specs/edu.rst): a liveness check, factorials, interrupts that software raises, and DMA between memory and a buffer
 * of 4096 bytes. A transfer that does not lie in the buffer is not made.
 */
import { NO_PASID } from "../../hardware/unit.ts";
import { Endpoint, type FunctionContext } from "../pci-function.ts";
import { Transfer } from "./transfer.ts";

/** BAR 0. Those from SOURCE on have 64 bits. */
export const EduRegister = {
  IDENTITY: 0x00,
  LIVENESS: 0x04,
  FACTORIAL: 0x08,
  /** An `EduStatus`. */
  STATUS: 0x20,
  INTERRUPTS: 0x24,
  RAISE: 0x60,
  ACKNOWLEDGE: 0x64,
  SOURCE: 0x80,
  DESTINATION: 0x88,
  COUNT: 0x90,
  /** An `EduCommand`. */
  COMMAND: 0x98,
  END: 0xa0,
} as const;
export const EDU_IDENTITY = 0x0100_00ed;
export const EduStatus = { COMPUTING: 0x01, INTERRUPT: 0x80 } as const;
export const EduCommand = { START: 1, TO_MEMORY: 2, INTERRUPT: 4 } as const;
/** What the end of a transfer, and of a factorial, raise. */
export const EduInterrupt = { FACTORIAL: 0x01, TRANSFER: 0x100 } as const;
/** Where the buffer lies, to its DMA. */
export const EDU_BUFFER = 0x4_0000;
export const EDU_BUFFER_BYTES = 4096;

const IDS = { vendorId: 0x1234, deviceId: 0x11e8, classCode: 0x00_ff_00, revision: 0x10 } as const;
const BAR_BYTES = 2 ** 20;
/** It reaches the first 256 MiB; what an address has beyond is dropped. */
const ADDRESS_MASK = 2 ** 28 - 1;
/** 34! and all after it are 0 in 32 bits. */
const LAST_FACTORIAL = 34;

const word = (offset: number): number => offset / 4;

const factorial = (value: number): number => {
  let product = 1;
  for (let factor = 2; factor <= Math.min(value, LAST_FACTORIAL); factor++)
    product = Math.imul(product, factor);
  return product >>> 0;
};

export class Edu extends Endpoint {
  readonly #registers = new Uint32Array(word(EduRegister.END));
  readonly #image = new Uint8Array(this.#registers.buffer);
  readonly #buffer = new Uint8Array(EDU_BUFFER_BYTES);
  readonly #transfer = new Transfer(this.dma, this.scheduler);
  /** Counts factorials: one that was deferred before a reset is void. */
  #run = 0;

  constructor(context: FunctionContext) {
    super(
      {
        model: "edu",
        ...IDS,
        interruptPin: 1,
        msiVectorsLg2: 0,
        bars: [{ index: 0, kind: "mem32", size: BAR_BYTES }],
      },
      context,
    );
    this.resetModel();
  }

  protected readBar(_index: number, offset: number, into: Uint8Array): void {
    if (!isAccess(offset, into.length)) into.fill(0xff);
    else {
      into.fill(0);
      into.set(this.#image.subarray(offset, offset + into.length));
    }
  }

  protected writeBar(_index: number, offset: number, data: Uint8Array): void {
    if (!isAccess(offset, data.length)) return;
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    for (let at = 0; at < data.length; at += 4) this.#write(offset + at, view.getUint32(at, true));
  }

  protected resetModel(): void {
    this.#run += 1;
    this.#transfer.cancel();
    this.#registers.fill(0);
    this.#set(EduRegister.IDENTITY, EDU_IDENTITY);
    this.#buffer.fill(0);
  }

  #get(offset: number): number {
    return this.#registers[word(offset)]!;
  }
  #set(offset: number, value: number): void {
    this.#registers[word(offset)] = value;
  }

  #write(offset: number, value: number): void {
    const { LIVENESS, FACTORIAL, STATUS, RAISE, ACKNOWLEDGE, SOURCE, COMMAND, END } = EduRegister;
    if (offset === LIVENESS) this.#set(LIVENESS, ~value);
    else if (offset === FACTORIAL) this.#compute(value);
    else if (offset === STATUS)
      this.#set(STATUS, (this.#get(STATUS) & ~EduStatus.INTERRUPT) | (value & EduStatus.INTERRUPT));
    else if (offset === RAISE) this.#raise(value);
    else if (offset === ACKNOWLEDGE) this.#show(this.#get(EduRegister.INTERRUPTS) & ~value);
    else if (offset === COMMAND) this.#command(value);
    else if (offset >= SOURCE && offset < END && !this.#isMoving) this.#set(offset, value);
  }

  get #isMoving(): boolean {
    return (this.#get(EduRegister.COMMAND) & EduCommand.START) !== 0;
  }

  /** While one is computed, another is not begun. */
  #compute(value: number): void {
    const { FACTORIAL, STATUS } = EduRegister;
    if (this.#get(STATUS) & EduStatus.COMPUTING) return;
    this.#set(FACTORIAL, value);
    this.#set(STATUS, this.#get(STATUS) | EduStatus.COMPUTING);
    this.#run += 1;
    const run = this.#run;
    this.scheduler.defer(() => {
      if (run !== this.#run) return;
      this.#set(FACTORIAL, factorial(value));
      this.#set(STATUS, this.#get(STATUS) & ~EduStatus.COMPUTING);
      if (this.#get(STATUS) & EduStatus.INTERRUPT) this.#raise(EduInterrupt.FACTORIAL);
    });
  }

  #raise(value: number): void {
    this.#show(this.#get(EduRegister.INTERRUPTS) | value);
    if (this.messages && this.#get(EduRegister.INTERRUPTS) !== 0) this.signal(0);
  }

  #show(interrupts: number): void {
    this.#set(EduRegister.INTERRUPTS, interrupts);
    this.drive(interrupts !== 0);
  }

  #command(value: number): void {
    const { SOURCE, DESTINATION, COUNT, COMMAND } = EduRegister;
    if (this.#isMoving) return;
    const write = (value & EduCommand.TO_MEMORY) !== 0;
    const from = this.#get(write ? SOURCE : DESTINATION) - EDU_BUFFER;
    const inside = from >= 0 && this.#isShort(write ? SOURCE : DESTINATION) && this.#isShort(COUNT);
    const count = this.#get(COUNT);
    const fits = inside && from + count <= EDU_BUFFER_BYTES;
    if ((value & EduCommand.START) === 0 || !fits) {
      this.#set(COMMAND, value & ~EduCommand.START);
      return;
    }
    this.#set(COMMAND, value);
    const lo = this.#get(write ? DESTINATION : SOURCE) & ADDRESS_MASK;
    const buffer = this.#buffer.subarray(from, from + count);
    const tag = { pasid: NO_PASID, readExtra: 0, writeExtra: 0 };
    this.#transfer.begin(
      { write, lo, hi: 0, buffer, tag },
      {
        end: () => {
          this.#set(COMMAND, this.#get(COMMAND) & ~EduCommand.START);
          if (value & EduCommand.INTERRUPT) this.#raise(EduInterrupt.TRANSFER);
        },
      },
    );
  }

  /** The upper half of a register is zero. */
  #isShort(register: number): boolean {
    return this.#get(register + 4) === 0;
  }
}

/** Registers below SOURCE take dwords; the others 64 bits too. */
const isAccess = (offset: number, length: number): boolean =>
  offset % length === 0 && (length === 4 || (length === 8 && offset >= EduRegister.SOURCE));
