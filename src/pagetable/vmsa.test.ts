import { afterAll, describe, expect, it } from "vitest";
import { createMemory } from "../memory/banks.ts";
import { compileWalker } from "./compile.ts";
import { explainWalk } from "./explain.ts";
import { describeFormat } from "./format.suite.ts";
import { inputBits, type PageTableFormat, Permission, Protection, tableBytes, WalkFault } from "./format.ts";
import { Mapper } from "./mapper.ts";
import { type Granule, stage1Start, stage2Start, vmsaStage1, vmsaStage2 } from "./vmsa.ts";
import { WalkResult } from "./walker.ts";

describeFormat("VMSAv8-64 stage 1, 4K, 48 bits", () =>
  vmsaStage1({ granuleLg2: 12, inputBits: 48, outputBits: 44 }),
);
describeFormat("VMSAv8-64 stage 1, 4K, 25 bits, no access flag, no hierarchy", () =>
  vmsaStage1({ granuleLg2: 12, inputBits: 25, outputBits: 36, accessFlag: false, hierarchical: false }),
);
describeFormat("VMSAv8-64 stage 1, 16K, 47 bits, dirty", () =>
  vmsaStage1({ granuleLg2: 14, inputBits: 47, updates: "dirty" }),
);
describeFormat("VMSAv8-64 stage 1, 16K, 48 bits, EL2", () =>
  vmsaStage1({ granuleLg2: 14, inputBits: 48, privileges: false }),
);
describeFormat("VMSAv8-64 stage 1, 64K, 52 bits both ways, accessed", () =>
  vmsaStage1({ granuleLg2: 16, inputBits: 52, outputBits: 52, wide: true, updates: "accessed" }),
);
describeFormat("VMSAv8-64 stage 1, 64K, 48 bits of 52", () =>
  vmsaStage1({ granuleLg2: 16, inputBits: 42, outputBits: 40, wide: true }),
);
describeFormat("VMSAv8-64 stage 2, 4K, 40 bits, two concatenated tables", () =>
  vmsaStage2({ granuleLg2: 12, inputBits: 40, outputBits: 44 }),
);
describeFormat("VMSAv8-64 stage 2, 4K, 48 bits, dirty, one XN bit", () =>
  vmsaStage2({ granuleLg2: 12, inputBits: 48, startLevel: 0, updates: "dirty", twoExecuteNever: false }),
);
describeFormat("VMSAv8-64 stage 2, 16K, 40 bits, sixteen tables", () =>
  vmsaStage2({ granuleLg2: 14, inputBits: 40, startLevel: 2 }),
);
describeFormat("VMSAv8-64 stage 2, 64K, 44 bits, accessed", () =>
  vmsaStage2({ granuleLg2: 16, inputBits: 44, outputBits: 44, updates: "accessed" }),
);

const { read, write, execute, user, privilegedExecute } = Permission;
const memory = createMemory({ ramBytes: 2 ** 24 });
afterAll(() => memory.close());
const AF = 1n << 10n;
const AP1 = 1n << 6n;
const AP2 = 1n << 7n;
const at = (bit: number): bigint => 1n << BigInt(bit);

const store = (pa: number, value: bigint) =>
  memory.store64(pa, Number(value & 0xffff_ffffn), Number(value >> 32n));

