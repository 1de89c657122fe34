import { describe, expect, it } from "vitest";
import { requestOf } from "../unit.suite.ts";
import { Access, NO_PASID, TranslateStatus } from "../unit.ts";
import { EventCode } from "./queue-spec.ts";
import { AmdViRig, type DteFields, readWrite } from "./rig.suite.ts";

const RID = 0x18;
const { read, write, execute } = Access;
const PA = 0x40_0000;

const setUp = (fields: DteFields = {}) => {
  const rig = new AmdViRig();
  const host = rig.identityTable();
  rig.mapHost(host, 0x8000_0000_0000, PA, 12, read);
  rig.mapHost(host, 0x8000_0000_1000, PA, 12, readWrite);
  const guest = rig.memory.allocate(1);
  rig.mapGuest(guest, 0x5000, 0x8000_0000_1000, 12, readWrite);
  rig.mapGuest(guest, 0x6000, 0x8000_0000_0000, 12, readWrite);
  const gcr3 = rig.gcr3({ 3: guest });
  const dte = { DOMAIN: 1, MODE: 4, HOST_TRP: host, ...rig.gcr3Fields(gcr3), I: true };
  rig.dte(RID, { ...dte, ...fields });
  rig.enable({ GT_EN: true });
  return { rig, host, guest, dte };
};
const ask = (rig: AmdViRig, iova: number, what: number, pasid = NO_PASID) => {
  const transaction = requestOf(RID, iova, what, pasid);
  const status = rig.unit.requestTranslation(transaction);
  const { pa, span, granted, fault } = transaction;
  return status === TranslateStatus.ok ? { pa, span, granted } : { fault };
};
const translated = (rig: AmdViRig, address: number) => {
  const transaction = requestOf(RID, address, read);
  transaction.translated = true;
  const ok = rig.unit.translate(transaction) === TranslateStatus.ok;
  const last = [...rig.unit.explain(transaction)].at(-1)!.outcome!;
  expect(last.ok).toBe(ok);
  return ok ? transaction.pa : -transaction.fault;
};

describe("translation requests", () => {
  it("grant what the tables do; what software can mend grants nothing and is no event", () => {
    const { rig } = setUp();
    const everything = read | write | execute;
    expect(ask(rig, 0x8000_0000_1123, readWrite)).toEqual({
      pa: PA + 0x123,
      span: 0xedd,
      granted: everything,
    });
    expect(ask(rig, 0x8000_0000_0000, readWrite)).toEqual({ pa: PA, span: 0x1000, granted: read | execute });
    expect(ask(rig, 0x9000_0000_0004, read)).toEqual({ pa: 0, span: 0xffc, granted: 0 });
    expect(ask(rig, 0x4000_0000, read)).toMatchObject({ pa: 0x4000_0000, span: 2 ** 30 });
    expect(rig.takeEvents()).toEqual([]);
  });

  it("of a PASID are for the guest's tables; what may be written must be asked for, so that it becomes dirty", () => {
    const { rig, guest } = setUp();
    const dirty = () => rig.load64(rig.entryAddress(guest, 4, 0x5000, 1, () => 0n)) & 0x40n;
    expect(ask(rig, 0x5000, read, 3)).toMatchObject({ pa: PA, granted: read | execute });
    expect(dirty()).toBe(0n);
    expect(ask(rig, 0x5000, readWrite, 3)).toMatchObject({ granted: read | write | execute });
    expect(dirty()).toBe(0x40n);
    expect(ask(rig, 0x6000, readWrite, 3)).toMatchObject({ granted: read | execute });
    expect(ask(rig, 0x6000, read, 3)).toMatchObject({ granted: read | execute });
    expect(ask(rig, 0x5000, read, 4)).toMatchObject({ granted: 0 });
  });

  it("are refused, and logged, where the device may not make them", () => {
    for (const fields of [{ I: false }, { TV: false }, { V: false }]) {
      const { rig } = setUp(fields);
      expect(ask(rig, 0x5000, read)).toEqual({ fault: EventCode.INVALID_DEVICE_REQUEST });
      expect(rig.takeEvents()).toMatchObject([{ CODE: 8n, TR: 1n }]);
    }
    const { rig } = setUp({ GV: false });
    expect(ask(rig, 0x5000, read, 3)).toEqual({ fault: EventCode.INVALID_DEVICE_REQUEST });
    expect(ask(rig, 0xfee0_0000, write)).toEqual({ fault: EventCode.INVALID_DEVICE_REQUEST });
    rig.control({});
    expect(ask(rig, 0x5000, read)).toEqual({ fault: EventCode.INVALID_DEVICE_REQUEST });
  });

  it("that meet a table out of memory, or reserved bits, are refused and logged", () => {
    const { rig, host } = setUp();
    rig.mapHost(host, 0x8000_0000_2000, PA, 12, readWrite, 1n << 55n);
    expect(ask(rig, 0x8000_0000_2000, read)).toEqual({ fault: EventCode.IO_PAGE_FAULT });
    expect(rig.takeEvents()).toMatchObject([{ CODE: 2n, TR: 1n, PR: 1n, RZ: 1n }]);
    const lost = setUp({ HOST_TRP: 2 ** 45 });
    expect(ask(lost.rig, 0x5000, read)).toEqual({ fault: EventCode.PAGE_TAB_HARDWARE_ERROR });
    expect(lost.rig.takeEvents()).toMatchObject([{ CODE: 4n, TR: 1n }]);
  });

  it("without tables get the address itself, as far as IR and IW allow", () => {
    const { rig } = setUp({ MODE: 0, HOST_TRP: 0, IW: false });
    expect(ask(rig, 0x5000, readWrite)).toMatchObject({ pa: 0x5000, granted: read | execute });
  });

  it("requests that were translated before pass, or are not valid without I", () => {
    expect(translated(setUp().rig, 0x5_0000_0123)).toBe(0x5_0000_0123);
    const { rig } = setUp({ I: false });
    expect(translated(rig, 0x5000)).toBe(-EventCode.INVALID_DEVICE_REQUEST);
    expect(rig.takeEvents()).toMatchObject([{ CODE: 8n }]);
  });
});
