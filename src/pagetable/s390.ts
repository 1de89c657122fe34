/**
 * Translation tables of s390 as its PCI functions use them (z/Architecture Principles of Operation, SA22-7832, chapter 3,
 * "Dynamic Address Translation"): page tables of 256 entries, and above them a segment table and up to three region
 * tables of 2048 entries each, all big-endian. A segment-table entry has its invalid bit where a page-table entry
 * has bits of software, so each of the two levels has a test of its own. DAT protection at any level forbids writing.
 *
 * Masks count from the least significant bit, layouts as the manual does, from the most significant one. Left out: large
 * frames (FC), and tables of less than their full length (TF, TL), which are refused as not valid; storage keys; page
 * tables of the mapper take a frame each, of which they use the first half.
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
  type TableKind,
  WalkFault,
} from "./format.ts";

/** Tables from the designated one down to page tables: 2 begins with a segment table, 5 with a region-first table. */
export type S390Tables = 2 | 3 | 4 | 5;

const manual = { bigEndian: true, msb0: true } as const;
const types = {
  0: "segment table",
  1: "region-third table",
  2: "region-second table",
  3: "region-first table",
};

/** Region-table entry. */
const RegionEntry = layout(
  "RTE",
  8,
  {
    ORIGIN: address(0, 51, "next table"),
    FC: bit(53, "format control: a large frame"),
    P: bit(54, "DAT protection"),
    TF: bits(56, 57, "table offset"),
    I: bit(58, "region invalid"),
    TT: bits(60, 61, "table type", types),
    TL: bits(62, 63, "table length"),
  },
  manual,
);
/** Segment-table entry. */
const SegmentEntry = layout(
  "STE",
  8,
  {
    ORIGIN: address(0, 52, "page table"),
    FC: bit(53, "format control: a large frame"),
    P: bit(54, "DAT protection"),
    I: bit(58, "segment invalid"),
    CS: bit(59, "common segment"),
    TT: bits(60, 61, "table type", types),
  },
  manual,
);
/** Page-table entry. */
const PageEntry = layout(
  "PTE",
  8,
  {
    PFRA: address(0, 51, "page frame"),
    ZERO: bit(52, "must be zero"),
    I: bit(53, "page invalid"),
    P: bit(54, "DAT protection"),
    SOFTWARE: bits(56, 63, "software's"),
  },
  manual,
);

const PAGE_LG2 = 12;
const PAGE_INDEX_BITS = 8;
const INDEX_BITS = 11;
const ADDRESS_END = 52;
const range = (from: number, to: number): bigint => (1n << BigInt(to + 1)) - (1n << BigInt(from));

const fieldMask = ({ mask }: { readonly mask: number }): bigint => BigInt(mask);
const { P, I, TT, TF, TL, FC } = RegionEntry.fields;
const PROTECTED = fieldMask(P);
const TABLE_INVALID = fieldMask(I);
const PAGE_INVALID = fieldMask(PageEntry.fields.I);

const denials: readonly Denial[] = [
  { mask: PROTECTED, value: PROTECTED, denies: Permission.write, why: "P = 1" },
];
const beyond: EntryCheck = {
  mask: range(ADDRESS_END, 63),
  value: 0n,
  fault: WalkFault.outputWidth,
  why: `the address has more than ${ADDRESS_END} bits`,
};
const must = (mask: bigint, value: bigint, why: string): EntryCheck => ({
  mask,
  value,
  fault: WalkFault.reserved,
  why,
});

/** An entry of a segment table (type 0) or a region table. */
const tableKind = (type: number): TableKind => {
  const region = type > 0;
  const typed = TT.put(BigInt(type));
  const full = region ? fieldMask(TL) : 0n;
  return {
    layout: region ? RegionEntry : SegmentEntry,
    test: always,
    address: range(region ? PAGE_LG2 : PAGE_LG2 - 1, ADDRESS_END - 1),
    checks: [
      must(fieldMask(TT), typed, `TT is not that of a ${types[type as keyof typeof types]}`),
      must(fieldMask(FC), 0n, "FC = 1: there are no large frames"),
      ...(region
        ? [must(fieldMask(TF) | full, full, "the table below is not of full length (TF 0, TL 3)")]
        : []),
      beyond,
    ],
    denials,
    bits: typed | full,
    to: type,
  };
};

const NAMES = ["PTE", "STE", "RTTE", "RSTE", "RFTE"];

const levelOf = (index: number): FormatLevel =>
  index === 0
    ? {
        name: NAMES[0]!,
        number: 0,
        shift: PAGE_LG2,
        bits: PAGE_INDEX_BITS,
        absent: { mask: PAGE_INVALID, value: PAGE_INVALID },
        tables: [],
        leaves: [
          {
            layout: PageEntry,
            test: always,
            address: range(PAGE_LG2, ADDRESS_END - 1),
            checks: [must(fieldMask(PageEntry.fields.ZERO), 0n, "bit 52 must be zero"), beyond],
            denials,
            bits: 0n,
            lg2: PAGE_LG2,
          },
        ],
      }
    : {
        name: NAMES[index]!,
        number: index,
        shift: PAGE_LG2 + PAGE_INDEX_BITS + INDEX_BITS * (index - 1),
        bits: INDEX_BITS,
        tables: [tableKind(index - 1)],
        leaves: [],
      };

/** Tables that translate 31, 42, 53 or all 64 address bits. */
export const s390Dat = (tables: S390Tables): PageTableFormat => ({
  name: `s390, ${tables} tables`,
  levels: Array.from({ length: tables }, (_, index) => levelOf(index)),
  bigEndian: true,
  absent: { mask: TABLE_INVALID, value: TABLE_INVALID },
  empty: TABLE_INVALID | PAGE_INVALID,
  deniedAt: "leaf",
  outputBits: ADDRESS_END,
  leafBits(protection) {
    if (!(protection & Protection.read)) return -1n;
    return protection & Protection.write ? 0n : PROTECTED;
  },
});
