/**
 * What becomes of a request of a function: in front the page it used last, then the IOTLB, then its tables in memory. A
 * request that is refused is told to whoever keeps events. A remembered page is used for what it grants; what it does not
 * grant is looked up in the tables again. Entries that are not valid are not remembered.
 */
import type { Random } from "../../base/clock.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { Permission } from "../../pagetable/format.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import type { CachePolicy } from "../cache-policy.ts";
import { type Iotlb, unitIotlb } from "../iotlb.ts";
import { Access, NO_PASID, type Transaction, TranslateStatus } from "../unit.ts";
import { FaultCode, walkCode } from "./faults.ts";
import { type FunctionSlot, FunctionTable } from "./functions.ts";
import { type Parameters, translatedEnd } from "./parameters.ts";
import { MSI_BYTES } from "./spec.ts";

export interface TransactionsOptions {
  readonly memory: HostMemory;
  readonly msiAddress: number;
  readonly policy: CachePolicy;
  readonly random: Random | undefined;
  readonly iotlbEntries: number;
  readonly refuse: (transaction: Transaction) => void;
}

const WORD = 0x1_0000_0000;
const REQUESTERS = 0x1_0000;
const PAGE_LG2 = 12;
const PAGE_MASK = 2 ** PAGE_LG2 - 1;

const writes = Access.write | Access.atomic;
/** `Permission` bits that an access wants. */
export const wantOf = (access: number): number =>
  (access & writes) !== 0 ? Permission.read | Permission.write : Permission.read;

/** Where a request goes, before tables are looked at; 0 and above: the code of its refusal. */
export const PASSES = -1;
export const TRANSLATED = -2;

/** The page of an address, as a number. */
export const pageOf = (lo: number, hi: number): number => (hi >>> 0) * WORD + ((lo & ~PAGE_MASK) >>> 0);

export class Transactions {
  /** CONTROL.REQUIRED. */
  required = false;
  readonly functions = new FunctionTable();
  readonly iotlb: Iotlb;
  readonly #options: TransactionsOptions;
  readonly #page = new WalkResult();

  constructor(options: TransactionsOptions) {
    this.#options = options;
    this.iotlb = unitIotlb({ contexts: REQUESTERS, capacity: options.iotlbEntries });
  }

  // What instructions change

  /** The function has these parameters from now on, or none; what was remembered of it goes. */
  register(rid: number, parameters: Parameters | undefined): void {
    this.functions.open(rid).parameters = parameters;
    this.iotlb.invalidateContext(rid);
  }

  /** Pages of the range are forgotten. */
  refresh(rid: number, start: number, end: number): void {
    const { iotlb } = this;
    for (let at = start; at < end; ) {
      let lg2 = PAGE_LG2;
      while (lg2 < 31 && at % 2 ** (lg2 + 1) === 0 && at + 2 ** (lg2 + 1) <= end) lg2 += 1;
      // What does not fit few steps is everything.
      if (lg2 === 31) {
        iotlb.invalidateContext(rid);
        return;
      }
      iotlb.invalidateRange(rid, at | 0, Math.floor(at / WORD) | 0, lg2);
      at += 2 ** lg2;
    }
  }

  forget(): void {
    this.functions.clear();
    this.iotlb.invalidateAll();
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    const slot = this.functions.slot(transaction.rid);
    const { lo, access } = transaction;
    if (
      slot !== undefined &&
      slot.stamp === this.iotlb.stamp &&
      (lo & slot.mask) === slot.pageLo &&
      (transaction.hi | 0) === slot.pageHi &&
      transaction.pasid === NO_PASID &&
      (wantOf(access) & slot.denied) === 0 &&
      !transaction.translated
    ) {
      const offset = lo & ~slot.mask;
      transaction.pa = slot.pa + offset;
      transaction.span = slot.size - offset;
      return TranslateStatus.ok;
    }
    return this.#translate(transaction, slot);
  }

  /** Where the request goes: `PASSES`, `TRANSLATED`, or the code of its refusal. */
  passage({ lo, hi, pasid, translated, access }: Transaction, parameters: Parameters | undefined): number {
    if (translated || pasid !== NO_PASID) return FaultCode.unknownRequest;
    const page = pageOf(lo, hi);
    const { msiAddress } = this.#options;
    if ((access & writes) !== 0 && page >= msiAddress && page < msiAddress + MSI_BYTES) return PASSES;
    if (!parameters) return this.required ? FaultCode.noParameters : PASSES;
    if (page < parameters.start || page >= parameters.end) return FaultCode.outOfRange;
    if (!parameters.stage) return PASSES;
    return page < translatedEnd(parameters) ? TRANSLATED : FaultCode.asceType;
  }

  #translate(transaction: Transaction, slot: FunctionSlot | undefined): TranslateStatus {
    if (this.#options.policy === "paranoid" && this.#options.random!.below(16) === 0)
      this.iotlb.invalidateAll();
    const parameters = slot?.parameters;
    const passage = this.passage(transaction, parameters);
    if (passage === PASSES) return pass(transaction);
    if (passage !== TRANSLATED) return this.#refuse(transaction, passage);
    const { rid, lo, hi, access } = transaction;
    const { iotlb } = this;
    const want = wantOf(access);
    const entry = iotlb.lookup(rid, lo, hi);
    if (entry >= 0 && (iotlb.denied(entry) & want) === 0)
      return this.#answer(transaction, slot!, iotlb.page(entry), iotlb.lg2(entry), iotlb.denied(entry));
    const page = this.#page;
    const { stage, origin } = parameters!;
    const fault = stage!.walk(this.#options.memory, origin, lo, hi, want, page);
    if (fault !== 0) return this.#refuse(transaction, walkCode(fault, page.level));
    const denied = ~page.allowed & (Permission.read | Permission.write);
    const base = page.pa - (lo & PAGE_MASK);
    if (this.#remembers()) {
      const paHi = Math.floor(base / WORD);
      iotlb.enter(rid, lo, hi, PAGE_LG2, base - paHi * WORD, paHi, denied);
    }
    return this.#answer(transaction, slot!, base, PAGE_LG2, denied);
  }

  #answer(
    transaction: Transaction,
    slot: FunctionSlot,
    base: number,
    lg2: number,
    denied: number,
  ): TranslateStatus {
    const offset = transaction.lo & ((1 << lg2) - 1);
    transaction.pa = base + offset;
    transaction.span = (1 << lg2) - offset;
    if (this.#remembers()) slot.keep(transaction, this.iotlb.stamp, base, lg2, denied);
    return TranslateStatus.ok;
  }

  #remembers(): boolean {
    const { policy, random } = this.#options;
    return policy === "normal" || (policy === "paranoid" && random!.below(2) === 0);
  }

  #refuse(transaction: Transaction, code: number): TranslateStatus {
    transaction.fault = code;
    transaction.pa = 0;
    transaction.span = 0;
    this.#options.refuse(transaction);
    return TranslateStatus.fault;
  }
}

/** The address is that of memory, as far as its page. */
const pass = (transaction: Transaction): TranslateStatus => {
  const { lo, hi } = transaction;
  transaction.pa = (hi >>> 0) * WORD + (lo >>> 0);
  transaction.span = PAGE_MASK + 1 - (lo & PAGE_MASK);
  return TranslateStatus.ok;
};
