/**
 * The areas of an IOAS in order: each is a piece of some pages at an IOVA, none overlaps another. Areas have byte
 * granularity. What may be done with one is `io-pagetable.ts`.
 */
import { IntervalMap } from "../base/interval-map.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type AddressRange, hex, minOf, offsetOf, pageOf, showRange } from "./address.ts";
import type { PageRange, Pages } from "./pages.ts";

/** Bytes of some pages: `start` counts from the first byte of page 0. */
export interface Piece {
  readonly pages: Pages;
  readonly start: bigint;
  readonly length: bigint;
}

export interface Area extends Piece {
  readonly iova: bigint;
  /** `Protection` bits. */
  readonly protection: number;
  /** Pins of accesses within it. */
  accesses: number;
  /** Who needs it to stay: it cannot be unmapped (EBUSY). */
  locks: number;
  /** It is about to be unmapped: accesses are told no more pages. */
  leaving: boolean;
}

export const lastOf = (area: Area): bigint => area.iova + area.length - 1n;
export const rangeOf = (area: Area): AddressRange => ({ start: area.iova, last: lastOf(area) });
export const showArea = (area: Area): string => showRange(rangeOf(area));
export const firstPage = (piece: Piece): number => pageOf(piece.start);
export const lastPage = (piece: Piece): number => pageOf(piece.start + piece.length - 1n);
export const pageRange = (piece: Piece): PageRange => ({
  pages: piece.pages,
  first: firstPage(piece),
  last: lastPage(piece),
});
/** Its pages have a user less. */
export const release = (piece: Piece): void => piece.pages.release(firstPage(piece), lastPage(piece));

/** Whether a piece at this IOVA begins and ends, in both, at multiples of a power of two. */
export const isAligned = (piece: Piece, iova: bigint, alignment: bigint): boolean =>
  ((iova | piece.length | piece.start) & (alignment - 1n)) === 0n;

/** Gets the parts of adjacent areas, one after the other. */
type AreaVisitor = (area: Area, from: bigint, bytes: bigint) => void;

export class AreaMap {
  readonly #map = new IntervalMap<Area>();
  readonly #name: () => string;

  /** `name` tells whose areas they are. */
  constructor(name: () => string) {
    this.#name = name;
  }

  get size(): number {
    return this.#map.size;
  }
  /** Places that searches for holes have looked at so far: what placement costs. */
  get looked(): number {
    return this.#map.looked;
  }

  /** In order. The map may be searched meanwhile. */
  *[Symbol.iterator](): Iterator<Area> {
    const map = this.#map;
    for (let more = map.first(); more; ) {
      const { startPage, startOffset } = map;
      yield map.value;
      map.seek(startPage, startOffset);
      more = map.next();
    }
  }

  /** The area that holds the address. */
  at(iova: bigint): Area | undefined {
    return this.#map.find(pageOf(iova), offsetOf(iova)) ? this.#map.value : undefined;
  }

  /** The first area that touches the range. */
  in({ start, last }: AddressRange): Area | undefined {
    return this.#map.overlaps(pageOf(start), offsetOf(start), pageOf(last), offsetOf(last))
      ? this.#map.value
      : undefined;
  }

  /** Areas that touch the range, in order; only those that are asked for are looked up. The map may be searched meanwhile. */
  *within({ start, last }: AddressRange): Iterable<Area> {
    const map = this.#map;
    const [endPage, endOffset] = [pageOf(last), offsetOf(last)];
    let more = map.overlaps(pageOf(start), offsetOf(start), endPage, endOffset);
    while (more) {
      const { startPage, startOffset } = map;
      if (startPage > endPage || (startPage === endPage && startOffset > endOffset)) break;
      yield map.value;
      map.seek(startPage, startOffset);
      more = map.next();
    }
  }

  /** Every area from `iova` on with the part of it that is meant. Throws ENOENT at a hole. */
  walk(iova: bigint, length: bigint, visit: AreaVisitor): void {
    const last = iova + length - 1n;
    for (let at = iova; at <= last; ) {
      const area = this.at(at);
      if (!area) throw new LinuxError("ENOENT", `nothing is mapped at ${hex(at)}`, this.#name());
      const end = minOf(lastOf(area), last);
      visit(area, at, end - at + 1n);
      at = end + 1n;
    }
  }

  add(area: Area): void {
    const last = lastOf(area);
    this.#map.insert(pageOf(area.iova), offsetOf(area.iova), pageOf(last), offsetOf(last), area);
  }

  /** Takes areas away that follow each other. */
  remove(areas: readonly Area[]): void {
    const [first] = areas;
    if (!first || this.at(first.iova) !== first) return;
    for (let left = areas.length; left > 0; left -= 1) this.#map.remove();
  }

  /** Takes all away, in order. */
  drain(visit: (area: Area) => void): void {
    for (let more = this.#map.first(); more; more = this.#map.next()) visit(this.#map.value);
    this.#map.clear();
  }

  /** The address behind the last area that ends before this one; 0: there is none. */
  endBefore(iova: bigint): bigint {
    this.#map.seek(pageOf(iova), offsetOf(iova));
    return this.#map.previous() ? lastOf(this.#map.value) + 1n : 0n;
  }

  /** Behind the area that was found last by `in`: where the next hole of so many bytes begins, or what follows all areas. */
  nextHole(bytes: bigint): bigint {
    this.#map.nextHole(Number(bytes));
    this.#map.previous();
    return lastOf(this.#map.value) + 1n;
  }
}

/** What others than the IOAS may do with its areas. */
export type Areas = Omit<AreaMap, "add" | "remove" | "drain">;
