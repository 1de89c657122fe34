/**
 * What a system call is: who calls (`Task`), on what (`KernelFile`), with which memory (`UserMemory`), and how a call
 * that must wait is suspended. iommufd and VFIO are written against this; `attach/` serves it to real processes, a
 * model task serves it to tests and to modelled VMMs.
 *
 * A handler is an ordinary function: it returns the value of the call, throws a `LinuxError`, or suspends. It may be
 * run **again from the start** before it had any effect: pinning memory that must first be adopted by its owner ends
 * the handler with `Restart`, the owner adopts, and the call comes again. So a handler pins before it changes
 * anything, or undoes what it did when pinning throws.
 */

/** Returned by a handler that has called `call.suspend`. */
export const SUSPENDED: unique symbol = Symbol("suspended");
export type Suspended = typeof SUSPENDED;

/** Addresses of one address space, in bytes. */
export interface UserRange {
  readonly va: number;
  readonly length: number;
}

/** The address space whose program has to move memory before it can be pinned. */
export interface Adopter {
  /** That of its `UserMemory`. */
  readonly id: number;
  /** Its program cannot be asked, another one calls: the next pin reaches these ranges where they are. */
  giveUp(ranges: readonly UserRange[]): void;
}

/** Thrown by `UserMemory.pin` when the owner has to do something first; only `attach/` catches it. */
export class Restart {
  readonly owner: Adopter;
  readonly ranges: readonly UserRange[];
  constructor(owner: Adopter, ranges: readonly UserRange[]) {
    this.owner = owner;
    this.ranges = ranges;
  }
}

export interface Continuation {
  resume(value: number): void;
  fail(error: unknown): void;
  /** True once resumed, failed or cancelled. */
  readonly settled: boolean;
}

export interface Call {
  readonly task: Task;
  readonly memory: UserMemory;
  /** The kernel file behind a descriptor of the caller; undefined: not open, or not one of ours. */
  file(fd: number): KernelFile | undefined;
  /** Takes the caller's eventfd; throws EBADF when the descriptor is not open, EINVAL when it is not an eventfd. */
  eventfd(fd: number): EventFd;
  /** Takes a file or memfd of the caller, for mapping. Throws EBADF. */
  backing(fd: number): FileBacking;
  /**
   * Gives the caller a descriptor for a new file. It exists once the call has succeeded. With `at` its number is
   * written there as s32; without, it is the value of the call. Throws EMFILE and ENFILE, and has closed the file then;
   * it is closed too when the call fails after all.
   */
  install(file: KernelFile, options?: { readonly at?: bigint; readonly closeOnExec?: boolean }): number;
  /** The call will be answered later. `cancel` is called when the caller dies or is interrupted; then nothing may be answered. */
  suspend(cancel: () => void): Continuation;
}

export interface EventFd {
  signal(): void;
  /** Until `close`: what others count up is taken, and `onSignal` called. */
  watch(onSignal: () => void): void;
  close(): void;
}

/** A file the caller passed for mapping (MAP_FILE). */
export interface FileBacking {
  readonly size: number;
  readonly writable: boolean;
  pin(offset: number, length: number, writable: boolean): Pin;
  close(): void;
}

export const Capability = {
  sysAdmin: "CAP_SYS_ADMIN",
  ipcLock: "CAP_IPC_LOCK",
  sysResource: "CAP_SYS_RESOURCE",
  sysRawio: "CAP_SYS_RAWIO",
} as const;
export type Capability = (typeof Capability)[keyof typeof Capability];

export interface Task {
  readonly pid: number;
  readonly tid: number;
  readonly uid: number;
  readonly name: string;
  /** The address space; threads share it. */
  readonly memory: UserMemory;
  capable(capability: Capability): boolean;
  /** RLIMIT_MEMLOCK in bytes; Infinity when unlimited. */
  memlockLimit(): number;
  /** Pages that the program locked itself (mlock); they count against RLIMIT_MEMLOCK too. */
  mlockedPages(): number;
}

/** Pages held in memory for DMA, wherever their owner's address goes afterwards. */
export interface Pin {
  /** First address of the pinned pages, a multiple of a page. */
  readonly va: number;
  readonly pages: number;
  readonly writable: boolean;
  /** Runs of contiguous frames in order: pfn, count, pfn, count, … */
  readonly extents: Float64Array;
  /** Gives back pages [first, first + count) of the pin; all of them gone, the pin is gone. */
  unpin(first: number, count: number): void;
}

