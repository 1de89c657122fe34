/**
 * The private pages of guests with secure nested paging, as the host keeps them: pinned, and in the reverse map table, in
 * pages of 2 MiB where guest and host address allow it. A part that becomes shared splits its large page (PSMASH); when all
 * 512 parts are private again they are joined. What KVM, the guest (PVALIDATE) and the firmware do on a real host.
 *
 * Left out: encryption; contents stay as they are when a page changes its state.
 */
import { IntervalMap } from "../../base/interval-map.ts";
import { LARGE_LG2, PAGE_LG2, type Rmp, RmpEntry, RmpStatus } from "../../hardware/rmp.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Pin } from "../call.ts";

const PAGE = 2 ** PAGE_LG2;
const LARGE = 2 ** LARGE_LG2;
/** Pages of 4 KiB in one of 2 MiB. */
const PARTS = LARGE / PAGE;
const { ASSIGNED, ASID, GPA } = RmpEntry.fields;

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** What became of large pages, on the whole host. */
export interface PageCounts {
  /** Large pages that were split because a part became shared, and joined because all parts were private again. */
  split: number;
  joined: number;
}

/** Pages that lie together on the host and in the guest, and are to change. */
interface Run {
  /** Of the host's first page. */
  readonly pfn: number;
  readonly gpa: number;
  /** Of the pin's pages. */
  readonly index: number;
  count: number;
}

/** Where pages are pinned: from this one of the pin's on. */
interface Held {
  readonly pin: Pin;
  readonly first: number;
}

/** The guest's number, and where in its memory what a pin holds is. */
export interface Place {
  readonly asid: number;
  readonly gpa: number;
}

export class GuestPages {
  readonly #rmp: Rmp;
  readonly #counts: PageCounts;
  /** By host page number. */
  readonly #held = new IntervalMap<Held>();
  /** Private pages of 4 KiB. */
  pages = 0;

  constructor(rmp: Rmp, counts: PageCounts) {
    this.#rmp = rmp;
    this.#counts = counts;
  }

  /**
   * Pages become the guest's own; those that are already stay. The pin is taken over as far as it is needed. Throws EPERM and
   * EINVAL, and has changed nothing then.
   */
  makePrivate(pin: Pin, place: Place): void {
    requireDistinct(pin);
    const runs = this.#changing(pin, place, false);
    let next = 0;
    for (const run of runs) {
      if (run.index > next) pin.unpin(next, run.index - next);
      next = run.index + run.count;
      this.#assign(run, place.asid);
      const last = run.pfn + run.count - 1;
      this.#held.insert(run.pfn, 0, last, PAGE - 1, { pin, first: run.index });
      this.pages += run.count;
    }
    if (pin.pages > next) pin.unpin(next, pin.pages - next);
  }

  /** Pages that are the guest's become shared; others are. The pin says where they are, and no more. Throws as `makePrivate`. */
  makeShared(pin: Pin, place: Place): void {
    for (const { pfn, count } of this.#changing(pin, place, true)) this.#release(pfn, count);
  }

  /** Nothing is private any more. */
  close(): void {
    while (this.#held.first()) {
      const first = this.#held.startPage;
      this.#release(first, this.#held.lastPage - first + 1);
    }
  }

  /** The pages of a pin that are not yet as they are to be. */
  #changing(pin: Pin, { asid, gpa }: Place, isPrivate: boolean): Run[] {
    const runs: Run[] = [];
    let last: Run | undefined;
    let index = 0;
    for (let at = 0; at < pin.extents.length; at += 2) {
      last = undefined;
      for (let pfn = pin.extents[at]!; pfn < pin.extents[at]! + pin.extents[at + 1]!; pfn++, index++) {
        const found = this.#isPrivate(pfn, gpa + index * PAGE, asid);
        if (found !== isPrivate) last = undefined;
        else if (last) last.count += 1;
        else {
          last = { pfn, gpa: gpa + index * PAGE, index, count: 1 };
          runs.push(last);
        }
      }
    }
    return runs;
  }

