/**
 * The contract of a page-table format. A format is declared constants: which address bits index which table, how an
 * entry is told to be empty, a table or a leaf, where its address is, what must hold in it, and what it forbids. It owns
 * no memory and knows no device. From one declaration come the literal walker (`explain.ts`), the generated fast walker
 * (`compile.ts`) and the mapper (`mapper.ts`); `format.suite.ts` is the battery every format must pass.
 *
 * Entries are 64 bits. Masks are declared as BigInt, once, when a format is made; what runs per entry uses the two
 * 32-bit words derived from them. Levels are counted from 0 = the table whose entries map the smallest page, upwards
 * to the root. A `Lg2` is a log2 of bytes.
 *
 * How the formats that differ most are declared: a root of concatenated tables is a root level with more bits; level
 * skipping is one `TableKind` for each level an entry can name; a page size told by the entry's low address bits (or by a
 * contiguous hint) is one `LeafKind` for each size, with `lg2` above the level's shift, and `otherSizes` for those that do
 * not belong there; a bit that forbids instead of allowing is a `Denial` on the set bit; a table that is not zero when
 * empty declares `empty`; address bits out of place are `addressHigh`; a page that is dirty when a bit is clear declares
 * `dirtyCleared`.
 */
import type { Layout } from "../uapi/layout.ts";

/** What a mapping allows and how: the `protection` of a map. */
export const Protection = { read: 1, write: 2, execute: 4, noSnoop: 8, mmio: 16 } as const;

/**
 * What a walk needs and what an entry can deny. The first three have the numbers of `Protection`. A format that grants
 * instruction fetches by privilege has `execute` for those without it and `privilegedExecute` for those with it.
 */
export const Permission = { read: 1, write: 2, execute: 4, user: 32, privilegedExecute: 64 } as const;

/** Why a walk ended without a translation. A unit turns it into its own fault code. */
export const WalkFault = {
  none: 0,
  /** An entry says that nothing is mapped. */
  notPresent: 1,
  /** An entry on the way, or all together, deny the access. */
  read: 2,
  write: 3,
  execute: 4,
  user: 5,
  /** An entry has a reserved bit set, or is of no kind its level knows. */
  reserved: 6,
  /**
   * The input address has more bits than the tables translate, is not canonical where it has to be, or has bits set
   * that a skipped level would index.
   */
  inputWidth: 7,
  /** An entry's address has more bits than the unit puts out. */
  outputWidth: 8,
  /** A table is where no memory answers. */
  tableUnreadable: 9,
  /** The entry wants software to note the first access. */
  accessFlag: 10,
  /** As `read` to `user`: what was denied. */
  privilegedExecute: 11,
} as const;
export type WalkFault = (typeof WalkFault)[keyof typeof WalkFault];

/** A test on an entry: holds when `(entry & mask) === value`. */
export interface EntryTest {
  readonly mask: bigint;
  readonly value: bigint;
}

/** A test that must hold in an entry of its kind; else the walk ends with the fault. */
export interface EntryCheck extends EntryTest {
  readonly fault: WalkFault;
  /** What it means that the test fails, for people: "a reserved bit is set". */
  readonly why: string;
}

/** When the test holds, the entry denies these accesses (`Permission` bits). */
export interface Denial extends EntryTest {
  readonly denies: number;
  /** "R = 0". */
  readonly why: string;
}

/** The `bits` bits of an entry from bit `at` (below 32) on are the address's from bit `to` (32 or above) on. */
export interface HighBits {
  readonly at: number;
  readonly bits: number;
  readonly to: number;
}

/** What tables and leaves have in common. */
interface EntryKind {
  /** The entry's fields, for people. */
  readonly layout: Layout;
  /** How an entry is told to be of this kind. The kinds of a level exclude each other. */
  readonly test: EntryTest;
  /** Bits that hold the address, each at its own place. */
  readonly address: bigint;
  /** More bits of the address, elsewhere in the lower word. The mapper leaves them zero: `outputBits` ends below. */
  readonly addressHigh?: HighBits;
  /** Checked in this order. */
  readonly checks: readonly EntryCheck[];
  readonly denials: readonly Denial[];
  /** What the mapper writes, apart from the address. For a leaf also apart from `PageTableFormat.leafBits`. */
  readonly bits: bigint;
  /** Bit that the unit sets when it uses the entry. */
  readonly accessed?: bigint;
}

/** An entry that points to a table. */
export interface TableKind extends EntryKind {
  /** Level of the table it points to. */
  readonly to: number;
}

