import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../base/clock.ts";
import { answer, explained, request } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { contextCache, iotlb, type RigOptions, readWrite, VtdRig } from "./rig.suite.ts";
import { type CachePolicy, type VtdCapabilities, VtdUnit } from "./unit.ts";

const RID = 0x18;
const read = (rig: VtdRig, iova: number, rid = RID) => answer(rig.unit, request(rid, iova, Access.read));

const running = (options: RigOptions = {}) => {
  const rig = new VtdRig(options);
  rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
  rig.enable();
  rig.enableQueue();
  return rig;
};

describe("§6.2 what the unit remembers", () => {
  it("a changed page is not seen until the IOTLB is invalidated, and explain tells both", () => {
    const rig = running();
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    rig.map(RID, 0x5000, 0x80_0000, 12, readWrite);
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    const steps = [...rig.unit.explain(request(RID, 0x5000, Access.read))];
    const cached = steps.find((step) => step.what === "IOTLB");
    expect(cached?.note).toContain("0x400000");
    expect(cached?.note).toContain("0x800000");
    expect(steps.at(-1)?.outcome).toMatchObject({ ok: true, pa: 0x40_0000 });
    rig.submit(contextCache({ G: 1 }));
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    rig.submit(iotlb({ G: 3, DID: 1, ADDR: 0x5000 }));
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x80_0000 });
    expect(
      [...rig.unit.explain(request(RID, 0x5000, Access.read))].some((step) => step.what === "IOTLB"),
    ).toBe(false);
  });

  it("an unmapped page stays reachable until it is invalidated", () => {
    const rig = running();
    read(rig, 0x5000);
    rig.map(RID, 0x5000, 0, 12, 0);
    expect(read(rig, 0x5000).ok).toBe(true);
    rig.submit(iotlb({ G: 2, DID: 1 }));
    expect(read(rig, 0x5000)).toEqual({ ok: false, code: 6 });
  });

  it("a changed context entry is not seen until the context cache is invalidated, and explain tells both", () => {
    const rig = running();
    read(rig, 0x5000);
    const table = rig.memory.allocate(1);
    rig.mapPage(table, 4, 0x5000, 0x90_0000, 12, readWrite);
    rig.context(RID, { table, domain: 9 });
    rig.submit(iotlb({ G: 1 }));
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    const steps = [...rig.unit.explain(request(RID, 0x5000, Access.read))];
    expect(steps.find((step) => step.what === "context cache")?.note).toContain("domain 1,");
    rig.submit(contextCache({ G: 2, DID: 9 }));
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    rig.submit(contextCache({ G: 2, DID: 1 }));
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x90_0000 });
  });

  it("a requester that goes to another domain and back finds what the first domain's IOTLB entries say", () => {
    const rig = running();
    read(rig, 0x5000);
    rig.map(RID, 0x5000, 0x80_0000, 12, readWrite);
    const entry = rig.load64(rig.contextAddress(RID));
    rig.context(RID, { type: 2, aw: 3, domain: 9 });
    rig.submit(contextCache({ G: 3, DID: 1, SID: RID }));
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x5000 });
    rig.context(RID, { table: Number(entry & ~0xfffn), domain: 1 });
    rig.submit(contextCache({ G: 3, DID: 9, SID: RID }));
    expect(read(rig, 0x5000)).toMatchObject({ pa: 0x40_0000 });
  });

  it("an entry that denies is used as it was: a read-only page made writable faults until it is invalidated", () => {
    const rig = running();
    rig.map(RID, 0x6000, 0x40_0000, 12, Access.read);
    read(rig, 0x6000);
    rig.map(RID, 0x6000, 0x40_0000, 12, readWrite);
    const write = request(RID, 0x6000, Access.write);
    expect(explained(rig.unit, write)).toEqual({ ok: false, code: 5 });
    expect(answer(rig.unit, write)).toEqual({ ok: false, code: 5 });
    rig.submit(iotlb({ G: 3, DID: 1, ADDR: 0x6000 }));
    expect(answer(rig.unit, write).ok).toBe(true);
  });

  it("nothing that faulted is remembered without caching mode", () => {
    const rig = running();
    expect(read(rig, 0x6000).ok).toBe(false);
    rig.map(RID, 0x6000, 0x80_0000, 12, readWrite);
    expect(read(rig, 0x6000)).toMatchObject({ pa: 0x80_0000 });
    expect(read(rig, 0x5000, 0x99).ok).toBe(false);
    rig.context(0x99, { type: 2, aw: 3 });
    expect(read(rig, 0x5000, 0x99)).toMatchObject({ pa: 0x5000 });
  });

  it("with caching mode what faulted is: pages by their domain, contexts by domain 0", () => {
    const rig = running({ capabilities: { cachingMode: true } });
    expect(read(rig, 0x6000)).toEqual({ ok: false, code: 6 });
    rig.map(RID, 0x6000, 0x80_0000, 12, readWrite);
    expect(read(rig, 0x6000)).toEqual({ ok: false, code: 6 });
    expect(answer(rig.unit, request(RID, 0x6000, Access.write))).toEqual({ ok: false, code: 5 });
    expect(explained(rig.unit, request(RID, 0x6000, Access.read))).toEqual({ ok: false, code: 6 });
    rig.submit(iotlb({ G: 3, DID: 1, ADDR: 0x6000 }));
    expect(read(rig, 0x6000)).toMatchObject({ pa: 0x80_0000 });

    expect(read(rig, 0x5000, 0x99)).toEqual({ ok: false, code: 2 });
    rig.context(0x99, { type: 2, aw: 3, domain: 5 });
    rig.submit(contextCache({ G: 3, DID: 5, SID: 0x99 }));
    expect(read(rig, 0x5000, 0x99)).toEqual({ ok: false, code: 2 });
    rig.submit(contextCache({ G: 3, DID: 0, SID: 0x99 }));
    expect(read(rig, 0x5000, 0x99)).toMatchObject({ pa: 0x5000 });
  });

  it("a table that cannot be read is never remembered, with caching mode neither", () => {
    const rig = running({ capabilities: { cachingMode: true } });
    rig.store64(rig.root + 16, 0x9000_0001n);
    expect(read(rig, 0x5000, 0x100)).toEqual({ ok: false, code: 9 });
    rig.store64(rig.root + 16, 0n);
    rig.context(0x100, { type: 2, aw: 3 });
    expect(read(rig, 0x5000, 0x100).ok).toBe(true);
  });
});

