/** The driver on a unit that a VMM shows: what its firmware says that no unit of silicon's does. */
import { afterEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { EVERYTHING } from "../../hardware/amdvi/capabilities.ts";
import { ExtendedFeature, Register } from "../../hardware/amdvi/spec.ts";
import { describeDriver } from "../../iommu/driver.suite.ts";
import { Protection } from "../../iommu/driver.ts";
import { AmdBench } from "./rig.suite.ts";

const guestTables = { firmware: { guestTablesOnly: true } };
describeDriver("AMD-Vi, guest tables alone", () => new AmdBench(guestTables));

const RW = Protection.read | Protection.write;
const PAGE = 4096;
const IOVA = 0x1_2345_6000;

describe("the AMD-Vi driver on a virtual unit", () => {
  let bench: AmdBench;
  afterEach(() => {
    bench.close();
    expect(bench.memory.allocated).toBe(0);
  });

  it("has guest tables alone where there are no host tables (HATDis), for requests with PASIDs and without", () => {
    bench = new AmdBench(guestTables);
    const [device] = bench.devices;
    const { driver } = bench;
    driver.probe(device);
    const domain = driver.allocatePaging(device);
    expect(domain.table).toBe("guest");
    domain.map(IOVA, 0x5000, PAGE, RW);
    driver.attach(device, domain);
    driver.attach(device, domain, 3);
    expect(bench.access(device, IOVA, true)).toBe(0x5000);
    expect(bench.access(device, IOVA, true, 3)).toBe(0x5000);
    for (const options of [{ nestParent: true }, { dirtyTracking: true }])
      expect(codeOf(() => driver.allocatePaging(device, options))).toBe("EOPNOTSUPP");
    driver.release(device);
    domain.free();
  });

  it("does not come up where there are no guest tables either", () => {
    const { GIO_SUP } = ExtendedFeature.fields;
    const capabilities = { efr: EVERYTHING & ~GIO_SUP.put(1n) };
    bench = new AmdBench();
    expect(codeOf(() => new AmdBench({ ...guestTables, capabilities }))).toBe("ENODEV");
  });

  it.each([false, true])(
    "is told of what is added just where firmware says so (NpCache): %s",
    (remembersAbsent) => {
      bench = new AmdBench({ firmware: { remembersAbsent } });
      const [device] = bench.devices;
      const { driver, unit } = bench;
      driver.probe(device);
      const domain = driver.allocatePaging(device);
      driver.attach(device, domain);
      const told = () => unit.mmioRead(Register.CMDBUF_TAIL, 8);
      const before = told();
      domain.map(IOVA, 0x5000, PAGE, RW);
      expect(told() !== before).toBe(remembersAbsent);
      driver.attach(device, driver.blocked);
      // The first PASID changes the device's entry.
      const process = driver.allocatePaging(device, { pasid: true });
      driver.attach(device, process, 1);
      const last = told();
      driver.attach(device, process, 2);
      expect(told() !== last).toBe(remembersAbsent);
      driver.release(device);
      process.free();
      domain.free();
    },
  );
});
