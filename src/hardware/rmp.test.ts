/** The reverse map table against a literal one that keeps a record for every page of 4 KiB. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  describeRmp,
  describeRmpEntry,
  LARGE_LG2,
  PAGE_LG2,
  Rmp,
  RmpEntry,
  type RmpState,
  RmpStatus,
  RmpVerdict,
} from "./rmp.ts";

const PAGE = 2 ** PAGE_LG2;
const LARGE = 2 ** LARGE_LG2;
const PARTS = 512;
/** Two regions of 2 MiB. */
const BYTES = 2 * LARGE;

const privatePage = (gpa: number, more: Partial<RmpState> = {}): RmpState => ({
  assigned: true,
  lg2: PAGE_LG2,
  gpa,
  asid: 5,
  ...more,
});
const privateLarge = (gpa: number): RmpState => privatePage(gpa, { lg2: LARGE_LG2 });
const shared = (lg2 = PAGE_LG2): RmpState => ({ assigned: false, lg2, gpa: 0, asid: 0 });

describe("an instruction that changes the reverse map table", () => {
  it("makes a page a guest's, and nobody's again", () => {
    const rmp = new Rmp(BYTES);
    expect(rmp.read(0x5000)).toEqual({ entry: 0n, lg2: PAGE_LG2 });
    expect(rmp.update(0x5000, privatePage(0x9000))).toBe(RmpStatus.success);
    expect(rmp.read(0x5123)).toEqual({
      entry: RmpEntry.make({ ASSIGNED: true, GPA: 0x9000, ASID: 5 }),
      lg2: PAGE_LG2,
    });
    expect(rmp.assigned).toBe(1);
    expect(rmp.update(0x5000, shared())).toBe(RmpStatus.success);
    expect(rmp.read(0x5000).entry).toBe(0n);
    expect(rmp.assigned).toBe(0);
  });

  it("refuses what is not aligned, not covered, or of no guest there can be", () => {
    const rmp = new Rmp(BYTES);
    for (const [pa, state] of [
      [0x5001, privatePage(0)],
      [0x5000, privatePage(0x123)],
      [0x5000, privateLarge(0)],
      [0, privateLarge(0x1000)],
      [BYTES, privatePage(0)],
      [-PAGE, privatePage(0)],
      [0x5000, privatePage(2 ** 51)],
      [0x5000, privatePage(0, { asid: 1024 })],
      [0x5000, privatePage(0, { lg2: 30 })],
      [0x5000, { ...shared(), asid: 5 }],
      [0x5000, { ...shared(), immutable: true }],
    ] as const)
      expect(rmp.update(pa, state)).toBe(RmpStatus.input);
    expect(rmp.assigned).toBe(0);
  });

  it("refuses to overlap entries of another size", () => {
    const rmp = new Rmp(BYTES);
    rmp.update(0, privateLarge(0));
    expect(rmp.update(0x5000, shared())).toBe(RmpStatus.overlap);
    expect(rmp.update(0, privatePage(0))).toBe(RmpStatus.overlap);
    rmp.update(LARGE + 0x5000, privatePage(0x5000));
    expect(rmp.update(LARGE, privateLarge(0))).toBe(RmpStatus.overlap);
    expect(rmp.assigned).toBe(PARTS + 1);
  });

  it("leaves what is immutable", () => {
    const rmp = new Rmp(BYTES);
    rmp.update(0, privatePage(0, { immutable: true }));
    expect(rmp.update(0, shared())).toBe(RmpStatus.permission);
    expect(rmp.check(0, PAGE_LG2)).toBe(RmpVerdict.owner);
  });

  it("splits a large page into parts that are what it was, and joins them again", () => {
    const rmp = new Rmp(BYTES);
    rmp.update(LARGE, privateLarge(2 * LARGE));
    rmp.validate(LARGE, LARGE_LG2, true);
    const whole = rmp.read(LARGE);
    expect(rmp.smash(LARGE + PAGE)).toBe(RmpStatus.input);
    expect(rmp.smash(LARGE)).toBe(RmpStatus.success);
    expect(rmp.smash(LARGE)).toBe(RmpStatus.input);
    expect(rmp.read(LARGE + 7 * PAGE)).toEqual({
      entry: RmpEntry.make({ ASSIGNED: true, GPA: 2 * LARGE + 7 * PAGE, ASID: 5, VALIDATED: true }),
      lg2: PAGE_LG2,
    });
    expect(rmp.unsmash(LARGE)).toBe(RmpStatus.success);
    expect(rmp.read(LARGE + 7 * PAGE)).toEqual(whole);
  });

  it("joins nothing that is not one page in every respect", () => {
    const rmp = new Rmp(BYTES);
    expect(rmp.unsmash(0)).toBe(RmpStatus.input);
    rmp.update(0, privateLarge(0));
    expect(rmp.unsmash(0)).toBe(RmpStatus.input);
    rmp.smash(0);
    expect(rmp.unsmash(PAGE)).toBe(RmpStatus.input);
    rmp.update(9 * PAGE, privatePage(0x12_3000));
    expect(rmp.unsmash(0)).toBe(RmpStatus.input);
    rmp.update(9 * PAGE, shared());
    expect(rmp.unsmash(0)).toBe(RmpStatus.input);
  });

  it("is accepted by the guest in the size that it has, until it changes", () => {
    const rmp = new Rmp(BYTES);
    expect(rmp.validate(0, PAGE_LG2, true)).toBe(RmpStatus.input);
    rmp.update(0, privateLarge(0));
    expect(rmp.validate(PAGE, PAGE_LG2, true)).toBe(RmpStatus.sizeMismatch);
    expect(rmp.validate(0, LARGE_LG2, true)).toBe(RmpStatus.success);
    expect(RmpEntry.fields.VALIDATED.of(rmp.read(0).entry)).toBe(1n);
    rmp.update(0, privateLarge(LARGE));
    expect(RmpEntry.fields.VALIDATED.of(rmp.read(0).entry)).toBe(0n);
  });
});