it("a paranoid cache needs a source of random numbers", () => {
  const { memory, events } = new VtdRig();
  const capabilities = { addressWidths: [48] as const };
  const options = { name: "vtd1", memory, events, interrupt: () => {}, capabilities };
  expect(() => new VtdUnit({ ...options, cache: "paranoid" })).toThrow(/vtd1: a paranoid cache needs/);
});

// A device may see any state the tables had since the last command that invalidated what it uses.

const PAGES = 6;
const DOMAINS = 2;
const base = 0x40_0000;

/** What each page and each requester's context was, and may still be seen as, by the commands given so far. */
class Seen {
  /** By domain and page: values that may be seen; by requester: domains. The last one is what the tables say. */
  readonly leaves = Array.from({ length: DOMAINS }, () => Array.from({ length: PAGES }, () => new Set([0])));
  readonly contexts: Set<number>[];
  readonly now: { readonly leaves: number[][]; readonly contexts: number[] };

  constructor(requesters: number) {
    this.contexts = Array.from({ length: requesters }, () => new Set([0]));
    this.now = {
      leaves: Array.from({ length: DOMAINS }, () => new Array<number>(PAGES).fill(0)),
      contexts: new Array<number>(requesters).fill(0),
    };
  }
  leaf(domain: number, page: number, value: number): void {
    this.now.leaves[domain]![page] = value;
    this.leaves[domain]![page]!.add(value);
  }
  context(requester: number, domain: number): void {
    this.now.contexts[requester] = domain;
    this.contexts[requester]!.add(domain);
  }
  flushLeaf(domain: number, page: number): void {
    this.leaves[domain]![page] = new Set([this.now.leaves[domain]![page]!]);
  }
  flushContext(requester: number): void {
    this.contexts[requester] = new Set([this.now.contexts[requester]!]);
  }
  /** Every answer that is legal for a page of a requester: the pa, or 0 for a fault. */
  legal(requester: number, page: number): Set<number> {
    const legal = new Set<number>();
    for (const domain of this.contexts[requester]!)
      for (const value of this.leaves[domain]![page]!) legal.add(value);
    return legal;
  }
}

