import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../base/clock.ts";
import { access, requestOf } from "../unit.suite.ts";
import { Access, NO_PASID } from "../unit.ts";
import { InvalidateAll, Opcode } from "./queue-spec.ts";
import { AmdViRig, invalidateDevice, invalidatePages, readWrite, wait } from "./rig.suite.ts";
import { AmdViUnit, type CachePolicy } from "./unit.ts";

const RID = 0x18;
const { read, write } = Access;
const all = InvalidateAll.make({ OPCODE: Opcode.INVALIDATE_IOMMU_ALL });

/** A device in domain 1 with page 5 mapped by host tables, and read once. */
const known = () => {
  const rig = new AmdViRig();
  rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
  rig.enable();
  access(rig, RID, 0x5000);
  rig.map(RID, 0x5000, 0x50_0000, 12, readWrite);
  return rig;
};
const pa = (rig: AmdViRig, iova = 0x5000, pasid = NO_PASID) => {
  const found = access(rig, RID, iova, read, pasid);
  return found.ok ? found.pa : -1;
};

describe("§2.4.3 INVALIDATE_IOMMU_PAGES of host tables", () => {
  it("forgets the page, or the range it is in, of its domain; and nothing else need be forgotten", () => {
    for (const command of [
      invalidatePages(1, 0x5000, 12),
      invalidatePages(1, 0x4000, 13),
      invalidatePages(1, 0, 30),
      invalidatePages(1, 0, 40),
      invalidatePages(1, 0, 64),
      all,
    ]) {
      const rig = known();
      expect(pa(rig)).toBe(0x40_0000);
      rig.submit(invalidatePages(2, 0, 64), invalidatePages(1, 0x6000, 12), invalidateDevice(RID), wait());
      expect(pa(rig)).toBe(0x40_0000);
      rig.submit(command, wait());
      expect(pa(rig), command.toString(16)).toBe(0x50_0000);
    }
  });

  it("any address of a page larger than the IOTLB holds reaches all of it", () => {
    const rig = new AmdViRig({ mode: 5 });
    const { host } = rig.domain(RID);
    rig.mapHost(host, 0, 0, 39, readWrite);
    rig.enable();
    expect([pa(rig, 0x4000_5000), pa(rig, 0x5000)]).toEqual([0x4000_5000, 0x5000]);
    rig.mapHost(host, 0, 2 ** 39, 39, readWrite);
    rig.submit(invalidatePages(1, 0x5000, 12), wait());
    expect(pa(rig, 0x4000_5000)).toBe(2 ** 39 + 0x4000_5000);
  });
});

describe("§2.4.2 INVALIDATE_DEVTAB_ENTRY", () => {
  it("makes the unit read the entry of that device again", () => {
    const rig = known();
    const { host } = rig.domain(RID + 1);
    rig.map(RID + 1, 0x5000, 0x60_0000, 12, readWrite);
    rig.dte(RID, { DOMAIN: 2, MODE: 4, HOST_TRP: host });
    rig.submit(invalidateDevice(RID + 1), wait());
    expect(pa(rig)).toBe(0x40_0000);
    rig.submit(invalidateDevice(RID), wait());
    expect(pa(rig)).toBe(0x60_0000);
  });
});

