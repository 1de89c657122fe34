/** What came of a frame is found, whatever was added and removed before; a literal map says the same. */
import fc from "fast-check";
import { expect, it } from "vitest";
import { SourceIndex } from "./source-index.ts";

it("agrees with a map of items, over random additions, removals and sweeps", () => {
  const step = fc.record({
    what: fc.constantFrom("add", "add", "add", "remove", "sweep"),
    item: fc.nat(2000),
    frame: fc.nat(30),
    count: fc.integer({ min: 1, max: 20 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const index = new SourceIndex();
      const model = new Map<number, number>();
      for (const { what, item, frame, count } of steps) {
        const known = model.get(item);
        if (what !== "sweep") {
          if (known !== undefined) index.remove(item, known);
          model.delete(item);
          if (what === "remove") continue;
          index.add(item, frame);
          model.set(item, frame);
          continue;
        }
        const frames = new Set(model.values()).size;
        expect(index.frames).toBe(frames);
        const taken: number[] = [];
        const looked = index.sweep(frame, frame + count, (one) => {
          index.remove(one, model.get(one)!);
          taken.push(one);
        });
        expect(looked).toBe(Math.min(count, frames));
        const expected = [...model].filter(([, at]) => at >= frame && at < frame + count);
        expect(taken.sort((a, b) => a - b)).toEqual(expected.map(([one]) => one).sort((a, b) => a - b));
        for (const one of taken) model.delete(one);
      }
    }),
  );
});