export interface UserMemory {
  /** Identity of the address space; a forked child has another. */
  readonly id: number;
  /** User to kernel; throws EFAULT without effect on the target's length. */
  read(va: bigint, into: Uint8Array): void;
  write(va: bigint, data: Uint8Array): void;
  /** Pins whole pages: va and length are multiples of 4096. Throws EFAULT, ENOMEM, or Restart. */
  pin(va: number, length: number, writable: boolean): Pin;
  /**
   * The same of registers of a device that are mapped there, which only type 1 containers map for devices: nothing is
   * held. Undefined: they are something else. Throws EFAULT while they do not answer, and without permission.
   */
  registers?(va: number, length: number, writable: boolean): Pin | undefined;
  /**
   * What may be pinned some day, perhaps by a call of another process, when the owner cannot be asked to adopt: it
   * adopts before a descriptor of ours gets to another process.
   */
  readonly expected?: Set<UserRange>;
  /** Called once, when the address space goes: its last task has ended, or executes another program. Never throws. */
  readonly atEnd?: Set<() => void>;
  /** Pages charged against RLIMIT_MEMLOCK of this address space by kernel files: its VmLck beside what it locked itself. */
  lockedPages: number;
  /** Pages pinned of it for iommufd: its VmPin. */
  pinnedPages: number;
}

/** What mapped pages belong to, when it must know how long they are mapped. */
export interface PageOwner {
  readonly name: string;
  /** A process has mapped pages of it. */
  mapped(): void;
  /** No process has a page of that mapping any more: unmapped, dead, and so are its forked children. Never throws. */
  unmapped(): void;
}

/**
 * How a file's range is to appear in the caller's address space; `offset` counts from the start of the mapping. Who maps
 * memory sees these frames and nothing else.
 */
export type MapSegment =
  | { readonly kind: "trap"; readonly offset: number; readonly length: number }
  | {
      readonly kind: "memory";
      readonly offset: number;
      readonly length: number;
      readonly pa: number;
      readonly owner?: PageOwner;
    };

export interface KernelFile {
  /** "vfio-container", "vfio-group", "vfio-device", "iommufd", "fault-queue", … */
  readonly kind: string;
  /** Name for messages: "container 3". */
  readonly name: string;
  /** `request` is the whole 32-bit number; `argument` the third argument of ioctl(2), unsigned. */
  ioctl?(call: Call, request: number, argument: bigint): number | Suspended;
  read?(call: Call, into: Uint8Array): number | Suspended;
  write?(call: Call, data: Uint8Array): number | Suspended;
  /**
   * Instead of `read` and `write`, for a file that must know whether its bytes arrived, or how far the caller's memory
   * goes: it reaches the `length` bytes at `at` itself.
   */
  readTo?(call: Call, at: bigint, length: number): number;
  writeFrom?(call: Call, at: bigint, length: number): number;
  /** Positioned access (device regions). Returns the bytes done. */
  pread?(call: Call, offset: bigint, into: Uint8Array): number;
  pwrite?(call: Call, offset: bigint, data: Uint8Array): number;
  /** lseek(2): the new position. Absent: it has none. Throws EINVAL. */
  seek?(offset: bigint, whence: number): number;
  /** Bytes that the caller's C library wrote without asking us; nobody learns when they are refused. */
  message?(data: Uint8Array): void;
  /** mmap(2): which parts are memory and which are traps. Throws EINVAL and the like. */
  mmap?(call: Call, offset: bigint, length: number, protection: number, flags: number): readonly MapSegment[];
  /** The physical address of registers that can be mapped at `offset`, while they answer. */
  registersAt?(offset: bigint): number | undefined;
  /** A trapped access to a mapped range; offset is that of the file. */
  trapRead?(offset: bigint, into: Uint8Array): void;
  trapWrite?(offset: bigint, data: Uint8Array): void;
  /**
   * A 64-byte non-posted write (ENQCMD) to a mapped range by a program with this memory; false: the device asks for a retry.
   * Absent: it always does. Throws EPERM where the program may not (it gets SIGSEGV, as one without a PASID), EIO.
   */
  trapEnqueue?(offset: bigint, command: Uint8Array, memory: UserMemory): boolean;
  /**
   * poll(2) mask now; `onReady` is set by whoever polls and called when POLLIN came, or went without a read. POLLOUT is
   * there always or never. Absent: always ready for everything, and refused by epoll.
   */
  poll?(): number;
  onReady?: (() => void) | undefined;
  /** The last descriptor went. Must leave nothing behind, and never throws. */
  close(): void;
}

/** A device node: what open(2) of a path reaches. */
export interface DeviceNode {
  /** "/dev/vfio/vfio" */
  readonly path: string;
  readonly major: number;
  readonly minor: number;
  /** Permissions; with a type (S_IFREG) when it is no character device. */
  readonly mode: number;
  /** Throws EBUSY and the like. `flags` are those of open(2). */
  open(task: Task, flags: number): KernelFile;
}
