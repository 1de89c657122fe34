/**
 * Scalable-mode address translation of an Intel VT-d unit (revision 4.1, §3.4.3 to §3.9) with what is remembered: PASID
 * slots, the IOTLB, the guest addresses of nested walks. The invalidations that scalable mode has end here.
 *
 * An IOTLB entry keeps what both stages allow. One that does not allow an access, or through which a page would be written
 * whose dirty bit is not known to be set, is walked again.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { Permission } from "../../pagetable/format.ts";
import { GuestCache, type GuestTranslation } from "../../pagetable/guest-cache.ts";
import { Fetch, NestedResult } from "../../pagetable/nested.ts";
import { FirstStageSpaces } from "../first-stage-spaces.ts";
import type { Iotlb } from "../iotlb.ts";
import { Access, NO_PASID, type Transaction, TranslateStatus } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import { FaultCode, scalableFault } from "./faults.ts";
import { PasidCache, type PasidSlot } from "./pasid-cache.ts";
import { PasidCacheGranularity, PasidIotlbGranularity, Pgtt } from "./scalable-spec.ts";
import {
  admit,
  configureScalable,
  PasidContext,
  readFunctionContext,
  readPasidContext,
  type ScalableConfig,
} from "./scalable-tables.ts";
import { Granularity } from "./spec.ts";
import { Stages } from "./stages.ts";
import { beforeInterrupts, coversInterrupts, pageOffset, pageSize, pageStart } from "./translate.ts";

const WORD = 0x1_0000_0000;
/** Of an IOTLB entry, beside `Permission` bits: the dirty bit may not be set. */
const UNWRITTEN = 0x1_0000;

/** What the remapping gives: refusals, and how much is remembered. */
export interface ScalableHost {
  readonly memory: HostMemory;
  readonly capabilities: Capabilities;
  readonly iotlb: Iotlb;
  /** False: nothing is remembered now. */
  remembers(): boolean;
  /** Whether guest addresses may be remembered. */
  readonly remembersGuests: boolean;
  refuse(
    transaction: Transaction,
    code: number,
    silent: boolean,
    where?: { level: number | undefined; entryAddress: number; entry: bigint },
  ): TranslateStatus;
}

/** `Permission` bits that an access needs. */
export const needOfRequest = (access: number, supervises: boolean, pgtt: number): number => {
  const both = Access.read | Access.write;
  const bits = (access & Access.atomic) !== 0 ? access | both : access;
  let need = (bits & Access.write) !== 0 ? Permission.write : 0;
  if ((bits & Access.read) !== 0 || need === 0) need |= Permission.read;
  if (pgtt === Pgtt.second) return need;
  if ((bits & Access.execute) !== 0) need |= Permission.execute;
  return supervises ? need : need | Permission.user;
};

/** Whether a privileged request would execute a user page that SMEP keeps it from. */
export const isPrevented = (
  slot: PasidContext,
  supervises: boolean,
  allowed: number,
  access: number,
): boolean =>
  supervises &&
  slot.supervisorExecutePrevention &&
  slot.pgtt !== Pgtt.second &&
  (access & Access.execute) !== 0 &&
  (allowed & Permission.user) !== 0;

/** Bytes that may be accessed from an address on; 0: it is an interrupt address now. `tagged`: the request has a PASID. */
export const grantedBytes = (lo: number, hi: number, page: number, lg2: number, tagged: boolean): number => {
  const offset = pageOffset(lo, lg2);
  const size = pageSize(lg2);
  const start = pageStart(lo, hi, lg2);
  const left = size - offset;
  const plain = tagged || !coversInterrupts(start, size);
  if (plain && !coversInterrupts(page, size)) return left;
  if (coversInterrupts(page + offset, 1)) return 0;
  const out = beforeInterrupts(page + offset, left);
  return tagged ? out : beforeInterrupts(start + offset, out);
};

/** Faults that a translation request is told as a page that may not be used, without a record (§4.2.3, §7.1.3). */
const recoverable = new Set<number>([
  FaultCode.firstNotPresent,
  FaultCode.secondPermission,
  FaultCode.nestedTableWidth,
  FaultCode.nestedRootRead,
  FaultCode.nestedTableRead,
  FaultCode.nestedTableWrite,
  FaultCode.notCanonical,
  FaultCode.userPage,
  FaultCode.noExecute,
  FaultCode.unitWidth,
  FaultCode.secondWidth,
  FaultCode.noWrite,
  FaultCode.noRead,
]);

