/** A device node whose files do one small thing for each request, for the tests of the attach room. */
import {
  type Call,
  type Continuation,
  type DeviceNode,
  type EventFd,
  type KernelFile,
  type MapSegment,
  Restart,
  SUSPENDED,
  type Suspended,
  type Task,
} from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";

/** The requests; testing/clients/client.h has the same. */
export const Test = {
  echo: 0x3b01,
  busy: 0x3b02,
  createAt: 0x3b03,
  create: 0x3b04,
  signal: 0x3b05,
  keepEventfd: 0x3b06,
  suspend: 0x3b07,
  resume: 0x3b08,
  bug: 0x3b09,
  which: 0x3b0a,
  restart: 0x3b0b,
  whoami: 0x3b0c,
  push: 0x3b0d,
  signalKept: 0x3b0e,
  count: 0x3b0f,
  nothing: 0x3b10,
  closed: 0x3b11,
  mapped: 0x3b12,
} as const;

const words = (bytes: Uint8Array): Uint32Array =>
  new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);

/** What all files of one node share and a test looks at. */
export class FakeNode implements DeviceNode {
  readonly path: string;
  readonly major = 240;
  readonly minor = 7;
  readonly mode = 0o660;
  readonly opened: FakeFile[] = [];
  readonly suspended: Continuation[] = [];
  cancelled = 0;
  /** Memory that files map; set by the test. */
  segments: readonly MapSegment[] = [];
  /** Who owns them, if the test says so in the segments: counts the mappings there are. */
  readonly owner = {
    name: "the pages",
    mappings: 0,
    mapped() {
      this.mappings += 1;
    },
    unmapped() {
      this.mappings -= 1;
    },
  };
  openFailure: LinuxError | undefined;

  constructor(path: string) {
    this.path = path;
  }
  open(_task: Task, _flags: number): KernelFile {
    if (this.openFailure !== undefined) throw this.openFailure;
    return this.make();
  }
  make(): FakeFile {
    const file = new FakeFile(this, this.opened.length);
    this.opened.push(file);
    return file;
  }
  get closes(): number[] {
    return this.opened.map(({ closed }) => closed);
  }
}

export class FakeFile implements KernelFile {
  readonly kind = "fake";
  readonly name: string;
  readonly #node: FakeNode;
  readonly #number: number;
  closed = 0;
  readonly region = new Uint8Array(1 << 20);
  readonly queue: Uint8Array[] = [];
  #kept: EventFd | undefined;
  #restarts = 0;
  onReady: (() => void) | undefined;

  constructor(node: FakeNode, number: number) {
    this.#node = node;
    this.#number = number;
    this.name = `fake ${number}`;
  }

  ioctl(call: Call, request: number, argument: bigint): number | Suspended {
    switch (request) {
      case Test.nothing:
        return 0;
      case Test.echo: {
        const bytes = new Uint8Array(8);
        call.memory.read(argument, bytes);
        const [a] = words(bytes);
        words(bytes)[1] = a! + 1;
        call.memory.write(argument, bytes);
        return 7;
      }
      case Test.busy:
        throw new LinuxError("EBUSY", "the fake file is always busy", this.name);
      case Test.createAt:
        call.install(this.#node.make(), { at: argument, closeOnExec: true });
        return 0;
      case Test.create:
        return call.install(this.#node.make());
      case Test.signal: {
        const eventfd = call.eventfd(Number(argument));
        eventfd.signal();
        eventfd.close();
        return 0;
      }
      case Test.keepEventfd:
        this.#kept = call.eventfd(Number(argument));
        return 0;
      case Test.signalKept:
        for (let i = 0; i < Number(argument); i += 1) this.#kept?.signal();
        return 0;
      case Test.suspend:
        this.#node.suspended.push(
          call.suspend(() => {
            this.#node.cancelled += 1;
          }),
        );
        return SUSPENDED;
      case Test.resume: {
        const waiting = this.#node.suspended.splice(0);
        for (const continuation of waiting) continuation.resume(Number(argument));
        return waiting.length;
      }
      case Test.bug:
        throw new TypeError("a mistake of the programmer");
      case Test.which: {
        const file = call.file(Number(argument));
        if (!(file instanceof FakeFile)) throw new LinuxError("EBADF", "not one of ours");
        return file.#number;
      }
      case Test.restart:
        this.#restarts += 1;
        if (this.#restarts <= Number(argument))
          throw new Restart({ id: call.memory.id, giveUp() {} }, [{ va: 0x1000, length: 0x1000 }]);
        return this.#restarts;
      case Test.whoami: {
        const { pid, tid, uid } = call.task;
        call.memory.write(argument, new Uint8Array(new Uint32Array([pid, tid, uid, call.memory.id]).buffer));
        return 0;
      }
      case Test.push:
        this.queue.push(new TextEncoder().encode(`event ${argument}`));
        this.onReady?.();
        return 0;
      case Test.closed:
        return this.#node.opened.filter(({ closed }) => closed > 0).length;
      case Test.mapped:
        return this.#node.owner.mappings;
      case Test.count:
        return this.queue.length;
      default:
        throw new LinuxError("ENOTTY", `request 0x${request.toString(16)} is not known`, this.name);
    }
  }

  read(call: Call, into: Uint8Array): number | Suspended {
    const event = this.queue.shift();
    if (event !== undefined) {
      into.set(event.subarray(0, into.length));
      return Math.min(event.length, into.length);
    }
    if (into.length === 1) {
      this.#node.suspended.push(
        call.suspend(() => {
          this.#node.cancelled += 1;
        }),
      );
      into[0] = 0x5a;
      return SUSPENDED;
    }
    throw new LinuxError("EAGAIN", "the queue is empty", this.name);
  }

  write(_call: Call, data: Uint8Array): number {
    this.queue.push(data.slice());
    this.onReady?.();
    return data.length;
  }

  pread(_call: Call, offset: bigint, into: Uint8Array): number {
    const from = this.region.subarray(Number(offset), Number(offset) + into.length);
    into.set(from);
    return from.length;
  }

  pwrite(_call: Call, offset: bigint, data: Uint8Array): number {
    const part = data.subarray(0, Math.max(0, this.region.length - Number(offset)));
    this.region.set(part, Number(offset));
    return part.length;
  }

  mmap(): readonly MapSegment[] {
    if (this.#node.segments.length === 0)
      throw new LinuxError("EINVAL", "nothing here can be mapped", this.name);
    return this.#node.segments;
  }

  poll(): number {
    return this.queue.length > 0 ? 1 : 0;
  }

  close(): void {
    this.closed += 1;
    this.#kept?.close();
  }
}
