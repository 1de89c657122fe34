/**
 * One request from arrival to answer. It is answered exactly once: with what the operation returned, with what it
 * threw, later when it was suspended, with EINTR when a signal interrupted it, or not at all when the caller went.
 */
import { closeSync } from "node:fs";
import type { EventSink } from "../base/events.ts";
import {
  type DeviceNode,
  type KernelFile,
  Restart,
  SUSPENDED,
  type Suspended,
  type Task,
  type UserMemory,
} from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { AttachedCall, type CallHost, type Outcome } from "./attached-call.ts";
import type { OpHandler, Reply } from "./connection.ts";
import type { Control } from "./control.ts";
import type { EmulatedFile } from "./emulated-file.ts";
import { MappedRegisters, type WindowsPlace } from "./mapped-registers.ts";
import * as operations from "./operations.ts";
import { FileBody, Install, Op, Range, ReplyFlag, ReplyHeader } from "./protocol.ts";
import { outgoing } from "./syscalls.ts";

/** A handler that pins again and again gets this many adoptions. */
const MAX_RESTARTS = 16;
const MAX_RANGES = 64;

/** What serving needs of the server. */
export interface RequestHost extends CallHost {
  readonly events: EventSink;
  readonly handlers: ReadonlyMap<number, OpHandler>;
  node(path: string, task: Task): DeviceNode | undefined;
  /** Runs what a task asked for. */
  run<T>(task: Task, call: () => T): T;
  memoryOf(pid: number): UserMemory | undefined;
  physical(pa: number, length: number): { readonly fd: number; readonly offset: number };
  reportBug(where: string, error: unknown): void;
  drop(control: Control): void;
}

const operationOf: ReadonlyMap<number, (context: operations.Context) => operations.Answer | Suspended> =
  new Map([
    [Op.open, operations.open],
    [Op.ioctl, operations.ioctl],
    [Op.read, operations.read],
    [Op.write, operations.write],
    [Op.pread, operations.pread],
    [Op.pwrite, operations.pwrite],
    [Op.mmap, operations.mmap],
    [Op.fstat, operations.fstat],
    [Op.ring, operations.ring],
    [Op.seek, operations.seek],
    [Op.pages, operations.pages],
  ]);
const nameOf = new Map<number, string>(Object.entries(Op).map(([name, op]) => [op, name]));

export class Request implements Outcome, operations.Context {
  readonly seq: number;
  readonly #op: number;
  readonly #attempt: number;
  readonly #control: Control;
  readonly #host: RequestHost;
  readonly call: AttachedCall;
  readonly body: operations.Body;
  #target: EmulatedFile | undefined;
  #details = "";
  #whenResumed: ((value: number) => void) | undefined;
  #opened: EmulatedFile | undefined;
  #answered = false;

  /** `body` and what it views are only valid while `serve` runs. */
  constructor(
    host: RequestHost,
    control: Control,
    header: { readonly op: number; readonly seq: number; readonly attempt: number },
    body: operations.Body,
  ) {
    this.#host = host;
    this.#control = control;
    this.#op = header.op;
    this.seq = header.seq;
    this.#attempt = header.attempt;
    this.body = body;
    this.call = new AttachedCall(host, control.process, control.task, this);
  }

  /** `fds` came along. */
  serve(fds: readonly number[]): void {
    this.#control.request = this;
    try {
      const answer = this.#perform(fds);
      if (answer === SUSPENDED) {
        if (this.call.suspension === undefined)
          throw new Error("SUSPENDED was returned without call.suspend");
        return;
      }
      this.#reply(answer);
    } catch (error) {
      this.fail(error);
    } finally {
      this.#control.process.user.close();
    }
  }

  #perform(fds: readonly number[]): operations.Answer | Suspended {
    const operation = operationOf.get(this.#op);
    if (operation === undefined) return this.#performOther(this.body.bytes, fds);
    for (const fd of fds) closeSync(fd);
    return this.#host.run(this.call.task, () => operation(this));
  }

