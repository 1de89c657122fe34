/**
 * Nested walks (tables of processors of four levels over four of VT-d's second stage, or of AMD-Vi's host tables) by the
 * generated walkers, without and with the cache of guest addresses, against the walk in C of VT-d's tables without a cache
 * (`c/nested.c`).
 */
import { Banks } from "../src/memory/banks.ts";
import { amdV1 } from "../src/pagetable/amdv1.ts";
import type { PageTableFormat } from "../src/pagetable/format.ts";
import { Permission } from "../src/pagetable/format.ts";
import { GuestCache } from "../src/pagetable/guest-cache.ts";
import { Mapper } from "../src/pagetable/mapper.ts";
import { compileCachedNested, compileNested, NestedResult } from "../src/pagetable/nested.ts";
import { vtdFirstLevel } from "../src/pagetable/vtd-first-level.ts";
import { vtdSecondLevel } from "../src/pagetable/vtd-second-level.ts";
import { x86Paging } from "../src/pagetable/x86-64.ts";
import { Baseline, type Comparison, compareApart, type Prepared } from "./measure.ts";
import { accessesOf, atRandom, BASE, inCache, PAGE, TARGET, walkingSide } from "./pages.ts";
import type { BenchRow } from "./row.ts";

const GUEST_DATA = 2 ** 32;
/** Guest tables lie at their host address and this. */
const GUEST_TABLES = 2 ** 36;
const NEED = Permission.read | Permission.write | Permission.user;

/** Tables of both stages; the first's entries are those of processors. */
interface Family {
  readonly first: PageTableFormat;
  readonly second: PageTableFormat;
}
const vtd: Family = {
  first: vtdFirstLevel(4, { hostAddressWidth: 46 }),
  second: vtdSecondLevel(4, { hostAddressWidth: 46 }),
};
const amd: Family = { first: x86Paging(4), second: amdV1(4) };

/** A first stage whose tables, at guest addresses, are known to the second. */
class Guest {
  readonly lower: Mapper;
  readonly root: number;
  readonly #memory: Banks;

  constructor(memory: Banks, { second }: Family) {
    this.#memory = memory;
    this.lower = new Mapper(memory, second);
    this.root = this.#table();
  }

  #table(): number {
    const host = this.#memory.allocate(1);
    this.lower.map(GUEST_TABLES + host, host, PAGE, 3);
    return GUEST_TABLES + host;
  }

  map(iova: number, guest: number, pa: number): void {
    const memory = this.#memory;
    let table = this.root;
    for (let shift = 39; shift > 12; shift -= 9) {
      const at = table - GUEST_TABLES + (Math.floor(iova / 2 ** shift) % 512) * 8;
      memory.load64(at);
      let next = memory.hi * 2 ** 32 + ((memory.lo & ~0xfff) >>> 0);
      if (next === 0) {
        next = this.#table();
        memory.store64(at, (next | 0x27) >>> 0, Math.floor(next / 2 ** 32));
      }
      table = next;
    }
    const at = table - GUEST_TABLES + (Math.floor(iova / PAGE) % 512) * 8;
    memory.store64(at, (guest | 0x67) >>> 0, Math.floor(guest / 2 ** 32));
    if (this.lower.physical(guest) < 0) this.lower.map(guest, pa, PAGE, 3);
  }
}

interface Case {
  readonly name: string;
  readonly family: Family;
  readonly pages: Uint32Array;
  readonly operations: number;
  /** Of the walk, and of the one that remembers guest addresses. */
  readonly targets: readonly [number, number];
}

const prepare = ({ name, family, pages, operations, targets }: Case): Prepared => {
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 26 }] });
  const guest = new Guest(memory, family);
  for (const page of pages) guest.map(BASE + page * PAGE, GUEST_DATA + page * PAGE, TARGET + page * PAGE);
  const c = new Baseline("nested");
  c.action("prepare", "uint32_t *", "uint32_t")(pages, pages.length);
  const baseline = c.side("walks");
  const accesses = accessesOf(pages);
  const cache = new GuestCache(1);
  const roots = { memory, root: guest.root, lower: guest.lower.root, need: NEED };
  const comparison = (title: string, call: string, walk: object, target: number): Comparison => ({
    name: title,
    ours: walkingSide(title, call, accesses, { ...roots, ...walk, cache, out: new NestedResult() }),
    baseline,
    items: pages.length,
    operations,
    target,
  });
  const remembering = `${name}, guest addresses remembered`;
  return {
    comparisons: [
      comparison(
        name,
        "walk(memory, root, lower, lo, hi, need, out)",
        { walk: compileNested(family) },
        targets[0],
      ),
      comparison(
        remembering,
        "walk(memory, root, lower, lo, hi, need, out, cache, cache.tag(0))",
        { walk: compileCachedNested(family) },
        targets[1],
      ),
    ],
    close: () => memory.close(),
  };
};

/** `many`: how many pages at random. */
export const nestedComparisons = (many = 100_000): Prepared => {
  const prepared = [
    prepare({
      ...{ name: "nested walk, in cache", family: vtd, pages: inCache, operations: 40_000 },
      targets: [1.5, 1],
    }),
    prepare({
      ...{ name: "nested walk of AMD-Vi's, in cache", family: amd, pages: inCache, operations: 40_000 },
      targets: [1.5, 1],
    }),
    prepare({
      name: `nested walk, ${many} random pages`,
      family: vtd,
      pages: atRandom(many),
      operations: 20_000,
      targets: [1.3, 1.3],
    }),
  ];
  return {
    comparisons: prepared.flatMap(({ comparisons }) => comparisons),
    close: () => {
      for (const { close } of prepared) close();
    },
  };
};

/** Needs `cc`. */
export const nestedBench = (): BenchRow[] => compareApart(import.meta.url, "nestedComparisons");
