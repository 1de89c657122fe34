/** What `s390-nesting` promises: a guest's tables are walked through the parent's own map, and their product is the host's. */
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { stageOf } from "../../hardware/zpci/parameters.ts";
import { Iota } from "../../hardware/zpci/spec.ts";
import { type NestedDomain, Protection } from "../../iommu/driver.ts";
import type { LinuxError } from "../../uapi/errno.ts";
import { SOFTIOMMU_HWPT_DATA_S390_IOTA, SoftiommuHwptS390Iota } from "../../uapi/vendor/extensions.ts";
import { arrayOf, dataOf } from "../user-data.suite.ts";
import type { ZpciNestedDomain } from "./nested-domain.ts";
import { refresh, ZpciBench, ZpciGuest } from "./rig.suite.ts";
import { ShadowTable } from "./shadow-table.ts";

const PAGE = 4096;
const IOVA = 0x1_0000_0000;
const DATA = 0x8_0000;

let bench: ZpciBench;
let guest: ZpciGuest;
let root: number;
const made: NestedDomain[] = [];
const nest = (iota: bigint | number = root): ZpciNestedDomain => {
  const domain = guest.nested(iota);
  made.push(domain);
  return domain;
};
/** A nested domain with one page, which the function has. */
const running = (): ZpciNestedDomain => {
  guest.map(root, IOVA, DATA);
  const domain = nest();
  bench.driver.attach(bench.devices[0], domain);
  return domain;
};
const access = (iova: number, write = true) => bench.access(bench.devices[0], iova, write);
const reasonOf = (action: () => unknown): string => {
  try {
    action();
    return "";
  } catch (error) {
    return (error as LinuxError).reason;
  }
};

beforeEach(() => {
  bench = new ZpciBench();
  for (const device of bench.devices) bench.driver.probe(device);
  guest = new ZpciGuest(bench);
  root = guest.table(4);
});
afterEach(() => {
  for (const device of bench.devices) bench.driver.release(device);
  for (const domain of made.splice(0)) domain.free();
  guest.free();
  bench.close();
  expect(bench.memory.allocated).toBe(0);
});