describe("§2.4.3 INVALIDATE_IOMMU_PAGES with GN", () => {
  /** PASIDs 3 and 4 with a page each, over host tables. */
  const guests = () => {
    const rig = new AmdViRig({ stages: "nested" });
    const { host } = rig.domain(RID);
    const tables = [rig.memory.allocate(1), rig.memory.allocate(1)] as const;
    for (const table of tables) rig.mapGuest(table, 0x5000, 0x40_0000, 12, readWrite);
    const gcr3 = rig.gcr3({ 3: tables[0], 4: tables[1] });
    rig.dte(RID, { DOMAIN: 1, MODE: 4, HOST_TRP: host, ...rig.gcr3Fields(gcr3) });
    rig.enable();
    const both = () => [pa(rig, 0x5000, 3), pa(rig, 0x5000, 4)];
    expect(both()).toEqual([0x40_0000, 0x40_0000]);
    return { rig, host, tables, gcr3, both };
  };

  it("forgets pages of one PASID", () => {
    const { rig, tables, both } = guests();
    for (const table of tables) rig.mapGuest(table, 0x5000, 0x50_0000, 12, readWrite);
    rig.submit(invalidatePages(1, 0x6000, 12, { GN: true, PASID: 3 }), wait());
    rig.submit(invalidatePages(2, 0x5000, 12, { GN: true, PASID: 3 }), wait());
    expect(both()).toEqual([0x40_0000, 0x40_0000]);
    rig.submit(invalidatePages(1, 0x5000, 12, { GN: true, PASID: 3 }), wait());
    expect(both()).toEqual([0x50_0000, 0x40_0000]);
    rig.submit(invalidatePages(1, 0, 64, { GN: true, PASID: 4 }), wait());
    expect(both()).toEqual([0x50_0000, 0x50_0000]);
  });

  it("reaches all of a guest page that host tables have in smaller ones", () => {
    const { rig, host, tables, gcr3 } = guests();
    const small = rig.memory.allocate(1);
    for (let at = 0; at < 2 ** 34; at += 2 ** 30) rig.mapHost(small, at, at, 30, readWrite);
    const base = 0x8000_0000_0000;
    for (let at = 0; at < 0x4000; at += 0x1000) rig.mapHost(small, base + at, 0x70_0000 + at, 12, readWrite);
    rig.dte(RID, { DOMAIN: 5, MODE: 4, HOST_TRP: small, ...rig.gcr3Fields(gcr3) });
    rig.submit(invalidateDevice(RID), wait());
    rig.mapGuest(tables[0], 0x20_0000, base, 21, readWrite);
    expect([pa(rig, 0x20_0000, 3), pa(rig, 0x20_1000, 3)]).toEqual([0x70_0000, 0x70_1000]);
    rig.mapGuest(tables[0], 0x20_0000, 0x4000_0000, 21, readWrite);
    rig.submit(invalidatePages(5, 0x20_1000, 12, { GN: true, PASID: 3 }), wait());
    expect([pa(rig, 0x20_0000, 3), pa(rig, 0x20_1000, 3)]).toEqual([0x4000_0000, 0x4000_1000]);
    expect(host).toBeGreaterThan(0);
  });

  it("also forgets where the PASID's tables are, as does the invalidation of the device", () => {
    for (const command of [invalidatePages(1, 0, 64, { GN: true, PASID: 3 }), invalidateDevice(RID)]) {
      const { rig, tables, gcr3 } = guests();
      const other = rig.memory.allocate(1);
      rig.mapGuest(other, 0x6000, 0x60_0000, 12, readWrite);
      rig.store64(gcr3 + 8 * 3, BigInt(other) | 1n);
      expect(pa(rig, 0x6000, 3)).toBe(-1);
      rig.submit(command, wait());
      expect(pa(rig, 0x6000, 3), command.toString(16)).toBe(0x60_0000);
      expect(tables[0]).not.toBe(other);
    }
  });

  it("without GN the host tables' change reaches what guests have above them", () => {
    const { rig, host, both } = guests();
    rig.mapHost(host, 0, 0x1_0000_0000, 30, readWrite);
    expect(both()).toEqual([0x40_0000, 0x40_0000]);
    rig.submit(invalidatePages(1, 0, 64), wait());
    expect(both()).toEqual([0x1_0040_0000, 0x1_0040_0000]);
  });
});

describe("what is remembered", () => {
  it("is used for what it grants; what it does not grant is looked up again", () => {
    const rig = new AmdViRig();
    rig.map(RID, 0x5000, 0x40_0000, 12, Access.read);
    rig.enable();
    expect(pa(rig)).toBe(0x40_0000);
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    expect(access(rig, RID, 0x5000, write)).toMatchObject({ ok: true });
  });

  it("is of one PASID and privilege", () => {
    const rig = new AmdViRig({ stages: "guest" });
    const tables = [rig.memory.allocate(1), rig.memory.allocate(1)] as const;
    rig.mapGuest(tables[0], 0x5000, 0x40_0000, 12, readWrite);
    rig.mapGuest(tables[1], 0x5000, 0x50_0000, 12, readWrite);
    const link = (below: number) => BigInt(below) | 7n;
    rig.store64(rig.entryAddress(tables[0], 4, 0x6000, 1, link), 0x60_0003n);
    rig.dte(RID, { DOMAIN: 1, ...rig.gcr3Fields(rig.gcr3({ 3: tables[0], 4: tables[1] })) });
    rig.enable();
    for (let round = 0; round < 3; round++) {
      expect([pa(rig, 0x5000, 3), pa(rig, 0x5000, 4), pa(rig)]).toEqual([0x40_0000, 0x50_0000, 0x5000]);
      const supervisor = access(rig, RID, 0x6000, read | Access.privileged, 3);
      expect(supervisor).toMatchObject({ ok: true, pa: 0x60_0000 });
      expect(access(rig, RID, 0x6000, read, 3).ok).toBe(false);
    }
  });

  it("has room for more address spaces than it has numbers for", () => {
    const rig = new AmdViRig({ stages: "guest" });
    const table = rig.memory.allocate(1);
    rig.mapGuest(table, 0x5000, 0x40_0000, 12, readWrite);
    const second = rig.memory.allocate(1);
    for (let i = 0; i < 512; i++) rig.store64(second + 8 * i, BigInt(table) | 1n);
    const first = rig.memory.allocate(1);
    for (let i = 0; i < 512; i++) rig.store64(first + 8 * i, BigInt(second) | 1n);
    rig.dte(RID, { DOMAIN: 1, ...rig.gcr3Fields(first), GLX: 1 });
    rig.enable();
    for (let pasid = 0; pasid < 5000; pasid++)
      if (pa(rig, 0x5000, pasid) !== 0x40_0000) throw new Error(`PASID ${pasid}`);
    rig.mapGuest(table, 0x5000, 0x50_0000, 12, readWrite);
    rig.submit(invalidatePages(1, 0x5000, 12, { GN: true, PASID: 4999 }), wait());
    expect(pa(rig, 0x5000, 4999)).toBe(0x50_0000);
  });

  it("a paranoid cache needs a source of random numbers", () => {
    const { memory, events } = new AmdViRig();
    const options = { name: "amdvi1", memory, events, interrupt: () => {} };
    expect(() => new AmdViUnit({ ...options, cache: "paranoid" })).toThrow(/amdvi1: a paranoid cache needs/);
  });
});