  /** Whether the page is private at this place. Throws when it is private elsewhere. */
  #isPrivate(pfn: number, gpa: number, asid: number): boolean {
    const { entry, lg2 } = this.#rmp.read(pfn * PAGE);
    if (ASSIGNED.of(entry) === 0n) return false;
    const owner = Number(ASID.of(entry));
    if (owner !== asid)
      throw new LinuxError(
        "EPERM",
        `the page for guest address ${hex(gpa)} is private to the guest with ASID ${owner}, not ${asid}`,
      );
    const found = Number(GPA.of(entry)) + (lg2 === LARGE_LG2 ? (pfn % PARTS) * PAGE : 0);
    if (found !== gpa)
      throw new LinuxError(
        "EINVAL",
        `the page for guest address ${hex(gpa)} is private already, at the guest's ${hex(found)}`,
      );
    return true;
  }

  #assign({ pfn, gpa, count }: Run, asid: number): void {
    const rmp = this.#rmp;
    for (let done = 0; done < count; ) {
      const pa = (pfn + done) * PAGE;
      const to = gpa + done * PAGE;
      const aligned = pa % LARGE === 0 && to % LARGE === 0;
      const large = aligned && count - done >= PARTS && rmp.assignedAround(pa) === 0;
      const lg2 = large ? LARGE_LG2 : PAGE_LG2;
      succeed(rmp.update(pa, { assigned: true, lg2, gpa: to, asid }));
      succeed(rmp.validate(pa, lg2, true));
      done += large ? PARTS : 1;
      if (!large && rmp.assignedAround(pa) === PARTS) this.#join(pa);
    }
  }

  #join(pa: number): void {
    if (this.#rmp.unsmash(pa - (pa % LARGE)) === RmpStatus.success) this.#counts.joined += 1;
  }

  /** Private pages that lie together on the host become shared, and are unpinned. */
  #release(pfn: number, count: number): void {
    const rmp = this.#rmp;
    for (let done = 0; done < count; ) {
      const pa = (pfn + done) * PAGE;
      const isLarge = rmp.read(pa).lg2 === LARGE_LG2;
      const whole = isLarge && pa % LARGE === 0 && count - done >= PARTS;
      if (isLarge && !whole) {
        succeed(rmp.smash(pa - (pa % LARGE)));
        this.#counts.split += 1;
      }
      succeed(rmp.update(pa, { assigned: false, lg2: whole ? LARGE_LG2 : PAGE_LG2, gpa: 0, asid: 0 }));
      done += whole ? PARTS : 1;
    }
    this.pages -= count;
    this.#unpin(pfn, pfn + count);
  }

  #unpin(pfn: number, end: number): void {
    const held = this.#held;
    while (held.overlaps(pfn, 0, end - 1, PAGE - 1)) {
      const { startPage, lastPage, value } = held;
      const from = Math.max(startPage, pfn);
      const to = Math.min(lastPage + 1, end);
      held.remove();
      if (startPage < from) held.insert(startPage, 0, from - 1, PAGE - 1, value);
      if (to <= lastPage) {
        const first = value.first + (to - startPage);
        held.insert(to, 0, lastPage, PAGE - 1, { pin: value.pin, first });
      }
      value.pin.unpin(value.first + (from - startPage), to - from);
    }
  }
}

/** A host page has one guest address. Throws EINVAL. */
const requireDistinct = ({ extents }: Pin): void => {
  const runs = Array.from({ length: extents.length / 2 }, (_, at) => ({
    start: extents[2 * at]!,
    end: extents[2 * at]! + extents[2 * at + 1]!,
  })).sort((a, b) => a.start - b.start);
  if (runs.some(({ start }, at) => at > 0 && start < runs[at - 1]!.end))
    throw new LinuxError("EINVAL", "the same page of the host is in the range twice");
};

/** What was looked at before cannot be refused. */
const succeed = (status: RmpStatus): void => {
  if (status !== RmpStatus.success) throw new Error(`the reverse map table answers ${status}`);
};
