/**
 * Generates the fast walker of a first stage over a second: every table of the first stage lies at a guest address that
 * the second stage translates, and so does the address that comes out. It is made like the walker of one stage
 * (`compile.ts`), from the declarations of both formats; `explain-nested.ts` is the document it must agree with, and
 * `nested.suite.ts` holds the two equal.
 *
 * Accessed and dirty bits of the first stage are set when the walk has succeeded (those of tables at once, if the format
 * says so), and need write permission of the second stage for the tables they are in. The second stage sets its own bits at each of its walks.
 */
import { compileWalker } from "./compile.ts";
import { highWord, type LeafKind, lowWord, type PageTableFormat, Permission, WalkFault } from "./format.ts";
import {
  bankOf,
  changeBits,
  descent,
  ended,
  field,
  hex,
  outsideTest,
  prelude,
  rootOf,
  type Stage,
  upperWord,
} from "./generate.ts";
import { type GuestCache, GuestEntry, PAGE_ENTRIES, PAGES_AT, TABLE_ENTRIES } from "./guest-cache.ts";
import { type Walker, WalkResult } from "./walker.ts";

/** What the second stage was asked for. */
export const Fetch = {
  /** Reading an entry of a first-stage table. */
  table: 1,
  /** Setting bits in such an entry. */
  update: 2,
  /** The access itself. */
  page: 3,
} as const;
export type Fetch = (typeof Fetch)[keyof typeof Fetch];

/**
 * Where a nested walk ended. `level`, `entryAddress` (host physical), `lo` and `hi` are of the first stage's entry, or of
 * the second's when that is what faulted. `lg2` and `span` are of the smaller page of both stages, `allowed` what both allow.
 */
export class NestedResult extends WalkResult {
  /** The stage that faulted, 1 or 2; 1 when none did. */
  stage = 0;
  /** When the second stage faulted: what for, at which level of the first (index), and the guest address it was given. */
  fetch = 0;
  guestLevel = -1;
  /** Also where a translated access is in guest memory. */
  guestAddress = 0;
}

/**
 * Translates through the first stage at `root` (guest physical) over the second at `lower` (host physical). Otherwise as
 * `Walker`. With a `cache`, which was made for it, second-stage translations are remembered under `tag`.
 */
export type NestedWalker = (
  memory: Parameters<Walker>[0],
  root: number,
  lower: number,
  lo: number,
  hi: number,
  need: number,
  out: NestedResult,
) => number;
export type CachedNestedWalker = (
  ...of: [...Parameters<NestedWalker>, cache: GuestCache, tag: number]
) => number;

export interface NestedFormats {
  readonly first: PageTableFormat;
  readonly second: PageTableFormat;
  /** What reading a first-stage table needs of the second stage (`Permission` bits). Default read. */
  readonly tableNeed?: number;
}

const { KEY, KEY_HIGH, TAG, PA_HI, PA_LO, GRANTED, LG2, ALLOWED, WORDS_LG2 } = GuestEntry;

const below = (fetch: Fetch, level: number | string, lo: string, hi: string): string =>
  `return below(out, fault, ${fetch}, ${level}, ${lo}, ${hi});`;

/** Finds the cache's entry for the page of the guest address in `lo` and `hi`; `slot` is its place, and whether it is that. */
const hit = (lo: string, hi: string, entries: number, base: number, need: string): string[] => {
  const mixed = `(((${lo} >>> 12) ^ ${hi} ^ tag) & ${entries - 1}) << ${WORDS_LG2}`;
  return [
    `slot = ${base ? `${base} + (${mixed})` : mixed};`,
    `if (guest[slot + ${TAG}] === tag && guest[slot + ${KEY}] === (${lo} >>> 12 | ${hi} << 20) &&`,
    `    guest[slot + ${KEY_HIGH}] === ${hi} >>> 12 && (guest[slot + ${GRANTED}] & ${need}) === ${need}) {`,
  ];
};

const stageTwo = (cached: boolean, lo: string, hi: string, need: string): string =>
  cached
    ? `fault = miss(memory, lower, ${lo}, ${hi}, ${need}, out, guest, tag, slot);`
    : `fault = second(memory, lower, ${lo}, ${hi}, ${need}, out);`;

/** From the guest address of an entry (`glo`, `bank`) to where it is in host memory (`at` in `bank`). */
const findTable = (cached: boolean, index: number, tableNeed: number): string[] => {
  const walked = [
    stageTwo(cached, "glo", "ghi", hex(tableNeed)),
    `if (fault !== 0) ${below(Fetch.table, index, "glo", "ghi")}`,
    `bank = ${bankOf("out.pa")};`,
    "at = (out.pa | 0) >>> 2;",
  ];
  if (!cached) return walked;
  return [
    ...hit("glo", "ghi", TABLE_ENTRIES, 0, hex(tableNeed)),
    `  bank = guest[slot + ${PA_HI}];`,
    `  at = (guest[slot + ${PA_LO}] | glo & 0xfff) >>> 2;`,
    "} else {",
    ...walked.map((line) => `  ${line}`),
    "}",
  ];
};

