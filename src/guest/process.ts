/**
 * A process of a modelled guest that shares its addresses with devices (shared virtual addressing): its page table is the
 * device's first stage. Pages come when they are first touched, whether by the process or by a device. What the CPU does is
 * a walk of the same table by its own rules. Left out: files, copy on write, memory types, several areas of one page.
 */
import { Protection } from "../iommu/driver.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { Permission } from "../pagetable/format.ts";
import { type Walker, WalkResult } from "../pagetable/walker.ts";
import type { GuestDomain } from "./firmware.ts";

const PAGE = 4096;
const WORD = 2 ** 32;

/** Addresses that may be touched, and how. */
interface Area {
  readonly start: number;
  readonly end: number;
  readonly writable: boolean;
}

export interface ProcessParts {
  readonly name: string;
  readonly memory: HostMemory;
  readonly table: GuestDomain;
  /** How the processor walks it. */
  readonly walker: Walker;
}

export class GuestProcess {
  readonly name: string;
  readonly table: GuestDomain;
  /** Pages that were brought in, by the process or for a device. */
  faults = 0;
  readonly #ended: (process: GuestProcess) => void;
  readonly #memory: HostMemory;
  readonly #walker: Walker;
  readonly #areas: Area[] = [];
  /** Guest physical address of each page that is there. */
  readonly #pages = new Map<number, number>();
  readonly #walk = new WalkResult();

  /** `ended` is told when it exits. */
  constructor(
    { name, memory, table, walker }: ProcessParts,
    ended: (process: GuestProcess) => void = () => {},
  ) {
    this.name = name;
    this.table = table;
    this.#memory = memory;
    this.#walker = walker;
    this.#ended = ended;
  }

  /** Pages that are there. */
  get resident(): number {
    return this.#pages.size;
  }

  /** mmap(2): addresses that may be touched from now on; nothing is there yet. */
  reserve(start: number, pages: number, writable = true): void {
    this.#areas.push({ start, end: start + pages * PAGE, writable });
  }

  /** munmap(2) of whole areas: devices reach nothing there any more, then the pages are free. */
  release(start: number, pages: number): void {
    const end = start + pages * PAGE;
    for (let index = this.#areas.length - 1; index >= 0; index--) {
      const area = this.#areas[index]!;
      if (area.start >= start && area.end <= end) this.#areas.splice(index, 1);
    }
    this.table.unmap(start, end - start);
    for (let at = start; at < end; at += PAGE) {
      const pa = this.#pages.get(at);
      if (pa === undefined) continue;
      this.#pages.delete(at);
      this.#memory.free(pa, 1);
    }
  }

  /** A page fault: brings the page in. False: nothing may be there, or not so. */
  touch(address: number, write: boolean): boolean {
    const page = Math.floor(address / PAGE) * PAGE;
    const area = this.#areas.find(({ start, end }) => page >= start && page < end);
    if (!area || (write && !area.writable)) return false;
    if (this.#pages.has(page)) return true;
    const pa = this.#memory.allocate(1);
    if (pa < 0) return false;
    this.#pages.set(page, pa);
    this.table.map(page, pa, PAGE, area.writable ? Protection.read | Protection.write : Protection.read);
    this.faults += 1;
    return true;
  }

  /** What the process itself writes and reads. Throws RangeError where it may not (SIGSEGV). */
  write(address: number, text: string): void {
    const bytes = Buffer.from(text);
    this.#each(address, bytes.length, true, (pa, from, to) =>
      this.#memory.writeBytes(pa, bytes.subarray(from, to)),
    );
  }
  read(address: number, length: number): string {
    const bytes = new Uint8Array(length);
    this.#each(address, length, false, (pa, from, to) =>
      this.#memory.readBytes(pa, bytes.subarray(from, to)),
    );
    return Buffer.from(bytes).toString();
  }

  /** The guest physical address that the process's own table has for an address, or -1. */
  physical(address: number, write = false): number {
    const need = Permission.user | (write ? Permission.write : Permission.read);
    const [lo, hi] = [address % WORD, Math.floor(address / WORD)];
    const fault = this.#walker(this.#memory, this.table.root, lo, hi, need, this.#walk);
    return fault === 0 ? this.#walk.pa : -1;
  }

  /** The process ends; no device has its table any more. */
  exit(): void {
    for (const { start, end } of [...this.#areas]) this.release(start, (end - start) / PAGE);
    this.#ended(this);
    this.table.free();
  }

  #each(
    address: number,
    length: number,
    write: boolean,
    access: (pa: number, from: number, to: number) => boolean,
  ): void {
    for (let done = 0; done < length; ) {
      const at = address + done;
      const count = Math.min(length - done, PAGE - (at % PAGE));
      const there = this.physical(at, write) >= 0 || this.touch(at, write);
      if (!there || !access(this.physical(at, write), done, done + count))
        throw new RangeError(`${this.name}: segmentation fault at 0x${at.toString(16)}`);
      done += count;
    }
  }
}
