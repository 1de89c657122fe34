import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Ids } from "./ids.ts";

describe("Ids", () => {
  it("gives the lowest free number, agreeing with a plain set", () => {
    const step = fc.record({
      what: fc.constantFrom("take", "give", "claim"),
      id: fc.integer({ min: 0, max: 12 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const ids = new Ids(1, 10);
        const model = new Set<number>();
        for (const { what, id } of steps) {
          if (what === "take") {
            let lowest = 1;
            while (model.has(lowest)) lowest += 1;
            expect(ids.take()).toBe(lowest < 10 ? lowest : -1);
            if (lowest < 10) model.add(lowest);
          } else if (what === "give") {
            ids.give(id);
            model.delete(id);
          } else {
            const free = id >= 1 && id < 10 && !model.has(id);
            expect(ids.claim(id)).toBe(free);
            if (free) model.add(id);
          }
          expect(ids.inUse).toBe(model.size);
        }
      }),
    );
  });
});
