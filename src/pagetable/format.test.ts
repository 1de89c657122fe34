/**
 * That the contract carries formats of other shapes: small declarations in the manner of four of them (not the formats
 * themselves) go through the battery.
 */
import { address, bit, bits, layout } from "../uapi/layout.ts";
import { describeFormat } from "./format.suite.ts";
import {
  always,
  type EntryTest,
  type FormatLevel,
  type LeafKind,
  type PageTableFormat,
  Permission,
  Protection,
  WalkFault,
} from "./format.ts";

const below = (width: number): bigint => (1n << BigInt(width)) - 1n;
const range = (from: number, to: number): bigint => below(to + 1) ^ below(from);

/** Big-endian tables of different sizes; an invalid bit, so that an empty table is not zero; a bit that protects. */
const bigEndianShapes = (): PageTableFormat => {
  const invalid = 1n << 5n;
  const protect = 1n << 9n;
  const entry = layout(
    "entry",
    8,
    { I: bit(5, "invalid"), P: bit(9, "protection"), ADDR: address(12, 51, "origin") },
    {
      bigEndian: true,
    },
  );
  const level = (index: number, shift: number, width: number): FormatLevel => ({
    name: ["PTE", "STE", "RTE"][index]!,
    number: index,
    shift,
    bits: width,
    tables: index
      ? [
          {
            layout: entry,
            test: always,
            address: range(12, 51),
            checks: [],
            denials: [],
            bits: 3n,
            to: index - 1,
          },
        ]
      : [],
    leaves: index
      ? []
      : [
          {
            layout: entry,
            test: always,
            address: range(12, 51),
            checks: [{ mask: 1n << 11n, value: 0n, fault: WalkFault.reserved, why: "bit 11 is set" }],
            denials: [{ mask: protect, value: protect, denies: Permission.write, why: "P = 1" }],
            bits: 0n,
            lg2: 12,
            accessed: 1n << 3n,
            dirty: 1n << 62n,
          },
        ],
  });
  return {
    name: "big-endian shapes",
    levels: [level(0, 12, 8), level(1, 20, 11), level(2, 31, 11)],
    bigEndian: true,
    absent: { mask: invalid, value: invalid },
    empty: invalid,
    deniedAt: "leaf",
    outputBits: 52,
    leafBits: (protection) =>
      protection & Protection.read ? (protection & Protection.write ? 0n : protect) : -1n,
  };
};

/** 16 KiB granule, a root of two concatenated tables, a bit that tells tables, one that must be set, limits of the output. */
const largeGranule = (): PageTableFormat => {
  const entry = layout("descriptor", 8, {
    TYPE: bits(0, 1, "type"),
    AF: bit(10, "accessed"),
    ADDR: address(14, 47, "output"),
  });
  const denials = [
    { mask: 1n << 6n, value: 0n, denies: Permission.read, why: "S2AP[0] = 0" },
    { mask: 1n << 7n, value: 0n, denies: Permission.write, why: "S2AP[1] = 0" },
    { mask: 1n << 54n, value: 1n << 54n, denies: Permission.execute, why: "XN = 1" },
  ];
  const wide = { mask: range(44, 47), value: 0n, fault: WalkFault.outputWidth, why: "beyond 44 bits" };
  const flag = { mask: 1n << 10n, value: 1n << 10n, fault: WalkFault.accessFlag, why: "AF = 0" };
  const leaf = (lg2: number, type: bigint): LeafKind => ({
    layout: entry,
    test: { mask: 3n, value: type },
    address: range(lg2, 47),
    checks: [wide, flag],
    denials,
    bits: type | (1n << 10n),
    lg2,
  });
  const table = {
    layout: entry,
    test: { mask: 3n, value: 3n },
    address: range(14, 47),
    checks: [wide],
    denials: [],
    bits: 3n,
  };
  return {
    name: "large granule",
    levels: [
      { name: "L3", number: 3, shift: 14, bits: 11, leaves: [leaf(14, 3n)], tables: [] },
      { name: "L2", number: 2, shift: 25, bits: 11, leaves: [leaf(25, 1n)], tables: [{ ...table, to: 0 }] },
      { name: "L1", number: 1, shift: 36, bits: 12, leaves: [], tables: [{ ...table, to: 1 }] },
    ],
    bigEndian: false,
    absent: { mask: 1n, value: 0n },
    empty: 0n,
    deniedAt: "leaf",
    outputBits: 44,
    leafBits: (protection) => BigInt(protection & 3) << 6n,
  };
};

