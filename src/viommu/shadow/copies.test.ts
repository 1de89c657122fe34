/** A copy against a literal model of the guest's table, for every format that a guest can have. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { silent } from "../../base/events.ts";
import { VtdDriver } from "../../drivers/vtd/driver.ts";
import { completeCapabilities as completeAmd } from "../../hardware/amdvi/capabilities.ts";
import { Dte, Gcr3Entry } from "../../hardware/amdvi/spec.ts";
import { completeCapabilities } from "../../hardware/smmuv3/capabilities.ts";
import { Cd, Config, GRANULE_TG0, GRANULE_TG1, Ste } from "../../hardware/smmuv3/spec.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import type { PagingDomain } from "../../iommu/driver.ts";
import { MsiController } from "../../kernel/msi.ts";
import { type Banks, createMemory } from "../../memory/banks.ts";
import { amdV1 } from "../../pagetable/amdv1.ts";
import { Protection } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { vmsaStage1 } from "../../pagetable/vmsa.ts";
import { vtdFirstLevel } from "../../pagetable/vtd-first-level.ts";
import { x86Paging } from "../../pagetable/x86-64.ts";
import { IOMMU_HWPT_DATA_VTD_S1, IommuHwptVtdS1 } from "../../uapi/vendor/vtd.ts";
import { gcr3At } from "../amdvi/rig.suite.ts";
import { GuestTables as AmdTables } from "../amdvi/tables.ts";
import { GuestContexts } from "../smmuv3/tables.ts";
import { VtdFrontEnd } from "../vtd/front-end.ts";
import { Copies, type CopiesOptions } from "./copies.ts";
import { LiteralHost, type LiteralPage } from "./literal-host.suite.ts";
import { EVERYWHERE, type GuestTable } from "./table.ts";

const PAGE = 4096;
/** It ends within what large leaves can map. */
const RAM = { va: 0x7f00_0000_0000, bytes: 2 ** 22 - 3 * PAGE };
const DEVICE = { rid: 8, fd: 3, id: 1 };
const BASE = 0x4000_0000;
const RW = Protection.read | Protection.write;

/** A table in guest memory, with who writes it. */
interface Subject {
  readonly table: GuestTable;
  readonly writer: Pick<PagingDomain, "map" | "unmap">;
  /** Bytes of its smallest pages. */
  readonly granule: number;
  /** Where its addresses begin. */
  readonly base: number;
  /** What writes it, where nobody marks pages that are not used yet. */
  readonly mapper?: Mapper;
}

const device = { name: "0000:00:01.0", rid: DEVICE.rid };

/** A guest's VT-d unit in scalable mode with the driver, and the table that the device has. */
const vtd = (memory: Banks, kind: "first" | "second" | "nested"): Subject => {
  const interrupt = () => {};
  const scalable = { firstStage: true, secondStage: true, nested: true, secondStageAccessedDirty: true };
  const capabilities = { addressWidths: [39, 48], hostAddressWidth: 46, scalable } as const;
  const iommu = new VtdFrontEnd({ name: "vIOMMU", memory, events: silent, interrupt, capabilities });
  const firmware = { hostAddressWidth: 46, covers: () => true, reservedMemory: [] };
  const msi = new MsiController(memory);
  const driver = new VtdDriver({ name: "dmar0", unit: iommu, memory, msi, firmware, events: silent });
  driver.probe(device);
  const table = (): GuestTable => {
    const translation = iommu.translationOf(device.rid);
    if (translation.kind !== "stage") throw new Error(`the device has ${translation.kind}`);
    return translation.stage;
  };
  if (kind !== "nested") {
    const writer = driver.allocatePaging(device, { dirtyTracking: kind === "second" });
    driver.attach(device, writer);
    return { table: table(), writer, granule: PAGE, base: BASE };
  }
  const parent = driver.allocatePaging(device, { nestParent: true });
  parent.map(0, 0, 2 ** 25, RW);
  const writer = new Mapper(memory, vtdFirstLevel(4, { pageLg2s: [12, 21], hostAddressWidth: 46 }));
  const bytes = IommuHwptVtdS1.bytes({ pgtbl_addr: BigInt(writer.root), addr_width: 48 });
  const data = { type: IOMMU_HWPT_DATA_VTD_S1, length: bytes.length, read: () => bytes, write: () => {} };
  driver.attach(device, driver.allocateNested(device, parent, data, {}));
  return { table: table(), writer, granule: PAGE, base: BASE, mapper: writer };
};

