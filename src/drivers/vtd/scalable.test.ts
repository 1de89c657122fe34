/** The VT-d driver in scalable mode: tables of either stage, PASIDs, dirty tracking, functions with TLBs of their own. */

import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import { PasidEntry, ScalableContextEntry } from "../../hardware/vtd/scalable-spec.ts";
import { Register, RtaddrRegister, Ttm } from "../../hardware/vtd/spec.ts";
import type { PagingDomain } from "../../iommu/driver.ts";
import { extendedCapabilitiesOf } from "../../pci/capability-list.ts";
import { AtsCapability, ExtendedCapabilityId, PriCapability } from "../../pci/spec.ts";
import { dataOf } from "../user-data.suite.ts";
import { Rig, SCALABLE } from "./rig.suite.ts";

const PAGE = 4096;
const RW = 3;

let rig: Rig;
const domains: PagingDomain[] = [];
const start = (options: ConstructorParameters<typeof Rig>[0] = {}): Rig => {
  rig = new Rig(options);
  return rig;
};
const paging = (options = {}, driver = rig.driver): PagingDomain => {
  const domain = driver.allocatePaging(rig.device, options);
  domains.push(domain);
  return domain;
};
beforeEach(() => {
  domains.length = 0;
});
afterEach(() => {
  rig.release();
  for (const domain of domains) domain.free();
  for (const driver of rig.drivers) expect(driver.domains).toBe(0);
  expect(rig.close()).toBe(0);
});

describe("tables", () => {
  /** The PASID table entry of a function, by the specification's layout, from the registers on. */
  const entryOf = (rid: number, pasid: number): { context: bigint; entry: bigint | undefined } => {
    const { memory, unit } = rig;
    const read = (pa: number, bytes: number): bigint => {
      const into = new Uint8Array(bytes);
      expect(memory.readBytes(pa, into)).toBe(true);
      return into.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
    };
    const pointer = (value: bigint): number => Number(value & 0xf_ffff_ffff_f000n);
    const rtaddr = unit.mmioRead(Register.RTADDR, 8);
    expect(RtaddrRegister.fields.TTM.of(rtaddr)).toBe(BigInt(Ttm.scalable));
    const half = read(pointer(rtaddr) + (rid >>> 8) * 16 + ((rid >>> 7) & 1) * 8, 8);
    expect(half & 1n).toBe(1n);
    const context = read(pointer(half) + (rid & 0x7f) * 32, 32);
    const table = read(pointer(context) + (pasid >>> 6) * 8, 8);
    const entry = table & 1n ? read(pointer(table) + (pasid & 63) * 64, 64) : undefined;
    return { context, entry };
  };
  const shown = (value: bigint): Record<string, bigint> =>
    Object.fromEntries(
      PasidEntry.decode(value)
        .filter((field) => field.value !== 0n)
        .map((field) => [field.name, field.value]),
    );

  it("§9.4 a context entry says what the function and the unit both have", () => {
    const { device } = start();
    const decoded = ScalableContextEntry.decode(entryOf(device.rid, 0).context);
    const fields = Object.fromEntries(decoded.map(({ name, value }) => [name, value]));
    expect(fields).toMatchObject({ P: 1n, DTE: 1n, PASIDE: 1n, PRE: 1n, PDTS: 7n, RID_PASID: 0n });
  });

  it("a function without the capabilities has a small directory and none of them", () => {
    const { device, driver } = start({ pasidBits: 0, ats: false, pri: false });
    const { context } = entryOf(device.rid, 0);
    const { DTE, PASIDE, PRE, PDTS } = ScalableContextEntry.fields;
    expect([DTE, PASIDE, PRE, PDTS].map((field) => field.of(context))).toEqual([0n, 0n, 0n, 0n]);
    expect(driver.probe(device)).toMatchObject({ pasidBits: 0, ats: false });
    expect(codeOf(() => driver.attach(device, driver.identity, 1))).toBe("EINVAL");
  });

  it("§9.6 a domain is a first stage where there is one, a second one for nest parents and dirty tracking", () => {
    const { device, driver } = start();
    const plain = paging({ pasid: true });
    const parent = paging({ nestParent: true });
    const tracked = paging({ dirtyTracking: true });
    const shows = (domain: PagingDomain) => {
      driver.attach(device, domain);
      return shown(entryOf(device.rid, 0).entry!);
    };
    expect(shows(plain)).toMatchObject({ P: 1n, PGTT: 1n, DID: BigInt(plain.id), WPE: 1n, PGSNP: 1n });
    for (const domain of [parent, tracked]) {
      expect(shows(domain)).toMatchObject({ P: 1n, PGTT: 2n, DID: BigInt(domain.id), AW: 2n });
      expect(shows(domain)).not.toHaveProperty("FSPTPTR");
    }
    driver.attach(device, driver.identity);
    expect(shown(entryOf(device.rid, 0).entry!)).toMatchObject({ P: 1n, PGTT: 4n, DID: 1n });
    driver.attach(device, driver.blocked);
    expect(entryOf(device.rid, 0).entry).toBe(0n);
  });

  it("tables of PASIDs come with their first entry and go with their last", () => {
    const { device, driver, memory } = start();
    const domain = paging({ pasid: true });
    const rest = memory.allocated;
    driver.attach(device, domain, 1);
    expect(memory.allocated).toBe(rest); // beside that of requests without PASID
    driver.attach(device, domain, 1000);
    driver.attach(device, domain, 1001);
    expect(memory.allocated).toBe(rest + 1);
    driver.attach(device, driver.blocked, 1000);
    expect(entryOf(device.rid, 1001).entry! & 1n).toBe(1n);
    driver.attach(device, driver.blocked, 1001);
    expect(memory.allocated).toBe(rest);
    expect(entryOf(device.rid, 1001).entry).toBeUndefined();
  });

  it("what cannot be had for want of memory leaves everything as it was", () => {
    const { device, driver, memory } = start();
    const domain = paging({ pasid: true });
    domain.map(0x5000, 0x40_0000, PAGE, RW);
    const allocate = memory.allocate.bind(memory);
    memory.allocate = () => -1;
    expect(codeOf(() => driver.attach(device, domain, 5000))).toBe("ENOMEM");
    memory.allocate = allocate;
    expect(rig.access(device, 0x5000, true, 5000)).toBe("fault");
    driver.attach(device, domain, 5000);
    expect(rig.access(device, 0x5000, true, 5000)).toBe(0x40_0000);
  });
});

