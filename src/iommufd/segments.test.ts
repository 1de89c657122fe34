/** Segments against a sorted list, and what many of them cost. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../base/clock.ts";
import { PinnedRun } from "./pinned-run.ts";
import { type Segment, Segments } from "./segments.ts";

const run = new PinnedRun(
  { va: 0, pages: 0, writable: true, extents: new Float64Array(0), unpin: () => {} },
  0,
);
const segment = (first: number, last = first): Segment => ({ first, last, users: 1, run });

/** Numbers below `count` in an order of chance. */
const shuffled = (count: number): number[] => {
  const random = new Random(count);
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i -= 1) {
    const j = random.below(i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
};

describe("segments", () => {
  it("are those of a sorted list, over random insertions, searches and removals", () => {
    const slot = fc.nat(1500);
    const step = fc.oneof(
      { weight: 3, arbitrary: fc.record({ what: fc.constant("insert" as const), slot }) },
      fc.record({ what: fc.constant("remove" as const), slot, count: fc.integer({ min: 1, max: 600 }) }),
      fc.record({ what: fc.constant("walk" as const), slot }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), fc.nat(1200), (steps, before) => {
        const segments = new Segments();
        const model = new Map<number, Segment>();
        const insert = (place: number): void => {
          if (model.has(place)) return;
          const one = segment(place * 3, place * 3 + 1);
          model.set(place, one);
          segments.insert(one);
          expect(segments.current).toBe(one);
        };
        const from = (place: number): Segment[] =>
          [...model.entries()]
            .sort(([a], [b]) => a - b)
            .filter(([at]) => at >= place)
            .map(([, one]) => one);
        for (const place of shuffled(before)) insert(place);
        for (const given of steps) {
          const rest = from(given.slot);
          if (given.what === "insert") insert(given.slot);
          else if (given.what === "remove") {
            segments.seek(given.slot * 3);
            for (const one of rest.slice(0, given.count)) {
              expect(segments.current).toBe(one);
              model.delete(one.first / 3);
              segments.remove();
            }
            expect(segments.current).toBe(rest[given.count]);
          } else {
            const seen: Segment[] = [];
            for (let one = segments.seek(given.slot * 3); one; one = segments.next()) seen.push(one);
            expect(seen).toEqual(rest);
          }
        }
        expect([...segments]).toEqual(from(0));
      }),
      { numRuns: 60 },
    );
  });

  it("cost each about the same, however many there are", () => {
    const movedFor = (count: number): number => {
      const segments = new Segments();
      for (const page of shuffled(count)) segments.insert(segment(page * 2));
      for (const page of shuffled(count)) {
        segments.seek(page * 2);
        segments.remove();
      }
      expect([...segments]).toEqual([]);
      return segments.moved / count;
    };
    const [few, many] = [movedFor(2_000), movedFor(32_000)];
    expect(many).toBeLessThan(few * 2);
  });
});
