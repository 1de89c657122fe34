/** Parts of a function on a VT-d unit: each is a device with tables of its own, by the function's PASIDs. */

import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { silent } from "../../base/events.ts";
import { PageResponse as Code } from "../../hardware/ats.ts";
import { Access } from "../../hardware/unit.ts";
import { AuxiliaryDriver } from "../../iommu/auxiliary.ts";
import { IommuCore } from "../../iommu/core.ts";
import { describeDriver } from "../../iommu/driver.suite.ts";
import { type PagingDomain, Protection, type Requester } from "../../iommu/driver.ts";
import { type PageRequestGroup, pageRequestsOf } from "../../iommu/page-requests.ts";
import { rationed } from "../rig-memory.suite.ts";
import { firstStage, Rig } from "./rig.suite.ts";

const RW = Protection.read | Protection.write;
const PARTS: readonly [Requester, Requester] = [
  { name: "part one", rid: 0x100 },
  { name: "part two", rid: 0x100 },
];
const DEFAULTS = [100, 101] as const;

const auxiliaryOf = (
  rig: Rig,
  revoked: (name: string, pasid: number) => void = () => {},
): AuxiliaryDriver => {
  const core = new IommuCore(silent);
  const driver = new AuxiliaryDriver(core.addDevice(rig.device, rig.driver, core.addGroup()));
  PARTS.forEach((part, index) => {
    driver.admit(part, DEFAULTS[index]!, (pasid) => revoked(part.name, pasid));
  });
  return driver;
};
/** Where a request of a part without a PASID goes: it carries the default one. */
const pasidOf = (part: Requester): number => DEFAULTS[part === PARTS[0] ? 0 : 1];

describeDriver("parts of a function on VT-d", () => {
  const rig = new Rig();
  const driver = auxiliaryOf(rig);
  const limitFrames = rationed(rig.memory);
  return {
    driver: {
      ...{ name: driver.name, identity: driver.identity, blocked: driver.blocked },
      // The suite releases devices and goes on with them; a part that was released is none any more.
      probe: (part) => {
        if (!driver.isTaken(pasidOf(part))) driver.admit(part, pasidOf(part), () => {});
        return driver.probe(part);
      },
      release: (part) => driver.release(part),
      reserved: () => driver.reserved(),
      allocatePaging: (part, options) => driver.allocatePaging(part, options),
      attach: (part, domain, pasid) => driver.attach(part, domain, pasid),
    },
    memory: rig.memory,
    devices: PARTS,
    access: (part, iova, write) => rig.access(rig.device, iova, write, pasidOf(part as Requester)),
    limitFrames,
    close: () => {
      rig.release();
      rig.close();
    },
  };
});

