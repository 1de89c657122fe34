/**
 * Host memory as somebody reaches it of whom every access is looked at before it is made, and can be refused. It has no
 * direct view, so that generated walkers, which are the same as ever, come here for every entry.
 */
import { type HostMemory, MemoryError, type MmioWindow } from "./host-memory.ts";

export abstract class CheckedMemory implements HostMemory {
  lo = 0;
  hi = 0;
  cause: MemoryError = MemoryError.none;
  readonly words: readonly Uint32Array[] = [];
  readonly state: readonly Uint8Array[] = [];
  readonly #memory: HostMemory;

  constructor(memory: HostMemory) {
    this.#memory = memory;
  }

  get allocated(): number {
    return this.#memory.allocated;
  }

  load64(pa: number): boolean {
    return this.allows(pa, 8, false) && this.#loaded(this.#memory.load64(pa));
  }
  load64be(pa: number): boolean {
    return this.allows(pa, 8, false) && this.#loaded(this.#memory.load64be(pa));
  }
  load32(pa: number): boolean {
    return this.allows(pa, 4, false) && this.#loaded(this.#memory.load32(pa));
  }
  store64(pa: number, lo: number, hi: number): boolean {
    return this.allows(pa, 8, true) && this.#done(this.#memory.store64(pa, lo, hi));
  }
  store64be(pa: number, lo: number, hi: number): boolean {
    return this.allows(pa, 8, true) && this.#done(this.#memory.store64be(pa, lo, hi));
  }
  store32(pa: number, value: number): boolean {
    return this.allows(pa, 4, true) && this.#done(this.#memory.store32(pa, value));
  }
  or64(pa: number, lo: number, hi: number): boolean {
    return this.allows(pa, 8, true) && this.#done(this.#memory.or64(pa, lo, hi));
  }
  clear64(pa: number, lo: number, hi: number): boolean {
    return this.allows(pa, 8, true) && this.#done(this.#memory.clear64(pa, lo, hi));
  }

  readBytes(pa: number, into: Uint8Array, from?: number): boolean {
    return this.allows(pa, into.length, false) && this.#done(this.#memory.readBytes(pa, into, from));
  }
  writeBytes(pa: number, data: Uint8Array, from?: number): boolean {
    return this.allows(pa, data.length, true) && this.#done(this.#memory.writeBytes(pa, data, from));
  }
  copy(target: number, source: number, length: number): boolean {
    const allowed = this.allows(target, length, true) && this.allows(source, length, false);
    return allowed && this.#done(this.#memory.copy(target, source, length));
  }
  fill(pa: number, length: number, byte: number): boolean {
    return this.allows(pa, length, true) && this.#done(this.#memory.fill(pa, length, byte));
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

  /** Whether `bytes` at `pa` may be reached. What is refused has its `cause` set. */
  protected abstract allows(pa: number, bytes: number, write: boolean): boolean;

  #loaded(ok: boolean): boolean {
    this.lo = this.#memory.lo;
    this.hi = this.#memory.hi;
    return this.#done(ok);
  }
  #done(ok: boolean): boolean {
    if (!ok) this.cause = this.#memory.cause;
    return ok;
  }
}