// A device may see what the tables said at any time since a command that invalidated what it uses.

const PAGES = 4;
const DOMAINS = [1, 2];
const RIDS = [0x18, 0x19];

/** Goes through random changes, commands and accesses; returns how many answers were stale. */
const history = (cache: CachePolicy, stages: "host" | "guest", seed: number): number => {
  const random = new Random(seed);
  const rig = new AmdViRig({ stages, cache, seed });
  const tables = DOMAINS.map(() => rig.memory.allocate(1));
  const gcr3 = tables.map((table) => rig.gcr3({ 0: table }));
  /** What a page of a domain is now; and was since it was invalidated. */
  const now = DOMAINS.map(() => Array.from({ length: PAGES }, () => 0));
  const seen = DOMAINS.map(() => Array.from({ length: PAGES }, () => new Set([0])));
  /** The domains of a device, in the same way. */
  const domainOf = RIDS.map(() => 0);
  const domainsSeen = RIDS.map(() => new Set([0]));
  const point = (device: number) => {
    const domain = domainOf[device]!;
    rig.dte(RIDS[device]!, {
      DOMAIN: DOMAINS[domain]!,
      ...(stages === "host"
        ? { MODE: 4, HOST_TRP: tables[domain]! }
        : { ...rig.gcr3Fields(gcr3[domain]!), GIOV: true }),
    });
  };
  RIDS.forEach((_, device) => {
    point(device);
  });
  rig.enable();
  const command = (domain: number, page: number, lg2: number) =>
    invalidatePages(DOMAINS[domain]!, page * 0x1000, lg2, stages === "guest" ? { GN: true } : {});
  let stale = 0;
  for (let step = 0; step < 120; step++) {
    const [domain, device, page] = [random.below(2), random.below(2), random.below(PAGES)];
    switch (random.below(8)) {
      case 0:
      case 1: {
        const to = random.below(3) ? 0x40_0000 + random.below(64) * 0x1000 : 0;
        now[domain]![page] = to;
        seen[domain]![page]!.add(to);
        const map = stages === "host" ? rig.mapHost : rig.mapGuest;
        map.call(rig, tables[domain]!, page * 0x1000, to, 12, to === 0 ? 0 : readWrite);
        break;
      }
      case 2:
        rig.submit(command(domain, page, 12), wait());
        seen[domain]![page] = new Set([now[domain]![page]!]);
        break;
      case 3:
        rig.submit(random.below(4) ? command(domain, 0, 14) : command(domain, 0, 64), wait());
        for (let one = 0; one < PAGES; one++) seen[domain]![one] = new Set([now[domain]![one]!]);
        break;
      case 4:
        domainOf[device] = domain;
        domainsSeen[device]!.add(domain);
        point(device);
        break;
      case 5:
        rig.submit(invalidateDevice(RIDS[device]!), wait());
        domainsSeen[device] = new Set([domainOf[device]!]);
        break;
      default: {
        const request = requestOf(RIDS[device]!, page * 0x1000 + 0x10, read);
        const told = [...rig.unit.explain(request)].at(-1)!.outcome!;
        const found = access(rig, RIDS[device]!, page * 0x1000 + 0x10);
        const at = found.ok ? (found as { pa: number }).pa - 0x10 : 0;
        if (cache !== "paranoid") expect(told.ok ? told.pa - 0x10 : 0).toBe(at);
        const legal = [...domainsSeen[device]!].flatMap((one) => [...seen[one]![page]!]);
        expect(legal).toContain(at);
        if (cache === "none") expect(at).toBe(now[domainOf[device]!]![page]);
        if (at !== now[domainOf[device]!]![page]) stale += 1;
        rig.takeEvents();
      }
    }
  }
  return stale;
};

describe.each(["host", "guest"] as const)(
  "any order of changes, commands and accesses, %s tables",
  (stages) => {
    it.each<[string, CachePolicy]>([
      ["cached", "normal"],
      ["paranoid", "paranoid"],
      ["without caches", "none"],
    ])("a unit %s only answers what was valid since the last sufficient invalidation", (_, cache) => {
      fc.assert(
        fc.property(fc.nat(), (seed) => void history(cache, stages, seed)),
        { numRuns: 20 },
      );
    });

    it("a caching unit does answer stale translations in such histories", () => {
      let stale = 0;
      for (let seed = 0; seed < 10; seed++) stale += history("normal", stages, seed);
      expect(stale).toBeGreaterThan(20);
    });
  },
);