const smmu = (memory: Banks, granuleLg2: 12 | 14 | 16, upper: boolean): Subject => {
  const unit = completeCapabilities({ substreamIdBits: 0 });
  const mapper = new Mapper(memory, vmsaStage1({ granuleLg2, inputBits: 48, outputBits: 44 }));
  const descriptor = memory.allocate(1);
  const lower = { T0SZ: 16, TG0: GRANULE_TG0.indexOf(granuleLg2), TTB0: mapper.root, EPD1: true };
  const higher = { T1SZ: 16, TG1: GRANULE_TG1.indexOf(granuleLg2), TTB1: mapper.root, EPD0: true };
  const fields = { V: true, AA64: true, IPS: 4, A: true, R: true, ...(upper ? higher : lower) };
  const bytes = new Uint8Array(Cd.bytes);
  Cd.write(bytes, Cd.make(fields));
  memory.writeBytes(descriptor, bytes);
  const entry = Ste.make({ V: true, CONFIG: Config.stage1, S1CONTEXTPTR: descriptor });
  const translation = new GuestContexts(memory, unit).translationOf(entry, NO_PASID);
  if (translation.kind !== "table") throw new Error(`the device has ${translation.kind}`);
  const first = upper ? 2 ** 64 - 2 ** 48 : 0;
  const writer = {
    map: (iova: number, pa: number, length: number, protection: number) =>
      mapper.map(iova - first, pa, length, protection),
    unmap: (iova: number, length: number) => mapper.unmap(iova - first, length),
  };
  return { table: translation.table, writer, granule: 2 ** granuleLg2, base: first + BASE };
};

/** A guest's AMD-Vi unit without a driver, and one of its tables: the guest's above host tables that are not to be seen. */
const amd = (memory: Banks, kind: "host" | "guest" | "nested"): Subject => {
  const [gcr3, entries] = [memory.allocate(1), memory.allocate(1)];
  const host = new Mapper(memory, amdV1(4));
  const guest = new Mapper(memory, x86Paging(4));
  if (kind === "nested") host.map(0, 0, 2 ** 25, RW);
  const root = Gcr3Entry.make({ V: true, ADDR: guest.root });
  memory.store64(gcr3, Number(root & 0xffff_ffffn), Number(root >> 32n));
  const bytes = new Uint8Array(Dte.bytes);
  const entry = Dte.make({
    ...{ V: true, TV: true, IR: true, IW: true },
    ...(kind !== "guest" && { MODE: 4, HOST_TRP: host.root }),
    ...(kind !== "host" && gcr3At(gcr3)),
    GIOV: kind !== "host",
  });
  Dte.write(bytes, entry);
  memory.writeBytes(entries + DEVICE.rid * Dte.bytes, bytes);
  const table = { base: entries, bytes: PAGE, guestTranslation: true, gcr3Guest: false };
  const unit = completeAmd();
  const translation = new AmdTables(memory, unit).translationOf(table, DEVICE.rid, NO_PASID);
  if (translation.kind !== "stage") throw new Error(`the device has ${translation.kind}`);
  const writer = kind === "host" ? host : guest;
  return { table: translation.stage, writer, granule: PAGE, base: BASE, mapper: writer };
};

const SUBJECTS: readonly (readonly [string, (memory: Banks) => Subject])[] = [
  ["VT-d first stage", (memory) => vtd(memory, "first")],
  ["VT-d second stage", (memory) => vtd(memory, "second")],
  ["VT-d first stage above a second one", (memory) => vtd(memory, "nested")],
  ["AMD-Vi host tables", (memory) => amd(memory, "host")],
  ["AMD-Vi guest tables", (memory) => amd(memory, "guest")],
  ["AMD-Vi guest tables above host tables", (memory) => amd(memory, "nested")],
  ...([12, 14, 16] as const).flatMap((lg2) =>
    [false, true].map(
      (upper) =>
        [
          `SMMUv3 ${2 ** (lg2 - 10)} KiB, ${upper ? "upper" : "lower"} range`,
          (memory: Banks) => smmu(memory, lg2, upper),
        ] as const,
    ),
  ),
];

