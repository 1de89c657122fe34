/**
 * One-stage walks by the generated walker against the same walk in C (`c/walk.c`), in processor time so that what else the
 * computer does counts less; and runs of pages against single ones in the mapper. Medians of interleaved rounds in one run.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Random } from "../src/base/clock.ts";
import { Banks } from "../src/memory/banks.ts";
import { compileWalker } from "../src/pagetable/compile.ts";
import { Mapper } from "../src/pagetable/mapper.ts";
import { vtdSecondLevel } from "../src/pagetable/vtd-second-level.ts";
import { WalkResult } from "../src/pagetable/walker.ts";
import { type BenchRow, median } from "./row.ts";

const ROUNDS = 5;
const PAGE = 4096;
const BASE = 2 ** 30;
const TARGET = 2 ** 33;

const nanoseconds = (action: () => void, count: number): number => {
  const start = process.hrtime.bigint();
  action();
  return Number(process.hrtime.bigint() - start) / count;
};

/** Of processor time, in a batch of at least a few milliseconds. */
const processorNanoseconds = (action: () => void, count: number): number => {
  const start = process.cpuUsage();
  action();
  const { user, system } = process.cpuUsage(start);
  return ((user + system) * 1000) / count;
};

interface Case {
  readonly name: string;
  readonly pages: number;
  readonly span: number;
  readonly walks: number;
}

const cases: readonly Case[] = [
  { name: "one-stage walk, in cache", pages: 64, span: 64, walks: 4_000_000 },
  { name: "one-stage walk, 100k random pages", pages: 100_000, span: 2 ** 20, walks: 2_000_000 },
];

const format = vtdSecondLevel(4, { hostAddressWidth: 46 });
const walk = compileWalker(format);
const out = new WalkResult();

/** Walks of a part of the work: short and called often, so that what is measured was compiled as a whole, not amid its loop. */
const PART = 1000;

interface Addresses {
  readonly los: Uint32Array;
  readonly his: Uint32Array;
}

const walkPart = (memory: Banks, root: number, addresses: Addresses, from: number, to: number): number => {
  const { los, his } = addresses;
  let sum = 0;
  for (let i = from; i < to; i++) {
    if (walk(memory, root, los[i]!, his[i]!, 3, out) !== 0) throw new Error("the walk faulted");
    sum += out.pa;
  }
  return sum;
};

/** Walks all addresses over and over; the sum keeps the work from being optimised away. */
const walkAll = (memory: Banks, root: number, addresses: Addresses, walks: number): number => {
  const count = addresses.los.length;
  let sum = 0;
  for (let done = 0; done < walks; ) {
    const from = done % count;
    const part = Math.min(PART, count - from, walks - done);
    sum += walkPart(memory, root, addresses, from, from + part);
    done += part;
  }
  return sum;
};

const measureWalks = (memory: Banks, program: string, { name, pages, span, walks }: Case): BenchRow => {
  const mapper = new Mapper(memory, format);
  const random = new Random(1);
  const [los, his] = [new Uint32Array(pages), new Uint32Array(pages)];
  const mapped = new Set<number>();
  for (let i = 0; i < pages; i++) {
    const page = pages === span ? i : random.below(span);
    const iova = BASE + page * PAGE;
    if (!mapped.has(page)) mapper.map(iova, TARGET + page * PAGE, PAGE, 3);
    mapped.add(page);
    los[i] = (iova + 64) % 2 ** 32;
    his[i] = (iova + 64) / 2 ** 32;
  }
  const ours: number[] = [];
  const theirs: number[] = [];
  walkAll(memory, mapper.root, { los, his }, 500_000);
  for (let round = 0; round < ROUNDS; round++) {
    theirs.push(Number(execFileSync(program, [`${pages}`, `${span}`, `${walks}`], { encoding: "utf8" })));
    ours.push(processorNanoseconds(() => walkAll(memory, mapper.root, { los, his }, walks), walks));
  }
  mapper.destroy();
  const row = { name, ours: median(ours), baseline: median(theirs), unit: "ns" };
  return { ...row, ratio: row.ours / row.baseline };
};

/** 256 pages in one call against one page, in tables that have other content as well. */
const measureMaps = (memory: Banks): BenchRow[] => {
  const mapper = new Mapper(memory, format);
  const regions = 64;
  const at = (region: number) => BASE + region * 2 ** 21;
  for (let region = 0; region < regions; region++) mapper.map(at(region) + 2 ** 20, 0, PAGE, 3);
  const figures = { map: [[], []] as [number[], number[]], unmap: [[], []] as [number[], number[]] };
  for (let round = -1; round < ROUNDS; round++)
    [1, 256].forEach((count, which) => {
      let [mapping, unmapping] = [0, 0];
      const repeats = 500;
      for (let i = 0; i < repeats; i++) {
        mapping += nanoseconds(() => {
          for (let region = 0; region < regions; region++)
            mapper.map(at(region), TARGET + PAGE, count * PAGE, 3);
        }, regions * repeats);
        unmapping += nanoseconds(() => {
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
export const walkBench = async (): Promise<BenchRow[]> => {
  const folder = mkdtempSync(join(tmpdir(), "softiommu-bench-"));
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 26 }] });
  try {
    const program = join(folder, "walk");
    const source = fileURLToPath(new URL("c/walk.c", import.meta.url));
    execFileSync("cc", ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", program, source]);
    return [...cases.map((one) => measureWalks(memory, program, one)), ...measureMaps(memory)];
  } finally {
    memory.close();
    rmSync(folder, { recursive: true });
  }
};