describe("a nested domain of a guest's anchor", () => {
  it("leads a function where the guest's tables and the parent's lead together", () => {
    const domain = running();
    expect(access(IOVA + 5)).toBe(guest.at(DATA + 5));
    expect(access(IOVA + PAGE)).toBe("fault");
    guest.map(root, 0x7000, DATA + PAGE);
    expect(access(0x7000)).toBe("fault");
    expect(refresh(domain, [0x7000, PAGE])).toEqual({ done: 1 });
    expect(access(0x7008)).toBe(guest.at(DATA + PAGE + 8));
  });

  it("shows changes when they are refreshed, and not before", () => {
    const domain = running();
    expect(access(IOVA)).toBe(guest.at(DATA));
    guest.map(root, IOVA, DATA + PAGE);
    guest.map(root, IOVA + PAGE, DATA);
    expect([access(IOVA), access(IOVA + PAGE)]).toEqual([guest.at(DATA), "fault"]);
    expect(refresh(domain, [IOVA, PAGE])).toEqual({ done: 1 });
    expect([access(IOVA), access(IOVA + PAGE)]).toEqual([guest.at(DATA + PAGE), "fault"]);
    guest.unmap(root, IOVA);
    expect(access(IOVA)).toBe(guest.at(DATA + PAGE));
    expect(refresh(domain, [IOVA, 2 * PAGE])).toEqual({ done: 1 });
    expect([access(IOVA), access(IOVA + PAGE)]).toEqual(["fault", guest.at(DATA)]);
  });

  it("forbids writing where the guest's page, its segment, its region or the parent forbids it", () => {
    const domain = running();
    const region = root + 8 * 2;
    const segment = guest.load(region) - 7;
    const page = guest.place(root, IOVA);
    for (const entry of [page, segment, region]) {
      const before = guest.load(entry);
      guest.store(entry, before + 0x200);
      refresh(domain, [IOVA, PAGE]);
      expect([access(IOVA, false), access(IOVA)], String(entry)).toEqual([guest.at(DATA), "fault"]);
      guest.store(entry, before);
      refresh(domain, [IOVA, PAGE]);
      expect(access(IOVA)).toBe(guest.at(DATA));
    }
    guest.parent.unmap(0, guest.bytes);
    guest.parent.map(0, guest.at(0), DATA, Protection.read | Protection.write);
    guest.parent.map(DATA, guest.at(DATA), PAGE, Protection.read);
    refresh(domain, [0, 2 ** 42]);
    expect([access(IOVA, false), access(IOVA)]).toEqual([guest.at(DATA), "fault"]);
  });

  it("refuses an entry outside the parent, says which, and takes what is beside it", () => {
    const domain = running();
    guest.map(root, IOVA + PAGE, guest.bytes);
    guest.map(root, IOVA + 2 * PAGE, DATA + 2 * PAGE);
    const { done, error } = refresh(domain, [IOVA, PAGE], [IOVA, 3 * PAGE], [0, PAGE]);
    expect([done, (error as LinuxError).code]).toEqual([1, "EFAULT"]);
    expect((error as LinuxError).reason).toMatch(
      /^entry 1: .*0x100001000 names 0x100000, which its nest parent/,
    );
    expect([access(IOVA), access(IOVA + PAGE), access(IOVA + 2 * PAGE)]).toEqual([
      guest.at(DATA),
      "fault",
      guest.at(DATA + 2 * PAGE),
    ]);
    expect(codeOf(() => nest())).toBe("EFAULT");
    expect(reasonOf(() => nest())).toMatch(/names 0x100000/);
  });

  it("refuses tables outside the parent", () => {
    const domain = running();
    expect(codeOf(() => nest(guest.bytes))).toBe("EFAULT");
    const region = root + 8 * 2;
    const segments = guest.load(region);
    guest.store(region, guest.bytes + 7);
    expect(refresh(domain, [IOVA, PAGE]).done).toBe(0);
    expect(access(IOVA)).toBe("fault");
    // The first page of the table is there, the second is not.
    guest.store(region, guest.bytes - PAGE + 7);
    expect(refresh(domain, [IOVA + 2 ** 30, PAGE]).done).toBe(0);
    guest.store(region, segments);
    expect(refresh(domain, [IOVA, PAGE]).done).toBe(1);
    expect(access(IOVA)).toBe(guest.at(DATA));
  });

  it("takes no other data, anchors that cannot be, or flags", () => {
    const { driver, devices } = bench;
    const bytes = SoftiommuHwptS390Iota.bytes({ iota: Iota.make({ ORIGIN: root, T: true, DT: 1 }) });
    const alloc = (
      data = dataOf(bytes, SOFTIOMMU_HWPT_DATA_S390_IOTA),
      parent = guest.parent,
      options = {},
    ) => codeOf(() => driver.allocateNested(devices[0], parent, data, options));
    expect(alloc(dataOf(bytes, 1))).toBe("EOPNOTSUPP");
    expect(alloc(dataOf(bytes.slice(8), SOFTIOMMU_HWPT_DATA_S390_IOTA))).toBe("EINVAL");
    const reserved = SoftiommuHwptS390Iota.bytes({ iota: 0x900n, __reserved: 1n });
    expect(alloc(dataOf(reserved, SOFTIOMMU_HWPT_DATA_S390_IOTA))).toBe("EOPNOTSUPP");
    for (const options of [{ faults: true }, { pasid: true }])
      expect(alloc(undefined, undefined, options)).toBe("EOPNOTSUPP");
    const plain = driver.allocatePaging(devices[0]);
    expect(alloc(undefined, plain)).toBe("EINVAL");
    plain.free();
    for (const iota of [
      0n,
      Iota.make({ ORIGIN: root, T: true, DT: 5 }),
      Iota.make({ T: true, DT: 1, FS: 2 }),
    ])
      expect(codeOf(() => nest(iota))).toBe("EINVAL");
    expect(guest.parent.nested.size).toBe(0);
  });

  it("takes refreshes of whole pages below the end of its addresses, in order, and stops at the first that is not", () => {
    const domain = running();
    for (const range of [
      [1, PAGE],
      [0, PAGE - 1],
      [0, 0],
      [2 ** 42 - PAGE, 2 * PAGE],
    ] as const) {
      const { done, error } = refresh(domain, [IOVA, PAGE], range, [IOVA, PAGE]);
      expect([done, (error as LinuxError).code]).toEqual([1, "EINVAL"]);
    }
    const other = domain.invalidate(arrayOf([new Uint8Array(24)], 1));
    expect([other.done, (other.error as LinuxError).code]).toEqual([0, "EINVAL"]);
    const strange = new Uint8Array(24).fill(1, 16);
    const refused = domain.invalidate(arrayOf([strange], 0x7339_0002));
    expect([refused.done, (refused.error as LinuxError).code]).toEqual([0, "EOPNOTSUPP"]);
  });

  it("is not freed while a function has it, nor is its parent", () => {
    const domain = running();
    expect(codeOf(() => domain.free())).toBe("EBUSY");
    bench.driver.attach(bench.devices[0], bench.driver.blocked);
    expect(codeOf(() => guest.parent.free())).toBe("EBUSY");
  });

  it("walks from whatever table the anchor designates", () => {
    guest.map(root, IOVA + 0x5000, DATA);
    const segments = guest.load(root + 16) - 7;
    bench.driver.attach(bench.devices[0], nest(Iota.make({ ORIGIN: segments, T: true, DT: 0 })));
    expect(access(0x5000)).toBe(guest.at(DATA));
    expect(access(2 ** 31 + 0x5000)).toBe("fault");
    const second = guest.table(4);
    guest.store(second, root + 0xb);
    bench.driver.attach(bench.devices[0], nest(Iota.make({ ORIGIN: second, T: true, DT: 2 })));
    expect(access(IOVA + 0x5000)).toBe(guest.at(DATA));
  });
});

