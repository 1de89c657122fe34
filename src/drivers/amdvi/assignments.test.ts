/**
 * What functions reach, over random attachments, maps and unmaps, against a literal model: version 1 tables, tables of
 * processors with and without PASIDs, identity, nothing, and a guest's table above the host's.
 */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { Dte, Gcr3Entry } from "../../hardware/amdvi/spec.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import { type Domain, type PagingDomain, Protection } from "../../iommu/driver.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { x86Paging } from "../../pagetable/x86-64.ts";
import { IOMMU_HWPT_DATA_AMD_GUEST, IommuHwptAmdGuest } from "../../uapi/vendor/amd.ts";
import { dataOf } from "../user-data.suite.ts";
import { gcr3Fields } from "./gcr3-table.ts";
import { AmdBench, type AmdBenchOptions, RAM } from "./rig.suite.ts";
import { AmdNestingViommu } from "./viommu.ts";

const RW = Protection.read | Protection.write;
const PAGE = 4096;
const IOVA = 0x12_3400_0000;
/** Where the guest has the pages behind its addresses; the host maps some of them. */
const GUEST = 2 ** 40;
const PAGES = 2;
const PASIDS = [1, 2, 0x8_0001];
const TABLES = ["host", "one", "two"] as const;
/** What a function can be given; `parent`: what the guest's table lies above, and which only changes. */
type Table = (typeof TABLES)[number] | "parent";
type Given = (typeof TABLES)[number] | "nested" | "identity" | "blocked";

const frameOf = (table: Table, page: number): number =>
  0x400_0000 + (["host", "one", "two", "parent"].indexOf(table) * PAGES + page) * PAGE;

/** The driver and what is made for it. */
class Scene {
  readonly bench: AmdBench;
  readonly tables: { readonly [name in Table]: PagingDomain };
  readonly nested: Domain & { free(): void };
  readonly #viommu: AmdNestingViommu;
  readonly #guestTable: Mapper;
  readonly #gcr3: number;

