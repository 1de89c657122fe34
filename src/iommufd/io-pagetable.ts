/**
 * The content of an IOAS and the rules for it: areas are mapped where nothing is mapped or reserved, aligned as domains
 * and accesses ask; whole areas are unmapped, never parts, and not while somebody pins them. The areas themselves are
 * `areas.ts`, the domains that map them `domains.ts`, which IOVAs are free of reservations `iova-space.ts`, which of
 * them is chosen `placement.ts`, and what the areas' pages are `pages.ts`.
 */
import { type PagingDomain, Protection } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type AddressRange, hex, MAX_ADDRESS, maxOf, PAGE_BYTES, showRange } from "./address.ts";
import {
  type Area,
  AreaMap,
  type Areas,
  firstPage,
  isAligned,
  lastOf,
  lastPage,
  type Piece,
  showArea,
} from "./areas.ts";
import type { IommufdContext } from "./context.ts";
import { Domains } from "./domains.ts";
import { IovaSpace } from "./iova-space.ts";
import { coarsestPage, isGraded, smallestPageAt } from "./page-sizes.ts";
import type { PageMapper, Pages } from "./pages.ts";
import { Placer } from "./placement.ts";

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
/** How often accesses are told to unpin before an unmap gives up. */
export const UNMAP_NOTIFICATIONS = 100;

export class IoPagetable implements PageMapper {
  readonly space = new IovaSpace();
  readonly #context: IommufdContext;
  readonly #name: () => string;
  readonly #areas: AreaMap;
  readonly #domains: Domains;
  readonly #placer: Placer;
  readonly #holders = new Set<PinHolder>();
  /** Areas that unmaps wait for. */
  readonly #leaving = new Set<Area>();
  /** What suits every address. Where a domain is graded there are addresses that less suits. */
  #alignment = 1n;
  #graded = false;

  constructor(context: IommufdContext, name: () => string) {
    this.#context = context;
    this.#name = name;
    this.#areas = new AreaMap(name);
    this.#domains = new Domains(name, context.system.batch);
    this.#placer = new Placer(this.#areas, this.space, name);
  }

  /** In order. */
  get areas(): Areas {
    return this.#areas;
  }
  get domains(): readonly PagingDomain[] {
    return this.#domains.list;
  }
  /** IOVAs, lengths and user addresses that are multiples of it can be mapped anywhere. */
  get alignment(): bigint {
    return this.#alignment;
  }
  get largePages(): boolean {
    return this.#domains.largePages;
  }