describe("what a refresh costs", () => {
  it("is in proportion to its range: one entry a page, one a segment, one a region", () => {
    const domain = running();
    for (let page = 0; page < 512; page++) guest.map(root, IOVA + page * PAGE, DATA);
    const fetches = (iova: number, pages: number): number => {
      const before = domain.product.fetched;
      refresh(domain, [iova, pages * PAGE]);
      return domain.product.fetched - before;
    };
    for (const pages of [1, 2, 16, 255]) expect(fetches(IOVA, pages)).toBe(pages + 2);
    expect(fetches(IOVA, 512)).toBe(512 + 2 + 1);
    expect(fetches(IOVA + 100 * PAGE, 300)).toBe(300 + 2 + 1);
    // Where nothing is, there is nothing to look at.
    expect(fetches(0, 2 ** 19)).toBe(1);
    expect(fetches(0, 2 ** 30)).toBe(2048 + 2048 + 512);
  });

  it("takes no frames but for tables, and none at all for what they hold", () => {
    const domain = running();
    const standing = bench.memory.allocated;
    for (let page = 1; page < 256; page++) guest.map(root, IOVA + page * PAGE, DATA);
    expect(refresh(domain, [IOVA, 256 * PAGE])).toEqual({ done: 1 });
    expect(bench.memory.allocated).toBe(standing);
    expect(access(IOVA + 255 * PAGE)).toBe(guest.at(DATA));
    for (let page = 0; page < 256; page++) guest.unmap(root, IOVA + page * PAGE);
    expect(refresh(domain, [IOVA, 256 * PAGE])).toEqual({ done: 1 });
    // The page table and the segment table are empty now.
    expect(bench.memory.allocated).toBe(standing - 5);
    expect(domain.product.tables).toBe(1);
  });

  it("is bounded, whatever the guest's tables say: then nothing of the range is valid, and what is beside it stays", () => {
    guest.map(root, IOVA, DATA);
    const stage = stageOf(1n)!;
    // Every entry of a region table leads to one segment table, and every one of that to one page table of one page.
    const [regions, segments, pages] = [guest.table(4), guest.table(4), guest.table(1)];
    for (let index = 0; index < 2048; index++) guest.store(regions + 8 * index, segments + 7);
    for (let index = 0; index < 2048; index++) guest.store(segments + 8 * index, pages);
    guest.store(pages, DATA);
    const standing = bench.memory.allocated;
    for (const limits of [
      { mostTables: 100, mostFetches: 2 ** 20 },
      { mostTables: 4096, mostFetches: 5000 },
    ]) {
      const product = new ShadowTable(guest.parent, stage, regions, limits);
      expect(product.synchronize(0, PAGE)).toBeUndefined();
      expect(codeOf(() => product.synchronize(2 ** 31, 2 ** 42))).toBe("ENOSPC");
      product.settle(() => {});
      expect(product.tables).toBe(3);
      product.begin();
      expect(product.synchronize(2 ** 31, 2 ** 31 + PAGE)).toBeUndefined();
      product.settle(() => {});
      expect(product.tables).toBe(5);
      product.free();
      expect(bench.memory.allocated).toBe(standing);
    }
    expect(codeOf(() => nest(regions))).toBe("ENOSPC");
    expect(bench.memory.allocated).toBe(standing);
  });

  it("is bounded for all ranges of a request together: the rest can be asked for again", () => {
    const domain = running();
    const everything: (readonly [number, number])[] = Array.from({ length: 1024 }, () => [0, 2 ** 42]);
    // One entry for each region, and those of the segment table and the page table that there are.
    const each = 2048 + 2048 + 256;
    const { done, error } = refresh(domain, ...everything);
    expect([done, (error as LinuxError).code]).toEqual([Math.floor(2 ** 20 / each), "ENOSPC"]);
    expect(access(IOVA)).toBe("fault");
    expect(refresh(domain, [0, 2 ** 42])).toEqual({ done: 1 });
    expect(access(IOVA)).toBe(guest.at(DATA));
  });

  it("without memory for tables nothing of the range is valid, and nothing is lost", () => {
    const domain = running();
    const standing = bench.memory.allocated;
    guest.map(root, 0x5000, DATA);
    for (const frames of [0, 1, 4]) {
      bench.limitFrames(frames);
      const { done, error } = refresh(domain, [0, 2 ** 20]);
      bench.limitFrames(Number.POSITIVE_INFINITY);
      expect([done, (error as LinuxError).code]).toEqual([0, "ENOMEM"]);
      expect([access(0x5000), access(IOVA)]).toEqual(["fault", guest.at(DATA)]);
      expect(bench.memory.allocated).toBe(standing);
    }
    bench.limitFrames(3);
    expect(codeOf(() => nest())).toBe("ENOMEM");
    bench.limitFrames(Number.POSITIVE_INFINITY);
    expect(bench.memory.allocated).toBe(standing);
  });
});

