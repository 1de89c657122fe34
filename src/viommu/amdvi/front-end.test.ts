/** A guest's AMD-Vi unit: what of its commands, entries and registers goes on to whoever makes the host follow. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { EVERYTHING as FEATURES } from "../../hardware/amdvi/capabilities.ts";
import {
  CompletePpr,
  DeviceCommand,
  EventCode,
  InvalidateAll,
  InvalidateIotlb,
  InvalidatePages,
  Opcode,
} from "../../hardware/amdvi/queue-spec.ts";
import { Dte, Register } from "../../hardware/amdvi/spec.ts";
import { Access, NO_PASID } from "../../hardware/unit.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { CommandBackEnd } from "../commands.ts";
import type { InvalidationCount } from "../host-calls.ts";
import { FrontEndRig, gcr3At } from "./rig.suite.ts";
import { BLOCKING_ENTRY, PASSING_ENTRY } from "./tables.ts";

const DEVICE = 8;
const GCR3 = 0x20_0000;
const ROOT = 0x20_1000;
const ALL = Number.POSITIVE_INFINITY;

/** A host that notes what it is asked, and refuses what it is told to. */
class NotingBackEnd implements CommandBackEnd {
  readonly held = 0;
  readonly asked: (readonly [number, number] | readonly bigint[])[] = [];
  refusesAfter = ALL;
  refusesReread = false;

  reread(first: number, end: number): void {
    this.asked.push([first, end]);
    if (this.refusesReread) throw new LinuxError("EINVAL", "on purpose");
  }
  command(commands: readonly bigint[]): InvalidationCount {
    this.asked.push(commands);
    const done = Math.min(commands.length, this.refusesAfter);
    return done === commands.length ? { done } : { done, error: new LinuxError("EIO", "on purpose") };
  }
}

const pages = (address: bigint, pasid = 3): bigint =>
  InvalidatePages.make({
    ...{ OPCODE: Opcode.INVALIDATE_IOMMU_PAGES, GN: true, DOMAIN: 5, PASID: pasid, ADDRESS: address },
  });
const device = InvalidateIotlb.make({ OPCODE: Opcode.INVALIDATE_IOTLB_PAGES, DEVICE, ADDRESS: 0x5000n });
const changed = DeviceCommand.make({ OPCODE: Opcode.INVALIDATE_DEVTAB_ENTRY, DEVICE });

