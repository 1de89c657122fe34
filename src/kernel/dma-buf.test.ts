import { describe, expect, it } from "vitest";
import { DmaBuf, type DmaBufImporter } from "./dma-buf.ts";

const PAGE = 4096;

const make = () => {
  let released = 0;
  const buffer = new DmaBuf({
    name: "a BAR",
    ranges: [
      { pa: 0x10_0000, length: PAGE },
      { pa: 0x20_0000, length: 2 * PAGE },
    ],
    released: () => {
      released += 1;
    },
  });
  return { buffer, released: () => released };
};
const importer = (): DmaBufImporter & { told: number } => ({
  told: 0,
  revoked() {
    this.told += 1;
  },
});

describe("a dma-buf", () => {
  it("is as large as its ranges together, and tells that to lseek only", () => {
    const { buffer } = make();
    expect([buffer.size, buffer.seek(0n, 2), buffer.seek(0n, 0)]).toEqual([3 * PAGE, 3 * PAGE, 0]);
    for (const [offset, whence] of [
      [1n, 0],
      [-1n, 2],
      [0n, 1],
    ] as const)
      expect(() => buffer.seek(offset, whence)).toThrow("EINVAL");
    expect(() => buffer.mmap()).toThrow("EINVAL");
  });

  it("has whole pages", () => {
    const parts = { name: "odd", released: () => {} };
    for (const range of [
      { pa: 8, length: PAGE },
      { pa: PAGE, length: 100 },
      { pa: PAGE, length: 0 },
    ])
      expect(() => new DmaBuf({ ...parts, ranges: [range] })).toThrow("no whole pages");
  });

  it("gives its memory back once, when neither a descriptor nor an importer is left", () => {
    const { buffer, released } = make();
    const [one, two] = [importer(), importer()];
    buffer.attach(one);
    buffer.attach(two);
    buffer.detach(one);
    buffer.detach(one);
    buffer.close();
    expect(released()).toBe(0);
    buffer.detach(two);
    buffer.close();
    expect(released()).toBe(1);
  });

  it("tells its importers once when it is revoked, and takes no new ones until it is restored", () => {
    const { buffer, released } = make();
    const [one, two] = [importer(), importer()];
    buffer.attach(one);
    buffer.revoke();
    buffer.revoke();
    expect([one.told, buffer.revoked]).toEqual([1, true]);
    expect(() => buffer.attach(two)).toThrow("ENODEV");
    buffer.restore();
    buffer.attach(two);
    expect([buffer.revoked, buffer.importers, two.told]).toEqual([false, 2, 0]);
    buffer.close();
    buffer.detach(two);
    expect(released()).toBe(0);
    buffer.detach(one);
    expect(released()).toBe(1);
  });
});
