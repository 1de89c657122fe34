import { describe, expect, it } from "vitest";
import { MemoryError } from "./host-memory.ts";
import { SparseMemory } from "./sparse-memory.ts";

const make = () => new SparseMemory([{ start: 0x1000, end: 0x1_0000 }]);

describe("sparse memory", () => {
  it("reads zero where nothing was written, and says what is absent or poisoned", () => {
    const memory = make();
    expect(memory.load64(0x2000)).toBe(true);
    expect([memory.lo, memory.hi]).toEqual([0, 0]);
    expect(memory.load64(0x1_0000)).toBe(false);
    expect(memory.cause).toBe(MemoryError.absent);
    memory.poison(0x3000, 1);
    expect(memory.store64(0x3ff8, 1, 2)).toBe(false);
    expect(memory.cause).toBe(MemoryError.poisoned);
  });

  it("keeps words in both byte orders, and sets bits", () => {
    const memory = make();
    memory.store64be(0x2000, 0x0506_0708, 0x0102_0304);
    const bytes = new Uint8Array(8);
    memory.readBytes(0x2000, bytes);
    expect([...bytes]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    memory.load64be(0x2000);
    expect([memory.lo, memory.hi]).toEqual([0x0506_0708, 0x0102_0304]);
    memory.store32(0x2008, 0xf000_0000);
    memory.or64(0x2008, 1, 0x8000_0000);
    memory.load64(0x2008);
    expect([memory.lo, memory.hi]).toEqual([0xf000_0001, 0x8000_0000]);
    memory.clear64(0x2008, 0xf000_0000, 1);
    memory.load64(0x2008);
    expect([memory.lo, memory.hi]).toEqual([1, 0x8000_0000]);
  });

  it("moves bytes over frames up to the first that is absent; windows answer for themselves", () => {
    const memory = make();
    const data = Uint8Array.from([1, 2, 3, 4]);
    expect(memory.writeBytes(0x2ffe, data)).toBe(true);
    expect(memory.copy(0x5000, 0x2ffe, 4)).toBe(true);
    const back = new Uint8Array(4);
    memory.readBytes(0x5000, back);
    expect(back).toEqual(data);
    expect(memory.writeBytes(0xfffe, data)).toBe(false);
    const seen: unknown[] = [];
    const window = {
      name: "w",
      read: () => false,
      write: (...what: unknown[]) => seen.push(what) > 0,
    };
    const remove = memory.addWindow(0xfee0_0000, 0x1000, window);
    expect(memory.writeBytes(0xfee0_0010, data, 7)).toBe(true);
    expect(seen).toEqual([[0x10, data, 7]]);
    expect(memory.readBytes(0xfee0_0010, back)).toBe(false);
    expect(memory.cause).toBe(MemoryError.unsupported);
    remove();
    expect(memory.writeBytes(0xfee0_0010, data)).toBe(false);
  });

  it("gives zeroed, aligned frames until it is full", () => {
    const memory = make();
    expect(memory.allocate(4) % 0x4000).toBe(0);
    expect(memory.allocated).toBe(4);
    expect(memory.allocate(16)).toBe(-1);
    memory.free(0x4000, 4);
    expect(memory.allocated).toBe(0);
  });
});
