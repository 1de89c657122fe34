/**
 * The page table of the mock IOMMU, a format of our own: two levels of little-endian entries of 64 bits over 31 address
 * bits, pages of 2 KiB; or, where a domain is allocated for large pages, of 4 KiB and 1 MiB. Nothing documents what the kernel's mock
 * keeps; only what a test can see of it is the same.
 */
import {
  always,
  type Denial,
  type EntryCheck,
  type PageTableFormat,
  Permission,
  Protection,
  WalkFault,
} from "../../pagetable/format.ts";
import { address, bit, layout } from "../../uapi/layout.ts";

const PAGE_LG2 = 11;
const HUGE_BASE_LG2 = 12;
const HUGE_LG2 = 20;
/** The aperture ends at 2^31. */
const ADDRESS_BITS = 31;

const leafFields = (lg2: number) =>
  layout(lg2 === HUGE_LG2 ? "mock large PTE" : "mock PTE", 8, {
    R: bit(0, "read"),
    W: bit(1, "write"),
    LARGE: bit(2, "the entry of the upper level is a page"),
    D: bit(3, "dirty"),
    ADDR: address(lg2, 51, "page"),
  });
const table = layout("mock PDE", 8, {
  R: bit(0, "read"),
  W: bit(1, "write"),
  LARGE: bit(2, "the entry of the upper level is a page"),
  ADDR: address(12, 51, "table"),
});

const R = 1n << 0n;
const W = 1n << 1n;
const LARGE = 1n << 2n;
const D = 1n << 3n;
const upTo51From = (bitNumber: number): bigint => (1n << 52n) - (1n << BigInt(bitNumber));

const denials: readonly Denial[] = [
  { mask: R, value: 0n, denies: Permission.read, why: "R = 0" },
  { mask: W, value: 0n, denies: Permission.write, why: "W = 0" },
];
const checks = (reserved: bigint): readonly EntryCheck[] => [
  { mask: reserved, value: 0n, fault: WalkFault.reserved, why: "reserved bits are set" },
];

const leaf = (lg2: number, bits: bigint) => {
  const fields = leafFields(lg2);
  return {
    layout: fields,
    test: bits === 0n ? always : { mask: bits, value: bits },
    address: upTo51From(lg2),
    checks: checks(fields.reserved),
    denials,
    bits,
    lg2,
    dirty: D,
  };
};
/** `huge`: pages of 4 KiB and 1 MiB instead of 2 KiB. */
export const mockFormat = (huge: boolean): PageTableFormat => ({
  name: huge ? "mock IOMMU, 4 KiB and 1 MiB" : "mock IOMMU, 2 KiB",
  levels: [
    {
      name: "PTE",
      number: 1,
      shift: huge ? HUGE_BASE_LG2 : PAGE_LG2,
      bits: HUGE_LG2 - (huge ? HUGE_BASE_LG2 : PAGE_LG2),
      leaves: [leaf(huge ? HUGE_BASE_LG2 : PAGE_LG2, 0n)],
      tables: [],
    },
    {
      name: "PDE",
      number: 2,
      shift: HUGE_LG2,
      bits: ADDRESS_BITS - HUGE_LG2,
      leaves: huge ? [leaf(HUGE_LG2, LARGE)] : [],
      tables: [
        {
          layout: table,
          test: huge ? { mask: LARGE, value: 0n } : always,
          address: upTo51From(12),
          checks: checks(table.reserved),
          denials,
          bits: R | W,
          to: 0,
        },
      ],
    },
  ],
  bigEndian: false,
  absent: { mask: R | W, value: 0n },
  empty: 0n,
  deniedAt: "entry",
  outputBits: 52,
  leafBits(protection) {
    const allowed = (protection & Protection.read ? R : 0n) | (protection & Protection.write ? W : 0n);
    return allowed === 0n ? -1n : allowed;
  },
});
