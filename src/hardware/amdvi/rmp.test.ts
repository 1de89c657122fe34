/** Secure nested paging: what the reverse map table keeps from devices, and from the unit itself. */
import { describe, expect, it } from "vitest";
import { Rmp, type RmpState } from "../rmp.ts";
import { access, answer, requestOf } from "../unit.suite.ts";
import { Access, NO_PASID, TranslateStatus } from "../unit.ts";
import { EventCode } from "./queue-spec.ts";
import { AmdViRig, type RigOptions, readWrite, wait } from "./rig.suite.ts";
import { Register, Status } from "./spec.ts";

const RID = 0x18;
const PAGE = 0x1000;
const LARGE = 0x20_0000;
/** Two large pages of host memory. */
const HOST = 0x4000_0000;
const IOVA = 0x1_0000_0000;

const guests = (gpa: number, lg2 = 12): RmpState => ({ assigned: true, lg2, gpa, asid: 3 });
const shared: RmpState = { assigned: false, lg2: 12, gpa: 0, asid: 0 };

const rigWith = (options: RigOptions = {}) => {
  const rmp = new Rmp(0x8_0000_0000);
  return { rmp, rig: new AmdViRig({ ...options, rmp }) };
};

const codes = (rig: AmdViRig): bigint[] => rig.takeEvents().map((event) => event["CODE"]!);
const RMP_FAULT = BigInt(EventCode.RMP_PAGE_FAULT);
const RMP_ERROR = BigInt(EventCode.RMP_HARDWARE_ERROR);
const reasonsOf = (rig: AmdViRig): string[] => rig.events.of("fault").map(({ reason }) => String(reason));