describe("parts of a function", () => {
  let rig: Rig;
  let driver: AuxiliaryDriver;
  const domains: PagingDomain[] = [];
  const mapped = (pa: number): PagingDomain => {
    const domain = driver.allocatePaging(PARTS[0], { pasid: true });
    domain.map(0x5000, pa, 0x1000, RW);
    domains.push(domain);
    return domain;
  };
  const reach = (pasid?: number) => rig.access(rig.device, 0x5000, false, pasid);
  beforeEach(() => {
    rig = new Rig();
    driver = auxiliaryOf(rig);
  });
  afterEach(() => {
    for (const part of PARTS) driver.release(part);
    rig.release();
    for (const domain of domains.splice(0)) domain.free();
    expect(rig.close()).toBe(0);
  });

  it("go through tables of their own, and the function itself through none", () => {
    driver.attach(PARTS[0], mapped(0x10_0000));
    driver.attach(PARTS[1], mapped(0x20_0000));
    expect([reach(100), reach(101), reach(102), reach()]).toEqual([0x10_0000, 0x20_0000, "fault", "fault"]);
    expect([driver.has(PARTS[0], 100), driver.has(PARTS[0], 101)]).toEqual([true, false]);
    driver.attach(PARTS[0], driver.blocked);
    expect([reach(100), reach(101), driver.has(PARTS[0], 100)]).toEqual(["fault", 0x20_0000, false]);
  });

  it("have guests' tables above domains of their own", () => {
    const nestedOf = (part: Requester, pa: number, pasid: number) => {
      const parent = driver.allocatePaging(part, { nestParent: true });
      domains.push(parent);
      parent.map(0, 0, 0x40_0000, RW);
      const table = rig.guestTable();
      table.map(0x5000, pa, 0x1000, RW);
      const nested = driver.allocateNested(part, parent, firstStage({ pgtbl_addr: BigInt(table.root) }), {
        pasid: true,
      });
      driver.attach(part, parent);
      driver.attach(part, nested, pasid);
      return nested;
    };
    const nested = [nestedOf(PARTS[0], 0x3_0000, 7), nestedOf(PARTS[1], 0x4_0000, 8)];
    expect([reach(7), reach(8), reach(100)]).toEqual([0x3_0000, 0x4_0000, 0x5000]);
    expect([driver.has(PARTS[0], 7), driver.has(PARTS[1], 7)]).toEqual([true, false]);
    for (const part of PARTS) driver.release(part);
    expect([reach(7), reach(8), reach(100)]).toEqual(["fault", "fault", "fault"]);
    for (const each of nested) each.free();
  });

  it("cannot have each other's PASIDs", () => {
    const domain = mapped(0x10_0000);
    driver.attach(PARTS[0], domain, 7);
    expect(codeOf(() => driver.attach(PARTS[1], domain, 7))).toBe("EBUSY");
    expect(codeOf(() => driver.attach(PARTS[1], domain, 100))).toBe("EBUSY");
    driver.attach(PARTS[0], driver.blocked, 7);
    expect([driver.isTaken(7), driver.isTaken(100)]).toEqual([false, true]);
    driver.attach(PARTS[1], domain, 7);
    expect(reach(7)).toBe(0x10_0000);
  });

  it("lose a PASID after their requests with it were revoked, while its tables are there still", () => {
    for (const part of PARTS) driver.release(part);
    const seen: unknown[] = [];
    driver = auxiliaryOf(rig, (name, pasid) => seen.push([name, pasid, reach(pasid)]));
    const domain = mapped(0x10_0000);
    driver.attach(PARTS[0], domain);
    driver.attach(PARTS[0], domain, 7);
    driver.attach(PARTS[0], mapped(0x20_0000), 7);
    expect(seen).toEqual([]);
    driver.attach(PARTS[0], driver.blocked, 7);
    driver.release(PARTS[0]);
    expect(seen).toEqual([
      ["part one", 7, 0x20_0000],
      ["part one", 100, 0x10_0000],
    ]);
  });

  it("are known, and no more when they were released", () => {
    expect(codeOf(() => driver.probe({ name: "stranger", rid: 1 }))).toBe("ENODEV");
    driver.release(PARTS[1]);
    expect(codeOf(() => driver.attach(PARTS[1], driver.blocked))).toBe("ENODEV");
    expect(driver.probe(PARTS[0])).toMatchObject({ pasidBits: 20, nesting: true });
    expect(driver.hardwareInfo(PARTS[0], 0)).toEqual(rig.driver.hardwareInfo(rig.device, 0));
    expect(driver.reserved()).toEqual(rig.driver.reserved(rig.device));
  });

  it("are told of their own accesses that failed for good, by their own PASIDs", () => {
    driver.attach(PARTS[0], mapped(0x10_0000));
    driver.attach(PARTS[1], mapped(0x20_0000));
    driver.attach(PARTS[1], mapped(0x30_0000), 7);
    const seen: unknown[] = [];
    driver.onFault = (part, { pasid, address }) => seen.push([part.name, pasid, address]);
    for (const pasid of [101, 100, 7, 8]) rig.access(rig.device, 0x9000, false, pasid);
    expect(seen).toEqual([
      ["part two", undefined, 0x9000n],
      ["part one", undefined, 0x9000n],
      ["part two", 7, 0x9000n],
    ]);
    driver.attach(PARTS[0], driver.blocked);
    rig.access(rig.device, 0x9000, false, 100);
    expect(seen).toHaveLength(3);
  });

  it("are asked for pages, and answer, by their own PASIDs", () => {
    const faulting = driver.allocatePaging(PARTS[0], { faults: true, pasid: true });
    domains.push(faulting);
    for (const part of PARTS) driver.attach(part, faulting);
    driver.attach(PARTS[1], faulting, 7);
    rig.ask(rig.device, { pasid: 100, group: 1 });
    expect(rig.responses.splice(0)).toMatchObject([{ pasid: 100, group: 1, response: Code.invalid }]);
    const seen: PageRequestGroup[] = [];
    const router = pageRequestsOf(driver);
    for (const part of PARTS) router.handle(part, undefined, (group) => seen.push(group));
    rig.ask(rig.device, { pasid: 101, group: 2, last: false });
    rig.ask(rig.device, { pasid: 101, group: 2, access: Access.write });
    rig.ask(rig.device, { pasid: 7, group: 3 });
    expect(seen.map(({ device, pasid, requests }) => [device.name, pasid, requests.length])).toEqual([
      ["part two", undefined, 2],
      ["part two", 7, 1],
    ]);
    for (const group of seen) group.respond("success");
    expect(rig.responses).toMatchObject([
      { pasid: 101, group: 2, response: Code.success },
      { pasid: 7, group: 3, response: Code.success },
    ]);
  });
});
