/**
 * One work queue of a `QueueFunction`: a page of registers with a portal that takes descriptors of 64 bytes. Descriptors
 * are carried out one after the other; each says which PASID its requests carry, or leaves it to the queue. How one ended
 * stands in registers and, where it says so, in a completion record in memory, written with the same PASID.
 */
import type { Scheduler } from "../../base/scheduler.ts";
import { bit, bits, layout } from "../../uapi/layout.ts";
import type { DmaPort } from "../function.ts";
import { RequestPasid, tagOf } from "./requests.ts";
import { Transfer } from "./transfer.ts";

/** Registers of a queue, dwords. */
export const QueueRegister = {
  /** A `QueueControl`. */
  CONTROL: 0x00,
  /** A `QueueStatus`. */
  STATUS: 0x04,
  /** A `QueueError`: why the queue is stopped. */
  ERROR: 0x08,
  /** Of the requests of descriptors without a PASID of their own; a `RequestPasid`. */
  PASID: 0x0c,
  /** Interrupt vector of descriptors that end with an interrupt. */
  VECTOR: 0x10,
  /** Descriptors that are taken and have not ended. */
  PENDING: 0x14,
  /** Descriptors that have ended since the queue was enabled, modulo 2^32. */
  ENDED: 0x18,
  /** How the last one ended, a `DescriptorStatus`, and the bytes that its last transfer moved. */
  LAST: 0x1c,
  DONE: 0x20,
  /**
   * Write-only: descriptors whose requests carry this PASID end at once, that under way too, and make no request any more.
   * For who takes the PASID away: it may be another user's next.
   */
  ABORT: 0x24,
  END: 0x28,
  /** Takes a descriptor, dword by dword or whole; the write of its last dword submits it. */
  PORTAL: 0x40,
} as const;
export const QUEUE_BYTES = 4096;
export const DESCRIPTOR_BYTES = 64;
/** Descriptors that a queue holds. */
export const QUEUE_DEPTH = 16;
/** Bytes that a descriptor can move. */
export const MOST_BYTES = 64 * 1024;

/** 0 disables: what the queue holds is forgotten, and it is not stopped any more. */
export const QueueControl = { DISABLE: 0, ENABLE: 1 } as const;
export const QueueStatus = { DISABLED: 0, IDLE: 1, BUSY: 2, STOPPED: 3 } as const;
/** The queue itself knows FULL alone; the others are shown by who stands between the queue and its user. */
export const QueueError = {
  NONE: 0,
  /** A descriptor came while the queue held all it can. */
  FULL: 1,
  /** A PASID that the user has not: in the queue's register, or in a descriptor. */
  PASID: 2,
  /** A descriptor came while the user does not let its device make requests (bus mastering). */
  MASTER: 3,
} as const;

/** Offsets in a descriptor. What is not named must be zero. */
export const Descriptor = {
  /** A `RequestPasid`. Not valid: the queue's. */
  PASID: 0x00,
  /** An `OperationWord`. */
  OPERATION: 0x04,
  /** 64-bit address of the completion record, a multiple of 16; 0: none. */
  COMPLETION: 0x08,
  /** Address, or for FILL the 8 bytes. */
  SOURCE: 0x10,
  DESTINATION: 0x18,
  /** Bytes, up to `MOST_BYTES`. */
  LENGTH: 0x20,
  END: 0x24,
} as const;
export const Operation = { NOTHING: 0, COPY: 1, FILL: 2 } as const;
export const OperationWord = layout("operation", 4, {
  Code: bits(0, 7, "operation", { 0: "nothing", 1: "copy", 2: "fill" }),
  Interrupt: bit(31, "ends with an interrupt"),
});

export const DescriptorStatus = { NONE: 0, DONE: 1, FAULT: 2, REFUSED: 3, ABORTED: 4 } as const;
/** A completion record, dwords: status, bytes done, and two that are zero. */
export const COMPLETION_BYTES = 16;

const word = (offset: number): number => offset / 4;

/** What of a function a queue uses. */
export interface QueueContext {
  readonly dma: DmaPort;
  readonly scheduler: Scheduler;
  signal(vector: number): void;
}

