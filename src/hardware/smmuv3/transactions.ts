/**
 * What becomes of a transaction in an SMMUv3 (IHI 0070, §3.3, §3.9, §3.12 and §15.1), with what is remembered of earlier
 * ones: in front the page a stream used last, then the IOTLB, then the tables in memory. A transaction that is refused is
 * told to whoever records events, and may stall.
 *
 * A remembered page is used for what it grants. What it does not grant is looked up in the tables again.
 */
import type { Random } from "../../base/clock.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { PageTableFormat } from "../../pagetable/format.ts";
import type { CachePolicy } from "../cache-policy.ts";
import { Access, NO_PASID, type Transaction, TranslateStatus } from "../unit.ts";
import { type ContextSlot, StreamCache, type StreamSlot } from "./caches.ts";
import type { Capabilities } from "./capabilities.ts";
import { type Context, intermediateBits, type Stream } from "./config.ts";
import { ABORTED, Fault, isTranslationFault } from "./faults.ts";
import { EventCode } from "./queue-spec.ts";
import { EVERY_RIGHT, Right, wantOf } from "./rights.ts";
import { Config, Eats, S1Dss, StreamWorld } from "./spec.ts";
import { readContext, readStream, type StreamTable } from "./tables.ts";
import { Tlb, TlbSpace } from "./tlb.ts";
import {
  canonicalHigh,
  PART_LG2,
  Page,
  rangeOf,
  rememberedRights,
  walkStage1,
  walkStage2,
} from "./translate.ts";

export interface TransactionsOptions {
  readonly memory: HostMemory;
  readonly unit: Capabilities;
  readonly policy: CachePolicy;
  readonly random: Random | undefined;
  readonly iotlbEntries: number;
  /** Records the fault and says what the transaction is told. `stream` and `context` as far as they were found. */
  readonly refuse: (
    transaction: Transaction,
    fault: Fault,
    stream: Stream | undefined,
    context: Context | undefined,
  ) => TranslateStatus;
}

const WORD = 0x1_0000_0000;
/** Stage 1 is passed by. */
const BYPASS = -1;
const REFUSED = -2;
export class Transactions {
  /** CR0.SMMUEN, and what the base registers and CR2 say. */
  enabled = false;
  table: StreamTable = { base: 0, bits: 0, split: 0 };
  e2h = false;
  /** GBPA.ABORT. */
  aborting = false;
  /** CR0.ATSCHK. */
  checksTranslated = false;
  readonly streams = new StreamCache();
  readonly tlb: Tlb;
  readonly #options: TransactionsOptions;
  readonly #memory: HostMemory;
  readonly #unit: Capabilities;
  readonly #fault = new Fault();
  readonly #page = new Page();
  readonly #space = new TlbSpace();

  constructor(options: TransactionsOptions) {
    this.#options = options;
    this.#memory = options.memory;
    this.#unit = options.unit;
    this.tlb = new Tlb(options.iotlbEntries);
  }

  /** Nothing is remembered. */
  forget(): void {
    this.streams.invalidateAll();
    this.tlb.forget();
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    if (!this.enabled) return this.#disabled(transaction);
    const slot = this.streams.slot(transaction.rid);
    const { lo } = transaction;
    if (
      slot !== undefined &&
      slot.stamp === this.tlb.iotlb.stamp &&
      (lo & slot.mask) === slot.pageLo &&
      (transaction.hi | 0) === slot.pageHi &&
      transaction.pasid === slot.pasid &&
      (slot.wants[transaction.access & 31]! & slot.denied) === 0 &&
      !transaction.translated
    ) {
      const offset = lo & ~slot.mask;
      transaction.pa = slot.pa + offset;
      transaction.span = slot.size - offset;
      return TranslateStatus.ok;
    }
    return this.#translate(transaction);
  }

  /** §6.3.14 SMMUEN = 0: everything passes, or everything aborts. Without an event. */
  #disabled(transaction: Transaction): TranslateStatus {
    if (transaction.translated) this.#fault.set(EventCode.F_TRANSL_FORBIDDEN);
    else if (this.aborting || this.#beyond(transaction)) this.#fault.set(ABORTED);
    else return pass(transaction);
    return this.#refuse(transaction, undefined, undefined);
  }