describe("unmapping any part of the parent", () => {
  it("takes away what was derived from it before it returns, in every nested domain, and leaves the rest", () => {
    const one = running();
    const other = nest();
    bench.driver.attach(bench.devices[1], other);
    guest.map(root, IOVA + PAGE, DATA + PAGE);
    for (const domain of [one, other]) refresh(domain, [IOVA, 2 * PAGE]);
    const reach = () =>
      bench.devices.flatMap((device) => [IOVA, IOVA + PAGE].map((iova) => bench.access(device, iova, true)));
    const both = [guest.at(DATA), guest.at(DATA + PAGE)];
    expect(reach()).toEqual([...both, ...both]);
    guest.parent.unmap(0, guest.bytes);
    expect(reach()).toEqual(Array(4).fill("fault"));
    guest.parent.map(0, guest.at(0), guest.bytes, 3);
    expect(reach()).toEqual(Array(4).fill("fault"));
    refresh(one, [IOVA, PAGE]);
    expect(reach()).toEqual([guest.at(DATA), "fault", "fault", "fault"]);
  });

  /** The parent in four mappings, so that one can go. */
  const inParts = (...cuts: number[]): void => {
    guest.parent.unmap(0, guest.bytes);
    const edges = [0, ...cuts, guest.bytes];
    for (let at = 0; at + 1 < edges.length; at++)
      guest.parent.map(edges[at]!, guest.at(edges[at]!), edges[at + 1]! - edges[at]!, 3);
  };

  it("takes only the page that a page-table entry names", () => {
    inParts(DATA, DATA + PAGE);
    const domain = running();
    guest.map(root, IOVA + PAGE, DATA + PAGE);
    guest.map(root, 0x5000, DATA);
    refresh(domain, [0, 2 ** 42]);
    guest.parent.unmap(DATA, PAGE);
    expect([access(IOVA), access(0x5000), access(IOVA + PAGE)]).toEqual([
      "fault",
      "fault",
      guest.at(DATA + PAGE),
    ]);
  });

  it("looks at what came of the pages that go, and at nothing else, however much there is", () => {
    const [TABLES, EACH] = [64, 128];
    const pages = Array.from({ length: EACH }, (_, page) => DATA + page * PAGE);
    inParts(...pages);
    // Every page table has every page.
    for (let table = 0; table < TABLES; table++)
      pages.forEach((page, index) => {
        guest.map(root, IOVA + table * 2 ** 20 + index * PAGE, page);
      });
    const { product } = nest();
    expect(product.tables).toBe(2 + TABLES);
    const sought = (start: number, length: number): number => {
      const before = product.sought;
      guest.parent.unmap(start, length);
      return product.sought - before;
    };
    // One frame, looked up as a page, as where entries of tables are, and as where page tables are.
    expect(sought(2 ** 30, PAGE)).toBe(3);
    expect(sought(pages[0]!, PAGE)).toBe(3 + TABLES);
    expect(sought(pages[0]!, PAGE)).toBe(3);
    expect(sought(pages[5]!, 3 * PAGE)).toBeLessThanOrEqual(3 * (3 + TABLES));
    // A range without end: no more than there are frames that anything came of.
    expect(sought(2 ** 30, 2 ** 41)).toBeLessThanOrEqual(EACH + 2 * TABLES);
    for (const page of pages) sought(page, PAGE);
    expect(product.tables).toBe(1);
    expect(product.sought).toBeLessThan(2 * EACH * (3 + TABLES));
  });

  it("counts tables as derived: what a table there led to goes, though its pages are elsewhere", () => {
    guest.map(root, IOVA, DATA);
    guest.map(root, 0x5000, DATA);
    const pages = guest.place(root, IOVA) & -PAGE;
    const segments = guest.load(root + 16) - 7;
    for (const [table, bytes, also] of [
      [pages, PAGE, guest.at(DATA)],
      [segments, 4 * PAGE, guest.at(DATA)],
      // The first page of the region table leads to both.
      [root, PAGE, "fault"],
    ] as const) {
      inParts(...[table, table + bytes].filter((at) => at > 0));
      const domain = nest();
      bench.driver.attach(bench.devices[0], domain);
      expect([access(IOVA), access(0x5000)]).toEqual([guest.at(DATA), guest.at(DATA)]);
      guest.parent.unmap(table, bytes);
      expect([access(IOVA), access(0x5000)], String(table)).toEqual(["fault", also]);
      bench.driver.attach(bench.devices[0], bench.driver.blocked);
    }
  });
});

