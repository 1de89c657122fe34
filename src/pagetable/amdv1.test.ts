import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Banks } from "../memory/banks.ts";
import { amdV1 } from "./amdv1.ts";
import { compileWalker } from "./compile.ts";
import { explainWalk, type WalkOutcome } from "./explain.ts";
import { describeFormat } from "./format.suite.ts";
import { type PageTableFormat, Permission, Protection, WalkFault } from "./format.ts";
import { Mapper } from "./mapper.ts";
import { describeNested } from "./nested.suite.ts";
import { compileNested } from "./nested.ts";
import { WalkResult } from "./walker.ts";
import { x86Paging } from "./x86-64.ts";

describeFormat("AMD-Vi v1, 1 level", () => amdV1(1));
describeFormat("AMD-Vi v1, 3 levels, dirty tracking", () => amdV1(3, { updates: "dirty" }));
describeFormat("AMD-Vi v1, 4 levels, pages of the levels' sizes only", () =>
  amdV1(4, { pageLg2s: [12, 21, 30, 39] }),
);
describeFormat("AMD-Vi v1, 6 levels, some sizes between", () =>
  amdV1(6, { pageLg2s: [12, 13, 16, 20, 21, 29, 30, 48], updates: "accessed" }),
);
describeNested("x86-64 over AMD-Vi v1", () => ({ first: x86Paging(4), second: amdV1(4) }));
describeNested("x86-64 5 levels over AMD-Vi v1, dirty tracking, 4 KiB pages", () => ({
  first: x86Paging(5),
  second: amdV1(6, { updates: "dirty", pageLg2s: [12] }),
}));

const { read, write } = Permission;
const IR = 1n << 61n;
const IW = 1n << 62n;
const both = IR | IW | 1n;
const next = (level: number) => BigInt(level) << 9n;

