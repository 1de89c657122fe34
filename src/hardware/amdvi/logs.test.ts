import { describe, expect, it } from "vitest";
import { type PageRequest, PageResponse } from "../ats.ts";
import { access } from "../unit.suite.ts";
import { Access, NO_PASID } from "../unit.ts";
import { EVERYTHING } from "./capabilities.ts";
import { CompletePpr, EventCode, Opcode } from "./queue-spec.ts";
import { AmdViRig, type ControlFields, readWrite, running } from "./rig.suite.ts";
import { ExtendedFeature, Register, RingBase, Status } from "./spec.ts";

const RID = 0x18;
const { read, write } = Access;
const status = (rig: AmdViRig) => rig.read(Register.STATUS);

describe("§2.5 the event log", () => {
  const faulting = (control: ControlFields = {}) => {
    const rig = new AmdViRig();
    rig.map(RID, 0x5000, 0x40_0000, 12, read);
    rig.enable(control);
    return rig;
  };

  it("tells page faults: not present, without permission, reserved bits", () => {
    const rig = faulting();
    access(rig, RID, 0x6004, read);
    access(rig, RID, 0x5008, write);
    const { host } = rig.domain(RID);
    rig.mapHost(host, 0x7000, 0x40_0000, 12, readWrite, 1n << 55n);
    access(rig, RID, 0x7000, read);
    const fault = { CODE: 2n, DEVICE: BigInt(RID), ID: 1n };
    expect(rig.takeEvents()).toEqual([
      { ...fault, ADDRESS: 0x6004n },
      { ...fault, ADDRESS: 0x5008n, PR: 1n, PE: 1n, RW: 1n },
      { ...fault, ADDRESS: 0x7000n, PR: 1n, RZ: 1n },
    ]);
    expect(status(rig)).toBe(Status.EVENT_LOG_INT | Status.EVENT_LOG_RUN | Status.CMD_BUF_RUN);
  });

  it("§2.5.5 tells where a table is that no memory answers for", () => {
    const rig = faulting();
    rig.dte(RID, { DOMAIN: 1, MODE: 4, HOST_TRP: 2 ** 45 });
    access(rig, RID + 1, 0x5000);
    rig.takeEvents();
    access(rig, RID, 0x5000);
    expect(rig.takeEvents()).toEqual([
      { CODE: BigInt(EventCode.PAGE_TAB_HARDWARE_ERROR), DEVICE: BigInt(RID), ID: 1n, ADDRESS: 2n ** 45n },
    ]);
  });

  it("overflows when it is full: it stops and says so, until it is enabled anew", () => {
    const rig = faulting();
    for (let i = 0; i < 256; i++) access(rig, RID, 0x6000 + i * 4);
    expect(status(rig) & (Status.EVENT_OVERFLOW | Status.EVENT_LOG_RUN)).toBe(Status.EVENT_OVERFLOW);
    expect(rig.takeEvents()).toHaveLength(255);
    access(rig, RID, 0x6000);
    expect(rig.takeEvents()).toEqual([]);
    rig.write(Register.STATUS, Status.EVENT_OVERFLOW);
    access(rig, RID, 0x6000);
    expect(rig.takeEvents()).toEqual([]);
    rig.control({ IOMMU_EN: true, CMD_BUF_EN: true });
    rig.control(running);
    access(rig, RID, 0x6000);
    expect(rig.takeEvents()).toHaveLength(1);
  });

  it("is not written while it is disabled, or where no memory answers", () => {
    const rig = faulting({ EVENT_LOG_EN: false });
    access(rig, RID, 0x6000);
    expect(rig.takeEvents()).toEqual([]);
    expect(status(rig)).toBe(Status.CMD_BUF_RUN);
    rig.write(Register.EVTLOG_BASE, RingBase.make({ BASE: 0x1000, LEN: 8 }));
    rig.control(running);
    access(rig, RID, 0x6000);
    expect(rig.read(Register.EVTLOG_TAIL)).toBe(0);
  });

  it("interrupts by a message when an entry comes, and when it overflows", () => {
    const rig = faulting({ EVENT_INT_EN: true });
    access(rig, RID, 0x6000);
    expect(rig.messages).toEqual([]);
    rig.write(Register.STATUS, Status.EVENT_LOG_INT);
    rig.enableMessages(0xfee0_1000, 0x42);
    rig.write(Register.MSI_ADDRESS + 4, 1, 4);
    access(rig, RID, 0x6000);
    access(rig, RID, 0x6000);
    expect(rig.messages).toEqual([{ address: 0x1_fee0_1000n, data: 0x42 }]);
    for (let i = 0; i < 256; i++) access(rig, RID, 0x6000);
    expect(rig.messages).toHaveLength(2);
  });

  it("tells a listener every fault, also those that are not logged, and where the walk ended", () => {
    const rig = faulting({ EVENT_LOG_EN: false });
    access(rig, RID, 0x6004, read);
    const [fault] = rig.events.of("fault");
    expect(fault).toMatchObject({ code: 2, recorded: false, level: 1, address: 0x6004n });
    expect(fault!["reason"]).toMatch(/^IO_PAGE_FAULT \(§2\.5\.3\)/);
  });
});

