import { afterEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { silent } from "../../base/events.ts";
import { FaultCode } from "../../hardware/zpci/faults.ts";
import { EVENTS, EventControl, Register } from "../../hardware/zpci/spec.ts";
import { describeDriver } from "../../iommu/driver.suite.ts";
import { type PagingDomain, Protection, type UnrecoverableFault } from "../../iommu/driver.ts";
import { ZpciDomain } from "./domain.ts";
import { END, ZpciBench, type ZpciBenchOptions } from "./rig.suite.ts";

describeDriver("zPCI", () => new ZpciBench());
describeDriver("zPCI, remembering nothing", () => new ZpciBench({ cache: "none" }));
describeDriver("zPCI, forgetting at random", () => new ZpciBench({ cache: "paranoid" }));
describeDriver(
  "zPCI, addresses from 256 MiB on, refreshing what becomes valid",
  () => new ZpciBench({ firmware: { start: 2 ** 28, end: 2 ** 40 }, refreshes: true }),
);

const RW = Protection.read | Protection.write;
const PAGE = 4096;

let bench: ZpciBench | undefined;
const domains: PagingDomain[] = [];
const open = (options: ZpciBenchOptions = {}): ZpciBench => {
  bench = new ZpciBench(options);
  for (const device of bench.devices) bench.driver.probe(device);
  return bench;
};
const domain = (options: object = {}) => {
  const made = bench!.driver.allocatePaging(bench!.devices[0], options);
  domains.push(made);
  return made;
};
afterEach(() => {
  if (!bench) return;
  for (const device of bench.devices) bench.driver.release(device);
  for (const each of domains.splice(0)) each.free();
  expect(bench.driver.domains).toBe(0);
  bench.close();
  expect(bench.memory.allocated).toBe(0);
  bench = undefined;
});

describe("the zPCI driver", () => {
  it("has neither PASIDs nor dirty tracking, and nesting by its extension only", () => {
    const { driver, devices } = open({ nesting: false });
    expect(driver.probe(devices[0])).toEqual({
      cacheCoherent: true,
      dirtyTracking: false,
      pasidBits: 0,
      nesting: false,
    });
    for (const options of [{ nestParent: true }, { dirtyTracking: true }, { pasid: true }, { faults: true }])
      expect(codeOf(() => domain(options))).toBe("EOPNOTSUPP");
    expect(codeOf(() => driver.attach(devices[0], driver.identity, 1))).toBe("EOPNOTSUPP");
    const data = { type: 0x7339_0001, length: 16, read: () => new Uint8Array(16), write: () => {} };
    expect(codeOf(() => driver.allocateNested(devices[0], domain(), data, {}))).toBe("EOPNOTSUPP");
  });

  it("knows its functions, and says what it cannot have", () => {
    const { driver, devices } = open({ firmware: { covers: ({ rid }) => rid === 0x100 || rid === 0x218 } });
    expect(codeOf(() => driver.probe({ rid: 0x300, name: "0000:03:00.0" }))).toBe("ENODEV");
    bench!.limitFrames(2);
    expect(codeOf(() => domain())).toBe("ENOMEM");
    bench!.limitFrames(Number.POSITIVE_INFINITY);
    const freed = driver.allocatePaging(devices[0]);
    freed.free();
    expect(codeOf(() => driver.attach(devices[0], freed))).toBe("EINVAL");
  });

  it("does not take a domain with addresses that its functions may not use", () => {
    const { driver, devices } = open({ firmware: { start: 0x10_0000, end: 0x20_0000 } });
    const wide = new ZpciDomain({
      ...{ unitName: "zpci1", id: 1, memory: bench!.memory, start: 0, end: END, nestParent: false },
      events: silent,
      forget: () => {},
    });
    expect(codeOf(() => driver.attach(devices[0], wide))).toBe("EINVAL");
    wide.free();
  });

  it("keeps functions to the addresses of the machine, in every domain", () => {
    const { driver, devices } = open({ firmware: { start: 0x10_0000, end: 0x20_0000 } });
    const made = domain();
    expect(made.apertures).toEqual([{ start: 0x10_0000, end: 0x20_0000 }]);
    expect(codeOf(() => made.map(0xf_f000, 0x40_0000, PAGE, RW))).toBe("EFAULT");
    driver.attach(devices[0], driver.identity);
    expect(bench!.access(devices[0], 0x10_0000, true)).toBe(0x10_0000);
    expect(bench!.access(devices[0], 0xf_f000, true)).toBe("fault");
  });

  it("stores errors when it is told of them, until there are none, and passes them on", () => {
    const { driver, unit, devices } = open();
    const told: [string, UnrecoverableFault][] = [];
    driver.onFault = ({ name }, fault) => told.push([name, fault]);
    const made = domain();
    made.map(0x5000, 0x40_0000, PAGE, Protection.read);
    driver.attach(devices[0], made);
    bench!.access(devices[0], 0x5008, true);
    bench!.access(devices[0], 0x6000, false);
    bench!.access(devices[1], 0x6000, false);
    expect(driver.faults.map(({ code }) => code)).toEqual([
      FaultCode.protection,
      FaultCode.page,
      FaultCode.noParameters,
    ]);
    expect(told[0]).toEqual([devices[0].name, { address: 0x5008n, permissions: 2, reason: "permission" }]);
    expect(told.map(([, { reason }]) => reason)).toEqual(["permission", "entry", "unknown"]);
    // As if the driver was slow: more wait than the unit keeps.
    unit.mmioWrite(Register.EVENT_CONTROL, 4, 0n);
    for (let more = 1; more < EVENTS; more++) bench!.access(devices[0], 0x9000, false);
    unit.mmioWrite(Register.EVENT_CONTROL, 4, BigInt(EventControl.ENABLE));
    bench!.access(devices[0], 0x9000, false);
    expect([driver.faultCount, driver.faultOverflows]).toEqual([3 + EVENTS, 0]);
    unit.mmioWrite(Register.EVENT_CONTROL, 4, 0n);
    for (let more = 0; more < EVENTS + 3; more++) bench!.access(devices[0], 0x9000, false);
    unit.mmioWrite(Register.EVENT_CONTROL, 4, BigInt(EventControl.ENABLE));
    for (let more = 0; more < 3; more++) bench!.access(devices[0], 0x9000, false);
    expect([driver.faultCount, driver.faultOverflows]).toEqual([3 + 2 * EVENTS + 2, 1]);
  });

  it("a map that the unit cannot follow is taken back, and why is said", () => {
    let willing = true;
    const { driver, devices } = open({
      refreshes: true,
      host: { register: () => true, refresh: () => willing },
    });
    const made = domain();
    driver.attach(devices[0], made);
    made.map(0x5000, 0x40_0000, PAGE, RW);
    willing = false;
    expect(codeOf(() => made.map(0x6000, 0x41_0000, PAGE, RW))).toBe("EIO");
    expect([made.physical(0x5000), made.physical(0x6000)]).toEqual([0x40_0000, -1]);
    // What is taken away is gone whatever the unit says.
    expect(made.unmap(0x5000, PAGE)).toBe(PAGE);
    expect(bench!.access(devices[0], 0x5000, false)).toBe("fault");
  });

  it("a domain that the unit does not take leaves the function what it had", () => {
    let willing = true;
    const { driver, devices } = open({ host: { register: () => willing, refresh: () => true } });
    const [one, other] = [domain(), domain()];
    one.map(0x5000, 0x40_0000, PAGE, RW);
    driver.attach(devices[0], one);
    willing = false;
    expect(codeOf(() => driver.attach(devices[0], other))).toBe("EIO");
    willing = true;
    expect(bench!.access(devices[0], 0x5000, true)).toBe(0x40_0000);
    expect(codeOf(() => one.free())).toBe("EBUSY");
  });
});
