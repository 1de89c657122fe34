/**
 * The remapping hardware of a VT-d unit (revision 4.1, §3 and §6.2): what becomes of a request, with what is remembered
 * of earlier ones. In front the page a requester used last, then the IOTLB, then the tables in memory; a request that
 * is refused goes to the fault log. The invalidations of §6.5 end here.
 *
 * An IOTLB entry is used as it was entered: one that denies an access faults without another look at the tables.
 */
import type { Random } from "../../base/clock.ts";
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { WalkFault } from "../../pagetable/format.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import type { CachePolicy } from "../cache-policy.ts";
import { FIRST_STAGE_SPACES } from "../first-stage-spaces.ts";
import { type Iotlb, unitIotlb } from "../iotlb.ts";
import { tellFault } from "../telling.ts";
import { Access, NO_PASID, type Transaction, TranslateStatus } from "../unit.ts";
import { CACHED_FAULT_SHIFT, ContextCache, type ContextSlot, cachedFault } from "./caches.ts";
import type { Capabilities } from "./capabilities.ts";
import { explainTranslation } from "./explain.ts";
import { explainScalable } from "./explain-scalable.ts";
import type { FaultLog } from "./fault-log.ts";
import { describeFault, FaultCode, faultReasons, modeFault } from "./faults.ts";
import { ScalableRemapping } from "./scalable.ts";
import { Granularity, TranslationType, Ttm } from "./spec.ts";
import {
  beforeInterrupts,
  beyondWidth,
  type Context,
  configure,
  coversInterrupts,
  deniedBy,
  grantedSpan,
  interruptSpan,
  isInterruptAddress,
  pageOffset,
  pageSize,
  readContext,
  type TranslationConfig,
  walkFaultCode,
  walkSecondStage,
} from "./translate.ts";

export interface RemappingContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly events: EventSink;
  readonly capabilities: Capabilities;
  readonly faults: FaultLog;
  readonly policy: CachePolicy;
  readonly random: Random | undefined;
  readonly iotlbEntries: number;
}

const WORD = 0x1_0000_0000;
const PAGE_LG2 = 12;

/** Whether a walk fault is told to a device-TLB as a page that may not be used. */
const grantsNothing = (fault: number): boolean =>
  fault === WalkFault.notPresent || fault === WalkFault.read || fault === WalkFault.write;
/** Whether caching mode lets a walk fault be remembered: when the entries alone make it. */
const cacheable = (fault: number): boolean => fault === WalkFault.notPresent || fault === WalkFault.reserved;
/** Root and context entries that could not be read are never remembered. */
const unreadable = (code: number): boolean =>
  code === FaultCode.rootAccess || code === FaultCode.contextAccess;

// What every translation compares with, as constants of this module: those of another one are loaded and checked anew
// at each use.
const { ok } = TranslateStatus;
const { legacy } = Ttm;
const { deviceTlb, passThrough } = TranslationType;
const none = NO_PASID;
const isInterrupt = isInterruptAddress;
const isBeyond = beyondWidth;
const covers = coversInterrupts;
const bytesOf = pageSize;

export class Remapping {
  /** GSTS.TES, and the root table and translation table mode that SRTP latched. */
  enabled = false;
  root = 0;
  mode: number = Ttm.legacy;
  readonly config: TranslationConfig;
  readonly contexts = new ContextCache();
  readonly iotlb: Iotlb;
  readonly scalable: ScalableRemapping;
  readonly #context: RemappingContext;
  readonly #memory: HostMemory;
  readonly #walk = new WalkResult();
  /** What the policy is. */
  readonly #normal: boolean;
  readonly #paranoid: boolean;

  constructor(context: RemappingContext) {
    this.#context = context;
    this.#normal = context.policy === "normal";
    this.#paranoid = context.policy === "paranoid";
    this.#memory = context.memory;
    this.config = configure(context.capabilities);
    const { domains } = this.config;
    const { memory, capabilities, iotlbEntries, policy } = context;
    const contexts = domains + (capabilities.has.scalable ? FIRST_STAGE_SPACES : 0);
    this.iotlb = unitIotlb({ contexts, capacity: iotlbEntries });
    this.scalable = new ScalableRemapping({
      memory,
      capabilities,
      iotlb: this.iotlb,
      remembers: () => this.#remembers(),
      remembersGuests: policy !== "none",
      refuse: (transaction, code, silent, where) => this.#refuse(transaction, code, silent, where),
    });
  }

