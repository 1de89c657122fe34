/**
 * What the entries of a container's windows point to: runs of user pages by bus address, and who keeps those pages in
 * memory. Any part of a run can go; the hardware has forgotten it by then.
 */
import { IntervalMap } from "../../base/interval-map.ts";
import type { PinnedRun } from "../../iommufd/pinned-run.ts";
import { FRAME_BYTES } from "../../memory/host-memory.ts";

/** Who keeps pages in memory while entries point to them. */
export interface Keeper {
  /** Where the pages lie, by their page number in user memory. */
  readonly run: PinnedRun;
  /** Entries point to `count` pages from `page` on no more. */
  release(page: number, count: number): void;
}

interface Run {
  readonly keeper: Keeper;
  /** Page number, in user memory, of what its first entry points to. */
  readonly page: number;
}

const LAST_OFFSET = FRAME_BYTES - 1;

export class Entries {
  readonly #runs = new IntervalMap<Run>();

  /** Runs there are. */
  get size(): number {
    return this.#runs.size;
  }

  /** Entries of [iova, iova + length), which point to nothing, point to user pages from `page` on. */
  put(iova: number, length: number, keeper: Keeper, page: number): void {
    const first = iova / FRAME_BYTES;
    this.#insert(first, first + length / FRAME_BYTES - 1, { keeper, page });
  }

  /** Entries of [iova, iova + length) point to nothing any more. */
  take(iova: number, length: number): void {
    const first = iova / FRAME_BYTES;
    const last = first + length / FRAME_BYTES - 1;
    while (this.#runs.overlaps(first, 0, last, LAST_OFFSET)) {
      const { startPage, lastPage, value } = this.#runs;
      const { keeper, page } = value;
      this.#runs.remove();
      const from = Math.max(first, startPage);
      const to = Math.min(last, lastPage);
      if (startPage < from) this.#insert(startPage, from - 1, value);
      if (to < lastPage) this.#insert(to + 1, lastPage, { keeper, page: page + (to + 1 - startPage) });
      keeper.release(page + (from - startPage), to - from + 1);
    }
  }

  #insert(firstPage: number, lastPage: number, run: Run): void {
    this.#runs.insert(firstPage, 0, lastPage, LAST_OFFSET, run);
  }
}
