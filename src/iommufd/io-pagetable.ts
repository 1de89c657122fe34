/**
 * The content of an IOAS: areas, each a piece of some pages at an IOVA, and the domains that map all of them. Pages
 * are pinned while at least one domain maps them. Areas have byte granularity; domains impose their smallest page as
 * alignment. Whole areas are unmapped, never parts. What the areas' pages are is `pages.ts`; which IOVAs are free of
 * reservations is `iova-space.ts`.
 */
import { IntervalMap } from "../base/interval-map.ts";
import { type PagingDomain, Protection } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  type AddressRange,
  hex,
  MAX_ADDRESS,
  maxOf,
  minOf,
  offsetOf,
  PAGE_BYTES,
  pageOf,
  showRange,
} from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { firstIn, IovaSpace, type Placement } from "./iova-space.ts";
import { holdAll, type PageRange, type Pages } from "./pages.ts";

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

/** How an unmap went. */
export interface Unmapped {
  /** Bytes that were unmapped. */
  readonly bytes: bigint;
  readonly done: boolean;
  /** What stopped it. */
  readonly error?: LinuxError;
}

/** What is told before pages go. */
export interface PinHolder {
  /** Pages of IOVAs [iova, iova + length) are to be unmapped: unpin them. */
  unmap(iova: bigint, length: bigint): void;
  /** Bytes its pins must be aligned to. */
  readonly alignment: bigint;
}

const PAGE = BigInt(PAGE_BYTES);
/** Automatic IOVAs are aligned at most to this: a large page of the host. */
const LARGEST_ALIGNMENT = 2n ** 21n;
/** Kinds of placement whose last address is remembered. */
const REMEMBERED = 32;
/** How often accesses are told to unpin before an unmap gives up. */
export const UNMAP_NOTIFICATIONS = 100;

const lastOf = (area: { readonly iova: bigint; readonly length: bigint }): bigint =>
  area.iova + area.length - 1n;
const rangeOf = (area: Area): AddressRange => ({ start: area.iova, last: lastOf(area) });
const firstPage = (piece: Piece): number => pageOf(piece.start);
const lastPage = (piece: Piece): number => pageOf(piece.start + piece.length - 1n);
const pageRange = (piece: Piece): PageRange => ({
  pages: piece.pages,
  first: firstPage(piece),
  last: lastPage(piece),
});
const lowestBit = (value: bigint): bigint => value & -value;

const roundUpPowerOfTwo = (value: bigint): bigint => 1n << BigInt((value - 1n).toString(2).length);

export class IoPagetable {
  readonly space = new IovaSpace();
  readonly #context: IommufdContext;
  readonly #name: () => string;
  readonly #areas = new IntervalMap<Area>();
  readonly #domains: PagingDomain[] = [];
  readonly #holders = new Set<PinHolder>();
  #alignment = 1n;
  /** By what is placed: the address below which no hole takes it. Automatic placement is first fit without a search. */
  readonly #fullBelow = new Map<string, bigint>();
  /** The ranges for which that is so. */
  #placeable: readonly AddressRange[] = [];
  /** IOMMU_OPTION_HUGE_PAGES: runs of pages are mapped as one. */
  #largePages = true;

  constructor(context: IommufdContext, name: () => string) {
    this.#context = context;
    this.#name = name;
  }

  get size(): number {
    return this.#areas.size;
  }
  get domains(): readonly PagingDomain[] {
    return this.#domains;
  }
  /** Bytes every IOVA, length and user address must be a multiple of. */
  get alignment(): bigint {
    return this.#alignment;
  }
  get largePages(): boolean {
    return this.#largePages;
  }