describe("an access of a device", () => {
  it("that was let through is refused from when the page is a guest's, with event 0xd", () => {
    const { rig, rmp } = rigWith();
    rig.map(RID, IOVA, HOST, 12, readWrite);
    rig.enable();
    expect(access(rig, RID, IOVA)).toMatchObject({ ok: true, pa: HOST });
    rmp.update(HOST, guests(0));
    expect(access(rig, RID, IOVA, Access.write)).toMatchObject({ ok: false });
    expect(rig.takeEvents()).toEqual([{ CODE: 0xdn, DEVICE: BigInt(RID), RW: 1n, ADDRESS: BigInt(IOVA) }]);
    expect(reasonsOf(rig)).toEqual([
      expect.stringMatching(/RMP_PAGE_FAULT.*host page 0x40000000 is private to the guest with ASID 3/),
    ]);
    rmp.update(HOST, shared);
    expect(access(rig, RID, IOVA)).toMatchObject({ ok: true });
  });

  it("through a large leaf is refused where the table has small pages, shared or not", () => {
    const { rig, rmp } = rigWith();
    rig.map(RID, IOVA, HOST, 21, readWrite);
    rig.map(RID, IOVA + LARGE, HOST, 12, readWrite);
    rig.enable();
    rmp.update(HOST, guests(0, 21));
    expect(access(rig, RID, IOVA).ok).toBe(false);
    rmp.smash(HOST);
    rmp.update(HOST, shared);
    expect(access(rig, RID, IOVA).ok).toBe(false);
    expect(access(rig, RID, IOVA + LARGE)).toMatchObject({ ok: true, pa: HOST });
    expect(codes(rig)).toEqual([RMP_FAULT, RMP_FAULT]);
    expect(reasonsOf(rig)[1]).toMatch(
      /size mismatch: host page 0x40000000 is shared, but the leaf maps 2 MiB at once, and .* 511 pages of 4 KiB/,
    );
    // Nothing of it a guest's any more: how the entries came about does not matter.
    for (let page = 1; page < 512; page++) rmp.update(HOST + page * PAGE, shared);
    expect(access(rig, RID, IOVA + 5).ok).toBe(true);
  });

  it("goes as far as was checked: to the end of the 2 MiB, or of the page where others are a guest's", () => {
    const { rig, rmp } = rigWith();
    rig.map(RID, 0, HOST, 30, readWrite);
    rig.map(RID, IOVA, HOST, 14, readWrite);
    rig.enable();
    rmp.update(HOST + 2 * PAGE, guests(0));
    expect(access(rig, RID, LARGE + 0x10)).toMatchObject({ pa: HOST + LARGE + 0x10, span: LARGE - 0x10 });
    expect(access(rig, RID, IOVA + 0x10)).toMatchObject({ pa: HOST + 0x10, span: PAGE - 0x10 });
    expect(access(rig, RID, 0x10).ok).toBe(false);
    expect(access(rig, RID, IOVA + 2 * PAGE).ok).toBe(false);
    expect(access(rig, RID, IOVA + 3 * PAGE).ok).toBe(true);
  });

  it("is checked where nothing translates it: no tables, no valid entry, translated before", () => {
    const { rig, rmp } = rigWith();
    rmp.update(HOST, guests(0));
    rig.dte(1, { MODE: 0 });
    rig.dte(2, { V: false, TV: false });
    rig.dte(3, { MODE: 4, HOST_TRP: rig.memory.allocate(1), I: true });
    rig.enable();
    for (const rid of [1, 2]) {
      expect(access(rig, rid, HOST).ok).toBe(false);
      expect(access(rig, rid, HOST + PAGE)).toMatchObject({ pa: HOST + PAGE, span: PAGE });
      expect(access(rig, rid, HOST + LARGE)).toMatchObject({ span: LARGE });
    }
    const translated = requestOf(3, HOST, Access.read);
    translated.translated = true;
    expect(rig.unit.translate(translated)).toBe(TranslateStatus.fault);
    expect(codes(rig)).toEqual([RMP_FAULT, RMP_FAULT, RMP_FAULT]);
  });

  it("is checked while translation is off, and explained so", () => {
    const { rig, rmp } = rigWith();
    rmp.update(HOST, guests(0));
    for (const [pa, ok] of [
      [HOST, false],
      [HOST + PAGE, true],
      [HOST + LARGE, true],
    ] as const) {
      const found = access(rig, RID, pa);
      expect(found.ok).toBe(ok);
      const told = [...rig.unit.explain(requestOf(RID, pa, Access.read))].at(-1)!;
      expect(told.outcome).toMatchObject(found);
    }
    expect(reasonsOf(rig)).toEqual([expect.stringContaining("host page 0x40000000 is private")]);
  });

  it("is not granted to a device that asks for the translation", () => {
    const { rig, rmp } = rigWith();
    rig.map(RID, IOVA, HOST, 12, readWrite);
    rig.dte(RID, { MODE: 4, HOST_TRP: rig.domain(RID).host, DOMAIN: 1, I: true });
    rig.enable();
    const asked = requestOf(RID, IOVA, readWrite);
    expect(rig.unit.requestTranslation(asked)).toBe(TranslateStatus.ok);
    expect(asked.granted & readWrite).toBe(readWrite);
    rmp.update(HOST, guests(0));
    expect(rig.unit.requestTranslation(asked)).toBe(TranslateStatus.fault);
    expect(asked.granted).toBe(0);
  });

  it("fails with event 0xe where the entry cannot be read", () => {
    const { rig, rmp } = rigWith();
    rig.map(RID, IOVA, HOST, 12, readWrite);
    rig.enable();
    rmp.poison(HOST);
    expect(access(rig, RID, IOVA).ok).toBe(false);
    expect(codes(rig)).toEqual([RMP_ERROR]);
  });
});

