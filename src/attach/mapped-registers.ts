/**
 * Registers of devices that a program has mapped, as physical memory: a type 1 container maps them for other devices.
 * The kernel's maps show reserved addresses there; what they are is in the table of windows that the library keeps
 * (shim/trap.h), which is read when it is asked for. A forked child has such memory once it has mapped some itself.
 */
import type { KernelFile, Pin, UserMemory } from "../kernel/call.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { readWindows, type Window } from "./trap-bus.ts";

const PROT_READ = 1;
const PROT_WRITE = 2;

/** Where the library keeps its windows: the table, and how many of its slots were used (u32). */
export interface WindowsPlace {
  readonly table: bigint;
  readonly used: bigint;
}

export class MappedRegisters {
  readonly #memory: UserMemory;
  readonly #place: WindowsPlace;
  readonly #fileOf: (window: Window) => KernelFile | undefined;

  constructor(memory: UserMemory, place: WindowsPlace, fileOf: (window: Window) => KernelFile | undefined) {
    this.#memory = memory;
    this.#place = place;
    this.#fileOf = fileOf;
  }

  /** As `UserMemory.registers`. */
  at(va: number, length: number, writable: boolean): Pin | undefined {
    const [start, end] = [BigInt(va), BigInt(va + length)];
    const windows = this.#windows().filter((window) => window.start < end && start < window.end);
    if (windows.length === 0) return undefined;
    windows.sort((a, b) => (a.start < b.start ? -1 : 1));
    const runs: number[] = [];
    let at = start;
    for (const window of windows) {
      if (window.start > at) break;
      const stop = window.end < end ? window.end : end;
      if (stop <= at) continue;
      runs.push(this.#frameOf(window, at, stop, writable), Number(stop - at) / FRAME_BYTES);
      at = stop;
    }
    if (at < end) throw fault(at, "is memory beside mapped registers; each is mapped by itself");
    return { va, pages: length / FRAME_BYTES, writable, extents: Float64Array.from(runs), unpin: () => {} };
  }

  /** The first frame behind [start, end) of a window. */
  #frameOf(window: Window, start: bigint, end: bigint, writable: boolean): number {
    const needed = writable ? PROT_WRITE : PROT_READ | PROT_WRITE;
    if ((window.protection & needed) === 0) throw fault(start, "is mapped without that permission");
    const file = this.#fileOf(window);
    const offsetOf = (address: bigint): bigint => address - window.start + window.fileOffset;
    const pa = file?.registersAt?.(offsetOf(start));
    const last = file?.registersAt?.(offsetOf(end - 1n));
    if (pa === undefined || last === undefined) throw fault(start, "shows registers that do not answer");
    return Math.floor(pa / FRAME_BYTES);
  }

  #windows(): Window[] {
    const count = new Uint32Array(1);
    this.#memory.read(this.#place.used, new Uint8Array(count.buffer));
    return readWindows(this.#memory, { address: this.#place.table, slots: count[0]! });
  }
}

const fault = (va: bigint, why: string): LinuxError =>
  new LinuxError("EFAULT", `user address 0x${va.toString(16)} ${why}`);
