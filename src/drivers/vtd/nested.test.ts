/** Guests' tables above the host's on VT-d: what 1 and its invalidations promise. */

import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import type { NestedDomain } from "../../iommu/driver.ts";
import type { Mapper } from "../../pagetable/mapper.ts";
import { IOMMU_VTD_S1_EAFE, IOMMU_VTD_S1_SRE, IOMMU_VTD_S1_WPE } from "../../uapi/vendor/vtd.ts";
import { dataOf } from "../user-data.suite.ts";
import type { VtdDomain } from "./domain.ts";
import { firstStage, Rig, type RigOptions, requests, SCALABLE } from "./rig.suite.ts";

const PAGE = 4096;
const RW = 3;
const ALL = 2n ** 64n - 1n;

let rig: Rig;
const parents: VtdDomain[] = [];
const nested: NestedDomain[] = [];
const start = (options: RigOptions = {}): Rig => {
  rig = new Rig(options);
  return rig;
};
const parent = (dirtyTracking = false): VtdDomain => {
  const made = rig.parent(rig.driver, dirtyTracking);
  parents.push(made);
  return made;
};
/** A guest's table above the parent. */
const above = (
  below: VtdDomain,
  members = {},
  driver = rig.driver,
): { domain: NestedDomain; table: Mapper } => {
  const table = rig.guestTable();
  const data = firstStage({ pgtbl_addr: BigInt(table.root), ...members });
  const domain = driver.allocateNested(rig.device, below, data, {});
  nested.push(domain);
  return { domain, table };
};
beforeEach(() => {
  parents.length = 0;
  nested.length = 0;
});
afterEach(() => {
  rig.release();
  for (const domain of nested) domain.free();
  for (const domain of parents) domain.free();
  expect(rig.close()).toBe(0);
});

describe("a guest's table", () => {
  it("translates above the host's, for requests with and without PASID", () => {
    const { driver, device } = start();
    const below = parent();
    const { domain, table } = above(below);
    table.map(0x7000, 0x40_0000, PAGE, RW);
    driver.attach(device, domain);
    driver.attach(device, domain, 12);
    expect(rig.access(device, 0x7010, true)).toBe(0x40_0010);
    expect(rig.access(device, 0x7010, true, 12)).toBe(0x40_0010);
    expect(rig.access(device, 0x8000)).toBe("fault");
    below.unmap(0, 2 ** 28);
    expect(rig.access(device, 0x7010, true)).toBe("fault");
    expect(rig.access(device, 0x7010, true, 12)).toBe("fault");
    expect(rig.access(device, 0x40_0000)).toBe("fault");
  });

  it("is apart from that of another guest with the same parent and the same PASID", () => {
    const { driver, functions } = start();
    const below = parent();
    const [one, two] = [above(below), above(below)];
    one.table.map(0x7000, 0x40_0000, PAGE, RW);
    two.table.map(0x7000, 0x50_0000, PAGE, RW);
    for (const tag of [undefined, 5]) {
      driver.attach(functions[0]!, one.domain, tag);
      driver.attach(functions[1]!, two.domain, tag);
    }
    for (const tag of [NO_PASID, 5]) {
      expect(rig.access(functions[0]!, 0x7000, true, tag)).toBe(0x40_0000);
      expect(rig.access(functions[1]!, 0x7000, true, tag)).toBe(0x50_0000);
    }
  });

  it("keeps its parent; devices keep it", () => {
    const { driver, device } = start();
    const below = parent();
    const { domain } = above(below);
    expect(codeOf(() => below.free())).toBe("EBUSY");
    driver.attach(device, domain);
    expect(codeOf(() => domain.free())).toBe("EBUSY");
  });

  it("gives its domain ids back", () => {
    const { driver, device } = start({ units: [{ domainBits: 4 }] });
    const below = parent();
    const { domain } = above(below);
    for (let i = 0; i < 100; i++) {
      driver.attach(device, domain, 3);
      driver.attach(device, driver.blocked, 3);
    }
    const others = Array.from({ length: 13 }, () => driver.allocatePaging(device));
    expect(codeOf(() => driver.attach(device, domain))).toBe("ENOSPC");
    expect(rig.access(device, 0x7000)).toBe("fault");
    for (const one of others) one.free();
    driver.attach(device, domain);
  });

  it("is written through into the parent's dirty bits", () => {
    const { driver, device } = start();
    const below = parent(true);
    const { domain, table } = above(below);
    table.map(0x7000, 0x40_0000, PAGE, RW);
    driver.attach(device, domain);
    rig.access(device, 0x7000, true);
    const dirty = (): number[] => {
      const found: number[] = [];
      below.dirty!.read(0x40_0000, PAGE, true, (iova) => found.push(iova));
      return found;
    };
    expect(dirty()).toEqual([]);
    below.dirty!.set(true);
    rig.access(device, 0x7000, true);
    expect(dirty()).toEqual([0x40_0000]);
    rig.access(device, 0x7000, true);
    expect(dirty()).toEqual([0x40_0000]);
  });
});

