/**
 * Generates the fast walker of a format: one straight-line function, a block for each level, with every shift, mask and
 * test of the declaration as a literal. It reads memory through the direct view (`HostMemory.words` and `.state`; what
 * is not direct is asked for), keeps an entry in two 32-bit words, and allocates nothing. `walkerSource` is the text, for people; `explain.ts` is the
 * document it must agree with, and `format.suite.ts` holds the two equal.
 */
import {
  type EntryTest,
  type FormatLevel,
  highWord,
  inputBits,
  type LeafKind,
  lowWord,
  type PageTableFormat,
  Permission,
  type TableKind,
  WalkFault,
} from "./format.ts";
import type { Walker } from "./walker.ts";

const hex = (word: number): string => `0x${(word >>> 0).toString(16)}`;
const signed = (word: number): string => `${word | 0}`;

/** `((lo & mask) === value && …)` over the words the mask touches; an expression on signed words. */
const holds = ({ mask, value }: EntryTest): string => {
  const half = (word: string, m: number, v: number) => `(${word} & ${hex(m)}) === ${signed(v)}`;
  const halves = [
    ...(lowWord(mask) ? [half("elo", lowWord(mask), lowWord(value))] : []),
    ...(highWord(mask) ? [half("ehi", highWord(mask), highWord(value))] : []),
  ];
  return halves.length ? halves.join(" && ") : "true";
};

/** The bits [shift, shift + width) of the address in `lo` and `hi`. */
const field = (shift: number, width: number): string => {
  const mask = hex(2 ** width - 1);
  if (shift >= 32) return `(hi >>> ${shift - 32}) & ${mask}`;
  if (shift + width <= 32) return `(lo >>> ${shift}) & ${mask}`;
  return `(lo >>> ${shift} | hi << ${32 - shift}) & ${mask}`;
};

/** Swaps the bytes of a word: generated into walkers of big-endian formats, and used for their constants. */
const swap32 = (x: number): number => (x << 24) | ((x & 0xff00) << 8) | ((x >>> 8) & 0xff00) | (x >>> 24);

/** `memory.or64` of constant bits into the entry at `address`. */
const orBits = (format: PageTableFormat, address: string, bits: bigint): string => {
  const [lo, hi] = [lowWord(bits), highWord(bits)];
  return format.bigEndian
    ? `memory.or64(${address}, ${hex(swap32(hi))}, ${hex(swap32(lo))})`
    : `memory.or64(${address}, ${hex(lo)}, ${hex(hi)})`;
};

const ended = (code: number | string, index: number): string =>
  `return ended(out, ${code}, ${index}, bank, at, elo, ehi);`;

/** Denials and checks of a kind, in the order the walk makes them. */
const judge = (format: PageTableFormat, index: number, kind: TableKind | LeafKind): string[] => {
  const lines: string[] = [];
  // Denials "bit clear denies the permission of the same number" are one operation together.
  const direct = kind.denials.filter(({ mask, value, denies }) => value === 0n && mask === BigInt(denies));
  const together = direct.reduce((mask, { denies }) => mask | denies, 0);
  if (together) lines.push(`denied |= ~elo & ${hex(together)};`);
  for (const denial of kind.denials)
    if (!direct.includes(denial)) lines.push(`if (${holds(denial)}) denied |= ${hex(denial.denies)};`);
  const refuse = `if ((denied & need) !== 0) ${ended("refusal(denied & need)", index)}`;
  if (format.deniedAt === "entry" && kind.denials.length) lines.push(refuse);
  for (const check of kind.checks) lines.push(`if (!(${holds(check)})) ${ended(check.fault, index)}`);
  if (format.deniedAt === "leaf" && "lg2" in kind) lines.push(refuse);
  return lines;
};

