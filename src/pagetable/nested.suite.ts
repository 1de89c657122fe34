/**
 * What the walkers of a first stage over a second must pass: the generated ones, with and without a cache of guest
 * addresses, answer as the literal one on any tables of either stage, and set the bits that are to be set.
 */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Random } from "../base/clock.ts";
import { Banks } from "../memory/banks.ts";
import { explainWalk } from "./explain.ts";
import { explainNested, type NestedOutcome } from "./explain-nested.ts";
import { atOnceBits, same } from "./format.suite.ts";
import {
  type FormatLevel,
  inputBits,
  type LeafKind,
  type PageTableFormat,
  Permission,
  type TableKind,
  tableBytes,
  WalkFault,
} from "./format.ts";
import { GuestCache } from "./guest-cache.ts";
import { Mapper } from "./mapper.ts";
import { compileCachedNested, compileNested, Fetch, type NestedFormats, NestedResult } from "./nested.ts";

const WORD32 = 2 ** 32;
const words = (value: bigint): [number, number] => [Number(value & 0xffff_ffffn), Number(value >> 32n)];
const everyBit = Object.values(Permission).reduce((all, one) => all | one, 0);

/** Frames that a first-stage table takes which the second stage can map by itself. */
const tableFrames = ({ second }: NestedFormats, level: FormatLevel): number =>
  Math.max(tableBytes(level), 2 ** second.levels[0]!.leaves[0]!.lg2) / 4096;

/** Results of a fault of the second stage, and of a walk that ends at a leaf. */
const ABOVE = ["fetch", "guestLevel", "guestAddress"] as const;
const LEAF = ["pa", "lg2", "span", "guestAddress"] as const;

/** Tables of both stages: the second's by its mapper, with bits turned over; the first's of random entries. */
class NestedScene {
  /** Guest address of the first stage's root; the second stage. */
  readonly root: number;
  readonly lower: Mapper;
  readonly #formats: NestedFormats;
  readonly #memory: Banks;
  readonly #random: Random;
  readonly #frames: number;
  readonly #host: number[] = [];
  readonly #guest: number[] = [];
  /** Guest addresses where data is. */
  readonly #data: number[] = [];
  /** Second-stage entries with bits turned over, as they were. */
  readonly #turned = new Map<number, bigint>();
  readonly #slots = [0, 1, 255, 256, 511, 1023, 8191];

