import { describe, expect, it } from "vitest";
import { type PageRequest, PageResponse } from "../ats.ts";
import { access, requestOf } from "../unit.suite.ts";
import { Access, NO_PASID, TranslateStatus } from "../unit.ts";
import { EventCode, PageRequestRecord } from "./queue-spec.ts";
import { readWrite, SmmuRig, type SteFields } from "./rig.suite.ts";
import { Config, Cr0, Gerror, Register } from "./spec.ts";

const RID = 0x18;
const { read, write } = Access;
const ON = Cr0.SMMUEN | Cr0.EVENTQEN | Cr0.CMDQEN;

/** A stream under both stages with page 5 mapped, and ATS as EATS says. */
const nested = (ste: SteFields, cr0: number = ON | Cr0.ATSCHK) => {
  const rig = new SmmuRig({ stages: "nested", capabilities: { ats: true, pri: true, updates: "dirty" } });
  const ipa = 0x40_0000_0000;
  const { stage2 } = rig.stream(RID);
  rig.mapStage2(stage2, ipa, 0x7000_0000, 12, readWrite);
  rig.map(RID, 0x5000, ipa, 12, readWrite);
  const contexts = rig.load64(rig.streams + RID * 64) & 0xf_ffff_ffff_ffc0n;
  rig.ste(RID, { CONFIG: Config.nested, S1CONTEXTPTR: contexts, ...rig.stage2Fields(stage2, 1), ...ste });
  rig.enable(cr0);
  return { rig, ipa };
};
const ask = (rig: SmmuRig, iova: number, what: number) => {
  const transaction = requestOf(RID, iova, what);
  const status = rig.unit.requestTranslation(transaction);
  const { pa, span, granted, fault } = transaction;
  return status === TranslateStatus.ok ? { pa, span, granted } : { fault };
};
const translated = (rig: SmmuRig, address: number) => {
  const transaction = requestOf(RID, address, read);
  transaction.translated = true;
  const ok = rig.unit.translate(transaction) === TranslateStatus.ok;
  const last = [...rig.unit.explain(transaction)].at(-1)!.outcome!;
  expect(last.ok).toBe(ok);
  return ok ? transaction.pa : -transaction.fault;
};