/** Sets the accessed bits of the entries used, and the dirty bit of the leaf. */
const note = (format: PageTableFormat, index: number, leaf: LeafKind): string[] => {
  const lines: string[] = [];
  for (let above = format.levels.length - 1; above > index; above--) {
    const accessed = format.levels[above]!.tables.find((table) => table.accessed !== undefined)?.accessed;
    if (accessed === undefined) continue;
    const set = orBits(format, `entry${above}`, accessed);
    lines.push(`if (entry${above} !== 0 && !${set}) ${ended(WalkFault.tableUnreadable, index)}`);
  }
  const mark = (bits: bigint, also: string) => {
    const missing = `!(${holds({ mask: bits, value: bits })})`;
    const set = orBits(format, "bank * 4294967296 + at * 4", bits);
    lines.push(`if (${also}${missing} && !${set}) ${ended(WalkFault.tableUnreadable, index)}`);
  };
  if (leaf.accessed !== undefined) mark(leaf.accessed, "");
  if (leaf.dirty !== undefined) mark(leaf.dirty, `(need & ${Permission.write}) !== 0 && `);
  return lines;
};

const leafBlock = (format: PageTableFormat, index: number, leaf: LeafKind): string[] => {
  const offset = (1n << BigInt(leaf.lg2)) - 1n;
  const [offsetLo, offsetHi] = [hex(lowWord(offset)), hex(highWord(offset))];
  const high = `(ehi & ${hex(highWord(leaf.address))} | hi & ${offsetHi})`;
  const low = `((elo & ${hex(lowWord(leaf.address))} | lo & ${offsetLo}) >>> 0)`;
  const into = leaf.lg2 <= 32 ? `(lo & ${offsetLo})` : `((hi & ${offsetHi}) * 4294967296 + (lo >>> 0))`;
  const span = leaf.lg2 < 32 ? `${2 ** leaf.lg2} - ${into}` : `${2 ** leaf.lg2} - (${into} >>> 0)`;
  return [
    ...judge(format, index, leaf),
    ...note(format, index, leaf),
    `out.pa = ${high} * 4294967296 + ${low};`,
    `out.lg2 = ${leaf.lg2};`,
    `out.span = ${leaf.lg2 > 32 ? `${2 ** leaf.lg2} - ${into}` : span};`,
    "out.allowed = ~denied & everything;",
    ended(WalkFault.none, index),
  ];
};

const tableBlock = (
  format: PageTableFormat,
  index: number,
  table: TableKind,
  skipping: boolean,
): string[] => {
  const lines = judge(format, index, table);
  if (table.to < index - 1) {
    const below = format.levels[table.to]!;
    const from = below.shift + below.bits;
    const skipped = (1n << BigInt(format.levels[index]!.shift)) - (1n << BigInt(from));
    const bitsLo = `lo & ${hex(lowWord(skipped))}`;
    lines.push(
      `if ((${bitsLo} | hi & ${hex(highWord(skipped))}) !== 0) ${ended(WalkFault.inputWidth, index)}`,
    );
  }
  if (table.accessed !== undefined) {
    const missing = `!(${holds({ mask: table.accessed, value: table.accessed })})`;
    lines.push(`if (${missing}) entry${index} = bank * 4294967296 + at * 4;`);
  }
  lines.push(`base = elo & ${hex(lowWord(table.address))};`, `bank = ehi & ${hex(highWord(table.address))};`);
  if (skipping) lines.push(`next = ${table.to};`);
  return lines;
};