  node(path: string): DeviceNode | undefined {
    return this.#host.node(path, this.call.task);
  }
  memoryOf(pid: number): UserMemory | undefined {
    return this.#host.memoryOf(pid);
  }
  prefetch(va: bigint, window: Uint8Array): void {
    this.#control.process.user.open(va, window);
  }
  whenResumed(finish: (value: number) => void): void {
    this.#whenResumed = finish;
  }
  windowsAt(place: WindowsPlace): void {
    const control = this.#control;
    const { user, memory } = control.process;
    user.mapped ??= new MappedRegisters(memory, place, ({ cookie, fd }) => control.file(cookie, fd));
  }
  describe(details: () => string): void {
    if (this.#host.events.on) this.#details = details();
  }
  backing(pa: number, length: number): { readonly fd: number; readonly offset: number } {
    return this.#host.physical(pa, length);
  }

  #performOther(body: Uint8Array, fds: readonly number[]): operations.Answer | Suspended {
    const handler = this.#host.handlers.get(this.#op);
    if (handler === undefined) {
      for (const fd of fds) closeSync(fd);
      throw new LinuxError("ENOSYS", `the library asks for operation ${this.#op}, which nobody serves`);
    }
    const reply: Uint8Array | Reply = handler(this.#control, body, fds);
    if (reply instanceof Uint8Array) return { value: 0, payload: reply };
    return { value: reply.value ?? 0, ...payloadOf(reply) };
  }

  target(): EmulatedFile {
    const { body } = this;
    operations.expectLength(body, FileBody.size);
    const cookie = body.view.getUint32(4, true) * 0x1_0000_0000 + body.view.getUint32(0, true);
    const fd = body.view.getInt32(FileBody.fd, true);
    this.#target = this.#control.emulated(cookie, fd);
    if (this.#target === undefined) throw this.#control.whyNot(cookie, fd);
    return this.#target;
  }

  openNode(node: DeviceNode, file: ReturnType<DeviceNode["open"]>): EmulatedFile {
    const emulated = this.#host.files.add(file, node);
    this.#host.adoptFile(emulated);
    this.#opened = emulated;
    this.#details = node.path;
    if (this.#host.events.on) {
      const { pid } = this.call.task;
      this.#host.events.emit("open", { pid, path: node.path, file: file.name });
    }
    return emulated;
  }

  hold(file: KernelFile): EmulatedFile {
    const emulated = this.#host.files.add(file);
    this.#host.adoptFile(emulated);
    this.#opened = emulated;
    return emulated;
  }

  // ---- how it ends -----------------------------------------------------------------------------------------------

  finish(value: number): void {
    try {
      this.#whenResumed?.(value);
      this.#reply({ value });
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error: unknown): void {
    this.#discardInstalled();
    if (error instanceof Restart && this.#attempt < MAX_RESTARTS) {
      this.#restart(error);
      return;
    }
    const failure =
      error instanceof LinuxError
        ? error
        : error instanceof Restart
          ? new LinuxError("EFAULT", `memory could not be adopted in ${MAX_RESTARTS} attempts`)
          : this.#bug(error);
    this.#report(failure);
    this.#send({ value: -failure.errno });
  }

  /** A signal without SA_RESTART arrived at the caller while it waits. */
  interrupt(): void {
    const { suspension } = this.call;
    if (suspension === undefined || suspension.settled) return;
    suspension.cancel();
    this.fail(new LinuxError("EINTR", "a signal interrupted the call while it waited"));
  }

  /** The caller went away, or asks for something else: nothing is answered. */
  cancel(): void {
    this.#answered = true;
    this.call.suspension?.cancel();
    this.#discardInstalled();
  }

  #bug(error: unknown): LinuxError {
    this.#host.reportBug(
      `${nameOf.get(this.#op) ?? this.#op} of ${this.#target?.file.name ?? "a client"}`,
      error,
    );
    return new LinuxError("EIO", "the call ended with an internal error of the daemon, which was reported");
  }

  /** Memory of another process cannot be adopted now: it is reached where it is, and the call comes again at once. */
  #restart({ owner, ranges }: Restart): void {
    const foreign = owner.id !== this.call.memory.id;
    if (foreign) owner.giveUp(ranges);
    const asked = foreign ? [] : ranges.slice(0, MAX_RANGES);
    const payload = new Uint8Array(asked.length * Range.size);
    const view = new DataView(payload.buffer);
    for (const [i, { va, length }] of asked.entries()) {
      view.setBigUint64(i * Range.size + Range.va, BigInt(va), true);
      view.setBigUint64(i * Range.size + Range.length, BigInt(length), true);
    }
    this.#send({ value: 0, flags: ReplyFlag.restart, payload });
  }