describe("what the unit itself reads", () => {
  it("is checked: the device table, and every table of the host and of guests on the way", () => {
    for (const [stages, tables] of [
      ["host", 4],
      ["guest", 5],
      // The tables of the host are large pages where all memory is where it is: the two upper levels.
      ["nested", 7],
    ] as const) {
      const { rig, rmp } = rigWith({ stages, cache: "none" });
      rig.map(RID, IOVA, HOST, 12, readWrite);
      rig.enable();
      const { host, guest } = rig.domain(RID);
      const kept: number[] = [];
      const last = rig.memory.allocate(1);
      for (let page = rig.deviceTable; page < last; page += PAGE) {
        if (page === rig.eventLog) continue;
        rmp.update(page, guests(0));
        if (!access(rig, RID, IOVA).ok) {
          kept.push(page);
          expect(codes(rig)).toEqual([RMP_FAULT]);
          expect(reasonsOf(rig).at(-1)).toContain(`0x${page.toString(16)} is private to the guest`);
        }
        rmp.update(page, shared);
      }
      expect(kept).toHaveLength(1 + tables);
      const roots = { host: [host], guest: [rig.gcr3Of(RID), guest], nested: [host, rig.gcr3Of(RID), guest] };
      expect(kept).toEqual(expect.arrayContaining([rig.deviceTable, ...roots[stages]]));
      expect(access(rig, RID, IOVA).ok).toBe(true);
    }
  });

  it("and writes: accessed and dirty bits of a guest's tables, a completion, the PPR log", () => {
    const { rig, rmp } = rigWith({ stages: "nested" });
    rig.map(RID, IOVA, HOST, 12, readWrite);
    const { host, guest } = rig.domain(RID);
    const dte = { MODE: rig.mode, HOST_TRP: host, ...rig.gcr3Fields(rig.gcr3Of(RID)), GIOV: true };
    rig.dte(RID, { ...dte, DOMAIN: 1, I: true, PPR: true });
    rig.enable({ PPR_EN: true, PPR_LOG_EN: true });
    expect(access(rig, RID, IOVA).ok).toBe(true);
    const leaf = rig.entryAddress(guest, 4, IOVA, 1, () => 0n);
    const completion = rig.memory.allocate(1);
    for (const page of [leaf - (leaf % PAGE), completion, rig.pprLog]) rmp.update(page, guests(0));
    const before = rig.load64(leaf);
    expect(access(rig, RID, IOVA, Access.write).ok).toBe(false);
    expect(rig.load64(leaf)).toBe(before);
    rig.submit(wait({ S: true, ADDRESS: completion, DATA: 7n }));
    expect(rig.load64(completion)).toBe(0n);
    expect(codes(rig)).toEqual([RMP_FAULT, BigInt(EventCode.COMMAND_HARDWARE_ERROR)]);
    const { lo, hi } = requestOf(RID, IOVA, Access.read);
    const asked = { rid: RID, pasid: NO_PASID, lo, hi, access: Access.read, group: 1, last: true };
    rig.unit.requestPage(asked);
    expect([rig.read(Register.PPRLOG_TAIL), rig.load64(rig.pprLog)]).toEqual([0, 0n]);
    rmp.update(rig.pprLog, shared);
    rig.unit.requestPage(asked);
    expect(rig.takePageRequests()).toHaveLength(1);
  });

  it("stops a command buffer that is a guest's, and loses an event log's entries", () => {
    const { rig, rmp } = rigWith();
    rig.enable();
    rmp.update(rig.commands, guests(0));
    rig.submit(wait());
    expect(codes(rig)).toEqual([BigInt(EventCode.COMMAND_HARDWARE_ERROR)]);
    expect(rig.read(Register.STATUS) & Status.CMD_BUF_RUN).toBe(0);
    rmp.update(rig.eventLog, guests(0));
    access(rig, RID, IOVA);
    rmp.update(rig.eventLog, shared);
    expect(codes(rig).every((code) => code !== BigInt(EventCode.IO_PAGE_FAULT))).toBe(true);
  });
});

describe("an explanation", () => {
  it("has the leaf and the table's entry side by side, and agrees with the unit", () => {
    const { rig, rmp } = rigWith();
    rig.map(RID, IOVA, HOST, 21, readWrite);
    rig.enable();
    rmp.update(HOST, guests(0, 21));
    rmp.smash(HOST);
    rmp.update(HOST, shared);
    for (const iova of [IOVA, IOVA + PAGE, IOVA + LARGE]) {
      const steps = [...rig.unit.explain(requestOf(RID, iova, Access.read))];
      const { outcome } = steps.at(-1)!;
      const found = answer(rig.unit, requestOf(RID, iova, Access.read));
      expect(outcome).toMatchObject({ ok: false, code: found.code });
    }
    const told = [...rig.unit.explain(requestOf(RID, IOVA + PAGE, Access.read))].slice(-3);
    expect(told.map(({ what }) => what)).toEqual(["PDE2", "RMP entry of host page 0x40001000", "outcome"]);
    expect(told[1]!.note).toBe("private to the guest with ASID 3, at its 0x1000, in a page of 4 KiB");
  });

  it("says of a table that it is a guest's, and of a page that may be reached how far", () => {
    const { rig, rmp } = rigWith();
    rig.map(RID, IOVA, HOST, 21, readWrite);
    rig.enable();
    const reached = [...rig.unit.explain(requestOf(RID, IOVA, Access.read))].at(-1)!;
    expect(reached.outcome).toMatchObject({ ok: true, pa: HOST, span: LARGE });
    rmp.update(rig.domain(RID).host, guests(0));
    const refused = [...rig.unit.explain(requestOf(RID, IOVA, Access.read))].at(-1)!;
    expect(refused.outcome).toMatchObject({ ok: false, code: EventCode.RMP_PAGE_FAULT });
  });
});