/** Pages of the table that a test uses; runs of 512 are large leaves where the format has them. */
const SLOTS = 1024;
const COUNTS = [1, 2, 5, 512] as const;

/** Mostly a few, so that the same happens again. */
const slots = fc.oneof({ weight: 3, arbitrary: fc.nat(3) }, fc.nat(SLOTS - 1));
const edit = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("map" as const),
      slot: slots,
      count: fc.constantFrom(...COUNTS),
      target: fc.oneof({ weight: 3, arbitrary: fc.constantFrom(0, 1, 512) }, fc.nat(SLOTS + 32)),
      writable: fc.boolean(),
    }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("unmap" as const), which: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("protect" as const), which: fc.nat(3) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("invalidate" as const),
      slot: slots,
      count: fc.constantFrom(1, 4, 512),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("everything" as const) }) },
);
type Edit = typeof edit extends fc.Arbitrary<infer T> ? T : never;

interface Run {
  readonly iova: number;
  readonly length: number;
  readonly target: number;
  readonly writable: boolean;
}

class Model {
  readonly memory = createMemory({ ramBytes: 2 ** 25 });
  readonly host = new LiteralHost();
  readonly subject: Subject;
  readonly copies: Copies<undefined>;
  readonly runs: Run[] = [];
  /** What each page has been since everything was invalidated last, as text. */
  readonly past = new Map<number, Set<string>>();

  constructor(make: (memory: Banks) => Subject, options: Partial<CopiesOptions> = {}) {
    // The first 4 MiB are the guest's pages; its tables are above.
    this.memory.allocate(2 ** 22 / PAGE);
    this.subject = make(this.memory);
    this.copies = new Copies(
      { calls: this.host, ram: RAM, pasids: false, faults: undefined, ...options },
      NO_PASID,
    );
    const { table } = this.subject;
    this.copies.follow(DEVICE, NO_PASID, { kind: "table", table, tag: undefined });
  }

  /** The guest's table page by page, without what is not in its memory. */
  get wanted(): Map<number, LiteralPage> {
    const pages = new Map<number, LiteralPage>();
    for (const { iova, length, target, writable } of this.runs)
      for (let at = 0; at < length && target + at < RAM.bytes; at += PAGE)
        pages.set(iova + at, { va: RAM.va + target + at, readable: true, writable });
    return pages;
  }

  run(one: Edit): void {
    const { writer, granule, base } = this.subject;
    switch (one.do) {
      case "map": {
        const count = granule === PAGE ? one.count : Math.min(one.count, 5);
        const slot = count === 512 ? one.slot - (one.slot % 512) : one.slot;
        const target = count === 512 ? one.target - (one.target % 512) : one.target;
        const limit = (SLOTS * PAGE) / granule;
        const at = granule === PAGE ? slot : slot % limit;
        const to = granule === PAGE ? target : target % limit;
        const run = {
          iova: base + at * granule,
          length: count * granule,
          target: to * granule,
          writable: one.writable,
        };
        if (this.runs.some(({ iova, length }) => iova < run.iova + run.length && run.iova < iova + length))
          return;
        writer.map(run.iova, run.target, run.length, run.writable ? RW : Protection.read);
        this.runs.push(run);
        break;
      }
      case "unmap": {
        const [run] = this.runs.splice(one.which % Math.max(this.runs.length, 1), 1);
        if (run) writer.unmap(run.iova, run.length);
        break;
      }
      case "protect": {
        const [run] = this.runs.splice(one.which % Math.max(this.runs.length, 1), 1);
        if (!run) break;
        const { iova, target, length, writable } = run;
        writer.unmap(iova, length);
        writer.map(iova, target, length, writable ? Protection.read : RW);
        this.runs.push({ ...run, writable: !writable });
        break;
      }
      case "invalidate": {
        const start = base + one.slot * PAGE;
        const end = start + one.count * PAGE;
        this.attempt(() => this.copies.synchronize(() => ({ start, end })));
        return;
      }
      case "everything":
        this.attempt(() => this.copies.synchronize(() => EVERYWHERE));
        return;
    }
    this.note();
  }

  /** What the table is now counts among what it was. */
  note(): void {
    for (const [iova, page] of this.wanted) this.#note(iova, page);
  }

