/**
 * A process that lives inside this program: the caller of system calls in tests, in modelled VMMs and guests. It has
 * an address space of pages backed by frames of host memory, a descriptor table with dup and passing, and makes calls
 * on kernel files as `attach/` does for a real process: a call may suspend, may be restarted when memory has first to
 * be adopted, and its new descriptors exist once it has succeeded. Left out: signals, scheduling, fork.
 */
import { FRAME_BYTES, type HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Allocations } from "./allocations.ts";
import {
  type Call,
  type Capability,
  type Continuation,
  type DeviceNode,
  type EventFd,
  type FileBacking,
  type KernelFile,
  type MapSegment,
  Restart,
  SUSPENDED,
  type Suspended,
  type Task,
} from "./call.ts";
import { ModelMemory } from "./model-memory.ts";

const O_RDWR = 2;
const PROT_WRITE = 2;
/** Where arguments of calls are put. */
const SCRATCH_VA = 0x7fff_0000_0000;
const SCRATCH_PAGES = 64;

/** An eventfd that counts, as eventfd(2) does. */
export class CountingEventFd {
  count = 0;
  /** Handles the kernel side holds. */
  held = 0;
  /** It was counted up: a reader that waits would wake. */
  onCount: () => void = () => {};

  /** Who takes every count, of those who hold it. */
  readonly watchers = new Set<() => void>();

  /** write(2) of one. */
  add(): void {
    this.count += 1;
    this.onCount();
    if (this.watchers.size === 0) return;
    this.count = 0;
    for (const watcher of this.watchers) watcher();
  }

  /** What a blocking read would return; takes it. */
  take(): number {
    const taken = this.count;
    this.count = 0;
    return taken;
  }
}

/** An open file description: descriptors of any task may name it. */
interface Description {
  readonly object: KernelFile | CountingEventFd | FileBacking;
  references: number;
}

const isKernelFile = (object: Description["object"]): object is KernelFile => "kind" in object;
const isBacking = (object: Description["object"]): object is FileBacking => "pin" in object;

export interface ModelTaskOptions {
  readonly pid?: number;
  readonly tid?: number;
  readonly uid?: number;
  readonly name?: string;
  readonly capabilities?: readonly Capability[];
  /** RLIMIT_MEMLOCK in bytes; unlimited when left out. */
  readonly memlock?: number;
  /** Share the address space of this task (threads). */
  readonly shares?: ModelTask;
  /** RLIMIT_NOFILE. */
  readonly files?: number;
  /** What its calls allocate from. */
  readonly allocations?: Allocations;
}

/** A call that was made: finished, failed or still waiting. */
export class PendingCall {
  settled = false;
  value = 0;
  error: unknown;
  #cancel: (() => void) | undefined;

  /** The value, or throws what the call failed with. */
  result(): number {
    if (!this.settled) throw new Error("the call still waits");
    if (this.error !== undefined) throw this.error;
    return this.value;
  }

  /** The caller is interrupted. */
  interrupt(): void {
    if (this.settled) return;
    this.settle(0, new LinuxError("EINTR", "the caller was interrupted while it waited"));
    this.#cancel?.();
  }

  waits(cancel: () => void): void {
    this.#cancel = cancel;
  }

  settle(value: number, error: unknown): void {
    this.settled = true;
    this.value = value;
    this.error = error;
  }
}

/** As mmap(2) has them. */
export interface MmapOptions {
  readonly offset: bigint;
  readonly protection: number;
  readonly flags: number;
}

let nextPid = 1000;

export class ModelTask implements Task {
  readonly pid: number;
  readonly tid: number;
  readonly uid: number;
  readonly name: string;
  readonly memory: ModelMemory;
  /** RLIMIT_MEMLOCK; may be changed while it runs. */
  memlock: number;
  /** Pages it locked itself. */
  mlocked = 0;
  readonly #capabilities: ReadonlySet<Capability>;
  readonly #files: number;
  readonly #allocations: Allocations | undefined;
  readonly #table = new Map<number, Description>();
  readonly #waiting = new Set<PendingCall>();
  readonly #shares: ModelTask | undefined;