describe("a virtual AMD-Vi unit", () => {
  let rig: FrontEndRig;
  let host: NotingBackEnd;
  beforeEach(() => {
    rig = new FrontEndRig();
    host = new NotingBackEnd();
    rig.front.connect(host);
    rig.start();
    host.asked.length = 0;
  });
  afterEach(() => rig.close());

  it("§2.4.1 hands invalidations on as they are, together, before COMPLETION_WAIT is done", () => {
    const commands = [pages(0x1000n), pages(0x2000n), device];
    rig.put(...commands);
    rig.run();
    expect(host.asked).toEqual([commands]);
    expect([rig.done, rig.running]).toEqual([true, true]);
  });

  it("§2.5.6 what the host refuses stops the buffer with the head at it, and the guest is told where", () => {
    const [, second] = rig.put(pages(0x1000n), pages(0x2000n), pages(0x3000n));
    host.refusesAfter = 1;
    rig.run();
    expect([rig.head, rig.running, rig.done]).toEqual([second, false, false]);
    expect(rig.events).toEqual([{ code: EventCode.ILLEGAL_COMMAND_ERROR, address: second }]);
    host.refusesAfter = ALL;
    rig.restart();
    expect([rig.done, rig.running]).toEqual([true, true]);
    expect(host.asked.at(-1)).toHaveLength(2);
  });

  it("§2.4.2 has a changed entry read again, after what was asked before it", () => {
    rig.put(pages(0x1000n), changed, pages(0x2000n));
    rig.run();
    expect(host.asked).toEqual([[pages(0x1000n)], [DEVICE, DEVICE + 1], [pages(0x2000n)]]);
    expect(rig.done).toBe(true);
  });

  it("stops at an entry that the host cannot follow", () => {
    host.refusesReread = true;
    const [, second] = rig.put(pages(0x1000n), changed);
    rig.run();
    expect([rig.head, rig.done]).toEqual([second, false]);
    expect(rig.events).toEqual([{ code: EventCode.ILLEGAL_COMMAND_ERROR, address: second }]);
  });

  it("§2.4.8 INVALIDATE_IOMMU_ALL is about all devices", () => {
    rig.put(InvalidateAll.make({ OPCODE: Opcode.INVALIDATE_IOMMU_ALL }));
    rig.run();
    expect(host.asked).toEqual([[0, ALL]]);
  });

  it("has everything read again when translation goes on or off, or has another table, and else never", () => {
    rig.control({ IOMMU_EN: false });
    expect(host.asked).toEqual([[0, ALL]]);
    rig.set(Register.DEVTAB_BASE, 0x30_0000n);
    expect(host.asked).toHaveLength(1);
    rig.control({ IOMMU_EN: true });
    rig.front.mmioWrite(Register.DEVTAB_BASE, 4, 0x31_0000n);
    expect(host.asked).toHaveLength(3);
    rig.control({ IOMMU_EN: true, CMD_BUF_EN: true });
    rig.front.mmioWrite(Register.DEVTAB_BASE + 4, 4, 0n);
    expect(host.asked).toHaveLength(3);
    host.refusesReread = true;
    rig.control({});
    expect(host.asked).toHaveLength(4);
  });

  it("§2.6 a page that a device asks for is in the PPR log, and the guest's answer comes back", () => {
    const answers: (readonly number[])[] = [];
    rig.front.onPageResponse = (...answer) => answers.push(answer);
    rig.entry(DEVICE, { ...gcr3At(GCR3), PPR: true });
    const request = { rid: DEVICE, pasid: 3, lo: 0x5000, hi: 1, access: Access.read, group: 7, last: true };
    rig.front.requestPage(request);
    expect(rig.pageRequests).toEqual([[DEVICE, 3, 7, 0x1_0000_5000]]);
    rig.put(
      CompletePpr.make({
        ...{ OPCODE: Opcode.COMPLETE_PPR_REQUEST, DEVICE, PASID: 3, GN: true, TAG: 7, CODE: 0 },
      }),
    );
    rig.run();
    expect(answers).toEqual([[DEVICE, 3, 7, 0]]);
    expect(host.asked).toEqual([]);
    // Under an entry that does not allow it, the unit answers itself.
    rig.entry(DEVICE, { PPR: false });
    rig.front.requestPage(request);
    expect(answers.at(-1)).toEqual([DEVICE, 3, 7, 1]);
  });

  describe("an entry as a host that nests is given it", () => {
    const entryOf = () => rig.front.entryOf(DEVICE);

    it("has of the guest's what it has to say of translation, and nothing else", () => {
      const says = { ...gcr3At(GCR3), GLX: 1, GIOV: true, DOMAIN: 77, GUEST_PAGING_MODE: 0 };
      const asks = { I: true, PPR: true, GPRP: true };
      const others = { SA: true, EX: true, IV: true, INT_TRP: 0x1000n, INT_CTL: 2 };
      rig.entry(DEVICE, { ...says, ...asks, ...others });
      expect(entryOf()).toBe(Dte.make({ V: true, TV: true, IR: true, IW: true, ...says, ...asks }));
    });

    it("with host tables goes on, for the host to refuse it", () => {
      rig.entry(DEVICE, { MODE: 3, HOST_TRP: 0x5000 });
      expect(Dte.fields.MODE.of(entryOf())).toBe(3n);
    });

    it("§2.2.2.1 lets nothing pass with TV = 0, when it is not valid, or when there is none", () => {
      expect(entryOf()).toBe(BLOCKING_ENTRY);
      rig.entry(DEVICE, { ...gcr3At(GCR3), GLX: 3 });
      expect(entryOf()).toBe(BLOCKING_ENTRY);
      expect(rig.front.entryOf(0x1000)).toBe(BLOCKING_ENTRY);
    });

    it("§2.2.2.1 passes with V = 0, and while the unit is off", () => {
      rig.entry(DEVICE, { V: false });
      expect(entryOf()).toBe(PASSING_ENTRY);
      rig.entry(DEVICE, { TV: false });
      rig.control({});
      expect(entryOf()).toBe(PASSING_ENTRY);
    });

    it("has no guest tables while CONTROL.GTEn is off", () => {
      rig.entry(DEVICE, gcr3At(GCR3));
      rig.control({ IOMMU_EN: true });
      expect(Dte.fields.GV.of(entryOf())).toBe(0n);
    });
  });

  describe("what its tables say of a device", () => {
    const of = (pasid: number) => rig.front.translationOf(DEVICE, pasid);

    it("§2.2.2.1 passes where the entry is not valid or has no tables, and not where TV = 0", () => {
      expect(of(NO_PASID).kind).toBe("blocked");
      rig.entry(DEVICE, { V: false });
      expect([of(NO_PASID).kind, of(3).kind]).toEqual(["passThrough", "blocked"]);
      rig.entry(DEVICE, { DOMAIN: 9 });
      expect(of(NO_PASID)).toEqual({ kind: "passThrough", domain: 9, pasid: NO_PASID });
      expect(of(3).kind).toBe("blocked");
      rig.control({});
      expect([of(NO_PASID).kind, of(3).kind]).toEqual(["passThrough", "blocked"]);
    });

    it("§2.2.6.3 has a guest table for each PASID with a valid entry in its GCR3 table", () => {
      rig.entry(DEVICE, { ...gcr3At(GCR3), DOMAIN: 9 });
      rig.root(GCR3, 0, ROOT);
      rig.root(GCR3, 3, ROOT);
      rig.root(GCR3, 511, ROOT + 0x1000);
      expect(rig.front.pasidsOf(DEVICE)).toEqual([3, 511]);
      expect(of(3)).toMatchObject({ kind: "stage", domain: 9, pasid: 3, stage: { plain: false } });
      expect([of(4).kind, of(512).kind, of(0).kind]).toEqual(["blocked", "blocked", "blocked"]);
      expect(of(NO_PASID).kind).toBe("passThrough");
    });

    it("§2.2.2.1 GIoV: requests without PASID go through the table of PASID 0", () => {
      rig.entry(DEVICE, { ...gcr3At(GCR3), GIOV: true, DOMAIN: 9 });
      rig.root(GCR3, 0, ROOT);
      expect(of(NO_PASID)).toMatchObject({ kind: "stage", domain: 9, pasid: 0 });
    });

    it("§2.2.6.3 GCR3 tables of several levels are looked through, and hold a bounded number of PASIDs", () => {
      rig.root(GCR3, 1, GCR3 + 0x1000);
      rig.root(GCR3 + 0x1000, 5, ROOT);
      rig.entry(DEVICE, { ...gcr3At(GCR3), GLX: 1 });
      expect(rig.front.pasidsOf(DEVICE)).toEqual([512 + 5]);
      // Every entry of both levels is valid: they are one table.
      for (let pasid = 0; pasid < 512; pasid++) rig.root(GCR3, pasid, GCR3);
      expect(() => rig.front.pasidsOf(DEVICE)).toThrow("ENOSPC");
    });

    it("has no PASIDs where an entry cannot be read, or translation is off", () => {
      expect(rig.front.pasidsOf(0x1000)).toEqual([]);
      rig.control({});
      expect(rig.front.pasidsOf(DEVICE)).toEqual([]);
    });
  });
});

it("a unit shows the features that it is given, and IotlbSup", () => {
  const rig = new FrontEndRig({ efr: FEATURES, deviceTlb: false });
  expect(rig.front.mmioRead(Register.EXT_FEATURE, 8)).toBe(FEATURES);
  expect(rig.front.deviceTlb).toBe(false);
  rig.close();
});
