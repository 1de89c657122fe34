/**
 * The reverse map table (RMP) of secure nested paging: for every 4 KiB of host memory whether a guest owns it, which (by
 * ASID), at which guest address, and as part of a page of which size (AMD64 Architecture Programmer's Manual, volume 2, §15.36).
 * It changes by instructions alone: RMPUPDATE, PSMASH, PVALIDATE, and the firmware's SNP_PAGE_UNSMASH. An entry is laid out
 * as processors of family 19h have it (their Processor Programming Reference).
 *
 * What devices reach is checked by it: a page that a guest owns is not theirs; and a leaf of 2 MiB or more may only lie
 * where the guest owns nothing of the 2 MiB around. Where it does, the sizes of leaf and entries do not match.
 *
 * Left out: where in memory the table lies (it cannot be read or written but by these instructions), the levels of
 * privilege (VMPLs), pages that are in use by a running guest (FAIL_INUSE), and encryption.
 */
import { address, bit, bits, layout } from "../uapi/layout.ts";

/** An entry. The other eight bytes are reserved. */
export const RmpEntry = layout("RMP entry", 16, {
  ASSIGNED: bit(0, "a guest's, or the firmware's"),
  PAGE_SIZE: bit(1, "size", { 0: "4 KiB", 1: "2 MiB" }),
  IMMUTABLE: bit(2, "RMPUPDATE may not change it"),
  GPA: address(12, 50, "guest address"),
  ASID: bits(51, 60, "address space id of the owner; 0: the firmware"),
  VMSA: bit(61, "a virtual processor's state"),
  VALIDATED: bit(62, "the guest has accepted it"),
});
const f = RmpEntry.fields;

/** How an instruction ended: what it leaves in EAX. */
export const RmpStatus = {
  success: 0,
  /** An address, a size or an ASID is not valid. */
  input: 1,
  /** The entry is immutable. */
  permission: 2,
  /** Entries of another size lie there. */
  overlap: 4,
  /** PVALIDATE: the guest's page has another size than the entry. */
  sizeMismatch: 6,
} as const;
export type RmpStatus = (typeof RmpStatus)[keyof typeof RmpStatus];

/** What the table says of an access by a device. */
export const RmpVerdict = {
  ok: 0,
  /** The page is a guest's, or the firmware's. */
  owner: 1,
  /** The page is nobody's, but the leaf is larger than the entries there. */
  size: 2,
  /** The entry cannot be read. */
  unreadable: 3,
} as const;
export type RmpVerdict = (typeof RmpVerdict)[keyof typeof RmpVerdict];

export const PAGE_LG2 = 12;
export const LARGE_LG2 = 21;
const PAGE = 2 ** PAGE_LG2;
const LARGE = 2 ** LARGE_LG2;
/** Pages of 4 KiB in one of 2 MiB. */
const PARTS = LARGE / PAGE;
const WORD = 2 ** 32;
const ASIDS = 2 ** 10;
const GPA_END = 2 ** 51;

/** What RMPUPDATE makes of a page. */
export interface RmpState {
  readonly assigned: boolean;
  /** 12 or 21. */
  readonly lg2: number;
  readonly gpa: number;
  readonly asid: number;
  readonly immutable?: boolean;
}

/** What RMPREAD answers. */
export interface RmpRead {
  /** The entry's first eight bytes. */
  readonly entry: bigint;
  /** lg2 of the page it is of. */
  readonly lg2: number;
}

/** Entries of 2 MiB, two words each. That of a page of 2 MiB is the first; the others are zero. */
type Region = Uint32Array;

const entryOf = ({ assigned, lg2, gpa, asid, immutable = false }: RmpState): bigint =>
  assigned
    ? RmpEntry.make({
        ASSIGNED: true,
        PAGE_SIZE: lg2 === LARGE_LG2,
        IMMUTABLE: immutable,
        GPA: gpa,
        ASID: asid,
      })
    : 0n;

const isLarge = (region: Region): boolean => (region[0]! & f.PAGE_SIZE.mask) >>> 0 !== 0;

export class Rmp {
  /** Told when pages came to be a guest's, or cannot be told any more whose they are: what is remembered of them must go. */
  readonly onAssigned = new Set<() => void>();
  /** By 2 MiB: how many of its pages of 4 KiB are assigned. */
  readonly #assigned: Uint16Array;
  /** By 2 MiB, where some are. */
  readonly #regions = new Map<number, Region>();
  /** Numbers of pages whose entries cannot be read. */
  readonly #unreadable = new Set<number>();

  /** A table that covers so many bytes of host memory from address 0 on; what lies beyond is never a guest's. */
  constructor(bytes: number) {
    this.#assigned = new Uint16Array(Math.ceil(bytes / LARGE));
  }

