/**
 * A domain that shows a process's memory to functions at the process's own addresses (shared virtual addressing). A page is
 * there once somebody has reached for it, with the rights that the process has itself, and for as long as it is in use:
 * `turn` begins a new time, and `forget` gives back what was not reached for since. In between what the program unmaps stays as it
 * was, as it does for other DMA; where it maps something else the next time shows that.
 *
 * Left out: large pages; pages that nobody asked for.
 */
import { type Pin, Restart, type UserMemory } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type PagingDomain, Protection } from "./driver.ts";

const PAGE = 4096;
/** Pages that are shown at a time: 64 MiB. */
const MOST_PAGES = 16384;
/** Attempts to pin something in a time: what has more holes comes page by page, when it is asked for. */
const MOST_TRIES = 512;
/** A single page takes no more: to be written to, and else to be read. */
const TRIES_OF_A_PAGE = 2;

/** Pages that were pinned together. */
interface Run {
  readonly va: number;
  readonly pin: Pin;
  readonly writable: boolean;
  /** The last time it was reached for. */
  time: number;
}

export class Mirror {
  readonly domain: PagingDomain;
  readonly #memory: UserMemory;
  /** By page number. */
  readonly #pages = new Map<number, Run>();
  #time = 0;
  #tries = MOST_TRIES;
  #open = true;

  constructor(domain: PagingDomain, memory: UserMemory) {
    this.domain = domain;
    this.#memory = memory;
  }

  /** Pages that are shown now. */
  get pages(): number {
    return this.#pages.size;
  }

  /** A new time begins; answers its number. */
  turn(): number {
    this.#time += 1;
    this.#tries = MOST_TRIES;
    return this.#time;
  }

  /** Shows [va, va + length), as far as the process has it; answers whether all of it is there, and to write if that is wanted. */
  reach(va: number, length: number, write: boolean): boolean {
    const first = Math.floor(va / PAGE);
    const end = Math.ceil((va + length) / PAGE);
    let complete = true;
    if (end - first === 1) this.#tries = Math.max(this.#tries, TRIES_OF_A_PAGE);
    for (let page = first; page < end; ) {
      const run = this.#pages.get(page);
      if (run && (run.writable || !write)) {
        run.time = this.#time;
        page += 1;
        continue;
      }
      if (run) this.#hide(run); // the process may write to the page alone
      let stop = page + 1;
      while (stop < end && !this.#pages.has(stop)) stop += 1;
      complete = this.#show(page, stop, write) && complete;
      page = stop;
    }
    return complete;
  }

  /** Gives back what was last reached for at that time or before. */
  forget(time: number): void {
    for (const run of new Set(this.#pages.values())) if (run.time <= time) this.#hide(run);
  }

  /** Everything is given back, and nothing is shown any more. No function has the domain. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.forget(this.#time);
    this.domain.free();
  }

  /** Pages [first, end), none of which is shown: together where that is possible, else what of them can be shown. */
  #show(first: number, end: number, write: boolean): boolean {
    if (!this.#open || this.#pages.size + (end - first) > MOST_PAGES) return false;
    const run = this.#pin(first, end, true) ?? this.#pin(first, end, false);
    if (run) return run.writable || !write;
    if (end - first === 1 || this.#tries === 0) return false;
    const middle = Math.floor((first + end) / 2);
    const low = this.#show(first, middle, write);
    return this.#show(middle, end, write) && low;
  }

  #pin(first: number, end: number, writable: boolean): Run | undefined {
    const va = first * PAGE;
    if (this.#tries === 0) return undefined;
    this.#tries -= 1;
    try {
      const pin = this.#pinNow(va, (end - first) * PAGE, writable);
      const run = { va, pin, writable, time: this.#time };
      this.#map(run);
      for (let page = first; page < end; page += 1) this.#pages.set(page, run);
      return run;
    } catch (error) {
      if (error instanceof LinuxError) return undefined;
      throw error;
    }
  }

  /** The program cannot be asked to move its memory now: it is reached where it is. */
  #pinNow(va: number, length: number, writable: boolean): Pin {
    for (;;)
      try {
        return this.#memory.pin(va, length, writable);
      } catch (error) {
        if (!(error instanceof Restart)) throw error;
        error.owner.giveUp(error.ranges);
      }
  }

  #map({ va, pin, writable }: Run): void {
    const protection = Protection.read | (writable ? Protection.write : 0);
    const { extents } = pin;
    let at = va;
    try {
      for (let index = 0; index < extents.length; index += 2) {
        const length = extents[index + 1]! * PAGE;
        this.domain.map(at, extents[index]! * PAGE, length, protection);
        at += length;
      }
    } catch (error) {
      if (at > va) this.domain.unmap(va, at - va);
      pin.unpin(0, pin.pages);
      throw error;
    }
  }

  #hide({ va, pin }: Run): void {
    this.domain.unmap(va, pin.pages * PAGE);
    for (let page = 0; page < pin.pages; page += 1) this.#pages.delete(va / PAGE + page);
    pin.unpin(0, pin.pages);
  }
}
