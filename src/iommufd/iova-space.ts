/**
 * Which IOVAs of an address space may be used: everything but the reserved ranges; and, when the caller named allowed
 * ranges, automatic placement stays within those (linux/iommufd.h, "struct iommu_ioas_iova_ranges", "..._allow_iovas").
 * Reservations have owners: a device that leaves takes its own away, and another's that overlap them stay.
 */
import { LinuxError } from "../uapi/errno.ts";
import { type AddressRange, MAX_ADDRESS, maxOf, minOf, showRange } from "./address.ts";

interface Reservation extends AddressRange {
  readonly owner: object;
}

const overlap = (a: AddressRange, b: AddressRange): boolean => a.start <= b.last && b.start <= a.last;

/** What lies outside the sorted disjoint ranges. */
export const complement = (ranges: readonly AddressRange[]): AddressRange[] => {
  const free: AddressRange[] = [];
  let next = 0n;
  for (const { start, last } of ranges) {
    if (start > next) free.push({ start: next, last: start - 1n });
    next = last + 1n;
  }
  if (next <= MAX_ADDRESS) free.push({ start: next, last: MAX_ADDRESS });
  return free;
};

/** Sorted, overlapping and adjacent ones joined. */
export const union = (ranges: readonly AddressRange[]): AddressRange[] => {
  const joined: { start: bigint; last: bigint }[] = [];
  const byStart = [...ranges].sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0));
  for (const { start, last } of byStart) {
    const before = joined.at(-1);
    if (before && start <= before.last + 1n) {
      if (last > before.last) before.last = last;
    } else joined.push({ start, last });
  }
  return joined;
};

/** Of sorted disjoint ranges, whether one touches it. */
const touches = (sorted: readonly AddressRange[], range: AddressRange): AddressRange | undefined => {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]!.last < range.start) low = middle + 1;
    else high = middle;
  }
  const found = sorted[low];
  return found && overlap(found, range) ? found : undefined;
};

export class IovaSpace {
  #reservations: Reservation[] = [];
  #reserved: readonly AddressRange[] = [];
  #usable: readonly AddressRange[] = [{ start: 0n, last: MAX_ADDRESS }];
  /** Sorted; empty: everything. */
  #allowed: readonly AddressRange[] = [];
  /** Where automatic placement may put something; made when it is asked for. */
  #placeable: readonly AddressRange[] | undefined;

  /** What is not reserved. */
  get usable(): readonly AddressRange[] {
    return this.#usable;
  }
  get allowed(): readonly AddressRange[] {
    return this.#allowed;
  }
  /** What automatic placement may use; adjacent allowed ranges count as one. */
  get placeable(): readonly AddressRange[] {
    this.#placeable ??=
      this.#allowed.length === 0 ? this.#usable : intersect(union(this.#allowed), this.#usable);
    return this.#placeable;
  }

  /** The reserved range that this one touches. */
  reservedIn(range: AddressRange): AddressRange | undefined {
    return touches(this.#reserved, range);
  }

  /** The allowed range that this one touches. */
  allowedIn(range: AddressRange): AddressRange | undefined {
    return touches(this.#allowed, range);
  }

  /** Takes a range for an owner. Throws EADDRINUSE when it was explicitly allowed. */
  reserve(owner: object, range: AddressRange): void {
    const allowed = this.allowedIn(range);
    if (allowed)
      throw new LinuxError(
        "EADDRINUSE",
        `IOVAs ${showRange(range)} cannot be reserved: ${showRange(allowed)} were allowed`,
      );
    this.#reservations.push({ owner, ...range });
    this.#refresh();
  }

  /** Gives back what the owner has reserved. */
  unreserve(owner: object): void {
    const kept = this.#reservations.filter((one) => one.owner !== owner);
    if (kept.length === this.#reservations.length) return;
    this.#reservations = kept;
    this.#refresh();
  }

  /** Replaces the allowed ranges: disjoint. Throws EADDRINUSE when one touches a reserved range. */
  allow(ranges: readonly AddressRange[]): void {
    const sorted = [...ranges].sort((a, b) => (a.start < b.start ? -1 : 1));
    for (const range of sorted) {
      const reserved = this.reservedIn(range);
      if (reserved)
        throw new LinuxError(
          "EADDRINUSE",
          `IOVAs ${showRange(range)} cannot be allowed: ${showRange(reserved)} are reserved`,
        );
    }
    this.#allowed = sorted;
    this.#placeable = undefined;
  }

  #refresh(): void {
    this.#reserved = union(this.#reservations);
    this.#usable = complement(this.#reserved);
    this.#placeable = undefined;
  }
}

const intersect = (a: readonly AddressRange[], b: readonly AddressRange[]): AddressRange[] => {
  const both: AddressRange[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const [one, other] = [a[i]!, b[j]!];
    const start = maxOf(one.start, other.start);
    const last = minOf(one.last, other.last);
    if (start <= last) both.push({ start, last });
    if (one.last < other.last) i += 1;
    else j += 1;
  }
  return both;
};

/** Lowest address in [from, last] that is page-aligned up to `alignment` and has this offset in its page. */
export interface Placement {
  readonly length: bigint;
  /** A power of two. */
  readonly alignment: bigint;
  /** Bits below the page of the address. */
  readonly pageOffset: bigint;
}

export const firstIn = ({ start, last }: AddressRange, how: Placement): bigint | undefined => {
  const { length, alignment, pageOffset } = how;
  const aligned = ((start + alignment - 1n) & ~(alignment - 1n)) | pageOffset;
  return aligned >= start && aligned <= MAX_ADDRESS && aligned + length - 1n <= last ? aligned : undefined;
};
