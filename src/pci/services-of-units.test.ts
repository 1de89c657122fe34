/** Functions with translations of their own behind each unit, driven by the units' registers and queues alone. */
import { afterEach, describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { WorkQueue } from "../base/scheduler.ts";
import {
  Opcode as AmdViOpcode,
  CompletePpr,
  EventCode,
  InvalidateIotlb,
} from "../hardware/amdvi/queue-spec.ts";
import { AmdViRig, wait as completionWait } from "../hardware/amdvi/rig.suite.ts";
import { Register as AmdViRegister } from "../hardware/amdvi/spec.ts";
import { PageResponse } from "../hardware/ats.ts";
import { AtcCommand, Opcode, PriCommand, ResumeCommand } from "../hardware/smmuv3/queue-spec.ts";
import { SmmuRig, sync } from "../hardware/smmuv3/rig.suite.ts";
import { Config, Cr0, Register as SmmuRegister } from "../hardware/smmuv3/spec.ts";
import { Access, type IommuUnit } from "../hardware/unit.ts";
import { wait } from "../hardware/vtd/rig.suite.ts";
import { ScalableRig } from "../hardware/vtd/scalable-rig.suite.ts";
import {
  PageGroupResponse,
  PasidIotlbGranularity,
  PasidIotlbInvalidate,
} from "../hardware/vtd/scalable-spec.ts";
import { DescriptorType, DeviceTlbInvalidate, Register } from "../hardware/vtd/spec.ts";
import type { SparseMemory } from "../memory/sparse-memory.ts";
import { extendedCapabilitiesOf } from "./capability-list.ts";
import { TestCommand, TestFunction, TestRegister, TestStatus } from "./devices/test-function.ts";
import { HostBridge } from "./dma.ts";
import { placement } from "./placement.ts";
import { read32, turnOn, write32 } from "./rig.suite.ts";
import { AtsCapability, ExtendedCapabilityId, PasidCapability, PriCapability } from "./spec.ts";

const BUS = 1;
const RID = BUS << 8;
const IOVA = 0x5000;
const [OLD, NEW] = [0x50_0000, 0x60_0000];
const readWrite = Access.read | Access.write;

/** A unit on its test rig, and how its software talks to it. */
interface Silicon {
  readonly memory: SparseMemory;
  readonly unit: IommuUnit;
  map(iova: number, pa: number): void;
  /** Invalidates the function's translation of a page, and waits for that; then whether the wait was done. */
  forget(iova: number, rid?: number): boolean;
  /** Page requests that have been queued. */
  readonly asked: number;
  respond(group: number, code: number): void;
}

const vtd = (): Silicon => {
  const rig = new ScalableRig();
  rig.map(RID, 0x1000, OLD, 12, readWrite);
  rig.enable();
  rig.enableQueue();
  rig.write(Register.PQA, rig.memory.allocate(1), 8);
  const done = rig.memory.allocate(1);
  let status = 0;
  return {
    memory: rig.memory,
    unit: rig.unit,
    map: (iova, pa) => rig.map(RID, iova, pa, 12, readWrite),
    forget: (iova, rid = RID) => {
      status += 1;
      const { pasid } = PasidIotlbGranularity;
      rig.submit(
        PasidIotlbInvalidate.make({ TYPE: DescriptorType.pasidIotlb, G: pasid, DID: 1 }),
        DeviceTlbInvalidate.make({ TYPE: DescriptorType.deviceTlb, SID: rid }) | (BigInt(iova) << 64n),
        wait({ SW: true, STATUS: status, ADDR: done }),
      );
      return rig.load64(done) === BigInt(status);
    },
    get asked() {
      return Number(rig.read(Register.PQT, 8)) / 32;
    },
    respond: (group, code) =>
      rig.submit(
        PageGroupResponse.make({ TYPE: DescriptorType.pageGroupResponse, SID: RID, PRGI: group, RC: code }),
        wait({}),
      ),
  };
};

const smmu = (): Silicon => {
  const rig = new SmmuRig({ capabilities: { ats: true, pri: true } });
  const { stage1 } = rig.stream(RID);
  const contexts = rig.load64(rig.streams + RID * 64) & 0xf_ffff_ffff_ffc0n;
  rig.ste(RID, { CONFIG: Config.stage1, S1CONTEXTPTR: contexts, EATS: 1 });
  rig.write(SmmuRegister.PRIQ_BASE, rig.memory.allocate(1) + 4, 8);
  rig.enable(Cr0.SMMUEN | Cr0.EVENTQEN | Cr0.CMDQEN | Cr0.PRIQEN | Cr0.ATSCHK);
  const resp = { [PageResponse.failure]: 0, [PageResponse.invalid]: 1, [PageResponse.success]: 2 };
  return {
    memory: rig.memory,
    unit: rig.unit,
    map: (iova, pa) => rig.mapStage1(stage1, iova, pa, 12, readWrite),
    forget: (iova, rid = RID) => {
      rig.submit(AtcCommand.make({ OPCODE: Opcode.ATC_INV, SID: rid, ADDRESS: iova }), sync());
      return rig.consumed.error === 0 && rig.consumed.at === rig.produced;
    },
    get asked() {
      return Number(rig.read(SmmuRegister.PRIQ_PROD)) & 0xffff;
    },
    respond: (group, code) =>
      rig.submit(
        PriCommand.make({
          OPCODE: Opcode.PRI_RESP,
          SID: RID,
          PRGINDEX: group,
          RESP: resp[code as 0 | 1 | 15],
        }),
        sync(),
      ),
  };
};

const amdvi = (): Silicon => {
  const rig = new AmdViRig();
  const { host } = rig.domain(RID);
  rig.dte(RID, { DOMAIN: 1, MODE: rig.mode, HOST_TRP: host, I: true, PPR: true });
  rig.enable({ PPR_LOG_EN: true, PPR_EN: true });
  const done = rig.memory.allocate(1);
  let status = 0;
  return {
    memory: rig.memory,
    unit: rig.unit,
    map: (iova, pa) => rig.mapHost(host, iova, pa, 12, readWrite),
    forget: (iova, rid = RID) => {
      status += 1;
      rig.takeEvents();
      rig.submit(
        InvalidateIotlb.make({ OPCODE: AmdViOpcode.INVALIDATE_IOTLB_PAGES, DEVICE: rid, ADDRESS: iova }),
        completionWait({ S: true, ADDRESS: done, DATA: status }),
      );
      const late = rig.takeEvents().some(({ CODE }) => CODE === BigInt(EventCode.IOTLB_INV_TIMEOUT));
      return rig.load64(done) === BigInt(status) && !late;
    },
    get asked() {
      return rig.read(AmdViRegister.PPRLOG_TAIL) / 16;
    },
    respond: (group, code) =>
      rig.submit(
        CompletePpr.make({
          OPCODE: AmdViOpcode.COMPLETE_PPR_REQUEST,
          DEVICE: RID,
          TAG: group,
          CODE: code,
        }),
      ),
  };
};

const plugged = ({ memory, unit }: Pick<Silicon, "memory" | "unit">, ats = true) => {
  const work = new WorkQueue();
  const bridge = new HostBridge({ memory, unit });
  const device = new TestFunction({
    address: { segment: 0, bus: BUS, device: 0, function: 0 },
    bridge,
    barBase: placement({ mem32: { start: 0xe000_0000, end: 0xf000_0000 } }),
    scheduler: work,
    clock: new ManualClock(),
  });
  const places = new Map(extendedCapabilitiesOf(device).map(({ id, at }) => [id, at]));
  const register = (id: number, offset: number): number => places.get(id)! + offset;
  const control = (id: number, offset: number, value: number, width: 2 | 4 = 2): void =>
    device.configWrite(register(id, offset), width, value);
  const { ATS, PRI, PASID } = ExtendedCapabilityId;
  turnOn(device);
  control(PASID, PasidCapability.CONTROL, 1);
  control(PRI, PriCapability.OUTSTANDING_ALLOCATION, 4, 4);
  control(PRI, PriCapability.CONTROL, 1);
  control(ATS, AtsCapability.CONTROL, ats ? 0x8000 : 0);
  const settle = (): number => {
    work.run(10_000);
    return read32(device, 0, TestRegister.STATUS);
  };
  return {
    device,
    bridge,
    settle,
    pageStatus: () => device.configRead(register(PRI, PriCapability.STATUS), 2) & 0x103,
    acknowledge: () => control(PRI, PriCapability.STATUS, 3),
    stop: (reset: boolean) => control(PRI, PriCapability.CONTROL, reset ? 2 : 0),
    /** Reads a word there; how that stands. */
    begin: (iova: number, length = 4): number => {
      write32(device, 0, TestRegister.SOURCE, iova);
      write32(device, 0, TestRegister.LENGTH, length);
      write32(device, 0, TestRegister.COMMAND, TestCommand.READ);
      return settle();
    },
    found: () => read32(device, 0, TestRegister.BUFFER),
  };
};

const devices: TestFunction[] = [];
afterEach(() => {
  for (const device of devices.splice(0)) device.close();
});

describe.each([
  ["VT-d in scalable mode", vtd],
  ["SMMUv3", smmu],
  ["AMD-Vi", amdvi],
])("a function behind %s", (_name, make) => {
  const start = () => {
    const silicon = make();
    const function_ = plugged(silicon);
    devices.push(function_.device);
    silicon.memory.store32(OLD, 0x01d0_1d01);
    silicon.memory.store32(NEW, 0x2e12_e12e);
    return { silicon, ...function_ };
  };

  it("uses a translation it has until it is invalidated, whatever the table says meanwhile", () => {
    const { silicon, begin, found } = start();
    silicon.map(IOVA, OLD);
    expect([begin(IOVA), found()]).toEqual([TestStatus.DONE, 0x01d0_1d01]);
    silicon.map(IOVA, NEW);
    expect([begin(IOVA), found()]).toEqual([TestStatus.DONE, 0x01d0_1d01]);
    expect(silicon.forget(IOVA + 0x1000)).toBe(true);
    expect([begin(IOVA), found()]).toEqual([TestStatus.DONE, 0x01d0_1d01]);
    expect(silicon.forget(IOVA)).toBe(true);
    expect([begin(IOVA), found()]).toEqual([TestStatus.DONE, 0x2e12_e12e]);
  });

  it("an invalidation of who has no translations is not completed, and the wait finds out", () => {
    const { silicon } = start();
    expect(silicon.forget(IOVA, RID + 8)).toBe(false);
  });

  it("asks for a page that is not there; the response makes the same access go through", () => {
    const { silicon, begin, found, settle, device, bridge } = start();
    expect(begin(IOVA)).toBe(TestStatus.BUSY);
    expect([silicon.asked, bridge.parked]).toEqual([1, 1]);
    silicon.map(IOVA, NEW);
    expect(settle()).toBe(TestStatus.BUSY);
    silicon.respond(0, PageResponse.success);
    expect([settle(), found()]).toEqual([TestStatus.DONE, 0x2e12_e12e]);
    expect(device.waits).toMatchObject({ parked: 1, resumed: 1, pages: { groups: 1, success: 1 } });
  });

  it("asks again when the answer was yes and the page is still not there", () => {
    const { silicon, begin, settle } = start();
    begin(IOVA);
    silicon.respond(0, PageResponse.success);
    expect(settle()).toBe(TestStatus.BUSY);
    expect(silicon.asked).toBe(2);
    silicon.map(IOVA, NEW);
    silicon.respond(1, PageResponse.success);
    expect(settle()).toBe(TestStatus.DONE);
  });

  it("asks for all pages of an access as one group, with room for so many", () => {
    const { silicon, begin, settle, device } = start();
    silicon.map(IOVA + 0x1000, OLD);
    begin(IOVA, 0x4000);
    expect(silicon.asked).toBe(3);
    for (const page of [0, 2, 3]) silicon.map(IOVA + page * 0x1000, NEW);
    silicon.respond(0, PageResponse.success);
    expect(settle()).toBe(TestStatus.DONE);
    expect(device.waits.pages).toMatchObject({ requests: 3, groups: 1 });
  });

  it("a page it cannot have ends the access with a fault of the unit; a failure ends it and the asking", () => {
    const { silicon, begin, settle, pageStatus, acknowledge } = start();
    begin(IOVA);
    silicon.respond(0, PageResponse.invalid);
    expect(settle()).toBe(TestStatus.FAULT);
    expect([begin(IOVA), silicon.asked]).toEqual([TestStatus.BUSY, 2]);
    silicon.respond(1, PageResponse.failure);
    expect([settle(), pageStatus()]).toEqual([TestStatus.FAULT, 1]);
    expect([begin(IOVA), silicon.asked]).toEqual([TestStatus.FAULT, 2]);
    acknowledge();
    expect([begin(IOVA), silicon.asked, pageStatus()]).toEqual([TestStatus.BUSY, 3, 0]);
  });

  it("stops when nothing waits any more; stopped and reset, what waits fails", () => {
    const { silicon, begin, settle, pageStatus, stop } = start();
    begin(IOVA);
    stop(false);
    expect(pageStatus()).toBe(0);
    silicon.map(IOVA, OLD);
    silicon.respond(0, PageResponse.success);
    expect([settle(), pageStatus()]).toEqual([TestStatus.DONE, 0x100]);
    const other = start();
    other.begin(IOVA);
    other.stop(true);
    expect([other.settle(), other.pageStatus()]).toEqual([TestStatus.FAULT, 0x100]);
  });

  it("a reset drops what waits: its late response is to no group, and nothing is lost from the counts", () => {
    const { silicon, begin, settle, device, bridge, pageStatus } = start();
    begin(IOVA);
    device.reset();
    expect(bridge.parked).toBe(0);
    silicon.respond(0, PageResponse.success);
    settle();
    expect(pageStatus()).toBe(0x102);
    expect(device.waits).toMatchObject({
      parked: 1,
      resumed: 0,
      failed: 0,
      dropped: 1,
      pages: { groups: 1, success: 0, ended: 1, unexpected: 1 },
    });
  });
});

it("§3.12.2 an access that the SMMU stalls is resumed or ended by its command, and dropped by a reset", () => {
  const rig = new SmmuRig({ capabilities: { stalls: "both" } });
  const { stage1 } = rig.stream(RID);
  const contexts = Number(rig.load64(rig.streams + RID * 64) & 0xf_ffff_ffff_ffc0n);
  rig.cd(contexts, { ASID: 1, TTB0: stage1, S: true, R: false });
  rig.enable();
  const { device, bridge, begin, settle, found } = plugged(rig, false);
  devices.push(device);
  rig.memory.store32(NEW, 0x2e12_e12e);
  const tag = (): bigint => rig.takeEvents()[0]?.["STAG"] ?? 0n;
  const resume = (stall: bigint, retry: boolean): void =>
    rig.submit(
      ResumeCommand.make({ OPCODE: Opcode.RESUME, SID: RID, STAG: stall, AC: retry, AB: !retry }),
      sync(),
    );
  expect([begin(IOVA), bridge.parked]).toEqual([TestStatus.BUSY, 1]);
  rig.mapStage1(stage1, IOVA, NEW, 12, readWrite);
  resume(tag(), true);
  expect([settle(), found()]).toEqual([TestStatus.DONE, 0x2e12_e12e]);
  begin(0x9000);
  resume(tag(), false);
  expect(settle()).toBe(TestStatus.FAULT);
  begin(0x9000);
  device.reset();
  resume(tag(), true);
  expect([bridge.parked, device.waits]).toMatchObject([0, { parked: 3, resumed: 1, failed: 1, dropped: 1 }]);
});
