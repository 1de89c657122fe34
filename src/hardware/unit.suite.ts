/**
 * What any IOMMU unit must satisfy, whatever its registers and tables look like: answers in the transaction's result
 * registers, spans that are true, `explain` without effect and in agreement with `translate`, events for who listens,
 * and no register write, memory content or request that makes it throw or hang.
 */
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../base/clock.ts";
import type { EventFields, EventKind, EventSink } from "../base/events.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import type { ExplainStep } from "../pagetable/step.ts";
import type { Layout } from "../uapi/layout.ts";
import { Access, type IommuUnit, NO_PASID, Transaction, TranslateStatus } from "./unit.ts";

/** A listener that keeps what it is told. */
export class EventLog implements EventSink {
  on = true;
  readonly seen: { readonly kind: EventKind; readonly fields: EventFields }[] = [];
  emit(kind: EventKind, fields: EventFields): void {
    this.seen.push({ kind, fields });
  }
  of(kind: EventKind): EventFields[] {
    return this.seen.filter((event) => event.kind === kind).map((event) => event.fields);
  }
}

/** A unit with what the suite needs to make it translate. */
export interface UnitUnderTest {
  readonly unit: IommuUnit;
  readonly memory: HostMemory;
  readonly events: EventLog;
  /** Bytes of the register file. */
  readonly registerBytes: number;
  /** Maps 2^lg2 bytes for a requester; `access` is what is allowed. Both addresses are multiples of 2^lg2. */
  map(rid: number, iova: number, pa: number, lg2: number, access: number): void;
  /** Gives the unit its tables and turns translation on. */
  enable(): void;
  /** Page sizes it can map. */
  readonly pageLg2s: readonly number[];
}

const RID = 0x18;
const WORD = 0x1_0000_0000;
const readWrite = Access.read | Access.write;

export const request = (rid: number, iova: number, access: number): Transaction => {
  const transaction = new Transaction();
  transaction.rid = rid;
  transaction.lo = iova % WORD;
  transaction.hi = Math.floor(iova / WORD);
  transaction.access = access;
  return transaction;
};

/** The last step's outcome. */
export const outcomeOf = (steps: Iterable<ExplainStep>): NonNullable<ExplainStep["outcome"]> => {
  const all = [...steps];
  expect(all.slice(0, -1).every((step) => step.outcome === undefined)).toBe(true);
  return all.at(-1)!.outcome!;
};

/** What `translate` did, in the form of an outcome. */
export const answer = (unit: IommuUnit, transaction: Transaction) => {
  const ok = unit.translate(transaction) === TranslateStatus.ok;
  const { pa, span, fault } = transaction;
  return ok ? { ok, pa, span } : { ok, code: fault };
};

/** A request of a PASID, at any address of 64 bits. */
export const requestOf = (
  rid: number,
  iova: number | bigint,
  access: number,
  pasid = NO_PASID,
): Transaction => {
  const transaction = request(rid, 0, access);
  transaction.lo = Number(BigInt(iova) & 0xffff_ffffn);
  transaction.hi = Number(BigInt(iova) >> 32n);
  transaction.pasid = pasid;
  return transaction;
};

/** What a read, or other access, of a requester does. */
export const access = (
  { unit }: Pick<UnitUnderTest, "unit">,
  rid: number,
  iova: number | bigint,
  what: number = Access.read,
  pasid = NO_PASID,
) => answer(unit, requestOf(rid, iova, what, pasid));

/** The fields of an entry or record that are not 0. */
export const decoded = (layout: Layout, value: bigint): Record<string, bigint> =>
  Object.fromEntries(
    layout
      .decode(value)
      .filter((field) => field.value !== 0n)
      .map((field) => [field.name, field.value]),
  );

export const explained = (unit: IommuUnit, transaction: Transaction) => {
  const outcome = outcomeOf(unit.explain(transaction));
  return outcome.ok ? outcome : { ok: false, code: outcome.code };
};

const registers = ({ unit, registerBytes }: UnitUnderTest): string => {
  let text = "";
  for (let offset = 0; offset < registerBytes; offset += 4) text += `${unit.mmioRead(offset, 4)},`;
  return text;
};