describe("§3.9.1 translation requests", () => {
  it("grant what the tables do; what software can mend grants nothing and is no event", () => {
    const { rig } = nested({ EATS: 1 });
    const everything = read | write | Access.execute;
    expect(ask(rig, 0x5123, readWrite)).toEqual({ pa: 0x7000_0123, span: 0xedd, granted: everything });
    expect(ask(rig, 0x6000, readWrite)).toEqual({ pa: 0, span: 0x1000, granted: 0 });
    const { stage1 } = rig.stream(RID);
    rig.mapStage1(stage1, 0x6000, 0x40_0000_0000, 12, read);
    expect(ask(rig, 0x6000, readWrite)).toMatchObject({ pa: 0x7000_0000, granted: read | Access.execute });
    expect(rig.takeEvents()).toEqual([]);
  });

  it("are refused, and recorded, where the stream does not allow them", () => {
    const { rig } = nested({ EATS: 0 });
    expect(ask(rig, 0x5000, read)).toEqual({ fault: EventCode.F_BAD_ATS_TREQ });
    expect(rig.takeEvents()).toMatchObject([{ TYPE: BigInt(EventCode.F_BAD_ATS_TREQ), ADDRESS: 0x5000n }]);
    rig.write(Register.CR0, Cr0.EVENTQEN);
    expect(ask(rig, 0x5000, read)).toEqual({ fault: EventCode.F_BAD_ATS_TREQ });
    expect(rig.takeEvents()).toMatchObject([{ TYPE: 5n, SID: BigInt(RID) }]);
  });

  it.each<[string, SteFields, number]>([
    ["bypasses", { CONFIG: Config.bypass, EATS: 1 }, ON | Cr0.ATSCHK],
    ["splits its stages without CR0.ATSCHK", { EATS: 2 }, ON],
    ["has the reserved EATS", { EATS: 3 }, ON | Cr0.ATSCHK],
  ])("are refused, and recorded, of a stream that %s", (_, ste, cr0) => {
    const { rig } = nested(ste, cr0);
    expect(ask(rig, 0x5000, read)).toEqual({ fault: EventCode.F_BAD_ATS_TREQ });
    expect(rig.takeEvents()).toMatchObject([{ TYPE: 5n }]);
  });

  it("are refused without an event of a stream that aborts, or is not configured as it must be", () => {
    const aborts = nested({ CONFIG: Config.abort, EATS: 1 }).rig;
    expect(ask(aborts, 0x5000, read)).toEqual({ fault: 0x100 });
    const bad = nested({ V: false }).rig;
    expect(ask(bad, 0x5000, read)).toEqual({ fault: EventCode.C_BAD_STE });
    expect([...aborts.takeEvents(), ...bad.takeEvents()]).toEqual([]);
  });

  it("are granted nothing where stage 2 does not have the context descriptor", () => {
    const { rig } = nested({ EATS: 1, S1CONTEXTPTR: 0x50_0000_0000 });
    expect(ask(rig, 0x5000, read)).toEqual({ pa: 0, span: 0x1000, granted: 0 });
    expect(rig.takeEvents()).toEqual([]);
  });

  it("with split stages give the intermediate address, and translated accesses take stage 2", () => {
    const { rig, ipa } = nested({ EATS: 2 });
    expect(ask(rig, 0x5000, read)).toMatchObject({ pa: ipa });
    expect(translated(rig, ipa + 0x10)).toBe(0x7000_0010);
    expect(translated(rig, ipa + 0x1000)).toBe(-EventCode.F_TRANSLATION);
    // An address of the other kind is not taken for it.
    expect(translated(rig, ipa + 0x10)).toBe(0x7000_0010);
    expect(access(rig, RID, ipa + 0x10)).toEqual({ ok: false, code: EventCode.F_TRANSLATION });
  });
});

describe("§3.9.1 translated accesses", () => {
  it("pass where the stream allows ATS; else they are forbidden, if CR0.ATSCHK has them checked", () => {
    expect(translated(nested({ EATS: 1 }).rig, 0x7000_0000)).toBe(0x7000_0000);
    const { rig } = nested({ EATS: 0 });
    expect(translated(rig, 0x7000_0000)).toBe(-EventCode.F_TRANSL_FORBIDDEN);
    expect(rig.takeEvents()).toMatchObject([{ TYPE: 7n, ADDRESS: 0x7000_0000n }]);
    expect(translated(nested({ EATS: 0 }, ON).rig, 0x7000_0000)).toBe(0x7000_0000);
    const off = nested({ EATS: 1 }, Cr0.EVENTQEN).rig;
    expect(translated(off, 0x7000_0000)).toBe(-EventCode.F_TRANSL_FORBIDDEN);
    expect(off.takeEvents()).toMatchObject([{ TYPE: 7n, SID: BigInt(RID) }]);
  });

  it("are forbidden of a stream that bypasses, if they are checked", () => {
    const { rig } = nested({ CONFIG: Config.bypass, EATS: 1 });
    expect(translated(rig, 0x7000_0000)).toBe(-EventCode.F_TRANSL_FORBIDDEN);
  });

  it("find no entry without an event, and need none if they are not checked", () => {
    const checked = nested({ V: false }).rig;
    expect(translated(checked, 0x7000_0000)).toBe(-EventCode.C_BAD_STE);
    expect(checked.takeEvents()).toEqual([]);
    expect(translated(nested({ V: false }, ON).rig, 0x7000_0000)).toBe(0x7000_0000);
  });

  it("beyond the output size are aborted, without an event", () => {
    const { rig } = nested({ EATS: 1 });
    expect(translated(rig, 2 ** 44)).toBe(-0x100);
    expect(rig.takeEvents()).toEqual([]);
  });
});