  constructor(memory: HostMemory, options: ModelTaskOptions = {}) {
    this.pid = options.pid ?? options.shares?.pid ?? nextPid++;
    this.tid = options.tid ?? this.pid;
    this.uid = options.uid ?? 1000;
    this.name = options.name ?? `task ${this.pid}`;
    this.#shares = options.shares;
    this.memory = options.shares?.memory ?? new ModelMemory(memory);
    this.memlock = options.memlock ?? Number.POSITIVE_INFINITY;
    this.#capabilities = new Set(options.capabilities);
    this.#files = options.files ?? 1024;
    this.#allocations = options.allocations;
    if (!options.shares) this.memory.map(SCRATCH_VA, SCRATCH_PAGES * FRAME_BYTES);
  }

  capable(capability: Capability): boolean {
    return this.#capabilities.has(capability);
  }

  memlockLimit(): number {
    return this.memlock;
  }

  mlockedPages(): number {
    return this.mlocked;
  }

  /** open(2) of a device node; the descriptor. */
  open(node: DeviceNode, flags: number = O_RDWR): number {
    this.checkRoom();
    const object = this.#counted(() => node.open(this, flags));
    return this.#place({ object, references: 0 });
  }

  /** eventfd(2); what is counted is seen with `counter`. */
  eventfd(): number {
    return this.#place({ object: new CountingEventFd(), references: 0 });
  }

  /** A descriptor for a file or memfd that can be mapped. */
  backing(backing: FileBacking): number {
    return this.#place({ object: backing, references: 0 });
  }

  counter(fd: number): CountingEventFd {
    const object = this.#table.get(fd)?.object;
    if (!(object instanceof CountingEventFd)) throw new Error(`descriptor ${fd} is no eventfd`);
    return object;
  }

  /** Adopts a file made elsewhere. */
  place(file: KernelFile): number {
    this.checkRoom();
    return this.#place({ object: file, references: 0 });
  }

  file(fd: number): KernelFile | undefined {
    const object = this.#table.get(fd)?.object;
    return object && isKernelFile(object) ? object : undefined;
  }

  /** The kernel file behind a descriptor, which must be one. */
  kernelFile(fd: number): KernelFile {
    const file = this.file(fd);
    if (!file) throw new LinuxError("EBADF", `descriptor ${fd} is not open`, this.name);
    return file;
  }

