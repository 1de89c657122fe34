/**
 * The translations that a function keeps itself (PCI Express base specification, §10.2 and §10.3): what its unit granted,
 * by PASID and page, until the unit invalidates it. Translations for privileged requests are kept apart, because less or
 * more may be granted to them.
 *
 * An invalidation may forget more than it must: a range of many pages takes everything of its PASID.
 */
import type { DeviceTlbInvalidation } from "../hardware/ats.ts";
import { Iotlb } from "../hardware/iotlb.ts";
import { Access, type Transaction } from "../hardware/unit.ts";

/** Translations that are kept; PASIDs that have some at a time, privileged requests counted apart. */
const CAPACITY = 256;
const SPACES = 64;
const PAGE_LG2 = 12;
const PAGE = 2 ** PAGE_LG2;
const LARGEST_LG2 = 30;
const WORD = 2 ** 32;
/** What a page can be granted for. */
const RIGHTS = Access.read | Access.write | Access.execute | Access.atomic;

/** The rights that a request needs. */
export const needOf = (access: number): number => access & RIGHTS;

const isPrivileged = (access: number): number => ((access & Access.privileged) !== 0 ? 1 : 0);

/** lg2 of the largest aligned block at the end of which the granted bytes end, as far as both addresses are alike. */
const blockLg2 = ({ lo, pa, span }: Transaction): number => {
  const end = (lo >>> 0) + span;
  const lg2 = Math.min(Math.ceil(Math.log2(Math.max(span, PAGE))), LARGEST_LG2);
  const size = 2 ** lg2;
  const whole = span >= size || end % size === 0;
  return whole && (pa - (lo >>> 0)) % size === 0 ? lg2 : PAGE_LG2;
};

export class DeviceTlb {
  readonly #kept = new Iotlb({ capacity: CAPACITY, contexts: SPACES });
  /** Context of a PASID, privileged ones beside the others. */
  readonly #spaces = new Map<number, number>();

  /** Puts where a request goes into `pa` and `span`; false: that is not known, or not allowed as far as is known. */
  find(request: Transaction): boolean {
    const space = this.#spaces.get(request.pasid * 2 + isPrivileged(request.access));
    if (space === undefined) return false;
    const kept = this.#kept;
    const { lo, hi } = request;
    const entry = kept.lookup(space, lo, hi);
    if (entry < 0 || (kept.denied(entry) & needOf(request.access)) !== 0) return false;
    const size = 2 ** kept.lg2(entry);
    const offset = lo & (size - 1);
    request.pa = kept.page(entry) + offset;
    request.span = size - offset;
    return true;
  }

  /** Keeps what a translation request was answered. */
  enter(answered: Transaction): void {
    const { pasid, access, lo, hi, pa, granted } = answered;
    const key = pasid * 2 + isPrivileged(access);
    let space = this.#spaces.get(key);
    if (space === undefined) {
      if (this.#spaces.size === SPACES) this.clear();
      space = this.#spaces.size;
      this.#spaces.set(key, space);
    }
    const denied = RIGHTS & ~granted;
    this.#kept.enter(space, lo, hi, blockLg2(answered), (pa % WORD) | 0, Math.floor(pa / WORD), denied);
  }

  /** §10.3 What the unit wants forgotten. `least`: lg2 of the smallest translation (STU). */
  forget({ pasid, global, lo, hi, lg2 }: DeviceTlbInvalidation, least = PAGE_LG2): void {
    for (const [key, space] of this.#spaces) {
      if (!global && key >> 1 !== pasid) continue;
      if (lg2 >= 64) this.#kept.invalidateContext(space);
      else this.#kept.invalidateRange(space, lo, hi, Math.max(lg2, least));
    }
  }

  clear(): void {
    this.#kept.invalidateAll();
    this.#spaces.clear();
  }
}