describe("an access that is checked", () => {
  it("may not be to a guest's page, through whatever maps it", () => {
    const rmp = new Rmp(BYTES);
    rmp.update(0x5000, privatePage(0));
    for (const lg2 of [12, 16, 21, 30]) expect(rmp.check(0x5fff, lg2)).toBe(RmpVerdict.owner);
    expect(describeRmp(rmp, 0x5000, 12)).toBe(
      "host page 0x5000 is private to the guest with ASID 5, at its 0x0, in a page of 4 KiB",
    );
  });

  it("may not be through a large leaf where entries are small; what is smaller is checked page by page", () => {
    const rmp = new Rmp(BYTES);
    rmp.update(0x5000, privatePage(0));
    expect([12, 16, 20].map((lg2) => rmp.check(0x6000, lg2))).toEqual([0, 0, 0]);
    expect([21, 30].map((lg2) => rmp.check(0x6000, lg2))).toEqual([RmpVerdict.size, RmpVerdict.size]);
    expect(rmp.check(LARGE, 30)).toBe(RmpVerdict.ok);
    expect(describeRmp(rmp, 0x6000, 30)).toMatch(/size mismatch.*maps 1 GiB at once.*has 1 pages of 4 KiB/);
    rmp.update(0x5000, shared());
    expect(rmp.check(0x6000, 21)).toBe(RmpVerdict.ok);
    expect(describeRmp(rmp, 0x6000, 21)).toMatch(/may be reached/);
  });

  it("fails where the entry cannot be read, and speaks for no more than a page then", () => {
    const rmp = new Rmp(BYTES);
    expect(rmp.grain(0)).toBe(LARGE_LG2);
    rmp.poison(0x7123);
    expect(rmp.check(0x7000, 12)).toBe(RmpVerdict.unreadable);
    expect(rmp.check(0x8000, 12)).toBe(RmpVerdict.ok);
    expect(rmp.grain(LARGE)).toBe(PAGE_LG2);
    expect(describeRmp(rmp, 0x7000, 12)).toMatch(/entry of host page 0x7000 cannot be read/);
  });

  it("is never to a guest's page beyond what the table covers", () => {
    const rmp = new Rmp(BYTES);
    expect(rmp.check(2 ** 45, 21)).toBe(RmpVerdict.ok);
    expect(rmp.assignedAround(2 ** 45)).toBe(0);
  });

  it("is told when something came to be a guest's, and only then", () => {
    const rmp = new Rmp(BYTES);
    let told = 0;
    rmp.onAssigned.add(() => (told += 1));
    rmp.update(0, privateLarge(0));
    expect(told).toBe(1);
    rmp.smash(0);
    rmp.update(0, shared());
    rmp.update(0x1001, privatePage(0));
    expect(told).toBe(1);
    rmp.poison(0);
    expect(told).toBe(2);
  });
});