  /** Throws EINVAL while domains map areas page by large page. */
  setLargePages(on: boolean): void {
    if (on === this.#largePages) return;
    if (!on && this.#domains.length > 0 && this.#areas.size > 0)
      throw new LinuxError(
        "EINVAL",
        "areas are mapped in hardware with large pages already; the option comes before the first of them",
        this.#name(),
      );
    this.#largePages = on;
    this.#alignment = this.#alignmentWith(this.#domains);
  }

  /**
   * Maps pieces one after the other from `iova` on, or from where they fit. Pins when a domain maps them. Throws
   * EINVAL (alignment, reserved), EOVERFLOW, EEXIST, ENOSPC, EPERM (not writable), ENOMEM, EFAULT, Restart; then nothing has
   * changed.
   */
  map(pieces: readonly Piece[], protection: number, fixed: bigint | undefined): bigint {
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0n);
    const iova = fixed ?? this.#place(pieces[0]!, length);
    this.#requireAligned(pieces, iova);
    if (fixed !== undefined) this.#requireFree(iova, length);
    if (protection & Protection.write) this.#requireWritable(pieces);
    const areas: Area[] = [];
    let at = iova;
    for (const { pages, start, length: bytes } of pieces) {
      this.#context.allocate("an area");
      areas.push({
        pages,
        start,
        length: bytes,
        iova: at,
        protection,
        accesses: 0,
        locks: 0,
        leaving: false,
      });
      at += bytes;
    }
    if (this.#domains.length > 0) this.#fill(areas);
    for (const area of areas) this.#insert(area);
    return iova;
  }

  /** The pieces behind [iova, iova + length). Throws ENOENT when something of it is not mapped. */
  pieces(iova: bigint, length: bigint): Piece[] {
    const found: Piece[] = [];
    this.#walk(iova, length, (area, from, bytes) => {
      found.push({ pages: area.pages, start: area.start + (from - area.iova), length: bytes });
    });
    return found;
  }

  /** Every area from `iova` on, contiguous, with the part of it that is meant. Throws ENOENT at a hole. */
  walk(iova: bigint, length: bigint, visit: (area: Area, from: bigint, bytes: bigint) => void): void {
    this.#walk(iova, length, visit);
  }

  /** Areas in order. */
  *areas(): Iterable<Area> {
    for (let more = this.#areas.first(); more; ) {
      const { startPage, startOffset } = this.#areas;
      yield this.#areas.value;
      more = this.#areas.find(startPage, startOffset)
        ? this.#areas.next()
        : this.#areas.seek(startPage, startOffset);
    }
  }

