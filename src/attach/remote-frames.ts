/**
 * Pages of a client that cannot be mapped into the daemon: stacks, private file mappings, files whose descriptor is
 * gone. They have frame numbers like all others, but each access goes through /proc/PID/mem, after asking the kernel
 * whether the mapping that was pinned is still there; when it is not, the frame is poisoned. What this cannot see: memory
 * that was unmapped and mapped again with the same properties at the same place.
 */
import { readSync, writeSync } from "node:fs";
import type { Banks } from "../memory/banks.ts";
import { FRAME_BYTES, MemoryError } from "../memory/host-memory.ts";
import type { SlowFrames } from "../memory/slow.ts";
import type { Maps, Vma } from "./maps.ts";
import type { PinnedPages } from "./page-pin.ts";

/** The address space the pages lie in. `memFd`: /proc/PID/mem, bound to it. */
export interface RemoteSpace {
  readonly maps: Maps;
  readonly memFd: number;
  /** False once it was closed. */
  readonly open: boolean;
}

const STACK = "[stack]";

/** Whether `now` still is the mapping `then`, as far as [va, end) goes. */
export const sameMapping = (then: Vma, now: Vma | undefined, va: number, end: number): boolean => {
  if (now === undefined || now.start > va || now.end < end) return false;
  if (now.shared !== then.shared || (then.prot & ~now.prot) !== 0) return false;
  if (now.major !== then.major || now.minor !== then.minor || now.inode !== then.inode) return false;
  if (then.inode !== 0) return now.offset - now.start === then.offset - then.start;
  // Anonymous mappings merge with neighbours, and a stack grows down; a mapping made anew starts somewhere else.
  return (now.name === STACK) === (then.name === STACK) && now.start <= then.start;
};

export class RemoteFrames implements PinnedPages, SlowFrames {
  readonly device = false;
  readonly va: number;
  readonly count: number;
  readonly writable: boolean;
  readonly #banks: Banks;
  readonly #space: RemoteSpace;
  readonly #vma: Vma;
  readonly #pins: Uint32Array;
  readonly #onEmpty: () => void;
  #total = 0;
  #base = 0;

  /** `onEmpty`: called when the last pin went; the frames are gone then. */
  constructor(
    banks: Banks,
    space: RemoteSpace,
    range: { readonly vma: Vma; readonly va: number; readonly count: number },
    onEmpty: () => void,
  ) {
    this.#banks = banks;
    this.#space = space;
    this.#vma = range.vma;
    this.va = range.va;
    this.count = range.count;
    this.writable = (range.vma.prot & 2) !== 0;
    this.#pins = new Uint32Array(range.count);
    this.#onEmpty = onEmpty;
  }

  /** Takes frame numbers; false when there are none left. */
  place(): boolean {
    this.#base = this.#banks.addRemote(this.count, this.va, (start) => {
      this.#base = start / FRAME_BYTES;
      return this;
    });
    return this.#base >= 0;
  }

  get name(): string {
    return `remote pages of 0x${this.va.toString(16)}`;
  }
  get start(): number {
    return this.#base * FRAME_BYTES;
  }
  get end(): number {
    return (this.#base + this.count) * FRAME_BYTES;
  }

  frame(index: number): number {
    return this.#base + index;
  }

  pin(): void {
    for (let i = 0; i < this.count; i++) this.#pins[i]! += 1;
    this.#total += this.count;
  }

  release(index: number, count: number): void {
    for (let i = index; i < index + count; i++) {
      if (this.#pins[i]! === 0) throw new Error(`page ${i} of ${this.name} is not pinned`);
      this.#pins[i]! -= 1;
      if (this.#pins[i]! === 0) this.#banks.revoke(this.#base + i, 1);
    }
    this.#total -= count;
    if (this.#total > 0) return;
    this.#banks.removeRemote(this.#base, this.count);
    this.#onEmpty();
  }

  answers(pa: number): boolean {
    return this.#pins[Math.floor(pa / FRAME_BYTES) - this.#base]! > 0;
  }

  read(pa: number, into: Uint8Array): MemoryError {
    return this.#access(pa, into.length, (va, done) =>
      readSync(this.#space.memFd, into, done, into.length - done, va),
    );
  }

  write(pa: number, data: Uint8Array): MemoryError {
    if (!this.writable) return MemoryError.protected;
    return this.#access(pa, data.length, (va, done) =>
      writeSync(this.#space.memFd, data, done, data.length - done, va),
    );
  }

  #access(pa: number, length: number, move: (va: number, done: number) => number): MemoryError {
    const va = this.va + (pa - this.start);
    const page = Math.floor(va / FRAME_BYTES) * FRAME_BYTES;
    try {
      if (this.#space.open && sameMapping(this.#vma, this.#space.maps.at(va), page, page + FRAME_BYTES)) {
        let done = 0;
        while (done < length) {
          const moved = move(va + done, done);
          if (moved <= 0) break;
          done += moved;
        }
        if (done === length) return MemoryError.none;
      }
    } catch {
      // EIO: the page went between the question and the access.
    }
    this.#banks.poison(Math.floor(pa / FRAME_BYTES) * FRAME_BYTES, FRAME_BYTES);
    return MemoryError.poisoned;
  }
}