const history = (cache: CachePolicy, seed: number, capabilities: Partial<VtdCapabilities>) => {
  const rig = new VtdRig({ cache, seed, iotlbEntries: 16, capabilities });
  const random = new Random(seed);
  const requesters = [0x18, 0x19, 0x120];
  const tables = Array.from({ length: DOMAINS }, () => rig.memory.allocate(1));
  const seen = new Seen(requesters.length);
  for (const rid of requesters) rig.context(rid, { table: tables[0]!, domain: 1 });
  rig.enable();
  rig.enableQueue();
  let stale = 0;
  for (let step = 0; step < 250; step++) {
    const domain = random.below(DOMAINS);
    const page = random.below(PAGES);
    const requester = random.below(requesters.length);
    switch (random.below(10)) {
      case 0:
      case 1: {
        const value = random.below(3) ? base + random.below(64) * 0x1000 : 0;
        rig.mapPage(tables[domain]!, 4, page * 0x1000, value, 12, value ? readWrite : 0);
        seen.leaf(domain, page, value);
        break;
      }
      case 2:
        if (random.below(2)) break;
        rig.context(requesters[requester]!, { table: tables[domain]!, domain: domain + 1 });
        seen.context(requester, domain);
        break;
      case 3: {
        const granularity = 1 + random.below(3);
        const mask = random.below(3);
        rig.submit(
          iotlb(
            granularity === 3
              ? { G: 3, DID: domain + 1, AM: mask, ADDR: page * 0x1000 }
              : { G: granularity, DID: domain + 1 },
          ),
        );
        for (let d = 0; d < DOMAINS; d++)
          for (let p = 0; p < PAGES; p++)
            if (granularity === 1 || (d === domain && (granularity === 2 || p >> mask === page >> mask)))
              seen.flushLeaf(d, p);
        break;
      }
      case 4: {
        // A context that may be cached with either domain has to be invalidated with both, or globally.
        const granularity = random.below(2) ? 1 : 3;
        const domains = granularity === 1 ? [0] : [0, 1, 2];
        rig.submit(
          ...domains.map((id) => contextCache({ G: granularity, DID: id, SID: requesters[requester]! })),
        );
        for (let r = 0; r < requesters.length; r++)
          if (granularity === 1 || r === requester) seen.flushContext(r);
        break;
      }
      default: {
        const found = read(rig, page * 0x1000 + 0x10, requesters[requester]!);
        const pa = found.ok ? (found as { pa: number }).pa - 0x10 : 0;
        const legal = seen.legal(requester, page);
        expect([...legal]).toContain(pa);
        const now = seen.now.leaves[seen.now.contexts[requester]!]![page]!;
        if (cache === "none") expect(pa).toBe(now);
        if (pa !== now) stale += 1;
      }
    }
  }
  return stale;
};

describe("§6.2 any order of changes, commands and accesses", () => {
  const modes: [string, CachePolicy, Partial<VtdCapabilities>][] = [
    ["cached", "normal", {}],
    ["with caching mode", "normal", { cachingMode: true }],
    ["paranoid", "paranoid", {}],
    ["paranoid with caching mode", "paranoid", { cachingMode: true }],
    ["without caches", "none", {}],
  ];
  it.each(modes)(
    "a unit %s only answers what was valid since the last sufficient invalidation",
    (_, cache, capabilities) => {
      fc.assert(
        fc.property(fc.nat(), (seed) => void history(cache, seed, capabilities)),
        { numRuns: 60 },
      );
    },
  );

  it("a caching unit does answer stale translations in such histories", () => {
    let stale = 0;
    for (let seed = 0; seed < 20; seed++) stale += history("normal", seed, {});
    expect(stale).toBeGreaterThan(100);
  });
});
