/**
 * VMSAv8-64 translation tables (Arm ARM DDI 0487, chapter D8) as an SMMUv3 walks them (IHI 0070, §3.4 and §13): stage 1
 * and stage 2, granules of 4, 16 and 64 KiB, every start level, blocks, access flag, dirty state by hardware, and the
 * permissions that tables hand down. Entries are little-endian.
 *
 * A table root is what one TTB register says: which of TTB0 and TTB1 an address belongs to, and the bits above the input
 * size, are looked at before. Bits that are reserved do not fault: Arm has them ignored. The contiguous bit is a hint and
 * ignored too, as are memory attributes; both are kept. Permissions that depend on read and write together (WXN, UWXN,
 * PAN) are for whoever has the result.
 *
 * Left out: big-endian tables, descriptors of LPA2 and of 128 bits, permission indirection, HAFT.
 */
import { address, bit, bits, type Layout, layout } from "../uapi/layout.ts";
import {
  type Denial,
  type EntryCheck,
  type FormatLevel,
  type HighBits,
  type LeafKind,
  type PageTableFormat,
  Permission,
  Protection,
  WalkFault,
} from "./format.ts";

/** Log2 of the granule. */
export type Granule = 12 | 14 | 16;

export interface VmsaOptions {
  readonly granuleLg2: Granule;
  /** Input address bits that the tables translate: 64 - TxSZ. */
  readonly inputBits: number;
  /** Addresses have to lie below 2^outputBits (IPS, S2PS); default 48. More than 48 needs `wide`. */
  readonly outputBits?: number;
  /** 64 KiB granule of a unit with 52-bit addresses: bits 51:48 are in bits 15:12 of an entry. */
  readonly wide?: boolean;
  /** What the unit updates: nothing, the access flag (HA), or dirty state too (HD). Default nothing. */
  readonly updates?: "accessed" | "dirty";
  /** A clear access flag faults; default true (false: AFFD). Of no effect with `updates`. */
  readonly accessFlag?: boolean;
}

export interface VmsaStage1Options extends VmsaOptions {
  /** Tables hand permissions down; default true (false: HAD). */
  readonly hierarchical?: boolean;
  /** Unprivileged accesses are told from privileged ones (EL1&0); default true. False: EL2, with one execute-never bit. */
  readonly privileges?: boolean;
}

export interface VmsaStage2Options extends VmsaOptions {
  /** The specification's number of the level to start at; default the highest for which 16 concatenated tables do. */
  readonly startLevel?: number;
  /** FEAT_XNX: execute-never has two bits. Default true. */
  readonly twoExecuteNever?: boolean;
}

/** At most so many tables are concatenated at the start of stage 2. */
const CONCATENATED_LG2 = 4;

/** First address bit that a level indexes. */
export const levelShift = (granuleLg2: number, level: number): number =>
  granuleLg2 + (3 - level) * (granuleLg2 - 3);

/** The level stage 1 starts at. */
export const stage1Start = (granuleLg2: number, inputBits: number): number =>
  4 - Math.ceil((inputBits - granuleLg2) / (granuleLg2 - 3));

/** The level stage 2 starts at when it is software's choice: as few levels as concatenation allows. */
export const stage2Start = (granuleLg2: number, inputBits: number): number => {
  let level = stage1Start(granuleLg2, inputBits);
  if (level < 3 && inputBits - levelShift(granuleLg2, level + 1) <= granuleLg2 - 3 + CONCATENATED_LG2)
    level += 1;
  return level;
};

const range = (from: number, to: number): bigint => (1n << BigInt(to + 1)) - (1n << BigInt(from));
const at = (position: number): bigint => 1n << BigInt(position);

const AP1 = at(6);
const AP2 = at(7);
const AF = at(10);
const NG = at(11);
const DBM = at(51);
const PXN = at(53);
const UXN = at(54);
/** Inner shareable. */
const SH_INNER = 3n << 8n;
const TABLE = 3n;
const PAGE = 3n;
const BLOCK = 1n;

