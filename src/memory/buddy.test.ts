import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Buddy, ceilLg2, MAX_LG2 } from "./buddy.ts";

describe("ceilLg2", () => {
  it("is the lg2 of the next power of two", () => {
    expect([1, 2, 3, 4, 5, 512, 513].map(ceilLg2)).toEqual([0, 1, 2, 2, 3, 9, 10]);
  });
});

describe("buddy allocator", () => {
  it("hands out disjoint aligned runs inside its range, and is whole again when all came back", () => {
    const action = fc.oneof(
      fc.record({ take: fc.integer({ min: 0, max: 6 }) }),
      fc.record({ give: fc.nat(1000) }),
    );
    fc.assert(
      fc.property(fc.nat(70), fc.integer({ min: 1, max: 700 }), fc.array(action), (first, count, actions) => {
        const buddy = new Buddy(first, count);
        const taken: { frame: number; lg2: number }[] = [];
        const used = new Set<number>();
        for (const one of actions) {
          if ("take" in one) {
            const frame = buddy.allocate(one.take);
            if (frame < 0) continue;
            let sound = frame % 2 ** one.take === 0;
            for (let i = frame; i < frame + 2 ** one.take; i++) {
              sound &&= i >= first && i < first + count && !used.has(i);
              used.add(i);
            }
            expect(sound).toBe(true);
            taken.push({ frame, lg2: one.take });
          } else if (taken.length > 0) {
            const [{ frame, lg2 }] = taken.splice(one.give % taken.length, 1) as [(typeof taken)[0]];
            buddy.free(frame, lg2);
            for (let i = frame; i < frame + 2 ** lg2; i++) used.delete(i);
          }
        }
        for (const { frame, lg2 } of taken) buddy.free(frame, lg2);
        const singles = Array.from({ length: count }, () => buddy.allocate(0));
        expect(singles.filter((frame) => frame >= first)).toHaveLength(count);
        expect(buddy.allocate(0)).toBe(-1);
      }),
      { numRuns: 200 },
    );
  });

  it("gives a whole bank as one run", () => {
    const buddy = new Buddy(2 ** MAX_LG2, 2 ** MAX_LG2);
    expect(buddy.allocate(MAX_LG2)).toBe(2 ** MAX_LG2);
    expect(buddy.allocate(0)).toBe(-1);
  });

  it("gives the stash up when a larger run needs its frames", () => {
    const buddy = new Buddy(0, 64);
    const frames = Array.from({ length: 64 }, () => buddy.allocate(0));
    for (const frame of frames) buddy.free(frame, 0);
    expect(buddy.allocate(6)).toBe(0);
  });

  it("throws for a run that was not handed out, or not so", () => {
    const buddy = new Buddy(0, 64);
    const frame = buddy.allocate(2);
    expect(() => buddy.free(frame, 1)).toThrow("not a run");
    expect(() => buddy.free(frame + 1, 0)).toThrow("not a run");
    buddy.free(frame, 2);
    expect(() => buddy.free(frame, 2)).toThrow("not a run");
  });
});