  /** Throws EINVAL while domains map areas by large pages, EADDRINUSE when areas are not aligned to pages; then nothing has changed. */
  setLargePages(on: boolean): void {
    if (on === this.largePages) return;
    if (!on && this.#domains.any && this.#areas.size > 0)
      throw new LinuxError(
        "EINVAL",
        "areas are mapped in hardware with large pages already; the option comes before the first of them",
        this.#name(),
      );
    this.#domains.largePages = on;
    try {
      this.#requireAllAligned(this.domains);
    } catch (error) {
      this.#domains.largePages = !on;
      throw error;
    }
    this.#align();
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
    this.#domains.map(areas);
    for (const area of areas) this.#insert(area);
    return iova;
  }

  #place(piece: Piece, length: bigint): bigint {
    if (!this.#graded) return this.#placer.place(piece, length, this.#alignment);
    return this.#placer.place(piece, length, (start) => {
      const alignment = this.#alignmentAt(start);
      return isAligned({ ...piece, length }, 0n, alignment) ? alignment : undefined;
    });
  }

  /** The pieces behind [iova, iova + length). Throws ENOENT when something of it is not mapped, ENOMEM. */
  pieces(iova: bigint, length: bigint): Piece[] {
    const found: Piece[] = [];
    this.#areas.walk(iova, length, (area, from, bytes) => {
      this.#context.allocate("a list of pages");
      found.push({ pages: area.pages, start: area.start + (from - area.iova), length: bytes });
    });
    return found;
  }

  /**
   * Unmaps the areas within [start, last], in order, and tells the bytes that went. `done` is false when accesses that
   * were told still have pins there: try again. What stops it (ENOENT: an area is cut or there is none; EBUSY: it is
   * needed) comes as `error`: areas before are gone then.
   */
  unmap(start: bigint, last: bigint): Unmapped {
    const going: Area[] = [];
    let stopped: Area | undefined;
    let error: LinuxError | undefined;
    for (const area of this.#areas.within({ start, last })) {
      error = this.#unmappable(area, { start, last });
      if (error || !this.#quiesce(area)) {
        stopped = area;
        break;
      }
      going.push(area);
    }
    if (!stopped && going.length === 0 && !(start === 0n && last === MAX_ADDRESS))
      return { bytes: 0n, done: true, error: this.#nothingIn({ start, last }) };
    const bytes = this.#take(going);
    return error ? { bytes, done: true, error } : { bytes, done: !stopped };
  }

  /** Adjacent areas go. */
  #take(areas: readonly Area[]): bigint {
    this.#domains.unmap(areas);
    this.#areas.remove(areas);
    let total = 0n;
    for (const area of areas) {
      total += area.length;
      this.#drop(area);
    }
    if (areas[0]) this.#placer.opened(areas[0]);
    return total;
  }

  #nothingIn(range: AddressRange): LinuxError {
    return new LinuxError("ENOENT", `nothing is mapped in ${showRange(range)}`, this.#name());
  }

  #unmappable(area: Area, { start, last }: AddressRange): LinuxError | undefined {
    if (area.iova < start || lastOf(area) > last)
      return new LinuxError(
        "ENOENT",
        `${showRange({ start, last })} cuts the area ${showArea(area)}; whole areas are unmapped`,
        this.#name(),
      );
    if (area.locks === 0) return undefined;
    return new LinuxError("EBUSY", `the area ${showArea(area)} is needed by a hardware queue`, this.#name());
  }

  /**
   * Cuts areas in two where the range begins and ends, so that it can be unmapped. A place that is not aligned is left
   * alone. Throws EBUSY when an area to be cut is pinned or needed by something, ENOMEM; then nothing was cut.
   */
  cut({ start, last }: AddressRange): void {
    const places = [start, last + 1n].filter((iova) => iova <= MAX_ADDRESS && this.#mustCut(iova));
    for (const _ of places) this.#context.allocate("an area");
    for (const iova of places) this.#cutAt(iova);
  }

  /** Whether an area can be cut in two there. */
  #mustCut(iova: bigint): boolean {
    const area = this.#areas.at(iova);
    if (!area || area.iova === iova || (iova & (this.#alignmentAt(iova) - 1n)) !== 0n) return false;
    if (area.locks === 0 && area.accesses === 0) return true;
    throw new LinuxError(
      "EBUSY",
      `the area ${showArea(area)} cannot be cut at ${hex(iova)}: it is pinned`,
      this.#name(),
    );
  }

  #cutAt(iova: bigint): void {
    const area = this.#areas.at(iova)!;
    const low = { ...area, length: iova - area.iova };
    const high = { ...area, iova, start: area.start + low.length, length: area.length - low.length };
    if (this.#domains.any && lastPage(low) === firstPage(high)) area.pages.hold(lastPage(low), lastPage(low));
    if (this.#leaving.delete(area)) for (const part of [low, high]) this.#leaving.add(part);
    this.#areas.remove([area]);
    this.#areas.add(low);
    this.#areas.add(high);
    area.pages.retain(this);
    this.#context.system.live.areas += 1;
  }

  /** The unmap that was waited for is given up: the areas may be used again. */
  keep(start: bigint, last: bigint): void {
    for (const area of this.#leaving)
      if (area.iova <= last && lastOf(area) >= start) {
        area.leaving = false;
        this.#leaving.delete(area);
      }
  }

  /** Everything goes; no domain and no access is left. */
  clear(): void {
    this.#areas.drain((area) => this.#drop(area));
  }

  /**
   * Fills an empty domain with all areas; from now on it follows them. Throws EADDRINUSE when areas lie where it
   * cannot map or are not aligned for it, ENOMEM, EFAULT, Restart; then nothing has changed.
   */
  attachDomain(domain: PagingDomain): void {
    this.#context.allocate("a list of domains");
    this.#requireAllAligned([...this.domains, domain]);
    this.#reserveAround(domain);
    try {
      this.#domains.add(domain, this.#areas);
    } catch (error) {
      this.space.unreserve(domain);
      throw error;
    }
    this.#align();
  }

  /** Empties the domain; pages that no other maps are unpinned. */
  detachDomain(domain: PagingDomain): void {
    if (!this.domains.includes(domain)) return;
    this.#domains.remove(domain, this.#areas);
    this.space.unreserve(domain);
    this.#align();
  }

  /** The owner of the pages has taken them back: their areas stay, and lead nowhere. */
  withdraw(pages: Pages): void {
    for (const area of this.#areas) if (area.pages === pages) this.#domains.withdraw(area);
  }

  /** Reserves a range for an owner. Throws EADDRINUSE when an area lies there or it was allowed. */
  reserve(owner: object, range: AddressRange): void {
    this.#context.allocate("a reserved range");
    const area = this.#areas.in(range);
    if (area)
      throw new LinuxError(
        "EADDRINUSE",
        `IOVAs ${showRange(range)} cannot be reserved: ${showArea(area)} is mapped`,
        this.#name(),
      );
    this.space.reserve(owner, range);
  }

  /** Gives back what the owner has reserved. */
  unreserve(owner: object): void {
    this.space.unreserve(owner);
  }

  /** Somebody pins pages of this address space and wants to be told before they go. Throws EADDRINUSE: areas are not aligned for it. */
  addHolder(holder: PinHolder): void {
    this.#holders.add(holder);
    try {
      this.#requireAllAligned(this.domains);
    } catch (error) {
      this.#holders.delete(holder);
      throw error;
    }
    this.#align();
  }

  removeHolder(holder: PinHolder): void {
    this.#holders.delete(holder);
    this.#align();
  }

  /** Who asks for alignment has changed. */
  #align(): void {
    this.#alignment = this.#alignmentWith(this.domains, coarsestPage);
    this.#graded = this.domains.some(isGraded);
  }

  /** What everybody together asks for, of domains pages of this size. */
  #alignmentWith(domains: readonly PagingDomain[], pageOf: (domain: PagingDomain) => bigint): bigint {
    let alignment = this.largePages ? 1n : PAGE;
    for (const domain of domains) alignment = maxOf(alignment, pageOf(domain));
    for (const holder of this.#holders) alignment = maxOf(alignment, holder.alignment);
    return alignment;
  }

  #alignmentAt(iova: bigint, domains = this.domains): bigint {
    const at = Number(iova);
    return this.#alignmentWith(domains, (domain) => smallestPageAt(domain, at));
  }

  #requireAllAligned(domains: readonly PagingDomain[]): void {
    if (this.#alignmentWith(domains, coarsestPage) <= this.#alignment && !this.#graded) return;
    for (const area of this.#areas) {
      const alignment = this.#alignmentAt(area.iova, domains);
      if (!isAligned(area, area.iova, alignment))
        throw new LinuxError(
          "EADDRINUSE",
          `the area ${showArea(area)} is not aligned to ${hex(alignment)}, as it would have to be from now on`,
          this.#name(),
        );
    }
  }

  #requireAligned(pieces: readonly Piece[], from: bigint): void {
    if (this.#alignment === 1n) return;
    let iova = from;
    for (const piece of pieces) {
      const alignment = this.#graded ? this.#alignmentAt(iova) : this.#alignment;
      if (!isAligned(piece, iova, alignment))
        throw new LinuxError(
          "EINVAL",
          `iova ${hex(iova)}, length ${hex(piece.length)} and the memory's offset ${hex(piece.start)} must be multiples of ${hex(alignment)}, ` +
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
    const area = this.#areas.in(range);
    if (area)
      throw new LinuxError(
        "EEXIST",
        `IOVAs ${showRange(range)} overlap the area ${showArea(area)}; it must be unmapped first`,
        this.#name(),
      );
  }

  /** No access has it pinned. False: they were told, and some pin it still. */
  #quiesce(area: Area): boolean {
    if (area.accesses === 0) return true;
    area.leaving = true;
    this.#leaving.add(area);
    for (const holder of this.#holders) holder.unmap(area.iova, area.length);
    return area.accesses === 0;
  }

  #insert(area: Area): void {
    this.#areas.add(area);
    area.pages.retain(this);
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

  /** It is not in the map any more, and domains do not map it. */
  #drop(area: Area): void {
    this.#leaving.delete(area);
    area.pages.drop(this);
    const { live, events } = this.#context.system;
    live.areas -= 1;
    if (events.on) events.emit("unmap", { ioas: this.#name(), iova: area.iova, length: area.length });
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