/** Address spaces of requests that write where R/W = 0 are apart. */
const variantOf = (supervises: boolean, writeProtect: boolean): number =>
  supervises && !writeProtect ? 1 : 0;

export class ScalableRemapping {
  /** The root table that SRTP latched. */
  root = 0;
  readonly config: ScalableConfig;
  readonly pasids = new PasidCache();
  readonly guests: GuestCache;
  readonly stages: Stages;
  readonly walk = new NestedResult();
  readonly #host: ScalableHost;
  readonly #memory: HostMemory;
  readonly #iotlb: Iotlb;
  readonly #spaces: FirstStageSpaces;
  /** Context of the last page request. */
  readonly #asking = new PasidContext();

  constructor(host: ScalableHost) {
    this.#host = host;
    this.#memory = host.memory;
    this.#iotlb = host.iotlb;
    this.config = configureScalable(host.capabilities);
    this.guests = new GuestCache(this.config.domains);
    this.stages = new Stages(host.capabilities);
    this.#spaces = new FirstStageSpaces(this.config.domains);
  }

  // Invalidations

  /** Nothing is remembered. */
  forget(): void {
    this.pasids.invalidateAll();
    this.#iotlb.invalidateAll();
    this.guests.invalidateAll();
    this.#spaces.clear();
  }

  /** Context entries have no domain id: a domain-selective invalidation is a global one (§6.5.2.1). */
  invalidateContexts(granularity: number, rid: number, functionMask: number): void {
    if (granularity === Granularity.device) this.pasids.invalidateDevice(rid, functionMask);
    else this.pasids.invalidateAll();
  }

  /** §6.5.2.2 */
  invalidatePasids(granularity: number, domain: number, pasid: number): void {
    if (granularity === PasidCacheGranularity.global) this.pasids.invalidateAll();
    else if (granularity === PasidCacheGranularity.domain) this.pasids.invalidateDomain(domain);
    else this.pasids.invalidatePasid(domain, pasid);
  }