/** Makes the second stage say where the entry is that is to be written, in `out.pa`. */
const locateToWrite = (
  { tableNeed = Permission.read }: NestedFormats,
  level: number | string,
  lo: string,
  hi: string,
): string[] => [
  `  fault = second(memory, lower, ${lo}, ${hi}, ${hex(tableNeed | Permission.write)}, out);`,
  `  if (fault !== 0) ${below(Fetch.update, level, lo, hi)}`,
];

/** The guest address that the leaf gives, and the bits that it is to get or lose; then the walk of the first stage is over. */
const guestPage = (index: number, leaf: LeafKind): string[] => {
  const offset = (1n << BigInt(leaf.lg2)) - 1n;
  const within = leaf.lg2 > 32 ? ` | hi & ${hex(highWord(offset))}` : "";
  const lines = [
    `plo = elo & ${hex(lowWord(leaf.address))} | lo & ${hex(lowWord(offset))};`,
    `phi = ${upperWord(leaf)}${within};`,
    `level = ${index};`,
    `lg2 = ${leaf.lg2};`,
  ];
  const collect = (into: "set" | "clear", bits: bigint | undefined, when: string) => {
    if (bits === undefined) return;
    const [low, high] = [lowWord(bits), highWord(bits)];
    const present = (word: string) => (into === "set" ? `~${word}` : word);
    if (low) lines.push(`${when}${into}Lo |= ${hex(low)} & ${present("elo")};`);
    if (high) lines.push(`${when}${into}Hi |= ${hex(high)} & ${present("ehi")};`);
  };
  const written = `if ((need & ${Permission.write}) !== 0) `;
  collect("set", leaf.accessed, "");
  collect("set", leaf.dirty, written);
  collect("clear", leaf.dirtyCleared, written);
  return [...lines, "break walk;"];
};

const overSecond = (formats: NestedFormats, cached: boolean): Stage => {
  const { first: format, tableNeed = Permission.read } = formats;
  return {
    find(index) {
      const { shift, bits } = format.levels[index]!;
      return [
        `glo = base + ((${field(shift, bits)}) << 3) | 0;`,
        "ghi = bank;",
        ...findTable(cached, index, tableNeed),
      ];
    },
    touch: (index, missing, accessed) =>
      format.accessedAtOnce
        ? [
            `if (${missing}) {`,
            ...locateToWrite(formats, index, "glo", "ghi"),
            `  if (!${changeBits(format, "or64", "out.pa", accessed)}) ${ended(WalkFault.tableUnreadable, index)}`,
            "}",
          ]
        : [`if (${missing}) { stale${index} = true; lo${index} = glo; hi${index} = ghi; }`],
    leaf: guestPage,
    sizedLeaf() {
      throw new RangeError(`${format.name} cannot be a first stage: its pages tell their sizes`);
    },
  };
};

/** The second stage for the address that came out of the first. */
const findPage = (cached: boolean): string[] => {
  const walked = [
    stageTwo(cached, "plo", "phi", "need"),
    `if (fault !== 0) ${below(Fetch.page, "level", "plo", "phi")}`,
    "pa = out.pa;",
    "allowed = out.allowed;",
    "if (out.lg2 < lg2) lg2 = out.lg2;",
  ];
  if (!cached) return walked;
  return [
    ...hit("plo", "phi", PAGE_ENTRIES, PAGES_AT, "need"),
    `  pa = guest[slot + ${PA_HI}] * 4294967296 + ((guest[slot + ${PA_LO}] | plo & 0xfff) >>> 0);`,
    `  allowed = guest[slot + ${ALLOWED}];`,
    `  if (guest[slot + ${LG2}] < lg2) lg2 = guest[slot + ${LG2}];`,
    "} else {",
    ...walked.map((line) => `  ${line}`),
    "}",
  ];
};

/** Sets the bits of the first stage's entries that are to be set. */
const update = (formats: NestedFormats): string[] => {
  const { first: format } = formats;
  const failed = `return ended(out, ${WalkFault.tableUnreadable}, level, bank, at, elo, ehi);`;
  const tables = format.levels.map(({ tables }, index) => {
    const accessed = tables.find((table) => table.accessed !== undefined)?.accessed;
    return accessed === undefined || format.accessedAtOnce
      ? []
      : [
          `if (stale${index}) {`,
          ...locateToWrite(formats, index, `lo${index}`, `hi${index}`),
          `  if (!${changeBits(format, "or64", "out.pa", accessed)}) ${failed}`,
          "}",
        ];
  });
  const change = (how: "or64" | "clear64", lo: string, hi: string) =>
    `if ((${lo} | ${hi}) !== 0 && !memory.${how}(out.pa, ${
      format.bigEndian ? `swap32(${hi}), swap32(${lo})` : `${lo}, ${hi}`
    })) ${failed}`;
  return [
    ...tables.reverse().flat(),
    "if ((setLo | setHi | clearLo | clearHi) !== 0) {",
    ...locateToWrite(formats, "level", "glo", "ghi"),
    `  ${change("or64", "setLo", "setHi")}`,
    `  ${change("clear64", "clearLo", "clearHi")}`,
    "}",
  ];
};

