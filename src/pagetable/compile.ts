/**
 * Generates the fast walker of a format: one straight-line function, a block for each level, with every shift, mask and
 * test of the declaration as a literal. It reads memory through the direct view (`HostMemory.words` and `.state`; what
 * is not direct is asked for), keeps an entry in two 32-bit words, and allocates nothing. `walkerSource` is the text, for people; `explain.ts` is the
 * document it must agree with, and `format.suite.ts` holds the two equal.
 */
import {
  type Denial,
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

export const hex = (word: number): string => `0x${(word >>> 0).toString(16)}`;
const signed = (word: number): string => `${word | 0}`;

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
export const judge = (format: PageTableFormat, index: number, kind: TableKind | LeafKind): string[] => {
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
  const tablesToo = format.accessedAtOnce !== true;
  for (let above = format.levels.length - 1; tablesToo && above > index; above--) {
    const accessed = format.levels[above]!.tables.find((table) => table.accessed !== undefined)?.accessed;
    if (accessed === undefined) continue;
    const set = changeBits(format, "or64", `entry${above}`, accessed);
    lines.push(`if (entry${above} !== 0 && !${set}) ${ended(WalkFault.tableUnreadable, index)}`);
  }
  const mark = (bits: bigint, value: bigint, also: string) => {
    const missing = `!(${holds({ mask: bits, value })})`;
    const change = changeBits(format, value ? "or64" : "clear64", "bank * 4294967296 + at * 4", bits);
    lines.push(`if (${also}${missing} && !${change}) ${ended(WalkFault.tableUnreadable, index)}`);
  };
  const written = `(need & ${Permission.write}) !== 0 && `;
  if (leaf.accessed !== undefined) mark(leaf.accessed, leaf.accessed, "");
  if (leaf.dirty !== undefined) mark(leaf.dirty, leaf.dirty, written);
  if (leaf.dirtyCleared !== undefined) mark(leaf.dirtyCleared, 0n, written);
  return lines;
};

/** The result of a walk that ended at the leaf. */
const found = (index: number, leaf: LeafKind): string[] => {
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

const leafBlock = (format: PageTableFormat, index: number, leaf: LeafKind): string[] => [
  ...judge(format, index, leaf),
  ...note(format, index, leaf),
  ...found(index, leaf),
];

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
    const place = "bank * 4294967296 + at * 4";
    lines.push(
      format.accessedAtOnce
        ? `if (${missing} && !${changeBits(format, "or64", place, table.accessed)}) ${ended(WalkFault.tableUnreadable, index)}`
        : `if (${missing}) entry${index} = ${place};`,
    );
  }
  lines.push(`base = elo & ${hex(lowWord(table.address))};`, `bank = ${upperWord(table)};`);
  if (skipping) lines.push(`next = ${table.to};`);
  return lines;
};

export const title = ({ name, shift, bits }: FormatLevel, index: number): string =>
  `// level ${index}: ${name}, address bits ${shift + bits - 1}:${shift}`;

/** Reads the entry at index `at` of `view`. */
export const loadWords = ({ bigEndian }: PageTableFormat): string[] =>
  bigEndian
    ? ["elo = swap32(view[at + 1]);", "ehi = swap32(view[at]);"]
    : ["elo = view[at];", "ehi = view[at + 1];"];

