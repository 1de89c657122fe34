/**
 * Runs whole files of vectors and counts: as recorded, known deviations of the recording, failed. The command around it is
 * `npm run vectors`.
 */
import { amdviSubject } from "./amdvi.ts";
import { runVector, type SubjectFactory } from "./run.ts";
import { smmuv3Subject } from "./smmuv3.ts";
import { parseVectors, type Vector } from "./vector.ts";
import { vtdSubject } from "./vtd.ts";

const subjects: { readonly [unit: string]: SubjectFactory } = {
  vtd: vtdSubject,
  smmuv3: smmuv3Subject,
  amdvi: amdviSubject,
};

/** What became of one vector. */
export interface Verdict {
  readonly name: string;
  readonly verdict: "as recorded" | "known deviation" | "failed";
  readonly failures: readonly string[];
  /** Of a known deviation that the vector does not mark: the rules by which it was found. */
  readonly rules: readonly string[];
}

/** Runs a vector; whatever goes wrong with it is its failure. */
export const judgeVector = (vector: Vector): Verdict => {
  const { name, unit } = vector;
  const make = subjects[unit];
  const fail = (failures: readonly string[]): Verdict => ({ name, verdict: "failed", failures, rules: [] });
  if (!make) return fail([`there is no model of the unit ${unit}`]);
  try {
    const { judged, failures, rules } = runVector(vector, make);
    if (failures.length > 0) return fail(failures);
    return { name, verdict: judged === "all" ? "as recorded" : "known deviation", failures, rules };
  } catch (error) {
    return fail([(error as Error).message]);
  }
};

/** How many known deviations the recordings mark themselves, and how many each rule found; nothing when all are marked. */
const tellRules = (deviations: number, byRule: ReadonlyMap<string, readonly string[]>): string[] => {
  const unmarked = new Set([...byRule.values()].flat()).size;
  if (unmarked === 0) return [];
  return [
    `of ${deviations} known deviations ${deviations - unmarked} are marked in the recordings, ${unmarked} found by rule:`,
    ...[...byRule].map(([rule, { length }]) => `  ${length}: ${rule}`),
  ];
};

/** Lines for people about files of vectors (name and text), the sum last; and whether nothing failed. */
export const reportVectors = (
  files: readonly { readonly name: string; readonly text: string }[],
): { readonly lines: readonly string[]; readonly passed: boolean } => {
  const lines: string[] = [];
  const counts = { "as recorded": 0, "known deviation": 0, failed: 0 };
  const byRule = new Map<string, string[]>();
  for (const { name, text } of files)
    for (const vector of parseVectors(text)) {
      const { verdict, failures, rules } = judgeVector(vector);
      counts[verdict] += 1;
      for (const rule of rules) byRule.set(rule, [...(byRule.get(rule) ?? []), `${name} ${vector.name}`]);
      if (verdict !== "failed") continue;
      lines.push(`${name}: ${vector.name} failed`, ...failures.map((failure) => `  ${failure}`));
    }
  const { "as recorded": recorded, "known deviation": deviations, failed } = counts;
  const all = recorded + deviations + failed;
  lines.push(...tellRules(deviations, byRule));
  lines.push(`${all} vectors, ${recorded} as recorded, ${deviations} known deviations, ${failed} failed`);
  return { lines, passed: failed === 0 };
};