  get descriptors(): readonly number[] {
    return [...this.#table.keys()];
  }

  dup(fd: number): number {
    return this.pass(fd, this);
  }

  /** SCM_RIGHTS: the other task gets a descriptor for the same file. */
  pass(fd: number, to: ModelTask): number {
    const description = this.#table.get(fd);
    if (!description) throw new LinuxError("EBADF", `descriptor ${fd} is not open`, this.name);
    to.checkRoom();
    return to.#place(description);
  }

  close(fd: number): void {
    const description = this.#table.get(fd);
    if (!description) throw new LinuxError("EBADF", `descriptor ${fd} is not open`, this.name);
    this.#table.delete(fd);
    description.references -= 1;
    const { object } = description;
    if (description.references === 0 && !(object instanceof CountingEventFd)) object.close();
  }

  /** Death: waiting calls are cancelled, descriptors closed, the address space goes; pins keep their frames. */
  exit(): void {
    for (const call of [...this.#waiting]) call.interrupt();
    for (const fd of this.descriptors) this.close(fd);
    if (!this.#shares) this.memory.release();
  }

  /**
   * ioctl(2) with a number, or with bytes: those are put into the caller's memory and brought back afterwards.
   * Throws the LinuxError; a call that waits is an error here, use `start`.
   */
  ioctl(fd: number, request: number, argument: bigint | number | Uint8Array = 0n): number {
    return this.start(fd, request, argument).result();
  }

  /** ioctl(2) that may wait. Bytes given as argument are brought back when it was answered at once. */
  start(fd: number, request: number, argument: bigint | number | Uint8Array = 0n): PendingCall {
    const bytes = argument instanceof Uint8Array ? argument : undefined;
    if (bytes) this.memory.write(BigInt(SCRATCH_VA), bytes);
    const value = bytes ? BigInt(SCRATCH_VA) : BigInt.asUintN(64, BigInt(argument as bigint | number));
    const pending = this.run(fd, (file, call) => {
      if (!file.ioctl) throw new LinuxError("ENOTTY", `${file.name} takes no ioctl`, file.name);
      return file.ioctl(call, request >>> 0, value);
    });
    if (bytes && pending.settled) this.memory.read(BigInt(SCRATCH_VA), bytes);
    return pending;
  }

  read(fd: number, into: Uint8Array): number {
    return this.run(fd, (file, call) => {
      if (!file.read) throw new LinuxError("EINVAL", `${file.name} cannot be read`, file.name);
      return file.read(call, into);
    }).result();
  }

  write(fd: number, data: Uint8Array): number {
    return this.run(fd, (file, call) => {
      if (!file.write) throw new LinuxError("EINVAL", `${file.name} cannot be written`, file.name);
      return file.write(call, data);
    }).result();
  }

  /** read(2) into the task's memory; and write(2) from it. */
  readTo(fd: number, at: bigint, length: number): number {
    return this.run(fd, (file, call) => {
      if (file.readTo) return file.readTo(call, at, length);
      if (!file.read) throw new LinuxError("EINVAL", `${file.name} cannot be read`, file.name);
      const into = new Uint8Array(length);
      const count = file.read(call, into);
      if (count !== SUSPENDED) call.memory.write(at, into.subarray(0, count));
      return count;
    }).result();
  }

  writeFrom(fd: number, at: bigint, length: number): number {
    return this.run(fd, (file, call) => {
      if (file.writeFrom) return file.writeFrom(call, at, length);
      if (!file.write) throw new LinuxError("EINVAL", `${file.name} cannot be written`, file.name);
      const data = new Uint8Array(length);
      call.memory.read(at, data);
      return file.write(call, data);
    }).result();
  }

  /** mmap(2) of a file at a fixed address; traps stay unmapped. */
  mmap(fd: number, at: { readonly va: number; readonly length: number }, options: MmapOptions): void {
    const { offset, protection, flags } = options;
    let segments: readonly MapSegment[] = [];
    this.run(fd, (file, call) => {
      if (!file.mmap) throw new LinuxError("ENODEV", `${file.name} cannot be mapped`, file.name);
      segments = file.mmap(call, offset, at.length, protection, flags);
      return 0;
    }).result();
    const writable = (protection & PROT_WRITE) !== 0;
    for (const segment of segments) {
      if (segment.kind !== "memory") continue;
      const { pa, owner } = segment;
      owner?.mapped();
      const gone = () => owner?.unmapped();
      this.memory.mapPhysical(at.va + segment.offset, segment.length, { pa, writable, gone });
    }
  }

  pread(fd: number, offset: bigint, into: Uint8Array): number {
    return this.run(fd, (file, call) => {
      if (!file.pread) throw new LinuxError("ESPIPE", `${file.name} has no positions`, file.name);
      return file.pread(call, offset, into);
    }).result();
  }

  pwrite(fd: number, offset: bigint, data: Uint8Array): number {
    return this.run(fd, (file, call) => {
      if (!file.pwrite) throw new LinuxError("ESPIPE", `${file.name} has no positions`, file.name);
      return file.pwrite(call, offset, data);
    }).result();
  }

  /** One call on the file behind a descriptor: run, restarted while memory has to be adopted, and completed. */
  run(fd: number, handler: (file: KernelFile, call: Call) => number | Suspended): PendingCall {
    const pending = new PendingCall();
    const description = this.#table.get(fd);
    if (!description || !isKernelFile(description.object)) {
      pending.settle(
        0,
        new LinuxError("EBADF", `descriptor ${fd} is not open, or not one of ours`, this.name),
      );
      return pending;
    }
    const { object } = description;
    const call = new ModelCall(this, pending, (done) => this.#complete(done));
    for (;;) {
      try {
        const value = this.#counted(() => handler(object, call));
        if (value === SUSPENDED) {
          this.#waiting.add(pending);
          if (pending.settled) this.#waiting.delete(pending);
        } else this.#complete({ pending, call, value });
        return pending;
      } catch (error) {
        if (error instanceof Restart) {
          call.abandon();
          error.owner.giveUp(error.ranges);
          continue;
        }
        this.#complete({ pending, call, error });
        return pending;
      }
    }
  }

  /** The object behind a descriptor that can be mapped, or an eventfd; for `Call`. */
  take(fd: number): Description["object"] | undefined {
    return this.#table.get(fd)?.object;
  }

  #complete(done: Completion): void {
    const { pending, call } = done;
    this.#waiting.delete(pending);
    if (pending.settled) {
      call.abandon();
      return;
    }
    if ("error" in done) {
      call.abandon();
      pending.settle(0, done.error);
      return;
    }
    try {
      const installed = call.commit((file) => {
        this.checkRoom();
        return this.#place({ object: file, references: 0 });
      });
      pending.settle(installed ?? done.value, undefined);
    } catch (error) {
      pending.settle(0, error);
    }
  }

  /** What the call allocates is this task's. */
  #counted<T>(call: () => T): T {
    return this.#allocations ? this.#allocations.run(this, call) : call();
  }

  #place(description: Description): number {
    let fd = 3;
    while (this.#table.has(fd)) fd += 1;
    this.#table.set(fd, description);
    description.references += 1;
    return fd;
  }

  /** Throws EMFILE when a descriptor more, beside those promised already, has no number. */
  checkRoom(promised = 0): void {
    if (this.#table.size + promised >= this.#files)
      throw new LinuxError("EMFILE", `the limit of ${this.#files} descriptors is reached`, this.name);
  }
}

type Completion =
  | { readonly pending: PendingCall; readonly call: ModelCall; readonly value: number }
  | { readonly pending: PendingCall; readonly call: ModelCall; readonly error: unknown };

/** A file a handler wants given to the caller. */
interface Installation {
  readonly file: KernelFile;
  readonly at: bigint | undefined;
}

class ModelCall implements Call {
  readonly task: ModelTask;
  readonly memory: ModelMemory;
  readonly #pending: PendingCall;
  readonly #complete: (done: Completion) => void;
  #installations: Installation[] = [];

  constructor(task: ModelTask, pending: PendingCall, complete: (done: Completion) => void) {
    this.task = task;
    this.memory = task.memory;
    this.#pending = pending;
    this.#complete = complete;
  }

  file(fd: number): KernelFile | undefined {
    return this.task.file(fd);
  }

  eventfd(fd: number): EventFd {
    const object = this.task.take(fd);
    if (!object) throw new LinuxError("EBADF", `descriptor ${fd} is not open`, this.task.name);
    if (!(object instanceof CountingEventFd))
      throw new LinuxError("EINVAL", `descriptor ${fd} is not an eventfd`, this.task.name);
    let open = true;
    let watcher: (() => void) | undefined;
    object.held += 1;
    return {
      signal: () => {
        if (open) object.add();
      },
      watch: (onSignal) => {
        watcher = onSignal;
        object.watchers.add(onSignal);
        if (object.take() > 0) onSignal();
      },
      close: () => {
        if (open) object.held -= 1;
        if (watcher) object.watchers.delete(watcher);
        open = false;
      },
    };
  }

  backing(fd: number): FileBacking {
    const object = this.task.take(fd);
    if (!object) throw new LinuxError("EBADF", `descriptor ${fd} is not open`, this.task.name);
    if (!isBacking(object))
      throw new LinuxError("EINVAL", `descriptor ${fd} is no file with pages`, this.task.name);
    return object;
  }

  install(file: KernelFile, options: { readonly at?: bigint } = {}): number {
    try {
      this.task.checkRoom(this.#installations.length);
    } catch (error) {
      file.close();
      throw error;
    }
    this.#installations.push({ file, at: options.at });
    return 0;
  }

  suspend(cancel: () => void): Continuation {
    const pending = this.#pending;
    pending.waits(cancel);
    const finish = (outcome: { value: number } | { error: unknown }) => {
      if (!pending.settled) this.#complete({ pending, call: this, ...outcome });
    };
    return {
      resume: (value) => finish({ value }),
      fail: (error) => finish({ error }),
      get settled() {
        return pending.settled;
      },
    };
  }

  /** Gives the descriptors out; the number of the one that is the value of the call, if any. */
  commit(place: (file: KernelFile) => number): number | undefined {
    let value: number | undefined;
    const waiting = this.#installations;
    this.#installations = [];
    while (waiting.length > 0) {
      const { file, at } = waiting[0]!;
      let fd: number;
      try {
        fd = place(file);
      } catch (error) {
        for (const rest of waiting) rest.file.close();
        throw error;
      }
      waiting.shift();
      if (at === undefined) value = fd;
      else this.memory.write(at, new Uint8Array(new Int32Array([fd]).buffer));
    }
    return value;
  }

  /** The call failed or starts again: files that nobody got are closed. */
  abandon(): void {
    for (const { file } of this.#installations) file.close();
    this.#installations = [];
  }
}
