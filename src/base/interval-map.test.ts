import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "./clock.ts";
import { IntervalMap } from "./interval-map.ts";

/** A 64-bit address as the map's two words. */
const key = (address: bigint): [number, number] => [Number(address >> 12n), Number(address & 0xfffn)];
const address = (page: number, offset: number): bigint => (BigInt(page) << 12n) | BigInt(offset);

interface Interval {
  start: bigint;
  last: bigint;
  value: number;
}
const contents = (map: IntervalMap<number>): Interval[] => {
  const all: Interval[] = [];
  for (let more = map.first(); more; more = map.next())
    all.push({
      start: address(map.startPage, map.startOffset),
      last: address(map.lastPage, map.lastOffset),
      value: map.value,
    });
  return all;
};
const insert = (map: IntervalMap<number>, { start, last, value }: Interval): boolean =>
  map.insert(...key(start), ...key(last), value);

describe("IntervalMap", () => {
  it("holds the whole address space in one interval", () => {
    const map = new IntervalMap<string>();
    expect(map.insert(...key(0n), ...key(2n ** 64n - 1n), "all")).toBe(true);
    expect(map.find(...key(2n ** 63n + 12345n))).toBe(true);
    expect(map.insert(...key(5n), ...key(5n), "in it")).toBe(false);
    expect(address(map.lastPage, map.lastOffset)).toBe(2n ** 64n - 1n);
  });

  it("tells neighbours that touch from intervals that overlap", () => {
    const map = new IntervalMap<number>();
    expect(insert(map, { start: 0x1000n, last: 0x1fffn, value: 1 })).toBe(true);
    expect(insert(map, { start: 0x2000n, last: 0x2000n, value: 2 })).toBe(true);
    expect(insert(map, { start: 0x1fffn, last: 0x1fffn, value: 3 })).toBe(false);
    expect(map.find(...key(0x2001n))).toBe(false);
    expect(map.seek(...key(0x2001n))).toBe(false);
    expect(map.previous()).toBe(true);
    expect(map.value).toBe(2);
  });

  it("agrees with a sorted list over random inserts, removals and searches", () => {
    const space = fc.bigInt(0n, 2n ** 64n - 1n);
    const near = fc.bigInt(0n, 5000n); // where collisions are likely
    const step = fc.record({
      what: fc.constantFrom("insert", "insert", "insert", "remove", "find", "overlaps"),
      start: fc.oneof(near, near, space),
      length: fc.bigInt(0n, 40n),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
        const map = new IntervalMap<number>();
        let model: Interval[] = [];
        steps.forEach(({ what, start, length }, value) => {
          const last = start + length > 2n ** 64n - 1n ? 2n ** 64n - 1n : start + length;
          const hits = model.filter((i) => i.start <= last && i.last >= start);
          if (what === "insert") {
            expect(insert(map, { start, last, value })).toBe(hits.length === 0);
            if (hits.length === 0) model = [...model, { start, last, value }];
          } else if (what === "remove") {
            const found = map.find(...key(start));
            const hit = model.find((i) => i.start <= start && i.last >= start);
            expect(found).toBe(hit !== undefined);
            if (!found) return;
            expect(map.value).toBe(hit!.value);
            const more = map.remove();
            model = model.filter((i) => i !== hit);
            const after = model
              .filter((i) => i.start > hit!.start)
              .sort((a, b) => (a.start < b.start ? -1 : 1))[0];
            expect(more ? map.value : undefined).toBe(after?.value);
          } else if (what === "overlaps") {
            expect(map.overlaps(...key(start), ...key(last))).toBe(hits.length > 0);
          } else {
            const next = model.filter((i) => i.last >= start).sort((a, b) => (a.start < b.start ? -1 : 1))[0];
            expect(map.seek(...key(start))).toBe(next !== undefined);
            if (next) expect(map.value).toBe(next.value);
          }
        });
        expect(map.size).toBe(model.length);
        expect(contents(map)).toEqual(model.sort((a, b) => (a.start < b.start ? -1 : 1)));
      }),
      { numRuns: 150 },
    );
  });

  it("keeps order through thousands of splits and through emptying", () => {
    const map = new IntervalMap<number>();
    const count = 20_000;
    for (let i = 0; i < count; i++)
      expect(map.insert((i * 7919) % count, 0, (i * 7919) % count, 4095, i)).toBe(true);
    let expected = 0;
    for (let more = map.first(); more; more = map.next()) expect(map.startPage).toBe(expected++);
    expect(expected).toBe(count);
    map.first();
    for (let left = count; left > 0; left--) expect(map.remove()).toBe(left > 1);
    expect(map.size).toBe(0);
    expect(map.first()).toBe(false);
  });

  it("the next hole of a length is the one a walk over all intervals finds, whatever came and went", () => {
    const map = new IntervalMap<number>();
    const taken = new Set<number>();
    const pages = 2000;
    let seed = 1;
    const random = (below: number) => {
      seed = (seed * 48_271) % 2_147_483_647;
      return seed % below;
    };
    const walk = (page: number, need: number): number | undefined => {
      const starts = [...taken].filter((one) => one > page).sort((a, b) => a - b);
      return starts.find((one) => {
        let free = 0;
        while (one - free > 0 && !taken.has(one - free - 1)) free += 1;
        return free >= need;
      });
    };
    for (let step = 0; step < 6000; step += 1) {
      const page = random(pages);
      if (taken.has(page) && random(3) > 0) {
        map.find(page, 0);
        map.remove();
        taken.delete(page);
      } else if (map.insert(page, 0, page, 4095, page)) taken.add(page);
      if (step % 20 > 0 || !map.seek(random(pages), 0)) continue;
      const [from, need] = [map.startPage, 1 + random(4)];
      const expected = walk(from, need);
      expect(map.nextHole(need * 4096) ? map.startPage : undefined).toBe(expected);
    }
  });

  it("finds holes among many shelves as a scan does, from anywhere, while intervals come and go", () => {
    const pages = 60_000;
    const taken = new Uint8Array(pages).fill(1);
    const map = new IntervalMap<number>();
    for (let page = 0; page < pages; page += 1) map.insert(page, 0, page, 4095, page);
    const random = new Random(7);
    const below = (count: number) => random.next() % count;
    const scan = (from: number, need: number): number | undefined => {
      let free = 0;
      let at = from;
      while (at > 0 && !taken[at - 1]) at -= 1;
      for (; at < pages; at += 1) {
        if (taken[at] && free >= need && at > from) return at;
        free = taken[at] ? 0 : free + 1;
      }
      return undefined;
    };
    let found = 0;
    for (let step = 0; step < 4000; step += 1) {
      // Runs, so that whole blocks go, and at times a whole shelf.
      const start = below(pages);
      const run = step % 500 === 499 ? 12_000 : 1 + below(3);
      for (let page = start; page < Math.min(start + run, pages); page += 1) {
        if (taken[page] && step % 3 > 0) {
          expect(map.find(page, 0)).toBe(true);
          map.remove();
          taken[page] = 0;
        } else if (!taken[page] && step % 3 === 0) {
          expect(map.insert(page, 0, page, 4095, page)).toBe(true);
          taken[page] = 1;
        }
      }
      if (step % 20 > 0 || !map.seek(below(pages), 0)) continue;
      const [from, need] = [map.startPage, 1 + below(6)];
      const expected = scan(from, need);
      expect(map.nextHole(need * 4096) ? map.startPage : undefined).toBe(expected);
      if (expected !== undefined) found += 1;
      // The cursor is where it says: the one before ends before it, or it is behind the last one.
      const next = expected ?? pages;
      expect(map.previous()).toBe(true);
      expect(map.lastPage).toBe(taken.lastIndexOf(1, next - 1));
    }
    expect(found).toBeGreaterThan(50);
    expect(map.size).toBe(taken.reduce((sum, one) => sum + one, 0));
  });

  it("looks at a few hundred places for a hole among a million intervals, wherever it is", () => {
    const map = new IntervalMap<undefined>();
    const count = 1_000_000;
    for (let i = 0; i < count; i += 1) map.insert(2 * i, 0, 2 * i, 4095, undefined);
    map.first();
    expect(map.nextHole(2 * 4096)).toBe(false);
    for (const at of [3, 1000, count / 2, count - 2]) {
      map.find(2 * at, 0);
      map.remove();
      map.first();
      const before = map.looked;
      expect(map.nextHole(2 * 4096)).toBe(true);
      expect(map.startPage).toBe(2 * at + 2);
      expect(map.looked - before).toBeLessThan(1000);
      map.insert(2 * at, 0, 2 * at, 4095, undefined);
    }
  });

  it("goes back from behind the last interval, however often it was moved on", () => {
    const map = new IntervalMap<number>();
    map.insert(1, 0, 1, 4095, 1);
    map.first();
    expect([map.next(), map.next(), map.next()]).toEqual([false, false, false]);
    expect(map.previous()).toBe(true);
    expect(map.value).toBe(1);
    map.clear();
    expect([map.size, map.first(), map.previous(), map.find(1, 0)]).toEqual([0, false, false, false]);
    expect(map.insert(5, 0, 5, 4095, 5)).toBe(true);
  });

  it("emptied and filled again, it has what came last and nothing of before", () => {
    const map = new IntervalMap<number>();
    for (let round = 0; round < 5; round += 1) {
      for (let i = 0; i < 10; i += 1)
        map.insert(10 * i + round, 0, 10 * i + round + 3, 4095, 100 * round + i);
      expect([map.size, map.first(), map.startPage, map.value]).toEqual([10, true, round, 100 * round]);
      expect(map.nextHole(6 * 4096)).toBe(true);
      expect(map.startPage).toBe(10 + round);
      for (let more = map.first(); more; more = map.remove());
      expect([map.size, map.first(), map.find(round, 0)]).toEqual([0, false, false]);
    }
  });
});
