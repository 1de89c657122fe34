import { expect, it } from "vitest";
import { formatWalk, type Walk } from "./walk.ts";

const entry = {
  what: "SS-PTE",
  level: 1,
  address: "0xa080",
  value: "0x4000000803",
  fields: [
    { name: "R", value: "0x1", meaning: "read" },
    { name: "IGN", value: "0x0", meaning: "ignored" },
    { name: "ADDR", value: "0x4000000000", meaning: "page" },
  ],
  note: "a page",
};
const told = (outcome: Walk["steps"][number]): Walk => ({
  device: "0000:01:00.0",
  unit: "dmar0",
  iova: "0x10000",
  access: "write",
  steps: [entry, outcome],
});

it("a walk is told with every entry, its address, its fields, and how it ended", () => {
  const lines = formatWalk(
    told({ what: "outcome", outcome: { ok: true, pa: "0x4000000000", span: 4096 }, note: "as entered" }),
  );
  expect(lines).toEqual([
    "0000:01:00.0 writes 0x10000 through dmar0",
    "",
    "SS-PTE, level 1 at 0xa080 is 0x4000000803",
    "    R     0x1           read",
    "    ADDR  0x4000000000  page",
    "  → a page",
    "",
    "reaches host physical 0x4000000000, and 0x1000 bytes from there on",
    "  as entered",
  ]);
});

it("a refused access ends with the reason", () => {
  const lines = formatWalk(
    told({ what: "outcome", outcome: { ok: false, code: 5, reason: "W = 0 denies write" } }),
  );
  expect(lines.at(-1)).toBe("refused: W = 0 denies write");
});

it("a walk of a PASID says so", () => {
  const step = told({ what: "outcome", outcome: { ok: false, code: 89, reason: "not present" } });
  expect(formatWalk({ ...step, pasid: 7 })[0]).toBe("0000:01:00.0 with PASID 7 writes 0x10000 through dmar0");
});