  /** §6.5.2.3 What has a first stage is not known by second-stage addresses: all of the domain goes. */
  invalidateIotlb(granularity: number, domain: number, lo: number, hi: number, addressMask: number): void {
    if (granularity === Granularity.global) {
      this.#iotlb.invalidateAll();
      this.guests.invalidateAll();
    } else if (domain < this.config.domains) {
      const page = granularity === Granularity.page;
      if (page) this.#iotlb.invalidateRange(domain, lo, hi, 12 + addressMask);
      else this.#iotlb.invalidateContext(domain);
      if (page) this.guests.invalidateRange(domain, lo, hi, 12 + addressMask);
      else this.guests.invalidateStage(domain);
      for (const { index } of this.#spaces.ofDomain(domain)) this.#iotlb.invalidateContext(index);
    }
  }

  /**
   * §6.5.2.4 A page of the first stage that is held in parts goes with all of its space. What a PASID has of a second stage
   * alone is not known by PASID: all of the domain goes (table 24).
   */
  invalidatePasidIotlb(
    granularity: number,
    domain: number,
    pasid: number,
    lo: number,
    hi: number,
    addressMask: number,
  ): void {
    if (granularity === PasidIotlbGranularity.pasid && domain < this.config.domains)
      this.#iotlb.invalidateContext(domain);
    for (const space of this.#spaces.ofPasid(domain, pasid)) {
      if (granularity === PasidIotlbGranularity.page && !space.parted)
        this.#iotlb.invalidateRange(space.index, lo, hi, 12 + addressMask);
      else this.#iotlb.invalidateContext(space.index);
    }
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    const { rid, pasid, lo, access } = transaction;
    const slot = this.pasids.slot(rid, pasid, (access & Access.privileged) !== 0);
    if (
      slot !== undefined &&
      slot.stamp === this.#iotlb.stamp &&
      (lo & slot.mask) === slot.pageLo &&
      (transaction.hi | 0) === slot.pageHi &&
      (access & slot.denied) === 0 &&
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
    const slot = this.slotOf(transaction);
    const refusal = slot.fault || admit(slot, transaction.access, slot.supervises);
    if (refusal !== 0) return this.#host.refuse(transaction, refusal, slot.silent);
    if (transaction.translated) return this.#translated(transaction, slot);
    const code = this.#resolve(transaction, slot);
    return code === 0 ? TranslateStatus.ok : this.#refuse(transaction, slot, code);
  }

  /** The slot of a request: what is remembered, else what the tables say. */
  slotOf({ rid, pasid, access }: Transaction): PasidSlot {
    const slot = this.pasids.open(rid, pasid, pasid !== NO_PASID && (access & Access.privileged) !== 0);
    if (this.pasids.holds(slot)) return slot;
    slot.stamp = -1;
    slot.fault = readPasidContext(this.#memory, this.config, this.root, rid, pasid, slot);
    if (slot.fault !== 0) return slot;
    this.equip(slot, slot);
    if (slot.pgtt === Pgtt.first || slot.pgtt === Pgtt.nested) this.#giveSpace(slot);
    else slot.space = slot.domain;
    if (this.#host.remembers()) this.pasids.enter(slot);
    return slot;
  }

  /** Gives a slot the walkers that its entry asks for. */
  equip(slot: PasidSlot, context: PasidContext): void {
    slot.supervises = slot.privileged || context.ridPrivileged;
    const protect = !slot.supervises || context.writeProtect;
    slot.stage = undefined;
    slot.nested = undefined;
    if (context.pgtt === Pgtt.first) slot.stage = this.stages.first(context, protect);
    else if (context.pgtt === Pgtt.second) slot.stage = this.stages.second(context);
    else if (context.pgtt === Pgtt.nested) slot.nested = this.stages.nested(context, protect);
  }

  #giveSpace(slot: PasidSlot): void {
    const variant = variantOf(slot.supervises, slot.writeProtect);
    let space = this.#spaces.open(slot.domain, slot.pasid, variant);
    if (!space) {
      // Every number is in use: all are given anew, and slots know them.
      this.forget();
      space = this.#spaces.open(slot.domain, slot.pasid, variant)!;
    }
    slot.firstStage = space;
    slot.space = space.index;
  }

  /** The address space of a slot, for explaining: -1 when nothing can be remembered of it. */
  spaceOf({ pgtt, domain, pasid, supervises, writeProtect }: PasidSlot): number {
    if (pgtt === Pgtt.second || pgtt === Pgtt.passThrough) return domain;
    return this.#spaces.find(domain, pasid, variantOf(supervises, writeProtect))?.index ?? -1;
  }

  /** What is remembered of a guest address of a nested slot, for explaining. */
  remembered({ domain }: PasidSlot, guest: bigint, need: number, fetch: Fetch): GuestTranslation | undefined {
    return this.#host.remembersGuests
      ? this.guests.find(domain, guest, need, fetch === Fetch.page)
      : undefined;
  }

  /** The answer into the transaction, or the fault code. */
  #resolve(transaction: Transaction, slot: PasidSlot): number {
    const { lo, hi, access } = transaction;
    if (slot.pgtt === Pgtt.passThrough) return this.#passThrough(transaction);
    if (slot.pgtt === Pgtt.second) {
      const code = this.beyondSecond(slot, hi);
      if (code !== 0) return code;
    }
    const found = this.#iotlb.lookup(slot.space, lo, hi);
    if (found >= 0) {
      const word = this.#iotlb.denied(found);
      if (this.suffices(slot, word, access))
        return this.#answer(transaction, slot, this.#iotlb.page(found), this.#iotlb.lg2(found), word);
    }
    return this.#miss(transaction, slot);
  }

  /** Whether what an IOTLB entry keeps is enough for an access. */
  suffices(slot: PasidSlot, word: number, access: number): boolean {
    const need = needOfRequest(access, slot.supervises, slot.pgtt);
    if ((need & ~word) !== 0) return false;
    if ((word & UNWRITTEN) !== 0 && (need & Permission.write) !== 0) return false;
    return !isPrevented(slot, slot.supervises, word, access);
  }

  /** §3.9 The address goes through as it is, when the unit can put it out. */
  #passThrough(transaction: Transaction): number {
    const { hi } = transaction;
    const lo = transaction.lo >>> 0;
    if (this.beyondUnit(hi)) return FaultCode.unitWidth;
    const pa = (hi >>> 0) * WORD + lo;
    if (coversInterrupts(pa, 1)) return FaultCode.translatedInterrupt;
    transaction.pa = pa;
    transaction.span = beforeInterrupts(pa, WORD - lo);
    return 0;
  }

  /** Whether an address has bits beyond the guest address width of the unit. */
  beyondUnit(hi: number): boolean {
    const { guestAddressWidth } = this.#host.capabilities;
    return guestAddressWidth < 64 && hi >>> (guestAddressWidth - 32) !== 0;
  }

  /** The fault of an address that a second stage alone does not translate, or 0. */
  beyondSecond({ aw }: PasidContext, hi: number): number {
    if (hi >>> (9 * aw - 2) !== 0) return FaultCode.secondWidth;
    return this.beyondUnit(hi) ? FaultCode.unitWidth : 0;
  }

  /** Walks for an access: 0, or the fault code, with the end of the walk in `walk`. */
  #walkFor(slot: PasidSlot, lo: number, hi: number, access: number): number {
    const out = this.walk;
    const need = needOfRequest(access, slot.supervises, slot.pgtt);
    const memory = this.#memory;
    let fault: number;
    if (slot.nested) {
      const { firstTable, secondTable, domain, nested } = slot;
      fault = this.#host.remembersGuests
        ? nested.walkCached(
            memory,
            firstTable,
            secondTable,
            lo,
            hi,
            need,
            out,
            this.guests,
            this.guests.tag(domain),
          )
        : nested.walk(memory, firstTable, secondTable, lo, hi, need, out);
    } else {
      const first = slot.pgtt === Pgtt.first;
      out.stage = first ? 1 : 2;
      out.fetch = Fetch.page;
      fault = slot.stage!.walk(memory, first ? slot.firstTable : slot.secondTable, lo, hi, need, out);
    }
    if (fault === 0) return isPrevented(slot, slot.supervises, out.allowed, access) ? FaultCode.noExecute : 0;
    return faultOf(slot, { fault, ...endOf(out) });
  }

