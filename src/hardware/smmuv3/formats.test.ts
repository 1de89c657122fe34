import { expect, it } from "vitest";
import { nestedWalkerOf, stage1Format, stage2Format, walkerOf } from "./formats.ts";

const options = { granuleLg2: 12, inputBits: 48 } as const;

it("what says the same shares a format and its walkers", () => {
  const first = stage1Format(options);
  const second = stage2Format({ ...options, inputBits: 40 });
  expect(stage1Format({ ...options })).toBe(first);
  expect(stage1Format({ ...options, outputBits: 40 })).not.toBe(first);
  expect(walkerOf(first)).toBe(walkerOf(first));
  expect(nestedWalkerOf(first, second)).toBe(nestedWalkerOf(first, second));
});

it("however many a guest makes up, only the ones used lately are kept", () => {
  const first = stage1Format(options);
  for (let inputBits = 25; inputBits <= 48; inputBits++)
    for (const granuleLg2 of [12, 14, 16] as const)
      for (const accessFlag of [true, false]) stage1Format({ granuleLg2, inputBits, accessFlag });
  const again = stage1Format(options);
  expect(again).not.toBe(first);
  expect(again.name).toBe(first.name);
});
