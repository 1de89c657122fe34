/**
 * A page that a thread of a client shares with the daemon: short requests and their answers lie in it, an eventfd rings
 * for a request and a futex for the answer, unless the other side says in the page that it looks for them. It saves the
 * two socket messages of a call, and the two wake-ups when both sides are busy. What the client writes may change at any
 * moment: a request is copied once and then looked at. Left out: descriptors and long bodies, which go over the
 * connection, as do all calls of a thread that has made few.
 */
import { closeSync } from "node:fs";
import koffi from "koffi";
import * as libc from "../base/libc.ts";
import { LinuxError } from "../uapi/errno.ts";
import { MailboxPage, ReplyHeader, RequestHeader } from "./protocol.ts";
import { outgoing, received } from "./syscalls.ts";

const c = koffi.load(null);
const native = {
  eventfd: c.func("eventfd", "int", ["uint", "int"]),
  syscall: c.func("syscall", "int64_t", ["int64_t", "int64_t", "int", "int"]),
};

const SYS_FUTEX = 202;
const FUTEX_WAKE = 1;
const EFD_CLOEXEC_NONBLOCK = 0o2004000;
const MFD_ALLOW_SEALING = 2;
const F_SETSIG = 10;
const F_ADD_SEALS = 1033;
const F_SEAL_SHRINK = 2;
const F_SEAL_GROW = 4;
const ALL = 0x7fff_ffff;

const REQUEST_WORD = MailboxPage.request / 4;
const REPLY_WORD = MailboxPage.reply / 4;
const CLOSED_WORD = MailboxPage.closed / 4;
const LOOKING_WORD = MailboxPage.looking / 4;
const TAKEN_WORD = MailboxPage.taken / 4;
const SLEEPS_WORD = MailboxPage.sleeps / 4;

/** A mark on our eventfds, by which the library knows them from others of the same number. */
const DOORBELL_SIGNAL = 61;

export class Mailbox {
  /** Rings when a request may be there. */
  readonly doorbell: number;
  readonly #base: number;
  readonly #bytes: Uint8Array;
  readonly #words: Int32Array;
  /** To be sent to the client; then it is not needed any more. */
  #file: number;
  /** Sequence number of the request that came last. */
  #taken = 0;
  /** The last request was answered, and the client did not sleep then: it looks for answers. */
  clientLooks = false;
  /** A request was found without its ring, which may still come. */
  ringMayBeLate = false;

  /** Throws a `SystemError` when there is no memory or no descriptor. */
  constructor() {
    const file = libc.must(
      "memfd_create",
      libc.memfdCreate("softiommu mailbox", libc.MFD_CLOEXEC | MFD_ALLOW_SEALING),
    );
    try {
      libc.must("ftruncate", libc.ftruncate(file, MailboxPage.size));
      // A client that made it shorter would have us killed.
      libc.must("fcntl", libc.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
      const { read, write } = libc.Prot;
      const { shared } = libc.MapFlag;
      this.#base = libc.must("mmap", libc.mmap(0, MailboxPage.size, read | write, shared, file, 0));
    } catch (error) {
      closeSync(file);
      throw error;
    }
    this.doorbell = native.eventfd(0, EFD_CLOEXEC_NONBLOCK);
    if (this.doorbell < 0) {
      closeSync(file);
      libc.munmap(this.#base, MailboxPage.size);
      throw new libc.SystemError("eventfd", koffi.errno());
    }
    libc.fcntl(this.doorbell, F_SETSIG, DOORBELL_SIGNAL);
    this.#file = file;
    const memory = libc.viewOf(this.#base, MailboxPage.size);
    this.#bytes = new Uint8Array(memory);
    this.#words = new Int32Array(memory);
  }

  /** What the client gets: the page and the doorbell. Valid until the first request. */
  get descriptors(): readonly number[] {
    return [this.#file, this.doorbell];
  }

  /** Whether the request being answered came this way. */
  holds(seq: number): boolean {
    return this.#taken === seq;
  }

  /** Whether there is a request to take. */
  get posted(): boolean {
    return Atomics.load(this.#words, REQUEST_WORD) >>> 0 !== this.#taken;
  }

  /** Whether the client need not ring. What it has posted before it could see this must be looked for afterwards. */
  announce(looking: boolean): void {
    Atomics.store(this.#words, LOOKING_WORD, looking ? 1 : 0);
  }

  /** Copies a new request into `received`; its length, -1 when there is none. */
  take(): number {
    const seq = Atomics.load(this.#words, REQUEST_WORD) >>> 0;
    if (seq === this.#taken) return -1;
    this.#taken = seq;
    Atomics.store(this.#words, TAKEN_WORD, seq | 0);
    this.clientLooks = false;
    this.#release();
    const length = Math.min(this.#words[MailboxPage.length / 4]! >>> 0, MailboxPage.room);
    received.bytes.set(this.#bytes.subarray(MailboxPage.body, MailboxPage.body + length));
    if (received.fds.length > 0) received.fds = [];
    // What the number says and what the page says must be one request.
    return length >= RequestHeader.size && received.view.getUint32(RequestHeader.seq, true) === seq
      ? length
      : 0;
  }

  /** Answers with the first `length` bytes of `outgoing`; false: too long, they must go over the connection. */
  answer(length: number): boolean {
    if (length > MailboxPage.room) return false;
    this.#bytes.set(outgoing.bytes.subarray(0, length), MailboxPage.answer);
    this.#wake();
    return true;
  }

  /** The answer went over the connection. */
  answerElsewhere(): void {
    this.#bytes.fill(0, MailboxPage.answer, MailboxPage.answer + ReplyHeader.size);
    this.#wake();
  }

  /** Nobody will look into it any more: whoever waits takes the connection. */
  close(): void {
    Atomics.store(this.#words, CLOSED_WORD, 1);
    this.#ring();
    this.#release();
    closeSync(this.doorbell);
    libc.munmap(this.#base, MailboxPage.size);
  }

  /** The client says that it sleeps and looks for the answer then; we answer and look whether it sleeps then. */
  #wake(): void {
    Atomics.store(this.#words, REPLY_WORD, this.#taken | 0);
    this.clientLooks = Atomics.load(this.#words, SLEEPS_WORD) === 0;
    if (!this.clientLooks) this.#ring();
  }

  #ring(): void {
    native.syscall(SYS_FUTEX, this.#base + MailboxPage.reply, FUTEX_WAKE, ALL);
  }

  #release(): void {
    if (this.#file >= 0) closeSync(this.#file);
    this.#file = -1;
  }
}

/** Throws ENOMEM when there is no memory or no descriptor for it. */
export const openMailbox = (): Mailbox => {
  try {
    return new Mailbox();
  } catch (error) {
    if (error instanceof libc.SystemError)
      throw new LinuxError("ENOMEM", `there is no mailbox: ${error.message}`);
    throw error;
  }
};
