/**
 * What the operands of a trapped instruction reach: the files whose windows lie at the addresses, and the ordinary
 * memory of the program between them. The window that was hit comes with the request; the table of the others is read
 * from the program only when an operand lies outside that one.
 */
import type { KernelFile, UserMemory } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type Bus, MemoryFault } from "./emulate/cpu.ts";

/** Layout of struct trap_window in shim/trap.h. */
export const TrapWindow = {
  sequence: 0,
  start: 8,
  end: 16,
  file_offset: 24,
  cookie: 32,
  fd: 40,
  protection: 44,
  size: 48,
} as const;

const PAGE = 4096n;
const PROT_WRITE = 2;
/** shim/trap.c has no more slots. */
const MAX_WINDOWS = 65_536;
const WINDOWS_A_READ = 1024;

/** Addresses [start, end) show `file` from `fileOffset` on. */
export interface Window {
  readonly start: bigint;
  readonly end: bigint;
  readonly fileOffset: bigint;
  readonly cookie: number;
  readonly fd: number;
  readonly protection: number;
}

/** The device took the access but does not answer: the program gets SIGBUS. */
export class BusError extends Error {
  readonly address: bigint;
  constructor(address: bigint, cause: LinuxError) {
    super(`the device does not answer at 0x${address.toString(16)}: ${cause.message}`);
    this.address = address;
  }
}

/** A slot of the table at `at`; undefined when it is free or being written. */
export function windowAt(view: DataView, at: number): Window | undefined {
  const start = view.getBigUint64(at + TrapWindow.start, true);
  const end = view.getBigUint64(at + TrapWindow.end, true);
  if ((view.getUint32(at + TrapWindow.sequence, true) & 1) === 1 || end <= start) return undefined;
  return {
    start,
    end,
    fileOffset: view.getBigUint64(at + TrapWindow.file_offset, true),
    cookie: Number(view.getBigUint64(at + TrapWindow.cookie, true)),
    fd: view.getInt32(at + TrapWindow.fd, true),
    protection: view.getUint32(at + TrapWindow.protection, true),
  };
}

export interface TrapTable {
  /** Address of the first slot in the program. */
  readonly address: bigint;
  readonly slots: number;
}

export class TrapBus implements Bus {
  private readonly memory: UserMemory;
  private readonly hit: Window | undefined;
  private readonly table: TrapTable;
  private readonly fileOf: (window: Window) => KernelFile | undefined;
  private others: readonly Window[] | undefined;

  constructor(
    memory: UserMemory,
    hit: Window | undefined,
    table: TrapTable,
    fileOf: (window: Window) => KernelFile | undefined,
  ) {
    this.memory = memory;
    this.hit = hit;
    this.table = table;
    this.fileOf = fileOf;
  }

  read(address: bigint, into: Uint8Array): void {
    this.eachPart(address, into, false, (window, at, piece) => {
      if (window === undefined) this.memory.read(at, piece);
      else this.fileFor(window, at, false).trapRead!(at - window.start + window.fileOffset, piece);
    });
  }

  write(address: bigint, data: Uint8Array): void {
    this.eachPart(address, data, true, (window, at, piece) => {
      if (window === undefined) this.memory.write(at, piece);
      else this.fileFor(window, at, true).trapWrite!(at - window.start + window.fileOffset, piece);
    });
  }

  enqueue(address: bigint, command: Uint8Array): boolean {
    const window = this.find(address);
    if (window === undefined || address + 64n > window.end) throw new MemoryFault(address, true);
    const file = this.fileFor(window, address, true);
    try {
      return file.trapEnqueue?.(address - window.start + window.fileOffset, command, this.memory) ?? false;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      throw error.code === "EPERM" ? new MemoryFault(address, true) : new BusError(address, error);
    }
  }

  ordinary(address: bigint): number {
    return this.find(address) === undefined ? Number(PAGE - (address & (PAGE - 1n))) : 0;
  }

  /** Calls `access` for each part of the range that lies in one window, or between windows. */
  private eachPart(
    address: bigint,
    bytes: Uint8Array,
    writing: boolean,
    access: (window: Window | undefined, at: bigint, piece: Uint8Array) => void,
  ): void {
    for (let done = 0; done < bytes.length; ) {
      const at = BigInt.asUintN(64, address + BigInt(done));
      const window = this.find(at);
      const room = window === undefined ? PAGE - (at & (PAGE - 1n)) : window.end - at;
      const length = room < BigInt(bytes.length - done) ? Number(room) : bytes.length - done;
      try {
        access(window, at, length === bytes.length ? bytes : bytes.subarray(done, done + length));
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        throw window === undefined ? new MemoryFault(at, writing) : new BusError(at, error);
      }
      done += length;
    }
  }

  private fileFor(window: Window, address: bigint, writing: boolean): KernelFile {
    const file = this.fileOf(window);
    const allowed = window.protection & (writing ? PROT_WRITE : ~0);
    const can = writing ? file?.trapWrite : file?.trapRead;
    if (file === undefined || can === undefined || allowed === 0) throw new MemoryFault(address, writing);
    return file;
  }

  private find(address: bigint): Window | undefined {
    const { hit } = this;
    if (hit !== undefined && hit.start <= address && address < hit.end) return hit;
    this.others ??= this.readOthers();
    return this.others.find((window) => window.start <= address && address < window.end);
  }

  private readOthers(): Window[] {
    try {
      return readWindows(this.memory, this.table);
    } catch (error) {
      if (error instanceof LinuxError) throw new MemoryFault(this.table.address, false);
      throw error;
    }
  }
}

/** Every window in the table. Throws what reading the program's memory throws. */
export const readWindows = (memory: UserMemory, { address, slots }: TrapTable): Window[] => {
  const windows: Window[] = [];
  const count = Math.min(slots, MAX_WINDOWS);
  for (let first = 0; first < count; first += WINDOWS_A_READ) {
    const bytes = new Uint8Array(Math.min(WINDOWS_A_READ, count - first) * TrapWindow.size);
    memory.read(address + BigInt(first * TrapWindow.size), bytes);
    const view = new DataView(bytes.buffer);
    for (let slot = 0; slot < bytes.length; slot += TrapWindow.size) {
      const window = windowAt(view, slot);
      if (window !== undefined) windows.push(window);
    }
  }
  return windows;
};