  #miss(transaction: Transaction, slot: PasidSlot): number {
    const { lo, hi, access } = transaction;
    const code = this.#walkFor(slot, lo, hi, access);
    if (code !== 0) return code;
    const { pa, lg2, span, allowed } = this.walk;
    const word = allowed | (this.#isWritten(slot, access) ? 0 : UNWRITTEN);
    if (this.#host.remembers()) {
      const paHi = Math.floor(pa / WORD);
      this.#iotlb.enter(slot.space, lo, hi, lg2, pa - paHi * WORD, paHi, word);
      const { nested, firstStage } = slot;
      if (nested && lg2 < nested.first.levels[this.walk.level]!.shift) firstStage!.parted = true;
    }
    return this.#answer(transaction, slot, pa - (pageSize(lg2) - span), lg2, word);
  }

  /** Whether no dirty bit remains to be set by a write to the page that was just found. */
  #isWritten(slot: PasidSlot, access: number): boolean {
    if ((access & (Access.write | Access.atomic)) !== 0) return true;
    const stage = slot.nested ? slot.nested.first : slot.stage!.format;
    const dirty = stage.levels[this.walk.level]!.leaves[0]!.dirty;
    if (dirty !== undefined && (this.walk.lo & Number(dirty)) === 0) return false;
    return !(slot.nested && slot.secondAccessedDirty);
  }

  /** Answers from the page of 2^lg2 bytes at `page`, which becomes the slot's last one. */
  #answer(transaction: Transaction, slot: PasidSlot, page: number, lg2: number, word: number): number {
    const { lo, hi, pasid } = transaction;
    const span = grantedBytes(lo, hi, page, lg2, pasid !== NO_PASID);
    if (span === 0) return FaultCode.translatedInterrupt;
    const offset = pageOffset(lo, lg2);
    transaction.pa = page + offset;
    transaction.span = span;
    transaction.granted = this.#granted(slot, word);
    const size = pageSize(lg2);
    // A page with interrupt addresses on either side has to be looked at every time.
    const mixed = coversInterrupts(pageStart(lo, hi, lg2), size) || coversInterrupts(page, size);
    if (!mixed && this.pasids.holds(slot) && this.#host.remembers()) {
      slot.stamp = this.#iotlb.stamp;
      slot.pageLo = lo & (-1 << lg2);
      slot.pageHi = hi | 0;
      slot.mask = -1 << lg2;
      slot.pa = page;
      slot.size = size;
      slot.denied = ~transaction.granted & everyAccess;
    }
    return 0;
  }

  /** `Access` bits that an IOTLB entry's word allows. */
  #granted(slot: PasidSlot, word: number): number {
    let granted = Access.privileged;
    if (this.suffices(slot, word, Access.read)) granted |= Access.read;
    if (this.suffices(slot, word, Access.write)) granted |= Access.write;
    if (this.suffices(slot, word, Access.atomic)) granted |= Access.atomic;
    if (slot.execute && this.suffices(slot, word, Access.read | Access.execute)) granted |= Access.execute;
    return granted;
  }

  #refuse(transaction: Transaction, slot: PasidSlot, code: number): TranslateStatus {
    const { level, entryAddress, lo, hi, stage } = this.walk;
    const format = slot.nested ? (stage === 1 ? slot.nested.first : slot.nested.second) : slot.stage?.format;
    const number = format?.levels[level]?.number;
    const entry = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    return this.#host.refuse(
      transaction,
      code,
      slot.silent,
      format && { level: number, entryAddress, entry },
    );
  }

  // Address translation services

  /** §4.2.1 A translated request passes when the function may have a device-TLB. */
  #translated(transaction: Transaction, slot: PasidSlot): TranslateStatus {
    if (!slot.deviceTlb) return this.#host.refuse(transaction, FaultCode.deviceTlbDisabled, slot.silent);
    const code = this.#passThrough(transaction);
    return code === 0 ? TranslateStatus.ok : this.#host.refuse(transaction, code, slot.silent);
  }

  /** §4.2.3 A translation request: what is not there or not allowed is answered with nothing granted. */
  requestTranslation(transaction: Transaction): TranslateStatus {
    const slot = this.slotOf(transaction);
    const refusal = slot.fault || (slot.deviceTlb ? 0 : FaultCode.deviceTlbDisabled);
    if (refusal !== 0) return this.#host.refuse(transaction, refusal, slot.silent);
    transaction.granted = 0;
    if (admit(slot, transaction.access, slot.supervises) !== 0) return TranslateStatus.ok;
    let code = this.#resolve(transaction, slot);
    // Not writable is not unreadable: what is left is granted.
    if (recoverable.has(code) && (transaction.access & Access.write) !== 0) {
      const { access } = transaction;
      transaction.access = access & ~(Access.write | Access.atomic);
      code = this.#resolve(transaction, slot);
      transaction.access = access;
    }
    if (code === 0) {
      if (slot.pgtt === Pgtt.passThrough) transaction.granted = everyAccess;
      return TranslateStatus.ok;
    }
    if (!recoverable.has(code)) return this.#refuse(transaction, slot, code);
    transaction.pa = 0;
    transaction.span = 2 ** 12 - pageOffset(transaction.lo, 12);
    transaction.granted = 0;
    return TranslateStatus.ok;
  }

  /** §7.4 Whether a function may ask for pages: 0, or the fault. */
  admitPageRequest({ rid, pasid }: Transaction): { readonly code: number; readonly silent: boolean } {
    const context = this.#asking;
    const fault = readFunctionContext(this.#memory, this.config, this.root, rid, pasid, context);
    const { pageRequests, silent } = context;
    return { code: fault || (pageRequests ? 0 : FaultCode.pageRequestsDisabled), silent };
  }
}

const everyAccess = Access.read | Access.write | Access.execute | Access.privileged | Access.atomic;

const endOf = ({ stage, fetch, level, guestLevel }: NestedResult) => ({ stage, fetch, level, guestLevel });

/** The code of a walk that ended so. */
export const faultOf = (
  { nested, stage }: Pick<PasidSlot, "nested" | "stage">,
  end: { fault: number; stage: number; fetch: number; level: number; guestLevel: number },
): number => {
  const format = nested ? (end.stage === 1 ? nested.first : nested.second) : stage!.format;
  const guest = nested?.first.levels.length ?? 0;
  return scalableFault({
    ...end,
    top: end.level === format.levels.length - 1,
    guestTop: end.guestLevel === guest - 1,
  });
};