export class WorkQueue {
  readonly #context: QueueContext;
  readonly #transfer: Transfer;
  readonly #registers = new Uint32Array(word(QueueRegister.END));
  readonly #image = new Uint8Array(this.#registers.buffer);
  /** The descriptor that is being written. */
  readonly #portal = new Uint32Array(word(DESCRIPTOR_BYTES));
  #waiting: Uint32Array[] = [];
  /** The one under way. */
  #current: Uint32Array | undefined;

  constructor(context: QueueContext) {
    this.#context = context;
    this.#transfer = new Transfer(context.dma, context.scheduler);
  }

  read(offset: number, into: Uint8Array): void {
    into.fill(0);
    if (offset < this.#image.length) into.set(this.#image.subarray(offset, offset + into.length));
  }

  /** One aligned dword. */
  write(offset: number, value: number): void {
    const { CONTROL, PASID, VECTOR, ABORT, PORTAL } = QueueRegister;
    if (offset === CONTROL) this.#control(value);
    else if (offset === ABORT) this.#abort(value);
    else if (offset === PASID || offset === VECTOR) this.#set(offset, value);
    else if (offset >= PORTAL && offset < PORTAL + DESCRIPTOR_BYTES) this.#fill(offset - PORTAL, value);
  }

  /** Power-on state. */
  reset(): void {
    this.#transfer.cancel();
    this.#waiting = [];
    this.#current = undefined;
    this.#registers.fill(0);
    this.#portal.fill(0);
  }

  #get(offset: number): number {
    return this.#registers[word(offset)]!;
  }
  #set(offset: number, value: number): void {
    this.#registers[word(offset)] = value;
  }

  #control(value: number): void {
    const { CONTROL, STATUS, PASID, VECTOR } = QueueRegister;
    const enabled = this.#get(CONTROL) === QueueControl.ENABLE;
    if (value === QueueControl.DISABLE) {
      const [pasid, vector] = [this.#get(PASID), this.#get(VECTOR)];
      this.reset();
      this.#set(PASID, pasid);
      this.#set(VECTOR, vector);
    } else if (value === QueueControl.ENABLE && !enabled) {
      this.#set(CONTROL, value);
      this.#set(STATUS, QueueStatus.IDLE);
    }
  }

  #fill(offset: number, value: number): void {
    this.#portal[word(offset)] = value;
    if (offset !== DESCRIPTOR_BYTES - 4) return;
    const descriptor = this.#portal.slice();
    this.#portal.fill(0);
    this.#submit(descriptor);
  }

  #submit(descriptor: Uint32Array): void {
    const { STATUS, ERROR, PENDING } = QueueRegister;
    const status = this.#get(STATUS);
    if (status !== QueueStatus.IDLE && status !== QueueStatus.BUSY) return;
    if (this.#get(PENDING) === QUEUE_DEPTH) {
      this.#set(STATUS, QueueStatus.STOPPED);
      this.#set(ERROR, QueueError.FULL);
      return;
    }
    this.#waiting.push(descriptor);
    this.#set(PENDING, this.#get(PENDING) + 1);
    if (status === QueueStatus.BUSY) return;
    this.#set(STATUS, QueueStatus.BUSY);
    this.#next();
  }

  /** Begins the next descriptor; that of a stopped queue too, because it was taken before. */
  #next(): void {
    const descriptor = this.#waiting.shift();
    this.#current = descriptor;
    if (descriptor) this.#begin(descriptor);
    else if (this.#get(QueueRegister.STATUS) === QueueStatus.BUSY)
      this.#set(QueueRegister.STATUS, QueueStatus.IDLE);
  }

  #begin(descriptor: Uint32Array): void {
    this.#set(QueueRegister.DONE, 0);
    const length = descriptor[word(Descriptor.LENGTH)]!;
    const { COPY, FILL } = Operation;
    const { Code } = OperationWord.fields;
    const code = isPossible(descriptor) ? Code.get(descriptor, word(Descriptor.OPERATION)) : -1;
    const buffer = new Uint8Array(code === COPY || code === FILL ? length : 0);
    if (code === COPY)
      this.#move(descriptor, false, buffer, (ok) => {
        if (ok) this.#move(descriptor, true, buffer, (wrote) => this.#conclude(descriptor, wrote));
        else this.#conclude(descriptor, false);
      });
    else {
      const pattern = new Uint8Array(descriptor.buffer, Descriptor.SOURCE, 8);
      for (let at = 0; at < buffer.length; at += 1) buffer[at] = pattern[at % 8]!;
      // Nothing at all is a transfer of no bytes: it ends after the write that submitted it, too.
      this.#move(descriptor, true, buffer, (ok) =>
        this.#conclude(descriptor, code < 0 ? "refused" : ok || buffer.length === 0),
      );
    }
  }

  #move(descriptor: Uint32Array, write: boolean, buffer: Uint8Array, end: (ok: boolean) => void): void {
    const address = word(write ? Descriptor.DESTINATION : Descriptor.SOURCE);
    const moved = (bytes: number): void => this.#set(QueueRegister.DONE, bytes);
    this.#transfer.begin(
      {
        write,
        lo: descriptor[address]!,
        hi: descriptor[address + 1]!,
        buffer,
        tag: this.#tag(descriptor),
      },
      { moved, end },
    );
  }

  #tag(descriptor: Uint32Array) {
    const own = descriptor[word(Descriptor.PASID)]!;
    return tagOf(RequestPasid.fields.Valid.get([own]) ? own : this.#get(QueueRegister.PASID));
  }

  /** The operation is over: its record is written, as far as that is possible. */
  #conclude(descriptor: Uint32Array, how: boolean | "refused"): void {
    const { DONE, FAULT, REFUSED } = DescriptorStatus;
    const status = how === "refused" ? REFUSED : how ? DONE : FAULT;
    const [lo, hi] = [descriptor[word(Descriptor.COMPLETION)]!, descriptor[word(Descriptor.COMPLETION) + 1]!];
    if (status === REFUSED || (lo === 0 && hi === 0)) {
      this.#end(descriptor, status);
      return;
    }
    const record = new Uint32Array(word(COMPLETION_BYTES));
    record.set([status, this.#get(QueueRegister.DONE)]);
    const buffer = new Uint8Array(record.buffer);
    this.#transfer.begin(
      { write: true, lo, hi, buffer, tag: this.#tag(descriptor) },
      { end: (ok) => this.#end(descriptor, ok ? status : FAULT) },
    );
  }

  #end(descriptor: Uint32Array, status: number): void {
    this.#count(status);
    this.#next();
    this.#signal(descriptor);
  }

  #count(status: number): void {
    const { ENDED, LAST, PENDING } = QueueRegister;
    this.#set(LAST, status);
    this.#set(ENDED, this.#get(ENDED) + 1);
    this.#set(PENDING, this.#get(PENDING) - 1);
  }

  #signal(descriptor: Uint32Array): void {
    const { Interrupt } = OperationWord.fields;
    if (Interrupt.get(descriptor, word(Descriptor.OPERATION)) === 1)
      this.#context.signal(this.#get(QueueRegister.VECTOR));
  }

  #abort(pasid: number): void {
    const carries = (descriptor: Uint32Array): boolean => this.#tag(descriptor).pasid === pasid;
    const aborted = this.#waiting.filter(carries);
    this.#waiting = this.#waiting.filter((descriptor) => !carries(descriptor));
    const current = this.#current && carries(this.#current) ? this.#current : undefined;
    if (current) {
      this.#transfer.cancel();
      this.#end(current, DescriptorStatus.ABORTED);
    }
    for (const descriptor of aborted) {
      this.#count(DescriptorStatus.ABORTED);
      this.#signal(descriptor);
    }
  }
}

const isPossible = (descriptor: Uint32Array): boolean => {
  const { Code } = OperationWord.fields;
  const { COPY, FILL, NOTHING } = Operation;
  const code = Code.get(descriptor, word(Descriptor.OPERATION));
  const known = code === COPY || code === FILL || code === NOTHING;
  const reserved = Number(OperationWord.reserved) & descriptor[word(Descriptor.OPERATION)]!;
  const aligned = descriptor[word(Descriptor.COMPLETION)]! % COMPLETION_BYTES === 0;
  const rest = descriptor.subarray(word(Descriptor.END)).every((value) => value === 0);
  return known && reserved === 0 && aligned && rest && descriptor[word(Descriptor.LENGTH)]! <= MOST_BYTES;
};
