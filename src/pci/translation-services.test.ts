import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import type { AtsUnit, DeviceTlbInvalidation, PageRequest } from "../hardware/ats.ts";
import { PageResponse } from "../hardware/ats.ts";
import { Access, type IommuUnit, NO_PASID, Transaction, TranslateStatus } from "../hardware/unit.ts";
import type { ExplainStep } from "../pagetable/step.ts";
import { connect, TranslationServices } from "./translation-services.ts";

const PAGE = 4096;
const RID = 0x100;
const READ_WRITE = Access.read | Access.write;

/** A unit whose table is a map from page to page and what is granted there, one for each PASID. */
class MapUnit implements IommuUnit, AtsUnit {
  readonly name = "map";
  readonly pages = new Map<string, { pa: number; granted: number; bytes: number }>();
  readonly requests: PageRequest[] = [];
  /** Answers page requests at once. */
  answers: ((request: PageRequest) => number) | undefined;
  translations = 0;
  untranslated = 0;
  /** What becomes of translated requests. */
  translatedIs: TranslateStatus = TranslateStatus.ok;
  onResume: (token: number, ok: boolean) => void = () => {};
  invalidateDeviceTlb: AtsUnit["invalidateDeviceTlb"] = () => "done";
  onPageResponse: AtsUnit["onPageResponse"] = () => {};

  map(pasid: number, page: number, pa: number, granted: number, bytes = PAGE): void {
    for (let at = 0; at < bytes / PAGE; at++)
      this.pages.set(`${pasid} ${page + at}`, { pa: pa + at * PAGE, granted, bytes });
  }
  requestTranslation(request: Transaction): TranslateStatus {
    this.translations += 1;
    const address = request.hi * 2 ** 32 + request.lo;
    const found = this.pages.get(`${request.pasid} ${Math.floor(address / PAGE)}`);
    request.pa = (found?.pa ?? 0) + (address % PAGE);
    request.span = (found?.bytes ?? PAGE) - (address % (found?.bytes ?? PAGE));
    request.granted = found?.granted ?? 0;
    return TranslateStatus.ok;
  }
  requestPage(request: PageRequest): void {
    this.requests.push(request);
    if (this.answers) this.onPageResponse(request.rid, request.pasid, request.group, this.answers(request));
  }
  translate(request: Transaction): TranslateStatus {
    if (!request.translated) {
      this.untranslated += 1;
      return TranslateStatus.fault;
    }
    request.pa = request.hi * 2 ** 32 + request.lo;
    request.span = 2 ** 32 - request.lo;
    return this.translatedIs;
  }
  mmioRead(): bigint {
    return 0n;
  }
  mmioWrite(): void {}
  explain(): Iterable<ExplainStep> {
    return [];
  }
  reset(): void {}
}

