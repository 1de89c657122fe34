/**
 * Golden walks: single walks with their outcomes, derived from the specifications by someone who had not seen this code
 * (`golden/README.md` tells the format). What runs them: the literal walker, and the generated one twice, asking memory
 * for every word and reading it directly. Which format and what need a walk has is for its test to say.
 */
import { readFileSync } from "node:fs";
import { expect } from "vitest";
import { type Range, SparseMemory } from "../memory/sparse-memory.ts";
import { compileWalker } from "./compile.ts";
import { explainWalk, type WalkOutcome } from "./explain.ts";
import { type PageTableFormat, WalkFault } from "./format.ts";
import { WalkResult } from "./walker.ts";

/** Hexadecimal. */
type Hex = string;
type Word = readonly [address: Hex, value: Hex];

export interface GoldenWalk {
  readonly name: string;
  readonly params: { readonly [name: string]: unknown };
  readonly root: Hex;
  readonly memory: readonly Word[];
  readonly access: {
    readonly iova: Hex;
    readonly read: boolean;
    readonly write: boolean;
    readonly execute: boolean;
    readonly privileged: boolean;
  };
  readonly expect: {
    readonly result: "ok" | "fault";
    readonly pa?: Hex;
    readonly page?: number;
    readonly kind?: string;
    readonly level?: number | null;
    readonly detail?: string;
  };
  readonly fetches: readonly Hex[];
  readonly writes: readonly Word[];
}

/** The walks of a file of `golden/`. */
export const goldenWalks = (file: string): readonly GoldenWalk[] =>
  readFileSync(new URL(`golden/${file}.jsonl`, import.meta.url), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as GoldenWalk);

const END = 2 ** 52;
/** Where there is memory: everywhere but in `unbacked`. */
const present = ({ unbacked = [] }: { readonly unbacked?: readonly Word[] }): Range[] => {
  const holes = unbacked.map(([start, end]) => ({ start: Number(start), end: Number(end) }));
  const edges = [0, ...holes.flatMap(({ start, end }) => [start, end]), END];
  return edges.flatMap((start, at) => (at % 2 === 0 ? [{ start, end: edges[at + 1]! }] : []));
};

/** Notes what is loaded; on demand with a direct view of what is there. */
class GoldenMemory extends SparseMemory {
  readonly loaded: number[] = [];
  override readonly words: readonly Uint32Array[];
  override readonly state: readonly Uint8Array[];

  readonly #bigEndian: boolean;

  constructor({ params, memory }: GoldenWalk, direct: boolean, bigEndian: boolean) {
    const ranges = present(params);
    super(ranges);
    this.#bigEndian = bigEndian;
    for (const [address, value] of memory) this.put(address, value);
    const there = (pa: number) => ranges.some(({ start, end }) => pa >= start && pa < end);
    const perBank = (read: (pa: number) => number, unit: number) =>
      lazily((bank) => lazily((at) => read(bank * 2 ** 32 + at * unit)));
    const wordAt = (pa: number) => {
      super.load64(pa - (pa % 8));
      return pa % 8 ? this.hi : this.lo;
    };
    this.words = direct ? (perBank(wordAt, 4) as unknown as Uint32Array[]) : [];
    this.state = direct ? (perBank((pa) => (there(pa) ? 1 : 0), 4096) as unknown as Uint8Array[]) : [];
  }

  put(address: Hex, value: Hex): void {
    const word = BigInt(value);
    const store = this.#bigEndian ? "store64be" : "store64";
    this[store](Number(address), Number(word & 0xffff_ffffn), Number(word >> 32n));
  }

  override load64(pa: number): boolean {
    this.loaded.push(pa);
    return super.load64(pa);
  }