/** The entry's bits for address bits 51:48, of a 64 KiB granule. */
const WIDE: HighBits = { at: 12, bits: 4, to: 48 };

const tableFields = (granuleLg2: number, wide: boolean) => ({
  VALID: bit(0, "valid"),
  TYPE: bit(1, "table"),
  ...(wide && { ADDR_HIGH: bits(12, 15, "next table, bits 51:48") }),
  ADDR: address(granuleLg2, 47, "next table"),
});

const stage1Table = (granuleLg2: number, wide: boolean): Layout =>
  layout("table descriptor", 8, {
    ...tableFields(granuleLg2, wide),
    PXNTable: bit(59, "no privileged execution below"),
    UXNTable: bit(60, "no execution below"),
    APTable: bits(61, 62, "access below", {
      0: "no effect",
      1: "privileged only",
      2: "read-only",
      3: "privileged, read-only",
    }),
    NSTable: bit(63, "non-secure"),
  });

const leafAddress = (lg2: number, wide: boolean) => ({
  ...(wide && { ADDR_HIGH: bits(12, 15, "output, bits 51:48") }),
  ADDR: address(lg2, 47, "output"),
});

const stage1Leaf = (lg2: number, wide: boolean): Layout =>
  layout("leaf descriptor", 8, {
    VALID: bit(0, "valid"),
    TYPE: bit(1, "type", { 0: "block", 1: "page" }),
    AttrIndx: bits(2, 4, "memory attributes: index in MAIR"),
    NS: bit(5, "non-secure"),
    AP: bits(6, 7, "access", {
      0: "privileged read and write",
      1: "read and write",
      2: "privileged read",
      3: "read",
    }),
    SH: bits(8, 9, "shareability"),
    AF: bit(10, "access flag"),
    nG: bit(11, "not global"),
    ...leafAddress(lg2, wide),
    DBM: bit(51, "dirty bit modifier"),
    CONT: bit(52, "contiguous: a hint"),
    PXN: bit(53, "no privileged execution"),
    UXN: bit(54, "no execution"),
    IGN: bits(55, 62, "ignored"),
  });

const stage2Table = (granuleLg2: number, wide: boolean): Layout =>
  layout("table descriptor", 8, tableFields(granuleLg2, wide));

const stage2Leaf = (lg2: number, wide: boolean): Layout =>
  layout("leaf descriptor", 8, {
    VALID: bit(0, "valid"),
    TYPE: bit(1, "type", { 0: "block", 1: "page" }),
    MemAttr: bits(2, 5, "memory attributes"),
    S2AP: bits(6, 7, "access", { 0: "none", 1: "read", 2: "write", 3: "read and write" }),
    SH: bits(8, 9, "shareability"),
    AF: bit(10, "access flag"),
    ...leafAddress(lg2, wide),
    DBM: bit(51, "dirty bit modifier"),
    CONT: bit(52, "contiguous: a hint"),
    XN: bits(53, 54, "execute never", {
      0: "executable",
      1: "not privileged",
      2: "never",
      3: "privileged only",
    }),
    IGN: bits(55, 62, "ignored"),
  });

/** The part of a format that differs between the stages. */
interface Stage {
  readonly name: string;
  readonly table: (granuleLg2: number, wide: boolean) => Layout;
  readonly leaf: (lg2: number, wide: boolean) => Layout;
  readonly tableDenials: readonly Denial[];
  readonly leafDenials: readonly Denial[];
  readonly dirty: Pick<LeafKind, "dirty" | "dirtyCleared">;
  readonly leafBits: (protection: number) => bigint;
}

const checked = (options: VmsaOptions, startLevel: number): void => {
  const { granuleLg2, inputBits, outputBits = 48, wide = false } = options;
  const rootBits = inputBits - levelShift(granuleLg2, startLevel);
  if (!(startLevel >= 0 && startLevel <= 3 && rootBits >= 1))
    throw new RangeError(
      `a granule of 2^${granuleLg2} and ${inputBits} bits do not start at level ${startLevel}`,
    );
  if (wide && granuleLg2 !== 16) throw new RangeError("52-bit addresses need a granule of 64 KiB");
  if (!(outputBits >= 32 && outputBits <= (wide ? 52 : 48)))
    throw new RangeError(`${outputBits} output bits are not within 32 to ${wide ? 52 : 48}`);
};

