import { afterAll, describe, expect, it } from "vitest";
import { createMemory } from "../memory/banks.ts";
import { compileWalker } from "./compile.ts";
import { explainWalk } from "./explain.ts";
import { describeFormat } from "./format.suite.ts";
import { type PageTableFormat, Permission, Protection, WalkFault } from "./format.ts";
import { Mapper } from "./mapper.ts";
import { vtdFirstLevel } from "./vtd-first-level.ts";
import { WalkResult } from "./walker.ts";
import { x86Paging } from "./x86-64.ts";

describeFormat("x86-64, 4 levels", () => x86Paging(4, { physicalBits: 46 }));
describeFormat("x86-64, 5 levels, 4 KiB and 2 MiB", () => x86Paging(5, { pageLg2s: [12, 21] }));
describeFormat("x86-64 without accessed bits", () => x86Paging(4, { accessedDirty: false }));
describeFormat("VT-d first stage, 4 levels", () => vtdFirstLevel(4, { hostAddressWidth: 39 }));
describeFormat("VT-d first stage, 5 levels, EAFE", () => vtdFirstLevel(5, { extendedAccessed: true }));
describeFormat("VT-d first stage, NXE = 0, WPE = 0", () =>
  vtdFirstLevel(4, { executeDisable: false, writeProtect: false }),
);

const { read, write, execute, user } = Permission;
const memory = createMemory({ ramBytes: 2 ** 24 });
afterAll(() => memory.close());

/** A walk through one entry a level, from the root down, of index 0 or that of `address`. */
const walkOf = (format: PageTableFormat, entries: readonly bigint[], need: number, address = 0n) => {
  const frames = entries.map(() => memory.allocate(1));
  const top = format.levels.length - 1;
  const slotOf = (at: number) => Number((address >> BigInt(format.levels[top - at]!.shift)) & 511n) * 8;
  entries.forEach((entry, at) => {
    const next = frames[at + 1];
    const value = next === undefined ? entry : entry | BigInt(next);
    memory.store64(frames[at]! + slotOf(at), Number(value & 0xffff_ffffn), Number(value >> 32n));
  });
  const told: string[] = [];
  const steps = explainWalk(format, memory, frames[0]!, address, need);
  for (;;) {
    const { done, value } = steps.next();
    if (!done) {
      told.push(value.what);
      continue;
    }
    const out = new WalkResult();
    const words = [Number(address & 0xffff_ffffn), Number(address >> 32n)] as const;
    expect(compileWalker(format)(memory, frames[0]!, ...words, need, out)).toBe(value.fault);
    const after = frames.map((frame, at) => {
      memory.load64(frame + slotOf(at));
      return ((BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0)) & 0xfffn;
    });
    for (const frame of frames) memory.free(frame, 1);
    return { ...value, told, after };
  }
};
const four = x86Paging(4, { physicalBits: 40 });
const faultOf = (entries: readonly bigint[], need: number, format = four) =>
  walkOf(format, entries, need).fault;

