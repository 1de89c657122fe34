/**
 * What every page-table format must pass: its declaration makes sense, the mapper keeps its tables like a literal list
 * of leaves, the generated walker answers as the literal one on any memory, and nothing is lost when memory runs out.
 */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Random } from "../base/clock.ts";
import { Banks } from "../memory/banks.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { compileWalker } from "./compile.ts";
import { explainWalk, type WalkOutcome } from "./explain.ts";
import {
  absentAt,
  type EntryTest,
  inputBits,
  type LeafKind,
  mappedEnd,
  type PageTableFormat,
  Permission,
  type TableKind,
  tableBytes,
  WalkFault,
} from "./format.ts";
import { Mapper } from "./mapper.ts";
import { WalkResult } from "./walker.ts";

const WORD32 = 2 ** 32;
const FRAME = 4096;
const words = (address: number | bigint): [number, number] => {
  const value = BigInt(address);
  return [Number(value & 0xffff_ffffn), Number(value >> 32n)];
};

const explain = (
  format: PageTableFormat,
  memory: HostMemory,
  root: number,
  address: bigint,
  need: number,
): WalkOutcome => {
  const steps = explainWalk(format, memory, root, address, need);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
};

const errorOf = (action: () => unknown): string | undefined => {
  try {
    action();
    return undefined;
  } catch (error) {
    if (error instanceof LinuxError) return error.code;
    throw error;
  }
};

/** A leaf, as the model knows it. */
interface ModelLeaf {
  readonly iova: number;
  readonly pa: number;
  readonly size: number;
  readonly protection: number;
}

/** A page table as a list: which leaves there are. */
class Model {
  readonly leaves = new Map<number, ModelLeaf>();
  readonly #format: PageTableFormat;
  readonly #sizes: readonly number[];

  constructor(format: PageTableFormat) {
    this.#format = format;
    this.#sizes = leafSizes(format).reverse();
  }

  touching(iova: number, length: number): ModelLeaf[] {
    return [...this.leaves.values()].filter(
      (leaf) => leaf.iova < iova + length && leaf.iova + leaf.size > iova,
    );
  }

  inside(iova: number, length: number): ModelLeaf[] {
    const end = iova + length;
    return this.touching(iova, length).filter((leaf) => leaf.iova >= iova && leaf.iova + leaf.size <= end);
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    let done = 0;
    while (done < length) {
      const size = this.#sizes.find(
        (one) => (iova + done) % one === 0 && (pa + done) % one === 0 && length - done >= one,
      )!;
      this.leaves.set(iova + done, { iova: iova + done, pa: pa + done, size, protection });
      done += size;
    }
  }

  unmap(iova: number, length: number): number {
    const gone = this.inside(iova, length);
    for (const leaf of gone) this.leaves.delete(leaf.iova);
    return gone.reduce((bytes, { size }) => bytes + size, 0);
  }

  /** Tables it takes to hold the leaves, the root among them. */
  get tables(): number {
    const { levels } = this.#format;
    const needed = new Set([`${levels.length - 1}:0`]);
    for (const { iova, size } of this.leaves.values()) {
      const level = levels.findIndex(({ leaves }) => leaves.some(({ lg2 }) => 2 ** lg2 === size));
      for (let i = level; i < levels.length; i++)
        needed.add(`${i}:${Math.floor(iova / 2 ** (levels[i]!.shift + levels[i]!.bits))}`);
    }
    return needed.size;
  }
}

/** Leaf sizes in bytes, ascending. */
const leafSizes = ({ levels }: PageTableFormat): number[] =>
  levels.flatMap(({ leaves }) => leaves.map(({ lg2 }) => 2 ** lg2)).sort((a, b) => a - b);

/** The format's protections that it can say, of all there are. */
const protectionsOf = (format: PageTableFormat): number[] =>
  Array.from({ length: 8 }, (_, protection) => protection).filter((one) => format.leafBits(one) >= 0n);

/** Sizes up to this are mapped whole in the random runs: enough tables at every level, not too many entries. */
const MANY = 300;

