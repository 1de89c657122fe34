/**
 * 64-bit page tables of x86 processors (Intel SDM volume 3, §4.5; "4-level" and "5-level paging"): 4 or 5 levels of 512
 * little-endian entries, leaves of 4 KiB, 2 MiB and 1 GiB, canonical addresses. What the entries of all levels allow
 * together is what is allowed, and it is judged at the leaf, after the walk (or at the first entry that denies). Accessed
 * bits are set as the walk goes.
 *
 * `Permission.user` is what an access without supervisor privilege needs. The first stage of VT-d
 * (`vtd-first-level.ts`) and guest tables of AMD-Vi are this format with a few bits of their own. Left out: protection
 * keys, which devices do not have; global pages and memory types are kept and ignored.
 */
import { address, bit, bits, type Declarations, type Layout, layout } from "../uapi/layout.ts";
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

export interface X86Options {
  /** Log2 of the leaf sizes: 12 always, 21, 30. Default: all three. */
  readonly pageLg2s?: readonly number[];
  /** MAXPHYADDR: address bits from here up to 51 are reserved. Default 52. */
  readonly physicalBits?: number;
  /** EFER.NXE: bit 63 forbids execution. `false`: it is reserved. `"ignored"`: nobody looks at it. Default true. */
  readonly executeDisable?: boolean | "ignored";
  /** CR0.WP or user access: R/W = 0 forbids writes. Default true. */
  readonly writeProtect?: boolean;
  /** Accessed and dirty bits are set. Default true. */
  readonly accessedDirty?: boolean;
  /** Bit 10 is set with every accessed bit (VT-d's extended accessed flag). Default false. */
  readonly extendedAccessed?: boolean;
  /** See `PageTableFormat`. Default at the leaf. */
  readonly deniedAt?: PageTableFormat["deniedAt"];
  /** Name of the format, and before the names of its entries: "FS-" makes "FS-PDE". */
  readonly name?: string;
  readonly prefix?: string;
}

const names = ["PTE", "PDE", "PDPE", "PML4E", "PML5E"] as const;

const P = 1n << 0n;
const RW = 1n << 1n;
const US = 1n << 2n;
const A = 1n << 5n;
const D = 1n << 6n;
const PS = 1n << 7n;
const EA = 1n << 10n;
const XD = 1n << 63n;
const ALL = (1n << 64n) - 1n;

/** Bits 11:0 and 63:52 that tables and leaves have in common. */
const common = ({ executeDisable = true, extendedAccessed }: X86Options): Declarations => ({
  P: bit(0, "present"),
  RW: bit(1, "writes allowed"),
  US: bit(2, "user accesses allowed"),
  PWT: bit(3, "write-through: ignored"),
  PCD: bit(4, "cache disable: ignored"),
  A: bit(5, "accessed"),
  IGN9: bit(9, "ignored"),
  ...(extendedAccessed ? { EA: bit(10, "extended accessed") } : { IGN10: bit(10, "ignored") }),
  IGN11: bit(11, "ignored"),
  IGN52: bits(52, 62, "ignored"),
  ...(executeDisable === true && { XD: bit(63, "execute disable") }),
  ...(executeDisable === "ignored" && { XD: bit(63, "execute disable: ignored") }),
});

const tableLayout = (name: string, physicalBits: number, leafPossible: boolean, options: X86Options) =>
  layout(name, 8, {
    ...common(options),
    IGN6: bit(6, "ignored"),
    ...(leafPossible && { PS: bit(7, "page size", { 0: "table", 1: "page" }) }),
    IGN8: bit(8, "ignored"),
    ADDR: address(12, physicalBits - 1, "next table"),
  });

const leafLayout = (name: string, physicalBits: number, lg2: number, options: X86Options) =>
  layout(name, 8, {
    ...common(options),
    D: bit(6, "dirty"),
    ...(lg2 === 12
      ? { PAT: bit(7, "memory type: ignored") }
      : { PS: bit(7, "page size: a page"), PAT: bit(12, "memory type: ignored") }),
    G: bit(8, "global: ignored"),
    ADDR: address(lg2, physicalBits - 1, "page"),
  });

const denialsOf = ({ executeDisable = true, writeProtect = true }: X86Options): readonly Denial[] => [
  ...(writeProtect ? [{ mask: RW, value: 0n, denies: Permission.write, why: "R/W = 0" }] : []),
  { mask: US, value: 0n, denies: Permission.user, why: "U/S = 0" },
  ...(executeDisable === true ? [{ mask: XD, value: XD, denies: Permission.execute, why: "XD = 1" }] : []),
];

const reserved = ({ reserved: mask }: Layout): readonly EntryCheck[] =>
  mask === 0n
    ? []
    : [
        {
          mask,
          value: 0n,
          fault: WalkFault.reserved,
          why: `reserved bits are set (0x${mask.toString(16)} must be 0)`,
        },
      ];

const levelOf = (index: number, options: X86Options): FormatLevel => {
  const { pageLg2s = [12, 21, 30], physicalBits = 52, accessedDirty = true, prefix = "" } = options;
  const name = `${prefix}${names[index]!}`;
  const shift = 12 + 9 * index;
  const leafPossible = index < 3 && pageLg2s.includes(shift);
  const accessed = options.extendedAccessed ? A | EA : A;
  const shared = { denials: denialsOf(options), ...(accessedDirty && { accessed }) };
  const table = tableLayout(name, physicalBits, leafPossible, options);
  const leaf = leafPossible ? leafLayout(name, physicalBits, shift, options) : undefined;
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
              ...shared,
              layout: table,
              test: leafPossible ? { mask: PS, value: 0n } : always,
              address: table.fields.ADDR.put(table.fields.ADDR.of(ALL)),
              checks: reserved(table),
              bits: P | RW | US,
              to: index - 1,
            },
          ],
    leaves: leaf
      ? [
          {
            ...shared,
            layout: leaf,
            test: index === 0 ? always : { mask: PS, value: PS },
            address: leaf.fields.ADDR.put(leaf.fields.ADDR.of(ALL)),
            checks: reserved(leaf),
            bits: P | US | (index === 0 ? 0n : PS),
            lg2: shift,
            ...(accessedDirty && { dirty: D }),
          },
        ]
      : [],
  };
};

/** Tables of 4 levels translate 48 address bits, of 5 levels 57. */
export const x86Paging = (levels: 4 | 5, options: X86Options = {}): PageTableFormat => {
  const { physicalBits = 52, executeDisable = true } = options;
  if (!(physicalBits >= 32 && physicalBits <= 52))
    throw new RangeError(`a physical address width of ${physicalBits} is not within 32 to 52`);
  return {
    name: `${options.name ?? "x86-64"}, ${levels} levels`,
    levels: Array.from({ length: levels }, (_, index) => levelOf(index, options)),
    canonical: true,
    bigEndian: false,
    absent: { mask: P, value: 0n },
    empty: 0n,
    deniedAt: options.deniedAt ?? "leaf",
    accessedAtOnce: true,
    outputBits: physicalBits,
    leafBits(protection) {
      if (!(protection & Protection.read)) return -1n;
      const write = protection & Protection.write ? RW : 0n;
      return write | (executeDisable === true && !(protection & Protection.execute) ? XD : 0n);
    },
  };
};
