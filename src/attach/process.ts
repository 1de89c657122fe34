/**
 * A program image at the other end: its address space, what it may do, and which files it proved to hold. `Caller` is
 * one of its threads as the kernel rooms see it.
 */
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync } from "node:fs";
import { pidfdGetfd } from "../base/libc.ts";
import { Capability, type Task, type UserMemory, type UserRange } from "../kernel/call.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { Errno } from "../uapi/errno.ts";
import type { ClientProcess } from "./connection.ts";
import type { MappedRegisters } from "./mapped-registers.ts";
import { type Credentials, isCapable, type PrivilegeMode } from "./privileges.ts";
import { descriptorLimitOf, effectiveCapabilities, memlockOf, socketCookie } from "./syscalls.ts";

/** The memory of a process as the server is given it (process-memory.ts); `close` when the process is gone. */
export interface ClientMemory extends UserMemory {
  close?(): void;
}

/**
 * The caller's memory with a window over bytes that came along with the request: most calls then need no system call
 * to read their argument. One object for each process, because its identity and its counters are kept.
 */
export class PrefetchedMemory implements UserMemory {
  readonly atEnd = new Set<() => void>();
  readonly #memory: UserMemory;
  #va = 0n;
  #window: Uint8Array = new Uint8Array();

  constructor(memory: UserMemory) {
    this.#memory = memory;
  }

  get id(): number {
    return this.#memory.id;
  }
  get expected(): Set<UserRange> | undefined {
    return this.#memory.expected;
  }
  get lockedPages(): number {
    return this.#memory.lockedPages;
  }
  set lockedPages(pages: number) {
    this.#memory.lockedPages = pages;
  }
  get pinnedPages(): number {
    return this.#memory.pinnedPages;
  }
  set pinnedPages(pages: number) {
    this.#memory.pinnedPages = pages;
  }