  wordAt(address: Hex): bigint {
    if (this.#bigEndian) super.load64be(Number(address));
    else super.load64(Number(address));
    return (BigInt(this.hi >>> 0) << 32n) | BigInt(this.lo >>> 0);
  }
}

/** An endless array of what `of` says of an index. */
const lazily = (of: (index: number) => unknown): unknown =>
  new Proxy([], { get: (_, key) => (key === "length" ? 2 ** 32 : of(Number(key))) });

const kinds: { readonly [fault in WalkFault]?: string } = {
  [WalkFault.notPresent]: "not-present",
  [WalkFault.read]: "permission",
  [WalkFault.write]: "permission",
  [WalkFault.execute]: "permission",
  [WalkFault.user]: "permission",
  [WalkFault.privilegedExecute]: "permission",
  [WalkFault.reserved]: "reserved",
  [WalkFault.inputWidth]: "input-size",
  [WalkFault.outputWidth]: "address-size",
  [WalkFault.tableUnreadable]: "table-fetch",
  [WalkFault.accessFlag]: "access-flag",
};

export interface WalkEnd {
  readonly fault: WalkFault;
  readonly level: number;
  readonly pa: number;
  readonly lg2: number;
  readonly allowed: number;
}

/** What is to be walked: the address as the tables index it. */
export interface Question {
  readonly format: PageTableFormat;
  readonly root: number;
  readonly address: bigint;
  readonly need: number;
}

const literally = ({ format, root, address, need }: Question, memory: GoldenMemory) => {
  const steps = explainWalk(format, memory, root, address, need);
  const fetched: number[] = [];
  for (;;) {
    const { value, done } = steps.next();
    if (done) return { outcome: value as WalkOutcome, fetched };
    if (value.address !== undefined) fetched.push(value.address);
  }
};

/** Walks in all three ways, which must agree in everything; what they agree on. */
export const walkGolden = (walk: GoldenWalk, question: Question): WalkEnd & { fetched: number[] } => {
  const { format, root, address, need } = question;
  const { outcome, fetched } = literally(question, new GoldenMemory(walk, false, format.bigEndian));
  const walker = compileWalker(format);
  for (const direct of [false, true]) {
    const memory = new GoldenMemory(walk, direct, format.bigEndian);
    const out = new WalkResult();
    const [lo, hi] = [Number(address & 0xffff_ffffn), Number(address >> 32n)];
    const fault = walker(memory, root, lo, hi, need, out);
    const { level, entryAddress, pa, lg2, span, allowed } = out;
    const where = `${walk.name}, ${direct ? "direct" : "asking"}`;
    expect({ fault, level, entryAddress: level < 0 ? 0 : entryAddress }, where).toEqual({
      fault: outcome.fault,
      level: outcome.level,
      entryAddress: outcome.entryAddress,
    });
    if (fault === WalkFault.none)
      expect({ pa, lg2, span, allowed: allowed & outcome.allowed }, where).toEqual({
        pa: outcome.pa,
        lg2: outcome.lg2,
        span: outcome.span,
        allowed: outcome.allowed,
      });
    // A walk that sets bits loads the entry once more; each is fetched first in the same order.
    if (!direct) expect([...new Set(memory.loaded)], where).toEqual(fetched);
    const written = new Map([...walk.memory, ...walk.writes]);
    for (const [at, value] of written) expect([at, memory.wordAt(at)], where).toEqual([at, BigInt(value)]);
  }
  const { fault, level, pa, lg2, allowed } = outcome;
  return { fault, level, pa, lg2, allowed, fetched };
};

/** How the walk ended, in the terms of the files; `fault` is what the test makes of the walk's. */
export const told = (
  { format }: Question,
  { fault, level, pa, lg2 }: WalkEnd,
  names: { readonly [kind: string]: string } = {},
) => {
  if (fault === WalkFault.none) return { result: "ok", pa: `0x${pa.toString(16)}`, page: lg2 };
  const kind = kinds[fault]!;
  return { result: "fault", kind: names[kind] ?? kind, level: format.levels[level]?.number ?? null };
};
