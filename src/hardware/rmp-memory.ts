/**
 * Host memory as a unit reaches it where secure nested paging is on: every word it fetches or writes is checked by the
 * reverse map table first (`rmp.ts`), as a page of 4 KiB. It has no direct view, so that walkers come here for every entry.
 * What is refused fails as protected; who asks next learns of which page (`refused`).
 */
import { type HostMemory, MemoryError, type MmioWindow } from "../memory/host-memory.ts";
import { PAGE_LG2, type Rmp, RmpVerdict } from "./rmp.ts";

const PAGE = 2 ** PAGE_LG2;

export class RmpMemory implements HostMemory {
  lo = 0;
  hi = 0;
  cause: MemoryError = MemoryError.none;
  readonly words: readonly Uint32Array[] = [];
  readonly state: readonly Uint8Array[] = [];
  readonly rmp: Rmp;
  /** What the table said of the last access that it refused, and where that was. `ok`: nothing was, since this was last cleared. */
  refused: RmpVerdict = RmpVerdict.ok;
  refusedAt = 0;
  readonly #memory: HostMemory;

  constructor(memory: HostMemory, rmp: Rmp) {
    this.#memory = memory;
    this.rmp = rmp;
  }

  get allocated(): number {
    return this.#memory.allocated;
  }

  load64(pa: number): boolean {
    return this.#allows(pa) && this.#loaded(this.#memory.load64(pa));
  }
  load64be(pa: number): boolean {
    return this.#allows(pa) && this.#loaded(this.#memory.load64be(pa));
  }
  load32(pa: number): boolean {
    return this.#allows(pa) && this.#loaded(this.#memory.load32(pa));
  }
  store64(pa: number, lo: number, hi: number): boolean {
    return this.#allows(pa) && this.#done(this.#memory.store64(pa, lo, hi));
  }
  store64be(pa: number, lo: number, hi: number): boolean {
    return this.#allows(pa) && this.#done(this.#memory.store64be(pa, lo, hi));
  }
  store32(pa: number, value: number): boolean {
    return this.#allows(pa) && this.#done(this.#memory.store32(pa, value));
  }
  or64(pa: number, lo: number, hi: number): boolean {
    return this.#allows(pa) && this.#done(this.#memory.or64(pa, lo, hi));
  }
  clear64(pa: number, lo: number, hi: number): boolean {
    return this.#allows(pa) && this.#done(this.#memory.clear64(pa, lo, hi));
  }

  readBytes(pa: number, into: Uint8Array, from?: number): boolean {
    return this.#allowsAll(pa, into.length) && this.#done(this.#memory.readBytes(pa, into, from));
  }
  writeBytes(pa: number, data: Uint8Array, from?: number): boolean {
    return this.#allowsAll(pa, data.length) && this.#done(this.#memory.writeBytes(pa, data, from));
  }
  copy(target: number, source: number, length: number): boolean {
    const allowed = this.#allowsAll(target, length) && this.#allowsAll(source, length);
    return allowed && this.#done(this.#memory.copy(target, source, length));
  }
  fill(pa: number, length: number, byte: number): boolean {
    return this.#allowsAll(pa, length) && this.#done(this.#memory.fill(pa, length, byte));
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

  #allows(pa: number): boolean {
    const verdict = this.rmp.check(pa, PAGE_LG2);
    if (verdict === RmpVerdict.ok) return true;
    this.refused = verdict;
    this.refusedAt = pa;
    this.cause = MemoryError.protected;
    return false;
  }
  #allowsAll(pa: number, length: number): boolean {
    for (let at = pa - (pa % PAGE); at < pa + length; at += PAGE) if (!this.#allows(at)) return false;
    return true;
  }

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
