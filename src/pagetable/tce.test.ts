import { describe, expect, it } from "vitest";
import { describeFormat } from "./format.suite.ts";
import { Permission, Protection, WalkFault } from "./format.ts";
import { goldenWalks, told, walkGolden } from "./golden.suite.ts";
import { type TceGeometry, tce, tceGeometry, tceUnfit } from "./tce.ts";

describeFormat("TCE, 1 level, 4 KiB pages", () => tce({ pageLg2: 12, levels: 1, tableLg2: 15 }));
describeFormat("TCE, 2 levels, 64 KiB pages", () => tce({ pageLg2: 16, levels: 2, tableLg2: 13 }));
describeFormat("TCE, 3 levels, 16 MiB pages", () => tce({ pageLg2: 24, levels: 3, tableLg2: 12 }));
describeFormat("TCE, 5 levels, 4 KiB pages", () => tce({ pageLg2: 12, levels: 5, tableLg2: 12 }));
describeFormat("TCE, 4 levels up to the last address bit", () =>
  tce({ pageLg2: 28, levels: 4, tableLg2: 13 }),
);

describe("golden walks of TCE tables", () => {
  it.each(goldenWalks("tce").map((walk) => [walk.name, walk] as const))("%s", (_, walk) => {
    const { access } = walk;
    const need = (access.write ? Permission.write : 0) | (access.read ? Permission.read : 0);
    const question = {
      format: tce(walk.params as unknown as TceGeometry),
      root: Number(walk.root),
      address: BigInt(access.iova),
      need,
    };
    const end = walkGolden(walk, question);
    expect(end.fetched.map((at) => `0x${at.toString(16)}`)).toEqual(walk.fetches);
    expect(told(question, end)).toEqual(walk.expect);
  });
});

describe("TCE tables", () => {
  it("say what is possible", () => {
    expect(tceUnfit({ pageLg2: 12, levels: 1, tableLg2: 12 })).toBeUndefined();
    expect(tceUnfit({ pageLg2: 11, levels: 1, tableLg2: 12 })).toMatch(/2\^12 to/);
    expect(tceUnfit({ pageLg2: 52, levels: 1, tableLg2: 12 })).toMatch(/2\^51/);
    for (const levels of [0, 6]) expect(tceUnfit({ pageLg2: 12, levels, tableLg2: 12 })).toMatch(/1 to 5/);
    for (const tableLg2 of [11, 32])
      expect(tceUnfit({ pageLg2: 12, levels: 1, tableLg2 })).toMatch(/tables of/);
    expect(tceUnfit({ pageLg2: 30, levels: 5, tableLg2: 12 })).toMatch(/64 address bits/);
    expect(() => tce({ pageLg2: 30, levels: 5, tableLg2: 12 })).toThrow(RangeError);
  });

  it("are as small as the window allows", () => {
    // 2 GiB in pages of 4 KiB: 2^19 entries.
    expect(tceGeometry(31, 12, 1)).toEqual({ pageLg2: 12, levels: 1, tableLg2: 22 });
    expect(tceGeometry(31, 12, 2)).toEqual({ pageLg2: 12, levels: 2, tableLg2: 13 });
    expect(tceGeometry(31, 24, 1)).toEqual({ pageLg2: 24, levels: 1, tableLg2: 12 });
    expect(tceGeometry(40, 16, 5).tableLg2).toBe(12);
  });

  it("cannot say a page without permission; caching and kind of memory make no difference", () => {
    const { leafBits } = tce({ pageLg2: 12, levels: 1, tableLg2: 12 });
    expect(leafBits(0)).toBe(-1n);
    expect(leafBits(Protection.read)).toBe(1n);
    expect(leafBits(Protection.write | Protection.noSnoop)).toBe(2n);
    expect(leafBits(Protection.read | Protection.write | Protection.mmio)).toBe(3n);
  });

  it("have no fault of their own but missing, denied, too wide and unreadable", () => {
    const { levels } = tce({ pageLg2: 12, levels: 2, tableLg2: 12 });
    const faults = levels
      .flatMap(({ leaves, tables }) => [...leaves, ...tables])
      .flatMap(({ checks }) => checks);
    expect(new Set(faults.map(({ fault }) => fault))).toEqual(new Set([WalkFault.outputWidth]));
  });
});