  attempt(work: () => void): void {
    try {
      work();
    } catch (error) {
      expect(error).toMatchObject({ code: "ENOMEM" });
    }
  }

  #note(iova: number, page: LiteralPage): void {
    const seen = this.past.get(iova);
    if (seen) seen.add(JSON.stringify(page));
    else this.past.set(iova, new Set([JSON.stringify(page)]));
  }

  /** Nothing is mapped that neither is in the guest's table nor was. */
  checkBounds(): void {
    for (const [iova, page] of this.host.content())
      expect(this.past.get(iova)?.has(JSON.stringify(page)), `page ${iova.toString(16)}`).toBe(true);
  }

  close(): void {
    this.memory.close();
  }
}

const isPage = (page: LiteralPage | undefined, other: LiteralPage): boolean =>
  page !== undefined && page.va === other.va && page.writable === other.writable;

const sorted = (pages: Map<number, LiteralPage>) => [...pages].sort(([a], [b]) => a - b);

describe.each(SUBJECTS)("a copy of a %s", (_name, make) => {
  it("is the guest's table after everything was invalidated, and before no more than it is or was", () => {
    fc.assert(
      fc.property(fc.array(edit, { minLength: 5, maxLength: 40 }), (edits) => {
        const model = new Model(make);
        for (const one of edits) {
          model.run(one);
          model.checkBounds();
          if (one.do !== "everything") continue;
          expect(sorted(model.host.content())).toEqual(sorted(model.wanted));
          model.past.clear();
          model.note();
        }
        model.copies.synchronize(() => EVERYWHERE);
        expect(sorted(model.host.content())).toEqual(sorted(model.wanted));
        model.close();
      }),
      { numRuns: 10 },
    );
  });

  it("is what the guest's table is within a range that was invalidated", () => {
    fc.assert(
      fc.property(fc.array(edit, { minLength: 5, maxLength: 30 }), fc.nat(SLOTS - 1), (edits, slot) => {
        const model = new Model(make);
        for (const one of edits) model.run(one);
        const start = model.subject.base + slot * PAGE;
        const end = start + 4 * PAGE;
        model.copies.synchronize(() => ({ start, end }));
        const part = (pages: Map<number, LiteralPage>) =>
          sorted(pages).filter(([iova]) => iova >= start && iova < end);
        expect(part(model.host.content())).toEqual(part(model.wanted));
        model.close();
      }),
      { numRuns: 8 },
    );
  });

  it("keeps what is in the guest's table as it was, whatever is invalidated around it", () => {
    fc.assert(
      fc.property(fc.array(edit, { minLength: 5, maxLength: 40 }), (edits) => {
        const model = new Model(make);
        for (const one of edits) {
          const before = new Map(model.host.content());
          model.run(one);
          const now = model.host.content();
          for (const [iova, page] of model.wanted)
            if (isPage(before.get(iova), page)) expect(now.get(iova)).toEqual(page);
        }
        model.close();
      }),
      { numRuns: 10 },
    );
  });

  it("leaves alone what is as it was", () => {
    fc.assert(
      fc.property(fc.array(edit, { minLength: 5, maxLength: 30 }), (edits) => {
        const model = new Model(make);
        for (const one of edits) {
          model.host.mapped.length = 0;
          model.host.unmapped.length = 0;
          model.run(one);
          const again = model.host.mapped.filter((mapping) => model.host.unmapped.includes(mapping));
          expect(again).toEqual([]);
        }
        model.close();
      }),
      { numRuns: 8 },
    );
  });

  it("loses nothing when the host refuses mappings now and then", () => {
    fc.assert(
      fc.property(
        fc.array(edit, { minLength: 5, maxLength: 30 }),
        fc.infiniteStream(fc.nat(3)),
        (edits, chance) => {
          const model = new Model(make);
          model.host.refuses = () => chance.next().value === 0;
          for (const one of edits) {
            model.run(one);
            model.checkBounds();
          }
          model.host.refuses = () => false;
          model.copies.synchronize(() => EVERYWHERE);
          expect(sorted(model.host.content())).toEqual(sorted(model.wanted));
          model.close();
        },
      ),
      { numRuns: 8 },
    );
  });
});

