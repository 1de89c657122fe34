/**
 * Automatic placement: the lowest free IOVA for a length, as Linux chooses it. It is never 0, it keeps the memory's
 * place in its page, and it is aligned to the smallest of: the length rounded up to a power of two, the alignment of the
 * memory's address, a large page of the host; but at least to what the attached hardware asks for.
 */
import { LinuxError } from "../uapi/errno.ts";
import { type AddressRange, hex, MAX_ADDRESS, maxOf, minOf, PAGE_BYTES } from "./address.ts";
import type { Area, AreaMap, Piece } from "./areas.ts";
import { firstIn, type IovaSpace, type Placement } from "./iova-space.ts";

const PAGE = BigInt(PAGE_BYTES);
/** Automatic IOVAs are aligned at most to this: a large page of the host. */
const LARGEST_ALIGNMENT = 2n ** 21n;
/** Kinds of placement whose last address is remembered. */
const REMEMBERED = 32;

export const lowestBit = (value: bigint): bigint => value & -value;

const roundUpPowerOfTwo = (value: bigint): bigint => 1n << BigInt((value - 1n).toString(2).length);

/** Bytes are placed at least at multiples of `atLeast`. */
const placementOf = (piece: Piece, length: bigint, atLeast: bigint): Placement => {
  const address = piece.pages.source.base + piece.start;
  const memoryAlignment = address === 0n ? LARGEST_ALIGNMENT : lowestBit(address);
  const alignment = minOf(minOf(roundUpPowerOfTwo(length), memoryAlignment), LARGEST_ALIGNMENT);
  return { length, alignment: maxOf(alignment, atLeast), pageOffset: piece.start & (PAGE - 1n) };
};

export class Placer {
  readonly #areas: AreaMap;
  readonly #space: IovaSpace;
  readonly #name: () => string;
  /** By what is placed: the address below which no hole takes it. First fit without a search from the start. */
  readonly #fullBelow = new Map<string, bigint>();
  /** The ranges for which that is so. */
  #placeable: readonly AddressRange[] = [];

  constructor(areas: AreaMap, space: IovaSpace, name: () => string) {
    this.#areas = areas;
    this.#space = space;
    this.#name = name;
  }

  /**
   * Where `length` bytes fit whose first are `piece`. Where ranges differ, `alignment` says what each asks for by its first
   * address, and undefined where the bytes cannot be. Throws EOVERFLOW, ENOSPC.
   */
  place(piece: Piece, length: bigint, alignment: bigint | ((start: bigint) => bigint | undefined)): bigint {
    if (length >= MAX_ADDRESS >> 1n)
      throw new LinuxError("EOVERFLOW", `length ${hex(length)} is beyond what can be placed`, this.#name());
    if (typeof alignment === "function") return this.#placeApart(piece, length, alignment);
    const how = placementOf(piece, length, alignment);
    const key = `${length} ${how.alignment} ${how.pageOffset}`;
    const { placeable } = this.#space;
    if (placeable !== this.#placeable) this.#fullBelow.clear();
    this.#placeable = placeable;
    for (const range of placeable) {
      const least = maxOf(range.start, this.#fullBelow.get(key) ?? PAGE);
      const iova = this.#placeIn({ start: least, last: range.last }, how);
      if (iova === undefined) continue;
      this.#noteFull(key, iova);
      return iova;
    }
    throw this.#full(length);
  }

  /** Range by range, each with an alignment of its own: what is known to be full is not remembered. */
  #placeApart(piece: Piece, length: bigint, alignmentIn: (start: bigint) => bigint | undefined): bigint {
    for (const { start, last } of this.#space.placeable) {
      const alignment = alignmentIn(start);
      if (alignment === undefined) continue;
      const how = placementOf(piece, length, alignment);
      const iova = this.#placeIn({ start: maxOf(start, PAGE), last }, how);
      if (iova !== undefined) return iova;
    }
    throw this.#full(length);
  }

  #full(length: bigint): LinuxError {
    return new LinuxError("ENOSPC", `no ${hex(length)} free IOVAs in a row are left`, this.#name());
  }

  /** An area went, and perhaps some behind it: holes came into being, or became wider. */
  opened(area: Area): void {
    if (this.#fullBelow.size === 0) return;
    const start = maxOf(this.#areas.endBefore(area.iova), PAGE);
    for (const [key, below] of this.#fullBelow) if (below > start) this.#fullBelow.set(key, start);
  }

  /** Hole by hole: the address is aligned from where a hole begins. */
  #placeIn({ start: from, last }: AddressRange, how: Placement): bigint | undefined {
    for (let start = from; start <= last; ) {
      const iova = firstIn({ start, last }, how);
      if (iova === undefined || !this.#areas.in({ start, last: iova + how.length - 1n })) return iova;
      start = maxOf(start, this.#areas.nextHole(how.length));
    }
    return undefined;
  }

  /** Nothing like this fits below the address: the next search begins there. */
  #noteFull(key: string, below: bigint): void {
    if (this.#fullBelow.size >= REMEMBERED && !this.#fullBelow.has(key)) this.#fullBelow.clear();
    this.#fullBelow.set(key, below);
  }
}
