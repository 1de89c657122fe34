import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Banks } from "../memory/banks.ts";
import { explainNested } from "./explain-nested.ts";
import { Permission, WalkFault } from "./format.ts";
import { GuestCache, PAGE_ENTRIES, TABLE_ENTRIES } from "./guest-cache.ts";
import { Mapper } from "./mapper.ts";
import { describeNested } from "./nested.suite.ts";
import { compileCachedNested, compileNested, NestedResult, nestedSource } from "./nested.ts";
import { vmsaStage1, vmsaStage2 } from "./vmsa.ts";
import { vtdFirstLevel } from "./vtd-first-level.ts";
import { vtdSecondLevel } from "./vtd-second-level.ts";
import { x86Paging } from "./x86-64.ts";

describeNested("VT-d 4 over 4 levels", () => ({
  first: vtdFirstLevel(4, { hostAddressWidth: 46 }),
  second: vtdSecondLevel(4, { hostAddressWidth: 46 }),
}));
describeNested("VT-d 5 over 3 levels, extended accessed, dirty tracking", () => ({
  first: vtdFirstLevel(5, { extendedAccessed: true }),
  second: vtdSecondLevel(3, { accessedDirty: true }),
}));
describeNested("x86-64 without accessed bits over 5 levels, 4 KiB pages", () => ({
  first: x86Paging(4, { accessedDirty: false, pageLg2s: [12] }),
  second: vtdSecondLevel(5, { pageLg2s: [12] }),
}));
describeNested("a second stage over a second stage", () => ({
  first: vtdSecondLevel(3, { accessedDirty: true }),
  second: vtdSecondLevel(4),
}));
describeNested("VMSAv8-64 64K over concatenated 4K tables, dirty state in both", () => ({
  first: vmsaStage1({ granuleLg2: 16, inputBits: 42, outputBits: 40, updates: "dirty" }),
  second: vmsaStage2({ granuleLg2: 12, inputBits: 40, outputBits: 44, updates: "dirty" }),
}));
describeNested("VMSAv8-64 4K over 16K", () => ({
  first: vmsaStage1({ granuleLg2: 12, inputBits: 39, outputBits: 40 }),
  second: vmsaStage2({ granuleLg2: 14, inputBits: 40, outputBits: 44 }),
}));

const first = vtdFirstLevel(4);
const second = vtdSecondLevel(4);