describe("a large leaf that reaches beyond the guest's memory", () => {
  it("is mapped as far as its memory goes, and left alone afterwards", () => {
    const model = new Model((memory) => vtd(memory, "first"));
    model.run({ do: "map", slot: 0, count: 512, target: 512, writable: true });
    model.host.mapped.length = 0;
    model.copies.synchronize(() => EVERYWHERE);
    expect(model.host.mapped).toHaveLength(1);
    expect(model.host.content().size).toBe(509);
    const tail = BASE + 510 * PAGE;
    for (const range of [EVERYWHERE, { start: BASE, end: BASE + PAGE }, { start: tail, end: tail + PAGE }])
      model.copies.synchronize(() => range);
    expect(model.host.mapped).toHaveLength(1);
    expect(model.host.unmapped).toEqual([]);
    model.close();
  });
});

describe("the bounds of copies", () => {
  const plain = (options: Partial<CopiesOptions>) => new Model((memory) => vtd(memory, "first"), options);
  const at = (slot: number) => BASE + slot * PAGE;

  it("beyond so many mappings a request is refused with ENOSPC: what is mapped stays, what has gone goes", () => {
    const model = plain({ mostMappings: 4 });
    const { writer } = model.subject;
    for (let slot = 0; slot < 4; slot++) writer.map(at(2 * slot), slot * PAGE, PAGE, RW);
    model.copies.synchronize(() => EVERYWHERE);
    writer.unmap(at(0), PAGE);
    writer.map(at(20), 0, PAGE, RW);
    writer.map(at(30), PAGE, PAGE, RW);
    expect(() => model.copies.synchronize(() => EVERYWHERE)).toThrow("more than 4 mappings");
    expect([...model.host.content().keys()].sort((a, b) => a - b)).toEqual([at(2), at(4), at(6)]);
    expect(model.copies.mappings).toBe(3);
    writer.unmap(at(30), PAGE);
    model.copies.synchronize(() => EVERYWHERE);
    expect(model.host.content().has(at(20))).toBe(true);
    model.close();
  });

  it("to look at more than so many pages and holes is refused with ENOSPC", () => {
    const model = plain({ mostSteps: 300 });
    const { writer } = model.subject;
    for (let slot = 0; slot < 8; slot++) writer.map(at(slot), slot * PAGE, PAGE, RW);
    expect(() => model.copies.synchronize(() => EVERYWHERE)).toThrow("more than 300 steps");
    expect(model.host.content().size).toBe(0);
    // In parts it goes.
    model.copies.synchronize(() => ({ start: at(0), end: at(4) }));
    model.copies.synchronize(() => ({ start: at(4), end: at(8) }));
    expect(model.host.content().size).toBe(8);
    model.close();
  });

  it("the mappings of all copies of a guest count together, and those of a copy that goes no more", () => {
    const model = plain({ mostMappings: 3 });
    const { writer, table } = model.subject;
    writer.map(at(0), 0, PAGE, RW);
    writer.map(at(2), 0, PAGE, RW);
    model.copies.synchronize(() => EVERYWHERE);
    const other = { ...table, key: "another" };
    const second = { ...DEVICE, rid: 9 };
    expect(() =>
      model.copies.follow(second, NO_PASID, { kind: "table", table: other, tag: undefined }),
    ).toThrow("more than 3 mappings");
    expect(model.copies.mappings).toBe(2);
    expect(model.host.spaces.size).toBe(2);
    model.copies.follow(DEVICE, NO_PASID, { kind: "blocked" });
    expect(model.copies.mappings).toBe(0);
    model.copies.follow(second, NO_PASID, { kind: "table", table: other, tag: undefined });
    expect(model.copies.mappings).toBe(2);
    model.close();
  });

  it("a page that can be written is dirty in the guest's table once it is copied, and another is not", () => {
    const model = new Model((memory) => vtd(memory, "nested"));
    const { writer, mapper } = model.subject;
    writer.map(at(0), PAGE, PAGE, Protection.read);
    writer.map(at(1), PAGE, PAGE, RW);
    const dirty = (): number[] => {
      const found: number[] = [];
      mapper!.scanDirty(BASE, 2 * PAGE, false, (iova) => found.push(iova));
      return found;
    };
    expect(dirty()).toEqual([]);
    model.copies.synchronize(() => EVERYWHERE);
    expect(dirty()).toEqual([at(1)]);
    model.close();
  });
});