describe("a guest's table is refused", () => {
  it("on a unit without nesting, for another kind of data, above what is no nest parent", () => {
    const { nested: _, ...without } = SCALABLE;
    const { driver, drivers, device } = start({ units: [{}, { scalable: without }] });
    const below = parent();
    const make = (
      of = driver,
      on: Parameters<typeof driver.allocateNested>[1] = below,
      data = firstStage({}),
    ) => codeOf(() => nested.push(of.allocateNested(device, on, data, {})));
    expect(make(drivers[1]!)).toBe("EOPNOTSUPP");
    expect(make(driver, below, firstStage({}, 2))).toBe("EOPNOTSUPP");
    const plain = driver.allocatePaging(device);
    expect(make(driver, plain)).toBe("EINVAL");
    plain.free();
    expect(make(driver, below, dataOf(new Uint8Array(23), 1))).toBe("EINVAL");
    expect(make()).toBeUndefined();
  });

  it("when it is attached, for what the unit does not have", () => {
    const { supervisorRequests: _s, extendedAccessed: _e, ...less } = SCALABLE;
    const { driver, device } = start({ units: [{ scalable: less }] });
    const below = parent();
    const attach = (members: object) => codeOf(() => driver.attach(device, above(below, members).domain));
    expect(attach({ flags: BigInt(IOMMU_VTD_S1_SRE) })).toBe("EINVAL");
    expect(attach({ flags: BigInt(IOMMU_VTD_S1_EAFE) })).toBe("EINVAL");
    for (const addr_width of [0, 39, 57, 64]) expect(attach({ addr_width })).toBe("EINVAL");
    expect(attach({ flags: BigInt(IOMMU_VTD_S1_WPE) })).toBeUndefined();
  });

  it("takes every flag and 57 bits where the unit has them", () => {
    const { driver, device } = start({ units: [{ scalable: { ...SCALABLE, fiveLevels: true } }] });
    const flags = BigInt(IOMMU_VTD_S1_SRE | IOMMU_VTD_S1_EAFE | IOMMU_VTD_S1_WPE);
    const { domain } = above(parent(), { flags, addr_width: 57 });
    expect(codeOf(() => driver.attach(device, domain))).toBeUndefined();
  });

  it("but not for flags that mean nothing, nor for what is reserved", () => {
    const { driver, device } = start();
    const { domain } = above(parent(), { flags: (2n ** 63n) | 8n, __reserved: 0xdead });
    expect(codeOf(() => driver.attach(device, domain))).toBeUndefined();
  });

  it("behind a unit that the parent does not fit", () => {
    const { drivers, functions } = start({ units: [{}, { addressWidths: [39] }] });
    const { domain } = above(parent());
    expect(codeOf(() => drivers[1]!.attach(functions[2]!, domain))).toBe("EINVAL");
  });
});

it("a read-only mapping into a nest parent is EINVAL", () => {
  start();
  const below = parent();
  below.unmap(0, 2 ** 28);
  expect(codeOf(() => below.map(0, 0, PAGE, 1))).toBe("EINVAL");
  expect(codeOf(() => below.map(0, 0, PAGE, RW))).toBeUndefined();
});