describe("what a unit lacks", () => {
  const { nested: _n, secondStageAccessedDirty: _d, ...bare } = SCALABLE;

  it.each([
    ["nested translation", bare, { nestParent: true }],
    ["dirty bits in second stages", bare, { dirtyTracking: true }],
    ["a second stage", { firstStage: true }, { nestParent: true }],
    ["tables made by vendor data", SCALABLE, { data: dataOf(new Uint8Array(4), 1) }],
  ])("%s: EOPNOTSUPP", (_what, scalable, options) => {
    start({ units: [{ scalable }] });
    expect(codeOf(() => paging(options))).toBe("EOPNOTSUPP");
    expect(codeOf(() => paging())).toBeUndefined();
  });

  it("page requests: a domain that reports faults cannot be given to a function that asks for no pages", () => {
    const { driver, device } = start({ pri: false });
    expect(codeOf(() => driver.attach(device, paging({ faults: true })))).toBe("ENODEV");
  });

  it("capabilities tell what the device and its unit both have", () => {
    const { driver, device } = start({ units: [{ scalable: { ...SCALABLE, pasidBits: 8 } }] });
    expect(driver.probe(device)).toEqual({
      cacheCoherent: true,
      dirtyTracking: true,
      pasidBits: 8,
      nesting: true,
      ats: true,
      pageRequests: true,
      pasidExecute: true,
      pasidPrivileged: true,
    });
  });

  it("what a function may do is switched on in its config space", () => {
    const { device } = start();
    const at = (id: number): number => extendedCapabilitiesOf(device).find((one) => one.id === id)!.at;
    const ats = at(ExtendedCapabilityId.ATS);
    const pri = at(ExtendedCapabilityId.PRI);
    expect(device.configRead(ats + AtsCapability.CONTROL, 2)).toBe(0x8000);
    expect(device.configRead(pri + PriCapability.CONTROL, 2)).toBe(1);
    expect(device.configRead(pri + PriCapability.OUTSTANDING_ALLOCATION, 4)).toBe(32);
  });
});

