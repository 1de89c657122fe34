/**
 * Address spaces as the TLB of an SMMUv3 tags them (IHI 0070, §3.17): by translation regime, VMID and ASID, where pages
 * that are global have the VMID alone. Each in use has a small number, which is its context in the IOTLB; the
 * invalidations by ASID, VMID, address and range end here.
 *
 * A page of stage 1 may be remembered in parts, because stage 2 has smaller ones: to invalidate any address of it is to
 * invalidate all of it. So each space knows the largest page that it holds in parts. What was copied out of the IOTLB is
 * good while its stamp stays: every invalidation changes it, also one of a space that holds nothing.
 */
import type { Iotlb } from "../iotlb.ts";

/** What a space holds. */
export const Kind = {
  /** EL1 stage 1, or stages 1 and 2: of an ASID, and global. */
  el1: 0,
  el1Global: 1,
  /** Stage 2 alone. */
  stage2: 2,
  /** EL2: of an ASID, and global. */
  el2: 3,
  el2Global: 4,
} as const;
export type Kind = (typeof Kind)[keyof typeof Kind];

/** Spaces without ASID. */
const isGlobal = (kind: Kind): boolean => kind !== Kind.el1 && kind !== Kind.el2;

const KINDS = 8;
const ID = 0x1_0000;
/** Spaces that the IOTLB can hold at a time. */
export const SPACES = 4096;
/** A range of more pages than this is invalidated with all of its space. */
const PAGEWISE_LIMIT = 512;
const PAGE_LG2 = 12;
const PAGE = 2 ** PAGE_LG2;
const WORD = 0x1_0000_0000;

interface Space {
  readonly index: number;
  readonly kind: Kind;
  readonly vmid: number;
  readonly asid: number;
  /** lg2 of the largest page that is held in parts; 0: none. */
  partedLg2: number;
}

/** The pages that an invalidation by address names: `pages` of 2^lg2 bytes from an address (two words) on. */
export interface AddressRange {
  readonly lo: number;
  readonly hi: number;
  readonly lg2: number;
  readonly pages: number;
}

export class Spaces {
  /** Changes when numbers are given anew. */
  generation = 0;
  /** VMID bits that count: less with CR0.VMW. */
  vmidMask = 0xffff;
  readonly #iotlb: Iotlb;
  readonly #known = new Map<number, Space>();

  constructor(iotlb: Iotlb) {
    this.#iotlb = iotlb;
  }

  static #key(kind: Kind, vmid: number, asid: number): number {
    return (vmid * ID + asid) * KINDS + kind;
  }

  /** The number of a space, or -1 when nothing was remembered of it. */
  find(kind: Kind, vmid: number, asid: number): number {
    return this.#known.get(Spaces.#key(kind, vmid, asid))?.index ?? -1;
  }

  /** The number of a space, given when it has none. */
  open(kind: Kind, vmid: number, asid: number): number {
    const key = Spaces.#key(kind, vmid, asid);
    const found = this.#known.get(key);
    if (found) return found.index;
    if (this.#known.size >= SPACES) this.forget();
    const index = this.#known.size;
    this.#known.set(key, { index, kind, vmid, asid, partedLg2: 0 });
    return index;
  }

  /** Notes that a page of 2^lg2 bytes is remembered in parts. */
  part(kind: Kind, vmid: number, asid: number, lg2: number): void {
    const space = this.#known.get(Spaces.#key(kind, vmid, asid))!;
    space.partedLg2 = Math.max(space.partedLg2, lg2);
  }

  /** Nothing is remembered. */
  forget(): void {
    this.#iotlb.invalidateAll();
    this.#known.clear();
    this.generation += 1;
  }

  /** Forgets the spaces of these kinds; of one VMID, unless it is undefined. */
  invalidate(kinds: readonly Kind[], vmid?: number): void {
    this.#iotlb.stamp += 1;
    for (const space of this.#matching(kinds, vmid)) this.#drop(space);
  }

  /** Forgets the space of an ASID; global pages stay. */
  invalidateAsid(kind: Kind, vmid: number, asid: number): void {
    this.#iotlb.stamp += 1;
    for (const space of this.#ofAsid([kind], vmid, asid)) this.#drop(space);
  }

  /** Forgets pages by address: of an ASID, and the global ones; without ASID those of every ASID. */
  invalidatePages(kinds: readonly Kind[], vmid: number, asid: number | undefined, range: AddressRange): void {
    this.#iotlb.stamp += 1;
    const spaces = asid === undefined ? this.#matching(kinds, vmid) : this.#ofAsid(kinds, vmid, asid);
    for (const space of spaces) this.#dropPages(space, range);
  }

  /** The spaces of an ASID, and the global ones. */
  *#ofAsid(kinds: readonly Kind[], vmid: number, asid: number): Generator<Space> {
    if (this.vmidMask === ID - 1) {
      for (const kind of kinds) {
        const space = this.#known.get(Spaces.#key(kind, vmid, isGlobal(kind) ? 0 : asid));
        if (space) yield space;
      }
      return;
    }
    for (const space of this.#matching(kinds, vmid))
      if (isGlobal(space.kind) || space.asid === asid) yield space;
  }

  *#matching(kinds: readonly Kind[], vmid: number | undefined): Generator<Space> {
    const { vmidMask } = this;
    for (const space of this.#known.values())
      if (kinds.includes(space.kind) && (vmid === undefined || ((space.vmid ^ vmid) & vmidMask) === 0))
        yield space;
  }

  #drop(space: Space): void {
    this.#iotlb.invalidateContext(space.index);
    space.partedLg2 = 0;
  }

  #dropPages(space: Space, { lo, hi, lg2, pages }: AddressRange): void {
    const bytes = pages * 2 ** lg2;
    const step = Math.max(lg2, space.partedLg2);
    if (bytes / PAGE > PAGEWISE_LIMIT || step > 31) {
      this.#drop(space);
      return;
    }
    const size = 2 ** step;
    const start = (lo >>> 0) - ((lo >>> 0) % size);
    const end = (lo >>> 0) + bytes;
    for (let at = start; at < end; at += size)
      this.#iotlb.invalidateRange(space.index, at | 0, (hi + Math.floor(at / WORD)) | 0, step);
  }
}
