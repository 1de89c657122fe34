/**
 * The two sides of every comparison do the same: over the same operations, from wherever they begin, their checksums are
 * equal. How fast they are is no test.
 */
import { describe, expect, it } from "vitest";
import { iotlbComparisons } from "../bench/iotlb.ts";
import type { Prepared } from "../bench/measure.ts";
import { nestedComparisons } from "../bench/nested.ts";
import { formatComparisons, walkComparisons } from "../bench/walk.ts";

const prepared: [string, () => Prepared][] = [
  ["IOTLB", iotlbComparisons],
  ["walks", () => walkComparisons(500)],
  ["walks of all formats", formatComparisons],
  ["nested walks", () => nestedComparisons(500)],
];

describe.each(prepared)("comparisons of %s", (_, prepare) => {
  it("answer the same on both sides, and something", () => {
    const { comparisons, close } = prepare();
    for (const { name, ours, baseline, items } of comparisons) {
      for (const [from, count] of [
        [0, 1],
        [0, 1000],
        [Math.min(items, 1000) - 1, 700],
      ] as const)
        expect([name, ours(from, count)]).toEqual([name, baseline(from, count)]);
      if (!name.startsWith("invalidate")) expect(ours(0, 1000)).toBeGreaterThan(0);
    }
    close();
  });
});
