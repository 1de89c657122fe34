/**
 * TCE tables, the page tables of POWER I/O (public sources: LoPAR, "TCE"; the OpenPOWER PHB4 registers, "TVT"): one to
 * five levels of big-endian entries, all tables of a window of one size, and pages of one size. The lowest two bits of an
 * entry allow writing and reading; both clear, there is nothing. An entry above the last level points to a table, and
 * is there when either bit is set: permission is the last entry's alone.
 *
 * Left out: what the bits between permission and address mean to virtual devices; they are kept and ignored, as are bits
 * of a page's address below its size.
 */
import { address, bit, bits, layout } from "../uapi/layout.ts";
import {
  always,
  type Denial,
  type EntryCheck,
  type FormatLevel,
  type PageTableFormat,
  Permission,
  Protection,
  WalkFault,
} from "./format.ts";

/** What says how the tables of a window are: all that makes one format differ from another. */
export interface TceGeometry {
  /** Log2 of the bytes of a page, 12 or more. */
  readonly pageLg2: number;
  /** 1 to 5. */
  readonly levels: number;
  /** Log2 of the bytes of a table, 12 or more. */
  readonly tableLg2: number;
}

export const TCE_LEVELS_MAX = 5;
/** Log2 of the bytes of an entry. */
const ENTRY_LG2 = 3;
/** Bits of addresses in entries that memory can have. */
const ADDRESS_END = 52;
const TABLE_LG2 = 12;

const W = 1n << 1n;
const R = 1n << 0n;
const range = (from: number, to: number): bigint => (1n << BigInt(to + 1)) - (1n << BigInt(from));

/** Bits from the most significant one, which is bit 0, as in all specifications of POWER. */
const power = { msb0: true, bigEndian: true } as const;
const Tce = layout(
  "TCE",
  8,
  {
    RPN: address(0, 51, "real page"),
    IGN: bits(52, 61, "ignored"),
    W: bit(62, "write"),
    R: bit(63, "read"),
  },
  power,
);
const IndirectTce = layout(
  "indirect TCE",
  8,
  {
    TABLE: address(0, 51, "next table"),
    IGN: bits(52, 61, "ignored"),
    W: bit(62, "valid"),
    R: bit(63, "valid"),
  },
  power,
);

const denials: readonly Denial[] = [
  { mask: R, value: 0n, denies: Permission.read, why: "R = 0" },
  { mask: W, value: 0n, denies: Permission.write, why: "W = 0" },
];
const BEYOND = range(ADDRESS_END, 63);
const checks: readonly EntryCheck[] = [
  {
    mask: BEYOND,
    value: 0n,
    fault: WalkFault.outputWidth,
    why: `the real address has more than ${ADDRESS_END} bits`,
  },
];

const levelOf = (index: number, { pageLg2, tableLg2 }: TceGeometry): FormatLevel => {
  const width = tableLg2 - ENTRY_LG2;
  const shift = pageLg2 + index * width;
  const common = { test: always, checks };
  return {
    name: index === 0 ? "TCE" : "indirect TCE",
    number: index + 1,
    shift,
    bits: Math.min(width, 64 - shift),
    leaves:
      index === 0
        ? [
            {
              ...common,
              layout: Tce,
              lg2: pageLg2,
              address: range(pageLg2, ADDRESS_END - 1),
              denials,
              bits: 0n,
            },
          ]
        : [],
    tables:
      index === 0
        ? []
        : [
            {
              ...common,
              layout: IndirectTce,
              address: range(TABLE_LG2, ADDRESS_END - 1),
              denials: [],
              bits: R | W,
              to: index - 1,
            },
          ],
  };
};

/** Whether there are such tables; else what is wrong with them, as a sentence. */
export const tceUnfit = ({ pageLg2, levels, tableLg2 }: TceGeometry): string | undefined => {
  if (!(pageLg2 >= 12 && pageLg2 < ADDRESS_END))
    return `pages of 2^${pageLg2} bytes: 2^12 to 2^51 are possible`;
  if (!(levels >= 1 && levels <= TCE_LEVELS_MAX))
    return `${levels} levels: 1 to ${TCE_LEVELS_MAX} are possible`;
  if (!(tableLg2 >= TABLE_LG2 && tableLg2 <= 31))
    return `tables of 2^${tableLg2} bytes: 2^12 to 2^31 are possible`;
  if (pageLg2 + (levels - 1) * (tableLg2 - ENTRY_LG2) >= 64)
    return `${levels} levels of tables of 2^${tableLg2} bytes over pages of 2^${pageLg2} bytes index more than 64 address bits`;
  return undefined;
};

/** The smallest tables of so many levels whose reach is 2^windowLg2 bytes. */
export const tceGeometry = (windowLg2: number, pageLg2: number, levels: number): TceGeometry => ({
  pageLg2,
  levels,
  tableLg2: Math.max(TABLE_LG2, Math.ceil((windowLg2 - pageLg2) / levels) + ENTRY_LG2),
});

/** RangeError when there are no such tables. */
export const tce = (geometry: TceGeometry): PageTableFormat => {
  const unfit = tceUnfit(geometry);
  if (unfit) throw new RangeError(unfit);
  return {
    name: `TCE, ${geometry.levels} levels of 2^${geometry.tableLg2} bytes, pages of 2^${geometry.pageLg2}`,
    levels: Array.from({ length: geometry.levels }, (_, index) => levelOf(index, geometry)),
    bigEndian: true,
    absent: { mask: R | W, value: 0n },
    empty: 0n,
    deniedAt: "leaf",
    outputBits: ADDRESS_END,
    leafBits(protection) {
      const allowed = (protection & Protection.read ? R : 0n) | (protection & Protection.write ? W : 0n);
      return allowed === 0n ? -1n : allowed;
    },
  };
};