describe("a function's own translations", () => {
  let unit: MapUnit;
  let services: TranslationServices;
  let resumed: (readonly [token: number, ok: boolean])[];
  beforeEach(() => {
    unit = new MapUnit();
    resumed = [];
    let token = 0;
    services = new TranslationServices({
      rid: RID,
      unit,
      nextToken: () => {
        token -= 1;
        return token;
      },
      resume: (which, ok) => resumed.push([which, ok]),
    });
    services.enabled = true;
    services.pages.enabled = true;
    services.pages.allocation = 8;
    connect(unit, (rid) => (rid === RID ? services : undefined));
  });

  const request = (address: number, access: number = Access.read, pasid: number = NO_PASID): Transaction =>
    Object.assign(new Transaction(), {
      rid: RID,
      pasid,
      access,
      lo: address >>> 0,
      hi: Math.floor(address / 2 ** 32),
    });
  /** `length`: how far the access goes on. */
  const reach = (asked: Transaction, length = 8): TranslateStatus => services.translate(asked, length);
  const forget = (what: Partial<DeviceTlbInvalidation>) =>
    unit.invalidateDeviceTlb({ rid: RID, pasid: NO_PASID, global: false, lo: 0, hi: 0, lg2: 64, ...what });

  it("§10.2 asks once for a page and keeps the answer", () => {
    unit.map(NO_PASID, 0x1_2345_6, 0x7000, READ_WRITE);
    for (const offset of [0, 8, 0xff8]) {
      const asked = request(0x1_2345_6000 + offset);
      expect(reach(asked)).toBe(TranslateStatus.ok);
      expect([asked.pa, asked.span]).toEqual([0x7000 + offset, PAGE - offset]);
    }
    expect(unit.translations).toBe(1);
  });

  it("what was granted for reading is asked again for writing; PASIDs are apart", () => {
    unit.map(NO_PASID, 1, 0x7000, Access.read);
    unit.map(5, 1, 0x8000, READ_WRITE);
    services.pages.enabled = false;
    expect(reach(request(0x1000))).toBe(TranslateStatus.ok);
    expect(reach(request(0x1000, Access.write))).toBe(TranslateStatus.fault);
    expect(unit.untranslated).toBe(1);
    const tagged = request(0x1000, Access.write, 5);
    expect(reach(tagged)).toBe(TranslateStatus.ok);
    expect(tagged.pa).toBe(0x8000);
  });

  it("keeps no more than it has room for", () => {
    for (let page = 0; page < 200; page++) {
      unit.map(NO_PASID, page, page * PAGE, READ_WRITE);
      reach(request(page * PAGE));
    }
    reach(request(199 * PAGE));
    expect(unit.translations).toBe(200);
    for (let page = 0; page < 200; page++) reach(request(page * PAGE));
    expect(unit.translations).toBeLessThanOrEqual(400);
  });

  it("keeps a large page as one translation, from wherever in it the first access was", () => {
    unit.map(NO_PASID, 512, 0x4020_0000, READ_WRITE, 2 ** 21);
    for (const address of [0x20_0000 + 0x1f_f000, 0x20_0000, 0x2a_bcd8]) {
      const asked = request(address);
      expect(reach(asked)).toBe(TranslateStatus.ok);
      expect(asked.pa).toBe(0x4000_0000 + address);
    }
    expect(unit.translations).toBeLessThanOrEqual(2);
    expect(reach(request(0x1f_fff8))).toBe(TranslateStatus.stalled);
  });

  it("§10.5.1.3 an invalidation covers at least the smallest translation unit", () => {
    for (const page of [0, 1, 2, 3]) {
      unit.map(NO_PASID, page, page * PAGE, READ_WRITE);
      reach(request(page * PAGE));
    }
    services.leastLg2 = 13;
    forget({ lo: PAGE, lg2: 12 });
    for (const page of [0, 1, 2, 3]) reach(request(page * PAGE));
    expect(unit.translations).toBe(6);
  });

  it("§10.2.1 makes translated requests: the unit has the last word, and the address stays for a retry", () => {
    unit.map(NO_PASID, 5, 0x7000, READ_WRITE);
    const asked = request(0x5010);
    unit.translatedIs = TranslateStatus.stalled;
    expect(reach(asked)).toBe(TranslateStatus.stalled);
    expect([asked.lo, asked.hi, asked.translated]).toEqual([0x5010, 0, false]);
    unit.translatedIs = TranslateStatus.fault;
    expect(reach(asked)).toBe(TranslateStatus.fault);
    expect([asked.lo, asked.translated]).toEqual([0x7010, true]);
    expect([unit.translations, unit.untranslated]).toEqual([1, 0]);
  });

  it("§10.3.1 forgets ranges of a PASID, everything, or every PASID, and no more than that", () => {
    const pages = [0, 1, 2, 3, 4, 5, 6, 7];
    fc.assert(
      fc.property(
        fc.record({
          pasid: fc.constantFrom(NO_PASID, 1, 2),
          global: fc.boolean(),
          page: fc.integer({ min: 0, max: 7 }),
          lg2: fc.constantFrom(12, 13, 14, 64),
        }),
        ({ pasid, global, page, lg2 }) => {
          forget({ global: true });
          for (const one of [NO_PASID, 1, 2])
            for (const at of pages) {
              unit.map(one, at, at * PAGE, READ_WRITE);
              reach(request(at * PAGE, Access.read, one));
            }
          const size = lg2 === 64 ? 8 : 2 ** (lg2 - 12);
          const first = Math.floor(page / size) * size;
          expect(forget({ pasid, global, lo: first * PAGE, lg2 })).toBe("done");
          for (const one of [NO_PASID, 1, 2])
            for (const at of pages) {
              const before = unit.translations;
              reach(request(at * PAGE, Access.read, one));
              const gone = (global || one === pasid) && at >= first && at < first + size;
              expect(unit.translations - before).toBe(gone ? 1 : 0);
            }
        },
      ),
      { numRuns: 60 },
    );
    expect(forget({ rid: RID + 1 })).toBe("timeout");
  });

  it("§10.4 asks for a page that is not there, waits, and goes on when it has come", () => {
    const asked = request(0x5008, Access.write, 3);
    expect(reach(asked)).toBe(TranslateStatus.stalled);
    expect(unit.requests).toEqual([
      { rid: RID, pasid: 3, lo: 0x5000, hi: 0, access: Access.write, group: 0, last: true },
    ]);
    unit.map(3, 5, 0x9000, READ_WRITE);
    unit.onPageResponse(RID, 3, 0, PageResponse.success);
    expect(resumed).toEqual([[asked.token, true]]);
    expect(reach(asked)).toBe(TranslateStatus.ok);
    expect(asked.pa).toBe(0x9008);
    unit.onPageResponse(RID, 3, 0, PageResponse.success);
    expect(resumed).toHaveLength(1);
  });

  it("makes the request untranslated when the page cannot be had, and asks again the next time", () => {
    const asked = request(0x5000);
    reach(asked);
    unit.onPageResponse(RID, NO_PASID, 0, PageResponse.invalid);
    expect(reach(asked)).toBe(TranslateStatus.fault);
    expect(unit.untranslated).toBe(1);
    expect(reach(asked)).toBe(TranslateStatus.stalled);
    expect(unit.requests.map(({ group }) => group)).toEqual([0, 1]);
  });

  it("takes an answer that comes at once, and does not ask for ever", () => {
    unit.answers = () => PageResponse.success;
    let tries = 0;
    while (reach(request(0x5000)) === TranslateStatus.stalled) {
      tries += 1;
      expect(resumed).toHaveLength(tries);
      expect(tries).toBeLessThan(100);
    }
    expect(tries).toBeGreaterThan(1);
    expect(unit.untranslated).toBe(1);
  });

  it("§10.4 asks as one group for the pages that an access needs and has not, as far as there is room", () => {
    unit.map(NO_PASID, 6, 0x7000, READ_WRITE);
    unit.map(NO_PASID, 8, 0x8000, Access.read);
    expect(reach(request(0x5ff8, Access.write), 4 * PAGE)).toBe(TranslateStatus.stalled);
    const asked = () => unit.requests.splice(0).map(({ lo, group, last }) => [lo, group, last]);
    expect(asked()).toEqual([
      [0x5000, 0, false],
      [0x7000, 0, false],
      [0x8000, 0, false],
      [0x9000, 0, true],
    ]);
    reach(request(0x10_0000), 64 * PAGE);
    expect(asked().map(([lo]) => lo)).toEqual([0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000]);
    // Two groups of four: the next waits for one of them, and is then tried again.
    const third = request(0x20_0000);
    expect(reach(third)).toBe(TranslateStatus.stalled);
    expect(asked()).toEqual([]);
    unit.onPageResponse(RID, NO_PASID, 1, PageResponse.success);
    expect(resumed.at(-1)).toEqual([third.token, true]);
    expect(resumed).toHaveLength(2);
  });

  it("§10.4.2.1 a response of failure ends every operation and stops the interface until it is enabled again", () => {
    const { pages } = services;
    const first = request(0x5000);
    const second = request(0x6000);
    reach(first);
    reach(second);
    unit.onPageResponse(RID, NO_PASID, 0, PageResponse.failure);
    expect(resumed).toEqual([
      [first.token, false],
      [second.token, false],
    ]);
    expect([pages.failed, pages.outstanding]).toEqual([true, 0]);
    unit.onPageResponse(RID, NO_PASID, 1, PageResponse.success);
    expect([pages.unexpected, resumed.length]).toEqual([false, 2]);
    expect(reach(request(0x5000))).toBe(TranslateStatus.fault);
    expect(unit.untranslated).toBe(1);
    pages.failed = false;
    expect(reach(request(0x5000))).toBe(TranslateStatus.stalled);
  });

  it("§10.5.2.3 a response to no group of its, or with another PASID, is told and changes nothing", () => {
    const { pages } = services;
    reach(request(0x5000, Access.read, 7));
    unit.onPageResponse(RID, 7, 9, PageResponse.success);
    unit.onPageResponse(RID, 8, 0, PageResponse.success);
    expect([pages.unexpected, pages.counts.unexpected, pages.outstanding]).toEqual([true, 2, 1]);
    expect(resumed).toEqual([]);
    unit.onPageResponse(RID, 7, 0, PageResponse.success);
    expect(resumed).toHaveLength(1);
  });

  it("a dropped operation leaves its group: the answer is counted and nobody is resumed", () => {
    const { pages } = services;
    reach(request(0x5000));
    services.drop();
    expect(pages.outstanding).toBe(1);
    unit.onPageResponse(RID, NO_PASID, 0, PageResponse.success);
    expect([resumed.length, pages.unexpected, pages.outstanding]).toEqual([0, false, 0]);
    expect(pages.counts).toMatchObject({ groups: 1, success: 1, ended: 0, unexpected: 0 });
  });

  it("a reset forgets translations and what was asked for; the numbers of groups go on", () => {
    unit.map(NO_PASID, 1, 0x7000, READ_WRITE);
    reach(request(0x1000));
    reach(request(0x5000));
    services.reset();
    unit.onPageResponse(RID, NO_PASID, 0, PageResponse.success);
    expect(resumed).toEqual([]);
    expect(services.pages.counts).toMatchObject({ groups: 1, ended: 1, unexpected: 1 });
    unit.requests.length = 0;
    reach(request(0x5000));
    expect(unit.requests.map(({ group }) => group)).toEqual([1]);
    reach(request(0x1000));
    expect(unit.translations).toBe(4);
  });

  it("turned off, nothing is kept", () => {
    unit.map(NO_PASID, 1, 0x7000, READ_WRITE);
    reach(request(0x1000));
    services.enabled = false;
    services.enabled = true;
    reach(request(0x1000));
    expect(unit.translations).toBe(2);
  });

  it("every group ends once: by its response, a reset, or the failure of another", () => {
    const action = fc.oneof(
      fc.record({
        what: fc.constant("ask" as const),
        page: fc.nat(40),
        pages: fc.integer({ min: 1, max: 6 }),
      }),
      fc.record({
        what: fc.constant("answer" as const),
        group: fc.nat(20),
        code: fc.constantFrom(0, 0, 1, 15),
      }),
      fc.record({ what: fc.constantFrom("drop" as const, "reset" as const, "enable" as const) }),
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 60 }), (actions) => {
        const { pages } = services;
        const before = { ...pages.counts };
        for (const one of actions) {
          if (one.what === "ask") reach(request((one.page + 0x100) * PAGE), one.pages * PAGE);
          else if (one.what === "answer") unit.onPageResponse(RID, NO_PASID, one.group, one.code);
          else if (one.what === "drop") services.drop();
          else if (one.what === "reset") services.reset();
          else pages.failed = false;
        }
        const { groups, success, invalid, failure, ended } = pages.counts;
        expect(success + invalid + failure + ended + pages.outstanding).toBe(groups);
        expect(pages.room).toBeLessThanOrEqual(8);
        expect(groups).toBeGreaterThanOrEqual(before.groups);
        services.reset();
        expect([pages.room, pages.outstanding]).toEqual([8, 0]);
        pages.failed = false;
      }),
      { numRuns: 60 },
    );
  });
});