it("agrees with a literal walk of both tables, over random tables, refreshes and unmaps of the parent", () => {
  const PAGES = 24;
  const step = fc.record({
    what: fc.constantFrom("entry", "entry", "refresh", "refresh", "all", "unmap", "map", "segment"),
    page: fc.nat(PAGES - 1),
    count: fc.integer({ min: 1, max: 8 }),
    target: fc.nat(15),
    bits: fc.constantFrom(0, 0, 0x200, 0x400, 0x800),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const table = guest.table(4);
      const iovaOf = (page: number) => IOVA - 12 * PAGE + page * PAGE;
      for (let page = 0; page < PAGES; page++) guest.place(table, iovaOf(page));
      // Targets are sixteen pages that the parent maps one by one.
      guest.parent.unmap(0, guest.bytes);
      guest.parent.map(0, guest.at(0), DATA, 3);
      const present = new Set<number>();
      const show = (target: number) => {
        if (present.has(target)) return;
        guest.parent.map(DATA + target * PAGE, guest.at(DATA + target * PAGE), PAGE, 3);
        present.add(target);
      };
      for (let target = 0; target < 16; target++) show(target);
      const domain = guest.nested(table);
      bench.driver.attach(bench.devices[0], domain);
      // What each page was when it was refreshed last: its target, and whether it may be written.
      const model = new Map<number, { target: number; writable: boolean }>();
      const learn = (page: number) => {
        const entry = guest.load(guest.place(table, iovaOf(page)));
        const target = Math.floor((entry - DATA) / PAGE);
        if ((entry & 0xc00) !== 0 || !present.has(target)) model.delete(page);
        else model.set(page, { target, writable: (entry & 0x200) === 0 });
      };
      const take = (first: number, count: number) => {
        refresh(domain, [iovaOf(first), count * PAGE]);
        for (let page = first; page < first + count; page++) learn(page);
      };
      for (const { what, page, count, target, bits } of steps) {
        if (what === "entry") guest.store(guest.place(table, iovaOf(page)), DATA + target * PAGE + bits);
        else if (what === "refresh") take(page, Math.min(count, PAGES - page));
        else if (what === "all") take(0, PAGES);
        else if (what === "map") show(target);
        else if (what === "unmap" && present.delete(target)) {
          guest.parent.unmap(DATA + target * PAGE, PAGE);
          for (const [known, { target: to }] of model) if (to === target) model.delete(known);
        } else if (what === "segment") {
          // Another page table with the same entries.
          const region = table + 8 * Math.floor(iovaOf(page) / 2 ** 31);
          const segment = guest.load(region) - 7 + 8 * (Math.floor(iovaOf(page) / 2 ** 20) % 2048);
          const before = guest.load(segment);
          guest.store(segment, before % PAGE === 0 ? before + 2048 : before - 2048);
          for (let at = 0; at < 2048; at += 8) guest.store(guest.load(segment) + at, guest.load(before + at));
          take(0, PAGES);
        }
        for (let known = 0; known < PAGES; known++) {
          const entry = model.get(known);
          const at = entry ? guest.at(DATA + entry.target * PAGE) : "fault";
          expect(access(iovaOf(known), false)).toBe(at);
          expect(access(iovaOf(known), true)).toBe(entry?.writable ? at : "fault");
        }
      }
      bench.driver.attach(bench.devices[0], bench.driver.blocked);
      domain.free();
      guest.reuse(table);
    }),
    { numRuns: 30 },
  );
});
