import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import type { AtsUnit, DeviceTlbInvalidation, PageRequest } from "../hardware/ats.ts";
import { PageResponse } from "../hardware/ats.ts";
import { Access, type IommuUnit, NO_PASID, Transaction, TranslateStatus } from "../hardware/unit.ts";
import type { ExplainStep } from "../pagetable/step.ts";
import { connect, DeviceTlb } from "./device-tlb.ts";

const PAGE = 4096;
const RID = 0x100;
const READ_WRITE = Access.read | Access.write;

/** A unit whose table is a map from page to page and what is granted there, one for each PASID. */
class MapUnit implements IommuUnit, AtsUnit {
  readonly name = "map";
  readonly pages = new Map<string, { readonly pa: number; readonly granted: number }>();
  readonly requests: PageRequest[] = [];
  /** Answers page requests at once. */
  answers: ((request: PageRequest) => number) | undefined;
  translations = 0;
  untranslated = 0;
  onResume: (token: number, ok: boolean) => void = () => {};
  invalidateDeviceTlb: AtsUnit["invalidateDeviceTlb"] = () => "done";
  onPageResponse: AtsUnit["onPageResponse"] = () => {};

  map(pasid: number, page: number, pa: number, granted: number): void {
    this.pages.set(`${pasid} ${page}`, { pa, granted });
  }
  requestTranslation(request: Transaction): TranslateStatus {
    this.translations += 1;
    const address = request.hi * 2 ** 32 + request.lo;
    const found = this.pages.get(`${request.pasid} ${Math.floor(address / PAGE)}`);
    request.pa = (found?.pa ?? 0) + (address % PAGE);
    request.span = PAGE - (address % PAGE);
    request.granted = found?.granted ?? 0;
    return TranslateStatus.ok;
  }
  requestPage(request: PageRequest): void {
    this.requests.push(request);
    if (this.answers) this.onPageResponse(request.rid, request.pasid, request.group, this.answers(request));
  }
  translate(): TranslateStatus {
    this.untranslated += 1;
    return TranslateStatus.fault;
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
  let tlb: DeviceTlb;
  let resumed: (readonly [token: number, ok: boolean])[];
  beforeEach(() => {
    unit = new MapUnit();
    resumed = [];
    let token = 0;
    tlb = new DeviceTlb({
      rid: RID,
      unit,
      nextToken: () => {
        token -= 1;
        return token;
      },
      resume: (which, ok) => resumed.push([which, ok]),
    });
    tlb.enabled = true;
    tlb.asks = true;
    connect(unit, (rid) => (rid === RID ? tlb : undefined));
  });

  const request = (address: number, access: number = Access.read, pasid: number = NO_PASID): Transaction =>
    Object.assign(new Transaction(), {
      rid: RID,
      pasid,
      access,
      lo: address >>> 0,
      hi: Math.floor(address / 2 ** 32),
    });
  const forget = (what: Partial<DeviceTlbInvalidation>) =>
    unit.invalidateDeviceTlb({ rid: RID, pasid: NO_PASID, global: false, lo: 0, hi: 0, lg2: 64, ...what });

  it("§10.2 asks once for a page and keeps the answer", () => {
    unit.map(NO_PASID, 0x1_2345_6, 0x7000, READ_WRITE);
    for (const offset of [0, 8, 0xff8]) {
      const asked = request(0x1_2345_6000 + offset);
      expect(tlb.translate(asked)).toBe(TranslateStatus.ok);
      expect([asked.pa, asked.span]).toEqual([0x7000 + offset, PAGE - offset]);
    }
    expect(unit.translations).toBe(1);
    expect(tlb.kept).toBe(1);
  });

  it("what was granted for reading is asked again for writing; PASIDs are apart", () => {
    unit.map(NO_PASID, 1, 0x7000, Access.read);
    unit.map(5, 1, 0x8000, READ_WRITE);
    tlb.asks = false;
    expect(tlb.translate(request(0x1000))).toBe(TranslateStatus.ok);
    expect(tlb.translate(request(0x1000, Access.write))).toBe(TranslateStatus.fault);
    expect(unit.untranslated).toBe(1);
    const tagged = request(0x1000, Access.write, 5);
    expect(tlb.translate(tagged)).toBe(TranslateStatus.ok);
    expect(tagged.pa).toBe(0x8000);
  });

  it("keeps no more than it has room for", () => {
    for (let page = 0; page < 200; page++) {
      unit.map(NO_PASID, page, page * PAGE, READ_WRITE);
      tlb.translate(request(page * PAGE));
    }
    expect(tlb.kept).toBe(64);
    tlb.translate(request(199 * PAGE));
    expect(unit.translations).toBe(200);
    tlb.translate(request(0));
    expect(unit.translations).toBe(201);
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
          tlb.reset();
          for (const one of [NO_PASID, 1, 2])
            for (const at of pages) {
              unit.map(one, at, at * PAGE, READ_WRITE);
              tlb.translate(request(at * PAGE, Access.read, one));
            }
          const size = lg2 === 64 ? 8 : 2 ** (lg2 - 12);
          const first = Math.floor(page / size) * size;
          expect(forget({ pasid, global, lo: first * PAGE, lg2 })).toBe("done");
          for (const one of [NO_PASID, 1, 2])
            for (const at of pages) {
              const before = unit.translations;
              tlb.translate(request(at * PAGE, Access.read, one));
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
    expect(tlb.translate(asked)).toBe(TranslateStatus.stalled);
    expect(unit.requests).toEqual([
      { rid: RID, pasid: 3, lo: 0x5000, hi: 0, access: Access.write, group: 0, last: true },
    ]);
    unit.map(3, 5, 0x9000, READ_WRITE);
    unit.onPageResponse(RID, 3, 0, PageResponse.success);
    expect(resumed).toEqual([[asked.token, true]]);
    expect(tlb.translate(asked)).toBe(TranslateStatus.ok);
    expect(asked.pa).toBe(0x9008);
    unit.onPageResponse(RID, 3, 0, PageResponse.success);
    expect(resumed).toHaveLength(1);
  });

  it("makes the request untranslated when the page cannot be had, and asks again the next time", () => {
    const asked = request(0x5000);
    tlb.translate(asked);
    unit.onPageResponse(RID, NO_PASID, 0, PageResponse.invalid);
    expect(tlb.translate(asked)).toBe(TranslateStatus.fault);
    expect(unit.untranslated).toBe(1);
    expect(tlb.translate(asked)).toBe(TranslateStatus.stalled);
    expect(unit.requests.map(({ group }) => group)).toEqual([0, 1]);
  });

  it("takes an answer that comes at once, and does not ask for ever", () => {
    unit.answers = () => PageResponse.success;
    expect(tlb.translate(request(0x5000))).toBe(TranslateStatus.fault);
    expect(unit.requests.length).toBeGreaterThan(1);
    expect(unit.requests.length).toBeLessThan(100);
    unit.answers = ({ lo }) => {
      unit.map(NO_PASID, lo / PAGE, 0x7000, READ_WRITE);
      return PageResponse.success;
    };
    expect(tlb.translate(request(0x6000))).toBe(TranslateStatus.ok);
  });

  it("a reset forgets translations and what was asked for; so does turning it off", () => {
    unit.map(NO_PASID, 1, 0x7000, READ_WRITE);
    tlb.translate(request(0x1000));
    tlb.translate(request(0x5000));
    tlb.reset();
    expect(tlb.kept).toBe(0);
    unit.onPageResponse(RID, NO_PASID, 0, PageResponse.success);
    expect(resumed).toEqual([]);
    tlb.translate(request(0x1000));
    tlb.enabled = false;
    expect(tlb.kept).toBe(0);
  });
});