/** Ranges near places where something changes: start and end of the space, boundaries of each leaf size. */
const ranges = (format: PageTableFormat) => {
  const sizes = leafSizes(format);
  const page = sizes[0]!;
  const end = mappedEnd(format);
  const outputEnd = 2 ** format.outputBits;
  const anchors = [0, end / 2, end, ...sizes.flatMap((size) => [size, 2 * size, end / 2 + size, end - size])];
  const place = fc.oneof(
    { weight: 8, arbitrary: fc.constantFrom(...anchors) },
    {
      weight: 1,
      arbitrary: fc.nat({ max: 2 ** 30 }).map((n) => ((n * page * 1021) % end) - ((n * page * 1021) % page)),
    },
  );
  const around = fc.integer({ min: -4, max: 4 });
  const length = fc
    .tuple(fc.constantFrom(...sizes), fc.integer({ min: 1, max: 3 }), fc.nat({ max: 2 }))
    .map(([size, count, more]) => size * count + page * more)
    .filter((bytes) => bytes / page <= MANY || sizes.some((size) => bytes % size <= page * MANY));
  return fc
    .record({
      place,
      around,
      length,
      target: fc.constantFrom(...sizes, 0, outputEnd / 2),
      shifted: fc.nat({ max: 3 }),
    })
    .map(({ place, around, length, target, shifted }) => {
      const iova = Math.max(0, place + around * page);
      // Mostly congruent with the IOVA, so that large leaves fit; sometimes not.
      const largest = sizes[sizes.length - 1]!;
      const pa = shifted === 0 ? target + 3 * page : target + (iova % Math.min(largest, outputEnd / 4));
      return { iova, pa, length };
    })
    .filter(({ iova, pa, length }) => leavesIn(sizes, iova, pa, length) <= MANY);
};

/** How many leaves a mapping takes; Infinity when absurdly many. */
const leavesIn = (sizes: readonly number[], iova: number, pa: number, length: number): number => {
  const fits = (at: number, size: number) => at % size === 0;
  let count = 0;
  for (let done = 0; done < length; count++) {
    if (count > MANY) return Number.POSITIVE_INFINITY;
    const size = sizes.findLast(
      (one) => fits(iova + done, one) && fits(pa + done, one) && length - done >= one,
    );
    if (size === undefined) return Number.POSITIVE_INFINITY;
    done += size;
  }
  return count;
};

/** Accessed bits that are set before a walk has ended. */
export const atOnceBits = ({ accessedAtOnce, levels }: PageTableFormat): bigint =>
  accessedAtOnce
    ? levels.flatMap(({ tables }) => tables).reduce((bits, { accessed = 0n }) => bits | accessed, 0n)
    : 0n;

/** `expect(found).toBe(wanted)`, which costs more than a walk, only where it fails. */
export const same = <T extends number | bigint>(
  found: T,
  wanted: T,
  { reason }: { readonly reason: string },
  what: string,
): void => {
  if (!Object.is(found, wanted)) expect(found, `${what}: ${reason}`).toBe(wanted);
};

