/**
 * Host memory as a unit reaches it where secure nested paging is on: every word it fetches or writes is checked by the
 * reverse map table first (`rmp.ts`), as a page of 4 KiB. What is refused fails as protected; who asks next learns of which
 * page (`refused`).
 */
import { CheckedMemory } from "../memory/checked-memory.ts";
import { type HostMemory, MemoryError } from "../memory/host-memory.ts";
import { PAGE_LG2, type Rmp, RmpVerdict } from "./rmp.ts";

const PAGE = 2 ** PAGE_LG2;
/** The longest word; such do not cross a page. */
const WORD_BYTES = 8;

export class RmpMemory extends CheckedMemory {
  readonly rmp: Rmp;
  /** What the table said of the last access that it refused, and where that was. `ok`: nothing was, since this was last cleared. */
  refused: RmpVerdict = RmpVerdict.ok;
  refusedAt = 0;

  constructor(memory: HostMemory, rmp: Rmp) {
    super(memory);
    this.rmp = rmp;
  }

  protected allows(pa: number, bytes: number): boolean {
    if (bytes <= WORD_BYTES && (pa % PAGE) + bytes <= PAGE) return this.#allowsAt(pa);
    for (let at = pa - (pa % PAGE); at < pa + bytes; at += PAGE) if (!this.#allowsAt(at)) return false;
    return true;
  }

  #allowsAt(pa: number): boolean {
    const verdict = this.rmp.check(pa, PAGE_LG2);
    if (verdict === RmpVerdict.ok) return true;
    this.refused = verdict;
    this.refusedAt = pa;
    this.cause = MemoryError.protected;
    return false;
  }
}
