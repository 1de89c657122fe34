/**
 * The text that all generated walkers are made of: tests of an entry, what becomes of it, the block of a level. Every
 * shift, mask and value of the declaration is a literal in it. `compile.ts` makes the walker of one stage, with
 * `near.ts` before it, and `nested.ts` that of two: what differs between them in a level's block is a `Stage`.
 *
 * In the text, `lo` and `hi` are the input address, `elo` and `ehi` the entry, at index `at` of the words of `bank`,
 * `need` what is asked for, `denied` what is denied so far, `base` the lower word of the table's address.
 */
import {
  absentAt,
  type EntryTest,
  type FormatLevel,
  highWord,
  inputBits,
  type LeafKind,
  lowWord,
  type PageTableFormat,
  Permission,
  type SizedLeafKind,
  type TableKind,
  WalkFault,
} from "./format.ts";

export const hex = (word: number): string => `0x${(word >>> 0).toString(16)}`;
export const signed = (word: number): string => `${word | 0}`;

/** `((lo & mask) === value && …)` over the words the mask touches; an expression on signed words. */
export const holds = ({ mask, value }: EntryTest): string => {
  const half = (word: string, m: number, v: number) => `(${word} & ${hex(m)}) === ${signed(v)}`;
  const halves = [
    ...(lowWord(mask) ? [half("elo", lowWord(mask), lowWord(value))] : []),
    ...(highWord(mask) ? [half("ehi", highWord(mask), highWord(value))] : []),
  ];
  return halves.length ? halves.join(" && ") : "true";
};

/** The bits [shift, shift + width) of the address in `lo` and `hi`. */
export const field = (shift: number, width: number): string => {
  const mask = hex(2 ** width - 1);
  if (shift >= 32) return `(hi >>> ${shift - 32}) & ${mask}`;
  if (shift + width <= 32) return `(lo >>> ${shift}) & ${mask}`;
  return `(lo >>> ${shift} | hi << ${32 - shift}) & ${mask}`;
};

/** The bank of an address. Nearly always it is the first, and then nothing waits for a division. */
export const bankOf = (address: string): string =>
  `${address} < 4294967296 ? 0 : (${address} / 4294967296) | 0`;

/** Swaps the bytes of a word: generated into walkers of big-endian formats, and used for their constants. */
const swap32 = (x: number): number => (x << 24) | ((x & 0xff00) << 8) | ((x >>> 8) & 0xff00) | (x >>> 24);

/** Sets or clears constant bits in the entry at `address`. */
export const changeBits = (
  format: PageTableFormat,
  how: "or64" | "clear64",
  address: string,
  bits: bigint,
): string => {
  const [lo, hi] = [lowWord(bits), highWord(bits)];
  return format.bigEndian
    ? `memory.${how}(${address}, ${hex(swap32(hi))}, ${hex(swap32(lo))})`
    : `memory.${how}(${address}, ${hex(lo)}, ${hex(hi)})`;
};

/** The upper word of the address in an entry of the kind: the bank it lies in. */
export const upperWord = ({ address, addressHigh: high }: TableKind | LeafKind): string => {
  const inPlace = `ehi & ${hex(highWord(address))}`;
  return high
    ? `(${inPlace} | ((elo >>> ${high.at}) & ${hex(2 ** high.bits - 1)}) << ${high.to - 32})`
    : `(${inPlace})`;
};

export const ended = (code: number | string, index: number): string =>
  `return ended(out, ${code}, ${index}, bank, at, elo, ehi);`;

/** Denials and checks of a kind, in the order the walk makes them. */
export const judge = (
  format: PageTableFormat,
  index: number,
  kind: TableKind | LeafKind | SizedLeafKind,
): string[] => {
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
  if (format.deniedAt === "leaf" && !("to" in kind)) lines.push(refuse);
  return lines;
};

/** What walkers of one and of two stages do differently in the block of a level (`index`). */
export interface Stage {
  /** From `base` and `bank` of the table to `at` and `bank` of the entry. */
  find(index: number): readonly string[];
  /** For an entry of a table that lacks bits that the unit sets: `missing` is the condition. */
  touch(index: number, missing: string, accessed: bigint): readonly string[];
  /** What follows from a leaf. */
  leaf(index: number, leaf: LeafKind): readonly string[];
  /** What follows from one that tells its size. */
  sizedLeaf(index: number, leaf: SizedLeafKind): readonly string[];
}

