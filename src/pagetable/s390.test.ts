import { afterAll, describe, expect, it } from "vitest";
import { createMemory } from "../memory/banks.ts";
import { explainWalk } from "./explain.ts";
import { describeFormat } from "./format.suite.ts";
import { inputBits, Permission, Protection } from "./format.ts";
import { goldenWalks, told, walkGolden } from "./golden.suite.ts";
import { Mapper } from "./mapper.ts";
import { type S390Tables, s390Dat } from "./s390.ts";

describeFormat("s390, segment tables", () => s390Dat(2));
describeFormat("s390, region-third tables", () => s390Dat(3));
describeFormat("s390, region-first tables", () => s390Dat(5));

describe("golden walks of s390 tables", () => {
  it.each(goldenWalks("s390-dat").map((walk) => [walk.name, walk] as const))("%s", (_, walk) => {
    const format = s390Dat(walk.params["tables"] as S390Tables);
    const { iova, write } = walk.access;
    const need = write ? Permission.write : Permission.read;
    const question = { format, root: Number(walk.root), address: BigInt(iova), need };
    const end = walkGolden(walk, question);
    expect(end.fetched.map((at) => `0x${at.toString(16)}`)).toEqual(walk.fetches);
    expect(told(question, end)).toEqual(walk.expect);
  });
});

describe("s390 tables", () => {
  const memory = createMemory({ ramBytes: 2 ** 24 });
  afterAll(() => memory.close());

  it("translate 31, 42, 53 or 64 address bits", () => {
    expect(([2, 3, 4, 5] as const).map((tables) => inputBits(s390Dat(tables)))).toEqual([31, 42, 53, 64]);
  });

  it("are mapped as the manual has them: types, full length, P where writing is forbidden; invalid where empty", () => {
    const format = s390Dat(3);
    const mapper = new Mapper(memory, format);
    mapper.map(0x5000, 0x40_0000, 0x1000, Protection.read);
    mapper.map(0x6000, 0x41_0000, 0x1000, Protection.read | Protection.write);
    const entries = (address: bigint) =>
      [...explainWalk(format, memory, mapper.root, address, 0)].map(({ value }) => value as bigint);
    const [region, segment, page] = entries(0x5000n);
    expect([region! & 0xfffn, segment! & 0x7ffn, page]).toEqual([0x7n, 0n, 0x40_0200n]);
    expect(entries(0x6000n)[2]).toBe(0x41_0000n);
    expect(entries(0x7000n)[2]).toBe(0x420n);
    expect(entries(0x8000_0000n)).toEqual([0x420n]);
    mapper.destroy();
  });

  it("have no entry that forbids reading", () => {
    expect(s390Dat(3).leafBits(Protection.write)).toBe(-1n);
  });
});