  /** Pages of 4 KiB that are assigned. */
  get assigned(): number {
    let sum = 0;
    for (const region of this.#regions.keys()) sum += this.#assigned[region]!;
    return sum;
  }

  /** May a device reach the byte at `pa` through a leaf (or another structure) of 2^lg2 bytes? */
  check(pa: number, lg2: number): RmpVerdict {
    if (this.#unreadable.size !== 0 && this.#unreadable.has(Math.floor(pa / PAGE)))
      return RmpVerdict.unreadable;
    const at = Math.floor(pa / LARGE);
    if (!(this.#assigned[at]! > 0)) return RmpVerdict.ok;
    const region = this.#regions.get(at)!;
    const owned = isLarge(region) || (region[2 * partOf(pa)]! & f.ASSIGNED.mask) !== 0;
    if (owned) return RmpVerdict.owner;
    return lg2 >= LARGE_LG2 ? RmpVerdict.size : RmpVerdict.ok;
  }

  /** lg2 of the block around an address of which `check` answers the same; at most that of 2 MiB. */
  grain(pa: number): number {
    if (this.#unreadable.size !== 0) return PAGE_LG2;
    return this.#assigned[Math.floor(pa / LARGE)]! > 0 ? PAGE_LG2 : LARGE_LG2;
  }

  /** How many pages of 4 KiB of the 2 MiB around an address are assigned. */
  assignedAround(pa: number): number {
    return this.#assigned[Math.floor(pa / LARGE)] ?? 0;
  }

  /** RMPREAD. */
  read(pa: number): RmpRead {
    const region = this.#regions.get(Math.floor(pa / LARGE));
    if (!region) return { entry: 0n, lg2: PAGE_LG2 };
    const large = isLarge(region);
    const at = large ? 0 : 2 * partOf(pa);
    const entry = (BigInt(region[at + 1]!) << 32n) | BigInt(region[at]!);
    return { entry, lg2: large ? LARGE_LG2 : PAGE_LG2 };
  }

  /** RMPUPDATE. What was validated is not any more. */
  update(pa: number, state: RmpState): RmpStatus {
    const { assigned, lg2, gpa, asid, immutable = false } = state;
    const bytes = 2 ** lg2;
    const shape = (lg2 === PAGE_LG2 || lg2 === LARGE_LG2) && pa % bytes === 0 && this.#covers(pa);
    if (!shape || gpa % bytes !== 0 || gpa < 0 || gpa + bytes > GPA_END) return RmpStatus.input;
    if (asid < 0 || asid >= ASIDS || (!assigned && (asid !== 0 || immutable))) return RmpStatus.input;
    const at = Math.floor(pa / LARGE);
    const region = this.#regions.get(at);
    const large = region !== undefined && isLarge(region);
    const other = lg2 === LARGE_LG2 ? region !== undefined && !large : large;
    if (other) return RmpStatus.overlap;
    const part = partOf(pa);
    if (region && (region[2 * part]! & f.IMMUTABLE.mask) !== 0) return RmpStatus.permission;
    this.#write(at, part, entryOf(state), lg2);
    if (assigned) this.#tell();
    return RmpStatus.success;
  }

  /** PSMASH: the page of 2 MiB at `pa` becomes 512 of 4 KiB, which are in every other respect what it was. */
  smash(pa: number): RmpStatus {
    const region = this.#regions.get(Math.floor(pa / LARGE));
    if (pa % LARGE !== 0 || !region || !isLarge(region)) return RmpStatus.input;
    const entry = this.read(pa).entry & ~f.PAGE_SIZE.put(1n);
    for (let part = 0; part < PARTS; part++) put(region, part, entry + BigInt(part * PAGE));
    return RmpStatus.success;
  }

  /** SNP_PAGE_UNSMASH (SEV-SNP firmware ABI): 512 pages of 4 KiB that could be one page of 2 MiB become it. */
  unsmash(pa: number): RmpStatus {
    const region = this.#regions.get(Math.floor(pa / LARGE));
    if (pa % LARGE !== 0 || !region || isLarge(region)) return RmpStatus.input;
    const { entry } = this.read(pa);
    if (f.ASSIGNED.of(entry) === 0n || Number(f.GPA.of(entry)) % LARGE !== 0) return RmpStatus.input;
    for (let part = 1; part < PARTS; part++)
      if (this.read(pa + part * PAGE).entry !== entry + BigInt(part * PAGE)) return RmpStatus.input;
    region.fill(0);
    put(region, 0, entry | f.PAGE_SIZE.put(1n));
    return RmpStatus.success;
  }

  /** PVALIDATE, which the guest that owns the page runs. */
  validate(pa: number, lg2: number, validated: boolean): RmpStatus {
    const read = this.read(pa);
    if (pa % 2 ** lg2 !== 0 || f.ASSIGNED.of(read.entry) === 0n) return RmpStatus.input;
    if (read.lg2 !== lg2) return RmpStatus.sizeMismatch;
    const bit = f.VALIDATED.put(1n);
    const entry = validated ? read.entry | bit : read.entry & ~bit;
    put(this.#regions.get(Math.floor(pa / LARGE))!, partOf(pa), entry);
    return RmpStatus.success;
  }

  /** The entry of the page at `pa` cannot be read from now on: its memory is bad. */
  poison(pa: number): void {
    this.#unreadable.add(Math.floor(pa / PAGE));
    this.#tell();
  }

  /** Every page that is assigned, in no particular order. */
  *entries(): Generator<RmpRead & { readonly pa: number }> {
    for (const [at, region] of this.#regions)
      for (let part = 0; part < (isLarge(region) ? 1 : PARTS); part++) {
        const pa = at * LARGE + part * PAGE;
        const read = this.read(pa);
        if (read.entry !== 0n) yield { pa, ...read };
      }
  }

  /** Puts an entry back as it was read of another table. RangeError when there is no place for it. */
  restore(pa: number, entry: bigint): void {
    const lg2 = f.PAGE_SIZE.of(entry) === 1n ? LARGE_LG2 : PAGE_LG2;
    const state = { assigned: true, lg2, gpa: Number(f.GPA.of(entry)), asid: Number(f.ASID.of(entry)) };
    if (this.update(pa, state) !== RmpStatus.success)
      throw new RangeError(`no entry of ${sizeOf(lg2)} can be at ${hex(pa)}`);
    put(this.#regions.get(Math.floor(pa / LARGE))!, partOf(pa), entry);
  }

  #covers(pa: number): boolean {
    return pa >= 0 && Math.floor(pa / LARGE) < this.#assigned.length;
  }

  #write(at: number, part: number, entry: bigint, lg2: number): void {
    const assigned = entry !== 0n;
    let region = this.#regions.get(at);
    if (!region) {
      if (!assigned) return;
      region = new Uint32Array(2 * PARTS);
      this.#regions.set(at, region);
    }
    const before = (region[2 * part]! & f.ASSIGNED.mask) !== 0;
    put(region, part, entry);
    if (assigned !== before) this.#assigned[at]! += (assigned ? 1 : -1) * 2 ** (lg2 - PAGE_LG2);
    if (this.#assigned[at] === 0) this.#regions.delete(at);
  }

  #tell(): void {
    for (const told of this.onAssigned) told();
  }
}

/** Which 4 KiB of its 2 MiB. */
const partOf = (pa: number): number => Math.floor(pa / PAGE) % PARTS;

const put = (region: Region, part: number, entry: bigint): void => {
  region[2 * part] = Number(entry & 0xffff_ffffn);
  region[2 * part + 1] = Number(entry >> 32n) % WORD;
};

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;
const sizeOf = (lg2: number): string => (lg2 >= 30 ? `${2 ** (lg2 - 30)} GiB` : smallSize(lg2));
const smallSize = (lg2: number): string => (lg2 >= 20 ? `${2 ** (lg2 - 20)} MiB` : `${2 ** (lg2 - 10)} KiB`);

/** Whose a page is, in words. */
export const describeRmpEntry = ({ entry, lg2 }: RmpRead): string => {
  if (f.ASSIGNED.of(entry) === 0n) return `shared with the host, in a page of ${sizeOf(lg2)}`;
  const asid = f.ASID.of(entry);
  const whose = asid === 0n ? "the firmware's" : `private to the guest with ASID ${asid}`;
  return `${whose}, at its ${hex(f.GPA.of(entry))}, in a page of ${sizeOf(lg2)}`;
};

/** What the table says of an access, in words: beside the entry what was accessed. */
export const describeRmp = (rmp: Rmp, pa: number, lg2: number): string => {
  const verdict = rmp.check(pa, lg2);
  const page = hex(pa - (pa % PAGE));
  switch (verdict) {
    case RmpVerdict.unreadable:
      return `the RMP entry of host page ${page} cannot be read`;
    case RmpVerdict.owner:
      return `host page ${page} is ${describeRmpEntry(rmp.read(pa))}`;
    case RmpVerdict.size: {
      const start = hex(pa - (pa % LARGE));
      const owned = `of the 2 MiB at ${start} the RMP has ${rmp.assignedAround(pa)} pages of 4 KiB that are a guest's`;
      return `size mismatch: host page ${page} is shared, but the leaf maps ${sizeOf(lg2)} at once, and ${owned}`;
    }
    default:
      return `host page ${page} may be reached`;
  }
};