describe("§8 page requests", () => {
  const request = (more: Partial<PageRequest> = {}): PageRequest => ({
    rid: RID,
    pasid: NO_PASID,
    lo: 0x5678,
    hi: 1,
    access: read,
    group: 3,
    last: true,
    ...more,
  });
  const running = () => {
    const { rig } = nested({ EATS: 1 }, 0);
    const queue = rig.memory.allocate(1);
    rig.write(Register.PRIQ_BASE, queue + 1, 8);
    rig.write(Register.IRQ_CTRL, 2);
    rig.write(Register.CR0, ON | Cr0.PRIQEN);
    const answered: unknown[] = [];
    rig.unit.onPageResponse = (...response) => answered.push(response);
    return { rig, queue, answered };
  };
  const record = (rig: SmmuRig, at: number) =>
    PageRequestRecord.print((rig.load64(at + 8) << 64n) | rig.load64(at));

  it("are written to their queue with an interrupt", () => {
    const { rig, queue, answered } = running();
    rig.unit.requestPage(request());
    rig.unit.requestPage(
      request({ pasid: 9, access: readWrite | Access.privileged | Access.execute, last: false }),
    );
    expect(record(rig, queue)).toBe(
      "page request { SID=0x18, READ=1, LAST=1, PRGINDEX=3, ADDRESS=0x100005000 }",
    );
    expect(record(rig, queue + 16)).toMatch(/SSID=9, PNU=1, EXEC=1, READ=1, WRITE=1, SSV=1/);
    expect(rig.read(Register.PRIQ_PROD)).toBe(2n);
    expect([answered, rig.wires]).toEqual([[], ["priq"]]);
  });

  it("that do not fit are dropped; the last of a group is answered: the function asks again", () => {
    const { rig, answered } = running();
    for (const last of [false, false, false, true]) rig.unit.requestPage(request({ last }));
    expect(rig.read(Register.PRIQ_PROD)).toBe(0x8000_0002n);
    expect(answered).toEqual([[RID, NO_PASID, 3, PageResponse.success]]);
    rig.write(Register.PRIQ_CONS, 0x8000_0002);
    rig.unit.requestPage(request());
    expect(rig.read(Register.PRIQ_PROD)).toBe(0x8000_0003n);
  });

  it("that come after an overflow are dropped until it is acknowledged, though there is room", () => {
    const { rig, answered } = running();
    for (let at = 0; at < 3; at++) rig.unit.requestPage(request({ last: false }));
    rig.write(Register.PRIQ_CONS, 2);
    rig.unit.requestPage(request());
    expect(rig.read(Register.PRIQ_PROD)).toBe(0x8000_0002n);
    expect(answered).toEqual([[RID, NO_PASID, 3, PageResponse.success]]);
    rig.write(Register.PRIQ_CONS, 0x8000_0002);
    rig.unit.requestPage(request());
    expect(rig.read(Register.PRIQ_PROD)).toBe(0x8000_0003n);
    expect(answered).toHaveLength(1);
  });

  it("fail while the queue is disabled or its memory does not answer", () => {
    const { rig, queue, answered } = running();
    rig.memory.poison(queue, 1);
    rig.unit.requestPage(request());
    rig.unit.requestPage(request({ last: false }));
    expect(rig.read(Register.GERROR)).toBe(BigInt(Gerror.PRIQ_ABT_ERR));
    rig.write(Register.CR0, ON);
    rig.unit.requestPage(request({ group: 4 }));
    expect(answered).toEqual([
      [RID, NO_PASID, 3, PageResponse.failure],
      [RID, NO_PASID, 4, PageResponse.failure],
    ]);
    expect(access(rig, RID, 0x5000)).toMatchObject({ pa: 0x7000_0000 });
  });
});