  constructor(formats: NestedFormats, memory: Banks, random: Random) {
    const { first, second } = formats;
    this.#formats = formats;
    this.#memory = memory;
    this.#random = random;
    this.#frames = Math.max(...first.levels.map((level) => tableFrames(formats, level)));
    this.lower = new Mapper(memory, second);
    const end = 2 ** Math.min(inputBits(second) - 1, first.outputBits - 1);
    for (let i = 0; i < 5; i++) {
      const guest = (i % 2 ? end / 2 : 0) + (i + 3) * this.#frames * 4096;
      const host = memory.allocate(this.#frames);
      this.#guest.push(guest);
      this.#host.push(host);
      if (i === 0 || random.below(12)) this.#map(guest, host, this.#frames * 4096, i === 0);
    }
    this.root = this.#guest[0]!;
    const sizes = second.levels
      .flatMap(({ leaves }) => leaves.map(({ lg2 }) => 2 ** lg2))
      .sort((a, b) => a - b);
    for (const size of sizes.filter((size) => size <= 2 ** 34)) {
      const guest = end / 4 + 4 * size;
      this.#map(guest, size * this.#pick([1, 2, 3]), size, false);
      this.#data.push(guest, guest + size / 2);
    }
    for (const host of this.#host)
      for (const slot of this.#slots) if (slot * 8 < this.#frames * 4096) this.#store(host + slot * 8);
    this.#turnBits();
  }

  free(): void {
    // The mapper goes through its tables: they must be as it wrote them.
    for (const [address, value] of this.#turned) this.#put(this.#formats.second, address, value);
    for (const host of this.#host) this.#memory.free(host, this.#frames);
    this.lower.destroy();
  }

  #put({ bigEndian }: PageTableFormat, address: number, value: bigint): void {
    this.#memory[bigEndian ? "store64be" : "store64"](address, ...words(value));
  }

  need(): number {
    const { read, write, execute, user } = Permission;
    return this.#pick([0, read, write, read | write, execute, read | user, write | user, execute | user]);
  }

  address(): bigint {
    const { first } = this.#formats;
    let address = 0n;
    for (const { shift, bits } of first.levels)
      address |= (BigInt(this.#pick(this.#slots)) & ((1n << BigInt(bits)) - 1n)) << BigInt(shift);
    address |= BigInt(this.#random.below(2 ** first.levels[0]!.shift));
    if (first.canonical) address = BigInt.asUintN(64, BigInt.asIntN(inputBits(first), address));
    return this.#random.below(40) ? address : address ^ (1n << BigInt(this.#random.below(64)));
  }

  #pick<T>(from: readonly T[]): T {
    return from[this.#random.below(from.length)]!;
  }

  #map(guest: number, host: number, length: number, all: boolean): void {
    const { second } = this.#formats;
    const can = [3, 7, 1, 2].filter((protection) => second.leafBits(protection) >= 0n);
    const protection = all || this.#random.below(4) ? can[0]! : this.#pick(can);
    if (this.lower.physical(guest) < 0) this.lower.map(guest, host, length, protection);
  }

  /** A random first-stage entry. */
  #store(host: number): void {
    const { first } = this.#formats;
    const random = this.#random;
    const level = this.#pick(first.levels);
    const table = level.leaves.length === 0 || (level.tables.length > 0 && random.below(3) > 0);
    const kind: TableKind | LeafKind = table ? this.#pick(level.tables) : this.#pick(level.leaves);
    const leaf = "lg2" in kind;
    let target = BigInt(leaf ? this.#pick([...this.#data, ...this.#guest]) : this.#pick(this.#guest));
    if (random.below(12) === 0) target = BigInt(random.next()) << BigInt(random.below(20) + 12);
    const protections = [3, 7, 1, 5].filter((one) => first.leafBits(one) >= 0n);
    let entry = kind.bits | (target & kind.address);
    if (leaf) entry |= first.leafBits(random.below(3) ? protections[0]! : this.#pick(protections));
    if (random.below(2)) entry |= kind.accessed ?? 0n;
    for (let flips = this.#pick([0, 0, 0, 0, 0, 1]); flips > 0; flips--)
      entry ^= 1n << BigInt(random.below(64));
    if (random.below(12) === 0) entry = first.empty;
    this.#put(first, host, entry);
  }

  /** Turns bits of second-stage leaves over, none that moves a page to other memory that is there. */
  #turnBits(): void {
    const { second } = this.#formats;
    for (const guest of [...this.#guest.slice(1), ...this.#data]) {
      if (this.#random.below(5)) continue;
      const steps = [...explainWalk(second, this.#memory, this.lower.root, BigInt(guest), 0)];
      const { address, value } = steps.at(-1)!;
      const bit = this.#pick([...Array(12).keys(), ...Array.from({ length: 24 }, (_, i) => 40 + i)]);
      if (address === undefined || value === undefined) continue;
      if (!this.#turned.has(address)) this.#turned.set(address, value);
      this.#put(second, address, value ^ (1n << BigInt(bit)));
    }
  }
}

/** The suite for a pair of formats; `make` gives it. */
export const describeNested = (name: string, make: () => NestedFormats): void => {
  describe(`${name}: nested walk`, () => {
    const formats = make();
    const plain = compileNested(formats);
    const cached = compileCachedNested(formats);
    const cache = new GuestCache(1);
    const atOnce = atOnceBits(formats.first);
    const notedBits = formats.second.levels
      .flatMap(({ tables, leaves }) => [...tables, ...leaves])
      .reduce((bits, kind) => bits | (kind.accessed ?? 0n) | (("dirty" in kind && kind.dirty) || 0n), 0n);
    let memory: Banks;
    beforeAll(() => {
      memory = new Banks({
        ram: [
          { start: 0, length: 2 ** 24 },
          { start: 1.5 * WORD32, length: 2 ** 27 },
        ],
      });
    });
    afterAll(() => memory.close());

    const explain = (
      scene: { root: number; lower: Mapper },
      address: bigint,
      need: number,
    ): NestedOutcome => {
      const steps = explainNested(formats, memory, scene.root, scene.lower.root, address, need);
      for (;;) {
        const { done, value } = steps.next();
        if (done) return value;
      }
    };

    const agreed = (
      scene: { root: number; lower: Mapper },
      address: bigint,
      need: number,
      withCache: boolean,
    ): NestedOutcome => {
      const told = explain(scene, address, need);
      const out = new NestedResult();
      const { root, lower } = scene;
      const fault = withCache
        ? cached(memory, root, lower.root, ...words(address), need, out, cache, cache.tag(0))
        : plain(memory, root, lower.root, ...words(address), need, out);
      const { stage, level } = told;
      type Compared = "stage" | "level" | "entryAddress" | (typeof ABOVE | typeof LEAF)[number];
      const equal = (what: Compared): void => same(out[what], told[what], told, what);
      same(fault, told.fault, told, "fault");
      equal("stage");
      equal("level");
      if (level >= 0) {
        equal("entryAddress");
        // The walk may have set the bits of a second-stage entry before it met it again.
        const noted = stage === 2 ? notedBits : atOnce;
        same(((BigInt(out.hi) << 32n) | BigInt(out.lo)) & ~noted, told.entry & ~noted, told, "entry");
      }
      if (stage === 2) for (const what of ABOVE) equal(what);
      if (fault === WalkFault.none) {
        for (const what of LEAF) equal(what);
        same(out.allowed & everyBit, told.allowed, told, "allowed");
      }
      return told;
    };

    it("the generated walkers and the literal one agree on any tables of both stages", () => {
      const met = new Set<string>();
      fc.assert(
        fc.property(fc.nat(), (seed) => {
          const random = new Random(seed);
          const scene = new NestedScene(formats, memory, random);
          cache.invalidateStage(0);
          for (let i = 0; i < 50; i++) {
            const address = scene.address();
            const need = scene.need();
            const first = random.below(2) === 0;
            const { fault, stage, fetch } = agreed(scene, address, need, first);
            agreed(scene, address, need, !first);
            met.add(fault === WalkFault.none ? "none" : `${stage}.${fetch}`);
          }
          scene.free();
        }),
        { numRuns: 40 },
      );
      expect([...met]).toEqual(
        expect.arrayContaining(["none", "1.0", `2.${Fetch.table}`, `2.${Fetch.page}`]),
      );
    });

    /** One page of the first stage's smallest size at address 0, and the tables to it. */
    const simple = (protection = 3) => {
      const { first, second } = formats;
      const lower = new Mapper(memory, second);
      const guest = (level: number) => 2 ** 30 + level * 2 ** 24;
      const hosts = first.levels.map((level, index) => {
        const frames = tableFrames(formats, level);
        const host = memory.allocate(frames);
        lower.map(guest(index), host, frames * 4096, 3);
        return { host, frames };
      });
      first.levels.forEach(({ tables, leaves }, index) => {
        const kind = index ? tables.find(({ to }) => to === index - 1)! : leaves[0]!;
        const attributes = index ? 0n : first.leafBits(protection);
        const entry = kind.bits | attributes | BigInt(guest(index ? index - 1 : 30));
        memory[first.bigEndian ? "store64be" : "store64"](hosts[index]!.host, ...words(entry));
      });
      const lg2 = Math.max(first.levels[0]!.leaves[0]!.lg2, second.levels[0]!.leaves[0]!.lg2);
      lower.map(guest(30), 2 ** 34, 2 ** lg2, 3);
      const free = () => {
        for (const { host, frames } of hosts) memory.free(host, frames);
        lower.destroy();
        cache.invalidateAll();
      };
      return { root: guest(first.levels.length - 1), lower, hosts, guest, free };
    };

    it("translates through both, and grants the smaller page of both", () => {
      const scene = simple();
      const { lg2 } = formats.first.levels[0]!.leaves[0]!;
      const other = formats.second.levels[0]!.leaves[0]!.lg2;
      for (const withCache of [false, true, true]) {
        const told = agreed(scene, 0x123n, Permission.read, withCache);
        expect(told).toMatchObject({
          fault: WalkFault.none,
          pa: 2 ** 34 + 0x123,
          guestAddress: scene.guest(30) + 0x123,
          lg2: Math.min(lg2, other),
          span: 2 ** Math.min(lg2, other) - 0x123,
        });
      }
      scene.free();
    });

    it("tells which of the fetches the second stage refused", () => {
      for (const withCache of [false, true]) {
        const scene = simple();
        const top = formats.first.levels.length - 1;
        for (let level = 0; level <= top; level++) {
          const bytes = scene.hosts[level]!.frames * 4096;
          scene.lower.unmap(scene.guest(level), bytes);
          cache.invalidateRange(0, scene.guest(level) % WORD32, 0, 12);
          expect(agreed(scene, 0n, Permission.read, withCache)).toMatchObject({
            fault: WalkFault.notPresent,
            stage: 2,
            fetch: Fetch.table,
            guestLevel: level,
            guestAddress: scene.guest(level),
          });
          scene.lower.map(scene.guest(level), scene.hosts[level]!.host, bytes, 3);
          expect(agreed(scene, 0n, Permission.read, withCache).fault).toBe(WalkFault.none);
        }
        scene.lower.unmap(scene.guest(30), 2 ** 24);
        cache.invalidateAll();
        expect(agreed(scene, 0n, Permission.read, withCache)).toMatchObject({ stage: 2, fetch: Fetch.page });
        scene.free();
      }
    });

    it("sets accessed and dirty bits of the first stage where the second lets it write", () => {
      const { first } = formats;
      const leaf = first.levels[0]!.leaves[0]!;
      const expected = (leaf.accessed ?? 0n) | (leaf.dirty ?? 0n);
      for (const withCache of [false, true]) {
        const scene = simple();
        const host = scene.hosts[0]!.host;
        const entry = () => {
          memory[first.bigEndian ? "load64be" : "load64"](host);
          return (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
        };
        const before = entry();
        agreed(scene, 0n, Permission.write, withCache);
        expect(entry()).toBe((before | expected) & ~(leaf.dirtyCleared ?? 0n));
        scene.free();
      }
      if (!expected && !leaf.dirtyCleared) return;
      const scene = simple();
      expect(scene.lower.protect(scene.guest(0), scene.hosts[0]!.frames * 4096, 1)).toBeGreaterThan(0);
      for (const withCache of [false, true])
        expect(agreed(scene, 0n, Permission.write, withCache)).toMatchObject({
          fault: WalkFault.write,
          stage: 2,
          fetch: Fetch.update,
          guestLevel: 0,
        });
      scene.free();
    });

    it("a second stage that has dirty bits gets them although the cache knows the page", () => {
      const { second } = formats;
      if (!second.levels[0]!.leaves[0]!.dirty) return;
      const scene = simple();
      agreed(scene, 0n, Permission.read, true);
      agreed(scene, 0n, Permission.write, true);
      const dirty: number[] = [];
      scene.lower.scanDirty(scene.guest(30), 4096, false, (iova) => dirty.push(iova));
      expect(dirty).toEqual([scene.guest(30)]);
      scene.free();
    });
  });
};
