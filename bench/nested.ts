/**
 * Nested walks (VT-d first stage of four levels over a second of four) by the generated walkers, without and with the cache
 * of guest addresses, against the same walk in C without a cache (`c/nested.c`). Processor time; medians of interleaved
 * rounds in one run.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Random } from "../src/base/clock.ts";
import { Banks } from "../src/memory/banks.ts";
import { Permission } from "../src/pagetable/format.ts";
import { GuestCache } from "../src/pagetable/guest-cache.ts";
import { Mapper } from "../src/pagetable/mapper.ts";
import { compileCachedNested, compileNested, NestedResult } from "../src/pagetable/nested.ts";
import { vtdFirstLevel } from "../src/pagetable/vtd-first-level.ts";
import { vtdSecondLevel } from "../src/pagetable/vtd-second-level.ts";
import { type BenchRow, median } from "./row.ts";

const ROUNDS = 5;
const PAGE = 4096;
const BASE = 2 ** 30;
const GUEST_DATA = 2 ** 32;
const TARGET = 2 ** 33;
/** Guest tables lie at their host address and this. */
const GUEST_TABLES = 2 ** 36;
const NEED = Permission.read | Permission.write | Permission.user;

const first = vtdFirstLevel(4, { hostAddressWidth: 46 });
const second = vtdSecondLevel(4, { hostAddressWidth: 46 });
const plain = compileNested({ first, second });
const cached = compileCachedNested({ first, second });

interface Case {
  readonly name: string;
  readonly pages: number;
  readonly span: number;
  readonly walks: number;
}
const cases: readonly Case[] = [
  { name: "nested walk, in cache", pages: 64, span: 64, walks: 1_000_000 },
  { name: "nested walk, 100k random pages", pages: 100_000, span: 2 ** 20, walks: 500_000 },
];

/** A first stage whose tables, at guest addresses, are known to the second. */
class Guest {
  readonly lower: Mapper;
  readonly root: number;
  readonly #memory: Banks;

  constructor(memory: Banks) {
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

const processorNanoseconds = (action: () => void, count: number): number => {
  const start = process.cpuUsage();
  action();
  const { user, system } = process.cpuUsage(start);
  return ((user + system) * 1000) / count;
};

const measure = (program: string, { name, pages, span, walks }: Case): BenchRow[] => {
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 26 }] });
  try {
    const guest = new Guest(memory);
    const random = new Random(1);
    const [los, his] = [new Uint32Array(pages), new Uint32Array(pages)];
    for (let i = 0; i < pages; i++) {
      const page = pages === span ? i : random.below(span);
      const iova = BASE + page * PAGE;
      guest.map(iova, GUEST_DATA + page * PAGE, TARGET + page * PAGE);
      los[i] = (iova + 64) % 2 ** 32;
      his[i] = (iova + 64) / 2 ** 32;
    }
    const out = new NestedResult();
    const cache = new GuestCache(1);
    const { root } = guest;
    const lower = guest.lower.root;
    const walkPlain = (count: number) => {
      let sum = 0;
      for (let i = 0, next = 0; i < count; i++) {
        if (plain(memory, root, lower, los[next]!, his[next]!, NEED, out) !== 0)
          throw new Error("it faulted");
        sum += out.pa;
        if (++next === pages) next = 0;
      }
      return sum;
    };
    const walkCached = (count: number) => {
      let sum = 0;
      for (let i = 0, next = 0; i < count; i++) {
        const tag = cache.tag(0);
        const fault = cached(memory, root, lower, los[next]!, his[next]!, NEED, out, cache, tag);
        if (fault !== 0) throw new Error("it faulted");
        sum += out.pa;
        if (++next === pages) next = 0;
      }
      return sum;
    };
    const figures = { plain: [] as number[], cached: [] as number[], baseline: [] as number[] };
    walkPlain(300_000);
    walkCached(300_000);
    for (let round = 0; round < ROUNDS; round++) {
      const text = execFileSync(program, [`${pages}`, `${span}`, `${walks}`], { encoding: "utf8" });
      figures.baseline.push(Number(text));
      figures.plain.push(processorNanoseconds(() => walkPlain(walks), walks));
      figures.cached.push(processorNanoseconds(() => walkCached(walks), walks));
    }
    const baseline = median(figures.baseline);
    const row = (title: string, ours: number): BenchRow => ({
      name: title,
      ours,
      baseline,
      unit: "ns",
      ratio: ours / baseline,
    });
    return [
      row(name, median(figures.plain)),
      row(`${name}, guest addresses remembered`, median(figures.cached)),
    ];
  } finally {
    memory.close();
  }
};

/** Needs `cc`. */
export const nestedBench = async (): Promise<BenchRow[]> => {
  const folder = mkdtempSync(join(tmpdir(), "softiommu-bench-"));
  try {
    const program = join(folder, "nested");
    const source = fileURLToPath(new URL("c/nested.c", import.meta.url));
    execFileSync("cc", ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", program, source]);
    return cases.flatMap((one) => measure(program, one));
  } finally {
    rmSync(folder, { recursive: true });
  }
};