  /** SRTP: what the root table address register says holds from now on. */
  setRoot(root: number, mode: number): void {
    // What the other mode remembered means nothing in this one.
    if (mode !== this.mode) this.forget();
    this.root = root;
    this.mode = mode;
    this.scalable.root = root;
  }

  // Invalidations

  /** Nothing is remembered. */
  forget(): void {
    this.contexts.invalidateAll();
    this.iotlb.invalidateAll();
    this.scalable.forget();
  }

  invalidateContexts(granularity: number, domain: number, rid: number, functionMask: number): void {
    if (granularity === Granularity.reserved) return;
    this.scalable.invalidateContexts(granularity, rid, functionMask);
    if (granularity === Granularity.global) this.contexts.invalidateAll();
    else if (granularity === Granularity.domain) this.contexts.invalidateDomain(domain);
    else if (granularity === Granularity.device) this.contexts.invalidateDevice(domain, rid, functionMask);
  }

  invalidateIotlb(granularity: number, domain: number, lo: number, hi: number, addressMask: number): void {
    if (granularity !== Granularity.reserved)
      this.scalable.invalidateIotlb(granularity, domain, lo, hi, addressMask);
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    if (!this.enabled) return this.#untranslated(transaction);
    if (this.mode !== legacy) return this.#otherMode(transaction);
    const slot = this.contexts.slot(transaction.rid);
    const { lo } = transaction;
    if (
      slot !== undefined &&
      slot.stamp === this.iotlb.stamp &&
      (lo & slot.mask) === slot.pageLo &&
      (transaction.hi | 0) === slot.pageHi &&
      (transaction.access & slot.denied) === 0 &&
      transaction.pasid === none &&
      !transaction.translated
    ) {
      const offset = lo & ~slot.mask;
      transaction.pa = slot.pa + offset;
      transaction.span = slot.size - offset;
      return ok;
    }
    return this.#translate(transaction);
  }

  #otherMode(transaction: Transaction): TranslateStatus {
    const refusal = modeFault(this.mode);
    if (refusal !== 0) return this.#fail(transaction, refusal, false);
    if (transaction.pasid === NO_PASID && isInterruptAddress(transaction.lo, transaction.hi))
      return this.#interrupt(transaction);
    if (this.#paranoid) this.#forgetAtRandom();
    return this.scalable.translate(transaction);
  }