describe("AMD-Vi v1 tables", () => {
  let memory: Banks;
  beforeAll(() => {
    memory = new Banks({ ram: [{ start: 0, length: 2 ** 24 }] });
  });
  afterAll(() => memory.close());

  const explain = (format: PageTableFormat, root: number, address: bigint, need: number): WalkOutcome => {
    const steps = explainWalk(format, memory, root, address, need);
    for (;;) {
      const { done, value } = steps.next();
      if (done) return value;
    }
  };

  /** A walk through one entry a table, from the root down; each but the last points to the next. */
  const walkOf = (levels: 1 | 2 | 3 | 4 | 5 | 6, entries: readonly bigint[], need: number, address = 0n) => {
    const format = amdV1(levels);
    const frames = entries.map(() => memory.allocate(1));
    let level = levels as number;
    entries.forEach((entry, at) => {
      const to = frames[at + 1];
      const value = to === undefined ? entry : entry | BigInt(to);
      const { shift, bits } = format.levels[level - 1]!;
      const slot = Number((address >> BigInt(shift)) & ((1n << BigInt(bits)) - 1n));
      memory.store64(frames[at]! + 8 * slot, Number(value & 0xffff_ffffn), Number(value >> 32n));
      level = Number((entry >> 9n) & 7n);
    });
    const outcome = explain(format, frames[0]!, address, need);
    const out = new WalkResult();
    const words = [Number(address & 0xffff_ffffn), Number(address >> 32n)] as const;
    const fault = compileWalker(format)(memory, frames[0]!, ...words, need, out);
    expect({ fault, level: out.level }).toEqual({ fault: outcome.fault, level: outcome.level });
    if (fault === WalkFault.none)
      expect([out.pa, out.lg2, out.span, out.allowed]).toEqual([
        outcome.pa,
        outcome.lg2,
        outcome.span,
        outcome.allowed,
      ]);
    for (const frame of frames) memory.free(frame, 1);
    return outcome;
  };

  it("§2.2.3 translates 21, 30, 39, 48, 57 or 64 address bits", () => {
    const widths = ([1, 2, 3, 4, 5, 6] as const).map((levels) => {
      const { shift, bits } = amdV1(levels).levels[levels - 1]!;
      return shift + bits;
    });
    expect(widths).toEqual([21, 30, 39, 48, 57, 64]);
    expect(walkOf(3, [both], read, 1n << 39n).fault).toBe(WalkFault.inputWidth);
  });

  it("§2.2.3 NextLevel 0 is a page of the level's size", () => {
    for (const [level, lg2] of [
      [1, 12],
      [2, 21],
      [3, 30],
      [4, 39],
      [5, 48],
    ] as const)
      expect(walkOf(level, [both | (1n << 48n)], read, 0x123n)).toMatchObject({
        pa: 2 ** 48 + 0x123,
        lg2,
        span: 2 ** lg2 - 0x123,
      });
    expect(walkOf(6, [both], read).fault).toBe(WalkFault.reserved);
  });

  it("§2.2.3 NextLevel 7 is a page of the size that the lowest zero of the address tells, at any level", () => {
    for (const level of [1, 2, 3, 4, 5, 6] as const)
      for (let lg2 = 13; lg2 < 52; lg2++) {
        const ones = (1n << BigInt(lg2 - 1)) - (1n << 12n);
        const address = ((1n << 21n) - 1n) & 0x1f_f7a8n;
        const found = walkOf(level, [both | next(7) | ones], read, address);
        const offset = Number(address & ((1n << BigInt(lg2)) - 1n));
        expect([found.fault, found.pa, found.lg2, found.span], `${level} ${lg2}`).toEqual([
          WalkFault.none,
          offset,
          lg2,
          2 ** lg2 - offset,
        ]);
      }
    const all = (1n << 52n) - (1n << 12n);
    expect(walkOf(1, [both | next(7) | all], read).fault).toBe(WalkFault.reserved);
  });

  it("§2.2.3 skipped levels must have zero address bits", () => {
    const skip = [both | next(1), both | 0x5000n];
    expect(walkOf(4, skip, read, 0x8000n)).toMatchObject({ pa: 0x5000, lg2: 12 });
    expect(walkOf(4, skip, read, (3n << 39n) | 0x8000n)).toMatchObject({ pa: 0x5000, lg2: 12 });
    for (const bit of [21n, 29n, 30n, 38n])
      expect(walkOf(4, skip, read, 1n << bit).fault, String(bit)).toBe(WalkFault.inputWidth);
    expect(walkOf(6, [both | next(2), both | 0x20_0000n], read, 5n << 21n)).toMatchObject({ lg2: 21 });
  });

  it("§2.2.3 an entry names only levels below its own", () => {
    for (const level of [3, 4, 5, 6])
      expect(walkOf(3, [both | next(level)], read).fault, String(level)).toBe(WalkFault.reserved);
    expect(walkOf(1, [both | next(1)], read).fault).toBe(WalkFault.reserved);
  });

  it("§2.2.3 the permission is the AND over all levels", () => {
    const path = (top: bigint, middle: bigint, leaf: bigint) => [
      1n | next(2) | top,
      1n | next(1) | middle,
      1n | leaf | 0x5000n,
    ];
    expect(walkOf(3, path(IR, IR | IW, IR | IW), read).allowed & 3).toBe(read);
    expect(walkOf(3, path(IR, IR | IW, IR | IW), write).fault).toBe(WalkFault.write);
    expect(walkOf(3, path(IR | IW, IW, IR | IW), read).fault).toBe(WalkFault.read);
    expect(walkOf(3, path(IR | IW, IR | IW, IR), write).fault).toBe(WalkFault.write);
    expect(walkOf(3, path(0n, 0n, 0n), 0).fault).toBe(WalkFault.none);
  });

  it("§2.2.3 PR = 0 is not present whatever else is set; bits 58:52, of a directory 60:52, are reserved", () => {
    expect(walkOf(2, [(both & ~1n) | next(1)], read).fault).toBe(WalkFault.notPresent);
    for (let bit = 52n; bit < 59n; bit++)
      expect(walkOf(1, [both | (1n << bit)], read).fault).toBe(WalkFault.reserved);
    for (let bit = 59n; bit < 61n; bit++) {
      expect(walkOf(1, [both | (1n << bit)], read).fault).toBe(WalkFault.none);
      expect(walkOf(2, [both | next(1) | (1n << bit), both], read).fault).toBe(WalkFault.reserved);
    }
    const ignored = 0x1fen | (1n << 63n);
    expect(walkOf(1, [both | (ignored & ~next(7))], read | write).fault).toBe(WalkFault.none);
  });

  it("the generated walker agrees on any entries with sizes of their own", () => {
    const entry = fc.tuple(fc.bigInt(0n, (1n << 52n) - 1n), fc.nat(63)).map(([address, top]) => {
      return (address & ~0xfffn) | next(7) | 1n | (BigInt(top) << 57n) | (BigInt(top) & 0x60n);
    });
    fc.assert(
      fc.property(
        entry,
        fc.bigInt(0n, (1n << 21n) - 1n),
        fc.constantFrom(0, read, write),
        (value, at, need) => {
          walkOf(1, [value], need, at);
        },
      ),
    );
  });

  it("sets A and D in pages that tell their size, and in the tables above", () => {
    const walk = compileWalker(amdV1(2, { updates: "dirty" }));
    const [root, table] = [memory.allocate(1), memory.allocate(1)];
    const out = new WalkResult();
    memory.store64(root, (table | 1 | (1 << 9)) >>> 0, 0x6000_0000);
    // 16 MiB in a table of 2 MiB.
    memory.store64(table, 0x007f_fe01, 0x6000_0000);
    const low = (at: number) => memory.load64(at) && memory.lo & 0x60;
    expect(walk(memory, root, 0, 0, read, out)).toBe(WalkFault.none);
    expect([out.lg2, low(root), low(table)]).toEqual([24, 0x20, 0x20]);
    walk(memory, root, 0, 0, write, out);
    expect([low(root), low(table)]).toEqual([0x20, 0x60]);
    memory.free(root, 1);
    memory.free(table, 1);
  });

  it("is mapped with the largest size that fits, repeated as the specification wants it", () => {
    const format = amdV1(3);
    const mapper = new Mapper(memory, format);
    const leaf = (address: bigint) => explain(format, mapper.root, address, 0);
    mapper.map(0x4000, 0x8000, 0x4000, Protection.read);
    mapper.map(0x80_0000, 0x1_0080_0000, 0x80_0000, Protection.write | Protection.noSnoop);
    mapper.map(0x4000_0000, 0x8000_0000, 0x4000_0000, Protection.read | Protection.write);
    // 16 KiB at 0x8000: address bits 12 set, 13 clear.
    for (let at = 0x4000n; at < 0x8000n; at += 0x1000n)
      expect(leaf(at)).toMatchObject({ entry: 0x8000n | 0x1000n | next(7) | IR | (1n << 60n) | 1n, lg2: 14 });
    expect(leaf(0xff_f000n)).toMatchObject({ lg2: 23, entry: 0x1_00bf_f000n | next(7) | IW | 1n });
    expect(leaf(0x4000_0000n)).toMatchObject({ lg2: 30, entry: 0x8000_0000n | both | (1n << 60n) });
    mapper.destroy();
  });

  it("cannot say a page without permission, and always has 4 KiB pages", () => {
    expect(amdV1(4).leafBits(0)).toBe(-1n);
    expect(() => amdV1(4, { pageLg2s: [21] })).toThrow(RangeError);
  });

  it("is no first stage", () => {
    expect(() => compileNested({ first: amdV1(3), second: amdV1(3) })).toThrow(/first stage/);
  });
});