  /** `window` is a view that stays valid until `close`. */
  open(va: bigint, window: Uint8Array): void {
    this.#va = va;
    this.#window = window;
  }
  close(): void {
    if (this.#window.length > 0) this.#window = this.#window.subarray(0, 0);
  }

  read(va: bigint, into: Uint8Array): void {
    const window = this.#window;
    if (window.length > 0 && va >= this.#va && va + BigInt(into.length) <= this.#va + BigInt(window.length)) {
      const at = Number(va - this.#va);
      into.set(window.subarray(at, at + into.length));
    } else this.#memory.read(va, into);
  }
  /** Anything written may lie in the window: it is not used any more. */
  write(va: bigint, data: Uint8Array): void {
    this.close();
    this.#memory.write(va, data);
  }
  pin(va: number, length: number, writable: boolean) {
    return this.#memory.pin(va, length, writable);
  }
  /** Once the program has mapped a file of ours. */
  mapped: MappedRegisters | undefined;
  registers(va: number, length: number, writable: boolean) {
    return this.mapped?.at(va, length, writable);
  }
}

/** Descriptors of a process that are looked through for one file. */
const MOST_LOOKED_AT = 4096;

export class AttachedProcess implements ClientProcess {
  readonly pid: number;
  readonly pidfd: number;
  /** The image's number; another one after exec. */
  readonly image: string;
  readonly memory: ClientMemory;
  /** What handlers see as the memory. */
  readonly user: PrefetchedMemory;
  /** Files it has shown to hold, and under which number. */
  /** /proc/PID/status, once it was asked for. */
  #status = -1;
  readonly #held = new Map<number, number>();

  constructor(pid: number, pidfd: number, image: string, memory: ClientMemory) {
    this.pid = pid;
    this.pidfd = pidfd;
    this.image = image;
    this.memory = memory;
    this.user = new PrefetchedMemory(memory);
  }

  /**
   * 0 when the process has shown that it holds the file: its descriptor `fd` is the socket with this cookie. Else why
   * not: -EPERM, when its descriptors may not be looked at, or -EBADF.
   */
  holds(cookie: number, fd: number): number {
    if (this.#held.has(cookie)) return 0;
    const copy = pidfdGetfd(this.pidfd, fd);
    if (copy < 0) return copy === -Errno.EPERM ? copy : -Errno.EBADF;
    const same = socketCookie(copy) === cookie;
    closeSync(copy);
    if (same) this.#held.set(cookie, fd);
    return same ? 0 : -Errno.EBADF;
  }

  /** A descriptor of our own of the socket with this cookie, if the process has one; the caller closes it. */
  duplicate(cookie: number): number | undefined {
    const known = this.#held.get(cookie);
    const numbers = known === undefined ? [] : [known];
    for (const fd of [...numbers, ...this.#sockets()]) {
      const copy = pidfdGetfd(this.pidfd, fd);
      if (copy < 0) continue;
      if (socketCookie(copy) === cookie) return copy;
      closeSync(copy);
    }
    return undefined;
  }

  /** Numbers of its sockets, the first ones when it has very many. */
  #sockets(): number[] {
    try {
      return readdirSync(`/proc/${this.pid}/fd`)
        .slice(0, MOST_LOOKED_AT)
        .map(Number)
        .filter((fd) => statSync(`/proc/${this.pid}/fd/${fd}`, { throwIfNoEntry: false })?.isSocket());
    } catch {
      return []; // it is gone, or may not be looked into
    }
  }

  /** Whether it can be given so many descriptors more: there are free numbers below its limit. */
  hasRoomFor(count: number): boolean {
    const limit = descriptorLimitOf(this.pid);
    try {
      const open = readdirSync(`/proc/${this.pid}/fd`);
      if (open.length + count <= limit) return true;
      return open.filter((fd) => Number(fd) < limit).length + count <= limit;
    } catch {
      return true; // it may not be looked into: receiving will tell
    }
  }

  forget(cookie: number): void {
    this.#held.delete(cookie);
  }

  /** VmLck as the real kernel counts it: no page of ours is in it. Asked at every map, so its file stays open. */
  mlockedPages(): number {
    try {
      if (this.#status < 0) this.#status = openSync(`/proc/${this.pid}/status`, "r");
      const length = readSync(this.#status, statusText, 0, statusText.length, 0);
      const at = statusText.subarray(0, length).indexOf(VM_LOCKED);
      if (at < 0) return 0;
      return (
        (Number.parseInt(statusText.toString("latin1", at + VM_LOCKED.length, length), 10) * 1024) /
        FRAME_BYTES
      );
    } catch {
      return 0; // it is gone
    }
  }

  end(): void {
    closeSync(this.pidfd);
    if (this.#status >= 0) closeSync(this.#status);
    for (const end of [...this.user.atEnd]) end();
    this.user.atEnd.clear();
    this.memory.close?.();
  }
}

const VM_LOCKED = "VmLck:";
const statusText = Buffer.alloc(8192);

const capabilityNumber: Readonly<Record<Capability, number>> = {
  [Capability.ipcLock]: 14,
  [Capability.sysRawio]: 17,
  [Capability.sysAdmin]: 21,
  [Capability.sysResource]: 24,
};

const runner: Credentials = { uid: process.geteuid!(), effective: effectiveCapabilities(process.pid) };

export class Caller implements Task {
  readonly process: AttachedProcess;
  readonly uid: number;
  readonly #privileges: PrivilegeMode;
  tid = 0;

  constructor(process: AttachedProcess, uid: number, privileges: PrivilegeMode) {
    this.process = process;
    this.uid = uid;
    this.#privileges = privileges;
  }

  get pid(): number {
    return this.process.pid;
  }
  get memory(): UserMemory {
    return this.process.user;
  }
  get name(): string {
    try {
      return readFileSync(`/proc/${this.process.pid}/comm`, "utf8").trim();
    } catch {
      return "?";
    }
  }
  capable(capability: Capability): boolean {
    const client = { uid: this.uid, effective: effectiveCapabilities(this.process.pid) };
    if (client.effective < 0) return false;
    return isCapable(this.#privileges, runner, client, capabilityNumber[capability]);
  }
  memlockLimit(): number {
    return memlockOf(this.process.pid);
  }
  mlockedPages(): number {
    return this.process.mlockedPages();
  }
}
