/**
 * What an SMMUv3 remembers of translations (IHI 0070, §3.17 and §4.4): pages in the IOTLB by address space, intermediate
 * addresses of nested walks, and what each TLB invalidation command reaches of them.
 */
import { GuestCache } from "../../pagetable/guest-cache.ts";
import { type Iotlb, unitIotlb } from "../iotlb.ts";
import type { ContextSlot } from "./caches.ts";
import type { Stream } from "./config.ts";
import { Opcode } from "./queue-spec.ts";
import { type AddressRange, Kind, SPACES, Spaces } from "./spaces.ts";
import { StreamWorld } from "./spec.ts";
import type { Page } from "./translate.ts";

const WORD = 0x1_0000_0000;
const VMIDS = 0x1_0000;
const EL1 = [Kind.el1, Kind.el1Global] as const;
const EL1_AND_STAGE2 = [...EL1, Kind.stage2] as const;
const EL2 = [Kind.el2, Kind.el2Global] as const;

export class Tlb {
  readonly iotlb: Iotlb;
  readonly spaces: Spaces;
  readonly guests = new GuestCache(VMIDS);

  constructor(entries: number) {
    this.iotlb = unitIotlb({ contexts: SPACES, capacity: entries });
    this.spaces = new Spaces(this.iotlb);
  }

  /** Nothing is remembered. */
  forget(): void {
    this.spaces.forget();
    this.guests.invalidateAll();
  }

  /** What a command reaches. */
  invalidate(opcode: number, vmid: number, asid: number, range: AddressRange): void {
    const { spaces } = this;
    switch (opcode) {
      case Opcode.TLBI_NH_ALL:
        spaces.invalidate(EL1, vmid);
        return;
      case Opcode.TLBI_NH_ASID:
        spaces.invalidateAsid(Kind.el1, vmid, asid);
        return;
      case Opcode.TLBI_NH_VA:
        spaces.invalidatePages(EL1, vmid, asid, canonical(range));
        return;
      case Opcode.TLBI_NH_VAA:
        spaces.invalidatePages(EL1, vmid, undefined, canonical(range));
        return;
      case Opcode.TLBI_EL2_ALL:
        spaces.invalidate(EL2);
        return;
      case Opcode.TLBI_EL2_ASID:
        spaces.invalidateAsid(Kind.el2, 0, asid);
        return;
      case Opcode.TLBI_EL2_VA:
        spaces.invalidatePages(EL2, 0, asid, canonical(range));
        return;
      case Opcode.TLBI_EL2_VAA:
        spaces.invalidatePages(EL2, 0, undefined, canonical(range));
        return;
      case Opcode.TLBI_S2_IPA:
        // A stage 2 page may be remembered in parts: all intermediate addresses of the VMID go.
        this.#forgetGuests(vmid);
        spaces.invalidatePages([Kind.stage2], vmid, undefined, range);
        return;
      case Opcode.TLBI_S12_VMALL:
        this.#forgetGuests(vmid);
        spaces.invalidate(EL1_AND_STAGE2, vmid);
        return;
      default:
        this.guests.invalidateAll();
        spaces.invalidate(EL1_AND_STAGE2);
    }
  }

  #forgetGuests(vmid: number): void {
    if (this.spaces.vmidMask === VMIDS - 1) this.guests.invalidateStage(vmid);
    else this.guests.invalidateAll();
  }

  /** The IOTLB's entry for an address of a context: of its ASID, else a global one; or -1. */
  find(found: ContextSlot, stream: Stream, lo: number, high: number): number {
    const { spaces, iotlb } = this;
    const el2 = stream.world === StreamWorld.el2;
    if (found.generation !== spaces.generation || found.space < 0) {
      found.space = spaces.find(el2 ? Kind.el2 : Kind.el1, stream.vmid, found.context.asid);
      found.generation = spaces.generation;
    }
    const own = found.space < 0 ? -1 : iotlb.lookup(found.space, lo, high);
    if (own >= 0) return own;
    const shared = spaces.find(el2 ? Kind.el2Global : Kind.el1Global, stream.vmid, 0);
    return shared < 0 ? -1 : iotlb.lookup(shared, lo, high);
  }

  /** The IOTLB's entry for an intermediate address, or -1. */
  findStage2(vmid: number, lo: number, hi: number): number {
    const space = this.spaces.find(Kind.stage2, vmid, 0);
    return space < 0 ? -1 : this.iotlb.lookup(space, lo, hi);
  }

  /** Remembers the 2^lg2 bytes around an address of a page that was found; `denied`: `Right` bits. */
  enter(space: TlbSpace, lo: number, high: number, page: Page, lg2: number, denied: number): void {
    const { kind, vmid, asid } = space;
    const index = this.spaces.open(kind, vmid, asid);
    if (page.leafLg2 > lg2) this.spaces.part(kind, vmid, asid, page.leafLg2);
    const paHi = Math.floor(page.pa / WORD);
    this.iotlb.enter(index, lo, high, lg2, page.pa - paHi * WORD, paHi, denied);
  }
}

/** The address space a page belongs to. One is kept and used again. */
export class TlbSpace {
  kind: Kind = Kind.el1;
  vmid = 0;
  asid = 0;

  /** A page of stage 1: of its ASID, or global. */
  ofContext(stream: Stream, asid: number, global: boolean): this {
    const el2 = stream.world === StreamWorld.el2;
    if (global) this.kind = el2 ? Kind.el2Global : Kind.el1Global;
    else this.kind = el2 ? Kind.el2 : Kind.el1;
    this.vmid = stream.vmid;
    this.asid = global ? 0 : asid;
    return this;
  }

  ofStage2(vmid: number): this {
    this.kind = Kind.stage2;
    this.vmid = vmid;
    this.asid = 0;
    return this;
  }
}

/** An address as it is remembered: the top byte as bit 55. */
const canonical = (range: AddressRange): AddressRange => ({ ...range, hi: (range.hi << 8) >> 8 });
