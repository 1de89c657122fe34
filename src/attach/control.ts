/** A control connection: one thread of a client, and the request of it that is being served, if any. */
import type { KernelFile, Task } from "../kernel/call.ts";
import { Errno, LinuxError } from "../uapi/errno.ts";
import type { Connection } from "./connection.ts";
import type { EmulatedFile, FileTable } from "./emulated-file.ts";
import type { Place } from "./lookout.ts";
import type { Mailbox } from "./mailbox.ts";
import type { AttachedProcess, Caller } from "./process.ts";
import { sendOutgoing } from "./syscalls.ts";

/** A request as the connection knows it. */
export interface Ongoing {
  readonly seq: number;
  /** A signal arrived at the caller. */
  interrupt(): void;
  /** Nobody waits for the answer any more. */
  cancel(): void;
}

export class Control implements Connection, Place {
  readonly fd: number;
  readonly peer: { readonly pid: number; readonly uid: number };
  readonly #files: FileTable;
  /** The two words of the image that the first request named. */
  imageLo = 0;
  imageHi = 0;
  /** Known from the first request on. */
  caller: Caller | undefined;
  /** Where short requests and answers go, once the thread has asked for it. */
  mailbox: Mailbox | undefined;
  /** Suspended, or being served right now. */
  request: Ongoing | undefined;

  constructor(fd: number, peer: { readonly pid: number; readonly uid: number }, files: FileTable) {
    this.fd = fd;
    this.peer = peer;
    this.#files = files;
  }

  /** Sends the first `length` bytes of `outgoing` as the answer of a request. False: the other end is gone. */
  answer(seq: number, length: number, fds: readonly number[]): boolean {
    const { mailbox } = this;
    if (mailbox?.holds(seq) !== true) return sendOutgoing(this.fd, length, fds) >= 0;
    if (fds.length === 0 && mailbox.answer(length)) return true;
    const sent = sendOutgoing(this.fd, length, fds) >= 0;
    mailbox.answerElsewhere();
    return sent;
  }

  get posted(): boolean {
    return this.mailbox?.posted === true;
  }
  announce(looking: boolean): void {
    this.mailbox?.announce(looking);
  }

  get task(): Task {
    return this.#caller;
  }
  get process(): AttachedProcess {
    return this.#caller.process;
  }
  get tid(): number {
    return this.#caller.tid;
  }
  get #caller(): Caller {
    if (this.caller === undefined) throw new Error("a connection is used before its first request");
    return this.caller;
  }

  emulated(cookie: number, fd: number): EmulatedFile | undefined {
    const emulated = this.#files.get(cookie);
    return emulated !== undefined && this.process.holds(cookie, fd) === 0 ? emulated : undefined;
  }
  /** The error of a call on a file that `emulated` did not find. */
  whyNot(cookie: number, fd: number): LinuxError {
    const { pid } = this.process;
    return this.#files.get(cookie) !== undefined && this.process.holds(cookie, fd) === -Errno.EPERM
      ? new LinuxError(
          "EPERM",
          `process ${pid} may not be looked into: it is not dumpable, or not ours to trace`,
        )
      : new LinuxError("EBADF", `descriptor ${fd} of process ${pid} is not an open file of ours`);
  }
  file(cookie: number, fd: number): KernelFile | undefined {
    return this.emulated(cookie, fd)?.file;
  }
}
