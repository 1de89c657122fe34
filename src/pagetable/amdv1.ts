/**
 * Host page tables of AMD-Vi, "version 1" (AMD I/O Virtualization Technology (IOMMU) Specification, §2.2.3): one to six
 * levels of 512 little-endian entries, of which the sixth translates only the 7 bits that are left of 64. An entry names
 * the level of the table it points to, which may skip levels; NextLevel 0 makes it a page of its level's size, NextLevel 7
 * a page whose size the address tells by its lowest zero bit. Permission is the AND over all levels.
 *
 * The mapper uses NextLevel 7 for sizes between those of the levels, with the entry repeated as the specification wants
 * it. A unit takes such an entry wherever it finds it: its size is what the address says, whatever the level covers. U and
 * FC of a page are kept and ignored. Left out: pages of the sixth level, which would be larger than physical memory.
 */
import { address, bit, bits, layout } from "../uapi/layout.ts";
import {
  type Denial,
  type EntryCheck,
  type EntryTest,
  type FormatLevel,
  type LeafKind,
  type PageTableFormat,
  Permission,
  Protection,
  type SizedLeafKind,
  WalkFault,
} from "./format.ts";

export type AmdV1Levels = 1 | 2 | 3 | 4 | 5 | 6;

export interface AmdV1Options {
  /** DTE.HAD: the unit sets A in what it uses ("accessed"), and D in pages that are written ("dirty"). Default neither. */
  readonly updates?: "accessed" | "dirty";
  /** Log2 of the page sizes that the mapper makes. Default: every one there is, 12 to 51. */
  readonly pageLg2s?: readonly number[];
}

/** What tables and pages have in common. */
const common = {
  PR: bit(0, "present"),
  IGN1: bits(1, 4, "ignored"),
  A: bit(5, "accessed"),
  IGN7: bits(7, 8, "ignored"),
  IR: bit(61, "read permission"),
  IW: bit(62, "write permission"),
  IGN63: bit(63, "ignored"),
};
const nextLevel = {
  ...{ 0: "a page of the level's size", 1: "level 1", 2: "level 2", 3: "level 3" },
  ...{ 4: "level 4", 5: "level 5", 6: "level 6", 7: "a page of the size that the address tells" },
};

/** §2.2.3 Page directory entry. */
const Pde = layout("PDE", 8, {
  ...common,
  IGN6: bit(6, "ignored"),
  NEXT: bits(9, 11, "next level", nextLevel),
  ADDR: address(12, 51, "next table"),
});
/** §2.2.3 Page table entry. */
const Pte = layout("PTE", 8, {
  ...common,
  D: bit(6, "dirty"),
  NEXT: bits(9, 11, "next level", nextLevel),
  ADDR: address(12, 51, "page; with NextLevel 7 also its size, by the lowest bit that is zero"),
  U: bit(59, "attribute for the device: ignored"),
  FC: bit(60, "forced coherent: ignored"),
});

const PR = 1n << 0n;
const A = 1n << 5n;
const D = 1n << 6n;
const FC = 1n << 60n;
const IR = 1n << 61n;
const IW = 1n << 62n;
const range = (from: number, to: number): bigint => (1n << BigInt(to + 1)) - (1n << BigInt(from));
const NEXT = range(9, 11);
const ADDRESS_END = 52;
const PAGE_LG2 = 12;

const denials: readonly Denial[] = [
  { mask: IR, value: 0n, denies: Permission.read, why: "IR = 0" },
  { mask: IW, value: 0n, denies: Permission.write, why: "IW = 0" },
];
const reserved = (mask: bigint): readonly EntryCheck[] => [
  {
    mask,
    value: 0n,
    fault: WalkFault.reserved,
    why: `reserved bits are set (0x${mask.toString(16)} must be 0)`,
  },
];
const next = (level: number): EntryTest => ({ mask: NEXT, value: BigInt(level) << 9n });

/** A page of 2^lg2 bytes by NextLevel 7: its address has ones up to bit lg2 - 2, then a zero. */
const sizeTest = (lg2: number): EntryTest => ({
  mask: NEXT | range(PAGE_LG2, lg2 - 1),
  value: NEXT | range(PAGE_LG2, lg2 - 2),
});

/** The sizes between a level's own and that of the level above. */
const sizesOf = (shift: number, bitCount: number): number[] =>
  Array.from({ length: bitCount }, (_, more) => shift + more).filter(
    (lg2) => lg2 > PAGE_LG2 && lg2 < ADDRESS_END,
  );

const levelOf = (index: number, { updates, pageLg2s }: AmdV1Options): FormatLevel => {
  const shift = PAGE_LG2 + 9 * index;
  const bitCount = Math.min(9, 64 - shift);
  const used = { denials, ...(updates && { accessed: A }) };
  const page = {
    ...used,
    layout: Pte,
    checks: reserved(Pte.reserved),
    ...(updates === "dirty" && { dirty: D }),
  };
  const leaf = (lg2: number, test: EntryTest): LeafKind => ({
    ...page,
    test,
    address: range(lg2, ADDRESS_END - 1),
    bits: PR | test.value,
    lg2,
  });
  const own = shift < ADDRESS_END ? [leaf(shift, next(0))] : [];
  const more = sizesOf(shift, bitCount)
    .filter((lg2) => lg2 !== shift)
    .map((lg2) => leaf(lg2, sizeTest(lg2)));
  const sized: SizedLeafKind = {
    ...page,
    test: { mask: NEXT, value: NEXT },
    address: range(PAGE_LG2, ADDRESS_END - 1),
    bits: PR | NEXT,
  };
  return {
    name: index === 0 ? "PTE" : `PDE${index + 1}`,
    number: index + 1,
    shift,
    bits: bitCount,
    tables: Array.from({ length: index }, (_, to) => ({
      ...used,
      layout: Pde,
      test: next(to + 1),
      address: range(PAGE_LG2, ADDRESS_END - 1),
      checks: reserved(Pde.reserved),
      bits: PR | IR | IW | next(to + 1).value,
      to,
    })),
    leaves: [...own, ...more].filter(({ lg2 }) => pageLg2s?.includes(lg2) ?? true),
    otherSizes: sized,
  };
};

/** Tables of so many levels (DTE.Mode) translate 21, 30, 39, 48, 57 or all 64 address bits. RangeError without 4 KiB pages. */
export const amdV1 = (levels: AmdV1Levels, options: AmdV1Options = {}): PageTableFormat => {
  if (options.pageLg2s?.includes(PAGE_LG2) === false)
    throw new RangeError("AMD-Vi host tables always have pages of 4 KiB");
  return {
    name: `AMD-Vi v1, ${levels} levels`,
    levels: Array.from({ length: levels }, (_, index) => levelOf(index, options)),
    bigEndian: false,
    absent: { mask: PR, value: 0n },
    empty: 0n,
    deniedAt: "leaf",
    outputBits: ADDRESS_END,
    leafBits(protection) {
      const allowed = (protection & Protection.read ? IR : 0n) | (protection & Protection.write ? IW : 0n);
      return allowed === 0n ? -1n : allowed | (protection & Protection.noSnoop ? 0n : FC);
    },
  };
};