describe("§3.4 registers", () => {
  it("that features are missing for read 0 and take nothing", () => {
    const efr =
      EVERYTHING &
      ~(ExtendedFeature.fields.PPR_SUP.put(1n) | ExtendedFeature.fields.MSI_CAP_MMIO_SUP.put(1n));
    const rig = new AmdViRig({ capabilities: { efr, efr2: 0n } });
    const all = (1n << 64n) - 1n;
    for (const at of [Register.PPRLOG_BASE, Register.PPRLOG_HEAD, Register.MSI_CAPABILITY, 0x160, 0x40]) {
      rig.write(at, all);
      expect(rig.unit.mmioRead(at, 8)).toBe(0n);
    }
    expect(rig.unit.mmioRead(Register.EXT_FEATURE, 8)).toBe(efr);
    rig.write(Register.CONTROL, all & ~1n);
    expect(rig.unit.mmioRead(Register.CONTROL, 8)).toBe(0x1_8000_0001_1ffen);
  });

  it("are known by name", () => {
    const rig = new AmdViRig();
    rig.write(Register.EXCL_BASE, 0, 4);
    rig.write(Register.EXCL_BASE + 4, 0, 4);
    rig.write(0x3ff8, 0, 4);
    expect(rig.events.of("register").map((event) => event["register"])).toEqual([
      "EXCL_BASE",
      "EXCL_BASE",
      "reserved",
    ]);
  });
});

describe("§2.6 page requests", () => {
  const PPR = { ...running, PPR_LOG_EN: true, PPR_EN: true, GT_EN: true };
  const asking = (control: ControlFields = {}, ppr = true) => {
    const rig = new AmdViRig({ stages: "guest" });
    const gcr3 = rig.gcr3({ 0: rig.memory.allocate(1) });
    rig.dte(RID, { DOMAIN: 1, ...rig.gcr3Fields(gcr3), PPR: ppr });
    rig.enable({ ...PPR, ...control });
    const answers: number[][] = [];
    rig.unit.onPageResponse = (...answer) => answers.push(answer);
    return { rig, answers };
  };
  const page: PageRequest = {
    rid: RID,
    pasid: 0xa_bcde,
    lo: 0x5123,
    hi: 7,
    access: read | write,
    group: 0x155,
    last: true,
  };

  it("are written to the PPR log, with an interrupt, and answered by COMPLETE_PPR_REQUEST", () => {
    const { rig, answers } = asking({ PPR_INT_EN: true });
    rig.enableMessages(0xfee0_0000, 0x43);
    rig.unit.requestPage(page);
    rig.unit.requestPage({ ...page, pasid: NO_PASID, access: read, last: false });
    const common = { CODE: 1n, DEVICE: BigInt(RID), TAG: 0x155n, READ: 1n, ADDRESS: 0x7_0000_5000n };
    expect(rig.takePageRequests()).toEqual([
      { ...common, PASID: 0xbcden, PASID_19: 0xan, WRITE: 1n, US: 1n, GN: 1n, LAST: 1n },
      common,
    ]);
    expect(rig.messages).toHaveLength(1);
    expect(status(rig) & Status.PPR_INT).toBe(Status.PPR_INT);
    expect(answers).toEqual([]);
    const complete = { OPCODE: Opcode.COMPLETE_PPR_REQUEST, DEVICE: RID, TAG: 0x155 };
    rig.submit(
      CompletePpr.make({ ...complete, GN: true, PASID: 0xa_bcde }),
      CompletePpr.make({ ...complete, CODE: 1 }),
      CompletePpr.make({ ...complete, CODE: 15 }),
    );
    expect(answers).toEqual([
      [RID, 0xa_bcde, 0x155, PageResponse.success],
      [RID, NO_PASID, 0x155, PageResponse.invalid],
      [RID, NO_PASID, 0x155, PageResponse.failure],
    ]);
  });

  it("of a device that may not make them are told, and answered as invalid", () => {
    const { rig, answers } = asking({}, false);
    rig.unit.requestPage(page);
    expect(rig.takeEvents()).toMatchObject([{ CODE: BigInt(EventCode.INVALID_PPR_REQUEST), GN: 1n }]);
    expect(answers).toEqual([[RID, 0xa_bcde, 0x155, PageResponse.invalid]]);
    rig.unit.requestPage({ ...page, last: false });
    rig.write(Register.DEVTAB_BASE, 0x1000);
    rig.unit.requestPage({ ...page, rid: 0x40 });
    expect(answers).toHaveLength(2);
    expect(rig.takePageRequests()).toEqual([]);
  });

  it("are answered as invalid while the log is disabled", () => {
    const { rig, answers } = asking({ PPR_EN: false });
    rig.unit.requestPage(page);
    expect(answers).toMatchObject([[RID, 0xa_bcde, 0x155, PageResponse.invalid]]);
  });

  it("that find the log full are answered with success when automatic responses are on, and else are lost", () => {
    for (const automatic of [true, false]) {
      const { rig, answers } = asking({ PPR_AUTO_RSP_EN: automatic });
      for (let i = 0; i < 257; i++) rig.unit.requestPage({ ...page, last: i !== 256 });
      expect(status(rig) & (Status.PPR_OVERFLOW | Status.PPR_RUN)).toBe(Status.PPR_OVERFLOW);
      expect(answers).toEqual(automatic ? [[RID, 0xa_bcde, 0x155, PageResponse.success]] : []);
      expect(rig.takePageRequests()).toHaveLength(255);
      rig.write(Register.STATUS, Status.PPR_OVERFLOW);
      rig.control({ ...running, GT_EN: true });
      rig.control(PPR);
      rig.unit.requestPage(page);
      expect(rig.takePageRequests()).toHaveLength(1);
    }
  });

  it("are told to a listener", () => {
    const { rig } = asking();
    rig.unit.requestPage(page);
    expect(rig.events.of("device")).toMatchObject([{ what: "page request", written: true, group: 0x155 }]);
  });
});