const tableBlock = (format: PageTableFormat, stage: Stage, index: number, table: TableKind): string[] => {
  const lines = judge(format, index, table);
  if (table.to < index - 1) {
    const below = format.levels[table.to]!;
    const from = below.shift + below.bits;
    const skipped = (1n << BigInt(format.levels[index]!.shift)) - (1n << BigInt(from));
    const set = `lo & ${hex(lowWord(skipped))} | hi & ${hex(highWord(skipped))}`;
    lines.push(`if ((${set}) !== 0) ${ended(WalkFault.inputWidth, index)}`);
  }
  if (table.accessed !== undefined) {
    const missing = `!(${holds({ mask: table.accessed, value: table.accessed })})`;
    lines.push(...stage.touch(index, missing, table.accessed));
  }
  lines.push(`base = elo & ${hex(lowWord(table.address))};`, `bank = ${upperWord(table)};`);
  if (skips(format)) lines.push(`next = ${table.to};`);
  return lines;
};

export const title = ({ name, shift, bits }: FormatLevel, index: number): string =>
  `// level ${index}: ${name}, address bits ${shift + bits - 1}:${shift}`;

/** Reads the entry at index `at` of `view`. */
export const loadWords = ({ bigEndian }: PageTableFormat): string[] =>
  bigEndian
    ? ["elo = swap32(view[at + 1]);", "ehi = swap32(view[at]);"]
    : ["elo = view[at];", "ehi = view[at + 1];"];

/** Puts the entry at `at` in `bank` into `elo` and `ehi`, whether or not it may be read directly. */
const readEntry = (format: PageTableFormat, index: number): string[] => [
  "if (bank < words.length && states[bank][at >>> 10] > 0) {",
  "  view = words[bank];",
  ...loadWords(format).map((line) => `  ${line}`),
  `} else if (memory.${format.bigEndian ? "load64be" : "load64"}(bank * 4294967296 + at * 4)) {`,
  "  elo = memory.lo;",
  "  ehi = memory.hi;",
  `} else return unread(out, ${index}, bank, at);`,
];

/** `if (a) … else if (b) … else last`. */
export const choose = (
  choices: readonly { condition: string; body: readonly string[] }[],
  last: string,
): string[] => [
  ...choices.flatMap(({ condition, body }, which) => [
    `${which ? "} else " : ""}if (${condition}) {`,
    ...body.map((line) => `  ${line}`),
  ]),
  `} else ${last}`,
];

/** Puts the size that an entry tells into `size`, a log2; the entry is of no kind when it tells none. */
const sizeOf = ({ address }: SizedLeafKind, index: number): string[] => [
  `size = ~elo & ${hex(lowWord(address))};`,
  "if (size !== 0) size = 32 - Math.clz32(size & -size);",
  `else if ((size = ~ehi & ${hex(highWord(address))}) !== 0) size = 64 - Math.clz32(size & -size);`,
  `else ${ended(WalkFault.reserved, index)}`,
];

const levelBlock = (format: PageTableFormat, stage: Stage, index: number): string[] => {
  const level = format.levels[index]!;
  const tables = level.tables.map((kind) => ({ kind, body: tableBlock(format, stage, index, kind) }));
  const leaves = level.leaves.map((kind) => ({
    kind,
    body: [...judge(format, index, kind), ...stage.leaf(index, kind)],
  }));
  const sized = level.otherSizes && {
    kind: level.otherSizes,
    body: [
      ...sizeOf(level.otherSizes, index),
      ...judge(format, index, level.otherSizes),
      ...stage.sizedLeaf(index, level.otherSizes),
    ],
  };
  const choices = [...tables, ...leaves, ...(sized ? [sized] : [])].map(({ kind, body }) => ({
    condition: holds(kind.test),
    body,
  }));
  const lines = [
    ...stage.find(index),
    ...readEntry(format, index),
    `if (${holds(absentAt(format, index))}) ${ended(WalkFault.notPresent, index)}`,
    ...choose(choices, ended(WalkFault.reserved, index)),
  ];
  return skips(format)
    ? [title(level, index), `if (next === ${index}) {`, ...lines.map((line) => `  ${line}`), "}"]
    : [title(level, index), ...lines];
};

