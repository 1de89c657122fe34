import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Banks } from "../memory/banks.ts";
import { compileWalker, walkerSource } from "./compile.ts";
import { Permission, WalkFault } from "./format.ts";
import { Mapper } from "./mapper.ts";
import { vtdSecondLevel } from "./vtd-second-level.ts";
import { WalkResult } from "./walker.ts";

const format = vtdSecondLevel(3, { accessedDirty: true });
const walk = compileWalker(format);
const out = new WalkResult();

describe("a generated walker", () => {
  let memory: Banks;
  beforeAll(() => {
    memory = new Banks({ ram: [{ start: 0, length: 2 ** 24 }] });
  });
  afterAll(() => memory.close());

  it("asks memory for what it may not read directly", () => {
    const mapper = new Mapper(memory, format);
    mapper.map(0x5000, 0x1234000, 0x1000, 3);
    expect(walk(memory, mapper.root, 0x5010, 0, Permission.read, out)).toBe(WalkFault.none);
    // The leaf's table answers, but slowly, as pages of a client can.
    const table = Math.floor(out.entryAddress / 4096);
    const asked: number[] = [];
    const slow = Object.create(memory, {
      state: {
        value: memory.state.map((frames) => frames.map((state, frame) => (frame === table ? 0 : state))),
      },
      load64: {
        value: (pa: number) => {
          asked.push(pa);
          slow.lo = 0xabcd003;
          slow.hi = 0;
          return true;
        },
      },
      lo: { value: 0, writable: true },
      hi: { value: 0, writable: true },
      or64: { value: () => true },
    }) as Banks;
    expect(walk(slow, mapper.root, 0x5010, 0, Permission.read, out)).toBe(WalkFault.none);
    expect([out.pa, asked]).toEqual([0xabcd010, [out.entryAddress]]);
    mapper.destroy();
  });

  it("faults when an accessed bit cannot be set", () => {
    const mapper = new Mapper(memory, format);
    mapper.map(0, 0x1234000, 0x1000, 3);
    const readOnly = Object.create(memory, { or64: { value: () => false } }) as Banks;
    expect(walk(readOnly, mapper.root, 0, 0, Permission.read, out)).toBe(WalkFault.tableUnreadable);
    expect(walk(memory, mapper.root, 0, 0, Permission.read, out)).toBe(WalkFault.none);
    // Now only the dirty bit is missing.
    expect(walk(readOnly, mapper.root, 0, 0, Permission.read, out)).toBe(WalkFault.none);
    expect(walk(readOnly, mapper.root, 0, 0, Permission.write, out)).toBe(WalkFault.tableUnreadable);
    mapper.destroy();
  });

  it("faults at a root in a bank that does not exist", () => {
    expect(walk(memory, 2 ** 45, 0, 0, Permission.read, out)).toBe(WalkFault.tableUnreadable);
    expect([out.level, out.entryAddress]).toEqual([2, 2 ** 45]);
  });

  it("is text for people: a block for each level, with the declaration's names and no tables of constants", () => {
    const source = walkerSource(format);
    for (const { name } of format.levels) expect(source).toContain(name);
    expect(source).toContain("// level 2: SS-PDPE, address bits 38:30");
  });
});
