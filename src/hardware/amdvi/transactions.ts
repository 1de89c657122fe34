/**
 * What becomes of a request in an AMD-Vi unit (48882, revision 3.07, §2.1 and §2.2), with what is remembered of earlier
 * ones: in front the page a device used last, then the IOTLB, then the tables in memory. A request that is refused is told
 * to whoever writes the event log. The invalidations of §2.4 end here.
 *
 * A remembered page is used for what it grants. What it does not grant is looked up in the tables again.
 */
import type { Random } from "../../base/clock.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { Permission, WalkFault } from "../../pagetable/format.ts";
import { GuestCache } from "../../pagetable/guest-cache.ts";
import { NestedResult } from "../../pagetable/nested.ts";
import type { CachePolicy } from "../cache-policy.ts";
import { FIRST_STAGE_SPACES, type FirstStageSpace, FirstStageSpaces } from "../first-stage-spaces.ts";
import { type Iotlb, unitIotlb } from "../iotlb.ts";
import { PAGE_LG2, RmpVerdict } from "../rmp.ts";
import type { RmpMemory } from "../rmp-memory.ts";
import { Access, NO_PASID, type Transaction, TranslateStatus } from "../unit.ts";
import { DeviceCache, type DeviceSlot } from "./caches.ts";
import type { Capabilities } from "./capabilities.ts";
import { type Device, findGuestTable, readDevice, type TableOptions } from "./device-table.ts";
import { Fault } from "./faults.ts";
import { nestedWalker } from "./formats.ts";
import { EventCode, InvalidRequest } from "./queue-spec.ts";
import {
  deniedOf,
  type Exclusion,
  grantedBy,
  isInterrupt,
  PART_LG2,
  PASSES,
  passageOf,
  rememberedDenials,
  setsDirty,
  TRANSLATED,
  uniformLg2,
  wantOf,
} from "./translate.ts";

export interface TransactionsOptions {
  readonly memory: HostMemory;
  /** The same, where secure nested paging is on: what devices reach is checked then. */
  readonly owned: RmpMemory | undefined;
  readonly unit: Capabilities;
  readonly policy: CachePolicy;
  readonly random: Random | undefined;
  readonly iotlbEntries: number;
  /** Records the fault; `slot` and `domain` are the device's as far as they were found. */
  readonly refuse: (transaction: Transaction, fault: Fault, slot: DeviceSlot, domain: number) => void;
}

const WORD = 0x1_0000_0000;
const DOMAINS = 0x1_0000;
const MASK = 2 ** PAGE_LG2 - 1;
/** Root tables that are remembered of a device; when there are more, all are forgotten. */
const ROOTS = 4096;

/** `want` by the `Access` bits of a request. */
const wants = Uint8Array.from({ length: 32 }, (_, access) => wantOf(access));

export class Transactions {
  /** CONTROL.IommuEn, and what the other registers say. */
  enabled = false;
  table: TableOptions = { base: 0, bytes: 0, guestTranslation: false, gcr3Guest: false };
  exclusion: Exclusion = { start: 0, end: 0, all: false };
  readonly devices = new DeviceCache();
  readonly iotlb: Iotlb;
  readonly spaces = new FirstStageSpaces(DOMAINS);
  readonly guests = new GuestCache(DOMAINS);
  readonly #options: TransactionsOptions;
  readonly #memory: HostMemory;
  /** What devices reach is checked by its table; undefined: nothing is checked. */
  readonly owned: RmpMemory | undefined;
  readonly #unit: Capabilities;
  readonly #fault = new Fault();
  readonly #page = new NestedResult();
  /** Domains of which pages of host tables are held in parts. */
  readonly #parted = new Set<number>();

  constructor(options: TransactionsOptions) {
    this.#options = options;
    this.#memory = options.memory;
    this.owned = options.owned;
    // What is remembered was checked when it was looked up.
    this.owned?.rmp.onAssigned.add(() => this.#forgetPages());
    this.#unit = options.unit;
    this.iotlb = unitIotlb({ contexts: DOMAINS + FIRST_STAGE_SPACES, capacity: options.iotlbEntries });
  }

  // Invalidations

  /** Nothing is remembered. */
  forget(): void {
    this.devices.invalidateAll();
    this.#forgetPages();
    this.guests.invalidateAll();
  }

  #forgetPages(): void {
    this.iotlb.invalidateAll();
    this.spaces.clear();
    this.#parted.clear();
  }

