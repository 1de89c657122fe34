/**
 * The files of Linux's fault injection: `fail-nth` and `make-it-fail` of every task in /proc, and the folders
 * `failslab` and `fail_page_alloc` in /sys/kernel/debug (Documentation/fault-injection/fault-injection.rst). The host is
 * set up so that fail-nth reaches every allocation: `ignore-gfp-wait` and `ignore-gfp-highmem` say N and `min-order` 0
 * from the start, where Linux begins with Y, Y and 1.
 */
import { LinuxError } from "../uapi/errno.ts";
import type { Allocations } from "./allocations.ts";
import type { Call, DeviceNode, KernelFile, Task } from "./call.ts";
import { type Attribute, parseNumber } from "./fault-attributes.ts";

const DEBUGFS = "/sys/kernel/debug";
const TASK_FILE = /^\/proc\/(self|thread-self|[0-9]+)(?:\/task\/([0-9]+))?\/(fail-nth|make-it-fail)$/;
const S_IFREG = 0o100000;
const O_ACCMODE = 3;
const O_RDONLY = 0;
const O_WRONLY = 1;
/** Longer texts are no value of any file. */
const MOST_TEXT = 64;
const Whence = { set: 0, current: 1 } as const;

type TaskId = Pick<Task, "pid" | "tid">;

/** An attribute that is open: text at positions, which writes do not move, as files of /proc and debugfs have it. */
export class AttributeFile implements KernelFile {
  readonly kind = "attribute";
  readonly name: string;
  readonly #attribute: Attribute;
  readonly #access: number;
  #at = 0;

  constructor(name: string, attribute: Attribute, flags: number) {
    this.name = name;
    this.#attribute = attribute;
    this.#access = flags & O_ACCMODE;
  }

  read(call: Call, into: Uint8Array): number {
    const count = this.pread(call, BigInt(this.#at), into);
    this.#at += count;
    return count;
  }

  /** Throws EINVAL and ERANGE for what is no value; EBADF when it was opened for reading. */
  write(_call: Call, data: Uint8Array): number {
    return this.message(data);
  }

  pread(_call: Call, offset: bigint, into: Uint8Array): number {
    if (this.#access === O_WRONLY) throw new LinuxError("EBADF", "it was opened for writing only", this.name);
    const text = Buffer.from(this.#attribute.show());
    if (offset >= BigInt(text.length)) return 0;
    const rest = text.subarray(Number(offset), Number(offset) + into.length);
    into.set(rest);
    return rest.length;
  }

  pwrite(_call: Call, _offset: bigint, data: Uint8Array): number {
    return this.message(data);
  }

  message(data: Uint8Array): number {
    if (this.#access === O_RDONLY) throw new LinuxError("EBADF", "it was opened for reading only", this.name);
    if (data.length > MOST_TEXT)
      throw new LinuxError("EINVAL", `${data.length} bytes are no value`, this.name);
    this.#attribute.store(Buffer.from(data).toString("latin1"));
    return data.length;
  }

  seek(offset: bigint, whence: number): number {
    if (whence !== Whence.set && whence !== Whence.current)
      throw new LinuxError("EINVAL", "it has no end that a position could count from", this.name);
    const at = (whence === Whence.set ? 0n : BigInt(this.#at)) + offset;
    if (at < 0n || at > 0x7fff_ffffn) throw new LinuxError("EINVAL", `${at} is no position`, this.name);
    this.#at = Number(at);
    return this.#at;
  }

  close(): void {}
}

export class FaultInjection {
  readonly #allocations: Allocations;
  /** Files in debugfs, by path. */
  readonly #attributes = new Map<string, Attribute>();
  readonly #exists: (task: TaskId) => boolean;

  /** `exists` tells the tasks that programs have. */
  constructor(allocations: Allocations, exists: (task: TaskId) => boolean) {
    this.#allocations = allocations;
    this.#exists = exists;
    for (const [folder, { files }] of [
      ["failslab", allocations.slab],
      ["fail_page_alloc", allocations.pages],
    ] as const)
      for (const [name, attribute] of files) this.#attributes.set(`${DEBUGFS}/${folder}/${name}`, attribute);
  }

  /** What a path is for a task that opens it; undefined: nothing of ours. Opening throws ENOENT: no such task. */
  node(path: string, task: TaskId): DeviceNode | undefined {
    const attribute = this.#attributes.get(path);
    if (attribute) return nodeOf(path, 0o600, () => attribute);
    const found = TASK_FILE.exec(path);
    if (!found) return undefined;
    const [, whose = "", tid, name] = found;
    return nodeOf(path, 0o644, () => {
      const target = taskOf(task, whose, tid);
      if (!this.#exists(target)) throw new LinuxError("ENOENT", `there is no task ${target.tid}`, path);
      return name === "fail-nth" ? this.#failNth(target) : this.#makeItFail(target);
    });
  }

  #failNth(target: TaskId): Attribute {
    return {
      show: () => `${this.#allocations.remaining(target)}\n`,
      store: (text) => this.#allocations.arm(target, Number(parseNumber(text, 0n, 2n ** 32n - 1n))),
    };
  }

  #makeItFail(target: TaskId): Attribute {
    return {
      show: () => `${this.#allocations.marked(target) ? 1 : 0}\n`,
      store: (text) => {
        const value = parseNumber(text, -(2n ** 31n), 2n ** 31n - 1n);
        if (value !== 0n && value !== 1n) throw new LinuxError("EINVAL", `${value} is neither 0 nor 1`);
        this.#allocations.mark(target, value === 1n);
      },
    };
  }
}

/** Files that are there whatever task looks, for the tree that programs see. */
export const debugFiles = ({ slab, pages }: Allocations): string[] => [
  ...[...slab.files.keys()].map((name) => `${DEBUGFS}/failslab/${name}`),
  ...[...pages.files.keys()].map((name) => `${DEBUGFS}/fail_page_alloc/${name}`),
];

const nodeOf = (path: string, mode: number, attribute: () => Attribute): DeviceNode => ({
  path,
  major: 0,
  minor: 0,
  mode: S_IFREG | mode,
  open: (_task, flags) => new AttributeFile(path, attribute(), flags),
});

const taskOf = (caller: TaskId, whose: string, tid: string | undefined): TaskId => {
  if (whose === "thread-self") return { pid: caller.pid, tid: caller.tid };
  const pid = whose === "self" ? caller.pid : Number(whose);
  return { pid, tid: tid === undefined ? pid : Number(tid) };
};
