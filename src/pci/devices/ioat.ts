/**
 * A channel of Intel's QuickData Technology (I/OAT, CBDMA; 8086:2021, version 3.3) by the register descriptions in the data
 * sheets of Xeon processors ("Integrated I/O Configuration Registers"): follows a chain of descriptors in memory, copies and fills,
 * and tells how far it came in CHANSTS, at the completion address, and by its MSI-X vector.
 *
 * A channel that meets an error halts until it is reset. Requests carry no PASIDs. Left out: XOR and P+Q, DCA, data
 * integrity fields, interrupt delay, MSI and INTx.
 */
import { NO_PASID } from "../../hardware/unit.ts";
import { bit, bits, layout } from "../../uapi/layout.ts";
import { Endpoint, type FunctionContext } from "../pci-function.ts";
import { type TransferProgram, type TransferRequest, TransferSequence } from "./transfer.ts";

/** BAR 0. Those with 64 bits are two dwords, low first. */
export const IoatRegister = {
  /** Bytes: channels, log2 of the bytes of a transfer, GENCTRL, INTRCTRL. */
  CHANCNT: 0x00,
  XFERCAP: 0x01,
  INTRCTRL: 0x03,
  ATTNSTATUS: 0x04,
  CBVER: 0x08,
  DMACAPABILITY: 0x10,
  /** 16 bits; an `IoatControl`. */
  CHANCTRL: 0x80,
  /** Byte; an `IoatCommand`. */
  CHANCMD: 0x84,
  /** 16 bits: descriptors that software has made since the channel was reset. */
  DMACOUNT: 0x86,
  CHANSTS: 0x88,
  CHAINADDR: 0x90,
  CHANCMP: 0x98,
  CHANERR: 0xa8,
  CHANERRMASK: 0xac,
  END: 0xb0,
} as const;
const VERSION_3_3 = 0x33;
export const IOAT_TRANSFER_LG2 = 20;
const DMACAP_FILL = 1 << 6;
const MASTER_INTERRUPT_ENABLE = 1;
export const IoatControl = {
  /** An interrupt was sent; written 1: the next one may be. */
  INTERRUPT_DISABLE: 0x01,
  /** A channel that halts tells that at the completion address. */
  ERROR_COMPLETION: 0x04,
  ERROR_INTERRUPT: 0x10,
} as const;
export const IoatCommand = { SUSPEND: 0x04, RESET: 0x20 } as const;
/** The low bits of CHANSTS, above which is the address of the last descriptor that was completed. */
export const IoatStatus = { ACTIVE: 0, IDLE: 1, SUSPENDED: 2, HALTED: 3, ARMED: 4 } as const;
export const IoatError = {
  SOURCE_ADDRESS: 1 << 0,
  DESTINATION_ADDRESS: 1 << 1,
  NEXT_ADDRESS: 1 << 2,
  CONTROL: 1 << 10,
  LENGTH: 1 << 11,
  COMPLETION_ADDRESS: 1 << 12,
} as const;

export const IOAT_DESCRIPTOR_BYTES = 64;
export const IoatDescriptor = layout("descriptor", IOAT_DESCRIPTOR_BYTES, {
  Size: bits(0, 31, "bytes"),
  Interrupt: bit(32, "its end interrupts"),
  Completion: bit(35, "its end is told at the completion address"),
  Fence: bit(36, "what is before it ends first"),
  Null: bit(37, "a copy that moves nothing"),
  Operation: bits(56, 63, "operation", { 0: "copy", 1: "fill" }),
  /** Of a fill: the 8 bytes. */
  Source: bits(64, 127, "source"),
  Destination: bits(128, 191, "destination"),
  Next: bits(192, 255, "next descriptor"),
});
export const IoatOperation = { COPY: 0, FILL: 1 } as const;

const IDS = { vendorId: 0x8086, deviceId: 0x2021, classCode: 0x08_80_00 } as const;
const BAR_BYTES = 16 * 1024;
const MSIX = { vectors: 1, bar: 0, table: 0x2000, pending: 0x3000 } as const;
const CHUNK = 64 * 1024;
const WORD = 2 ** 32;
const COUNT_MASK = 0xffff;
const ADDRESS_MASK = ~(IOAT_DESCRIPTOR_BYTES - 1);
/** Of the layout's dwords. */
const Words = { SOURCE: 2, DESTINATION: 4, NEXT: 6 } as const;
const TAG = { pasid: NO_PASID, readExtra: 0, writeExtra: 0 } as const;

export class Ioat extends Endpoint {
  readonly #view = new DataView(new ArrayBuffer(IoatRegister.END));
  readonly #image = new Uint8Array(this.#view.buffer);
  readonly #sequence = new TransferSequence(this.dma, this.scheduler);
  readonly #chunk = new Uint8Array(CHUNK);
  /** Descriptors that were completed since the channel was reset, and where the next one is. */
  #done = 0;
  #next = { lo: 0, hi: 0 };

