/**
 * Physical region pages (§4.3): where a command's data lies in the host's memory. PRP1 may begin inside a page; what
 * does not fit there is at PRP2, or at a list PRP2 points to, whose pages are chained by their last entry.
 *
 * The walk gives runs of contiguous bytes. It is a state machine: when fetching a list stalls it is asked again later
 * and goes on exactly there. It ends with the command's length, so a list that points at itself is only read so far.
 */
import { TranslateStatus } from "../../../hardware/unit.ts";
import type { DmaPort } from "../../function.ts";

export const Walk = { ok: 0, stalled: 1, fault: 2, badOffset: 3 } as const;
export type Walk = (typeof Walk)[keyof typeof Walk];

const ENTRY_BYTES = 8;
/** Entries fetched at once. */
const BATCH = 64;
const WORD = 0x1_0000_0000;

const Stage = { first: 0, second: 1, list: 2 } as const;

export class PrpWalk {
  /** The run found: address, and bytes. */
  lo = 0;
  hi = 0;
  run = 0;
  #left = 0;
  #stage: number = Stage.first;
  #page = 4096;
  #firstLo = 0;
  #firstHi = 0;
  /** PRP2, then the place in the list that is fetched next. */
  #nextLo = 0;
  #nextHi = 0;
  readonly #entries = new Uint32Array(2 * BATCH);
  readonly #bytes = new Uint8Array(this.#entries.buffer);
  #at = 0;
  #count = 0;

  /** Begins with the PRPs at words [at, at + 4) of a submission entry, for `length` bytes. */
  start(words: Uint32Array, at: number, length: number, pageBytes: number): void {
    this.#firstLo = words[at]!;
    this.#firstHi = words[at + 1]!;
    this.#nextLo = words[at + 2]!;
    this.#nextHi = words[at + 3]!;
    this.#page = pageBytes;
    this.#left = length;
    this.#stage = Stage.first;
    this.#at = 0;
    this.#count = 0;
    this.run = 0;
  }

  /** When the run is used up, finds the next, of up to about `limit` bytes. */
  fill(dma: DmaPort, limit: number): Walk {
    while (this.#left > 0 && this.run < limit) {
      if (this.#stage === Stage.list && this.#at === this.#count) {
        if (this.run > 0) return Walk.ok;
        const fetched = this.#fetch(dma);
        if (fetched !== Walk.ok) return fetched;
      }
      if (this.run > 0 && !this.#continues()) return Walk.ok;
      if (this.run === 0) {
        this.lo = this.#entryLo();
        this.hi = this.#entryHi();
      }
      if (this.#misaligned()) return Walk.badOffset;
      this.#take();
    }
    return Walk.ok;
  }

  /** `bytes` of the run have been moved. */
  consume(bytes: number): void {
    const low = this.lo + bytes;
    this.lo = low >>> 0;
    if (low >= WORD) this.hi += 1;
    this.run -= bytes;
  }

  #entryLo(): number {
    if (this.#stage === Stage.first) return this.#firstLo;
    return this.#stage === Stage.second ? this.#nextLo : this.#entries[2 * this.#at]!;
  }

  #entryHi(): number {
    if (this.#stage === Stage.first) return this.#firstHi;
    return this.#stage === Stage.second ? this.#nextHi : this.#entries[2 * this.#at + 1]!;
  }

  /** Only PRP1 may begin inside a page, and on a dword. */
  #misaligned(): boolean {
    const mask = this.#stage === Stage.first ? 3 : this.#page - 1;
    return (this.#entryLo() & mask) !== 0;
  }

  /** The next entry lies right behind the run. */
  #continues(): boolean {
    const end = this.lo + this.run;
    return end >>> 0 === this.#entryLo() && this.hi + (end >= WORD ? 1 : 0) === this.#entryHi();
  }

  /** Adds the entry to the run and goes to the next. */
  #take(): void {
    const inside = this.#entryLo() & (this.#page - 1);
    const bytes = Math.min(this.#page - inside, this.#left);
    this.run += bytes;
    this.#left -= bytes;
    if (this.#stage === Stage.first) this.#stage = this.#left <= this.#page ? Stage.second : Stage.list;
    else this.#at += 1;
  }

  /** Reads the next entries of the list, following the pointer at the end of its page. */
  #fetch(dma: DmaPort): Walk {
    for (;;) {
      if (this.#nextLo % ENTRY_BYTES) return Walk.badOffset;
      const inPage = (this.#page - (this.#nextLo & (this.#page - 1))) / ENTRY_BYTES;
      const wanted = Math.ceil(this.#left / this.#page);
      const data = wanted <= inPage ? wanted : inPage - 1;
      const count = data === 0 ? 1 : Math.min(data, BATCH);
      const into = count === BATCH ? this.#bytes : this.#bytes.subarray(0, count * ENTRY_BYTES);
      const status = dma.read(this.#nextLo, this.#nextHi, into);
      if (status !== TranslateStatus.ok)
        return status === TranslateStatus.stalled ? Walk.stalled : Walk.fault;
      if (data > 0) {
        this.#at = 0;
        this.#count = count;
        // The end of the page is not passed: either the list ends in it or its last entry is the pointer.
        this.#nextLo += count * ENTRY_BYTES;
        return Walk.ok;
      }
      this.#nextLo = this.#entries[0]!;
      this.#nextHi = this.#entries[1]!;
      if (this.#nextLo & (this.#page - 1)) return Walk.badOffset;
    }
  }
}
