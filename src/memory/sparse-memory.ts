/**
 * Host memory that is mostly not there: frames come into being when they are written, and read as zero before. For
 * running vectors and tests of units, where a few frames lie scattered over gigabytes; slow, and exact about what is
 * absent. It has no direct view, so that generated walkers go through the loads.
 *
 * Left out: windows that are read or written by table accesses.
 */
import { FRAME_BYTES, type HostMemory, MemoryError, type MmioWindow } from "./host-memory.ts";

export interface Range {
  readonly start: number;
  /** Exclusive. */
  readonly end: number;
}

interface Window extends Range {
  readonly window: MmioWindow;
}

const swap = (word: number): number =>
  ((word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24)) >>> 0;

export class SparseMemory implements HostMemory {
  lo = 0;
  hi = 0;
  cause: MemoryError = MemoryError.none;
  readonly words: readonly Uint32Array[] = [];
  readonly state: readonly Uint8Array[] = [];
  readonly #present: readonly Range[];
  readonly #frames = new Map<number, DataView>();
  readonly #poisoned = new Set<number>();
  readonly #windows = new Set<Window>();
  #allocated = 0;
  #next: number;

  /** `present`: where there is memory. `allocateFrom`: where `allocate` takes frames. */
  constructor(present: readonly Range[], allocateFrom = present[0]?.start ?? 0) {
    this.#present = present;
    this.#next = allocateFrom;
  }

  get allocated(): number {
    return this.#allocated;
  }

  /** The frame an access lies in; undefined, with the cause, when it cannot be made. */
  #frame(pa: number): DataView | undefined {
    const start = pa - (pa % FRAME_BYTES);
    if (!this.#present.some((range) => start >= range.start && start < range.end)) {
      this.cause = MemoryError.absent;
      return undefined;
    }
    if (this.#poisoned.has(start)) {
      this.cause = MemoryError.poisoned;
      return undefined;
    }
    let frame = this.#frames.get(start);
    if (!frame) {
      frame = new DataView(new ArrayBuffer(FRAME_BYTES));
      this.#frames.set(start, frame);
    }
    return frame;
  }

  load64(pa: number): boolean {
    const frame = this.#frame(pa);
    if (!frame) return false;
    this.lo = frame.getUint32(pa % FRAME_BYTES, true);
    this.hi = frame.getUint32((pa % FRAME_BYTES) + 4, true);
    return true;
  }

  load64be(pa: number): boolean {
    if (!this.load64(pa)) return false;
    const low = swap(this.hi);
    this.hi = swap(this.lo);
    this.lo = low;
    return true;
  }

  store64(pa: number, lo: number, hi: number): boolean {
    const frame = this.#frame(pa);
    if (!frame) return false;
    frame.setUint32(pa % FRAME_BYTES, lo, true);
    frame.setUint32((pa % FRAME_BYTES) + 4, hi, true);
    return true;
  }

  store64be(pa: number, lo: number, hi: number): boolean {
    return this.store64(pa, swap(hi), swap(lo));
  }

  load32(pa: number): boolean {
    const frame = this.#frame(pa);
    if (!frame) return false;
    this.lo = frame.getUint32(pa % FRAME_BYTES, true);
    return true;
  }

  store32(pa: number, value: number): boolean {
    const frame = this.#frame(pa);
    frame?.setUint32(pa % FRAME_BYTES, value, true);
    return frame !== undefined;
  }

  or64(pa: number, lo: number, hi: number): boolean {
    return this.load64(pa) && this.store64(pa, this.lo | lo, this.hi | hi);
  }

  clear64(pa: number, lo: number, hi: number): boolean {
    return this.load64(pa) && this.store64(pa, this.lo & ~lo, this.hi & ~hi);
  }

  #windowAt(pa: number): Window | undefined {
    for (const found of this.#windows) if (pa >= found.start && pa < found.end) return found;
    return undefined;
  }

  readBytes(pa: number, into: Uint8Array, from = -1): boolean {
    return this.#move(pa, into, from, false);
  }

  writeBytes(pa: number, data: Uint8Array, from = -1): boolean {
    return this.#move(pa, data, from, true);
  }

  #move(pa: number, bytes: Uint8Array, from: number, write: boolean): boolean {
    const found = this.#windowAt(pa);
    if (found) {
      const offset = pa - found.start;
      const taken = write ? found.window.write(offset, bytes, from) : found.window.read(offset, bytes, from);
      if (!taken) this.cause = MemoryError.unsupported;
      return taken;
    }
    for (let at = 0; at < bytes.length; ) {
      const offset = (pa + at) % FRAME_BYTES;
      const length = Math.min(FRAME_BYTES - offset, bytes.length - at);
      const frame = this.#frame(pa + at);
      if (!frame) return false;
      const inFrame = new Uint8Array(frame.buffer, offset, length);
      const part = bytes.subarray(at, at + length);
      if (write) inFrame.set(part);
      else part.set(inFrame);
      at += length;
    }
    return true;
  }

  copy(target: number, source: number, length: number): boolean {
    const bytes = new Uint8Array(length);
    return this.readBytes(source, bytes) && this.writeBytes(target, bytes);
  }

  fill(pa: number, length: number, byte: number): boolean {
    return this.writeBytes(pa, new Uint8Array(length).fill(byte));
  }

  allocate(count: number): number {
    const align = 2 ** Math.ceil(Math.log2(count)) * FRAME_BYTES;
    const start = Math.ceil(this.#next / align) * align;
    const end = start + count * FRAME_BYTES;
    if (!this.#present.some((range) => start >= range.start && end <= range.end)) return -1;
    this.#next = end;
    this.#allocated += count;
    this.fill(start, count * FRAME_BYTES, 0);
    return start;
  }

  /** Counted, and not given again. */
  free(_pa: number, count: number): void {
    this.#allocated -= count;
  }

  addWindow(pa: number, length: number, window: MmioWindow): () => void {
    const entry = { start: pa, end: pa + length, window };
    this.#windows.add(entry);
    return () => this.#windows.delete(entry);
  }

  poison(pa: number, length: number): void {
    for (let frame = pa - (pa % FRAME_BYTES); frame < pa + length; frame += FRAME_BYTES)
      this.#poisoned.add(frame);
  }
}