/** Entries name the level below, which may be skipped; a leaf's size may be told by its low address bits. */
const levelSkipping = (): PageTableFormat => {
  const entry = layout("PTE", 8, {
    PR: bit(0, "present"),
    NEXT: bits(9, 11, "next level"),
    ADDR: address(12, 51, "address"),
    IR: bit(61, "read"),
    IW: bit(62, "write"),
  });
  const next = (level: number): EntryTest => ({ mask: range(9, 11), value: BigInt(level) << 9n });
  const denials = [
    { mask: 1n << 61n, value: 0n, denies: Permission.read, why: "IR = 0" },
    { mask: 1n << 62n, value: 0n, denies: Permission.write, why: "IW = 0" },
  ];
  const reserved = [{ mask: 1n << 63n, value: 0n, fault: WalkFault.reserved, why: "bit 63 is set" }];
  const common = { layout: entry, checks: reserved, denials };
  const level = (index: number): FormatLevel => {
    const shift = 12 + 9 * index;
    const sized = [1, 4].map((more): LeafKind => {
      // The size is 2^lg2 where bits lg2-2 down to 12 are ones and bit lg2-1 is zero.
      const lg2 = shift + more;
      const ones = range(12, lg2 - 2);
      const test = { mask: range(9, 11) | range(12, lg2 - 1), value: (7n << 9n) | ones };
      return { ...common, test, address: range(lg2, 51), bits: 1n | test.value, lg2 };
    });
    return {
      name: `PTE${index + 1}`,
      number: index + 1,
      shift,
      bits: 9,
      leaves: [{ ...common, test: next(0), address: range(shift, 51), bits: 1n, lg2: shift }, ...sized],
      tables: Array.from({ length: index }, (_, to) => ({
        ...common,
        test: next(to + 1),
        address: range(12, 51),
        bits: 1n | (3n << 61n) | next(to + 1).value,
        to,
      })),
    };
  };
  return {
    name: "level skipping",
    levels: [level(0), level(1), level(2), level(3)],
    bigEndian: false,
    absent: { mask: 1n, value: 0n },
    empty: 0n,
    deniedAt: "leaf",
    outputBits: 52,
    leafBits: (protection) => BigInt(protection & 3) << 61n,
  };
};

/** One big-endian level of 64 KiB pages: a linear table. */
const linear = (): PageTableFormat => ({
  name: "linear",
  levels: [
    {
      name: "TCE",
      number: 0,
      shift: 16,
      bits: 14,
      tables: [],
      leaves: [
        {
          layout: layout(
            "TCE",
            8,
            { RPN: address(12, 51, "page"), R: bit(0, "read"), W: bit(1, "write") },
            { bigEndian: true },
          ),
          test: always,
          address: range(16, 51),
          checks: [],
          denials: [
            { mask: 1n, value: 0n, denies: Permission.read, why: "R = 0" },
            { mask: 2n, value: 0n, denies: Permission.write, why: "W = 0" },
          ],
          bits: 0n,
          lg2: 16,
        },
      ],
    },
  ],
  bigEndian: true,
  absent: { mask: 3n, value: 0n },
  empty: 0n,
  deniedAt: "leaf",
  outputBits: 52,
  leafBits: (protection) => (protection & 3 ? BigInt(protection & 3) : -1n),
});

describeFormat("big-endian shapes", bigEndianShapes);
describeFormat("large granule", largeGranule);
describeFormat("level skipping", levelSkipping);
describeFormat("linear", linear);