  /** §2.4.3 GN = 0: host tables of a domain changed; what guests have above them goes with it. */
  invalidatePages(domain: number, lo: number, hi: number, lg2: number): void {
    const all = lg2 > 31 || this.#parted.has(domain);
    if (all) this.iotlb.invalidateContext(domain);
    else this.iotlb.invalidateRange(domain, lo, hi, lg2);
    for (const space of this.spaces.ofDomain(domain)) this.iotlb.invalidateContext(space.index);
    // A page of host tables may be remembered in parts: all guest addresses of the domain go.
    this.guests.invalidateStage(domain);
  }

  /** §2.4.3 GN = 1: guest tables of a PASID changed. */
  invalidateGuestPages(domain: number, pasid: number, lo: number, hi: number, lg2: number): void {
    this.iotlb.stamp += 1;
    this.devices.forgetRoots(domain, pasid);
    for (const space of this.spaces.ofPasid(domain, pasid)) {
      if (lg2 > 31 || space.parted) this.iotlb.invalidateContext(space.index);
      else this.iotlb.invalidateRange(space.index, lo, hi, lg2);
    }
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    if (!this.enabled) return this.#untouched(transaction);
    const slot = this.devices.slot(transaction.rid);
    const { lo, access } = transaction;
    if (
      slot !== undefined &&
      slot.stamp === this.iotlb.stamp &&
      (lo & slot.mask) === slot.pageLo &&
      (transaction.hi | 0) === slot.pageHi &&
      transaction.pasid === slot.pasid &&
      (access & Access.privileged) === slot.privilege &&
      (wants[access & 31]! & slot.denied) === 0 &&
      !transaction.translated
    ) {
      const offset = lo & ~slot.mask;
      transaction.pa = slot.pa + offset;
      transaction.span = slot.size - offset;
      return TranslateStatus.ok;
    }
    return this.#translate(transaction);
  }

  #translate(transaction: Transaction): TranslateStatus {
    if (this.#options.policy === "paranoid") this.#forgetAtRandom();
    this.#begin();
    const slot = this.#deviceOf(transaction.rid);
    const { device } = slot;
    if (!device) return this.#refuse(transaction, slot, 0);
    if (!device.valid)
      return this.owned ? this.#identity(transaction, slot, device.domain) : pass(transaction);
    const passage = passageOf(device, this.exclusion, transaction);
    if (passage === PASSES) return this.#identity(transaction, slot, device.domain);
    if (passage !== TRANSLATED) {
      this.#fault.invalid(passage, transaction.pasid !== NO_PASID);
      return this.#refuse(transaction, slot, device.domain);
    }
    if (!device.translates) {
      this.#fault.walked(WalkFault.notPresent, 0, transaction.pasid !== NO_PASID);
      return this.#refuse(transaction, slot, device.domain);
    }
    const want = wants[transaction.access & 31]!;
    const pasid = pasidOf(device, transaction.pasid);
    if (pasid === NO_PASID) return this.#host(transaction, slot, device, want);
    return this.#guest(transaction, slot, device, pasid, want);
  }