const levelBlock = (format: PageTableFormat, index: number, skipping: boolean): string[] => {
  const level: FormatLevel = format.levels[index]!;
  const choices = [
    ...level.tables.map((kind) => ({ kind, body: tableBlock(format, index, kind, skipping) })),
    ...level.leaves.map((kind) => ({ kind, body: leafBlock(format, index, kind) })),
  ];
  const lines = [
    `at = (base >>> 2) + ((${field(level.shift, level.bits)}) << 1);`,
    "if (bank < words.length && states[bank][at >>> 10] > 0) {",
    "  view = words[bank];",
    ...loadWords(format).map((line) => `  ${line}`),
    `} else if (memory.${format.bigEndian ? "load64be" : "load64"}(bank * 4294967296 + at * 4)) {`,
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
  return skipping
    ? [title(level, index), `if (next === ${index}) {`, ...lines.map((l) => `  ${l}`), "}"]
    : [title(level, index), ...lines];
};

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

/** Every permission bit: what is allowed is what was not denied of these. */
const everything = Object.values(Permission).reduce((all, one) => all | one, 0);

const wholeSource = (format: PageTableFormat): string[] => {
  const top = format.levels.length - 1;
  const skipping = format.levels.some(({ tables }, index) => tables.some(({ to }) => to !== index - 1));
  const noting = format.levels.flatMap(({ tables }, index) =>
    !format.accessedAtOnce && tables.some(({ accessed }) => accessed !== undefined)
      ? [`entry${index} = 0`]
      : [],
  );
  return [
    "const words = memory.words, states = memory.state;",
    "let denied = 0, elo = 0, ehi = 0, at = 0, view;",
    "let base = root | 0, bank = (root / 4294967296) | 0;",
    ...(skipping ? [`let next = ${top};`] : []),
    ...(noting.length ? [`let ${noting.join(", ")};`] : []),
    ...outsideTest(format, "return outside(out);"),
    ...format.levels.flatMap((_, i) => levelBlock(format, top - i, skipping)),
  ];
};

// --- The near walk

/** Denials "this bit, set or clear, denies that permission" that are the same distance apart: tested together. */
interface Group {
  /** Name of the word, and of the variables: what is wanted of the word, and what all entries had. */
  readonly half: "elo" | "ehi";
  readonly wanted: string;
  readonly seen: string;
  /** The permissions, and how far left their bits are moved in the word; negative: right. */
  readonly permissions: number;
  readonly shift: number;
  /** The bit set is what permits. */
  readonly positive: boolean;
}

const moved = (expression: string, shift: number): string =>
  shift === 0 ? expression : shift > 0 ? `(${expression} << ${shift})` : `(${expression} >>> ${-shift})`;

const singleBit = (mask: bigint): boolean => mask !== 0n && (mask & (mask - 1n)) === 0n;

/** The groups of a kind; each is entered once in `all`. Denials that fit no group are the rest. */
const groupsOf = (kind: TableKind | LeafKind, all: Map<string, Group>) => {
  const rest: Denial[] = [];
  const sums = new Map<string, Omit<Group, "wanted" | "seen">>();
  for (const denial of kind.denials) {
    const { mask, value, denies } = denial;
    if (!singleBit(mask) || !singleBit(BigInt(denies))) {
      rest.push(denial);
      continue;
    }
    const half = lowWord(mask) ? "elo" : "ehi";
    const shift = Math.clz32(denies) - Math.clz32(lowWord(mask) || highWord(mask));
    const positive = value === 0n;
    const key = `${half} ${shift} ${positive}`;
    sums.set(key, { half, shift, positive, permissions: (sums.get(key)?.permissions ?? 0) | denies });
  }
  const groups = [...sums].map(([key, sum]) => {
    const full = `${key} ${sum.permissions}`;
    const group = all.get(full) ?? { ...sum, wanted: `want${all.size}`, seen: `seen${all.size}` };
    all.set(full, group);
    return group;
  });
  return { groups, rest };
};

/** That an entry is not absent follows from the wanted bits of these permissions; 0: it does not. */
const impliedBy = (format: PageTableFormat): number => {
  const { mask, value } = format.absent;
  const kinds = format.levels.flatMap(({ tables, leaves }) => [...tables, ...leaves]);
  if (value !== 0n || singleBit(mask)) return 0;
  const covers = (kind: TableKind | LeafKind) =>
    kind.denials.reduce((bits, denial) => (denial.value === 0n ? bits | denial.mask : bits), 0n);
  if (!kinds.every((kind) => (covers(kind) & mask) === mask)) return 0;
  return kinds[0]!.denials.reduce((all, { denies, mask: bit }) => (bit & mask ? all | denies : all), 0);
};

/** Everything an entry must be for the near walk to go on, as a condition. */
const wanted = (format: PageTableFormat, kind: TableKind | LeafKind, groups: readonly Group[]): string => {
  const tests: EntryTest[] = [kind.test, ...kind.checks];
  const { absent } = format;
  if (singleBit(absent.mask)) tests.push({ mask: absent.mask, value: absent.mask ^ absent.value });
  if (kind.accessed !== undefined) tests.push({ mask: kind.accessed, value: kind.accessed });
  const { addressHigh: far } = kind;
  if (far && !("lg2" in kind))
    tests.push({ mask: ((1n << BigInt(far.bits)) - 1n) << BigInt(far.at), value: 0n });
  const mask = tests.reduce((bits, test) => bits | test.mask, 0n);
  const value = tests.reduce((bits, test) => bits | test.value, 0n);
  const dirty = ("lg2" in kind ? kind.dirty : undefined) ?? 0n;
  const cleared = ("lg2" in kind ? kind.dirtyCleared : undefined) ?? 0n;
  const half = (name: "elo" | "ehi", word: (bits: bigint) => number) => {
    const mine = groups.filter((group) => group.half === name);
    const ifWritten = (bits: bigint) =>
      word(bits) ? [`(need & ${Permission.write} ? ${hex(word(bits))} : 0)`] : [];
    const dirtied = ifWritten(dirty);
    // A table in another bank is too far.
    const bank = name === "ehi" && !("lg2" in kind) ? word(kind.address) : 0;
    const looked = word(mask) | bank;
    const masks = [...(looked ? [hex(looked)] : []), ...mine.map((group) => group.wanted)];
    masks.push(...dirtied, ...ifWritten(cleared));
    const values = [
      ...(word(value) ? [signed(word(value))] : []),
      ...mine.filter(({ positive }) => positive).map((group) => group.wanted),
      ...dirtied,
      ...(bank ? ["bank"] : []),
    ];
    return masks.length ? [`(${name} & (${masks.join(" | ")})) === (${values.join(" | ") || "0"})`] : [];
  };
  const conditions = [...half("elo", lowWord), ...half("ehi", highWord)];
  return conditions.join(" && ") || "true";
};

const giveUp = "return whole(memory, root, lo, hi, need, out);";

const nearKind = (
  format: PageTableFormat,
  index: number,
  kind: TableKind | LeafKind,
  all: Map<string, Group>,
): { condition: string; body: string[] } => {
  const { groups, rest } = groupsOf(kind, all);
  const body = [
    ...groups.map(({ seen, half, positive }) => `${seen} ${positive ? "&=" : "|="} ${half};`),
    ...rest.map((denial) => `if (${holds(denial)}) denied |= ${hex(denial.denies)};`),
    ...("lg2" in kind
      ? [
          ...(rest.length ? [`if ((denied & need) !== 0) ${giveUp}`] : []),
          "denied |= DENIED;",
          ...found(index, kind),
        ]
      : [`base = elo & ${hex(lowWord(kind.address))};`]),
  ];
  return { condition: wanted(format, kind, groups), body };
};

const nearLevel = (
  format: PageTableFormat,
  index: number,
  all: Map<string, Group>,
  implied: number,
): string[] => {
  const level = format.levels[index]!;
  const kinds = [...level.tables.filter(({ to }) => to === index - 1), ...level.leaves];
  const choices = kinds.map((kind) => nearKind(format, index, kind, all));
  const askAbsent = !implied && !singleBit(format.absent.mask);
  return [
    title(level, index),
    `at = (base >>> 2) + ((${field(level.shift, level.bits)}) << 1);`,
    `if (!(state[at >>> 10] > 0)) ${giveUp}`,
    ...loadWords(format),
    ...(askAbsent ? [`if (${holds(format.absent)}) ${giveUp}`] : []),
    ...choices.flatMap(({ condition, body }, at) => [
      `${at ? "} else " : ""}if (${condition}) {`,
      ...body.map((line) => `  ${line}`),
    ]),
    `} else ${giveUp}`,
  ];
};

/** Bits of a bank in which no table may lie, by the checks of the entries. */
const forbiddenBanks = ({ levels }: PageTableFormat): number =>
  levels
    .flatMap(({ tables }) => tables)
    .flatMap(({ address, checks }) => checks.map(({ mask, value }) => highWord(address & mask & ~value)))
    .reduce((all, bits) => (all | bits) >>> 0, 0);

const nearSource = (format: PageTableFormat): string[] => {
  const top = format.levels.length - 1;
  const all = new Map<string, Group>();
  const implied = impliedBy(format);
  const forbidden = forbiddenBanks(format);
  const blocks = format.levels.flatMap((_, i) => nearLevel(format, top - i, all, implied));
  const groups = [...all.values()];
  const deniedBy = groups.map(({ seen, positive, shift, permissions }) => {
    const bits = moved(positive ? `~${seen}` : seen, -shift);
    return `${bits} & ${hex(permissions)}`;
  });
  const deniedAll = deniedBy.join(" | ") || "0";
  return [
    "let denied = 0, elo = 0, ehi = 0, at = 0;",
    "let base = root | 0;",
    "const bank = (root / 4294967296) | 0;",
    `if (bank >= memory.words.length) ${giveUp}`,
    ...(forbidden ? [`if ((bank & ${hex(forbidden)}) !== 0) ${giveUp}`] : []),
    "const view = memory.words[bank], state = memory.state[bank];",
    ...groups.map(({ wanted: want, seen, permissions, shift, positive }) => {
      const bits = moved(`need & ${hex(permissions)}`.replace(/.*/, "($&)"), shift);
      return `const ${want} = ${bits}; let ${seen} = ${positive ? -1 : 0};`;
    }),
    ...(implied ? [`if ((need & ${hex(implied)}) === 0) ${giveUp}`] : []),
    ...outsideTest(format, giveUp),
    ...blocks.map((line) => line.replace("DENIED", deniedAll)),
  ];
};

/** The text of the format's walker: the body of a function that returns it. */
export const walkerSource = (format: PageTableFormat): string => {
  const define = (name: string, lines: readonly string[]) => [
    `const ${name} = (memory, root, lo, hi, need, out) => {`,
    ...lines.map((line) => `  ${line}`),
    "};",
  ];
  return [
    `// ${format.name}`,
    prelude,
    ...define("whole", wholeSource(format)),
    ...define("near", nearSource(format)),
    "return near;",
  ].join("\n");
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

/** Makes the walker. A unit does so once for a format, not for a walk. */
export const compileWalker = (format: PageTableFormat): Walker =>
  new Function(`"use strict";\n${walkerSource(format)}`)() as Walker;
