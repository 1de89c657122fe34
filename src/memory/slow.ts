/**
 * What answers at physical addresses without being mapped memory: windows (device registers, the MSI doorbell), and
 * pages of a client that only a system call reaches. A sorted list; the fast paths never come here.
 */
import { MemoryError, type MmioWindow } from "./host-memory.ts";

export interface SlowFrames {
  /** Addresses [start, end), multiples of a frame. */
  readonly start: number;
  readonly end: number;
  readonly name: string;
  /** Registers rather than memory: no words of a table are fetched from here. */
  readonly device: boolean;
  /** Whether the frame at `pa` (inside the range) answers now. */
  answers(pa: number): boolean;
  read(pa: number, into: Uint8Array, from: number): MemoryError;
  write(pa: number, data: Uint8Array, from: number): MemoryError;
}

export const windowFrames = (pa: number, length: number, window: MmioWindow): SlowFrames => ({
  start: pa,
  end: pa + length,
  name: window.name,
  device: true,
  answers: () => true,
  read: (at, into, from) => (window.read(at - pa, into, from) ? MemoryError.none : MemoryError.unsupported),
  write: (at, data, from) => (window.write(at - pa, data, from) ? MemoryError.none : MemoryError.unsupported),
});

export class SlowMap {
  readonly #frames: SlowFrames[] = [];

  /** Throws when something else is there already. */
  add(frames: SlowFrames): void {
    const at = this.#after(frames.start);
    const before = this.#frames[at - 1];
    const behind = this.#frames[at];
    const other =
      before && before.end > frames.start ? before : behind && behind.start < frames.end ? behind : undefined;
    if (other !== undefined)
      throw new Error(
        `${frames.name} at 0x${frames.start.toString(16)} overlaps ${other.name} at 0x${other.start.toString(16)}`,
      );
    this.#frames.splice(at, 0, frames);
  }

  remove(frames: SlowFrames): void {
    const at = this.#after(frames.start) - 1;
    if (this.#frames[at] === frames) this.#frames.splice(at, 1);
  }

  find(pa: number): SlowFrames | undefined {
    const frames = this.#frames[this.#after(pa) - 1];
    return frames !== undefined && pa < frames.end ? frames : undefined;
  }

  /** Index of the first entry that starts beyond `pa`. */
  #after(pa: number): number {
    let low = 0;
    let high = this.#frames.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#frames[middle]!.start <= pa) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