  #untranslated(transaction: Transaction): TranslateStatus {
    const lo = transaction.lo >>> 0;
    transaction.pa = (transaction.hi >>> 0) * WORD + lo;
    transaction.span = WORD - lo;
    return ok;
  }

  /** §3.15 Requests without PASID to the interrupt address range: writes are interrupts, other requests are aborted. */
  #interrupt(transaction: Transaction): TranslateStatus {
    if (transaction.access !== Access.write) return this.#fail(transaction, FaultCode.aborted, false);
    transaction.pa = transaction.lo >>> 0;
    transaction.span = interruptSpan(transaction.lo);
    return ok;
  }

  #translate(transaction: Transaction): TranslateStatus {
    if (transaction.pasid !== none) return this.#fail(transaction, FaultCode.pasidInLegacyMode, false);
    const { lo, hi, access } = transaction;
    if (isInterrupt(lo, hi)) return this.#interrupt(transaction);
    if (this.#paranoid) this.#forgetAtRandom();
    const slot = this.#contextOf(transaction.rid);
    if (slot.fault !== 0) return this.#fail(transaction, slot.fault, slot.silent);
    if (transaction.translated && slot.translationType !== deviceTlb)
      return this.#fail(transaction, FaultCode.requestBlocked, slot.silent);
    if (transaction.translated) return this.#untranslated(transaction);
    if (isBeyond(this.config, slot, hi)) return this.#fail(transaction, FaultCode.addressWidth, slot.silent);
    if (slot.translationType === passThrough) {
      this.#untranslated(transaction);
      transaction.span = beforeInterrupts(transaction.pa, transaction.span);
      return ok;
    }
    const { iotlb } = this;
    const entry = iotlb.lookup(slot.domain, lo, hi);
    if (entry < 0) return this.#miss(transaction, slot);
    const denied = iotlb.denied(entry);
    const code = denied === 0 ? 0 : cachedFault(denied, access);
    if (code !== 0) return this.#fail(transaction, code, slot.silent);
    return this.#answer(transaction, slot, iotlb.page(entry), iotlb.lg2(entry), denied);
  }

  #miss(transaction: Transaction, slot: ContextSlot): TranslateStatus {
    const { lo, hi, access } = transaction;
    const walk = this.#walk;
    const fault = walkSecondStage(this.#memory, this.config, slot, transaction, walk);
    if (fault !== 0) {
      if (cacheable(fault) && this.#cachesFaults()) {
        this.iotlb.enter(slot.domain, lo, hi, PAGE_LG2, 0, 0, fault << CACHED_FAULT_SHIFT);
      }
      const code = walkFaultCode(this.config, slot, fault, walk.level, access);
      return this.#fail(transaction, code, slot.silent, slot);
    }
    const denied = deniedBy(walk.allowed);
    const page = walk.pa - (pageSize(walk.lg2) - walk.span);
    if (this.#remembers()) {
      const paHi = Math.floor(walk.pa / WORD);
      this.iotlb.enter(slot.domain, lo, hi, walk.lg2, walk.pa - paHi * WORD, paHi, denied);
    }
    return this.#answer(transaction, slot, page, walk.lg2, denied);
  }

  /** Answers from the page of 2^lg2 bytes at `page`, which becomes the requester's last one. */
  #answer(
    transaction: Transaction,
    slot: ContextSlot,
    page: number,
    lg2: number,
    denied: number,
  ): TranslateStatus {
    const { lo, hi } = transaction;
    const size = bytesOf(lg2);
    const mask = -1 << lg2;
    const offset = (lo & ~mask) >>> 0;
    if ((hi === 0 && covers((lo & mask) >>> 0, size)) || covers(page, size))
      return this.#answerMixed(transaction, slot, page, lg2);
    transaction.pa = page + offset;
    transaction.span = size - offset;
    if (this.#remembers()) {
      slot.stamp = this.iotlb.stamp;
      slot.pageLo = lo & mask;
      slot.pageHi = hi | 0;
      slot.mask = mask;
      slot.pa = page;
      slot.size = size;
      slot.denied = denied;
    }
    return ok;
  }

  /** Answers from a page with interrupt addresses on either side: it has to be looked at every time. */
  #answerMixed(transaction: Transaction, slot: ContextSlot, page: number, lg2: number): TranslateStatus {
    const { lo, hi } = transaction;
    const span = grantedSpan(lo, hi, page, lg2);
    if (span === 0) return this.#fail(transaction, FaultCode.interruptAddress, slot.silent);
    transaction.pa = page + pageOffset(lo, lg2);
    transaction.span = span;
    return ok;
  }

  /** The requester's context: from the cache, else from memory. */
  #contextOf(rid: number): ContextSlot {
    const slot = this.contexts.open(rid);
    if (this.contexts.holds(slot)) return slot;
    slot.stamp = -1;
    slot.fault = readContext(this.#memory, this.config, this.root, rid, slot);
    if (!this.#remembers()) return slot;
    if (slot.fault === 0) this.contexts.enter(slot);
    else if (this.#context.capabilities.has.cachingMode && !unreadable(slot.fault)) {
      // Caching mode tags an entry that faults with domain id 0.
      slot.domain = 0;
      this.contexts.enter(slot);
    }
    return slot;
  }

  #remembers(): boolean {
    return this.#normal || this.#remembersAtRandom();
  }

  #remembersAtRandom(): boolean {
    return this.#paranoid && this.#context.random!.below(2) === 0;
  }

  #cachesFaults(): boolean {
    return this.#context.capabilities.has.cachingMode && this.#remembers();
  }

  #forgetAtRandom(): void {
    const drawn = this.#context.random!.below(16);
    if (drawn === 0) this.iotlb.invalidateAll();
    if (drawn === 1) this.contexts.invalidateAll();
    if (drawn === 2) this.scalable.pasids.invalidateAll();
    if (drawn === 3) this.scalable.guests.invalidateAll();
  }

  /** Refuses the request; the fault is recorded unless FPD keeps it from being. */
  #fail(transaction: Transaction, code: number, silent: boolean, walked?: Context): TranslateStatus {
    return this.#refuse(transaction, code, silent, walked && this.#walkedTo(walked));
  }

  #refuse(transaction: Transaction, code: number, silent: boolean, where?: object): TranslateStatus {
    transaction.fault = code;
    transaction.pa = 0;
    transaction.span = 0;
    const recorded = code !== FaultCode.aborted && !(silent && faultReasons[code]!.qualified);
    if (recorded) this.#context.faults.record(transaction, code);
    const { events, name } = this.#context;
    if (events.on)
      tellFault(events, name, transaction, { code, reason: describeFault(code), recorded, ...where });
    return TranslateStatus.fault;
  }

  /** Where the last walk ended, for people. */
  #walkedTo({ aw }: Context) {
    const { level, entryAddress, lo, hi } = this.#walk;
    const number = this.config.formats[aw]!.levels[level]?.number;
    return { level: number, entryAddress, entry: (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0) };
  }

  // Address translation services

  /** §4.2.3 A translation request of a device-TLB. */
  requestTranslation(transaction: Transaction): TranslateStatus {
    transaction.granted = 0;
    if (!this.enabled) return this.#fail(transaction, FaultCode.requestBlocked, false);
    const refusal = modeFault(this.mode);
    if (refusal !== 0) return this.#fail(transaction, refusal, false);
    if (transaction.pasid === NO_PASID && isInterruptAddress(transaction.lo, transaction.hi)) {
      // Interrupts are never translated: nothing is granted there.
      transaction.pa = 0;
      transaction.span = interruptSpan(transaction.lo);
      return ok;
    }
    return this.mode === Ttm.scalable
      ? this.scalable.requestTranslation(transaction)
      : this.#requestLegacy(transaction);
  }

  #requestLegacy(transaction: Transaction): TranslateStatus {
    if (transaction.pasid !== NO_PASID) return this.#fail(transaction, FaultCode.pasidInLegacyMode, false);
    const slot = this.#contextOf(transaction.rid);
    if (slot.fault !== 0) return this.#fail(transaction, slot.fault, slot.silent);
    if (slot.translationType !== deviceTlb)
      return this.#fail(transaction, FaultCode.requestBlocked, slot.silent);
    const walk = this.#walk;
    const beyond = beyondWidth(this.config, slot, transaction.hi);
    const fault = beyond ? 0 : this.#walkForAny(transaction, slot);
    if (fault !== 0 && !grantsNothing(fault)) {
      const code = walkFaultCode(this.config, slot, fault, walk.level, transaction.access);
      return this.#fail(transaction, code, slot.silent, slot);
    }
    if (fault !== 0 || beyond) {
      transaction.pa = 0;
      transaction.span = 2 ** PAGE_LG2 - pageOffset(transaction.lo, PAGE_LG2);
      return ok;
    }
    transaction.pa = walk.pa;
    transaction.span = walk.span;
    transaction.granted = ~deniedBy(walk.allowed) & (Access.read | Access.write | Access.atomic);
    return ok;
  }

  /** Walks for reading, else for writing: a walk for nothing at all is none. */
  #walkForAny(transaction: Transaction, slot: ContextSlot): number {
    const { access } = transaction;
    transaction.access = Access.read;
    let fault = walkSecondStage(this.#memory, this.config, slot, transaction, this.#walk);
    if (fault === WalkFault.read) {
      transaction.access = Access.write;
      fault = walkSecondStage(this.#memory, this.config, slot, transaction, this.#walk);
    }
    transaction.access = access;
    return fault;
  }

  /** §7.4 Whether a function may ask for pages. */
  admitPageRequest(transaction: Transaction): { readonly code: number; readonly silent: boolean } {
    if (!this.enabled || this.mode === Ttm.legacy)
      return { code: FaultCode.pageRequestInLegacyMode, silent: false };
    const refusal = modeFault(this.mode);
    return refusal !== 0 ? { code: refusal, silent: false } : this.scalable.admitPageRequest(transaction);
  }

  /** §6.2 What a translation would do, without doing it. */
  explain(transaction: Transaction): Iterable<ExplainStep> {
    return this.enabled && this.mode !== Ttm.legacy
      ? explainScalable(this, this.#memory, transaction)
      : explainTranslation(this, this.#memory, transaction);
  }
}
