/**
 * The daemon's end of the preload library: accepts control connections, serves their requests one at a time in the
 * order they arrive, and notices when descriptors, threads and processes go away. Whatever a client sends, it gets an
 * errno or loses its connection; whatever a handler throws becomes an answer and an event. `shim/protocol.h` has the
 * messages. Leaves out what calls mean: that is the kernel files' business.
 */
import { randomBytes } from "node:crypto";
import { closeSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "../base/clock.ts";
import type { EventSink } from "../base/events.ts";
import { pidfdOpen } from "../base/libc.ts";
import { isSayable, runsFolder } from "../base/places.ts";
import type { WorkQueue } from "../base/scheduler.ts";
import type { Allocations } from "../kernel/allocations.ts";
import type { DeviceNode, FileBacking, Task, UserMemory } from "../kernel/call.ts";
import { Errno, LinuxError } from "../uapi/errno.ts";
import type { Connection, OpHandler, OpHandlers, Reply } from "./connection.ts";
import { Control } from "./control.ts";
import { type EmulatedFile, FileTable } from "./emulated-file.ts";
import { builtLibrary } from "./library.ts";
import { Lookout } from "./lookout.ts";
import { Loop } from "./loop.ts";
import { openMailbox } from "./mailbox.ts";
import type { PrivilegeMode } from "./privileges.ts";
import { AttachedProcess, Caller, type ClientMemory } from "./process.ts";
import { MAILBOX_OP, MAX_BODY, Op, PROTOCOL_VERSION, RequestHeader } from "./protocol.ts";
import { Request, type RequestHost } from "./request.ts";
import { Routes, type ShadowTree } from "./routes.ts";
import {
  accept,
  descriptorLimit,
  drainSocket,
  Epoll,
  listenAt,
  peerOf,
  receive,
  received,
  takeEventfd,
} from "./syscalls.ts";

/** Shares of the daemon's descriptors, so that no client makes it run out of them; the rest is Node's and memory's. */
const SHARE = { files: 0.4, connections: 0.2, eventfds: 0.2, mailboxes: 0.05 } as const;
/** Each: more than anybody needs. */
const MOST = 100_000;
const shareOf = (part: number): number => Math.min(MOST, Math.floor(descriptorLimit() * part));

export interface AttachOptions {
  /** The device nodes there are now; asked at every open. */
  readonly nodes: () => readonly DeviceNode[];
  readonly events: EventSink;
  readonly clock: Clock;
  readonly work: WorkQueue;
  /** Files of /proc and debugfs that are served: what a path is for a task; undefined: nothing of ours. */
  readonly attribute?: (path: string, task: Task) => DeviceNode | undefined;
  /** What the calls of programs allocate from. */
  readonly allocations?: Allocations;
  /** The memory of a client process. `pidfd` stays open as long as the memory is used. */
  readonly memory: (pid: number, pidfd: number) => ClientMemory;
  /** Who is root on the machine; `own` when left out. */
  readonly privileges?: PrivilegeMode;
  /** A client's file for mapping; owns `fd` from then on. Without it `Call.backing` is refused. */
  readonly fileBacking?: (fd: number, process: AttachedProcess) => FileBacking;
  /** The descriptor and offset behind a physical range that a KernelFile maps as memory: a file with nothing else in it. */
  readonly backing?: (
    pa: number,
    length: number,
  ) => { readonly fd: number; readonly offset: number } | undefined;
  /** Operations of other parts: adoption, traps. */
  readonly handlers?: readonly OpHandlers[];
  /** A private folder for the socket and the library's configuration; made and removed when left out. */
  readonly socketDir?: string;
  /** libsoftiommu.so */
  readonly library?: string;
  /** Threads beyond make their calls over their connections only. */
  readonly mostMailboxes?: number;
  /** Told of errors that no handler meant, whether or not anybody listens to events. */
  readonly onBug?: (where: string, reason: string) => void;
}

export class AttachServer implements RequestHost {
  readonly files: FileTable;
  eventfds = 0;
  readonly events: EventSink;
  readonly mostEventfds = shareOf(SHARE.eventfds);
  readonly #mostConnections = shareOf(SHARE.connections);
  readonly #options: AttachOptions;
  readonly #folder: string;
  readonly #ownsFolder: boolean;
  readonly #library: string;
  readonly #routes: Routes;
  readonly #loop: Loop;
  readonly #lookout = new Lookout<Control>((control) => this.#takeFound(control));
  readonly handlers = new Map<number, OpHandler>();
  readonly #controls = new Set<Control>();
  /** By pid: the present image. */
  readonly #processes = new Map<number, AttachedProcess>();
  #listener = -1;
  #mailboxes = 0;
  readonly #mostMailboxes: number;

  constructor(options: AttachOptions) {
    this.#options = options;
    this.#mostMailboxes = options.mostMailboxes ?? shareOf(SHARE.mailboxes);
    this.events = options.events;
    this.#ownsFolder = options.socketDir === undefined;
    this.#folder = options.socketDir ?? mkdtempSync(join(runsFolder(), "softiommu-"));
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    this.#library = this.#sayable(options.library ?? builtLibrary());
    const prefix = `softiommu-${randomBytes(8).toString("hex")}/`;
    this.files = new FileTable(prefix, shareOf(SHARE.files));
    this.#routes = new Routes(this.#folder, prefix);
    this.#loop = new Loop(options.work, (error) => this.reportBug("loop", error), this.#lookout);
    this.handlers.set(MAILBOX_OP, (control) => this.#openMailbox(control));
    for (const handlers of options.handlers ?? [])
      for (const [op, handler] of handlers) this.handlers.set(op, handler);
  }

  /** The same library by a name that LD_PRELOAD can say. */
  #sayable(library: string): string {
    if (isSayable(library)) return library;
    const link = join(this.#folder, "libsoftiommu.so");
    symlinkSync(library, link);
    return link;
  }

  get #socket(): string {
    return join(this.#folder, "control");
  }

  /** What is alive for clients; all zero when they are gone. */
  get live(): {
    readonly connections: number;
    readonly files: number;
    readonly tasks: number;
    readonly eventfds: number;
    readonly suspended: number;
  } {
    let suspended = 0;
    for (const { request } of this.#controls) if (request !== undefined) suspended += 1;
    return {
      connections: this.#controls.size,
      files: this.files.size,
      tasks: this.#processes.size,
      eventfds: this.eventfds,
      suspended,
    };
  }

  /** Shows a tree to programs that start from now on. */
  addTree(tree: ShadowTree): void {
    this.#routes.add(tree);
    this.refreshNodes();
  }

  /** Makes stat and readdir of programs agree with `nodes()` after it changed. */
  refreshNodes(): void {
    this.#routes.write(this.#options.nodes());
  }

  start(): void {
    if (this.#listener >= 0) return;
    this.refreshNodes();
    rmSync(this.#socket, { force: true });
    this.#listener = listenAt(this.#socket);
    this.#loop.watch(this.#listener, Epoll.in, () => this.#accept());
    this.#loop.start();
  }

  /** Ends every connection and closes every file. */
  stop(): void {
    if (this.#listener >= 0) {
      this.#loop.unwatch(this.#listener);
      closeSync(this.#listener);
      this.#listener = -1;
    }
    for (const control of [...this.#controls]) this.drop(control);
    for (const emulated of [...this.files]) this.#lastClose(emulated);
    for (const process of [...this.#processes.values()]) this.#ended(process);
    this.#loop.close();
    if (this.#ownsFolder) rmSync(this.#folder, { recursive: true, force: true });
  }

  /** What to set for a program that is to be attached, over `base`. */
  environment(base: NodeJS.ProcessEnv = process.env): Record<string, string> {
    const others = base["LD_PRELOAD"];
    return {
      SOFTIOMMU_SOCKET: this.#socket,
      SOFTIOMMU_PRELOAD: this.#library,
      LD_PRELOAD: others ? `${this.#library}:${others}` : this.#library,
    };
  }

  // ---- who comes and goes ----------------------------------------------------------------------------------------

  #accept(): void {
    const fd = accept(this.#listener);
    if (fd < 0) return;
    if (this.#controls.size >= this.#mostConnections) {
      closeSync(fd);
      return;
    }
    const control = new Control(fd, peerOf(fd), this.files);
    this.#controls.add(control);
    this.#loop.watch(fd, Epoll.in, () => this.#receive(control));
  }

  drop(control: Control): void {
    if (!this.#controls.delete(control)) return;
    this.#loop.unwatch(control.fd);
    closeSync(control.fd);
    this.#cancel(control);
    const { mailbox } = control;
    if (mailbox === undefined) return;
    this.#lookout.forget(control);
    control.mailbox = undefined;
    this.#mailboxes -= 1;
    this.#loop.unwatch(mailbox.doorbell);
    mailbox.close();
  }

  #openMailbox(control: Connection): Reply {
    if (!(control instanceof Control) || control.mailbox !== undefined)
      throw new LinuxError("EINVAL", "a connection has one mailbox at most");
    if (this.#mailboxes >= this.#mostMailboxes)
      throw new LinuxError(
        "EMFILE",
        `clients have ${this.#mailboxes} mailboxes; the daemon can hold no more`,
      );
    const mailbox = openMailbox();
    control.mailbox = mailbox;
    this.#mailboxes += 1;
    this.#loop.watch(mailbox.doorbell, Epoll.in | Epoll.edge, () => this.#answerRing(control));
    return { fds: mailbox.descriptors };
  }

  #cancel(control: Control): void {
    const { request } = control;
    control.request = undefined;
    if (request === undefined) return;
    try {
      request.cancel();
    } catch (error) {
      this.reportBug("cancel", error);
    }
  }

  /** The process that a connection belongs to; undefined when it is gone already. */
  #processOf(pid: number, image: string): AttachedProcess | undefined {
    const known = this.#processes.get(pid);
    if (known?.image === image) return known;
    if (known !== undefined) this.#ended(known); // it has exec'ed
    const pidfd = pidfdOpen(pid);
    if (pidfd < 0) return undefined;
    const process = new AttachedProcess(pid, pidfd, image, this.#options.memory(pid, pidfd));
    this.#processes.set(pid, process);
    this.#loop.watch(pidfd, Epoll.in, () => this.#ended(process));
    if (this.events.on) this.events.emit("task", { pid, started: true });
    return process;
  }

  #ended(process: AttachedProcess): void {
    if (this.#processes.get(process.pid) !== process) return;
    this.#processes.delete(process.pid);
    for (const control of [...this.#controls]) if (control.caller?.process === process) this.drop(control);
    this.#loop.unwatch(process.pidfd);
    this.#options.allocations?.forget(process.pid);
    process.end();
    if (this.events.on) this.events.emit("task", { pid: process.pid, started: false });
  }

  adoptFile(emulated: EmulatedFile): void {
    emulated.retract = () => this.#retract(emulated.cookie);
    if (emulated.file.message === undefined)
      this.#loop.watch(emulated.fd, 0, () => this.#lastClose(emulated));
    else this.#loop.watch(emulated.fd, Epoll.in, () => this.#takeMessages(emulated));
  }

  /** glibc's own streams write past the preload library: what they wrote lies in the socket. */
  #takeMessages(emulated: EmulatedFile): void {
    const { file } = emulated;
    for (;;) {
      const length = receive(emulated.fd);
      for (const fd of received.fds) closeSync(fd);
      if (length === -Errno.EMSGSIZE) continue;
      if (length === 0) this.#lastClose(emulated);
      if (length <= 0) return;
      try {
        file.message?.(received.bytes.slice(0, length));
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        const { code, reason } = error;
        if (this.events.on) this.events.emit("call", { call: "write", file: file.name, error: code, reason });
      }
    }
  }

  /** Takes doorbells out of the client's end of a file, through any process that has it. */
  #retract(cookie: number): boolean {
    for (const process of this.#processes.values()) {
      const fd = process.duplicate(cookie);
      if (fd === undefined) continue;
      drainSocket(fd);
      closeSync(fd);
      return true;
    }
    return false;
  }

  #lastClose(emulated: EmulatedFile): void {
    this.#loop.unwatch(emulated.fd);
    const { name, kind } = emulated.file;
    try {
      this.files.remove(emulated);
    } catch (error) {
      this.reportBug(`close of ${name}`, error);
    }
    for (const process of this.#processes.values()) process.forget(emulated.cookie);
    if (this.events.on) this.events.emit("close", { file: name, kind });
  }

  discardFile(emulated: EmulatedFile): void {
    this.#lastClose(emulated);
  }

  node(path: string, task: Task): DeviceNode | undefined {
    return this.#options.nodes().find((node) => node.path === path) ?? this.#options.attribute?.(path, task);
  }

  run<T>(task: Task, call: () => T): T {
    const { allocations } = this.#options;
    return allocations ? allocations.run(task, call) : call();
  }

  memoryOf(pid: number): UserMemory | undefined {
    return this.#processes.get(pid)?.user;
  }

  physical(pa: number, length: number): { readonly fd: number; readonly offset: number } {
    const found = this.#options.backing?.(pa, length);
    if (found !== undefined) return found;
    throw new LinuxError("ENOMEM", "there is no file to map this memory from; there may be too many already");
  }

  /** An error that no handler meant: told to whoever listens, and the daemon goes on. */
  reportBug(where: string, error: unknown): void {
    const reason = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.#options.onBug?.(where, reason);
    if (this.events.on) this.events.emit("call", { call: where, error: "BUG", reason });
  }

  watchEventfd(fd: number, onSignal: () => void): void {
    this.#loop.watch(fd, Epoll.in, () => {
      takeEventfd(fd);
      onSignal();
    });
  }

  unwatchEventfd(fd: number): void {
    this.#loop.unwatch(fd);
  }

  backing(fd: number, process: AttachedProcess): FileBacking {
    if (this.#options.fileBacking !== undefined) return this.#options.fileBacking(fd, process);
    closeSync(fd);
    throw new LinuxError("EOPNOTSUPP", "files of the caller cannot be mapped here");
  }

  // ---- requests --------------------------------------------------------------------------------------------------

  /** A message over the connection comes after what lies in the mailbox: it may be about that. */
  #receive(control: Control): void {
    this.#look(control);
    if (!this.#controls.has(control)) return;
    const length = receive(control.fd);
    if (length !== -Errno.EAGAIN && length !== -Errno.EINTR) this.#take(control, length);
  }

  #look(control: Control): void {
    const length = control.mailbox?.take() ?? -1;
    if (length < 0) return;
    this.#take(control, length);
    if (control.mailbox?.clientLooks === true) this.#lookout.expect(control);
  }

  #takeFound(control: Control): void {
    if (control.mailbox !== undefined) control.mailbox.ringMayBeLate = true;
    this.#look(control);
  }

  /**
   * The ring of a request that was found before it says nothing of the one that lies there now, which may come after
   * the close of a file that we have not heard of.
   */
  #answerRing(control: Control): void {
    const { mailbox } = control;
    if (mailbox === undefined) return;
    if (!mailbox.ringMayBeLate) this.#look(control);
    else if (mailbox.posted) this.#lookout.postpone(control);
    mailbox.ringMayBeLate = false;
  }

  /** One message, `length` bytes of `received`. */
  #take(control: Control, length: number): void {
    const { view, fds } = received;
    const wellFormed =
      length >= RequestHeader.size &&
      view.getUint32(RequestHeader.version, true) === PROTOCOL_VERSION &&
      view.getUint32(RequestHeader.length, true) === length - RequestHeader.size &&
      length - RequestHeader.size <= MAX_BODY;
    if (!wellFormed || !this.#identify(control, view)) {
      for (const fd of fds) closeSync(fd);
      this.drop(control);
      return;
    }
    const op = view.getUint32(RequestHeader.op, true);
    const seq = view.getUint32(RequestHeader.seq, true);
    if (op === Op.cancel) {
      if (control.request?.seq === seq) control.request.interrupt();
      return;
    }
    this.#cancel(control); // a caller that asks again does not wait any more
    control.caller!.tid = view.getUint32(RequestHeader.tid, true);
    const body = { view: received.body, bytes: received.bytes.subarray(RequestHeader.size, length) };
    const attempt = view.getUint32(RequestHeader.attempt, true);
    new Request(this, control, { op, seq, attempt }, body).serve(fds);
  }

  /** Whose connection it is; false when the process is gone, or the image is not the one it was. */
  #identify(control: Control, view: DataView): boolean {
    const lo = view.getUint32(RequestHeader.image, true);
    const hi = view.getUint32(RequestHeader.image + 4, true);
    if (control.caller !== undefined) return control.imageLo === lo && control.imageHi === hi;
    const process = this.#processOf(control.peer.pid, `${hi.toString(16)}:${lo.toString(16)}`);
    if (process === undefined) return false;
    control.imageLo = lo;
    control.imageHi = hi;
    control.caller = new Caller(process, control.peer.uid, this.#options.privileges ?? "own");
    return true;
  }
}
