/**
 * Host memory of which every access is told to somebody before it is made. It has no direct view, so that generated
 * walkers, which are the same as ever, ask it for each entry.
 */
import type { HostMemory, MemoryError, MmioWindow } from "../../src/memory/host-memory.ts";

/** Told of `length` bytes at `pa`. */
export type Watch = (pa: number, length: number, write: boolean) => void;

export class WatchedMemory implements HostMemory {
  lo = 0;
  hi = 0;
  cause: MemoryError = 0;
  readonly words: readonly Uint32Array[] = [];
  readonly state: readonly Uint8Array[] = [];
  readonly #memory: HostMemory;
  readonly #watch: Watch;

  constructor(memory: HostMemory, watch: Watch) {
    this.#memory = memory;
    this.#watch = watch;
  }

  get allocated(): number {
    return this.#memory.allocated;
  }

  load64(pa: number): boolean {
    this.#watch(pa, 8, false);
    return this.#done(this.#memory.load64(pa));
  }
  load64be(pa: number): boolean {
    this.#watch(pa, 8, false);
    return this.#done(this.#memory.load64be(pa));
  }
  load32(pa: number): boolean {
    this.#watch(pa, 4, false);
    return this.#done(this.#memory.load32(pa));
  }
  store64(pa: number, lo: number, hi: number): boolean {
    this.#watch(pa, 8, true);
    return this.#done(this.#memory.store64(pa, lo, hi));
  }
  store64be(pa: number, lo: number, hi: number): boolean {
    this.#watch(pa, 8, true);
    return this.#done(this.#memory.store64be(pa, lo, hi));
  }
  store32(pa: number, value: number): boolean {
    this.#watch(pa, 4, true);
    return this.#done(this.#memory.store32(pa, value));
  }
  or64(pa: number, lo: number, hi: number): boolean {
    this.#watch(pa, 8, true);
    return this.#done(this.#memory.or64(pa, lo, hi));
  }
  clear64(pa: number, lo: number, hi: number): boolean {
    this.#watch(pa, 8, true);
    return this.#done(this.#memory.clear64(pa, lo, hi));
  }
  readBytes(pa: number, into: Uint8Array, from?: number): boolean {
    this.#watch(pa, into.length, false);
    return this.#done(this.#memory.readBytes(pa, into, from));
  }
  writeBytes(pa: number, data: Uint8Array, from?: number): boolean {
    this.#watch(pa, data.length, true);
    return this.#done(this.#memory.writeBytes(pa, data, from));
  }
  copy(target: number, source: number, length: number): boolean {
    this.#watch(source, length, false);
    this.#watch(target, length, true);
    return this.#done(this.#memory.copy(target, source, length));
  }
  fill(pa: number, length: number, byte: number): boolean {
    this.#watch(pa, length, true);
    return this.#done(this.#memory.fill(pa, length, byte));
  }

  allocate(count: number): number {
    return this.#memory.allocate(count);
  }
  free(pa: number, count: number): void {
    this.#memory.free(pa, count);
  }
  addWindow(pa: number, length: number, window: MmioWindow): () => void {
    return this.#memory.addWindow(pa, length, window);
  }
  poison(pa: number, length: number): void {
    this.#memory.poison(pa, length);
  }

  #done(ok: boolean): boolean {
    this.lo = this.#memory.lo;
    this.hi = this.#memory.hi;
    if (!ok) this.cause = this.#memory.cause;
    return ok;
  }
}