/** The suite. `make` gives the format; another one each time is fine. */
export const describeFormat = (name: string, make: () => PageTableFormat): void => {
  describe(`${name}: page-table format`, () => {
    const format = make();
    const walk = compileWalker(format);
    const atOnce = atOnceBits(format);
    const protections = protectionsOf(format);
    const page = leafSizes(format)[0]!;
    let memory: Banks;
    /** A frame that was marked bad. */
    let poisoned: number;
    beforeAll(() => {
      // RAM on both sides of 4 GiB; the upper is given out first.
      memory = new Banks({
        ram: [
          { start: 0, length: 2 ** 24 },
          { start: 1.5 * WORD32, length: 2 ** 27 },
        ],
      });
      poisoned = memory.allocate(1);
      memory.poison(poisoned, FRAME);
    });
    afterAll(() => memory.close());

    /** Fast and literal walk agree; what they say. */
    const agreed = (root: number, address: bigint, need: number): WalkOutcome => {
      const outcome = explain(format, memory, root, address, need);
      const out = new WalkResult();
      const fault = walk(memory, root, ...words(address), need, out);
      const { level } = outcome;
      same(fault, outcome.fault, outcome, "fault");
      same(out.level, level, outcome, "level");
      if (level >= 0) {
        same(out.entryAddress, outcome.entryAddress, outcome, "entry's address");
        // In a cycle the walk may meet an entry again whose accessed bit it has set.
        const found = (BigInt(out.hi) << 32n) | BigInt(out.lo);
        same(found & ~atOnce, outcome.entry & ~atOnce, outcome, "entry");
      }
      if (fault === WalkFault.none)
        for (const what of ["pa", "lg2", "span", "allowed"] as const)
          same(out[what], outcome[what], outcome, what);
      return outcome;
    };

    describe("declaration", () => {
      it("has levels that adjoin, down to the smallest page", () => {
        const { levels } = format;
        expect(levels[0]!.tables).toEqual([]);
        levels.forEach((level, index) => {
          if (index > 0) expect(level.shift).toBe(levels[index - 1]!.shift + levels[index - 1]!.bits);
          for (const { lg2 } of level.leaves) expect(lg2).toBeGreaterThanOrEqual(level.shift);
          for (const { to } of level.tables) expect(to).toBeLessThan(index);
          if (index > 0) expect(level.tables.some(({ to }) => to === index - 1)).toBe(true);
        });
        expect(format.outputBits).toBeLessThanOrEqual(52);
      });

      it("writes entries that are what it declares", () => {
        const passes = ({ mask, value }: EntryTest, entry: bigint) => (entry & mask) === value;
        for (const [index, level] of format.levels.entries()) {
          const absent = absentAt(format, index);
          expect(passes(absent, format.empty)).toBe(true);
          const kinds = [...level.tables, ...level.leaves];
          for (const kind of kinds) {
            expect(kind.address >> 52n).toBe(0n);
            const attributes = "lg2" in kind ? protections.map((one) => format.leafBits(one)) : [0n];
            for (const attribute of attributes) {
              const highest = kind.address & ((1n << BigInt(format.outputBits)) - 1n);
              for (const target of [0n, highest]) {
                const entry = kind.bits | attribute | target;
                expect(passes(absent, entry)).toBe(false);
                expect(kinds.filter(({ test }) => passes(test, entry))).toEqual([kind]);
                for (const check of kind.checks) expect(passes(check, entry), check.why).toBe(true);
                expect(entry & kind.address).toBe(target);
              }
            }
          }
        }
      });
    });

    describe("mapper", () => {
      const operation = fc.record({
        what: fc.constantFrom("map", "map", "map", "unmap", "unmap", "protect", "release"),
        range: ranges(format),
        protection: fc.constantFrom(...protections),
        again: fc.nat({ max: 20 }),
      });

      it("agrees with a list of leaves, and keeps no table without content", () => {
        fc.assert(
          fc.property(fc.array(operation, { maxLength: 30 }), (operations) => {
            const before = memory.allocated;
            const mapper = new Mapper(memory, format);
            const model = new Model(format);
            const seen: { iova: number; length: number }[] = [];
            for (const { what, range, protection, again } of operations) {
              let { iova, length } = range;
              const { pa } = range;
              const earlier = seen[again];
              if (earlier && what !== "map") ({ iova, length } = earlier);
              seen.push({ iova, length });
              const inside = iova + length <= mappedEnd(format);
              const outputFits = pa + length <= 2 ** format.outputBits;
              if (what === "release") mapper.release();
              else if (what === "map") {
                const expected =
                  !inside || !outputFits
                    ? "ERANGE"
                    : model.touching(iova, length).length
                      ? "EEXIST"
                      : undefined;
                expect(errorOf(() => mapper.map(iova, pa, length, protection))).toBe(expected);
                if (!expected) model.map(iova, pa, length, protection);
              } else if (!inside) {
                expect(errorOf(() => mapper.unmap(iova, length))).toBe("ERANGE");
              } else if (what === "unmap") {
                const gone = model.inside(iova, length);
                const bytes = model.unmap(iova, length);
                expect(mapper.unmap(iova, length)).toBe(bytes);
                for (const leaf of gone) {
                  expect(mapper.gather.start).toBeLessThanOrEqual(leaf.iova);
                  expect(mapper.gather.end).toBeGreaterThanOrEqual(leaf.iova + leaf.size);
                }
              } else {
                const changed = model.inside(iova, length);
                const bytes = changed.reduce((sum, { size }) => sum + size, 0);
                expect(mapper.protect(iova, length, protection)).toBe(bytes);
                for (const leaf of changed) model.leaves.set(leaf.iova, { ...leaf, protection });
              }
              expect(mapper.tables).toBe(model.tables);
              for (const at of [iova, iova + length - 2048, iova + length]) {
                const hit = model.touching(at, 2048)[0];
                expect(mapper.physical(at)).toBe(hit ? hit.pa + (at - hit.iova) : -1);
              }
            }
            const leaves = [...model.leaves.values()];
            const step = Math.ceil(leaves.length / 30);
            for (const leaf of leaves.filter((_, index) => index % step === 0)) {
              const outcome = agreed(mapper.root, BigInt(leaf.iova) + 1n, 0);
              expect(outcome.fault, outcome.reason).toBe(WalkFault.none);
              expect([outcome.pa, outcome.span]).toEqual([leaf.pa + 1, leaf.size - 1]);
              expect(outcome.allowed & leaf.protection & 3).toBe(leaf.protection & 3);
            }
            mapper.destroy();
            expect(memory.allocated).toBe(before);
          }),
          { numRuns: 50 },
        );
      });

      it("refuses what is no multiple of a page, is empty, is beyond either width or says nothing", () => {
        const mapper = new Mapper(memory, format);
        const end = mappedEnd(format);
        const [protection] = protections as [number];
        expect(errorOf(() => mapper.map(1, 0, page, protection))).toBe("EINVAL");
        expect(errorOf(() => mapper.map(0, page / 2, page, protection))).toBe("EINVAL");
        expect(errorOf(() => mapper.map(0, 0, page + 1, protection))).toBe("EINVAL");
        expect(errorOf(() => mapper.map(0, 0, 0, protection))).toBe("EINVAL");
        expect(errorOf(() => mapper.unmap(0, 0))).toBe("EINVAL");
        expect(errorOf(() => mapper.map(end, 0, page, protection))).toBe("ERANGE");
        expect(errorOf(() => mapper.map(0, 2 ** format.outputBits, page, protection))).toBe("ERANGE");
        if (format.leafBits(0) < 0n) expect(errorOf(() => mapper.map(0, 0, page, 0))).toBe("EINVAL");
        expect(mapper.physical(end)).toBe(-1);
        expect([mapper.tables, mapper.gather.pending]).toEqual([1, false]);
        mapper.destroy();
      });

      it("leaves a leaf alone that the range covers in part, and the tables it needs", () => {
        for (const size of leafSizes(format).slice(1)) {
          const mapper = new Mapper(memory, format);
          mapper.map(0, 0, size, protections[0]!);
          const { tables } = mapper;
          mapper.map(size, 4 * size, size, protections[0]!);
          expect(mapper.unmap(page, 2 * size - page)).toBe(size);
          expect([mapper.physical(0), mapper.physical(size), mapper.tables]).toEqual([0, -1, tables]);
          expect(mapper.unmap(0, page)).toBe(0);
          expect(mapper.protect(page, size - page, protections[0]!)).toBe(0);
          expect(mapper.unmap(0, size)).toBe(size);
          expect(mapper.tables).toBe(1);
          mapper.destroy();
        }
      });

      it("keeps freed tables until they are released", () => {
        const before = memory.allocated;
        const mapper = new Mapper(memory, format);
        const root = memory.allocated;
        const end = mappedEnd(format);
        mapper.map(0, 0, page, protections[0]!);
        mapper.map(end - page, page, page, protections[0]!);
        const full = memory.allocated;
        expect(mapper.unmap(0, end)).toBe(2 * page);
        expect(memory.allocated).toBe(full);
        expect(mapper.retired).toBe(2 * (format.levels.length - 1));
        expect(mapper.gather).toMatchObject({
          pending: true,
          tables: format.levels.length > 1,
          start: 0,
          end,
        });
        mapper.release();
        expect([memory.allocated, mapper.retired, mapper.gather.pending]).toEqual([root, 0, false]);
        mapper.destroy();
        expect(memory.allocated).toBe(before);
      });

      it("tells every write of its tables", () => {
        fc.assert(
          fc.property(fc.array(operation, { maxLength: 12 }), (operations) => {
            // What a unit sees that does not snoop: memory as of the last write it was told of.
            const told = new Map<number, string>();
            const mapper = new Mapper(memory, format);
            const entry = (pa: number) => {
              memory.load64(pa);
              return `${memory.hi}:${memory.lo}`;
            };
            const write = (pa: number, bytes: number) => {
              for (let at = pa; at < pa + bytes; at += 8) told.set(at, entry(at));
            };
            mapper.onTableWrite = write;
            write(mapper.root, tableBytes(format.levels[format.levels.length - 1]!));
            for (const { what, range, protection } of operations) {
              if (what === "map") errorOf(() => mapper.map(range.iova, range.pa, range.length, protection));
              if (what === "unmap") errorOf(() => mapper.unmap(range.iova, range.length));
              if (what === "protect") errorOf(() => mapper.protect(range.iova, range.length, protection));
            }
            let stale = 0;
            for (const [pa, value] of told) if (entry(pa) !== value) stale += 1;
            expect(stale).toBe(0);
            mapper.destroy();
          }),
          { numRuns: 40 },
        );
      });
    });

    describe("when memory runs out", () => {
      const unlimited = (count: number) => Banks.prototype.allocate.call(memory, count);

      it("a map that fails at any table changes nothing and leaks nothing", () => {
        const before = memory.allocated;
        const [protection] = protections as [number];
        const mapper = new Mapper(memory, format);
        const boundary = 2 ** (format.levels[0]!.shift + format.levels[0]!.bits);
        const span = format.levels.length > 1 ? boundary : page * 8;
        mapper.map(0, 0, page, protection);
        const [tables, frames] = [mapper.tables, memory.allocated];
        // Small pages on both sides of a table's boundary: the physical address fits nothing larger.
        const length = format.levels.length > 1 ? span + 2 * page : 2 * page;
        for (let fail = 0; ; fail++) {
          let left = fail;
          memory.allocate = (count) => (left-- > 0 ? unlimited(count) : -1);
          const error = errorOf(() => mapper.map(page, 2 * page, length, protection));
          memory.allocate = unlimited;
          if (error === undefined) break;
          expect(error).toBe("ENOMEM");
          expect([mapper.tables, memory.allocated, mapper.retired]).toEqual([tables, frames, 0]);
          expect([mapper.physical(0), mapper.physical(page), mapper.physical(page + length - page)]).toEqual([
            0, -1, -1,
          ]);
          expect(mapper.gather.pending).toBe(false);
        }
        expect(mapper.physical(page + length - page)).toBe(2 * page + length - page);
        mapper.destroy();
        expect(memory.allocated).toBe(before);
      });

      it("a map that meets a mapping changes nothing, wherever that is", () => {
        const before = memory.allocated;
        const [protection] = protections as [number];
        const { levels } = format;
        const boundary = levels.length > 1 ? 2 ** (levels[0]!.shift + levels[0]!.bits) : 4 * page;
        for (const at of [0, page, boundary - page, boundary, boundary + page]) {
          const mapper = new Mapper(memory, format);
          mapper.map(at, 0, page, protection);
          const { tables } = mapper;
          const frames = memory.allocated;
          expect(errorOf(() => mapper.map(0, page, boundary + 2 * page, protection))).toBe("EEXIST");
          expect([mapper.tables, memory.allocated]).toEqual([tables, frames]);
          expect(mapper.unmap(0, boundary + 2 * page)).toBe(page);
          mapper.destroy();
        }
        expect(memory.allocated).toBe(before);
      });

      it("no root table, no mapper", () => {
        memory.allocate = () => -1;
        expect(errorOf(() => new Mapper(memory, format))).toBe("ENOMEM");
        memory.allocate = unlimited;
      });
    });

    describe("walkers", () => {
      it("the generated and the literal one agree on any memory: malformed, cyclic, absent, poisoned", () => {
        const met = new Set<WalkFault>();
        fc.assert(
          fc.property(fc.nat(), (seed) => {
            const random = new Random(seed);
            const scene = new Scene(format, memory, random, poisoned);
            for (let i = 0; i < 120; i++) {
              const outcome = agreed(scene.root, scene.address(), scene.need());
              met.add(outcome.fault);
            }
            scene.free();
          }),
          { numRuns: 60 },
        );
        const { none, notPresent, tableUnreadable } = WalkFault;
        const must = format.levels.length > 1 ? [none, notPresent, tableUnreadable] : [none, notPresent];
        expect([...met]).toEqual(expect.arrayContaining(must));
      });

      it("an address beyond the tables' width is refused before any table is read", () => {
        const width = BigInt(inputBits(format));
        if (width >= 64n) return;
        const outside = format.canonical
          ? [1n << (width - 1n), (1n << 64n) - (1n << width), ((1n << 64n) - 1n) ^ (1n << width)]
          : [1n << width, (1n << 64n) - 1n, (1n << width) | 0x1000n];
        for (const address of outside)
          expect(agreed(0, address, Permission.read)).toMatchObject({
            fault: WalkFault.inputWidth,
            level: -1,
          });
      });

      it("explains with a step for every entry fetched", () => {
        const mapper = new Mapper(memory, format);
        mapper.map(5 * page, 7 * page, page, protections[0]!);
        const steps = [...explainWalk(format, memory, mapper.root, BigInt(5 * page), 0)];
        const { levels } = format;
        expect(steps.map(({ what }) => what)).toEqual(levels.map((level) => level.name).reverse());
        expect(steps.every((step) => step.fields?.length && step.note && step.address)).toBe(true);
        mapper.destroy();
      });
    });

    describe("accessed and dirty bits", () => {
      const leaf = format.levels[0]!.leaves[0] as LeafKind;
      const writable = protections.find((one) => one & Permission.write) as number;

      it("are set by a walk that succeeds, dirty by a write only, and nothing else is written", () => {
        const mapper = new Mapper(memory, format);
        mapper.map(0, 0, 4 * page, writable | Permission.read);
        const out = new WalkResult();
        const entry = (address: number) => explain(format, memory, mapper.root, BigInt(address), 0).entry;
        const clean = entry(0);
        expect(walk(memory, mapper.root, 0, 0, Permission.read, out)).toBe(WalkFault.none);
        expect(entry(0)).toBe(clean | (leaf.accessed ?? 0n));
        expect(walk(memory, mapper.root, 0, 0, Permission.write, out)).toBe(WalkFault.none);
        expect(entry(0)).toBe(
          (clean | (leaf.accessed ?? 0n) | (leaf.dirty ?? 0n)) & ~(leaf.dirtyCleared ?? 0n),
        );
        const top = format.levels[format.levels.length - 1]!;
        const accessed = top.tables.find(({ to }) => to === format.levels.length - 2)?.accessed;
        memory[format.bigEndian ? "load64be" : "load64"](mapper.root);
        const rootEntry = (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
        if (accessed !== undefined) expect(rootEntry & accessed).toBe(accessed);
        mapper.destroy();
      });

      it("are scanned and cleared by the mapper", () => {
        const mapper = new Mapper(memory, format);
        // Not a multiple of two pages off: no larger leaf fits.
        mapper.map(0, page, 4 * page, writable);
        const scan = (clear: boolean) => {
          const found: number[] = [];
          mapper.scanDirty(0, 8 * page, clear, (iova, bytes) => found.push(iova, bytes));
          return found;
        };
        if (leaf.dirty === undefined && leaf.dirtyCleared === undefined) {
          expect(errorOf(() => scan(false))).toBe("EOPNOTSUPP");
        } else {
          const out = new WalkResult();
          walk(memory, mapper.root, ...words(2 * page), Permission.write, out);
          walk(memory, mapper.root, ...words(page), Permission.read, out);
          expect(scan(false)).toEqual([2 * page, page]);
          expect(scan(true)).toEqual([2 * page, page]);
          expect(mapper.gather).toMatchObject({ start: 2 * page, end: 3 * page, tables: false });
          expect(scan(false)).toEqual([]);
          expect(mapper.physical(2 * page)).toBe(3 * page);
        }
        mapper.destroy();
      });

      it("a leaf of several entries is dirty when it was written through any of them, and is cleared in all", () => {
        const repeated = format.levels
          .flatMap(({ leaves, shift }) => leaves.map((kind) => ({ kind, step: 2 ** shift })))
          .find(({ kind, step }) => 2 ** kind.lg2 > step && (kind.dirty ?? kind.dirtyCleared) !== undefined);
        if (!repeated) return;
        const { kind, step } = repeated;
        const size = 2 ** kind.lg2;
        const mapper = new Mapper(memory, format);
        mapper.map(0, 0, size, writable);
        const scan = (clear: boolean) => {
          const found: number[] = [];
          mapper.scanDirty(0, size, clear, (iova, bytes) => found.push(iova, bytes));
          return found;
        };
        const out = new WalkResult();
        for (const at of [0, step, size - step]) {
          expect(scan(false)).toEqual([]);
          walk(memory, mapper.root, ...words(at), Permission.write, out);
          expect(out.lg2).toBe(kind.lg2);
          expect(mapper.protect(0, size, writable)).toBe(size);
          // What protects may also clean, where the dirty bit grants.
          walk(memory, mapper.root, ...words(at), Permission.write, out);
          expect(scan(true)).toEqual([0, size]);
        }
        mapper.destroy();
      });
    });
  });
};

/** A few tables of random entries that point at each other, at pages, and at nothing. */
class Scene {
  readonly root: number;
  readonly #format: PageTableFormat;
  readonly #memory: Banks;
  readonly #random: Random;
  readonly #frames: number;
  readonly #allocated: readonly number[];
  readonly #tables: readonly number[];
  /** Where no table can be read. */
  readonly #nowhere: readonly number[];
  /** Indices in use: few, so that walks meet entries. */
  readonly #slots: readonly number[];

  constructor(format: PageTableFormat, memory: Banks, random: Random, poisoned: number) {
    this.#nowhere = [poisoned, 2 ** 25, 2 ** 33, 2 ** 45, 2 ** 51];
    this.#format = format;
    this.#memory = memory;
    this.#random = random;
    this.#frames = Math.max(...format.levels.map((level) => tableBytes(level))) / FRAME;
    this.#allocated = Array.from({ length: 4 }, () => memory.allocate(this.#frames));
    // One more in another bank: lower RAM is given out only when the upper is full.
    this.#tables = [...this.#allocated, 2 ** 20];
    this.root = this.#tables[0]!;
    this.#slots = [0, 1, 2, 85, 170, 255, 256, 511, 1023, 2047, 4095, 8191];
    this.#tables.forEach((table, nth) => {
      for (const slot of this.#slots)
        if (slot * 8 < this.#frames * FRAME) this.#store(table + slot * 8, this.#entry(nth));
    });
  }

  free(): void {
    for (const table of this.#allocated) this.#memory.free(table, this.#frames);
  }

  need(): number {
    const { execute, user, privilegedExecute } = Permission;
    return this.#pick([0, 1, 2, 3, execute, privilegedExecute, user | 1, user | 2, user | execute]);
  }

  /** An address made of indices in use; now and then one that is not or a bit too many. */
  address(): bigint {
    const { levels } = this.#format;
    let address = 0n;
    for (const { shift, bits } of levels) {
      const index = this.#random.below(12) ? this.#pick(this.#slots) : this.#random.next();
      address |= (BigInt(index) & ((1n << BigInt(bits)) - 1n)) << BigInt(shift);
    }
    address |= BigInt(this.#random.below(2 ** Math.min(31, levels[0]!.shift)));
    if (this.#format.canonical) address = BigInt.asUintN(64, BigInt.asIntN(inputBits(this.#format), address));
    return this.#random.below(40) ? address : address | (1n << BigInt(this.#random.below(64)));
  }

  #pick<T>(from: readonly T[]): T {
    return from[this.#random.below(from.length)]!;
  }

  #store(pa: number, entry: bigint): void {
    const store = this.#format.bigEndian ? "store64be" : "store64";
    this.#memory[store](pa, ...words(entry));
  }

  /**
   * Any kind at any level, mostly as the format would write it, sometimes with bits turned over. Half of them are as
   * if the `nth` table were that of the nth level from the root: formats whose entries tell their level need such a way.
   */
  #entry(nth: number): bigint {
    const random = this.#random;
    const { levels } = this.#format;
    if (random.below(10) === 0) return this.#format.empty;
    if (random.below(20) === 0) return (BigInt(random.next()) << 32n) | BigInt(random.next());
    const orderly = random.below(2) === 0;
    const level = (orderly ? levels.at(-1 - nth) : undefined) ?? this.#pick(levels);
    const table = level.leaves.length === 0 || (level.tables.length > 0 && random.below(3) > 0);
    const kind: TableKind | LeafKind = table ? this.#pick(level.tables) : this.#pick(level.leaves);
    const next = orderly ? this.#tables[nth + 1] : undefined;
    let target = BigInt(next ?? this.#pick(this.#tables));
    if ("lg2" in kind) target = BigInt(random.next()) << BigInt(random.below(21) + 12);
    if (random.below(2)) target &= (1n << BigInt(this.#format.outputBits)) - 1n;
    if (!("lg2" in kind) && random.below(12) === 0) target = BigInt(this.#pick(this.#nowhere));
    const protection = this.#pick(protectionsOf(this.#format));
    let entry = kind.bits | (target & kind.address);
    if ("lg2" in kind) entry |= this.#format.leafBits(protection);
    const { addressHigh: far } = kind;
    if (far && random.below(4) === 0) entry |= BigInt(random.below(2 ** far.bits)) << BigInt(far.at);
    for (let flips = this.#pick([0, 0, 0, 0, 1, 1, 2]); flips > 0; flips--)
      entry ^= 1n << BigInt(random.below(64));
    return entry;
  }
}