  /**
   * Unmaps the areas within [start, last], in order, and tells the bytes that went. `done` is false when accesses that
   * were told still have pins there: try again. What stops it (ENOENT: an area is cut or there is none; EBUSY: it is
   * needed) comes as `error`: areas before are gone then.
   */
  unmap(start: bigint, last: bigint): Unmapped {
    const areas = this.#within(start, last);
    const first = areas[0];
    if (!first) {
      if (start === 0n && last === MAX_ADDRESS) return { bytes: 0n, done: true };
      return { bytes: 0n, done: true, error: this.#nothingIn({ start, last }) };
    }
    let count = 0;
    let error: LinuxError | undefined;
    for (const area of areas) {
      error = this.#unmappable(area, { start, last });
      if (error || !this.#quiesce(area)) break;
      count += 1;
    }
    const bytes = this.#take(areas.slice(0, count));
    return error ? { bytes, done: true, error } : { bytes, done: count === areas.length };
  }

  /** Empties the domains where the adjacent areas are, then takes the areas away. */
  #take(areas: readonly Area[]): bigint {
    const first = areas[0];
    if (!first) return 0n;
    const end = lastOf(areas.at(-1)!) + 1n;
    for (const domain of this.#domains) domain.unmap(Number(first.iova), Number(end - first.iova));
    let total = 0n;
    for (const area of areas) {
      total += area.length;
      this.#remove(area);
    }
    return total;
  }

  #nothingIn(range: AddressRange): LinuxError {
    return new LinuxError("ENOENT", `nothing is mapped in ${showRange(range)}`, this.#name());
  }

  #unmappable(area: Area, { start, last }: AddressRange): LinuxError | undefined {
    if (area.iova < start || lastOf(area) > last)
      return new LinuxError(
        "ENOENT",
        `${showRange({ start, last })} cuts the area ${showRange(rangeOf(area))}; whole areas are unmapped`,
        this.#name(),
      );
    if (area.locks === 0) return undefined;
    return new LinuxError(
      "EBUSY",
      `the area ${showRange(rangeOf(area))} is needed by a hardware queue`,
      this.#name(),
    );
  }

  /**
   * Cuts areas in two where the range begins and ends, so that it can be unmapped. A place that is not aligned is left
   * alone. Throws EBUSY when an area to be cut is pinned or needed by something.
   */
  cut({ start, last }: AddressRange): void {
    this.#cutAt(start);
    if (last < MAX_ADDRESS) this.#cutAt(last + 1n);
  }

  #cutAt(iova: bigint): void {
    if (!this.#areas.find(pageOf(iova), offsetOf(iova))) return;
    const area = this.#areas.value;
    if (area.iova === iova || (iova & (this.#alignment - 1n)) !== 0n) return;
    if (area.locks > 0 || area.accesses > 0)
      throw new LinuxError(
        "EBUSY",
        `the area ${showRange(rangeOf(area))} cannot be cut at ${hex(iova)}: it is pinned`,
        this.#name(),
      );
    this.#context.allocate("an area");
    const low = { ...area, length: iova - area.iova };
    const high = { ...area, iova, start: area.start + low.length, length: area.length - low.length };
    if (this.#domains.length > 0 && lastPage(low) === firstPage(high))
      area.pages.hold(lastPage(low), lastPage(low));
    const end = lastOf(area);
    this.#areas.remove();
    for (const part of [low, high]) {
      const last = part === low ? iova - 1n : end;
      this.#areas.insert(pageOf(part.iova), offsetOf(part.iova), pageOf(last), offsetOf(last), part);
    }
    area.pages.retain();
    this.#context.system.live.areas += 1;
  }

  /** The unmap that was waited for is given up: the areas may be used again. */
  keep(start: bigint, last: bigint): void {
    for (const area of this.#within(start, last)) area.leaving = false;
  }

  /** Everything goes; no domain and no access is left. */
  clear(): void {
    for (let more = this.#areas.first(); more; more = this.#areas.first()) this.#remove(this.#areas.value);
  }

  /**
   * Fills an empty domain with all areas; from now on it follows them. Throws EADDRINUSE when areas lie where it
   * cannot map or are not aligned for it, ENOMEM, EFAULT, Restart; then nothing has changed.
   */
  attachDomain(domain: PagingDomain): void {
    this.#context.allocate("a list of domains");
    const alignment = this.#alignmentWith([...this.#domains, domain]);
    this.#requireAllAligned(alignment);
    this.#reserveAround(domain);
    try {
      this.#fillDomain(domain);
    } catch (error) {
      this.space.unreserve(domain);
      throw error;
    }
    this.#domains.push(domain);
    this.#alignment = alignment;
  }

  /** Empties the domain; pages that no other maps are unpinned. */
  detachDomain(domain: PagingDomain): void {
    const at = this.#domains.indexOf(domain);
    if (at < 0) return;
    this.#domains.splice(at, 1);
    this.space.unreserve(domain);
    this.#alignment = this.#alignmentWith(this.#domains);
    if (this.#areas.size > 0) this.#emptyDomain(domain);
    if (this.#domains.length > 0) return;
    for (const area of this.areas()) release(area);
  }

  /** Reserves a range for an owner. Throws EADDRINUSE when an area lies there or it was allowed. */
  reserve(owner: object, range: AddressRange): void {
    this.#context.allocate("a reserved range");
    const area = this.areaIn(range);
    if (area)
      throw new LinuxError(
        "EADDRINUSE",
        `IOVAs ${showRange(range)} cannot be reserved: ${showRange(rangeOf(area))} is mapped`,
        this.#name(),
      );
    this.space.reserve(owner, range);
  }

  /** Gives back what the owner has reserved. */
  unreserve(owner: object): void {
    this.space.unreserve(owner);
  }

  /** The first area that touches the range. */
  areaIn({ start, last }: AddressRange): Area | undefined {
    return this.#areas.overlaps(pageOf(start), offsetOf(start), pageOf(last), offsetOf(last))
      ? this.#areas.value
      : undefined;
  }

  /** Somebody pins pages of this address space and wants to be told before they go. Throws EADDRINUSE: areas are not aligned for it. */
  addHolder(holder: PinHolder): void {
    this.#holders.add(holder);
    const alignment = this.#alignmentWith(this.#domains);
    try {
      this.#requireAllAligned(alignment);
    } catch (error) {
      this.#holders.delete(holder);
      throw error;
    }
    this.#alignment = alignment;
  }

  removeHolder(holder: PinHolder): void {
    this.#holders.delete(holder);
    this.#alignment = this.#alignmentWith(this.#domains);
  }

  #alignmentWith(domains: readonly PagingDomain[]): bigint {
    let alignment = this.#largePages ? 1n : PAGE;
    for (const { pageSizes } of domains) {
      const smallest = lowestBit(pageSizes);
      if (smallest > alignment) alignment = smallest;
    }
    for (const holder of this.#holders) if (holder.alignment > alignment) alignment = holder.alignment;
    return alignment;
  }

  #requireAllAligned(alignment: bigint): void {
    if (alignment <= this.#alignment) return;
    for (const area of this.areas())
      if (!isAligned(area, area.iova, alignment))
        throw new LinuxError(
          "EADDRINUSE",
          `the area ${showRange(rangeOf(area))} is not aligned to ${hex(alignment)}, as it would have to be from now on`,
          this.#name(),
        );
  }

  #requireAligned(pieces: readonly Piece[], from: bigint): void {
    if (this.#alignment === 1n) return;
    let iova = from;
    for (const piece of pieces) {
      if (!isAligned(piece, iova, this.#alignment))
        throw new LinuxError(
          "EINVAL",
          `iova ${hex(iova)}, length ${hex(piece.length)} and the memory's offset ${hex(piece.start)} must be multiples of ${hex(this.#alignment)}, ` +
            "the alignment that what is attached requires",
          this.#name(),
        );
      iova += piece.length;
    }
  }

  #requireWritable(pieces: readonly Piece[]): void {
    if (pieces.every(({ pages }) => pages.writable)) return;
    throw new LinuxError(
      "EPERM",
      "the memory was mapped first without WRITEABLE; a copy cannot be written either",
      this.#name(),
    );
  }

  #requireFree(iova: bigint, length: bigint): void {
    const range = { start: iova, last: iova + length - 1n };
    if (range.last > MAX_ADDRESS)
      throw new LinuxError(
        "EOVERFLOW",
        `iova ${hex(iova)} + length ${hex(length)} goes beyond 64 bits`,
        this.#name(),
      );
    const reserved = this.space.reservedIn(range);
    if (reserved)
      throw new LinuxError(
        "EINVAL",
        `IOVAs ${showRange(range)} touch the reserved ${showRange(reserved)}`,
        this.#name(),
      );
    const area = this.areaIn(range);
    if (area)
      throw new LinuxError(
        "EEXIST",
        `IOVAs ${showRange(range)} overlap the area ${showRange(rangeOf(area))}; it must be unmapped first`,
        this.#name(),
      );
  }

  /** First fit. The place in its page stays that of the memory. */
  #place(piece: Piece, length: bigint): bigint {
    if (length >= MAX_ADDRESS >> 1n)
      throw new LinuxError("EOVERFLOW", `length ${hex(length)} is beyond what can be placed`, this.#name());
    const pageOffset = piece.start & (PAGE - 1n);
    const address = piece.pages.source.base + piece.start;
    const memoryAlignment = address === 0n ? LARGEST_ALIGNMENT : lowestBit(address);
    let alignment = minOf(minOf(roundUpPowerOfTwo(length), memoryAlignment), LARGEST_ALIGNMENT);
    if (alignment < this.#alignment) alignment = this.#alignment;
    const how = { length, alignment, pageOffset };
    const key = `${length} ${alignment} ${pageOffset}`;
    const { placeable } = this.space;
    if (placeable !== this.#placeable) this.#fullBelow.clear();
    this.#placeable = placeable;
    for (const range of placeable) {
      const least = maxOf(range.start, this.#fullBelow.get(key) ?? PAGE);
      const iova = this.#placeIn({ start: least, last: range.last }, how);
      if (iova === undefined) continue;
      this.#noteFull(key, iova);
      return iova;
    }
    throw new LinuxError("ENOSPC", `no ${hex(length)} free IOVAs in a row are left`, this.#name());
  }

  /** Hole by hole: the address is aligned from where a hole begins. */
  #placeIn({ start: from, last }: AddressRange, how: Placement): bigint | undefined {
    for (let start = from; start <= last; ) {
      const iova = firstIn({ start, last }, how);
      if (iova === undefined || !this.areaIn({ start, last: iova + how.length - 1n })) return iova;
      this.#areas.nextHole(Number(how.length));
      this.#areas.previous();
      start = maxOf(start, lastOf(this.#areas.value) + 1n);
    }
    return undefined;
  }

  /** Nothing like this fits below the address: the next search begins there. */
  #noteFull(key: string, below: bigint): void {
    if (this.#fullBelow.size >= REMEMBERED && !this.#fullBelow.has(key)) this.#fullBelow.clear();
    this.#fullBelow.set(key, below);
  }

  /** A hole came into being before this address, or became wider. */
  #noteHole(area: Area): void {
    if (this.#fullBelow.size === 0) return;
    const page = pageOf(area.iova);
    const found = this.#areas.seek(page, offsetOf(area.iova));
    const start =
      (found || this.#areas.size > 0) && this.#areas.previous() ? lastOf(this.#areas.value) + 1n : 0n;
    for (const [key, below] of this.#fullBelow)
      if (below > start) this.#fullBelow.set(key, maxOf(start, PAGE));
  }

  #walk(iova: bigint, length: bigint, visit: (area: Area, from: bigint, bytes: bigint) => void): void {
    const last = iova + length - 1n;
    for (let at = iova; at <= last; ) {
      if (!this.#areas.find(pageOf(at), offsetOf(at)))
        throw new LinuxError("ENOENT", `nothing is mapped at ${hex(at)}`, this.#name());
      const area = this.#areas.value;
      const end = minOf(lastOf(area), last);
      visit(area, at, end - at + 1n);
      at = end + 1n;
    }
  }

  /** Areas that touch the range. */
  #within(start: bigint, last: bigint): Area[] {
    const found: Area[] = [];
    const [endPage, endOffset] = [pageOf(last), offsetOf(last)];
    let more = this.#areas.overlaps(pageOf(start), offsetOf(start), endPage, endOffset);
    while (more) {
      const { startPage, startOffset } = this.#areas;
      if (startPage > endPage || (startPage === endPage && startOffset > endOffset)) break;
      found.push(this.#areas.value);
      more = this.#areas.next();
    }
    return found;
  }

  /** No access has it pinned. False: they were told, and some pin it still. */
  #quiesce(area: Area): boolean {
    if (area.accesses === 0) return true;
    area.leaving = true;
    for (const holder of this.#holders) holder.unmap(area.iova, area.length);
    return area.accesses === 0;
  }

  #insert(area: Area): void {
    const last = lastOf(area);
    this.#areas.insert(pageOf(area.iova), offsetOf(area.iova), pageOf(last), offsetOf(last), area);
    area.pages.retain();
    const { live, events } = this.#context.system;
    live.areas += 1;
    if (events.on)
      events.emit("map", {
        ioas: this.#name(),
        iova: area.iova,
        length: area.length,
        protection: area.protection,
      });
  }

  /** Domains do not map it any more. */
  #remove(area: Area): void {
    this.#areas.find(pageOf(area.iova), offsetOf(area.iova));
    this.#areas.remove();
    if (this.#domains.length > 0) release(area);
    area.pages.drop();
    this.#noteHole(area);
    const { live, events } = this.#context.system;
    live.areas -= 1;
    if (events.on) events.emit("unmap", { ioas: this.#name(), iova: area.iova, length: area.length });
  }

  /** Pins new areas and maps them in all domains. */
  #fill(areas: readonly Area[]): void {
    holdAll(areas.map(pageRange));
    const done: [PagingDomain, Area][] = [];
    try {
      for (const area of areas)
        for (const domain of this.#domains) {
          this.#mapIn(domain, area);
          done.push([domain, area]);
        }
    } catch (error) {
      for (const [domain, area] of done) domain.unmap(Number(area.iova), Number(area.length));
      for (const area of areas) release(area);
      throw error;
    }
  }

  #fillDomain(domain: PagingDomain): void {
    const first = this.#domains.length === 0;
    if (first) holdAll(this.#pageRanges());
    let end = 0n;
    try {
      for (const area of this.areas()) {
        this.#mapIn(domain, area);
        end = lastOf(area) + 1n;
      }
    } catch (error) {
      if (end > 0n) domain.unmap(0, Number(end));
      if (first) for (const area of this.areas()) release(area);
      throw error;
    }
  }

  *#pageRanges(): Iterable<PageRange> {
    for (const area of this.areas()) yield pageRange(area);
  }

  /** Runs of adjacent areas are unmapped in one go. */
  #emptyDomain(domain: PagingDomain): void {
    let start: bigint | undefined;
    let next = 0n;
    for (const area of this.areas()) {
      if (start !== undefined && area.iova !== next) {
        domain.unmap(Number(start), Number(next - start));
        start = undefined;
      }
      start ??= area.iova;
      next = lastOf(area) + 1n;
    }
    if (start !== undefined) domain.unmap(Number(start), Number(next - start));
  }

  /** All or nothing. */
  #mapIn(domain: PagingDomain, area: Area): void {
    if (area.protection === 0)
      throw new LinuxError(
        "EINVAL",
        `the area ${showRange(rangeOf(area))} allows neither reading nor writing, and no table entry says that`,
        this.#name(),
      );
    const first = Number(area.iova);
    let iova = first;
    const piece = this.#largePages ? Number.POSITIVE_INFINITY : PAGE_BYTES;
    try {
      area.pages.physical(Number(area.start), Number(area.length), (pa, length) => {
        for (let done = 0; done < length; ) {
          const bytes = Math.min(length - done, piece - ((pa + done) % PAGE_BYTES));
          domain.map(iova, pa + done, bytes, area.protection);
          iova += bytes;
          done += bytes;
        }
      });
    } catch (error) {
      if (iova > first) domain.unmap(first, iova - first);
      throw error;
    }
  }

  /** What lies outside the domain's apertures is reserved while it is attached. */
  #reserveAround(domain: PagingDomain): void {
    let next = 0n;
    const gaps: AddressRange[] = [];
    const apertures = [...domain.apertures].sort((a, b) => a.start - b.start);
    for (const { start, end } of apertures) {
      if (BigInt(start) > next) gaps.push({ start: next, last: BigInt(start) - 1n });
      next = BigInt(end);
    }
    if (next <= MAX_ADDRESS) gaps.push({ start: next, last: MAX_ADDRESS });
    try {
      for (const gap of gaps) this.reserve(domain, gap);
    } catch (error) {
      this.space.unreserve(domain);
      throw error;
    }
  }
}

const release = (area: Area): void => area.pages.release(firstPage(area), lastPage(area));

const isAligned = (piece: Piece, iova: bigint, alignment: bigint): boolean =>
  ((iova | piece.length | piece.start) & (alignment - 1n)) === 0n;
