/** Queues (§4.1) and the commands in them, as the controller keeps them. Addresses are two 32-bit words. */
import type { Media } from "./media.ts";
import { PrpWalk } from "./prp.ts";
import { CommandWord, CQE_BYTES, SQE_BYTES, SqeWord } from "./spec.ts";

const WORD = 0x1_0000_0000;

abstract class Queue {
  readonly id: number;
  readonly size: number;
  readonly #lo: number;
  readonly #hi: number;
  readonly #entryBytes: number;
  head = 0;
  tail = 0;
  /** A DMA for the queue itself (fetching, posting) waits for the unit. */
  parked = false;
  /** Deleted, or gone with a reset: what comes back to it is void. */
  gone = false;
  /** Address of the entry found by `locate`. */
  lo = 0;
  hi = 0;

  constructor(id: number, size: number, lo: number, hi: number, entryBytes: number) {
    this.id = id;
    this.size = size;
    this.#lo = lo;
    this.#hi = hi;
    this.#entryBytes = entryBytes;
  }

  locate(index: number): void {
    const low = this.#lo + index * this.#entryBytes;
    this.lo = low >>> 0;
    this.hi = low >= WORD ? this.#hi + 1 : this.#hi;
  }

  next(index: number): number {
    return index + 1 === this.size ? 0 : index + 1;
  }
}

export class CompletionQueue extends Queue {
  readonly vector: number;
  readonly interrupts: boolean;
  /** Inverted with each lap; a new entry has the phase the host does not see there yet. */
  phase = 1;
  /** Completions that wait for room or for the unit, first come first. */
  readonly waiting: Command[] = [];
  /** Submission queues that complete here. */
  users = 0;

  constructor(id: number, size: number, lo: number, hi: number, vector: number, interrupts: boolean) {
    super(id, size, lo, hi, CQE_BYTES);
    this.vector = vector;
    this.interrupts = interrupts;
  }

  get full(): boolean {
    return this.next(this.tail) === this.head;
  }

  /** Entries the host has not consumed. */
  get unread(): number {
    return (this.tail - this.head + this.size) % this.size;
  }
}

export class SubmissionQueue extends Queue {
  readonly cq: CompletionQueue;
  /** Fetched and not completed, asynchronous event requests excepted. */
  outstanding = 0;

  constructor(id: number, size: number, lo: number, hi: number, cq: CompletionQueue) {
    super(id, size, lo, hi, SQE_BYTES);
    this.cq = cq;
  }
}

export const CommandState = {
  free: 0,
  /** Being fetched or executed now. */
  running: 1,
  /** Waits for the unit. */
  parked: 2,
  /** Goes on in a later slice. */
  ready: 3,
  /** An asynchronous event request without an event. */
  held: 4,
  /** Its completion is to be posted. */
  completing: 5,
} as const;

/** What is done with the data of a command. */
export const Transfer = {
  none: 0,
  toHost: 1,
  fromHost: 2,
  mediaRead: 3,
  mediaWrite: 4,
  mediaZero: 5,
  /** Data of the host against the medium. */
  mediaCompare: 6,
} as const;

/** A command from its fetch to its completion; used again afterwards. */
export class Command {
  readonly words = new Uint32Array(SQE_BYTES / 4);
  readonly bytes = new Uint8Array(this.words.buffer);
  readonly prp = new PrpWalk();
  sq: SubmissionQueue | undefined;
  state: number = CommandState.free;
  /** Among those its queue has outstanding. */
  counted = false;
  /** Changes whenever the command goes on: a resumption for an earlier one is void. */
  ticket = 0;
  transfer: number = Transfer.none;
  /** Bytes still to be moved; where the next one is in the medium or the payload. */
  left = 0;
  offset = 0;
  payload: Uint8Array | undefined;
  /** The medium of the namespace it is about. */
  media: Media | undefined;
  /** Called once when the data has been moved; returns the status, or sets up what is to be done next. */
  received: (() => number) | undefined;
  /** Flush the medium before completing. */
  through = false;
  status = 0;
  result = 0;

  get opcode(): number {
    return this.words[SqeWord.COMMAND]! & CommandWord.fields.OPC.mask;
  }
  get cid(): number {
    return this.words[SqeWord.COMMAND]! >>> CommandWord.fields.CID.shift;
  }
  get nsid(): number {
    return this.words[SqeWord.NSID]!;
  }
  /** Command-specific dword 10 … 15. */
  cdw(number: 10 | 11 | 12 | 13 | 14 | 15): number {
    return this.words[number]!;
  }

  begin(sq: SubmissionQueue): void {
    this.sq = sq;
    this.state = CommandState.running;
    this.transfer = Transfer.none;
    this.left = 0;
    this.offset = 0;
    this.payload = undefined;
    this.media = undefined;
    this.received = undefined;
    this.through = false;
    this.status = 0;
    this.result = 0;
  }
}