/** Whether an entry can name another level than the next. */
const skips = ({ levels }: PageTableFormat): boolean =>
  levels.some(({ tables }, index) => tables.some(({ to }) => to !== index - 1));

/** The walk down the levels, from the table at `root`. */
export const descent = (format: PageTableFormat, stage: Stage): string[] => {
  const top = format.levels.length - 1;
  return format.levels.flatMap((_, i) => levelBlock(format, stage, top - i));
};

/** The variables of a descent. */
export const rootOf = (format: PageTableFormat): string[] => [
  ...(format.levels.some(({ otherSizes }) => otherSizes) ? ["let size = 0;"] : []),
  `let base = root | 0, bank = ${bankOf("root")};`,
  ...(skips(format) ? [`let next = ${format.levels.length - 1};`] : []),
];

/** Every permission bit: what is allowed is what was not denied of these. */
const everything = Object.values(Permission).reduce((all, one) => all | one, 0);

/** The result of a walk that ended at the leaf. */
export const found = (index: number, leaf: LeafKind): string[] => {
  const offset = (1n << BigInt(leaf.lg2)) - 1n;
  const [offsetLo, offsetHi] = [hex(lowWord(offset)), hex(highWord(offset))];
  const high = `(${upperWord(leaf)}${leaf.lg2 > 32 ? ` | hi & ${offsetHi}` : ""})`;
  const low = `((elo & ${hex(lowWord(leaf.address))} | lo & ${offsetLo}) >>> 0)`;
  const into = leaf.lg2 < 32 ? `(lo & ${offsetLo})` : `((hi & ${offsetHi}) * 4294967296 + (lo >>> 0))`;
  return [
    `out.pa = ${high} * 4294967296 + ${low};`,
    `out.lg2 = ${leaf.lg2};`,
    `out.span = ${2 ** leaf.lg2} - ${into};`,
    "out.allowed = ~denied & everything;",
    ended(WalkFault.none, index),
  ];
};

/** The same for a leaf of 2^`size` bytes. */
export const foundSized = (index: number, { address }: SizedLeafKind): string[] => [
  "const offsetLo = size < 32 ? (1 << size) - 1 : -1, offsetHi = size < 32 ? 0 : (1 << (size - 32)) - 1;",
  `const pageLo = elo & ${hex(lowWord(address))} & ~offsetLo, pageHi = ehi & ${hex(highWord(address))} & ~offsetHi;`,
  "out.pa = (pageHi | hi & offsetHi) * 4294967296 + ((pageLo | lo & offsetLo) >>> 0);",
  "out.lg2 = size;",
  "out.span = 2 ** size - ((hi & offsetHi) * 4294967296 + ((lo & offsetLo) >>> 0));",
  "out.allowed = ~denied & everything;",
  ended(WalkFault.none, index),
];

/** Ends the walk so when the address has bits above those the root table indexes, or is not canonical. */
export const outsideTest = (format: PageTableFormat, end: string): string[] => {
  const width = inputBits(format);
  if (width >= 64) return [];
  if (format.canonical) {
    if (width <= 32) throw new RangeError(`${format.name}: canonical addresses of ${width} bits`);
    return [`if ((hi << ${64 - width} >> ${64 - width}) !== (hi | 0)) ${end}`];
  }
  return [
    width >= 32
      ? `if ((hi >>> ${width - 32}) !== 0) ${end}`
      : `if (hi !== 0 || (lo >>> ${width}) !== 0) ${end}`,
  ];
};

/** What every walker calls where it ends. */
export const prelude = `const everything = ${hex(everything)};
const refusal = (denied) =>
  denied & ${Permission.read} ? ${WalkFault.read} : denied & ${Permission.write} ? ${WalkFault.write}
  : denied & ${Permission.execute} ? ${WalkFault.execute} : denied & ${Permission.user} ? ${WalkFault.user}
  : ${WalkFault.privilegedExecute};
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
const swap32 = (x) => x << 24 | (x & 0xff00) << 8 | x >>> 8 & 0xff00 | x >>> 24;`;
