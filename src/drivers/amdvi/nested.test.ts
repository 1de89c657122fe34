/** Guests' tables above the host's (extension `amd-nesting`) as the driver keeps them: domain ids, and what a parent's change does. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { EVERYTHING, EVERYTHING_2 } from "../../hardware/amdvi/capabilities.ts";
import { Dte, Gcr3Entry, Register } from "../../hardware/amdvi/spec.ts";
import { Protection } from "../../iommu/driver.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { x86Paging } from "../../pagetable/x86-64.ts";
import { IOMMU_HWPT_DATA_AMD_GUEST, IommuHwptAmdGuest } from "../../uapi/vendor/amd.ts";
import { dataOf } from "../user-data.suite.ts";
import type { AmdDomain } from "./domain.ts";
import { gcr3Fields } from "./gcr3-table.ts";
import { AmdBench, type AmdBenchOptions, RAM } from "./rig.suite.ts";
import { AmdNestingViommu } from "./viommu.ts";

const RW = Protection.read | Protection.write;
const PAGE = 4096;
const ADDRESS = 0x12_3400_0000;
const NO_DATA = dataOf(new Uint8Array(), 0);

let bench: AmdBench;
let parent: AmdDomain;
const viommus: AmdNestingViommu[] = [];
const guestTables: Mapper[] = [];
const frames: number[] = [];

const start = (options: AmdBenchOptions = {}): void => {
  bench = new AmdBench({ nesting: true, ...options });
  for (const device of bench.devices) bench.driver.probe(device);
  parent = bench.driver.allocatePaging(bench.devices[0], { nestParent: true });
  parent.map(0, 0, RAM, RW);
};
const viommu = (): AmdNestingViommu => {
  const made = bench.driver.allocateViommu(bench.devices[0], parent, NO_DATA);
  if (!(made instanceof AmdNestingViommu)) throw new TypeError("nothing can be made on it");
  viommus.push(made);
  return made;
};
/** A GCR3 table whose PASID 0 has a table with a page at ADDRESS. */
const tables = (pa: number): number => {
  const mapper = new Mapper(bench.memory, x86Paging(4));
  mapper.map(ADDRESS, pa, PAGE, RW);
  guestTables.push(mapper);
  const gcr3 = bench.memory.allocate(1);
  frames.push(gcr3);
  bench.memory.store64(gcr3, Number(Gcr3Entry.make({ V: true, ADDR: mapper.root })), 0);
  return gcr3;
};
const nested = (
  on: AmdNestingViommu,
  gcr3: number,
  DOMAIN: number,
  more: Parameters<typeof Dte.make>[0] = {},
) => {
  const entry = Dte.make({
    ...{ V: true, TV: true, IR: true, IW: true, GV: true, GIOV: true, DOMAIN },
    ...gcr3Fields(BigInt(gcr3)),
    ...more,
  });
  const dte = [0n, 64n, 128n, 192n].map((at) => (entry >> at) & 0xffff_ffff_ffff_ffffn);
  const data = dataOf(IommuHwptAmdGuest.bytes({ dte }), IOMMU_HWPT_DATA_AMD_GUEST);
  return on.allocateNested(bench.devices[0], data, {});
};
/** The domain id in the function's entry. */
const domainOf = (rid: number): number => {
  const table = Number(bench.unit.mmioRead(Register.DEVTAB_BASE, 8) & ~0xfffn);
  const bytes = new Uint8Array(Dte.bytes);
  bench.memory.readBytes(table + rid * Dte.bytes, bytes);
  return Number(Dte.fields.DOMAIN.of(Dte.read(bytes)));
};

beforeEach(() => start());
afterEach(() => {
  for (const device of bench.devices) bench.driver.release(device);
  for (const each of viommus.splice(0)) each.free();
  for (const mapper of guestTables.splice(0)) mapper.destroy();
  for (const frame of frames.splice(0)) bench.memory.free(frame, 1);
  parent.free();
  expect([bench.driver.domains, bench.driver.viommus]).toEqual([0, 0]);
  bench.close();
  expect(bench.memory.allocated).toBe(0);
});