describe("x86-64 paging", () => {
  it("SDM 4.5 maps 4 KiB, 2 MiB and 1 GiB", () => {
    expect(walkOf(four, [7n, 7n, 7n, 0x5007n], read, 0x123n)).toMatchObject({ pa: 0x5123, lg2: 12 });
    expect(walkOf(four, [7n, 7n, 0x40_0087n], read, 0x1_2345n)).toMatchObject({ pa: 0x41_2345, lg2: 21 });
    expect(walkOf(four, [7n, 0x8000_0087n], read, 0x123_4567n)).toMatchObject({ pa: 0x8123_4567, lg2: 30 });
  });

  it("addresses are canonical: the bits above the highest translated one equal it", () => {
    for (const [levels, bit] of [
      [4, 47n],
      [5, 56n],
    ] as const) {
      const format = x86Paging(levels);
      const entries = [...new Array<bigint>(levels - 1).fill(7n), 0x5007n];
      const high = (1n << 64n) - (1n << bit);
      expect(walkOf(format, entries, read, high | 0x5678n)).toMatchObject({ fault: 0, pa: 0x5678 });
      for (const address of [1n << bit, 1n << 63n, high - 0x1000n, high ^ (1n << 63n)])
        expect(walkOf(format, entries, read, address)).toMatchObject({
          fault: WalkFault.inputWidth,
          level: -1,
          told: [],
        });
    }
  });

  it("SDM 4.6 the entries together allow what is allowed, and a missing entry is told first", () => {
    expect(walkOf(four, [7n, 5n, 7n, 0x5007n], read | user).allowed & (write | user)).toBe(user);
    expect(walkOf(four, [7n, 5n, 7n, 0x5007n], write)).toMatchObject({ fault: WalkFault.write, level: 0 });
    expect(faultOf([7n, 5n, 7n, 0n], write)).toBe(WalkFault.notPresent);
    expect(faultOf([3n, 7n, 7n, 0x5007n], read | user)).toBe(WalkFault.user);
    expect(faultOf([3n, 7n, 7n, 0x5007n], read | write)).toBe(WalkFault.none);
  });

  it("XD forbids execution, is reserved without NXE, or ignored", () => {
    const entries = [7n, 7n, (1n << 63n) | 7n, 0x5007n];
    expect(faultOf(entries, execute)).toBe(WalkFault.execute);
    expect(faultOf(entries, read)).toBe(WalkFault.none);
    expect(faultOf(entries, read, x86Paging(4, { executeDisable: false }))).toBe(WalkFault.reserved);
    expect(faultOf(entries, execute, x86Paging(4, { executeDisable: "ignored" }))).toBe(WalkFault.none);
  });

  it("without write protection a supervisor writes read-only pages", () => {
    const entries = [7n, 7n, 7n, 0x5005n];
    expect(faultOf(entries, write)).toBe(WalkFault.write);
    expect(faultOf(entries, write, x86Paging(4, { writeProtect: false }))).toBe(WalkFault.none);
  });

  it("reserves PS where no page is, address bits below a page but PAT, and those beyond the width", () => {
    for (const entries of [
      [0x87n],
      [7n, 7n, 0x40_2087n],
      [7n, 0x8020_0087n],
      [7n, 7n, 7n, (1n << 40n) | 0x5007n],
      [7n, 7n, (1n << 51n) | 7n],
    ])
      expect(faultOf(entries, read), String(entries)).toBe(WalkFault.reserved);
    expect(faultOf([7n, 7n, 0x40_1087n], read)).toBe(WalkFault.none);
    expect(faultOf([7n, 0x8000_0087n], read, x86Paging(4, { pageLg2s: [12, 21] }))).toBe(WalkFault.reserved);
    expect(faultOf([7n, 7n, 7n, 0x5007n | (0x7ffn << 52n) | 0xf98n], read)).toBe(WalkFault.none);
  });

  it("sets A in what it used and D in a leaf written; EA beside A when asked", () => {
    const entries = [7n, 7n, 7n, 0x5007n];
    expect(walkOf(four, entries, read).after).toEqual([0x27n, 0x27n, 0x27n, 0x27n]);
    expect(walkOf(four, entries, write).after).toEqual([0x27n, 0x27n, 0x27n, 0x67n]);
    const extended = vtdFirstLevel(4, { extendedAccessed: true });
    expect(walkOf(extended, entries, write).after).toEqual([0x427n, 0x427n, 0x427n, 0x467n]);
    expect(walkOf(extended, [0x27n, 7n, 7n, 0x5027n], read).after).toEqual([0x427n, 0x427n, 0x427n, 0x427n]);
    const plain = x86Paging(4, { accessedDirty: false });
    expect(walkOf(plain, entries, write).after).toEqual([7n, 7n, 7n, 7n]);
  });

  it("is mapped with full permission above, and with what was asked in the leaf", () => {
    const mapper = new Mapper(memory, x86Paging(4));
    mapper.map(0, 0x20_0000, 0x1000, Protection.read);
    const steps = [...explainWalk(x86Paging(4), memory, mapper.root, 0n, 0)];
    expect(steps.map(({ value }) => (value as bigint) & ~0xffff_f000n)).toEqual([
      7n,
      7n,
      7n,
      (1n << 63n) | 5n,
    ]);
    expect(() => mapper.map(0x1000, 0, 0x1000, Protection.write)).toThrow(/protection/i);
    mapper.destroy();
  });

  it("names VT-d's entries as the specification does, and refuses an impossible width", () => {
    expect(walkOf(vtdFirstLevel(5), [7n, 7n, 7n, 7n, 0x5007n], read).told).toEqual([
      "FS-PML5E",
      "FS-PML4E",
      "FS-PDPE",
      "FS-PDE",
      "FS-PTE",
    ]);
    expect(() => x86Paging(4, { physicalBits: 53 })).toThrow(RangeError);
  });
});