/** A walk of address 0 through one entry at each level, the root's first; by both walkers, which agree. */
const walkOf = (format: PageTableFormat, entries: readonly bigint[], need: number) => {
  const tables = entries.map((_, index) => {
    const level = format.levels[format.levels.length - 1 - index]!;
    return memory.allocate(tableBytes(level) / 4096);
  });
  entries.forEach((entry, index) => {
    const next = tables[index + 1];
    store(tables[index]!, next === undefined ? entry : entry | BigInt(next));
  });
  const steps = explainWalk(format, memory, tables[0]!, 0n, need);
  const out = new WalkResult();
  for (;;) {
    const { done, value } = steps.next();
    if (!done) continue;
    const fault = compileWalker(format)(memory, tables[0]!, 0, 0, need, out);
    expect([fault, out.level]).toEqual([value.fault, value.level]);
    memory.load64(out.entryAddress);
    const after = (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
    tables.forEach((pa, index) => {
      memory.free(pa, tableBytes(format.levels[format.levels.length - 1 - index]!) / 4096);
    });
    return { ...value, after };
  }
};
const faultOf = (...args: Parameters<typeof walkOf>) => walkOf(...args).fault;

const granules: readonly Granule[] = [12, 14, 16];

describe("VMSAv8-64 geometry", () => {
  it("D8.2 stage 1 starts at the level that the input size asks for", () => {
    const starts = (granule: Granule, ...sizes: number[]) => sizes.map((size) => stage1Start(granule, size));
    expect(starts(12, 48, 40, 39, 31, 30, 25)).toEqual([0, 0, 1, 1, 2, 2]);
    expect(starts(14, 48, 47, 37, 36, 26, 25)).toEqual([0, 1, 1, 2, 2, 3]);
    expect(starts(16, 52, 48, 43, 42, 30, 29, 25)).toEqual([1, 1, 1, 2, 2, 3, 3]);
  });

  it("D8.2 stage 2 starts a level lower where up to 16 concatenated tables do", () => {
    const starts = (granule: Granule, ...sizes: number[]) => sizes.map((size) => stage2Start(granule, size));
    expect(starts(12, 48, 44, 43, 40, 34, 30)).toEqual([0, 0, 1, 1, 2, 2]);
    expect(starts(14, 48, 47, 40, 36)).toEqual([1, 1, 2, 2]);
    expect(starts(16, 48, 47, 46, 42, 33)).toEqual([1, 1, 2, 2, 3]);
    const root = vmsaStage2({ granuleLg2: 12, inputBits: 40 }).levels.at(-1)!;
    expect(root).toMatchObject({ number: 1, bits: 10 });
    expect(tableBytes(root)).toBe(0x2000);
  });

  it("translates as many bits as asked for, at every size and granule", () => {
    for (const granuleLg2 of granules)
      for (let size = 25; size <= 48; size++) {
        expect(inputBits(vmsaStage1({ granuleLg2, inputBits: size }))).toBe(size);
        expect(inputBits(vmsaStage2({ granuleLg2, inputBits: size }))).toBe(size);
      }
  });

  it("D8.3 has blocks of 2 MiB and 1 GiB, of 32 MiB, of 512 MiB; of 4 TiB with 52-bit addresses", () => {
    const sizes = (format: PageTableFormat) =>
      format.levels.flatMap(({ leaves }) => leaves.map(({ lg2 }) => lg2));
    expect(granules.map((granuleLg2) => sizes(vmsaStage1({ granuleLg2, inputBits: 48 })))).toEqual([
      [12, 21, 30],
      [14, 25],
      [16, 29],
    ]);
    expect(sizes(vmsaStage2({ granuleLg2: 16, inputBits: 48, wide: true }))).toEqual([16, 29, 42]);
  });

  it("refuses what does not fit together", () => {
    for (const make of [
      () => vmsaStage1({ granuleLg2: 12, inputBits: 48, wide: true }),
      () => vmsaStage1({ granuleLg2: 16, inputBits: 48, outputBits: 52 }),
      () => vmsaStage1({ granuleLg2: 12, inputBits: 52 }),
      () => vmsaStage2({ granuleLg2: 12, inputBits: 48, startLevel: 1 }),
      () => vmsaStage2({ granuleLg2: 12, inputBits: 30, startLevel: 1 }),
    ])
      expect(make).toThrow(RangeError);
  });
});

describe("VMSAv8-64 stage 1", () => {
  const format = vmsaStage1({ granuleLg2: 12, inputBits: 39, outputBits: 40 });
  const leaf = 0x5003n | AF | AP1;

  it("D8.3 an invalid entry, and a block where none is, translate nothing", () => {
    expect(faultOf(format, [2n], read)).toBe(WalkFault.notPresent);
    expect(faultOf(format, [3n, 3n, 0x5001n | AF], read)).toBe(WalkFault.reserved);
    expect(faultOf(vmsaStage1({ granuleLg2: 14, inputBits: 40 }), [1n | AF], read)).toBe(WalkFault.reserved);
  });

  it("D8.4 AP[2] makes a page read-only, AP[1] lets the unprivileged in", () => {
    expect(walkOf(format, [3n, 3n, leaf], read | write | user)).toMatchObject({
      fault: 0,
      pa: 0x5000,
      lg2: 12,
    });
    expect(faultOf(format, [3n, 3n, leaf | AP2], write)).toBe(WalkFault.write);
    expect(faultOf(format, [3n, 3n, leaf | AP2], read)).toBe(WalkFault.none);
    expect(faultOf(format, [3n, 3n, 0x5003n | AF], read | user)).toBe(WalkFault.user);
    expect(faultOf(format, [3n, 3n, 0x5003n | AF], read | write)).toBe(WalkFault.none);
  });

  it("D8.4 UXN stops unprivileged execution, PXN privileged execution", () => {
    expect(faultOf(format, [3n, 3n, leaf | at(54)], execute | user)).toBe(WalkFault.execute);
    expect(faultOf(format, [3n, 3n, leaf | at(54)], privilegedExecute)).toBe(WalkFault.none);
    expect(faultOf(format, [3n, 3n, leaf | at(53)], privilegedExecute)).toBe(WalkFault.privilegedExecute);
    const el2 = vmsaStage1({ granuleLg2: 12, inputBits: 39, privileges: false });
    expect(faultOf(el2, [3n, 3n, leaf | at(54)], privilegedExecute)).toBe(WalkFault.privilegedExecute);
    expect(faultOf(el2, [3n, 3n, 0x5003n | AF], read | user)).toBe(WalkFault.none);
  });

  it("D8.4 tables hand down read-only, privileged and execute-never, unless that is disabled", () => {
    const flat = vmsaStage1({ granuleLg2: 12, inputBits: 39, hierarchical: false });
    for (const [bit, need, fault] of [
      [62, write, WalkFault.write],
      [61, read | user, WalkFault.user],
      [60, execute | user, WalkFault.execute],
      [59, privilegedExecute, WalkFault.privilegedExecute],
    ] as const)
      for (const entries of [
        [3n | at(bit), 3n, leaf],
        [3n, 3n | at(bit), leaf],
      ]) {
        expect(faultOf(format, entries, need)).toBe(fault);
        expect(faultOf(flat, entries, need)).toBe(WalkFault.none);
      }
  });

  it("D8.3 an address beyond the output size faults before the access flag, and that before permission", () => {
    const wide = at(40);
    expect(faultOf(format, [3n, 3n, (leaf | AP2 | wide) & ~AF], write)).toBe(WalkFault.outputWidth);
    expect(faultOf(format, [3n, 3n, (leaf | AP2) & ~AF], write)).toBe(WalkFault.accessFlag);
    expect(faultOf(format, [3n, 3n, leaf | AP2], write)).toBe(WalkFault.write);
    expect(walkOf(format, [3n, 3n | wide], read)).toMatchObject({ fault: WalkFault.outputWidth, level: 1 });
    const ignoring = vmsaStage1({ granuleLg2: 12, inputBits: 39, accessFlag: false });
    expect(faultOf(ignoring, [3n, 3n, leaf & ~AF], write)).toBe(WalkFault.none);
  });

  it("reserved bits, the contiguous hint and address bits below a block are ignored", () => {
    expect(faultOf(format, [3n | at(48) | at(5), 3n, leaf | at(48) | at(52) | at(59)], read)).toBe(0);
    expect(walkOf(format, [3n, 0x21_f001n | AF | AP1], read)).toMatchObject({
      fault: 0,
      pa: 0x20_0000,
      lg2: 21,
    });
  });

  it("D8.3.1 a 64 KiB granule keeps address bits 51:48 in bits 15:12 of an entry", () => {
    const wide = vmsaStage1({ granuleLg2: 16, inputBits: 29, outputBits: 52, wide: true });
    const entry = 0x1234_5678_0003n | AF | AP1 | (0xan << 12n);
    expect(walkOf(wide, [entry], read)).toMatchObject({ fault: 0, pa: 0xa_1234_5678_0000 });
    const narrow = vmsaStage1({ granuleLg2: 16, inputBits: 29, outputBits: 48, wide: true });
    expect(faultOf(narrow, [entry], read)).toBe(WalkFault.outputWidth);
    const none = vmsaStage1({ granuleLg2: 16, inputBits: 29 });
    expect(walkOf(none, [entry], read)).toMatchObject({ fault: 0, pa: 0x1234_5678_0000 });
  });

  it("D8.4.6 with HA the unit sets the access flag; with HD a write makes a page with DBM writable", () => {
    const accessed = vmsaStage1({ granuleLg2: 12, inputBits: 39, updates: "accessed" });
    expect(walkOf(accessed, [3n, 3n, leaf & ~AF], read).after).toBe(leaf);
    const dirty = vmsaStage1({ granuleLg2: 12, inputBits: 39, updates: "dirty" });
    const clean = leaf | AP2 | at(51);
    expect(walkOf(dirty, [3n, 3n, clean & ~AF], read).after).toBe(clean);
    expect(walkOf(dirty, [3n, 3n, clean], write)).toMatchObject({ fault: 0, after: clean & ~AP2 });
    expect(faultOf(dirty, [3n, 3n, leaf | AP2], write)).toBe(WalkFault.write);
    expect(walkOf(dirty, [3n | at(62), 3n, clean], write)).toMatchObject({
      fault: WalkFault.write,
      after: clean,
    });
    expect(faultOf(accessed, [3n, 3n, clean], write)).toBe(WalkFault.write);
  });

  it("is mapped as Linux does: unprivileged, not global, shareable, with the access flag", () => {
    const mapper = new Mapper(memory, format);
    mapper.map(0, 0x20_0000, 0x1000, Protection.read | Protection.execute);
    mapper.map(0x20_0000, 0x20_0000, 0x20_0000, Protection.write);
    const entry = (address: bigint) =>
      [...explainWalk(format, memory, mapper.root, address, 0)].at(-1)!.value;
    expect(entry(0n)).toBe(0x20_0fc3n);
    expect(entry(0x20_0000n)).toBe(0x20_0f41n | at(53) | at(54));
    expect(format.leafBits(0)).toBe(-1n);
    mapper.destroy();
  });
});

describe("VMSAv8-64 stage 2", () => {
  const format = vmsaStage2({ granuleLg2: 12, inputBits: 39, outputBits: 40 });
  const leaf = 0x5003n | AF;

  it("D8.4 S2AP grants read and write each", () => {
    for (const [access, need, fault] of [
      [0n, read, WalkFault.read],
      [1n, read, 0],
      [1n, write, WalkFault.write],
      [2n, write, 0],
      [2n, read, WalkFault.read],
      [3n, read | write, 0],
    ] as const)
      expect(faultOf(format, [3n, 3n, leaf | (access << 6n)], need)).toBe(fault);
  });

  it("D8.4 XN tells who may execute", () => {
    const denied = (value: bigint, made = format) => {
      const { allowed } = walkOf(made, [3n, 3n, leaf | (value << 53n) | (3n << 6n)], 0);
      return [(allowed & execute) === 0, (allowed & privilegedExecute) === 0];
    };
    expect([0n, 1n, 2n, 3n].map((value) => denied(value))).toEqual([
      [false, false],
      [false, true],
      [true, true],
      [true, false],
    ]);
    const one = vmsaStage2({ granuleLg2: 12, inputBits: 39, twoExecuteNever: false });
    expect([1n, 2n].map((value) => denied(value, one))).toEqual([
      [false, false],
      [true, true],
    ]);
  });

  it("D8.4.6 with HD a write sets S2AP[1] of a page with DBM", () => {
    const dirty = vmsaStage2({ granuleLg2: 12, inputBits: 39, updates: "dirty" });
    const clean = leaf | at(51) | (1n << 6n);
    expect(walkOf(dirty, [3n, 3n, clean], write)).toMatchObject({ fault: 0, after: clean | at(7) });
    expect(faultOf(dirty, [3n, 3n, leaf | (1n << 6n)], write)).toBe(WalkFault.write);
  });

  it("a page that is made read-only is that, though it was dirty", () => {
    const dirty = vmsaStage2({ granuleLg2: 12, inputBits: 39, updates: "dirty" });
    const mapper = new Mapper(memory, dirty);
    const out = new WalkResult();
    const walk = compileWalker(dirty);
    mapper.map(0, 0x5000, 0x1000, Protection.read | Protection.write);
    expect(walk(memory, mapper.root, 0, 0, write, out)).toBe(WalkFault.none);
    mapper.protect(0, 0x1000, Protection.read);
    expect(walk(memory, mapper.root, 0, 0, write, out)).toBe(WalkFault.write);
    mapper.destroy();
  });
});
