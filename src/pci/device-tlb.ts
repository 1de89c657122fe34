/**
 * What a function with address translation services does before it reaches memory (PCI Express base specification,
 * chapter 10): it asks its unit for translations and keeps them until they are invalidated; where a page is not there it
 * asks for the page and waits for the answer. A function that is told that it cannot have the page makes its request
 * untranslated, so that the unit refuses and records it.
 *
 * A page is kept as 4 KiB, whatever its leaf is. Left out: translations for execution, stop markers, requests of a group
 * that are more than one.
 */
import {
  type AtsUnit,
  type DeviceTlbInvalidation,
  type PageResponder,
  PageResponse,
} from "../hardware/ats.ts";
import { type IommuUnit, type Transaction, TranslateStatus } from "../hardware/unit.ts";

/** Translations that are kept; the oldest goes first. */
const CAPACITY = 64;
/** Groups that may wait. */
const GROUPS = 512;
/** How often a page is asked for that does not come though the answer was yes: the queue may have been full. */
const PATIENCE = 16;
const PAGE = 4096;
const PAGE_LG2 = 12;
const WORD = 2 ** 32;

export const isAtsUnit = (unit: IommuUnit): unit is IommuUnit & AtsUnit => "requestTranslation" in unit;

interface Translation {
  readonly pasid: number;
  /** Number of the page, and where it is. */
  readonly page: number;
  readonly pa: number;
  readonly granted: number;
}

export interface DeviceTlbContext {
  readonly rid: number;
  readonly unit: IommuUnit & AtsUnit;
  /** A new name for a stalled operation. */
  nextToken(): number;
  /** The operation may be tried again, or not. */
  resume(token: number, ok: boolean): void;
}

const keyOf = (pasid: number, page: number): string => `${pasid} ${page}`;

export class DeviceTlb {
  /** Page Request Control.Enable. */
  asks = false;
  readonly #context: DeviceTlbContext;
  #enabled = false;
  readonly #kept = new Map<string, Translation>();
  /** Stalled operations by group. */
  readonly #waiting = new Map<number, { readonly token: number; readonly key: string }>();
  /** Pages that were asked for and have not come: how often, and `PATIENCE` when the answer was no. */
  readonly #asked = new Map<string, number>();
  #group = 0;

  constructor(context: DeviceTlbContext) {
    this.#context = context;
  }

  /** ATS Control.Enable. */
  get enabled(): boolean {
    return this.#enabled;
  }
  set enabled(on: boolean) {
    if (on === this.#enabled) return;
    this.#enabled = on;
    this.#kept.clear();
  }

  get kept(): number {
    return this.#kept.size;
  }

  /** As the unit's: with what is kept, or else with what the unit says. */
  translate(request: Transaction): TranslateStatus {
    const address = (request.hi >>> 0) * WORD + (request.lo >>> 0);
    const page = Math.floor(address / PAGE);
    const key = keyOf(request.pasid, page);
    const known = this.#kept.get(key);
    if (known && (known.granted & request.access) === request.access) return finish(request, known.pa);
    const status = this.#context.unit.requestTranslation(request);
    if (status !== TranslateStatus.ok) return status;
    if (request.granted !== 0 && (request.granted & request.access) === request.access) {
      this.#asked.delete(key);
      const pa = request.pa - (request.lo & (PAGE - 1));
      this.#keep(key, { pasid: request.pasid, page, pa, granted: request.granted });
      return finish(request, pa);
    }
    return this.asks && this.#mayAsk(key) ? this.#ask(request, key) : this.#context.unit.translate(request);
  }

  /** §10.3 What the unit wants forgotten. */
  forget({ pasid, global, lo, hi, lg2 }: DeviceTlbInvalidation): void {
    const first = ((hi >>> 0) * WORD + (lo >>> 0)) / PAGE;
    const pages = 2 ** (lg2 - PAGE_LG2);
    for (const [key, kept] of this.#kept) {
      const touched = lg2 >= 64 || (kept.page >= first && kept.page < first + pages);
      if (touched && (global || kept.pasid === pasid)) this.#kept.delete(key);
    }
  }

  /** §10.4.2 The answer to a group. One to none of its groups is ignored. */
  answer(group: number, response: number): void {
    const waiting = this.#waiting.get(group);
    if (!waiting) return;
    this.#waiting.delete(group);
    if (response !== PageResponse.success) this.#asked.set(waiting.key, PATIENCE);
    this.#context.resume(waiting.token, true);
  }

  /** Power-on state: nothing is kept, no answer is waited for. */
  reset(): void {
    this.#kept.clear();
    this.#waiting.clear();
    this.#asked.clear();
  }

  /** The answer was no, or yes too often: it is not asked for again this time. */
  #mayAsk(key: string): boolean {
    if ((this.#asked.get(key) ?? 0) < PATIENCE) return this.#waiting.size < GROUPS;
    this.#asked.delete(key);
    return false;
  }

  #ask(request: Transaction, key: string): TranslateStatus {
    const { rid, unit, nextToken } = this.#context;
    while (this.#waiting.has(this.#group)) this.#group = (this.#group + 1) % GROUPS;
    const group = this.#group;
    this.#group = (group + 1) % GROUPS;
    const token = nextToken();
    request.token = token;
    this.#waiting.set(group, { token, key });
    this.#asked.set(key, (this.#asked.get(key) ?? 0) + 1);
    const { pasid, lo, hi, access } = request;
    unit.requestPage({ rid, pasid, lo: (lo & -PAGE) >>> 0, hi, access, group, last: true });
    // The answer may have come already, before anybody could wait for it.
    return this.#waiting.has(group) ? TranslateStatus.stalled : this.translate(request);
  }

  #keep(key: string, translation: Translation): void {
    this.#kept.delete(key);
    if (this.#kept.size === CAPACITY) this.#kept.delete(this.#kept.keys().next().value!);
    this.#kept.set(key, translation);
  }
}

const finish = (request: Transaction, pa: number): TranslateStatus => {
  const offset = request.lo & (PAGE - 1);
  request.pa = pa + offset;
  request.span = PAGE - offset;
  return TranslateStatus.ok;
};

/** Lets a unit reach the functions behind it. */
export const connect = (unit: IommuUnit & AtsUnit, tlbOf: (rid: number) => DeviceTlb | undefined): void => {
  unit.invalidateDeviceTlb = (what) => {
    const tlb = tlbOf(what.rid);
    tlb?.forget(what);
    return tlb ? "done" : "timeout";
  };
  const answer: PageResponder = (rid, _pasid, group, response) => tlbOf(rid)?.answer(group, response);
  unit.onPageResponse = answer;
};
