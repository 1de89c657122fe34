/**
 * `softiommu bench`: every benchmark of bench/, each figure beside its baseline of the same run. A file of bench/
 * exports functions that return rows (bench/row.ts), given the path of this command; their names end in Bench.
 */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ExitCode } from "./exit.ts";
import { print, progress } from "./output.ts";

/** As in bench/row.ts, which is no part of the installed program. */
interface Row {
  readonly name: string;
  readonly ours: number;
  readonly baseline: number;
  readonly unit: string;
  readonly ratio: number;
  readonly target?: number;
}

/** Where the build puts compiled benchmarks, seen from dist/cli. */
const BENCHES = join(import.meta.dirname, "../../dist-bench/bench");

const COMMAND = join(import.meta.dirname, "main.js");

export const bench = async (
  only: readonly string[],
  { json = false }: { json?: boolean },
): Promise<number> => {
  if (!existsSync(BENCHES))
    throw new Error("the benchmarks are not built: they run from a source checkout, with npm run bench");
  const files = readdirSync(BENCHES)
    .filter((file) => file.endsWith(".js"))
    .filter((file) => only.length === 0 || only.includes(file.slice(0, -".js".length)))
    .sort();
  const rows: Row[] = [];
  for (const file of files) {
    const exports: Record<string, unknown> = await import(pathToFileURL(join(BENCHES, file)).href);
    for (const [name, run] of Object.entries(exports).filter(([name]) => name.endsWith("Bench"))) {
      if (typeof run !== "function") continue;
      const done = progress(`measuring ${name} of ${file}`);
      const measured = ((await run(COMMAND)) as Row[]).map((row) => ({ ...row, file: file.slice(0, -3) }));
      done();
      if (!json) printRows(measured, rows.length === 0);
      rows.push(...measured);
    }
  }
  if (rows.length === 0) throw new Error(`there is no benchmark ${only.join(", ")}`);
  if (json) print(JSON.stringify(rows, undefined, 2));
  return ExitCode.ok;
};

const NAME_WIDTH = 78;
const COLUMN = 14;

export const printRows = (rows: readonly Row[], head: boolean): void => {
  if (head)
    print(
      "what".padEnd(NAME_WIDTH) +
        ["ours", "baseline", "ratio", "target"].map((title) => title.padStart(COLUMN)).join(""),
    );
  for (const { name, ours, baseline, unit, ratio, target } of rows)
    print(
      name.padEnd(NAME_WIDTH) +
        [`${figure(ours)} ${unit}`, `${figure(baseline)} ${unit}`, figure(ratio), verdict(ratio, target)]
          .map((text) => text.padStart(COLUMN))
          .join(""),
    );
};

/** The target of a ratio, and whether it is met. */
const verdict = (ratio: number, target: number | undefined): string =>
  target === undefined ? "" : `≤ ${target} ${ratio <= target ? "met" : "MISSED"}`;

/** Three significant digits, whole from 100 on. */
const figure = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
