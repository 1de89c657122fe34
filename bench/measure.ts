/**
 * How two sides that do the same are compared: in one process and one thread, in turns of a few milliseconds, so that what
 * else the computer does falls on both; in processor time of the thread. The C of a baseline is compiled to a library and
 * called here. Every round the sides' checksums must agree: neither does less than the other, and nothing is optimised away.
 * All of it again in several processes: where code and memory come to lie, and what is compiled into what, differs from one to
 * the next and moves a figure of nanoseconds by half. What is reported is the middle one of all processes' medians.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import { type BenchRow, median } from "./row.ts";

/** Does `count` operations on its items, the first of them on item `from`, and returns a checksum of the answers. */
export type Side = (from: number, count: number) => number;

export interface Comparison {
  readonly name: string;
  readonly ours: Side;
  readonly baseline: Side;
  /** Items that the operations go through, over and over. */
  readonly items: number;
  /** Operations of a round, of either side. */
  readonly operations: number;
  readonly target?: number;
}

/** Comparisons, and what to do when they are no longer needed. */
export interface Prepared {
  readonly comparisons: readonly Comparison[];
  close(): void;
}

const ROUNDS = 9;
const PROCESSES = 7;
/** Operations of one call of a side: so many that a call of C does not count. */
const PART = 10_000;
/** Of one call of a function of ours: so few that it is compiled as a whole, and not amid its loop. */
const OUR_PART = 500;
/** Operations of ours before the first round. */
const WARM = 300_000;

const CLOCK_THREAD_CPUTIME_ID = 3;
const clockGettime = koffi.load(null).func("clock_gettime", "int", ["int", "_Out_ int64_t *"]);
const time = new BigInt64Array(2);

/** Nanoseconds of processor time that this thread has used. */
export const threadNanoseconds = (): number => {
  clockGettime(CLOCK_THREAD_CPUTIME_ID, time);
  return Number(time[0]) * 1e9 + Number(time[1]);
};

/** Nanoseconds of processor time that each of `count` things took. */
export const elapsed = (action: () => void, count: number): number => {
  const start = threadNanoseconds();
  action();
  return (threadNanoseconds() - start) / count;
};

/** The functions of a C file of `c/`: compiled as its baseline is to be, and loaded. Needs `cc`. */
export class Baseline {
  readonly #library: ReturnType<typeof koffi.load>;

  constructor(name: string) {
    const folder = mkdtempSync(join(tmpdir(), "softiommu-bench-"));
    try {
      const library = join(folder, `${name}.so`);
      const source = fileURLToPath(new URL(`c/${name}.c`, import.meta.url));
      const flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC"];
      execFileSync("cc", [...flags, "-o", library, source]);
      this.#library = koffi.load(library);
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  /** A function without result. */
  action(name: string, ...parameters: string[]): (...values: unknown[]) => void {
    return this.#library.func(name, "void", parameters);
  }

  /** A side that is a function (from, count) → checksum. */
  side(name: string): Side {
    return this.#library.func(name, "double", ["uint32_t", "uint32_t"]);
  }
}

/** A side of ours, called often. */
export const inParts =
  (items: number, side: Side): Side =>
  (from, count) => {
    let sum = 0;
    for (let done = 0; done < count; done += OUR_PART)
      sum += side((from + done) % items, Math.min(OUR_PART, count - done));
    return sum;
  };

/** One round of a side: `operations` operations in parts, from item `from` on. */
export const performed = (side: Side, items: number, from: number, operations: number): number => {
  let sum = 0;
  for (let done = 0; done < operations; done += PART)
    sum += side((from + done) % items, Math.min(PART, operations - done));
  return sum;
};

/** The sides' checksums over the same operations. Throws when they differ. */
const agree = ({ name }: Comparison, ours: number, baseline: number): void => {
  if (ours !== baseline) throw new Error(`${name}: ours answers ${ours}, the baseline ${baseline}`);
};

export const compare = (comparison: Comparison): BenchRow => {
  const { name, items, operations, target } = comparison;
  const figures = { ours: [] as number[], baseline: [] as number[] };
  performed(comparison.ours, items, 0, Math.max(WARM, operations));
  for (let round = 0; round < ROUNDS; round++) {
    const from = (round * operations) % items;
    const sums = (["baseline", "ours"] as const).map((which) => {
      const start = threadNanoseconds();
      const sum = performed(comparison[which], items, from, operations);
      figures[which].push((threadNanoseconds() - start) / operations);
      return sum;
    });
    agree(comparison, sums[1]!, sums[0]!);
  }
  const ratio = median(figures.ours.map((ours, round) => ours / figures.baseline[round]!));
  const [ours, baseline] = [median(figures.ours), median(figures.baseline)];
  return { name, ours, baseline, unit: "ns", ratio, ...(target !== undefined && { target }) };
};

/** In this process: every comparison that a file of this folder exports under a name. */
export const compareHere = async (file: string, name: string): Promise<BenchRow[]> => {
  const exports: Record<string, () => Prepared> = await import(file);
  const { comparisons, close } = exports[name]!();
  try {
    return comparisons.map(compare);
  } finally {
    close();
  }
};

/** In processes of their own, one after the other. */
export const compareApart = (file: string, name: string): BenchRow[] => {
  const script = `const { compareHere } = await import(${JSON.stringify(import.meta.url)});
    console.log(JSON.stringify(await compareHere(${JSON.stringify(file)}, ${JSON.stringify(name)})));`;
  const processes = Array.from({ length: PROCESSES }, () => {
    const output = execFileSync(process.execPath, ["--input-type=module", "-e", script], {
      encoding: "utf8",
    });
    return JSON.parse(output) as BenchRow[];
  });
  const middle = (index: number, figure: "ours" | "baseline" | "ratio"): number =>
    median(processes.map((rows) => rows[index]![figure]));
  return processes[0]!.map((row, index) => ({
    ...row,
    ours: middle(index, "ours"),
    baseline: middle(index, "baseline"),
    ratio: middle(index, "ratio"),
  }));
};