  /** CONTROL.IommuEn = 0: everything passes, but to what a guest owns. */
  #untouched(transaction: Transaction): TranslateStatus {
    if (!this.owned) return pass(transaction);
    this.#begin();
    return this.#identity(transaction, this.devices.open(transaction.rid), 0);
  }

  #begin(): void {
    if (this.owned) this.owned.refused = RmpVerdict.ok;
  }

  /** The address is that of memory, as far as all addresses around are. */
  #identity(transaction: Transaction, slot: DeviceSlot, domain: number): TranslateStatus {
    const { lo, hi } = transaction;
    const page = this.#page;
    page.pa = (hi >>> 0) * WORD + (lo >>> 0);
    page.lg2 = PART_LG2;
    // Nothing maps it, so nothing is too large.
    if (this.owned && this.#checkOwner(this.owned, PAGE_LG2, transaction.pasid !== NO_PASID) !== 0)
      return this.#refuse(transaction, slot, domain);
    const lg2 = uniformLg2(this.exclusion, lo, hi, page.lg2);
    transaction.pa = page.pa;
    transaction.span = (1 << lg2) - (lo & ((1 << lg2) - 1));
    return TranslateStatus.ok;
  }

  #host(transaction: Transaction, slot: DeviceSlot, device: Device, want: number): TranslateStatus {
    const { lo, hi } = transaction;
    const { domain, host } = device;
    if (!host) {
      if ((want & device.denied) === 0) return this.#identity(transaction, slot, domain);
      this.#fault.forbidden(false);
      return this.#refuse(transaction, slot, domain);
    }
    const entry = this.iotlb.lookup(domain, lo, hi);
    if ((device.denied & want) === 0 && this.#grants(entry, want))
      return this.#fromEntry(transaction, slot, device, entry);
    const page = this.#page;
    if (this.#walkHost(transaction, device, want) !== 0) return this.#refuse(transaction, slot, domain);
    const denied = rememberedDenials(deniedOf(page.allowed, false), want, setsDirty(host.format));
    if (this.#remembers()) {
      if (page.lg2 > PART_LG2 || this.owned) this.#parted.add(domain);
      this.#enter(domain, lo, hi, denied);
    }
    return this.#found(transaction, slot, device, denied);
  }

  #guest(
    transaction: Transaction,
    slot: DeviceSlot,
    device: Device,
    pasid: number,
    want: number,
  ): TranslateStatus {
    const { lo, hi, access } = transaction;
    const variant = this.#isPrivileged(access) ? 1 : 0;
    const { domain } = device;
    const entry = this.lookup(this.spaces.find(domain, pasid, variant), lo, hi);
    if ((device.denied & want) === 0 && this.#grants(entry, want))
      return this.#fromEntry(transaction, slot, device, entry);
    if (this.#walkGuest(transaction, slot, device, pasid, want) !== 0)
      return this.#refuse(transaction, slot, domain);
    const page = this.#page;
    const denied = rememberedDenials(deniedOf(page.allowed, variant === 0), want, true);
    if (this.#remembers()) {
      const space = this.#open(domain, pasid, variant);
      if (page.lg2 < this.#guestLg2(device) || page.lg2 > PART_LG2) space.parted = true;
      this.#enter(space.index, lo, hi, denied);
    }
    return this.#found(transaction, slot, device, denied);
  }

  /** lg2 of the leaf of the guest's tables that the last walk found. */
  #guestLg2({ guest }: Device): number {
    return guest!.stage.format.levels[this.#page.level]!.shift;
  }

  /** The IOTLB's entry for an address of a guest's space, or -1. */
  lookup(space: FirstStageSpace | undefined, lo: number, hi: number): number {
    return space ? this.iotlb.lookup(space.index, lo, hi) : -1;
  }

  #open(domain: number, pasid: number, variant: number): FirstStageSpace {
    const space = this.spaces.open(domain, pasid, variant);
    if (space) return space;
    this.#forgetPages();
    return this.spaces.open(domain, pasid, variant)!;
  }

  #isPrivileged(access: number): boolean {
    return (access & Access.privileged) !== 0 && this.#unit.privilege;
  }

  #grants(entry: number, want: number): boolean {
    return entry >= 0 && (want & this.iotlb.denied(entry)) === 0;
  }

  /** 0, or the code of `#fault`; the page is in `#page`. */
  #walkHost({ lo, hi }: Transaction, { host, table, denied }: Device, want: number): number {
    const page = this.#page;
    const code = host!.walk(this.#memory, table, lo, hi, want, page);
    if (code !== 0) return this.#fault.walked(code, page.entryAddress, false);
    if ((want & denied) !== 0) return this.#fault.forbidden(false);
    return this.owned ? this.#checkOwner(this.owned, page.lg2, false) : 0;
  }

  /** Whether devices may have what is in `#page`, mapped by a leaf of 2^lg2 bytes. No more is remembered of it than was checked. */
  #checkOwner({ rmp }: RmpMemory, lg2: number, guest: boolean): number {
    const page = this.#page;
    const verdict = rmp.check(page.pa, lg2);
    if (verdict !== RmpVerdict.ok) return this.#fault.kept(verdict, guest, page.pa, lg2);
    page.lg2 = Math.min(page.lg2, rmp.grain(page.pa));
    return 0;
  }

  #walkGuest(
    { lo, hi, access }: Transaction,
    slot: DeviceSlot,
    device: Device,
    pasid: number,
    want: number,
  ): number {
    const page = this.#page;
    const root = this.#rootOf(slot, device, pasid);
    if (root < 0) return this.#fault.code;
    const { guest, host, table, domain } = device;
    const need = want | (this.#isPrivileged(access) ? 0 : Permission.user);
    const { guests } = this;
    let code: number;
    if (host) {
      const walk = nestedWalker(guest!.stage, host);
      code = walk(this.#memory, root, table, lo, hi, need, page, guests, guests.tag(domain));
      if (this.#options.policy !== "normal") guests.invalidateAll();
      if (code !== 0 && page.stage === 2)
        return this.#fault.walked(code, page.entryAddress, false, page.guestAddress);
    } else code = guest!.stage.walk(this.#memory, root, lo, hi, need, page);
    if (code !== 0) return this.#fault.walked(code, page.entryAddress, true);
    if ((want & device.denied) !== 0) return this.#fault.forbidden(true);
    return this.owned ? this.#checkOwner(this.owned, page.lg2, true) : 0;
  }

  /** The guest's root table; -1: `#fault` says why there is none. */
  #rootOf(slot: DeviceSlot, device: Device, pasid: number): number {
    const known = slot.roots.get(pasid);
    if (known !== undefined) return known;
    const root = findGuestTable(this.#memory, this.#unit, device, pasid, this.#fault);
    if (root < 0 || !slot.held || !this.#remembers()) return root;
    if (slot.roots.size >= ROOTS) slot.roots.clear();
    slot.roots.set(pasid, root);
    return root;
  }

  #enter(context: number, lo: number, hi: number, denied: number): void {
    const page = this.#page;
    const paHi = Math.floor(page.pa / WORD);
    this.iotlb.enter(context, lo, hi, page.lg2, page.pa - paHi * WORD, paHi, denied);
  }

  #fromEntry(transaction: Transaction, slot: DeviceSlot, device: Device, entry: number): TranslateStatus {
    const { iotlb } = this;
    return this.#answer(transaction, slot, device, iotlb.page(entry), iotlb.lg2(entry), iotlb.denied(entry));
  }

  #found(transaction: Transaction, slot: DeviceSlot, device: Device, denied: number): TranslateStatus {
    const { pa, lg2 } = this.#page;
    const most = Math.min(lg2, PART_LG2);
    const base = pa - (transaction.lo & ((1 << most) - 1));
    return this.#answer(transaction, slot, device, base, most, denied);
  }

  /** Answers from the page of 2^lg2 bytes (at most 2^30) at `base`, which becomes the device's last one. */
  #answer(
    transaction: Transaction,
    slot: DeviceSlot,
    device: Device,
    base: number,
    lg2: number,
    denied: number,
  ): TranslateStatus {
    const { lo, hi } = transaction;
    const uniform = transaction.pasid === NO_PASID ? uniformLg2(this.exclusion, lo, hi, lg2) : lg2;
    const offset = lo & ((1 << uniform) - 1);
    const pa = base + (lo & ((1 << lg2) - 1));
    transaction.pa = pa;
    transaction.span = (1 << uniform) - offset;
    if (slot.held && this.#remembers())
      slot.keep(transaction, this.iotlb.stamp, pa - offset, uniform, denied | device.denied);
    return TranslateStatus.ok;
  }

  // ATS

  /**
   * §2.4.4 A translation request: the page with what it grants, or nothing granted where software may mend it. Nothing is
   * remembered but by the device.
   */
  request(transaction: Transaction): TranslateStatus {
    transaction.granted = 0;
    if (!this.enabled) {
      this.#fault.invalid(InvalidRequest.translationRequest, false);
      return refused(transaction, this.#fault.code);
    }
    this.#begin();
    const slot = this.#deviceOf(transaction.rid);
    const { device } = slot;
    if (!device) return this.#refuse(transaction, slot, 0);
    const guest = transaction.pasid !== NO_PASID;
    if (!(device.valid && device.translates && device.deviceTlb) || (guest && !device.guest)) {
      this.#fault.invalid(InvalidRequest.translationRequest, guest);
      return this.#refuse(transaction, slot, device.domain);
    }
    const passage = isInterrupt(transaction)
      ? InvalidRequest.interruptRead
      : passageOf(device, this.exclusion, transaction);
    if (passage !== TRANSLATED && passage !== PASSES) {
      this.#fault.invalid(InvalidRequest.translationRange, guest);
      return this.#refuse(transaction, slot, device.domain);
    }
    const pasid = pasidOf(device, transaction.pasid);
    if (passage === PASSES || (pasid === NO_PASID && !device.host)) {
      const status = this.#identity(transaction, slot, device.domain);
      if (status === TranslateStatus.ok)
        transaction.granted = grantedBy(passage === PASSES ? 0 : device.denied);
      return status;
    }
    return this.#grant(transaction, slot, device, pasid);
  }

  #grant(transaction: Transaction, slot: DeviceSlot, device: Device, pasid: number): TranslateStatus {
    const { lo, hi } = transaction;
    const denied = this.#denials(transaction, slot, device, pasid);
    if (denied === REFUSED) return this.#refuse(transaction, slot, device.domain);
    transaction.pa = 0;
    transaction.span = MASK + 1 - (lo & MASK);
    if (denied === NOWHERE) return TranslateStatus.ok;
    const { pa, lg2 } = this.#page;
    const most = Math.min(lg2, PART_LG2);
    const part = transaction.pasid === NO_PASID ? uniformLg2(this.exclusion, lo, hi, most) : most;
    transaction.granted = grantedBy(denied);
    transaction.pa = pa;
    transaction.span = (1 << part) - (lo & ((1 << part) - 1));
    return TranslateStatus.ok;
  }

  /** `Permission` bits that the page refuses, with the page in `#page`; `NOWHERE`, or `REFUSED` with `#fault`. */
  #denials(transaction: Transaction, slot: DeviceSlot, device: Device, pasid: number): number {
    const { access } = transaction;
    // What is asked for, as far as it is granted: so that a page that is written becomes dirty.
    for (const want of [wants[access & 31]!, 0]) {
      const code =
        pasid === NO_PASID
          ? this.#walkHost(transaction, device, want)
          : this.#walkGuest(transaction, slot, device, pasid, want);
      const fault = this.#fault;
      if (code === 0) {
        const user = pasid !== NO_PASID && !this.#isPrivileged(access);
        const dirty = pasid !== NO_PASID || setsDirty(device.host?.format);
        return rememberedDenials(deniedOf(this.#page.allowed, user), want, dirty) | device.denied;
      }
      if (code !== EventCode.IO_PAGE_FAULT || fault.reserved) return REFUSED;
      if (!fault.permission) return NOWHERE;
    }
    return NOWHERE;
  }

  /** §2.6 Whether the device may ask for pages; without, the event has been recorded. */
  admitPageRequest(transaction: Transaction): boolean {
    this.#begin();
    const slot = this.#deviceOf(transaction.rid);
    const { device } = slot;
    if (!device) {
      this.#refuse(transaction, slot, 0);
      return false;
    }
    const guest = transaction.pasid !== NO_PASID;
    if (device.valid && device.translates && device.pageRequests && (!guest || device.guest)) return true;
    this.#fault.set(EventCode.INVALID_PPR_REQUEST, guest);
    this.#refuse(transaction, slot, device.domain);
    return false;
  }

  // What is remembered

  /** The device's slot with its entry: from the cache, else from memory. Without: `#fault` says why. */
  #deviceOf(rid: number): DeviceSlot {
    const slot = this.devices.open(rid);
    if (slot.held) return slot;
    const logged = slot.logged;
    slot.forget();
    slot.device = readDevice(this.#memory, this.#unit, this.table, rid, this.#fault);
    slot.held = slot.device !== undefined && this.#remembers();
    if (!slot.held) slot.logged = logged;
    return slot;
  }

  #remembers(): boolean {
    const { policy, random } = this.#options;
    return policy === "normal" || (policy === "paranoid" && random!.below(2) === 0);
  }

  #forgetAtRandom(): void {
    const drawn = this.#options.random!.below(16);
    if (drawn === 0) this.iotlb.invalidateAll();
    if (drawn === 1) this.devices.invalidateAll();
  }

  #refuse(transaction: Transaction, slot: DeviceSlot, domain: number): TranslateStatus {
    this.#blame();
    refused(transaction, this.#fault.code);
    this.#options.refuse(transaction, this.#fault, slot, domain);
    return TranslateStatus.fault;
  }

  /** A table that could not be read, because the reverse map table keeps it from the unit. */
  #blame(): void {
    const owned = this.owned;
    if (owned && owned.refused !== RmpVerdict.ok && this.#fault.unreadable)
      this.#fault.kept(owned.refused, this.#fault.guest, owned.refusedAt);
  }
}

/** Of `#denials`: no page; and a fault that is told. */
const NOWHERE = -1;
const REFUSED = -2;

/** The PASID whose guest tables translate, or `NO_PASID`: host tables alone do. */
export const pasidOf = ({ guest }: Device, pasid: number): number =>
  pasid === NO_PASID && guest?.withoutPasid ? 0 : pasid;

const refused = (transaction: Transaction, code: number): TranslateStatus => {
  transaction.fault = code;
  transaction.pa = 0;
  transaction.span = 0;
  return TranslateStatus.fault;
};

const pass = (transaction: Transaction): TranslateStatus => {
  const lo = transaction.lo >>> 0;
  transaction.pa = (transaction.hi >>> 0) * WORD + lo;
  transaction.span = WORD - lo;
  return TranslateStatus.ok;
};
