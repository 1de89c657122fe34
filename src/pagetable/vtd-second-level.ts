/**
 * Second-stage page tables of Intel VT-d (revision 4.1, §3.7 and §9.8; "second-level" before revision 3): 3, 4 or 5
 * levels of 512 little-endian entries, leaves of 4 KiB, 2 MiB and 1 GiB. There is no present bit: an entry with R = 0 and
 * W = 0 is not present. Read and write permission is the AND over all levels, and is checked at each entry.
 *
 * Bit 2 (execute) and the memory type are kept and ignored, as by units without ECAP.MTS. Bit 62 is the transient-mapping
 * hint of a leaf for device-TLBs, kept and ignored; reserved in a table entry, and in a leaf of a unit without them.
 */
import { address, bit, bits, type Layout, layout } from "../uapi/layout.ts";
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

export interface SecondLevelOptions {
  /** Log2 of the leaf sizes the unit has (CAP.SSLPS): 12 always, 21, 30. Default: all three. */
  readonly pageLg2s?: readonly number[];
  /** HAW: address bits from here up to 51 are reserved. Default 52. */
  readonly hostAddressWidth?: number;
  /** ECAP.SC: bit 11 of a leaf is SNP; else it is reserved. */
  readonly snoopControl?: boolean;
  /** ECAP.DT: bit 62 of a leaf is TM; else it is reserved. */
  readonly deviceTlb?: boolean;
  /** The mapper sets SNP in every leaf, so that no access of a device goes past the caches. Needs `snoopControl`. */
  readonly forceSnoop?: boolean;
  /** SSADE is on: the unit sets A in what it uses and D in what it writes through; else both bits are ignored. */
  readonly accessedDirty?: boolean;
}

const names = ["SS-PTE", "SS-PDE", "SS-PDPE", "SS-PML4E", "SS-PML5E"] as const;

/** §9.8, entries that point to a table. `PS` is a bit of its own where a leaf is possible, else reserved. */
const tableLayout = (name: string, addressWidth: number, leafPossible: boolean) =>
  layout(name, 8, {
    R: bit(0, "read"),
    W: bit(1, "write"),
    X: bit(2, "execute: ignored"),
    IGN3: bits(3, 6, "ignored"),
    ...(leafPossible && { PS: bit(7, "page size", { 0: "table", 1: "page" }) }),
    A: bit(8, "accessed"),
    IGN9: bits(9, 10, "ignored"),
    ADDR: address(12, addressWidth - 1, "next table"),
    IGN52: bits(52, 61, "ignored"),
    IGN63: bit(63, "ignored"),
  });

/** §9.8, entries that map a page of 2^`lg2` bytes. */
const leafLayout = (
  name: string,
  addressWidth: number,
  lg2: number,
  { snoopControl, deviceTlb }: SecondLevelOptions,
) =>
  layout(name, 8, {
    R: bit(0, "read"),
    W: bit(1, "write"),
    X: bit(2, "execute: ignored"),
    EMT: bits(3, 5, "memory type: ignored"),
    IPAT: bit(6, "ignore PAT: ignored"),
    PS: bit(7, lg2 === 12 ? "ignored" : "page size: a page"),
    A: bit(8, "accessed"),
    D: bit(9, "dirty"),
    IGN10: bit(10, "ignored"),
    ...(snoopControl && { SNP: bit(11, "snoop") }),
    ADDR: address(lg2, addressWidth - 1, "page"),
    IGN52: bits(52, 61, "ignored"),
    ...(deviceTlb && { TM: bit(62, "transient mapping: a hint") }),
    IGN63: bit(63, "ignored"),
  });

const R = 1n << 0n;
const W = 1n << 1n;
const PS = 1n << 7n;
const A = 1n << 8n;
const D = 1n << 9n;
const SNP = 1n << 11n;

const denials: readonly Denial[] = [
  { mask: R, value: 0n, denies: Permission.read, why: "R = 0" },
  { mask: W, value: 0n, denies: Permission.write, why: "W = 0" },
];

const reserved = ({ reserved: mask }: Layout): readonly EntryCheck[] => [
  {
    mask,
    value: 0n,
    fault: WalkFault.reserved,
    why: `reserved bits are set (0x${mask.toString(16)} must be 0)`,
  },
];

/**
 * The format for tables of so many levels: 3 translates 39 address bits, 4 48, 5 57. RangeError for options that
 * contradict each other.
 */
export const vtdSecondLevel = (levels: 3 | 4 | 5, options: SecondLevelOptions = {}): PageTableFormat => {
  const { pageLg2s = [12, 21, 30], hostAddressWidth = 52, snoopControl = false } = options;
  if (options.forceSnoop && !snoopControl) throw new RangeError("forceSnoop needs a unit with snoop control");
  if (!(hostAddressWidth >= 32 && hostAddressWidth <= 52))
    throw new RangeError(`a host address width of ${hostAddressWidth} is not within 32 to 52`);
  const level = (index: number): FormatLevel => {
    const name = names[index]!;
    const shift = 12 + 9 * index;
    const leafPossible = pageLg2s.includes(shift);
    const table = tableLayout(name, hostAddressWidth, leafPossible);
    const leaf = leafPossible ? leafLayout(name, hostAddressWidth, shift, options) : undefined;
    const common = { denials, ...(options.accessedDirty && { accessed: A }) };
    return {
      name,
      number: index + 1,
      shift,
      bits: 9,
      tables:
        index === 0
          ? []
          : [
              {
                ...common,
                layout: table,
                test: leafPossible ? { mask: PS, value: 0n } : always,
                address: table.fields.ADDR.put(table.fields.ADDR.of(-1n & 0xffff_ffff_ffff_ffffn)),
                checks: reserved(table),
                bits: R | W,
                to: index - 1,
              },
            ],
      leaves: !leaf
        ? []
        : [
            {
              ...common,
              layout: leaf,
              test: index === 0 ? always : { mask: PS, value: PS },
              address: leaf.fields.ADDR.put(leaf.fields.ADDR.of(-1n & 0xffff_ffff_ffff_ffffn)),
              checks: reserved(leaf),
              bits: index === 0 ? 0n : PS,
              lg2: shift,
              ...(options.accessedDirty && { dirty: D }),
            },
          ],
    };
  };
  return {
    name: `VT-d second stage, ${levels} levels`,
    levels: Array.from({ length: levels }, (_, index) => level(index)),
    bigEndian: false,
    absent: { mask: R | W, value: 0n },
    empty: 0n,
    deniedAt: "entry",
    outputBits: hostAddressWidth,
    leafBits(protection) {
      const allowed = (protection & Protection.read ? R : 0n) | (protection & Protection.write ? W : 0n);
      return allowed === 0n ? -1n : allowed | (options.forceSnoop ? SNP : 0n);
    },
  };
};