/** Levels, by the specification's number, that have blocks. */
const blockLevels = (granuleLg2: number, wide: boolean): readonly number[] =>
  granuleLg2 === 12 ? [1, 2] : wide ? [1, 2] : [2];

const checksOf = (
  { outputBits = 48, wide = false, updates, accessFlag = true }: VmsaOptions,
  lg2: number,
  leaf: boolean,
): readonly EntryCheck[] => {
  const checks: EntryCheck[] = [];
  const high = wide ? WIDE : undefined;
  const beyond =
    (outputBits < 48 ? range(Math.max(outputBits, lg2), 47) : 0n) |
    (high && outputBits < 52 ? range(high.at + Math.max(outputBits, 48) - 48, 15) : 0n);
  if (beyond)
    checks.push({
      mask: beyond,
      value: 0n,
      fault: WalkFault.outputWidth,
      why: `the address ${leaf ? "" : "of the next table "}has more than ${outputBits} bits`,
    });
  if (leaf && accessFlag && !updates)
    checks.push({ mask: AF, value: AF, fault: WalkFault.accessFlag, why: "AF = 0" });
  return checks;
};

const formatOf = (options: VmsaOptions, startLevel: number, stage: Stage): PageTableFormat => {
  checked(options, startLevel);
  const { granuleLg2, inputBits, outputBits = 48, wide = false, updates } = options;
  const high = wide ? { addressHigh: WIDE } : {};
  const level = (number: number): FormatLevel => {
    const shift = levelShift(granuleLg2, number);
    const page = number === 3;
    const leaf: LeafKind = {
      layout: stage.leaf(shift, wide),
      test: { mask: 3n, value: page ? PAGE : BLOCK },
      address: range(shift, 47),
      ...high,
      checks: checksOf(options, shift, true),
      denials: stage.leafDenials,
      bits: (page ? PAGE : BLOCK) | AF,
      lg2: shift,
      ...(updates && { accessed: AF }),
      ...(updates === "dirty" && stage.dirty),
    };
    return {
      name: `L${number} descriptor`,
      number,
      shift,
      bits: number === startLevel ? inputBits - shift : granuleLg2 - 3,
      leaves: page || blockLevels(granuleLg2, wide).includes(number) ? [leaf] : [],
      tables: page
        ? []
        : [
            {
              layout: stage.table(granuleLg2, wide),
              test: { mask: 3n, value: TABLE },
              address: range(granuleLg2, 47),
              ...high,
              checks: checksOf(options, granuleLg2, false),
              denials: stage.tableDenials,
              bits: TABLE,
              to: 2 - number,
            },
          ],
    };
  };
  return {
    name: `${stage.name}, ${2 ** (granuleLg2 - 10)} KiB granule, ${inputBits} bits`,
    levels: Array.from({ length: 4 - startLevel }, (_, index) => level(3 - index)),
    bigEndian: false,
    absent: { mask: 1n, value: 0n },
    empty: 0n,
    deniedAt: "leaf",
    outputBits: Math.min(outputBits, 48),
    leafBits: stage.leafBits,
  };
};

const { read, write, execute, user, privilegedExecute } = Permission;
const denial = (mask: bigint, value: bigint, denies: number, why: string): Denial => ({
  mask,
  value,
  denies,
  why,
});

/** D8.4 Permissions of stage 1: bits of a leaf, and of tables with hierarchical control. */
const stage1Denials = (dirty: boolean, privileges: boolean): readonly Denial[] => [
  dirty ? denial(AP2 | DBM, AP2, write, "AP[2] = 1 and DBM = 0") : denial(AP2, AP2, write, "AP[2] = 1"),
  ...(privileges
    ? [
        denial(AP1, 0n, user, "AP[1] = 0"),
        denial(UXN, UXN, execute, "UXN = 1"),
        denial(PXN, PXN, privilegedExecute, "PXN = 1"),
      ]
    : [denial(UXN, UXN, execute | privilegedExecute, "XN = 1")]),
];