  #reply(answer: operations.Answer): void {
    this.#report(undefined, answer.value);
    const { installed } = this.call;
    if (installed.length === 0) {
      this.#send(answer);
      return;
    }
    const payload = new Uint8Array(installed.length * Install.size);
    const view = new DataView(payload.buffer);
    for (const [i, { at, closeOnExec }] of installed.entries()) {
      view.setBigUint64(i * Install.size + Install.at, at, true);
      view.setUint32(i * Install.size + Install.close_on_exec, closeOnExec ? 1 : 0, true);
    }
    const fds = installed.map(({ emulated }) => emulated.theirs);
    this.#send({ value: answer.value, flags: ReplyFlag.install, payload, fds });
    for (const { emulated } of installed) emulated.releaseTheirs();
  }

  #discardInstalled(): void {
    for (const { emulated } of this.call.installed.splice(0)) this.#host.discardFile(emulated);
  }

  #send(answer: operations.Answer): void {
    if (this.#answered) return;
    this.#answered = true;
    if (this.#control.request === this) this.#control.request = undefined;
    const { value, flags, payload, fds } = this.#op === Op.read ? this.#withDrain(answer) : answer;
    const { view, bytes } = outgoing;
    view.setUint32(ReplyHeader.seq, this.seq, true);
    view.setUint32(ReplyHeader.flags, flags ?? 0, true);
    view.setInt32(ReplyHeader.value, value | 0, true);
    view.setInt32(ReplyHeader.value + 4, Math.floor(value / 0x1_0000_0000), true);
    view.setUint32(ReplyHeader.length, payload?.length ?? 0, true);
    view.setUint32(ReplyHeader.fds, fds?.length ?? 0, true);
    if (payload !== undefined) bytes.set(payload, ReplyHeader.size);
    const sent = this.#control.answer(this.seq, ReplyHeader.size + (payload?.length ?? 0), fds ?? []);
    this.#opened?.releaseTheirs();
    if (!sent) this.#host.drop(this.#control);
  }

  /** After a read: when there is nothing more, doorbells must be taken out. */
  #withDrain(answer: operations.Answer): operations.Answer {
    const generation = this.#target?.quiet();
    if (generation === undefined) return answer;
    const payload = new Uint8Array(new Uint32Array([generation]).buffer);
    return { ...answer, flags: (answer.flags ?? 0) | ReplyFlag.drain, payload };
  }

  #report(failure: LinuxError | undefined, value?: number): void {
    const { events } = this.#host;
    if (!events.on || !nameOf.has(this.#op)) return;
    const { task } = this.call;
    events.emit("call", {
      pid: task.pid,
      tid: task.tid,
      call: nameOf.get(this.#op)!,
      file: this.#target?.file.name,
      details: this.#details,
      ...(failure === undefined
        ? { value }
        : { error: failure.code, reason: failure.reason, object: failure.object }),
    });
  }
}

const payloadOf = ({ body, fds }: Reply): Pick<operations.Answer, "payload" | "fds"> => ({
  ...(body === undefined ? {} : { payload: body }),
  ...(fds === undefined ? {} : { fds }),
});