const levelBlock = (format: PageTableFormat, index: number, skipping: boolean): string[] => {
  const level: FormatLevel = format.levels[index]!;
  const choices = [
    ...level.tables.map((kind) => ({ kind, body: tableBlock(format, index, kind, skipping) })),
    ...level.leaves.map((kind) => ({ kind, body: leafBlock(format, index, kind) })),
  ];
  const word = (from: string) => (format.bigEndian ? `swap32(${from})` : from);
  const [first, second] = format.bigEndian ? ["at + 1", "at"] : ["at", "at + 1"];
  const load = format.bigEndian ? "load64be" : "load64";
  const lines = [
    `at = (base >>> 2) + ((${field(level.shift, level.bits)}) << 1);`,
    "if (bank !== held && bank < words.length) held = bank, view = words[bank], state = states[bank];",
    "if (bank === held && state[at >>> 10] > 0) {",
    `  elo = ${word(`view[${first}]`)};`,
    `  ehi = ${word(`view[${second}]`)};`,
    `} else if (memory.${load}(bank * 4294967296 + at * 4)) {`,
    "  elo = memory.lo;",
    "  ehi = memory.hi;",
    `} else return unread(out, ${index}, bank, at);`,
    `if (${holds(format.absent)}) ${ended(WalkFault.notPresent, index)}`,
    ...choices.flatMap(({ kind, body }, at) => [
      `${at ? "} else " : ""}if (${holds(kind.test)}) {`,
      ...body.map((line) => `  ${line}`),
    ]),
    `} else ${ended(WalkFault.reserved, index)}`,
  ];
  const title = `// level ${index}: ${level.name}, address bits ${level.shift + level.bits - 1}:${level.shift}`;
  return skipping
    ? [title, `if (next === ${index}) {`, ...lines.map((l) => `  ${l}`), "}"]
    : [title, ...lines];
};

/** Every permission bit: what is allowed is what was not denied of these. */
const everything = Object.values(Permission).reduce((all, one) => all | one, 0);

/** The text of the format's walker: the body of a function of `memory`, `root`, `lo`, `hi`, `need` and `out`. */
export const walkerSource = (format: PageTableFormat): string => {
  const top = format.levels.length - 1;
  const skipping = format.levels.some(({ tables }, index) => tables.some(({ to }) => to !== index - 1));
  const width = inputBits(format);
  const beyond =
    width >= 64
      ? undefined
      : width >= 32
        ? `(hi >>> ${width - 32}) !== 0`
        : `hi !== 0 || (lo >>> ${width}) !== 0`;
  const noting = format.levels.flatMap(({ tables }, index) =>
    tables.some(({ accessed }) => accessed !== undefined) ? [`entry${index} = 0`] : [],
  );
  return [
    `// ${format.name}`,
    `const everything = ${hex(everything)};`,
    "const words = memory.words, states = memory.state;",
    "let denied = 0, elo = 0, ehi = 0, at = 0;",
    // The bank in hand: tables mostly lie in one.
    "let held = -1, view, state;",
    "let base = root | 0, bank = (root / 4294967296) | 0;",
    ...(skipping ? [`let next = ${top};`] : []),
    ...(noting.length ? [`let ${noting.join(", ")};`] : []),
    ...(beyond ? [`if (${beyond}) return outside(out);`] : []),
    ...Array.from(format.levels, (_, i) => levelBlock(format, top - i, skipping)).flat(),
  ].join("\n");
};

/** What every walker calls where it ends. */
const prelude = `
const refusal = (denied) =>
  denied & ${Permission.read} ? ${WalkFault.read} : denied & ${Permission.write} ? ${WalkFault.write}
  : denied & ${Permission.execute} ? ${WalkFault.execute} : ${WalkFault.user};
const ended = (out, fault, level, bank, at, elo, ehi) => {
  out.level = level;
  out.entryAddress = bank * 4294967296 + at * 4;
  out.lo = elo >>> 0;
  out.hi = ehi >>> 0;
  return fault;
};
const unread = (out, level, bank, at) => ended(out, ${WalkFault.tableUnreadable}, level, bank, at, 0, 0);
const outside = (out) => {
  out.level = -1;
  return ${WalkFault.inputWidth};
};
const swap32 = (x) => x << 24 | (x & 0xff00) << 8 | x >>> 8 & 0xff00 | x >>> 24;
`;

/** Makes the walker. A unit does so once for a format, not for a walk. */
export const compileWalker = (format: PageTableFormat): Walker => {
  const body = walkerSource(format).replaceAll(/^/gm, "  ");
  const make = new Function(
    `"use strict";${prelude}return (memory, root, lo, hi, need, out) => {\n${body}\n};`,
  );
  return make() as Walker;
};