describe("a nested walker", () => {
  let memory: Banks;
  beforeAll(() => {
    memory = new Banks({ ram: [{ start: 0, length: 2 ** 24 }] });
  });
  afterAll(() => memory.close());

  /** A first stage with these leaves by level over a second with pages of the given sizes; guest = host + 1 GiB · k. */
  const build = (firstLg2: number, secondLg2: number) => {
    const lower = new Mapper(memory, second);
    const guestTable = 2 ** 40;
    const tables = Array.from({ length: 4 }, () => memory.allocate(1));
    for (const [at, host] of tables.entries()) lower.map(guestTable + at * 4096, host, 4096, 3);
    const depth = 4 - (firstLg2 - 12) / 9;
    for (let at = 0; at < depth; at++) {
      const last = at === depth - 1;
      const entry = last ? 2 ** 35 + 0x7 + (firstLg2 > 12 ? 0x80 : 0) : guestTable + (at + 1) * 4096 + 7;
      memory.store64(tables[at]!, entry % 2 ** 32, Math.floor(entry / 2 ** 32));
    }
    const bytes = 2 ** secondLg2;
    lower.map(2 ** 35, 2 ** 36, bytes, 3);
    const free = () => {
      for (const table of tables) memory.free(table, 1);
      lower.destroy();
    };
    return { lower, root: guestTable, free };
  };

  it("maps the smaller of both leaves, for all sizes of both", () => {
    const plain = compileNested({ first, second });
    const cached = compileCachedNested({ first, second });
    const cache = new GuestCache(1);
    const out = new NestedResult();
    for (const firstLg2 of [12, 21, 30])
      for (const secondLg2 of [12, 21, 30]) {
        const { lower, root, free } = build(firstLg2, secondLg2);
        const least = Math.min(firstLg2, secondLg2);
        for (const walk of [
          () => plain(memory, root, lower.root, 0x123, 0, Permission.read, out),
          () => cached(memory, root, lower.root, 0x123, 0, Permission.read, out, cache, cache.tag(0)),
          () => cached(memory, root, lower.root, 0x123, 0, Permission.read, out, cache, cache.tag(0)),
        ]) {
          expect(walk()).toBe(WalkFault.none);
          expect([out.pa, out.lg2, out.span]).toEqual([2 ** 36 + 0x123, least, 2 ** least - 0x123]);
        }
        cache.invalidateAll();
        free();
      }
  });

  it("explains fetch by fetch: four for every entry of the first stage, and four for the page", () => {
    const { lower, root, free } = build(12, 12);
    const steps = [...explainNested({ first, second }, memory, root, lower.root, 0x123n, Permission.read)];
    const fetched = steps.filter(({ address }) => address !== undefined).map(({ what }) => what);
    const below = ["SS-PML4E", "SS-PDPE", "SS-PDE", "SS-PTE"];
    // The accessed bits are not set yet: each of the four entries is asked about once more, tables at once.
    expect(fetched).toEqual([
      ...["FS-PML4E", "FS-PDPE", "FS-PDE"].flatMap((what) => [...below, what, ...below]),
      ...below,
      "FS-PTE",
      ...below,
      ...below,
    ]);
    expect(steps[0]).toMatchObject({ what: "guest address 0x10000000000" });
    free();
  });

  it("uses what the cache says until it is told to forget, by page, by stage, or all", () => {
    const cached = compileCachedNested({ first, second });
    const cache = new GuestCache(2);
    const out = new NestedResult();
    const { lower, root, free } = build(12, 12);
    const at = () => {
      const fault = cached(memory, root, lower.root, 0, 0, Permission.read, out, cache, cache.tag(1));
      return fault ? "fault" : out.pa;
    };
    const forget = [
      () => cache.invalidateRange(1, 0, 2 ** 3, 12),
      () => cache.invalidateRange(1, 0, 2 ** 3, 18),
      () => cache.invalidateRange(1, 0, 2 ** 3, 40),
      () => cache.invalidateStage(1),
      () => cache.invalidateAll(),
    ];
    for (const [index, how] of forget.entries()) {
      const before = 2 ** 36 + index * 4096;
      expect(at()).toBe(before);
      lower.unmap(2 ** 35, 4096);
      lower.map(2 ** 35, before + 4096, 4096, 3);
      cache.invalidateStage(0);
      cache.invalidateRange(1, 0x1000_1000, 2 ** 3, 12);
      expect(at()).toBe(before);
      how();
      expect(at()).toBe(before + 4096);
    }
    free();
  });

  it("its cache begins again when the tags are used up", () => {
    const cached = compileCachedNested({ first, second });
    const cache = new GuestCache(1, 4);
    const out = new NestedResult();
    const { lower, root, free } = build(12, 12);
    for (let round = 0; round < 10; round++) {
      const pa = 2 ** 36 + round * 4096;
      if (round) {
        lower.unmap(2 ** 35, 4096);
        lower.map(2 ** 35, pa, 4096, 3);
        cache.invalidateStage(0);
      }
      cached(memory, root, lower.root, 0, 0, Permission.read, out, cache, cache.tag(0));
      expect(out.pa).toBe(pa);
      expect(cache.tag(0)).toBeLessThan(4);
    }
    expect(cache.words.length).toBe((TABLE_ENTRIES + PAGE_ENTRIES) * 8);
    free();
  });

  it("is text for people", () => {
    const source = nestedSource({ first, second }, true);
    for (const { name } of first.levels) expect(source).toContain(name);
  });
});
