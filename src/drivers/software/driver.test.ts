import { describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { type EventFields, silent } from "../../base/events.ts";
import { Access, NO_PASID, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import { describeDriver } from "../../iommu/driver.suite.ts";
import { Protection, type Requester } from "../../iommu/driver.ts";
import { Banks } from "../../memory/banks.ts";
import { rationed } from "../rig-memory.suite.ts";
import { SoftwareDriver } from "./driver.ts";

const DEVICES: readonly [Requester, Requester] = [
  { name: "one", rid: 1 },
  { name: "two", rid: 2 },
];
const request = (iova: number, access: number, pasid = NO_PASID): Transaction => {
  const transaction = new Transaction();
  transaction.pasid = pasid;
  transaction.lo = iova >>> 0;
  transaction.hi = Math.floor(iova / 2 ** 32);
  transaction.access = access;
  return transaction;
};
const make = (events = silent) => {
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 28 }] });
  const driver = new SoftwareDriver(memory, events);
  const units = DEVICES.map(() => driver.makeUnit());
  const admit = (device: Requester) => driver.admit(device, units[DEVICES.indexOf(device)]!);
  for (const device of DEVICES) admit(device);
  return { memory, driver, units, admit };
};

describeDriver("devices made by software", () => {
  const { memory, driver, units } = make();
  const limitFrames = rationed(memory);
  return {
    driver,
    memory,
    devices: DEVICES,
    access(device, iova, write) {
      const transaction = request(iova, write ? Access.write : Access.read);
      const unit = units[DEVICES.indexOf(device as Requester)]!;
      return unit.translate(transaction) === TranslateStatus.ok ? transaction.pa : "fault";
    },
    limitFrames,
    close: () => memory.close(),
  };
});

describe("devices made by software", () => {
  it("have plain domains, and no PASIDs", () => {
    const { memory, driver, units } = make();
    const [device] = DEVICES;
    for (const option of [{ nestParent: true }, { dirtyTracking: true }, { pasid: true }, { faults: true }])
      expect(codeOf(() => driver.allocatePaging(device, option))).toBe("EOPNOTSUPP");
    expect(codeOf(() => driver.attach(device, driver.identity, 1))).toBe("EINVAL");
    driver.attach(device, driver.identity);
    expect(units[0]!.translate(request(0x1000, Access.read, 5))).toBe(TranslateStatus.fault);
    expect(driver.domains).toBe(0);
    memory.close();
  });

  it("are no more when they were released", () => {
    const { memory, driver } = make();
    driver.release(DEVICES[0]);
    expect(codeOf(() => driver.attach(DEVICES[0], driver.blocked))).toBe("ENODEV");
    expect(codeOf(() => driver.probe({ name: "stranger", rid: 3 }))).toBe("ENODEV");
    memory.close();
  });

  it("say why an access is refused, and explain one that is not", () => {
    const told: EventFields[] = [];
    const { memory, driver, units } = make({ on: true, emit: (_kind, fields) => told.push(fields) });
    const unit = units[0]!;
    const outcomes = (iova: number, access: number, pasid?: number) =>
      [...unit.explain(request(iova, access, pasid))].at(-1)!.outcome;
    unit.translate(request(0x1000, Access.read));
    const domain = driver.allocatePaging(DEVICES[0]);
    domain.map(0x1000, 0x5000, 0x1000, Protection.read);
    driver.attach(DEVICES[0], domain);
    unit.translate(request(0x1000, Access.write));
    unit.translate(request(0x1000, Access.read, 4));
    expect(told.map(({ unit: name, pasid, address }) => [name, pasid, address])).toEqual([
      ["software", NO_PASID, 0x1000n],
      ["software", NO_PASID, 0x1000n],
      ["software", 4, 0x1000n],
    ]);
    expect(told.map(({ reason }) => reason)).toEqual([
      expect.stringContaining("no domain"),
      expect.stringContaining("write is refused"),
      expect.stringContaining("no PASIDs"),
    ]);
    expect(outcomes(0x1234, Access.read)).toMatchObject({ ok: true, pa: 0x5234 });
    driver.attach(DEVICES[0], driver.identity);
    expect(outcomes(0x1234, Access.read)).toMatchObject({ ok: true, pa: 0x1234 });
    driver.release(DEVICES[0]);
    domain.free();
    memory.close();
  });
});