  #beyond({ hi }: Transaction): boolean {
    return hi >>> (this.#unit.outputBits - 32) !== 0;
  }

  #translate(transaction: Transaction): TranslateStatus {
    if (this.#options.policy === "paranoid") this.#forgetAtRandom();
    if (transaction.translated && !this.checksTranslated) return this.#passTranslated(transaction, undefined);
    const slot = this.#streamOf(transaction.rid);
    const { stream } = slot;
    if (!stream) return this.#refuse(transaction, undefined, undefined);
    if (stream.config === Config.abort) {
      this.#fault.set(ABORTED);
      return this.#refuse(transaction, stream, undefined);
    }
    if (transaction.translated) return this.#translated(transaction, slot, stream);
    const substream = this.#substreamOf(stream, transaction.pasid);
    if (substream === REFUSED) return this.#refuse(transaction, stream, undefined);
    const want = slot.wants[transaction.access & 31]!;
    if (substream !== BYPASS) return this.#stage1(transaction, slot, stream, substream, want);
    return stream.stage2 ? this.#stage2(transaction, slot, stream, want) : this.#bypass(transaction, stream);
  }

  /** §3.9 The substream whose context translates; or that none does. */
  #substreamOf(stream: Stream, pasid: number): number {
    const fault = this.#fault;
    if (pasid === NO_PASID) {
      if (!stream.stage1) return BYPASS;
      if (stream.contextLg2 === 0 || stream.withoutSubstream === S1Dss.substream0) return 0;
      if (stream.withoutSubstream === S1Dss.bypass) return BYPASS;
      fault.set(EventCode.F_STREAM_DISABLED);
      return REFUSED;
    }
    const known = stream.stage1 && stream.contextLg2 > 0 && pasid < 2 ** stream.contextLg2;
    const taken = pasid === 0 && stream.withoutSubstream === S1Dss.substream0;
    if (known && !taken) return pasid;
    fault.set(known ? EventCode.F_STREAM_DISABLED : EventCode.C_BAD_SUBSTREAMID);
    return REFUSED;
  }

  #bypass(transaction: Transaction, stream: Stream): TranslateStatus {
    if (!this.#beyond(transaction)) return pass(transaction);
    this.#fault.set(EventCode.F_ADDR_SIZE);
    return this.#refuse(transaction, stream, undefined);
  }

  #stage1(
    transaction: Transaction,
    slot: StreamSlot,
    stream: Stream,
    ssid: number,
    want: number,
  ): TranslateStatus {
    const found = this.#contextOf(slot, stream, ssid);
    if (!found) return this.#refuse(transaction, stream, undefined);
    const { context } = found;
    const { lo, hi } = transaction;
    const range = rangeOf(hi, context);
    const high = range ? canonicalHigh(hi, range) : hi;
    const entry = range ? this.tlb.find(found, stream, lo, high) : -1;
    if (this.#grants(entry, want)) return this.#fromEntry(transaction, slot, entry);
    const page = this.#page;
    const { guests } = this.tlb;
    const code = walkStage1(this.#memory, stream, context, lo, hi, want, guests, page, this.#fault);
    if (this.#options.policy !== "normal") guests.invalidateAll();
    if (code !== 0) return this.#refuse(transaction, stream, context);
    const dirty = updatesDirty(range?.format) || updatesDirty(stream.stage2?.format);
    const space = this.#space.ofContext(stream, context.asid, page.global);
    return this.#found(transaction, slot, space, high, rememberedRights(page.rights, want, dirty));
  }

  #stage2(transaction: Transaction, slot: StreamSlot, stream: Stream, want: number): TranslateStatus {
    const { lo, hi } = transaction;
    const entry = this.tlb.findStage2(stream.vmid, lo, hi);
    if (this.#grants(entry, want)) return this.#fromEntry(transaction, slot, entry);
    const page = this.#page;
    const bits = intermediateBits(this.#unit);
    const code = walkStage2(this.#memory, stream, bits, lo, hi, want, page, this.#fault);
    if (code !== 0) return this.#refuse(transaction, stream, undefined);
    const dirty = updatesDirty(stream.stage2?.format);
    const space = this.#space.ofStage2(stream.vmid);
    return this.#found(transaction, slot, space, hi, rememberedRights(page.rights, want, dirty));
  }

  #grants(entry: number, want: number): boolean {
    return entry >= 0 && (want & this.tlb.iotlb.denied(entry)) === 0;
  }

  #fromEntry(transaction: Transaction, slot: StreamSlot, entry: number): TranslateStatus {
    const { iotlb } = this.tlb;
    return this.#answer(transaction, slot, iotlb.page(entry), iotlb.lg2(entry), iotlb.denied(entry));
  }

  /** Remembers the page that a walk found, and answers from it. */
  #found(
    transaction: Transaction,
    slot: StreamSlot,
    space: TlbSpace,
    high: number,
    rights: number,
  ): TranslateStatus {
    const page = this.#page;
    const { lo } = transaction;
    const lg2 = Math.min(page.lg2, PART_LG2);
    const denied = EVERY_RIGHT & ~rights;
    if (this.#remembers()) this.tlb.enter(space, lo, high, page, lg2, denied);
    return this.#answer(transaction, slot, page.pa - (lo & ((1 << lg2) - 1)), lg2, denied);
  }

  /** Answers from the page of 2^lg2 bytes (at most 2^30) at `base`, which becomes the stream's last one. */
  #answer(
    transaction: Transaction,
    slot: StreamSlot,
    base: number,
    lg2: number,
    denied: number,
  ): TranslateStatus {
    const size = 1 << lg2;
    const offset = transaction.lo & (size - 1);
    transaction.pa = base + offset;
    transaction.span = size - offset;
    // What was translated before is an address of another kind.
    if (!transaction.translated && this.#remembers())
      slot.keep(transaction, this.tlb.iotlb.stamp, base, lg2, denied);
    return TranslateStatus.ok;
  }

  // ATS

  /** §3.9.1.3 A translated transaction that is checked: it passes, or where stages are split takes stage 2. */
  #translated(transaction: Transaction, slot: StreamSlot, stream: Stream): TranslateStatus {
    if (stream.ats === Eats.none) {
      this.#fault.set(EventCode.F_TRANSL_FORBIDDEN);
      return this.#refuse(transaction, stream, undefined);
    }
    if (stream.ats === Eats.split)
      return this.#stage2(transaction, slot, stream, slot.wants[transaction.access & 31]!);
    return this.#passTranslated(transaction, stream);
  }

  /** §3.9.1.1 An address that the unit cannot put out is aborted, without an event. */
  #passTranslated(transaction: Transaction, stream: Stream | undefined): TranslateStatus {
    if (!this.#beyond(transaction)) return pass(transaction);
    this.#fault.set(ABORTED);
    return this.#refuse(transaction, stream, undefined);
  }

  /**
   * §3.9.1.2 A translation request: the page with what it grants, or nothing granted when the walk faults as software may
   * mend. Nothing is remembered but by the device. Refused requests leave their code in `transaction.fault`.
   */
  request(transaction: Transaction): TranslateStatus {
    if (!this.enabled) return this.#refuseRequest(transaction, undefined);
    const slot = this.#streamOf(transaction.rid);
    const { stream } = slot;
    if (!stream) return refused(transaction, this.#fault.code);
    if (stream.config === Config.abort) return refused(transaction, ABORTED);
    const usable = stream.ats === Eats.full || (stream.ats === Eats.split && this.checksTranslated);
    if (!usable) return this.#refuseRequest(transaction, stream);
    const substream = this.#substreamOf(stream, transaction.pasid);
    if (substream === REFUSED) return refused(transaction, this.#fault.code);
    if (substream === BYPASS && !stream.stage2) {
      transaction.granted = Access.read | Access.write | Access.execute;
      return pass(transaction);
    }
    let context: Context | undefined;
    if (substream !== BYPASS) {
      context = this.#contextOf(slot, stream, substream)?.context;
      if (!context) {
        const { code } = this.#fault;
        return isTranslationFault(code) ? grantNothing(transaction) : refused(transaction, code);
      }
    }
    return this.#grant(transaction, slot, stream, context);
  }

  #refuseRequest(transaction: Transaction, stream: Stream | undefined): TranslateStatus {
    this.#fault.set(EventCode.F_BAD_ATS_TREQ);
    return this.#refuse(transaction, stream, undefined);
  }

  #grant(
    transaction: Transaction,
    slot: StreamSlot,
    stream: Stream,
    context: Context | undefined,
  ): TranslateStatus {
    const { lo, hi, access } = transaction;
    const page = this.#page;
    const split = stream.ats === Eats.split;
    const walk = (want: number) =>
      context
        ? walkStage1(this.#memory, stream, context, lo, hi, want, this.tlb.guests, page, this.#fault)
        : walkStage2(this.#memory, stream, intermediateBits(this.#unit), lo, hi, want, page, this.#fault);
    // What is asked for, as far as it is granted: so that a page that is written becomes dirty.
    let code = walk(slot.wants[access & 31]!);
    if (code === EventCode.F_PERMISSION) code = walk(0);
    if (code === EventCode.F_WALK_EABT) return refused(transaction, code);
    if (code !== 0) return grantNothing(transaction);
    const privileged = slot.wants[access & 31]! > (Right.read | Right.write | Right.execute);
    transaction.granted = (privileged ? page.rights >> 3 : page.rights) & 7;
    transaction.pa = split && context ? page.guestAddress : page.pa;
    transaction.span = page.span;
    return TranslateStatus.ok;
  }

  // What is remembered

  /** The stream's slot with its configuration: from the cache, else from memory. Without: `#fault` says why. */
  #streamOf(sid: number): StreamSlot {
    const slot = this.streams.open(sid);
    if (slot.held) return slot;
    const stream = readStream(this.#memory, this.#unit, this.table, sid, this.#fault);
    slot.forget();
    if (!stream) return slot;
    slot.stream = stream;
    slot.held = this.#remembers();
    const twoRanges = stream.world === StreamWorld.el1 || this.e2h;
    for (let access = 0; access < 32; access++) slot.wants[access] = wantOf(access, stream, twoRanges);
    return slot;
  }

  #contextOf(slot: StreamSlot, stream: Stream, ssid: number): ContextSlot | undefined {
    const known = slot.contexts.get(ssid);
    if (known) return known;
    const context = readContext(this.#memory, this.#unit, stream, ssid, this.e2h, this.#fault);
    if (!context) return undefined;
    const made = { context, space: -1, generation: -1 };
    if (this.#remembers()) slot.contexts.set(ssid, made);
    return made;
  }

  #remembers(): boolean {
    const { policy, random } = this.#options;
    return policy === "normal" || (policy === "paranoid" && random!.below(2) === 0);
  }

  #forgetAtRandom(): void {
    const drawn = this.#options.random!.below(16);
    if (drawn === 0) this.tlb.iotlb.invalidateAll();
    if (drawn === 1) this.streams.invalidateAll();
  }

  #refuse(
    transaction: Transaction,
    stream: Stream | undefined,
    context: Context | undefined,
  ): TranslateStatus {
    refused(transaction, this.#fault.code);
    return this.#options.refuse(transaction, this.#fault, stream, context);
  }
}

const refused = (transaction: Transaction, code: number): TranslateStatus => {
  transaction.fault = code;
  transaction.pa = 0;
  transaction.span = 0;
  return TranslateStatus.fault;
};

/** The answer to a request for a page that is not there. */
const grantNothing = (transaction: Transaction): TranslateStatus => {
  transaction.granted = 0;
  transaction.pa = 0;
  transaction.span = 4096 - (transaction.lo & 0xfff);
  return TranslateStatus.ok;
};

const pass = (transaction: Transaction): TranslateStatus => {
  const lo = transaction.lo >>> 0;
  transaction.pa = (transaction.hi >>> 0) * WORD + lo;
  transaction.span = WORD - lo;
  return TranslateStatus.ok;
};

const updatesDirty = (format: PageTableFormat | undefined): boolean => {
  const [leaf] = format?.levels[0]?.leaves ?? [];
  return leaf !== undefined && (leaf.dirty ?? leaf.dirtyCleared) !== undefined;
};
