/**
 * A system call of a client while it is served: what the kernel rooms ask of `Call`, done to a real process.
 * Descriptors of the caller are taken with pidfd_getfd, because handlers find their numbers deep inside structures.
 */
import { closeSync, readlinkSync } from "node:fs";
import { pidfdGetfd } from "../base/libc.ts";
import type {
  Call,
  Continuation,
  EventFd,
  FileBacking,
  KernelFile,
  Task,
  UserMemory,
} from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { EmulatedFile, FileTable } from "./emulated-file.ts";
import { signalEventfd } from "./eventfd.ts";
import type { AttachedProcess } from "./process.ts";
import { MAX_FDS } from "./protocol.ts";
import { socketCookie } from "./syscalls.ts";

/** What the calls of all clients share. */
export interface CallHost {
  readonly files: FileTable;
  /** Watches a new file's end for the last close. */
  adoptFile(emulated: EmulatedFile): void;
  /** A file that no client ever got. */
  discardFile(emulated: EmulatedFile): void;
  /** A file or memfd of the client, now ours: the backing owns the descriptor. */
  backing(fd: number, process: AttachedProcess): FileBacking;
  /** Calls `onSignal` whenever the eventfd was counted up, and takes the count, until `unwatchEventfd`. */
  watchEventfd(fd: number, onSignal: () => void): void;
  unwatchEventfd(fd: number): void;
  /** Eventfds held. */
  eventfds: number;
  readonly mostEventfds: number;
}

export interface Installed {
  readonly emulated: EmulatedFile;
  readonly at: bigint;
  readonly closeOnExec: boolean;
}

/** Told when a suspended call ends: a value, or what was thrown. */
export interface Outcome {
  finish(value: number): void;
  fail(error: unknown): void;
}

export class Suspension implements Continuation {
  #settled = false;
  readonly #cancel: () => void;
  readonly #outcome: Outcome;

  constructor(cancel: () => void, outcome: Outcome) {
    this.#cancel = cancel;
    this.#outcome = outcome;
  }
  get settled(): boolean {
    return this.#settled;
  }
  resume(value: number): void {
    if (this.#settled) return;
    this.#settled = true;
    this.#outcome.finish(value);
  }
  fail(error: unknown): void {
    if (this.#settled) return;
    this.#settled = true;
    this.#outcome.fail(error);
  }
  /** The caller is gone or interrupted; nothing is answered any more. */
  cancel(): void {
    if (this.#settled) return;
    this.#settled = true;
    this.#cancel();
  }
}

export class AttachedCall implements Call {
  readonly task: Task;
  readonly memory: UserMemory;
  readonly installed: Installed[] = [];
  suspension: Suspension | undefined;
  readonly #host: CallHost;
  readonly #process: AttachedProcess;
  readonly #outcome: Outcome;

  constructor(host: CallHost, process: AttachedProcess, task: Task, outcome: Outcome) {
    this.#host = host;
    this.#process = process;
    this.#outcome = outcome;
    this.task = task;
    this.memory = task.memory;
  }

  #take(fd: number): number {
    const copy = fd < 0 ? -9 : pidfdGetfd(this.#process.pidfd, fd);
    if (copy >= 0) return copy;
    if (copy === -1)
      throw new LinuxError(
        "EPERM",
        `the daemon may not take descriptor ${fd} of process ${this.task.pid}: it is not dumpable or not ours to trace`,
      );
    throw new LinuxError("EBADF", `descriptor ${fd} of process ${this.task.pid} is not open`);
  }

  file(fd: number): KernelFile | undefined {
    let copy: number;
    try {
      copy = this.#take(fd);
    } catch (error) {
      if (error instanceof LinuxError && error.code === "EBADF") return undefined;
      throw error;
    }
    const cookie = socketCookie(copy);
    closeSync(copy);
    return cookie === 0 ? undefined : this.#host.files.get(cookie)?.file;
  }

  eventfd(fd: number): EventFd {
    const host = this.#host;
    if (host.eventfds >= host.mostEventfds)
      throw new LinuxError(
        "ENFILE",
        `clients have ${host.eventfds} eventfds registered; the daemon can hold no more`,
      );
    const copy = this.#take(fd);
    if (readlinkSync(`/proc/self/fd/${copy}`) !== "anon_inode:[eventfd]") {
      closeSync(copy);
      throw new LinuxError("EINVAL", `descriptor ${fd} is not an eventfd`);
    }
    host.eventfds += 1;
    let open = true;
    return {
      signal: () => {
        if (open) signalEventfd(copy);
      },
      watch: (onSignal) => {
        if (open) host.watchEventfd(copy, onSignal);
      },
      close: () => {
        if (!open) return;
        open = false;
        host.eventfds -= 1;
        host.unwatchEventfd(copy);
        closeSync(copy);
      },
    };
  }

  backing(fd: number): FileBacking {
    return this.#host.backing(this.#take(fd), this.#process);
  }

  install(file: KernelFile, options: { readonly at?: bigint; readonly closeOnExec?: boolean } = {}): number {
    if (this.installed.length === MAX_FDS) {
      file.close();
      throw new LinuxError("EMFILE", `a call makes ${MAX_FDS} files at most`);
    }
    if (!this.#process.hasRoomFor(this.installed.length + 1)) {
      file.close();
      throw new LinuxError(
        "EMFILE",
        `process ${this.task.pid} has as many descriptors as it may have (RLIMIT_NOFILE)`,
      );
    }
    const emulated = this.#host.files.add(file);
    this.#host.adoptFile(emulated);
    this.installed.push({ emulated, at: options.at ?? 0n, closeOnExec: options.closeOnExec ?? false });
    return 0;
  }

  suspend(cancel: () => void): Continuation {
    this.suspension = new Suspension(cancel, this.#outcome);
    return this.suspension;
  }
}