describe("PASIDs", () => {
  it("have domains of their own on a device that works on", () => {
    const { driver, device } = start();
    const all = [0x40_0000, 0x50_0000, 0x60_0000].map((pa) => {
      const domain = paging({ pasid: true });
      domain.map(0x5000, pa, PAGE, RW);
      return domain;
    });
    driver.attach(device, all[0]!);
    driver.attach(device, all[1]!, 7);
    expect(rig.access(device, 0x5000)).toBe(0x40_0000);
    expect(rig.access(device, 0x5000, true, 7)).toBe(0x50_0000);
    expect(rig.access(device, 0x5000, true, 8)).toBe("fault");
    driver.attach(device, all[2]!, 7);
    expect(rig.access(device, 0x5000, true, 7)).toBe(0x60_0000);
    driver.attach(device, driver.blocked, 7);
    expect(rig.access(device, 0x5000, true, 7)).toBe("fault");
    expect(rig.access(device, 0x5000)).toBe(0x40_0000);
    expect(driver.faults.at(-1)).toMatchObject({ rid: device.rid, pasid: 7, write: true });
  });

  it("share a domain: what is unmapped is out of reach of every one", () => {
    const { driver, functions } = start();
    const domain = paging({ pasid: true });
    domain.map(0x5000, 0x40_0000, PAGE, RW);
    for (const device of functions) {
      driver.attach(device, domain);
      for (const pasid of [1, 77]) driver.attach(device, domain, pasid);
    }
    const reach = () =>
      functions.flatMap((device) => [NO_PASID, 1, 77].map((tag) => rig.access(device, 0x5000, true, tag)));
    expect(new Set(reach())).toEqual(new Set([0x40_0000]));
    domain.unmap(0x5000, PAGE);
    expect(new Set(reach())).toEqual(new Set(["fault"]));
  });

  it("find nothing of before when they get a domain back that has changed meanwhile", () => {
    const { driver, device } = start();
    for (const options of [{ pasid: true }, { nestParent: true }]) {
      const domain = paging(options);
      domain.map(0x5000, 0x40_0000, PAGE, RW);
      driver.attach(device, domain, 9);
      expect(rig.access(device, 0x5000, true, 9)).toBe(0x40_0000);
      driver.attach(device, driver.blocked, 9);
      domain.unmap(0x5000, PAGE);
      driver.attach(device, domain, 9);
      expect(rig.access(device, 0x5000, true, 9)).toBe("fault");
      driver.attach(device, driver.blocked, 9);
    }
  });

  it("0 stands for requests without one, and the device's width is the limit", () => {
    const { driver, device } = start({ pasidBits: 10 });
    const domain = paging({ pasid: true });
    for (const pasid of [0, 1024]) expect(codeOf(() => driver.attach(device, domain, pasid))).toBe("EINVAL");
    driver.attach(device, domain, 1023);
  });

  it("can be attached and detached a hundred thousand times without growth", () => {
    const { driver, device, memory } = start({ ats: false, pri: false });
    const domain = paging({ pasid: true });
    const rest = memory.allocated;
    for (let i = 0; i < 100_000; i++) {
      const pasid = 1 + ((i * 7919) % 0xf_fffe);
      driver.attach(device, domain, pasid);
      driver.attach(device, driver.blocked, pasid);
    }
    expect(memory.allocated).toBe(rest);
    expect(domain.pageSizes).toBe(0x4020_1000n);
  }, 120_000);
});

it("agrees with a plain map over random attaching, mapping and access, with PASIDs and both stages", () => {
  start();
  const { driver, functions } = rig;
  const step = fc.record({
    what: fc.constantFrom("attach", "detach", "map", "unmap", "access", "access", "access"),
    device: fc.constantFrom(0, 1),
    tag: fc.constantFrom(NO_PASID, 1, 2, 100),
    domain: fc.integer({ min: 0, max: 2 }),
    page: fc.integer({ min: 0, max: 5 }),
    write: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const all = [{}, { pasid: true }, { dirtyTracking: true }].map((options) =>
        driver.allocatePaging(rig.device, options),
      );
      const maps = all.map(() => new Map<number, { pa: number; write: boolean }>());
      const given = new Map<string, number>();
      for (const { what, device, tag, domain, page, write } of steps) {
        const who = functions[device]!;
        const key = `${device} ${tag}`;
        const pasid = tag === NO_PASID ? undefined : tag;
        if (what === "attach") {
          driver.attach(who, all[domain]!, pasid);
          given.set(key, domain);
        } else if (what === "detach") {
          driver.attach(who, driver.blocked, pasid);
          given.delete(key);
        } else if (what === "map" && !maps[domain]!.has(page)) {
          const pa = 0x40_0000 + (domain * 16 + page) * PAGE;
          all[domain]!.map(page * PAGE, pa, PAGE, write ? RW : 1);
          maps[domain]!.set(page, { pa, write });
        } else if (what === "unmap" && maps[domain]!.delete(page)) all[domain]!.unmap(page * PAGE, PAGE);
        else if (what === "access") {
          const owner = given.get(key);
          const entry = owner === undefined ? undefined : maps[owner]!.get(page);
          const expected = entry && (entry.write || !write) ? entry.pa : "fault";
          expect(rig.access(who, page * PAGE, write, tag)).toBe(expected);
        }
      }
      for (const key of given.keys()) {
        const [device, tag] = key.split(" ").map(Number);
        driver.attach(functions[device!]!, driver.blocked, tag === NO_PASID ? undefined : tag);
      }
      for (const domain of all) domain.free();
    }),
    { numRuns: 150 },
  );
});

