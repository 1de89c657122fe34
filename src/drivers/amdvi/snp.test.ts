/** The AMD-Vi driver on a host with secure nested paging. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { EVERYTHING } from "../../hardware/amdvi/capabilities.ts";
import { EventCode } from "../../hardware/amdvi/queue-spec.ts";
import { ExtendedFeature } from "../../hardware/amdvi/spec.ts";
import { Rmp } from "../../hardware/rmp.ts";
import { Protection } from "../../iommu/driver.ts";
import { AmdBench, RAM } from "./rig.suite.ts";

const RW = Protection.read | Protection.write;
const PAGE = 4096;
const IOVA = 0x1000_0000;
const capabilities = { efr: EVERYTHING | ExtendedFeature.make({ SNP_SUP: true }) };

let rmp: Rmp;
let bench: AmdBench;
beforeEach(() => {
  rmp = new Rmp(RAM);
  bench = new AmdBench({ capabilities, rmp });
  for (const device of bench.devices) bench.driver.probe(device);
});
afterEach(() => {
  for (const device of bench.devices) bench.driver.release(device);
  bench.close();
  expect(bench.memory.allocated).toBe(0);
});

describe("with secure nested paging", () => {
  it("identity domains are refused with EINVAL, and what was attached stays", () => {
    const [device] = bench.devices;
    expect(codeOf(() => bench.driver.attach(device, bench.driver.identity))).toBe("EINVAL");
    expect(bench.access(device, IOVA, false)).toBe("fault");
  });

  it("there are no PASIDs and no nesting, and hardware information says what the unit has all the same", () => {
    const { driver, devices } = bench;
    expect(driver.probe(devices[0])).toMatchObject({ pasidBits: 0, nesting: false });
    expect(codeOf(() => driver.allocatePaging(devices[0], { pasid: true }))).toBe("EOPNOTSUPP");
    expect(codeOf(() => driver.allocatePaging(devices[0], { nestParent: true }))).toBe("EOPNOTSUPP");
    expect(driver.hasViommu()).toBe(false);
    expect(driver.unit.efr & capabilities.efr).toBe(capabilities.efr);
    expect(bench.unit.capabilities.guestTranslation).toBe(true);
  });

  it("domains have version 1 tables, and a fault of the reverse map table is told", () => {
    const { driver, memory, scheduler } = bench;
    const [device] = bench.devices;
    const page = memory.allocate(1);
    const domain = driver.allocatePaging(device);
    domain.map(IOVA, page, PAGE, RW);
    driver.attach(device, domain);
    expect(bench.access(device, IOVA, true)).toBe(page);
    rmp.update(page, { assigned: true, lg2: 12, gpa: 0, asid: 1 });
    const told: bigint[] = [];
    driver.onFault = (_, { address = 0n }) => told.push(address);
    expect(bench.access(device, IOVA + 8, true)).toBe("fault");
    scheduler.run();
    expect(driver.faults.at(-1)).toMatchObject({ code: EventCode.RMP_PAGE_FAULT, write: true });
    expect(told).toEqual([BigInt(IOVA + 8)]);
    driver.attach(device, driver.blocked);
    domain.free();
    memory.free(page, 1);
  });

  it("needs a unit that has it", () => {
    expect(codeOf(() => new AmdBench({ rmp }))).toBe("ENODEV");
  });
});