  constructor(options: AmdBenchOptions) {
    this.bench = new AmdBench({ nesting: true, ...options });
    const { driver, devices, memory } = this.bench;
    for (const device of devices) driver.probe(device);
    const allocate = (options: object) => driver.allocatePaging(devices[0], options);
    const parent = allocate({ nestParent: true });
    this.tables = {
      host: allocate({}),
      one: allocate({ pasid: true }),
      two: allocate({ pasid: true }),
      parent,
    };
    parent.map(0, 0, RAM, RW);
    this.#guestTable = new Mapper(memory, x86Paging(4));
    this.#guestTable.map(IOVA, GUEST, PAGES * PAGE, RW);
    this.#gcr3 = memory.allocate(1);
    const entry = Gcr3Entry.make({ V: true, ADDR: this.#guestTable.root });
    // PASID 0, and the first of the others.
    for (const pasid of [0, PASIDS[0]!]) memory.store64(this.#gcr3 + 8 * pasid, Number(entry), 0);
    const viommu = driver.allocateViommu(devices[0], parent, dataOf(new Uint8Array(), 0));
    if (!(viommu instanceof AmdNestingViommu)) throw new TypeError("nothing can be made on it");
    this.#viommu = viommu;
    const dte = Dte.make({
      ...{ V: true, TV: true, IR: true, IW: true, GV: true, GIOV: true, DOMAIN: 9 },
      ...gcr3Fields(BigInt(this.#gcr3)),
    });
    const words = [0n, 64n, 128n, 192n].map((at) => (dte >> at) & 0xffff_ffff_ffff_ffffn);
    const data = dataOf(IommuHwptAmdGuest.bytes({ dte: words }), IOMMU_HWPT_DATA_AMD_GUEST);
    this.nested = viommu.allocateNested(devices[0], data, {});
  }

  domainOf(given: Given): Domain {
    const { driver } = this.bench;
    if (given === "nested") return this.nested;
    return given === "identity" || given === "blocked" ? driver[given] : this.tables[given];
  }

  /** Nothing is left. */
  close(): void {
    const { driver, devices, memory } = this.bench;
    for (const device of devices) driver.release(device);
    this.nested.free();
    this.#viommu.free();
    for (const table of Object.values(this.tables)) table.free();
    this.#guestTable.destroy();
    memory.free(this.#gcr3, 1);
    this.bench.close();
    expect(memory.allocated).toBe(0);
  }
}

/** What is so, literally. */
class Model {
  readonly mapped: { readonly [name in Table]: Set<number> } = {
    ...{ host: new Set(), one: new Set(), two: new Set(), parent: new Set() },
  };
  readonly functions = [0, 1].map(() => ({ given: "blocked" as Given, pasids: new Map<number, Given>() }));

  attach(index: number, given: Given): string | undefined {
    const made = this.functions[index]!;
    if (made.given === given) return undefined;
    if (made.pasids.size > 0 && (given === "host" || given === "nested")) return "EBUSY";
    made.given = given;
    return undefined;
  }

  attachPasid(index: number, pasid: number, given: Given): string | undefined {
    const { given: own, pasids } = this.functions[index]!;
    if (given === "blocked") {
      pasids.delete(pasid);
      return undefined;
    }
    if (given === "identity" || given === "nested") return "EOPNOTSUPP";
    if (given === "host" || own === "host" || own === "nested") return "EINVAL";
    pasids.set(pasid, given);
    return undefined;
  }

  reach(index: number, page: number, pasid: number): number | "fault" {
    const { given, pasids } = this.functions[index]!;
    if (given === "nested") {
      const has = pasid === NO_PASID || pasid === PASIDS[0];
      return has && this.mapped.parent.has(page) ? frameOf("parent", page) : "fault";
    }
    const table = pasid === NO_PASID ? given : (pasids.get(pasid) ?? "blocked");
    if (table === "identity") return IOVA + page * PAGE;
    if (table === "blocked" || table === "nested") return "fault";
    return this.mapped[table].has(page) ? frameOf(table, page) : "fault";
  }
}

const page = fc.integer({ min: 0, max: PAGES - 1 });
const index = fc.integer({ min: 0, max: 1 });
const given = fc.constantFrom<Given>("host", "one", "two", "nested", "nested", "identity", "blocked");
const pasid = fc.constantFrom(...PASIDS);
const step = fc.oneof(
  fc.record({ what: fc.constant("attach" as const), index, given }),
  fc.record({ what: fc.constant("attachPasid" as const), index, given, pasid }),
  fc.record({
    what: fc.constantFrom("map" as const, "unmap" as const),
    table: fc.constantFrom<Table>(...TABLES, "parent"),
    page,
  }),
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

const take = (scene: Scene, model: Model, made: Step): void => {
  const { bench, tables } = scene;
  const { driver, devices } = bench;
  switch (made.what) {
    case "attach": {
      const code = codeOf(() => driver.attach(devices[made.index]!, scene.domainOf(made.given)));
      expect(code).toBe(model.attach(made.index, made.given));
      return;
    }
    case "attachPasid": {
      const domain = scene.domainOf(made.given);
      const code = codeOf(() => driver.attach(devices[made.index]!, domain, made.pasid));
      expect(code).toBe(model.attachPasid(made.index, made.pasid, made.given));
      return;
    }
    case "map":
    case "unmap": {
      const mapped = model.mapped[made.table];
      const at = (made.table === "parent" ? GUEST : IOVA) + made.page * PAGE;
      if (made.what === "unmap") {
        expect(tables[made.table].unmap(at, PAGE)).toBe(mapped.delete(made.page) ? PAGE : 0);
        return;
      }
      const pa = frameOf(made.table, made.page);
      const code = codeOf(() => tables[made.table].map(at, pa, PAGE, RW));
      expect(code).toBe(mapped.has(made.page) ? "EEXIST" : undefined);
      mapped.add(made.page);
      return;
    }
  }
};

/** Every function is tried with every PASID and every page, so that the unit has all there is in its caches. */
const look = ({ bench }: Scene, model: Model): void => {
  const reached: (number | "fault")[] = [];
  const expected: (number | "fault")[] = [];
  for (const [index, device] of bench.devices.entries())
    for (const tag of [NO_PASID, ...PASIDS])
      for (let page = 0; page < PAGES; page++) {
        reached.push(bench.request(device, IOVA + page * PAGE, true, tag));
        expected.push(model.reach(index, page, tag));
      }
  expect(reached).toEqual(expected);
  bench.scheduler.run();
};

describe.each(["normal", "paranoid"] as const)("what functions reach, of a unit with a %s cache", (cache) => {
  it("is what they were given, whatever was before", () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 10, maxLength: 60 }), (steps) => {
        const scene = new Scene({ cache });
        const model = new Model();
        for (const each of steps) {
          take(scene, model, each);
          look(scene, model);
        }
        scene.close();
      }),
      { numRuns: 20 },
    );
  });
});
