/**
 * The walk that most accesses take: tables all in one bank and read directly, nothing denied, no bit to set. It asks of each
 * entry with one mask and one comparison per word whether that is so, and where it is not it gives up: the whole walk
 * (`compile.ts`) begins again.
 */
import {
  absentAt,
  type Denial,
  type EntryTest,
  highWord,
  type LeafKind,
  lowWord,
  type PageTableFormat,
  Permission,
  type TableKind,
} from "./format.ts";
import {
  bankOf,
  choose,
  field,
  found,
  hex,
  holds,
  loadWords,
  outsideTest,
  signed,
  title,
} from "./generate.ts";

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
  if (value !== 0n || singleBit(mask) || format.levels.some(({ absent }) => absent)) return 0;
  const covers = (kind: TableKind | LeafKind) =>
    kind.denials.reduce((bits, denial) => (denial.value === 0n ? bits | denial.mask : bits), 0n);
  if (!kinds.every((kind) => (covers(kind) & mask) === mask)) return 0;
  return kinds[0]!.denials.reduce((all, { denies, mask: bit }) => (bit & mask ? all | denies : all), 0);
};

/** Everything an entry must be for the near walk to go on, as a condition. */
const wanted = (absent: EntryTest, kind: TableKind | LeafKind, groups: readonly Group[]): string => {
  const tests: EntryTest[] = [kind.test, ...kind.checks];
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
  return { condition: wanted(absentAt(format, index), kind, groups), body };
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
  const absent = absentAt(format, index);
  const askAbsent = !implied && !singleBit(absent.mask);
  return [
    title(level, index),
    `at = (base >>> 2) + ((${field(level.shift, level.bits)}) << 1);`,
    `if (!(state[at >>> 10] > 0)) ${giveUp}`,
    ...loadWords(format),
    ...(askAbsent ? [`if (${holds(absent)}) ${giveUp}`] : []),
    ...choose(choices, giveUp),
  ];
};

/** Bits of a bank in which no table may lie, by the checks of the entries. */
const forbiddenBanks = ({ levels }: PageTableFormat): number =>
  levels
    .flatMap(({ tables }) => tables)
    .flatMap(({ address, checks }) => checks.map(({ mask, value }) => highWord(address & mask & ~value)))
    .reduce((all, bits) => (all | bits) >>> 0, 0);

/** The body of the near walk; what it gives up is done by `whole`. */
export const nearSource = (format: PageTableFormat): string[] => {
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
    `const bank = ${bankOf("root")};`,
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
