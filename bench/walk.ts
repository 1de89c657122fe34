/**
 * One-stage walks by the generated walkers against the same walk in C (`c/walk.c`); the slowest format of four levels
 * against the fastest; and runs of pages against single ones in the mapper.
 */
import { Banks } from "../src/memory/banks.ts";
import { amdV1 } from "../src/pagetable/amdv1.ts";
import { compileWalker } from "../src/pagetable/compile.ts";
import { type PageTableFormat, Permission } from "../src/pagetable/format.ts";
import { Mapper } from "../src/pagetable/mapper.ts";
import { s390Dat } from "../src/pagetable/s390.ts";
import { tce } from "../src/pagetable/tce.ts";
import { vmsaStage1, vmsaStage2 } from "../src/pagetable/vmsa.ts";
import { vtdFirstLevel } from "../src/pagetable/vtd-first-level.ts";
import { vtdSecondLevel } from "../src/pagetable/vtd-second-level.ts";
import { WalkResult } from "../src/pagetable/walker.ts";
import { x86Paging } from "../src/pagetable/x86-64.ts";
import { Baseline, type Comparison, compareApart, elapsed, type Prepared, type Side } from "./measure.ts";
import { accessesOf, atRandom, BASE, inCache, PAGE, TARGET, walkingSide } from "./pages.ts";
import { type BenchRow, median } from "./row.ts";

const ROUNDS = 7;
const RW = Permission.read | Permission.write;
const second = vtdSecondLevel(4, { hostAddressWidth: 46 });

/** Walks in tables that a mapper has made for the pages. */
const walksOf = (name: string, format: PageTableFormat, memory: Banks, pages: Uint32Array): Side => {
  const mapper = new Mapper(memory, format);
  for (const page of new Set(pages)) mapper.map(BASE + page * PAGE, TARGET + page * PAGE, PAGE, RW);
  const scope = { walk: compileWalker(format), memory, root: mapper.root, need: RW, out: new WalkResult() };
  return walkingSide(name, "walk(memory, root, lo, hi, need, out)", accessesOf(pages), scope);
};

const newMemory = (): Banks => new Banks({ ram: [{ start: 0, length: 2 ** 26 }] });

/** `many`: how many pages at random. */
export const walkComparisons = (many = 100_000): Prepared => {
  const memory = newMemory();
  const comparison = (name: string, pages: Uint32Array, operations: number): Comparison => {
    const c = new Baseline("walk");
    c.action("prepare", "uint32_t *", "uint32_t")(pages, pages.length);
    const ours = walksOf(name, second, memory, pages);
    return { name, ours, baseline: c.side("walks"), items: pages.length, operations, target: 1.5 };
  };
  return {
    comparisons: [
      comparison("one-stage walk, in cache", inCache, 200_000),
      comparison(`one-stage walk, ${many} random pages`, atRandom(many), 50_000),
    ],
    close: () => memory.close(),
  };
};

/** Formats that have four levels for a page of 4 KiB and 48 bits of address, or more. */
export const fourLevels = (): PageTableFormat[] => {
  const vmsa = { granuleLg2: 12, inputBits: 48, outputBits: 48 } as const;
  const window = tce({ pageLg2: 12, levels: 4, tableLg2: 12 });
  const own = [vtdFirstLevel(4), second, x86Paging(4), amdV1(4), s390Dat(4), window];
  return [...own, vmsaStage1(vmsa), vmsaStage2(vmsa)];
};

/** Each format's walks in cache, against those of the VT-d second stage. */
export const formatComparisons = (): Prepared => {
  const memory = newMemory();
  const walks = (format: PageTableFormat, beside: string): Side =>
    walksOf(`${format.name} ${beside}`, format, memory, inCache);
  const comparisons = fourLevels().map((format): Comparison => {
    const { name } = format;
    const ours = walks(format, "itself");
    return { name, ours, baseline: walks(second, name), items: inCache.length, operations: 100_000 };
  });
  return { comparisons, close: () => memory.close() };
};

/** Without levels and widths. */
const shortName = ({ name }: BenchRow): string => name.split(",")[0]!;

/** Of all formats: the one that is slowest by the same measure, against the fastest. */
const slowestFormat = (): BenchRow => {
  const rows = compareApart(import.meta.url, "formatComparisons").sort(
    (one, other) => one.ratio - other.ratio,
  );
  const [best, worst] = [rows[0]!, rows[rows.length - 1]!];
  return {
    name: `slowest format (${shortName(worst)}) against the fastest (${shortName(best)})`,
    ours: worst.ours,
    baseline: best.ours,
    unit: "ns",
    ratio: worst.ratio / best.ratio,
    target: 1.5,
  };
};

/** 256 pages in one call against one page, in tables that have other content as well. */
const measureMaps = (memory: Banks): BenchRow[] => {
  const mapper = new Mapper(memory, second);
  const regions = 64;
  const at = (region: number) => BASE + region * 2 ** 21;
  for (let region = 0; region < regions; region++) mapper.map(at(region) + 2 ** 20, 0, PAGE, 3);
  const figures = { map: [[], []] as [number[], number[]], unmap: [[], []] as [number[], number[]] };
  for (let round = -1; round < ROUNDS; round++)
    [1, 256].forEach((count, which) => {
      let [mapping, unmapping] = [0, 0];
      const repeats = 500;
      for (let i = 0; i < repeats; i++) {
        mapping += elapsed(() => {
          for (let region = 0; region < regions; region++)
            mapper.map(at(region), TARGET + PAGE, count * PAGE, 3);
        }, regions * repeats);
        unmapping += elapsed(() => {
          for (let region = 0; region < regions; region++) mapper.unmap(at(region), count * PAGE);
        }, regions * repeats);
        mapper.release();
      }
      if (round < 0) return; // warming up
      figures.map[which]!.push(mapping);
      figures.unmap[which]!.push(unmapping);
    });
  mapper.destroy();
  return Object.entries(figures).map(([what, [one, many]]) => {
    const [baseline, ours] = [median(one), median(many)];
    const name = `${what} 256 contiguous pages, against one`;
    return { name, ours, baseline, unit: "ns", ratio: ours / baseline };
  });
};

/** Needs `cc`. */
export const walkBench = (): BenchRow[] => {
  const memory = newMemory();
  try {
    return [...compareApart(import.meta.url, "walkComparisons"), slowestFormat(), ...measureMaps(memory)];
  } finally {
    memory.close();
  }
};
