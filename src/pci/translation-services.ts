/**
 * What a function with address translation services does before it reaches memory (PCI Express base specification,
 * chapter 10): it asks its unit for translations, keeps them until they are invalidated, and makes translated requests.
 * Where a page is not there it asks for it, and for those after it that the same access needs, and waits. A function that
 * is told that it cannot have a page makes its request untranslated, so that the unit refuses and records it.
 */
import type { AtsUnit, DeviceTlbAnswer, DeviceTlbInvalidation } from "../hardware/ats.ts";
import { type IommuUnit, Transaction, TranslateStatus } from "../hardware/unit.ts";
import { DeviceTlb, needOf } from "./device-tlb.ts";
import { type GroupEnd, PageRequests, type WantedPage } from "./page-requests.ts";

/** How often a page is asked for that does not come though the answer was yes: the queue may have been full. */
const PATIENCE = 16;
/** Pages that are remembered as asked for. */
const REMEMBERED = 512;
const PAGE = 4096;
const WORD = 2 ** 32;

export const isAtsUnit = (unit: IommuUnit): unit is IommuUnit & AtsUnit => "requestTranslation" in unit;

export interface TranslationServicesContext {
  readonly rid: number;
  readonly unit: IommuUnit & AtsUnit;
  /** A new name for a stalled operation. */
  nextToken(): number;
  /** The operation may be tried again, or has failed; perhaps before anybody could wait for that. */
  resume(token: number, ok: boolean): void;
}

const keyOf = ({ pasid, lo, hi }: Transaction): string => `${pasid} ${hi >>> 0} ${lo >>> 12}`;

export class TranslationServices {
  readonly pages: PageRequests;
  /** lg2 of the smallest translation (ATS Control.STU). */
  leastLg2 = 12;
  readonly #context: TranslationServicesContext;
  readonly #tlb = new DeviceTlb();
  readonly #ahead = new Transaction();
  /** First pages of groups that have not come yet: how often they were asked for, `PATIENCE` when the answer was no. */
  readonly #asked = new Map<string, number>();
  #enabled = false;

  constructor(context: TranslationServicesContext) {
    this.#context = context;
    this.pages = new PageRequests(context.rid, context.unit);
  }

  /** ATS Control.Enable. */
  get enabled(): boolean {
    return this.#enabled;
  }
  set enabled(on: boolean) {
    if (on === this.#enabled) return;
    this.#enabled = on;
    this.#tlb.clear();
  }

  /**
   * As the unit's: with what is kept, or else with what the unit says. `length`: bytes that the access still goes on.
   * Where it may not ask for pages, one that is not there is a fault that nobody but the function learns of.
   */
  translate(request: Transaction, length: number, mayAsk = true): TranslateStatus {
    const { unit } = this.#context;
    if (this.#tlb.find(request)) return this.#reach(request);
    const status = unit.requestTranslation(request);
    const ends = status === TranslateStatus.fault || (status === TranslateStatus.ok && grants(request));
    if (ends && this.#asked.size > 0) this.#asked.delete(keyOf(request));
    if (status !== TranslateStatus.ok) return status;
    if (ends) {
      this.#tlb.enter(request);
      return this.#reach(request);
    }
    if (!mayAsk) return TranslateStatus.fault;
    if (!this.pages.asks || !this.#mayAsk(keyOf(request))) return unit.translate(request);
    this.#ask(request, length);
    return TranslateStatus.stalled;
  }

  /** §10.3 What the unit wants forgotten. A translation is used within one access, so nothing is left to wait for. */
  forget(what: DeviceTlbInvalidation): DeviceTlbAnswer {
    this.#tlb.forget(what, this.leastLg2);
    return "done";
  }

  /** What waits for pages is dropped. */
  drop(): void {
    this.pages.drop();
    this.#asked.clear();
  }

  /** Power-on state: nothing is kept, no answer is waited for. */
  reset(): void {
    this.drop();
    this.#tlb.clear();
    this.pages.reset();
  }

  /** The translated request: the unit has the last word on where it goes. */
  #reach(request: Transaction): TranslateStatus {
    const { lo, hi, pa, span } = request;
    request.lo = pa % WORD;
    request.hi = Math.floor(pa / WORD);
    request.translated = true;
    const status = this.#context.unit.translate(request);
    // What was refused is left as it was, for the record.
    if (status === TranslateStatus.fault) return status;
    request.lo = lo;
    request.hi = hi;
    request.translated = false;
    if (request.span > span) request.span = span;
    return status;
  }

  /** The answer was no, or yes too often: it is not asked for again this time. */
  #mayAsk(key: string): boolean {
    if ((this.#asked.get(key) ?? 0) < PATIENCE) return true;
    this.#asked.delete(key);
    return false;
  }

  /** Asks for the page of a request and for those after it. The request waits. */
  #ask(request: Transaction, length: number): void {
    const { nextToken, resume } = this.#context;
    const { pages } = this;
    const token = nextToken();
    request.token = token;
    const key = keyOf(request);
    const end = (how: GroupEnd): void => {
      if (how === "refused") this.#remember(key, PATIENCE);
      resume(token, how !== "failed");
    };
    if (pages.room === 0) {
      pages.wait(end);
      return;
    }
    this.#remember(key, (this.#asked.get(key) ?? 0) + 1);
    pages.ask(request.pasid, this.#missing(request, length), end);
  }

  #remember(key: string, times: number): void {
    if (this.#asked.size >= REMEMBERED && !this.#asked.has(key)) this.#asked.clear();
    this.#asked.set(key, times);
  }

  /** The pages of the access that are not granted, as many as may be asked for; the first is known to be one. */
  #missing(request: Transaction, length: number): WantedPage[] {
    const ahead = this.#ahead;
    const { access } = request;
    const first = (request.lo & -PAGE) >>> 0;
    const wanted: WantedPage[] = [{ lo: first, hi: request.hi, access }];
    const bytes = length + (request.lo & (PAGE - 1));
    const { room } = this.pages;
    for (let page = 1; page < room && page * PAGE < bytes; page++) {
      const low = first + page * PAGE;
      ahead.rid = request.rid;
      ahead.pasid = request.pasid;
      ahead.access = access;
      ahead.lo = low % WORD;
      ahead.hi = request.hi + Math.floor(low / WORD);
      if (ahead.hi >= WORD) break;
      if (this.#tlb.find(ahead)) continue;
      if (this.#context.unit.requestTranslation(ahead) !== TranslateStatus.ok) break;
      if (grants(ahead)) this.#tlb.enter(ahead);
      else wanted.push({ lo: ahead.lo, hi: ahead.hi, access });
    }
    return wanted;
  }
}

const grants = ({ granted, access }: Transaction): boolean => {
  const need = needOf(access);
  return granted !== 0 && (granted & need) === need;
};

/** Lets a unit reach the functions behind it; one that has no such services does not answer. */
export const connect = (
  unit: IommuUnit & AtsUnit,
  servicesOf: (rid: number) => TranslationServices | undefined,
): void => {
  unit.invalidateDeviceTlb = (what) => servicesOf(what.rid)?.forget(what) ?? "timeout";
  unit.onPageResponse = (rid, pasid, group, response) =>
    servicesOf(rid)?.pages.answer(pasid, group, response);
};