/** An entry that maps a page. */
export interface LeafKind extends EntryKind {
  /** Size of the page; at least the level's shift. When larger, the entry is repeated 2^(lg2 - shift) times. */
  readonly lg2: number;
  /** Bit that the unit sets when the page is written through it. */
  readonly dirty?: bigint;
  /** Instead of `dirty`: the bit that it clears. Every leaf that the mapper makes writable has it set. */
  readonly dirtyCleared?: bigint;
}

/**
 * An entry that maps a page whose size its own address tells: 2^(n + 1) bytes, n being the lowest bit of `address` that is
 * zero. All ones are of no kind.
 */
export interface SizedLeafKind extends Omit<EntryKind, "addressHigh"> {
  readonly dirty?: bigint;
}

export interface FormatLevel {
  /** The specification's name of an entry: "SS-PDE". */
  readonly name: string;
  /** The specification's number of the level. */
  readonly number: number;
  /** First address bit that indexes the table. */
  readonly shift: number;
  /** Number of address bits that index the table: it has 2^bits entries of 8 bytes. */
  readonly bits: number;
  readonly leaves: readonly LeafKind[];
  readonly tables: readonly TableKind[];
  /** What tells an entry of this level that maps nothing, where it is not what the format says of all. */
  readonly absent?: EntryTest;
  /**
   * What a walk takes an entry for that is of none of these kinds: a page that may be smaller than what the entry covers
   * (and then repeats there), or larger than its table covers. The mapper makes none. Not in a first stage.
   */
  readonly otherSizes?: SizedLeafKind;
}

/** The leaf that an entry is when it tells its own size; undefined: it tells none. */
export const leafBySize = (kind: SizedLeafKind, entry: bigint): LeafKind | undefined => {
  const { mask, value } = kind.test;
  const zeros = ~entry & kind.address;
  if ((entry & mask) !== value || zeros === 0n) return undefined;
  const size = (zeros & -zeros) << 1n;
  return { ...kind, address: kind.address & -size, lg2: size.toString(2).length - 1 };
};

export interface PageTableFormat {
  readonly name: string;
  /** From the smallest page upwards; the last one is the root. Neighbours adjoin: shift + bits = shift of the next. */
  readonly levels: readonly FormatLevel[];
  /** Input addresses are signed: the bits above those the root indexes all equal the highest of these. */
  readonly canonical?: boolean;
  readonly bigEndian: boolean;
  /** An entry that maps nothing: tested before its kind. A level may have a test of its own. */
  readonly absent: EntryTest;
  /** What the mapper writes to unmap, at any level; new tables are filled with it. */
  readonly empty: bigint;
  /** Whether an access is refused at the first entry that denies it, or only at the leaf, by all together. */
  readonly deniedAt: "entry" | "leaf";
  /** The accessed bit of a table's entry is set when the walk goes on through it, not when it has succeeded. */
  readonly accessedAtOnce?: boolean;
  /** Width of physical addresses that the mapper writes: a leaf or table lies below 2^outputBits. At most 52. */
  readonly outputBits: number;
  /** The leaf bits that say this protection, or -1n when the format cannot say it. */
  leafBits(protection: number): bigint;
}

/** Number of address bits the tables translate. */
export const inputBits = ({ levels }: PageTableFormat): number => {
  const root = levels[levels.length - 1]!;
  return root.shift + root.bits;
};

/** What tells an entry of a level (index) that maps nothing. */
export const absentAt = ({ levels, absent }: PageTableFormat, index: number): EntryTest =>
  levels[index]!.absent ?? absent;

/** First address the mapper does not map: of canonical addresses it maps the lower half. */
export const mappedEnd = (format: PageTableFormat): number =>
  2 ** (inputBits(format) - (format.canonical ? 1 : 0));

/** Bytes a table of the level takes: a table smaller than a frame has a frame to itself. */
export const tableBytes = ({ bits }: FormatLevel): number => Math.max(4096, 8 * 2 ** bits);

/** The address in an entry of the kind. */
export const addressIn = (
  { address, addressHigh: high }: Pick<EntryKind, "address" | "addressHigh">,
  entry: bigint,
): bigint => {
  if (!high) return entry & address;
  const bits = (entry >> BigInt(high.at)) & ((1n << BigInt(high.bits)) - 1n);
  return (entry & address) | (bits << BigInt(high.to));
};

/** Holds for every entry. */
export const always: EntryTest = { mask: 0n, value: 0n };

/** Less and more significant half of a 64-bit value, unsigned. */
export const lowWord = (value: bigint): number => Number(value & 0xffff_ffffn);
export const highWord = (value: bigint): number => Number((value >> 32n) & 0xffff_ffffn);
