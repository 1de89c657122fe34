import { afterAll, describe, expect, it } from "vitest";
import { createMemory } from "../memory/banks.ts";
import { explainWalk } from "./explain.ts";
import { describeFormat } from "./format.suite.ts";
import { Permission, Protection, WalkFault } from "./format.ts";
import { Mapper } from "./mapper.ts";
import { type SecondLevelOptions, vtdSecondLevel } from "./vtd-second-level.ts";

describeFormat("VT-d 3 levels", () => vtdSecondLevel(3, { hostAddressWidth: 39 }));
describeFormat("VT-d 4 levels", () =>
  vtdSecondLevel(4, { hostAddressWidth: 46, snoopControl: true, forceSnoop: true }),
);
describeFormat("VT-d 5 levels, dirty tracking", () => vtdSecondLevel(5, { accessedDirty: true }));
describeFormat("VT-d 4 levels, 4 KiB pages only", () => vtdSecondLevel(4, { pageLg2s: [12] }));

const { read, write } = Permission;
const memory = createMemory({ ramBytes: 2 ** 24 });
afterAll(() => memory.close());

/** A walk through one entry at each level, from the root down; the last must be the leaf or the end. */
const walkOf = (entries: readonly bigint[], need: number, options: SecondLevelOptions = {}, address = 0n) => {
  const format = vtdSecondLevel(4, { hostAddressWidth: 40, ...options });
  const frames = entries.map(() => memory.allocate(1));
  entries.forEach((entry, at) => {
    const next = frames[at + 1];
    const value = next === undefined ? entry : entry | BigInt(next);
    memory.store64(frames[at]!, Number(value & 0xffff_ffffn), Number(value >> 32n));
  });
  const steps = explainWalk(format, memory, frames[0]!, address, need);
  const told: string[] = [];
  for (;;) {
    const { done, value } = steps.next();
    if (done) {
      for (const frame of frames) memory.free(frame, 1);
      return { ...value, told };
    }
    told.push(value.what);
  }
};
const faultOf = (...args: Parameters<typeof walkOf>) => walkOf(...args).fault;

describe("VT-d second stage", () => {
  it("§3.7 translates 39, 48 or 57 address bits by 9 a level", () => {
    for (const [levels, bits] of [
      [3, 39],
      [4, 48],
      [5, 57],
    ] as const) {
      const root = vtdSecondLevel(levels).levels[levels - 1]!;
      expect(root.shift + root.bits).toBe(bits);
    }
  });

  it("§9.8 an entry with R = 0 and W = 0 is not present, whatever else it says", () => {
    expect(faultOf([3n, 3n, 3n, 0x5000n | (1n << 11n)], read)).toBe(WalkFault.notPresent);
    expect(faultOf([0x880n], 0)).toBe(WalkFault.notPresent);
  });

  it("§3.7 the permission is the AND over all levels", () => {
    expect(walkOf([3n, 1n, 3n, 0x5003n], read)).toMatchObject({
      fault: WalkFault.none,
      allowed: expect.any(Number),
    });
    expect(walkOf([3n, 1n, 3n, 0x5003n], read).allowed & 3).toBe(read);
    expect(walkOf([3n, 1n, 3n, 0x5003n], write)).toMatchObject({ fault: WalkFault.write, level: 2 });
    expect(walkOf([3n, 3n, 2n, 0x5003n], read | write)).toMatchObject({ fault: WalkFault.read, level: 1 });
    expect(faultOf([3n, 3n, 3n, 0x5001n], write)).toBe(WalkFault.write);
  });

  it("§9.8 maps 4 KiB, 2 MiB and 1 GiB", () => {
    expect(walkOf([3n, 3n, 3n, 0x5003n], read, {}, 0x123n)).toMatchObject({
      pa: 0x5123,
      lg2: 12,
      span: 0xedd,
    });
    expect(walkOf([3n, 3n, 0x40_0083n], read, {}, 0x1_2345n)).toMatchObject({ pa: 0x41_2345, lg2: 21 });
    expect(walkOf([3n, 0x8000_0083n], read, {}, 0x123_4567n)).toMatchObject({ pa: 0x8123_4567, lg2: 30 });
  });

  it("§9.8 reserves PS where no page of that size is, address bits below a page, and bits from the host address width on", () => {
    const large = { pageLg2s: [12, 21] };
    for (const [entries, options] of [
      [[0x83n], {}],
      [[3n, 0x8000_0083n], large],
      [[3n, 3n, 0x40_1083n], {}],
      [[3n, 0x8020_0083n], {}],
      [[3n, 3n, 3n, (1n << 40n) | 0x5003n], {}],
      [[3n, 3n, (1n << 51n) | 3n], {}],
    ] as const)
      expect(faultOf(entries, read, options), String(entries)).toBe(WalkFault.reserved);
    expect(faultOf([3n, 3n, 3n, (1n << 40n) | 0x5003n], read, { hostAddressWidth: 41 })).toBe(WalkFault.none);
  });

  it("§9.8 bit 11 is SNP in a leaf of a unit with snoop control, else reserved; in other entries always reserved", () => {
    const snooped = [3n, 3n, 3n, 0x5803n];
    expect(faultOf(snooped, read)).toBe(WalkFault.reserved);
    expect(faultOf(snooped, read, { snoopControl: true })).toBe(WalkFault.none);
    expect(faultOf([3n, 3n, 0x803n], read, { snoopControl: true })).toBe(WalkFault.reserved);
  });

  it("ignores execute, memory type, IPAT, accessed, dirty and the bits it says are ignored", () => {
    const ignored = 0x77cn | (0xfn << 52n) | (1n << 63n);
    expect(faultOf([3n, 3n, 3n, 0x5003n | ignored], read | write)).toBe(WalkFault.none);
  });

  it("is mapped with R and W as asked, PS in large leaves, SNP when forced, and full permission above", () => {
    const format = vtdSecondLevel(4, { snoopControl: true, forceSnoop: true });
    const mapper = new Mapper(memory, format);
    const entries = (address: bigint) =>
      [...explainWalk(format, memory, mapper.root, address, 0)].map(
        ({ value }) => (value as bigint) & ~0xffff_f000n,
      );
    mapper.map(0, 0x20_0000, 0x1000, Protection.read);
    mapper.map(0x20_0000, 0x20_0000, 0x20_0000, Protection.write);
    mapper.map(0x4000_0000, 0x4000_0000, 0x4000_0000, Protection.read | Protection.write);
    expect(entries(0n)).toEqual([3n, 3n, 3n, 0x801n]);
    expect(entries(0x20_0000n)).toEqual([3n, 3n, 0x882n]);
    expect(entries(0x4000_0000n)).toEqual([3n, 0x883n]);
    mapper.destroy();
  });

  it("names its entries as the specification does", () => {
    expect(walkOf([3n, 3n, 3n, 0x5003n], read).told).toEqual(["SS-PML4E", "SS-PDPE", "SS-PDE", "SS-PTE"]);
  });

  it("refuses options that contradict each other", () => {
    expect(() => vtdSecondLevel(4, { forceSnoop: true })).toThrow(RangeError);
    expect(() => vtdSecondLevel(4, { hostAddressWidth: 53 })).toThrow(RangeError);
  });
});
