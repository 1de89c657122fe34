import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { holds, type IovaRange, intersect, without, withoutReserved } from "./iova-ranges.ts";

const LIMIT = 40;
/** A set as sorted disjoint ranges, from the flags of its members. */
const rangesOf = (members: readonly boolean[]): IovaRange[] => {
  const ranges: { start: number; end: number }[] = [];
  members.forEach((member, at) => {
    if (!member) return;
    const last = ranges.at(-1);
    if (last?.end === at) last.end = at + 1;
    else ranges.push({ start: at, end: at + 1 });
  });
  return ranges;
};
const has = (ranges: readonly IovaRange[], at: number) =>
  ranges.some(({ start, end }) => start <= at && at < end);
const set = fc.array(fc.boolean(), { minLength: LIMIT, maxLength: LIMIT });

describe("ranges of IOVAs", () => {
  it("intersect and without agree with sets of addresses", () => {
    fc.assert(
      fc.property(set, set, fc.nat(LIMIT), fc.nat(LIMIT), (a, b, x, y) => {
        const [ra, rb] = [rangesOf(a), rangesOf(b)];
        const [from, to] = [Math.min(x, y), Math.max(x, y)];
        const both = intersect(ra, rb);
        const left = without(ra, from, to);
        for (let at = 0; at < LIMIT; at += 1) {
          expect(has(both, at)).toBe(a[at]! && b[at]!);
          expect(has(left, at)).toBe(a[at]! && !(at >= from && at < to));
        }
        for (const range of [...both, ...left]) expect(range.start).toBeLessThan(range.end);
      }),
    );
  });

  it("a range is held only by one range of the set", () => {
    const ranges = [
      { start: 0, end: 8 },
      { start: 8, end: 16 },
    ];
    expect(holds(ranges, 0, 8)).toBe(true);
    expect(holds(ranges, 4, 12)).toBe(false);
  });

  it("all of 64 bits can be said, and relaxable regions stay", () => {
    const all = [{ start: 0, end: 2 ** 64 }];
    expect(
      withoutReserved(all, [
        { start: 0x1000, length: 0x1000, kind: "direct-relaxable" },
        { start: 0xfee0_0000, length: 0x10_0000, kind: "msi" },
        { start: 2 ** 64 - 4096, length: 4096, kind: "reserved" },
      ]),
    ).toEqual([
      { start: 0, end: 0xfee0_0000 },
      { start: 0xfef0_0000, end: 2 ** 64 - 4096 },
    ]);
  });
});