export const unitSuite = (name: string, make: () => UnitUnderTest): void => {
  describe(`${name} as an IOMMU unit`, () => {
    it("passes requests untranslated until translation is enabled", () => {
      const { unit } = make();
      const transaction = request(RID, 0x1234_5678, Access.read);
      expect(unit.translate(transaction)).toBe(TranslateStatus.ok);
      expect(transaction.pa).toBe(0x1234_5678);
      expect(transaction.span).toBeGreaterThan(0);
    });

    it("answers in the result registers, whether address words are signed or not", () => {
      const subject = make();
      subject.map(RID, 0x9_8765_4000, 0x40_0000, 12, readWrite);
      subject.enable();
      const transaction = request(RID, 0x9_8765_4abc, Access.write);
      for (const lo of [transaction.lo, transaction.lo | 0]) {
        transaction.lo = lo;
        expect(answer(subject.unit, transaction)).toEqual({ ok: true, pa: 0x40_0abc, span: 0x544 });
      }
    });

    it("the span is exactly what is left of the page", () => {
      for (const lg2 of make().pageLg2s) {
        const subject = make();
        const iova = 0x1_4000_0000;
        const pa = 0x1_8000_0000;
        subject.map(RID, iova, pa, lg2, readWrite);
        subject.enable();
        for (const offset of [0, 1, 0xfff, 2 ** lg2 - 1, 2 ** lg2 / 2]) {
          const found = answer(subject.unit, request(RID, iova + offset, Access.read));
          expect(found).toEqual({ ok: true, pa: pa + offset, span: 2 ** lg2 - offset });
        }
        expect(answer(subject.unit, request(RID, iova + 2 ** lg2, Access.read)).ok).toBe(false);
      }
    });

    it("refuses what the tables do not allow, and tells a listener who, where and why", () => {
      const subject = make();
      subject.map(RID, 0x5000, 0x40_0000, 12, Access.read);
      subject.enable();
      const { unit, events } = subject;
      expect(answer(unit, request(RID, 0x5000, Access.read)).ok).toBe(true);
      const transaction = request(RID, 0x5004, Access.write);
      expect(unit.translate(transaction)).toBe(TranslateStatus.fault);
      const [fault] = events.of("fault");
      expect(fault).toMatchObject({
        unit: unit.name,
        rid: RID,
        address: 0x5004n,
        access: Access.write,
        code: transaction.fault,
      });
      expect(fault!["reason"]).toMatch(/§/);
    });

    it("says nothing when nobody listens", () => {
      const subject = make();
      subject.enable();
      subject.events.on = false;
      const before = subject.events.seen.length;
      answer(subject.unit, request(RID, 0x5000, Access.write));
      subject.unit.mmioWrite(0x40, 4, 0n);
      expect(subject.events.seen.length).toBe(before);
    });

    it("keeps requesters apart", () => {
      const subject = make();
      subject.map(RID, 0x5000, 0x40_0000, 12, readWrite);
      subject.map(RID + 1, 0x5000, 0x41_0000, 12, readWrite);
      subject.enable();
      for (let round = 0; round < 2; round++)
        for (const [rid, pa] of [
          [RID, 0x40_0000],
          [RID + 1, 0x41_0000],
        ] as const)
          expect(answer(subject.unit, request(rid, 0x5000, Access.read))).toMatchObject({ pa });
      expect(answer(subject.unit, request(RID + 2, 0x5000, Access.read)).ok).toBe(false);
    });

    it("explains what it does: the same outcome, without any effect", () => {
      fc.assert(
        fc.property(
          fc.array(fc.tuple(fc.nat(15), fc.nat(3), fc.nat(4)), { maxLength: 12 }),
          fc.array(fc.tuple(fc.nat(17), fc.nat(0xfff), fc.boolean(), fc.nat(1)), { maxLength: 12 }),
          (maps, accesses) => {
            const subject = make();
            const pages = new Set<number>();
            for (const [page, allowed, target] of maps)
              if (!pages.has(page) && pages.add(page))
                subject.map(RID, page * 0x1000, (0x400 + target) * 0x1000, 12, allowed);
            subject.enable();
            for (const [page, offset, write, device] of accesses) {
              const access = write ? Access.write : Access.read;
              const transaction = request(RID + device, page * 0x1000 + offset, access);
              const before = registers(subject);
              const told = subject.events.seen.length;
              const first = explained(subject.unit, transaction);
              expect(explained(subject.unit, transaction)).toEqual(first);
              expect(registers(subject)).toBe(before);
              expect(subject.events.seen.length).toBe(told);
              expect(answer(subject.unit, transaction)).toEqual(first);
            }
          },
        ),
        { numRuns: 60 },
      );
    });

    it("explains every entry it fetched with its address, value and fields", () => {
      const subject = make();
      subject.map(RID, 0x5000, 0x40_0000, 12, readWrite);
      subject.enable();
      const steps = [...subject.unit.explain(request(RID, 0x5678, Access.read))];
      const fetched = steps.filter((step) => step.address !== undefined);
      expect(fetched.length).toBeGreaterThan(2);
      for (const step of fetched) {
        expect(step.value).toBeTypeOf("bigint");
        expect(step.fields!.length).toBeGreaterThan(0);
        expect(step.note).toBeTruthy();
      }
    });

    it("is as after power-on when it was reset", () => {
      const subject = make();
      const fresh = registers(make());
      subject.map(RID, 0x5000, 0x40_0000, 12, readWrite);
      subject.enable();
      answer(subject.unit, request(RID, 0x5000, Access.read));
      answer(subject.unit, request(RID, 0x6000, Access.read));
      subject.unit.reset();
      expect(registers(subject)).toBe(fresh);
      expect(answer(subject.unit, request(RID, 0x5000, Access.read))).toMatchObject({ pa: 0x5000 });
    });

    it("an access to a register that is not there reads 0 and changes nothing", () => {
      const subject = make();
      const { unit, registerBytes } = subject;
      const before = registers(subject);
      for (const offset of [-8, -4, registerBytes, registerBytes + 4, 2 ** 40, 2, 5, 0.5, Number.NaN]) {
        unit.mmioWrite(offset, 4, 0xffff_ffffn);
        expect(unit.mmioRead(offset, 4)).toBe(0n);
        expect(unit.mmioRead(offset, 8)).toBe(0n);
      }
      expect(registers(subject)).toBe(before);
    });

    it("survives any register writes, table contents and requests", () => {
      fc.assert(
        fc.property(fc.nat(), (seed) => {
          const subject = make();
          const random = new Random(seed);
          subject.map(RID, 0x5000, 0x40_0000, 12, readWrite);
          if (random.below(2)) subject.enable();
          const frames = Array.from({ length: 4 }, () => subject.memory.allocate(1));
          const word = () =>
            random.below(3) ? random.next() : (random.next() & 0xfff) | frames[random.below(4)]!;
          for (let step = 0; step < 60; step++) {
            const frame = frames[random.below(4)]!;
            const where = random.below(512) * 8;
            subject.memory.store64(frame + where, word(), random.below(3) ? 0 : random.next());
            const offset = random.below(3)
              ? random.below(64) * 4
              : random.below(subject.registerBytes / 4) * 4;
            const value = (BigInt(random.below(2) ? random.next() : 0) << 32n) | BigInt(word());
            subject.unit.mmioWrite(offset, random.below(2) ? 4 : 8, value);
            const transaction = request(random.next() & 0xffff, 0, random.below(32));
            transaction.lo = word();
            transaction.hi = random.below(2) ? 0 : random.next();
            transaction.pasid = random.below(4) ? -1 : random.below(0x10_0000);
            const told = explained(subject.unit, transaction);
            expect(answer(subject.unit, transaction)).toEqual(told);
            if (transaction.fault === 0 && told.ok) expect(transaction.span).toBeGreaterThan(0);
          }
        }),
        { numRuns: 150 },
      );
    });
  });
};