const stage1TableDenials = (privileges: boolean): readonly Denial[] => [
  denial(at(62), at(62), write, "APTable[1] = 1"),
  ...(privileges
    ? [
        denial(at(61), at(61), user, "APTable[0] = 1"),
        denial(at(60), at(60), execute, "UXNTable = 1"),
        denial(at(59), at(59), privilegedExecute, "PXNTable = 1"),
      ]
    : [denial(at(60), at(60), execute | privilegedExecute, "XNTable = 1")]),
];

/** Stage 1. RangeError for options that contradict each other. */
export const vmsaStage1 = (options: VmsaStage1Options): PageTableFormat => {
  const { granuleLg2, inputBits, updates, hierarchical = true, privileges = true } = options;
  const dirty = updates === "dirty";
  return formatOf(options, stage1Start(granuleLg2, inputBits), {
    name: "VMSAv8-64 stage 1",
    table: stage1Table,
    leaf: stage1Leaf,
    tableDenials: hierarchical ? stage1TableDenials(privileges) : [],
    leafDenials: stage1Denials(dirty, privileges),
    dirty: { dirtyCleared: AP2 },
    leafBits(protection) {
      if (!(protection & (Protection.read | Protection.write))) return -1n;
      const access = !(protection & Protection.write) ? AP2 : dirty ? AP2 | DBM : 0n;
      const never = protection & Protection.execute ? 0n : privileges ? UXN | PXN : UXN;
      return AP1 | NG | SH_INNER | access | never;
    },
  });
};

/** D8.4 Permissions of stage 2. */
const stage2Denials = (dirty: boolean, twoExecuteNever: boolean): readonly Denial[] => [
  denial(at(6), 0n, read, "S2AP[0] = 0"),
  dirty ? denial(at(7) | DBM, 0n, write, "S2AP[1] = 0 and DBM = 0") : denial(at(7), 0n, write, "S2AP[1] = 0"),
  ...(twoExecuteNever
    ? [
        denial(UXN | PXN, PXN, privilegedExecute, "XN = 1"),
        denial(UXN | PXN, UXN, execute | privilegedExecute, "XN = 2"),
        denial(UXN | PXN, UXN | PXN, execute, "XN = 3"),
      ]
    : [denial(UXN, UXN, execute | privilegedExecute, "XN = 1")]),
];

/** MemAttr: normal memory, write-back. */
const NORMAL = 0xfn << 2n;

/** Stage 2. RangeError for options that contradict each other. */
export const vmsaStage2 = (options: VmsaStage2Options): PageTableFormat => {
  const { granuleLg2, inputBits, updates, twoExecuteNever = true } = options;
  const { startLevel = stage2Start(granuleLg2, inputBits) } = options;
  const dirty = updates === "dirty";
  const tables = inputBits - levelShift(granuleLg2, startLevel) - (granuleLg2 - 3);
  if (tables > CONCATENATED_LG2)
    throw new RangeError(`stage 2 of ${inputBits} bits from level ${startLevel} needs 2^${tables} tables`);
  return formatOf(options, startLevel, {
    name: "VMSAv8-64 stage 2",
    table: stage2Table,
    leaf: stage2Leaf,
    tableDenials: [],
    leafDenials: stage2Denials(dirty, twoExecuteNever),
    dirty: { dirty: at(7) },
    leafBits(protection) {
      const { read: canRead, write: canWrite } = Protection;
      if (!(protection & (canRead | canWrite))) return -1n;
      const access = protection & canWrite ? (dirty ? DBM : at(7)) : 0n;
      const never = protection & Protection.execute ? 0n : UXN;
      return NORMAL | SH_INNER | (protection & canRead ? at(6) : 0n) | access | never;
    },
  });
};
