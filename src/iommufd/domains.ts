/**
 * The domains of an IOAS: each maps every area, and areas' pages are pinned while at least one domain is there. What a
 * domain maps is told to it in physically contiguous runs; without large pages, page by page.
 */
import type { PagingDomain } from "../iommu/driver.ts";
import { allocate } from "../kernel/allocations.ts";
import { LinuxError } from "../uapi/errno.ts";
import { hex, PAGE_BYTES } from "./address.ts";
import { type Area, lastOf, pageRange, release, showArea } from "./areas.ts";
import { smallestPageAt } from "./page-sizes.ts";
import { holdAll } from "./pages.ts";

/** A frame number and a count. */
const RUN_BYTES = 12;

export class Domains {
  readonly #name: () => string;
  readonly #batch: { readonly bytes: number };
  readonly #domains: PagingDomain[] = [];
  /** IOMMU_OPTION_HUGE_PAGES: runs of pages are mapped as one. */
  largePages = true;

  /** `batch`: what a list of runs may take. */
  constructor(name: () => string, batch: { readonly bytes: number }) {
    this.#name = name;
    this.#batch = batch;
  }

  get list(): readonly PagingDomain[] {
    return this.#domains;
  }
  get any(): boolean {
    return this.#domains.length > 0;
  }

  /** Pins new areas and maps them in all domains. Throws ENOMEM, EFAULT, Restart, what a domain throws; then nothing has changed. */
  map(areas: readonly Area[]): void {
    if (!this.any) return;
    allocate("a batch of pages");
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

  /** Empties all domains from the first of some areas to the last, and unpins them; what lies between must all go. */
  unmap(areas: readonly Area[]): void {
    const [first, last] = [areas[0], areas.at(-1)];
    if (!this.any || !first || !last) return;
    const length = lastOf(last) + 1n - first.iova;
    for (const domain of this.#domains) domain.unmap(Number(first.iova), Number(length));
    for (const area of areas) release(area);
  }

  /** Nothing is where the area was; it stays pinned. */
  withdraw(area: Area): void {
    for (const domain of this.#domains) domain.unmap(Number(area.iova), Number(area.length));
  }

  /** Fills an empty domain with all areas. Throws like `map`; then nothing has changed. */
  add(domain: PagingDomain, areas: Iterable<Area>): void {
    allocate("a batch of pages");
    if (!this.any) holdAll(pageRanges(areas));
    let end = 0n;
    try {
      for (const area of areas) {
        this.#mapIn(domain, area);
        end = lastOf(area) + 1n;
      }
    } catch (error) {
      if (end > 0n) domain.unmap(0, Number(end));
      if (!this.any) for (const area of areas) release(area);
      throw error;
    }
    this.#domains.push(domain);
  }

  /** Empties a domain; with the last one the areas are unpinned. */
  remove(domain: PagingDomain, areas: Iterable<Area>): void {
    this.#domains.splice(this.#domains.indexOf(domain), 1);
    empty(domain, areas);
    if (!this.any) for (const area of areas) release(area);
  }

  /** All or nothing; pages that were taken back are left out. */
  #mapIn(domain: PagingDomain, area: Area): void {
    if (area.protection === 0)
      throw new LinuxError(
        "EINVAL",
        `the area ${showArea(area)} allows neither reading nor writing, and no table entry says that`,
        this.#name(),
      );
    if (area.pages.taken) return;
    const first = Number(area.iova);
    let iova = first;
    const least = Math.max(PAGE_BYTES, Number(smallestPageAt(domain, first)));
    const piece = this.largePages ? Number.POSITIVE_INFINITY : least;
    const most = Math.max(1, Math.floor(this.#batch.bytes / RUN_BYTES));
    let runs = 0;
    try {
      area.pages.physical(Number(area.start), Number(area.length), (pa, length) => {
        if (runs > 0 && runs % most === 0) allocate("a batch of pages");
        runs += 1;
        if (least > PAGE_BYTES) this.#requireWhole(area, least, pa, length);
        for (let done = 0; done < length; ) {
          const bytes = Math.min(length - done, piece - ((pa + done) % piece));
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

  /** An entry points to a page of the domain's, at a multiple of its bytes: a run of memory must be whole ones. */
  #requireWhole(area: Area, page: number, pa: number, length: number): void {
    if (pa % page === 0 && length % page === 0) return;
    throw new LinuxError(
      "EINVAL",
      `the memory of the area ${showArea(area)} does not lie in pieces of ${hex(page)} bytes on the host, and the page ` +
        "table has no smaller pages there; huge pages, or a table with smaller ones, are needed",
      this.#name(),
    );
  }
}

function* pageRanges(areas: Iterable<Area>) {
  for (const area of areas) yield pageRange(area);
}

/** Runs of adjacent areas are unmapped in one go. */
const empty = (domain: PagingDomain, areas: Iterable<Area>): void => {
  let start: bigint | undefined;
  let next = 0n;
  for (const area of areas) {
    if (start !== undefined && area.iova !== next) {
      domain.unmap(Number(start), Number(next - start));
      start = undefined;
    }
    start ??= area.iova;
    next = lastOf(area) + 1n;
  }
  if (start !== undefined) domain.unmap(Number(start), Number(next - start));
};