it("one parent spans units: a guest's flush goes where its table is attached, a parent's unmap everywhere", () => {
  const { drivers, functions } = start({ units: [{}, {}] });
  const below = parent();
  const tables = [above(below), above(below, {}, drivers[1]!)] as const;
  const [first, second] = [functions[0]!, functions[2]!];
  tables.forEach(({ table, domain }, index) => {
    table.map(0x7000, 0x40_0000, PAGE, RW);
    drivers[index]!.attach([first, second][index]!, domain);
  });
  for (const device of [first, second]) expect(rig.access(device, 0x7000)).toBe(0x40_0000);
  for (const { table } of tables) table.unmap(0x7000, PAGE);
  rig.flushed.length = 0;
  tables[1].domain.invalidate!(requests([{ addr: 0n, npages: ALL }]));
  expect(rig.flushed.map(({ rid }) => rid)).toEqual([second.rid]);
  expect(rig.access(first, 0x7000)).toBe(0x40_0000); // its unit still knows
  expect(rig.access(second, 0x7000)).toBe("fault");
  tables[1].table.map(0x7000, 0x40_0000, PAGE, RW);
  expect(rig.access(second, 0x7000)).toBe(0x40_0000);
  rig.flushed.length = 0;
  below.unmap(0, 2 ** 28);
  for (const device of [first, second]) expect(rig.access(device, 0x7000)).toBe("fault");
  expect(rig.flushed).toEqual(
    [first, second].map(({ rid }) => expect.objectContaining({ rid, lo: 0, hi: 0, lg2: 64 }) as object),
  );
});

describe("invalidations", () => {
  /** A guest with pages 0 to 31 mapped and known to the unit, that has unmapped them all since. */
  const stale = () => {
    const { driver, device } = start();
    const { domain, table } = above(parent());
    table.map(0, 0x40_0000, 32 * PAGE, RW);
    driver.attach(device, domain, 3);
    for (let page = 0; page < 32; page++)
      expect(rig.access(device, page * PAGE, true, 3)).toBe(0x40_0000 + page * PAGE);
    table.unmap(0, 32 * PAGE);
    rig.flushed.length = 0;
    const known = (): number[] =>
      Array.from({ length: 32 }, (_, page) => page).filter(
        (page) => rig.access(device, page * PAGE, true, 3) !== "fault",
      );
    return { domain, known, device };
  };
  const others = (from: number, count: number): number[] =>
    Array.from({ length: 32 }, (_, page) => page).filter((page) => page < from || page >= from + count);

  it("forget the pages they name, in the unit and in the device", () => {
    const { domain, known, device } = stale();
    expect(domain.invalidate!(requests([{ addr: 0x4000n, npages: 4n, flags: 1 }]))).toEqual({ done: 1 });
    expect(known()).toEqual(others(4, 4));
    expect(rig.flushed).toEqual([
      expect.objectContaining({ rid: device.rid, pasid: 3, lo: 0x4000, hi: 0, lg2: 14 }),
    ]);
  });

  it("that cover everything forget everything", () => {
    const { domain, known } = stale();
    expect(domain.invalidate!(requests([{ addr: 0n, npages: ALL }]))).toEqual({ done: 1 });
    expect(known()).toEqual([]);
    expect(rig.flushed).toEqual([expect.objectContaining({ lo: 0, hi: 0, lg2: 64 })]);
  });

  it("beyond the end of addresses, and of no page at all, forget no less than they name", () => {
    const { domain, known } = stale();
    const last = ALL - 4095n;
    expect(
      domain.invalidate!(
        requests([
          { addr: last, npages: 5n },
          { addr: 0n, npages: 0n },
        ]),
      ),
    ).toEqual({ done: 2 });
    expect(known()).toEqual([]);
  });

  it.each([
    ["an unknown flag", { flags: 2 }, "EOPNOTSUPP"],
    ["a reserved member that is not zero", { __reserved: 1 }, "EOPNOTSUPP"],
    ["an address within a page", { addr: 0x4001n, npages: 1n }, "EINVAL"],
    ["everything from an address on", { addr: 0x1000n, npages: ALL }, "EINVAL"],
  ])("stop at an entry with %s, and tell how many were done", (_what, entry, code) => {
    const { domain, known } = stale();
    const outcome = domain.invalidate!(
      requests([{ addr: 0n, npages: 1n }, { addr: 0x1000n, npages: 1n }, entry, { addr: 0n, npages: ALL }]),
    );
    expect(outcome.done).toBe(2);
    expect(outcome.error).toMatchObject({ code });
    expect(known()).toEqual(others(0, 2));
  });

  it("of another kind are EINVAL with none done, even when there are none", () => {
    const { domain } = stale();
    for (const entries of [[], [{ addr: 0n, npages: 1n }]]) {
      const outcome = domain.invalidate!(requests(entries, 1));
      expect(outcome).toMatchObject({ done: 0, error: { code: "EINVAL" } });
    }
    expect(domain.invalidate!(requests([]))).toEqual({ done: 0 });
  });
});