describe("dirty tracking", () => {
  const dirtyOf = (domain: PagingDomain, clear: boolean): number[] => {
    const pages: number[] = [];
    domain.dirty!.read(0, 16 * PAGE, clear, (iova) => pages.push(iova));
    return pages;
  };

  it("tells what a device wrote to while it was on, and again after it was cleared", () => {
    const { driver, device } = start();
    const domain = paging({ dirtyTracking: true });
    domain.map(0, 0x41_0000, 16 * PAGE, RW);
    driver.attach(device, domain);
    rig.access(device, 0x1000, true);
    domain.dirty!.set(true);
    expect(dirtyOf(domain, false)).toEqual([]);
    rig.access(device, 0x1000, true);
    rig.access(device, 0x2000, false);
    rig.access(device, 0x3000, true);
    expect(dirtyOf(domain, false)).toEqual([0x1000, 0x3000]);
    expect(dirtyOf(domain, true)).toEqual([0x1000, 0x3000]);
    expect(dirtyOf(domain, true)).toEqual([]);
    rig.access(device, 0x3000, true);
    expect(dirtyOf(domain, true)).toEqual([0x3000]);
    domain.dirty!.set(false);
    rig.access(device, 0x4000, true);
    expect(dirtyOf(domain, true)).toEqual([]);
  });

  it("is off for a domain that was not made for it", () => {
    start();
    expect(paging().dirty).toBeUndefined();
    expect(paging({ nestParent: true }).dirty).toBeUndefined();
  });
});

describe("functions with TLBs of their own", () => {
  it("forget what is unmapped, by address and PASID, when the unit has forgotten it", () => {
    const { driver, device, flushed } = start();
    const domain = paging({ pasid: true });
    domain.map(0x20_0000, 0x40_0000, 3 * PAGE, RW);
    driver.attach(device, domain);
    driver.attach(device, domain, 9);
    flushed.length = 0;
    domain.unmap(0x20_0000, 3 * PAGE);
    const range = { rid: device.rid, lo: 0x20_0000, hi: 0, lg2: 14 };
    expect(flushed).toEqual([
      expect.objectContaining({ ...range, pasid: NO_PASID }),
      expect.objectContaining({ ...range, pasid: 9 }),
    ]);
  });

  it("forget everything when their domain changes or goes", () => {
    const { driver, device, flushed } = start();
    driver.attach(device, paging({ pasid: true }), 9);
    expect(flushed).toEqual([]);
    driver.attach(device, paging({ pasid: true }), 9);
    driver.attach(device, driver.blocked, 9);
    const everything = expect.objectContaining({
      rid: device.rid,
      pasid: 9,
      lo: 0,
      hi: 0,
      lg2: 64,
    }) as object;
    expect(flushed).toEqual([everything, everything]);
  });

  it("that do not answer are believed no translation any more", () => {
    const { driver, device, unit } = start();
    const domain = paging();
    domain.map(0x5000, 0x40_0000, PAGE, RW);
    driver.attach(device, domain);
    rig.answer = "timeout";
    domain.unmap(0x5000, PAGE);
    const asked = rig.flushed.length;
    domain.map(0x5000, 0x50_0000, PAGE, RW);
    domain.unmap(0x5000, PAGE);
    expect(rig.flushed.length).toBe(asked);
    expect(unit.mmioRead(Register.FSTS, 4) & 0x70n).toBe(0n);
    domain.map(0x5000, 0x60_0000, PAGE, RW);
    expect(rig.access(device, 0x5000, true)).toBe(0x60_0000);
  });
});