  constructor(context: FunctionContext) {
    super(
      { model: "ioat", ...IDS, msix: MSIX, bars: [{ index: 0, kind: "mem64", size: BAR_BYTES }] },
      context,
    );
    this.resetModel();
  }

  protected readBar(_index: number, offset: number, into: Uint8Array): void {
    into.fill(0);
    if (offset < IoatRegister.END) into.set(this.#image.subarray(offset, offset + into.length));
  }

  /** Registers take writes of their own width, or of halves of 64 bits. */
  protected writeBar(_index: number, offset: number, data: Uint8Array): void {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const { INTRCTRL, CHANCTRL, CHANCMD, DMACOUNT, CHANERR } = IoatRegister;
    if (data.length === 8 && offset % 8 === 0)
      for (const half of [0, 4]) this.#setAddress(offset + half, view.getUint32(half, true));
    else if (data.length === 1 && offset === INTRCTRL) this.#view.setUint8(INTRCTRL, data[0]! & 1);
    else if (data.length === 1 && offset === CHANCMD) this.#command(data[0]!);
    else if (data.length === 2 && offset === CHANCTRL) this.#control(view.getUint16(0, true));
    else if (data.length === 2 && offset === DMACOUNT) this.#count(view.getUint16(0, true));
    else if (data.length === 4 && offset === CHANERR)
      this.#set(CHANERR, this.#get(CHANERR) & ~view.getUint32(0, true));
    else if (data.length === 4 && offset % 4 === 0) this.#setAddress(offset, view.getUint32(0, true));
  }

  protected resetModel(): void {
    this.#image.fill(0);
    this.#image[IoatRegister.CHANCNT] = 1;
    this.#image[IoatRegister.XFERCAP] = IOAT_TRANSFER_LG2;
    this.#image[IoatRegister.CBVER] = VERSION_3_3;
    this.#set(IoatRegister.DMACAPABILITY, DMACAP_FILL);
    this.#resetChannel();
  }

  #get(offset: number): number {
    return this.#view.getUint32(offset, true);
  }
  #set(offset: number, value: number): void {
    this.#view.setUint32(offset, value, true);
  }

  get #status(): number {
    return this.#get(IoatRegister.CHANSTS) & 7;
  }
  set #status(status: number) {
    this.#set(IoatRegister.CHANSTS, (this.#get(IoatRegister.CHANSTS) & ADDRESS_MASK) | status);
  }

  /** Halves of CHAINADDR, CHANCMP, and the mask of errors. */
  #setAddress(offset: number, value: number): void {
    const { CHAINADDR, CHANCMP, CHANERRMASK } = IoatRegister;
    const inChain = offset === CHAINADDR || offset === CHAINADDR + 4;
    if (!inChain && offset !== CHANCMP && offset !== CHANCMP + 4 && offset !== CHANERRMASK) return;
    this.#set(offset, value);
    if (inChain) this.#next = { lo: this.#get(CHAINADDR), hi: this.#get(CHAINADDR + 4) };
  }

  #control(value: number): void {
    const { INTERRUPT_DISABLE } = IoatControl;
    const before = this.#view.getUint16(IoatRegister.CHANCTRL, true);
    const armed = (value & INTERRUPT_DISABLE) !== 0;
    const disabled = armed ? 0 : before & INTERRUPT_DISABLE;
    this.#view.setUint16(IoatRegister.CHANCTRL, (value & ~INTERRUPT_DISABLE) | disabled, true);
    if (armed) this.#set(IoatRegister.ATTNSTATUS, 0);
  }

  #command(command: number): void {
    if (command & IoatCommand.RESET) this.#resetChannel();
    else if (command & IoatCommand.SUSPEND && this.#status === IoatStatus.ACTIVE) {
      this.#sequence.cancel();
      this.#status = IoatStatus.SUSPENDED;
    }
  }

  #resetChannel(): void {
    this.#sequence.cancel();
    this.#done = 0;
    this.#view.setUint16(IoatRegister.DMACOUNT, 0, true);
    this.#set(IoatRegister.CHANSTS + 4, 0);
    this.#set(IoatRegister.CHANSTS, IoatStatus.ARMED);
  }

  /** There are so many descriptors now. One that was suspended is begun anew. */
  #count(count: number): void {
    this.#view.setUint16(IoatRegister.DMACOUNT, count, true);
    const { ACTIVE, HALTED } = IoatStatus;
    if (this.#status === HALTED || this.#status === ACTIVE || this.#left === 0) return;
    this.#status = ACTIVE;
    this.#sequence.begin(this.#run());
  }

  get #left(): number {
    return (this.#view.getUint16(IoatRegister.DMACOUNT, true) - this.#done) & COUNT_MASK;
  }

  /** Until there is none left, or one failed. */
  *#run(): TransferProgram {
    const words = new Uint32Array(IoatDescriptor.words);
    const bytes = new Uint8Array(words.buffer);
    const { Interrupt, Completion } = IoatDescriptor.fields;
    while (this.#left > 0) {
      const { lo, hi } = this.#next;
      const fetched = yield { write: false, lo, hi, buffer: bytes, tag: TAG };
      const error = fetched ? yield* this.#execute(words) : IoatError.NEXT_ADDRESS;
      if (error !== 0) {
        yield* this.#halt(error);
        return;
      }
      this.#done += 1;
      this.#next = { lo: words[Words.NEXT]!, hi: words[Words.NEXT + 1]! };
      const last = this.#left === 0;
      this.#set(IoatRegister.CHANSTS + 4, hi);
      this.#set(IoatRegister.CHANSTS, (lo & ADDRESS_MASK) | (last ? IoatStatus.IDLE : IoatStatus.ACTIVE));
      if (Completion.get(words) === 1 && !(yield this.#completion())) {
        yield* this.#halt(IoatError.COMPLETION_ADDRESS);
        return;
      }
      if (Interrupt.get(words) === 1) this.#interrupt();
      // Descriptors that came while the completion was told are this run's.
      if (this.#left > 0) this.#status = IoatStatus.ACTIVE;
    }
    this.#status = IoatStatus.IDLE;
  }

  /** An `IoatError`, or 0. */
  *#execute(words: Uint32Array): Generator<TransferRequest, number, boolean> {
    const { Operation, Size, Null } = IoatDescriptor.fields;
    const operation = Operation.get(words);
    if (operation !== IoatOperation.COPY && operation !== IoatOperation.FILL) return IoatError.CONTROL;
    if (operation === IoatOperation.COPY && Null.get(words) === 1) return 0;
    const size = Size.get(words);
    if (size === 0 || size > 2 ** IOAT_TRANSFER_LG2) return IoatError.LENGTH;
    const fills = operation === IoatOperation.FILL;
    if (fills) {
      const pattern = new Uint8Array(words.buffer, 4 * Words.SOURCE, 8);
      for (let at = 0; at < CHUNK; at++) this.#chunk[at] = pattern[at % 8]!;
    }
    for (let done = 0; done < size; ) {
      const buffer = this.#chunk.subarray(0, Math.min(CHUNK, size - done));
      if (!fills && !(yield request(words, Words.SOURCE, done, buffer, false)))
        return IoatError.SOURCE_ADDRESS;
      if (!(yield request(words, Words.DESTINATION, done, buffer, true)))
        return IoatError.DESTINATION_ADDRESS;
      done += buffer.length;
    }
    return 0;
  }

  /** CHANSTS, written to where software looks. */
  #completion(): TransferRequest {
    const { CHANSTS, CHANCMP } = IoatRegister;
    const buffer = this.#image.slice(CHANSTS, CHANSTS + 8);
    return { write: true, lo: this.#get(CHANCMP), hi: this.#get(CHANCMP + 4), buffer, tag: TAG };
  }

  *#halt(error: number): TransferProgram {
    this.#set(IoatRegister.CHANERR, this.#get(IoatRegister.CHANERR) | error);
    this.#status = IoatStatus.HALTED;
    const control = this.#view.getUint16(IoatRegister.CHANCTRL, true);
    const tells = (control & IoatControl.ERROR_COMPLETION) !== 0;
    if (tells && error !== IoatError.COMPLETION_ADDRESS) yield this.#completion();
    if (control & IoatControl.ERROR_INTERRUPT) this.#interrupt();
  }

  /** One is sent, and then none until software has armed it again. */
  #interrupt(): void {
    const { CHANCTRL, ATTNSTATUS, INTRCTRL } = IoatRegister;
    const control = this.#view.getUint16(CHANCTRL, true);
    const enabled = (this.#view.getUint8(INTRCTRL) & MASTER_INTERRUPT_ENABLE) !== 0;
    if (!enabled || control & IoatControl.INTERRUPT_DISABLE) return;
    this.#view.setUint16(CHANCTRL, control | IoatControl.INTERRUPT_DISABLE, true);
    this.#set(ATTNSTATUS, 1);
    this.signal(0);
  }
}

const request = (
  words: Uint32Array,
  address: number,
  plus: number,
  buffer: Uint8Array,
  write: boolean,
): TransferRequest => {
  const low = words[address]! + plus;
  const hi = (words[address + 1]! + Math.floor(low / WORD)) % WORD;
  return { write, lo: low % WORD, hi, buffer, tag: TAG };
};