describe("domain ids of a guest", () => {
  it("that are equal have one of the host's, in one vIOMMU; the others have others", () => {
    const [device, other] = bench.devices;
    const [one, two] = [viommu(), viommu()];
    const gcr3 = tables(0x40_0000);
    const made = [nested(one, gcr3, 5), nested(one, gcr3, 5), nested(one, gcr3, 6), nested(two, gcr3, 5)];
    bench.driver.attach(device, made[0]!);
    bench.driver.attach(other, made[1]!);
    const shared = domainOf(device.rid);
    expect(domainOf(other.rid)).toBe(shared);
    const others = made.slice(2).map((domain) => {
      bench.driver.attach(other, domain);
      return domainOf(other.rid);
    });
    expect(new Set([shared, ...others, parent.id]).size).toBe(4);
    expect(one.domainIds).toHaveLength(2);
    bench.driver.attach(device, bench.driver.blocked);
    bench.driver.attach(other, bench.driver.blocked);
    made[0]!.free();
    expect(one.domainIds).toHaveLength(2);
    made[1]!.free();
    expect(one.domainIds).toHaveLength(1);
    made[2]!.free();
    made[3]!.free();
    expect([...one.domainIds, ...two.domainIds]).toEqual([]);
  });

  it("give the host's back with nothing remembered under it, and run out as the host's do", () => {
    const [device] = bench.devices;
    const on = viommu();
    for (const pa of [0x40_0000, 0x50_0000]) {
      const made = nested(on, tables(pa), 5);
      bench.driver.attach(device, made);
      expect(bench.access(device, ADDRESS, true)).toBe(pa);
      bench.driver.attach(device, bench.driver.blocked);
      made.free();
    }
    for (const each of viommus.splice(0)) each.free();
    for (const mapper of guestTables.splice(0)) mapper.destroy();
    for (const frame of frames.splice(0)) bench.memory.free(frame, 1);
    parent.free();
    for (const each of bench.devices) bench.driver.release(each);
    bench.close();
    start({ domainIds: 6 });
    const small = viommu();
    const gcr3 = tables(0x40_0000);
    const only = nested(small, gcr3, 1);
    expect(codeOf(() => nested(small, gcr3, 2))).toBe("ENOSPC");
    nested(small, gcr3, 1).free();
    only.free();
  });

  it("are not taken for entries without tables of the guest", () => {
    const [device] = bench.devices;
    const on = viommu();
    const made = nested(on, 0, 5, { GV: false, GIOV: false });
    bench.driver.attach(device, made);
    expect(on.domainIds).toEqual([]);
    expect(domainOf(device.rid)).toBe(parent.id);
    expect(bench.access(device, 0x40_0000, true)).toBe(0x40_0000);
    bench.driver.attach(device, bench.driver.blocked);
    made.free();
  });
});

describe("a change of the parent", () => {
  it("makes the unit forget what guests have above it, under every id, and their functions everything", () => {
    const [device, other] = bench.devices;
    const [one, two] = [viommu(), viommu()];
    const gcr3 = tables(0x40_0000);
    const made = [nested(one, gcr3, 5, { I: true }), nested(two, gcr3, 5)];
    bench.driver.attach(device, made[0]!);
    bench.driver.attach(other, made[1]!);
    for (const each of [device, other]) expect(bench.access(each, ADDRESS, true)).toBe(0x40_0000);
    parent.unmap(0, RAM);
    for (const each of [device, other]) expect(bench.access(each, ADDRESS, true)).toBe("fault");
    parent.map(0, 0, RAM, RW);
    for (const each of [device, other]) expect(bench.access(each, ADDRESS, true)).toBe(0x40_0000);
    expect(codeOf(() => parent.free())).toBe("EBUSY");
    expect(codeOf(() => made[0]!.free())).toBe("EBUSY");
    for (const each of [device, other]) bench.driver.attach(each, bench.driver.blocked);
    for (const domain of made) domain.free();
  });
});

describe("a nested domain", () => {
  it("is of the driver's own nest parents, and no PASID's", () => {
    const [device] = bench.devices;
    const made = nested(viommu(), tables(0x40_0000), 5);
    expect(codeOf(() => bench.driver.attach(device, made, 3))).toBe("EOPNOTSUPP");
    const stranger = new AmdBench({ nesting: true });
    stranger.driver.probe(stranger.devices[0]);
    expect(codeOf(() => stranger.driver.attach(stranger.devices[0], made))).toBe("EINVAL");
    stranger.driver.release(stranger.devices[0]);
    stranger.close();
    const guest = bench.driver.allocatePaging(device, { pasid: true });
    bench.driver.attach(device, guest, 3);
    expect(codeOf(() => bench.driver.attach(device, made))).toBe("EBUSY");
    bench.driver.attach(device, bench.driver.blocked, 3);
    guest.free();
    made.free();
  });

  it("with tables of the guest needs a unit that reads GCR3 tables at a guest's addresses", () => {
    for (const device of bench.devices) bench.driver.release(device);
    parent.free();
    bench.close();
    start({ capabilities: { efr: EVERYTHING, efr2: EVERYTHING_2 & ~8n } });
    const on = viommu();
    expect(codeOf(() => nested(on, 0x9000, 5))).toBe("EOPNOTSUPP");
    nested(on, 0, 5, { GV: false }).free();
  });
});
