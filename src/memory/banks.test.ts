import { expect, it } from "vitest";
import { createMemory } from "./banks.ts";
it("loads what was stored", () => {
  const memory = createMemory({ ramBytes: 1 << 26 });
  const pa = memory.allocate(1);
  expect(pa).toBeGreaterThan(0);
  expect(memory.store64(pa, 1, 2)).toBe(true);
  expect(memory.load64(pa)).toBe(true);
  expect([memory.lo, memory.hi]).toEqual([1, 2]);
  memory.free(pa, 1);
  memory.close();
});
