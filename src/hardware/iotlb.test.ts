import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../base/clock.ts";
import { compileIotlb, Iotlb, type IotlbOptions } from "./iotlb.ts";

const WORD = 0x1_0000_0000;
const put = (iotlb: Iotlb, context: number, address: number, lg2: number, pa: number, denied = 0) =>
  iotlb.enter(
    context,
    address % WORD,
    Math.floor(address / WORD),
    lg2,
    pa % WORD,
    Math.floor(pa / WORD),
    denied,
  );
const get = (iotlb: Iotlb, context: number, address: number) => {
  const entry = iotlb.lookup(context, address % WORD, Math.floor(address / WORD));
  if (entry < 0) return undefined;
  return { page: iotlb.page(entry), lg2: iotlb.lg2(entry), denied: iotlb.denied(entry) };
};
const drop = (iotlb: Iotlb, context: number, address: number, lg2: number) =>
  iotlb.invalidateRange(context, address % WORD, Math.floor(address / WORD), lg2);

describe.each([
  ["IOTLB", (options: IotlbOptions): Iotlb => new Iotlb(options)],
  ["IOTLB with lookups compiled for it", compileIotlb],
] as const)("%s", (_, make) => {
  it("gives what was entered, for every address of the page and for no other", () => {
    for (const lg2 of [12, 16, 21, 25, 30]) {
      const iotlb = make({ contexts: 4 });
      const base = 7 * 2 ** 40;
      const pa = 3 * 2 ** 34;
      put(iotlb, 1, base + 2 ** lg2 - 1, lg2, pa + 2 ** lg2 - 1, 2);
      for (const offset of [0, 0xfff, 2 ** lg2 - 1])
        expect(get(iotlb, 1, base + offset)).toEqual({ page: pa, lg2, denied: 2 });
      expect(get(iotlb, 1, base + 2 ** lg2)).toBeUndefined();
      expect(get(iotlb, 1, base - 1)).toBeUndefined();
      expect(get(iotlb, 1, base + 2 ** 32)).toBeUndefined();
      expect(get(iotlb, 2, base)).toBeUndefined();
    }
  });

  it("takes words signed or not, and every address of 64 bits", () => {
    const iotlb = make({ contexts: 1 });
    iotlb.enter(0, 0xffff_f000, 0xffff_ffff, 12, 0x8000_0000, 0x3, 0);
    expect(iotlb.page(iotlb.lookup(0, -1, -1))).toBe(0x3_8000_0000);
  });

  it("a leaf of more than 1 GiB is entered as the GiB that was asked for", () => {
    const iotlb = make({ contexts: 1 });
    put(iotlb, 0, 5 * 2 ** 30 + 123, 39, 2 ** 41 + 5 * 2 ** 30 + 123);
    expect(get(iotlb, 0, 5 * 2 ** 30)).toEqual({ page: 2 ** 41 + 5 * 2 ** 30, lg2: 30, denied: 0 });
    expect(get(iotlb, 0, 4 * 2 ** 30)).toBeUndefined();
  });

  it("a capacity that is no power of two is refused", () => {
    expect(() => make({ contexts: 1, capacity: 100 })).toThrow(/power of two/);
  });

  it("holds its capacity nearly in full before it replaces", () => {
    const iotlb = make({ contexts: 1, capacity: 1024 });
    for (let page = 0; page < 512; page++) put(iotlb, 0, page * 4096, 12, page * 4096);
    let held = 0;
    for (let page = 0; page < 512; page++) if (get(iotlb, 0, page * 4096)) held += 1;
    expect(held).toBeGreaterThan(500);
  });

  it("the stamp changes with every invalidation, and with nothing else", () => {
    const iotlb = make({ contexts: 4 });
    const stamps = [iotlb.stamp];
    put(iotlb, 1, 0x1000, 12, 0x2000);
    expect(iotlb.stamp).toBe(stamps[0]);
    for (const invalidate of [
      () => iotlb.invalidateAll(),
      () => iotlb.invalidateContext(2),
      () => drop(iotlb, 3, 0x1000, 12),
      () => drop(iotlb, 3, 0, 40),
    ]) {
      invalidate();
      stamps.push(iotlb.stamp);
    }
    expect(new Set(stamps).size).toBe(5);
  });

  it("never gives what was invalidated or never entered; what it gives is the latest (against a list)", () => {
    const contexts = 3;
    fc.assert(
      fc.property(
        fc.nat(),
        fc.constantFrom(2, 4, 64),
        fc.constantFrom(7, 40, 0x7fff_ffff),
        (seed, capacity, tagLimit) => {
          const iotlb = make({ contexts, capacity, tagLimit });
          const random = new Random(seed);
          const model: { context: number; start: number; lg2: number; page: number; denied: number }[] = [];
          const keep = (kept: (entry: (typeof model)[number]) => boolean) =>
            model.splice(0, model.length, ...model.filter(kept));
          for (let step = 0; step < 300; step++) {
            const context = random.below(contexts);
            const address =
              (random.below(8) ? 0 : 2 ** 33) + random.below(5) * 0x1000 + (random.below(4) ? 0 : 0x20_0000);
            const lg2 = random.below(4) ? 12 : 21;
            const start = address - (address % 2 ** lg2);
            switch (random.below(8)) {
              case 0:
                iotlb.invalidateContext(context);
                keep((entry) => entry.context !== context);
                break;
              case 1: {
                const range = 12 + random.below(12);
                drop(iotlb, context, address, range);
                const from = address - (address % 2 ** range);
                keep(
                  (entry) =>
                    entry.context !== context ||
                    entry.start + 2 ** entry.lg2 <= from ||
                    entry.start >= from + 2 ** range,
                );
                break;
              }
              case 2:
                if (random.below(4) === 0) {
                  iotlb.invalidateAll();
                  keep(() => false);
                }
                break;
              case 3:
              case 4: {
                const page = random.below(1000) * 2 ** 21 + 2 ** 35;
                const denied = random.below(4);
                put(iotlb, context, address, lg2, page + (address - start), denied);
                keep((entry) => entry.context !== context || entry.start !== start || entry.lg2 !== lg2);
                model.push({ context, start, lg2, page, denied });
                break;
              }
              default: {
                const found = get(iotlb, context, address);
                if (!found) break;
                const { page, denied } = found;
                const matching = model.filter(
                  (entry) =>
                    entry.context === context &&
                    entry.lg2 === found.lg2 &&
                    address >= entry.start &&
                    address < entry.start + 2 ** entry.lg2,
                );
                expect(matching).toEqual([expect.objectContaining({ page, denied })]);
              }
            }
          }
        },
      ),
      { numRuns: 200 },
    );
  });

  it("forgets nothing it need not: with room, what was entered and not invalidated is found", () => {
    const iotlb = make({ contexts: 8, capacity: 1024 });
    for (let context = 0; context < 8; context++)
      for (let page = 0; page < 4; page++) put(iotlb, context, page * 0x1000, 12, 0x10_0000 * context);
    iotlb.invalidateContext(3);
    drop(iotlb, 4, 0x1000, 12);
    for (let context = 0; context < 8; context++)
      for (let page = 0; page < 4; page++) {
        const gone = context === 3 || (context === 4 && page === 1);
        expect(get(iotlb, context, page * 0x1000) === undefined).toBe(gone);
      }
  });
});