it("says whose an entry is", () => {
  const rmp = new Rmp(BYTES);
  expect(describeRmpEntry(rmp.read(0))).toBe("shared with the host, in a page of 4 KiB");
  rmp.update(0, privatePage(0, { asid: 0, immutable: true }));
  expect(describeRmpEntry(rmp.read(0))).toMatch(/^the firmware's/);
});

/** What a page of 4 KiB is; `large`: as part of one of 2 MiB. */
interface Literal {
  readonly gpa: number;
  readonly asid: number;
  readonly large: boolean;
  readonly validated: boolean;
  readonly immutable: boolean;
}

/** The table, page by page. */
class LiteralRmp {
  readonly pages = new Map<number, Literal>();

  region(page: number): number[] {
    const first = page - (page % PARTS);
    return Array.from({ length: PARTS }, (_, part) => first + part);
  }
  update(page: number, { assigned, lg2, gpa, asid, immutable = false }: RmpState): RmpStatus {
    const large = lg2 === LARGE_LG2;
    if ((large && page % PARTS !== 0) || gpa % 2 ** lg2 !== 0) return RmpStatus.input;
    const around = this.region(page).map((at) => this.pages.get(at));
    if (around.some((one) => one && one.large !== large)) return RmpStatus.overlap;
    if (this.pages.get(page)?.immutable) return RmpStatus.permission;
    for (let part = 0; part < (large ? PARTS : 1); part++)
      if (assigned)
        this.pages.set(page + part, { gpa: gpa + part * PAGE, asid, large, validated: false, immutable });
      else this.pages.delete(page + part);
    return RmpStatus.success;
  }
  smash(page: number): RmpStatus {
    if (page % PARTS !== 0 || !this.pages.get(page)?.large) return RmpStatus.input;
    for (const at of this.region(page)) this.pages.set(at, { ...this.pages.get(at)!, large: false });
    return RmpStatus.success;
  }
  unsmash(page: number): RmpStatus {
    const first = this.pages.get(page);
    if (page % PARTS !== 0 || !first || first.large || first.gpa % LARGE !== 0) return RmpStatus.input;
    const parts = this.region(page).map((at) => this.pages.get(at));
    const alike = parts.every(
      (part, index) =>
        part &&
        part.gpa === first.gpa + index * PAGE &&
        part.asid === first.asid &&
        part.validated === first.validated &&
        part.immutable === first.immutable,
    );
    if (!alike) return RmpStatus.input;
    for (const at of this.region(page)) this.pages.set(at, { ...this.pages.get(at)!, large: true });
    return RmpStatus.success;
  }
  validate(page: number, lg2: number, validated: boolean): RmpStatus {
    const found = this.pages.get(page);
    const large = lg2 === LARGE_LG2;
    if ((large && page % PARTS !== 0) || !found) return RmpStatus.input;
    if (found.large !== large) return RmpStatus.sizeMismatch;
    const pages = large ? this.region(page) : [page];
    for (const at of pages) this.pages.set(at, { ...this.pages.get(at)!, validated });
    return RmpStatus.success;
  }
  check(page: number, lg2: number): RmpVerdict {
    if (this.pages.has(page)) return RmpVerdict.owner;
    const around = this.region(page).some((at) => this.pages.has(at));
    return around && lg2 >= LARGE_LG2 ? RmpVerdict.size : RmpVerdict.ok;
  }
}

const sizes = fc.constantFrom(PAGE_LG2, LARGE_LG2);
/** Mostly the first pages of a region, so that things meet. */
const pages = fc
  .tuple(fc.constantFrom(0, PARTS), fc.oneof(fc.constant(0), fc.nat(3), fc.nat(PARTS - 1)))
  .map(([region, part]) => region + part);
const steps = fc.oneof(
  fc.record({
    what: fc.constant("update" as const),
    page: pages,
    state: fc
      .record({
        assigned: fc.boolean(),
        lg2: sizes,
        part: fc.constantFrom(0, 1, PARTS),
        asid: fc.constantFrom(1, 2),
        immutable: fc.integer({ min: 0, max: 19 }).map((drawn) => drawn === 0),
      })
      .map(({ assigned, lg2, part, asid, immutable }) =>
        assigned ? { assigned, lg2, gpa: part * PAGE, asid, immutable } : shared(lg2),
      ),
  }),
  fc.record({ what: fc.constantFrom("smash" as const, "unsmash" as const), page: pages }),
  // All parts of a region, one by one: what can be joined.
  fc.record({ what: fc.constant("fill" as const), page: fc.constantFrom(0, PARTS) }),
  fc.record({ what: fc.constant("validate" as const), page: pages, lg2: sizes, validated: fc.boolean() }),
);

it("does what a literal table does, for any instructions", () => {
  fc.assert(
    fc.property(fc.array(steps, { maxLength: 30 }), (program) => {
      const rmp = new Rmp(BYTES);
      const literal = new LiteralRmp();
      for (const step of program) {
        const pa = step.page * PAGE;
        if (step.what === "update")
          expect(rmp.update(pa, step.state)).toBe(literal.update(step.page, step.state));
        else if (step.what === "validate")
          expect(rmp.validate(pa, step.lg2, step.validated)).toBe(
            literal.validate(step.page, step.lg2, step.validated),
          );
        else if (step.what === "fill")
          for (let part = 0; part < PARTS; part++) {
            const state = privatePage(part * PAGE);
            expect(rmp.update(pa + part * PAGE, state)).toBe(literal.update(step.page + part, state));
          }
        else expect(rmp[step.what](pa)).toBe(literal[step.what](step.page));
      }
      expect(rmp.assigned).toBe(literal.pages.size);
      for (const page of [0, 1, 2, 3, 77, 511, 512, 513, 1023]) {
        const found = literal.pages.get(page);
        const { entry, lg2 } = rmp.read(page * PAGE);
        expect(lg2 === LARGE_LG2).toBe(found?.large ?? false);
        expect(RmpEntry.fields.ASSIGNED.of(entry) === 1n).toBe(found !== undefined);
        if (found && !found.large) expect(Number(RmpEntry.fields.GPA.of(entry))).toBe(found.gpa);
        if (found) expect(RmpEntry.fields.VALIDATED.of(entry) === 1n).toBe(found.validated);
        for (const leaf of [12, 15, 21, 30])
          expect(rmp.check(page * PAGE + 9, leaf)).toBe(literal.check(page, leaf));
      }
    }),
    { numRuns: 100 },
  );
});