const body = (formats: NestedFormats, cached: boolean): string[] => {
  const { first: format } = formats;
  const stale = format.levels.flatMap(({ tables }, index) =>
    !format.accessedAtOnce && tables.some(({ accessed }) => accessed !== undefined)
      ? [`stale${index} = false, lo${index} = 0, hi${index} = 0`]
      : [],
  );
  const updates = format.levels.some(({ tables, leaves }) =>
    [...tables, ...leaves].some(
      (kind) => kind.accessed || ("lg2" in kind && (kind.dirty || kind.dirtyCleared)),
    ),
  );
  return [
    "out.stage = 1;",
    "const words = memory.words, states = memory.state;",
    ...(cached ? ["const guest = cache.words;", "let slot = 0;"] : []),
    "let denied = 0, elo = 0, ehi = 0, at = 0, view, fault = 0, glo = 0, ghi = 0;",
    "let plo = 0, phi = 0, level = 0, lg2 = 0, pa = 0, allowed = 0;",
    "let setLo = 0, setHi = 0, clearLo = 0, clearHi = 0;",
    ...rootOf(format),
    ...(stale.length ? [`let ${stale.join(", ")};`] : []),
    ...outsideTest(format, "return outside(out);"),
    "walk: {",
    ...descent(format, overSecond(formats, cached)).map((line) => `  ${line}`),
    "}",
    ...findPage(cached),
    ...(updates ? update(formats) : []),
    "out.pa = pa;",
    "out.lg2 = lg2;",
    "out.span = spanOf(lg2, plo, phi);",
    "out.allowed = allowed & ~denied;",
    "out.guestAddress = phi * 4294967296 + (plo >>> 0);",
    `return ended(out, ${WalkFault.none}, level, bank, at, elo, ehi);`,
  ];
};

/** What nested walkers call, apart from the prelude of all walkers. */
const helpers = ({ second }: NestedFormats): string => {
  const dirty = second.levels.some(({ leaves }) => leaves.some((leaf) => leaf.dirty || leaf.dirtyCleared));
  const granted = dirty
    ? `need & ${Permission.write} ? out.allowed : out.allowed & ~${Permission.write}`
    : "out.allowed";
  return `const below = (out, fault, fetch, level, lo, hi) => {
  out.stage = 2;
  out.fetch = fetch;
  out.guestLevel = level;
  out.guestAddress = hi * 4294967296 + (lo >>> 0);
  return fault;
};
const spanOf = (lg2, lo, hi) => {
  if (lg2 < 31) return (1 << lg2) - (lo & (1 << lg2) - 1);
  if (lg2 <= 32) return 2 ** lg2 - ((lo >>> 0) % 2 ** lg2);
  return 2 ** lg2 - ((hi % 2 ** (lg2 - 32)) * 4294967296 + (lo >>> 0));
};
const miss = (memory, lower, lo, hi, need, out, guest, tag, slot) => {
  const fault = second(memory, lower, lo, hi, need, out);
  if (fault !== 0) return fault;
  guest[slot + ${TAG}] = tag;
  guest[slot + ${KEY}] = lo >>> 12 | hi << 20;
  guest[slot + ${KEY_HIGH}] = hi >>> 12;
  guest[slot + ${PA_HI}] = out.pa / 4294967296;
  guest[slot + ${PA_LO}] = out.pa & ~0xfff;
  guest[slot + ${GRANTED}] = ${granted};
  guest[slot + ${LG2}] = out.lg2;
  guest[slot + ${ALLOWED}] = out.allowed;
  return 0;
};`;
};

/** The text of the walker: the body of a function of `second`, the second stage's walker, that returns it. */
export const nestedSource = (formats: NestedFormats, cached: boolean): string =>
  [
    `// ${formats.first.name} over ${formats.second.name}`,
    prelude,
    helpers(formats),
    `return (memory, root, lower, lo, hi, need, out${cached ? ", cache, tag" : ""}) => {`,
    ...body(formats, cached).map((line) => `  ${line}`),
    "};",
  ].join("\n");

const compile = (formats: NestedFormats, cached: boolean): unknown =>
  new Function("second", `"use strict";\n${nestedSource(formats, cached)}`)(compileWalker(formats.second));

/** Makes the walker for two formats. A unit does so once for a pair. */
export const compileNested = (formats: NestedFormats): NestedWalker =>
  compile(formats, false) as NestedWalker;

/** The same with a cache of guest addresses. */
export const compileCachedNested = (formats: NestedFormats): CachedNestedWalker =>
  compile(formats, true) as CachedNestedWalker;
