/** The content of an IOAS against a list of areas that is searched from end to end. */
import fc from "fast-check";
import { afterAll, describe, expect, it, vi } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { reasonOf } from "../../test/support/vfio-client.ts";
import { IntervalMap } from "../base/interval-map.ts";
import { type PagingDomain, Protection } from "../iommu/driver.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type AccessPin, createAccess } from "./access.ts";
import { MAX_ADDRESS, PAGE_BYTES } from "./address.ts";
import { IommufdContext } from "./context.ts";
import { IommufdSubsystem } from "./file.ts";
import { Ioas } from "./ioas.ts";
import { Pages, UserSource } from "./pages.ts";

const USER = 0x10_0000;
const USER_PAGES = 24;
/** IOVAs lie below this. */
const WINDOW = 48 * PAGE_BYTES;
const GRAIN = 2048;
const BOTH = Protection.read | Protection.write;

/** A domain that remembers every half page. */
class GrainDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id = 1;
  readonly name = "grains";
  readonly apertures: PagingDomain["apertures"];
  readonly pageSizes: bigint;
  readonly grains = new Map<number, number>();
  /** Fails after so many half pages. */
  room = Number.POSITIVE_INFINITY;

  constructor(pageSizes: bigint, apertures: PagingDomain["apertures"] = [{ start: 0, end: 2 ** 40 }]) {
    this.pageSizes = pageSizes;
    this.apertures = apertures;
  }
  map(iova: number, pa: number, length: number): void {
    const smallest = Number(this.pageSizes & -this.pageSizes);
    if ((iova | length) % smallest !== 0 || pa % smallest !== 0) throw new Error("not aligned");
    if (this.grains.size + length / GRAIN > this.room) throw new LinuxError("ENOMEM", "no table left");
    for (let at = 0; at < length; at += GRAIN) {
      if (this.grains.has(iova + at)) throw new Error("mapped twice");
      this.grains.set(iova + at, pa + at);
    }
  }
  unmap(iova: number, length: number): number {
    let bytes = 0;
    for (const at of [...this.grains.keys()])
      if (at >= iova && at < iova + length && this.grains.delete(at)) bytes += GRAIN;
    return bytes;
  }
  physical(iova: number): number {
    const at = iova - (iova % GRAIN);
    const pa = this.grains.get(at);
    return pa === undefined ? -1 : pa + (iova - at);
  }
  free(): void {}
}

/** An area as the model has it: user address, and which pages object. */
interface ModelArea {
  iova: number;
  length: number;
  va: number;
  /** First byte within the pages, which is what alignment is asked of. */
  start: number;
  pages: Pages;
}

interface ModelPin {
  readonly pin: AccessPin;
  readonly ioas: number;
  readonly iova: number;
  readonly length: number;
  readonly parts: readonly { readonly pages: Pages; readonly first: number; readonly last: number }[];
}

interface ModelReserved {
  readonly owner: object;
  readonly iova: number;
  readonly length: number;
}

class Rig {
  readonly host = new ModelHost();
  readonly iommufd = new IommufdSubsystem(this.host);
  readonly context = new IommufdContext(this.iommufd.system, "iommufd");
  readonly task = new ModelTask(this.host.memory, { uid: 7 });
  readonly ioas = [
    this.context.add(new Ioas(this.context)),
    this.context.add(new Ioas(this.context)),
  ] as const;
  readonly domains: { readonly ioas: number; readonly domain: GrainDomain }[] = [];
  readonly areas: [ModelArea[], ModelArea[]] = [[], []];
  pins: ModelPin[] = [];
  /** Reserved ranges, by owner. */
  readonly reserved: [ModelReserved[], ModelReserved[]] = [[], []];
  readonly accesses = [0, 1].map((index) => {
    const access = createAccess(this.context, {
      pins: false,
      unmap: (iova, length) => this.#unpin(index, Number(iova), Number(length)),
    });
    access.attach(this.ioas[index]!.id);
    return access;
  });

  constructor() {
    this.task.memory.map(USER, USER_PAGES * PAGE_BYTES);
  }

  alignment(ioas: number): number {
    return this.domains
      .filter((one) => one.ioas === ioas)
      .reduce((most, { domain }) => Math.max(most, Number(domain.pageSizes & -domain.pageSizes)), 1);
  }

  #unpin(ioas: number, iova: number, length: number): void {
    const touched = this.pins.filter(
      (one) => one.ioas === ioas && one.iova < iova + length && iova < one.iova + one.length,
    );
    for (const { pin } of touched) pin.release();
    this.pins = this.pins.filter((one) => !touched.includes(one));
  }

  /** Errno, or undefined. */
  attempt(work: () => void): string | undefined {
    try {
      work();
      return undefined;
    } catch (error) {
      if (error instanceof LinuxError) return error.code;
      throw error;
    }
  }

  /** What the domains and the pins should be, from the model alone. */
  check(): void {
    for (const { ioas, domain } of this.domains) {
      let grains = 0;
      for (const { iova, length, va } of this.areas[ioas]!)
        for (let at = 0; at < length; at += GRAIN) {
          grains += 1;
          expect(domain.physical(iova + at)).toBe(this.task.memory.physical(va + at));
        }
      expect(domain.grains.size).toBe(grains);
    }
    for (const ioas of [0, 1] as const) {
      const { usable } = this.ioas[ioas].pagetable.space;
      const ranges = usable.map(({ start, last }) => [Number(start), Number(last)] as const);
      const wrong: number[] = [];
      for (let at = 0; at < WINDOW; at += GRAIN)
        if (ranges.some(([start, last]) => start <= at && at <= last) === touches(this.reserved[ioas], at, 1))
          wrong.push(at);
      expect(wrong).toEqual([]);
    }
    const used = new Map<Pages, Set<number>>();
    const use = (pages: Pages, first: number, last: number) => {
      const set = used.get(pages) ?? new Set();
      used.set(pages, set);
      for (let page = first; page <= last; page += 1) set.add(page);
    };
    for (const ioas of [0, 1])
      if (this.domains.some((one) => one.ioas === ioas))
        for (const { pages, start, length } of this.areas[ioas]!)
          use(pages, Math.floor(start / PAGE_BYTES), Math.floor((start + length - 1) / PAGE_BYTES));
    for (const { parts } of this.pins) for (const { pages, first, last } of parts) use(pages, first, last);
    const expected = [...used.values()].reduce((sum, set) => sum + set.size, 0);
    expect(this.task.memory.pinnedPages).toBe(expected);
    expect(this.iommufd.live().areas).toBe(this.areas[0].length + this.areas[1].length);
  }

  /** Everything goes, in an order that a closed file would have. */
  close(): void {
    for (const one of this.pins) one.pin.release();
    for (const access of this.accesses) access.release();
    for (const { ioas, domain } of this.domains) {
      this.ioas[ioas]!.pagetable.detachDomain(domain);
      expect(domain.grains.size).toBe(0);
    }
    this.context.release();
    expect(this.iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
    this.task.exit();
    expect(this.host.memory.allocated).toBe(0);
    this.host.memory.close();
  }
}

const overlaps = (areas: readonly ModelArea[], iova: number, length: number): ModelArea[] =>
  areas
    .filter((one) => one.iova < iova + length && iova < one.iova + one.length)
    .sort((a, b) => a.iova - b.iova);

const touches = (ranges: readonly ModelReserved[], iova: number, length: number): boolean =>
  ranges.some((one) => one.iova < iova + length && iova < one.iova + one.length);

const aligned = (alignment: number, ...values: readonly number[]): boolean =>
  values.every((value) => value % alignment === 0);

type Step = (rig: Rig) => void;

const grain = (limit: number) => fc.nat(limit / GRAIN - 1).map((n) => n * GRAIN);
const whole = (limit: number) => fc.nat(limit / PAGE_BYTES - 1).map((n) => n * PAGE_BYTES);
const place = (limit: number) =>
  fc.oneof({ weight: 6, arbitrary: whole(limit) }, { weight: 3, arbitrary: grain(limit) }, fc.nat(limit - 1));
const size = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 1, max: 6 }).map((n) => n * PAGE_BYTES) },
  { weight: 3, arbitrary: fc.integer({ min: 1, max: 9 }).map((n) => n * GRAIN) },
  fc.integer({ min: 1, max: 9000 }),
);
const index = fc.constantFrom(0, 1);

const map = fc
  .record({ ioas: index, iova: place(WINDOW), va: place(USER_PAGES * PAGE_BYTES), length: size })
  .map(
    ({ ioas, iova, va: offset, length }): Step =>
      (rig) => {
        const va = USER + offset;
        const start = va % PAGE_BYTES;
        const source = new UserSource(rig.task.memory, BigInt(va - start), PAGE_BYTES);
        const pages = new Pages(source, true, rig.context.payer(rig.task));
        const areas = rig.areas[ioas]!;
        const mapped = rig.domains.some((one) => one.ioas === ioas);
        const beyond = offset + length > USER_PAGES * PAGE_BYTES;
        let expected: string | undefined;
        if (!aligned(rig.alignment(ioas), iova, start, length)) expected = "EINVAL";
        else if (touches(rig.reserved[ioas]!, iova, length)) expected = "EINVAL";
        else if (overlaps(areas, iova, length).length > 0) expected = "EEXIST";
        else if (mapped && beyond) expected = "EFAULT";
        const piece = { pages, start: BigInt(start), length: BigInt(length) };
        const got = rig.attempt(() => rig.ioas[ioas]!.pagetable.map([piece], BOTH, BigInt(iova)));
        expect(got).toBe(expected);
        if (!got) areas.push({ iova, length, va, start, pages });
      },
  );

const unmap = fc.record({ ioas: index, iova: place(WINDOW), length: size, all: fc.boolean() }).map(
  ({ ioas, iova, length, all }): Step =>
    (rig) => {
      const areas = rig.areas[ioas]!;
      const chosen = all ? areas[Math.floor((iova / WINDOW) * areas.length)] : undefined;
      const [from, bytes] = chosen ? [chosen.iova, chosen.length] : [iova, length];
      const touched = overlaps(areas, from, bytes);
      const cut = touched.findIndex((one) => one.iova < from || one.iova + one.length > from + bytes);
      const gone = cut < 0 ? touched : touched.slice(0, cut);
      const got = rig.ioas[ioas]!.pagetable.unmap(BigInt(from), BigInt(from + bytes - 1));
      expect(got.done).toBe(true);
      expect(got.error?.code).toBe(touched.length === 0 || cut >= 0 ? "ENOENT" : undefined);
      expect(Number(got.bytes)).toBe(gone.reduce((sum, one) => sum + one.length, 0));
      rig.areas[ioas] = areas.filter((one) => !gone.includes(one));
    },
);

/** The model's areas behind a range, or undefined when something is not mapped. */
const behind = (areas: readonly ModelArea[], iova: number, length: number): ModelArea[] | undefined => {
  const touched = overlaps(areas, iova, length);
  let at = iova;
  const parts: ModelArea[] = [];
  for (const area of touched) {
    if (area.iova > at) return undefined;
    const end = Math.min(area.iova + area.length, iova + length);
    const skip = at - area.iova;
    parts.push({ ...area, iova: at, length: end - at, va: area.va + skip, start: area.start + skip });
    at = end;
  }
  return at === iova + length ? parts : undefined;
};

const copy = fc
  .record({ from: index, to: index, source: place(WINDOW), target: place(WINDOW), length: size })
  .map(
    ({ from, to, source, target, length }): Step =>
      (rig) => {
        const parts = behind(rig.areas[from]!, source, length);
        const mapped = rig.domains.some((one) => one.ioas === to);
        const shift = target - source;
        let expected: string | undefined;
        if (!parts) expected = "ENOENT";
        else if (!parts.every((one) => aligned(rig.alignment(to), one.iova + shift, one.length, one.start)))
          expected = "EINVAL";
        else if (touches(rig.reserved[to]!, target, length)) expected = "EINVAL";
        else if (overlaps(rig.areas[to]!, target, length).length > 0) expected = "EEXIST";
        else if (mapped && parts.some((one) => one.va + one.length > USER + USER_PAGES * PAGE_BYTES))
          expected = "EFAULT";
        const got = rig.attempt(() => {
          const pieces = rig.ioas[from]!.pagetable.pieces(BigInt(source), BigInt(length));
          rig.ioas[to]!.pagetable.map(pieces, BOTH, BigInt(target));
        });
        expect(got).toBe(expected);
        if (!got) for (const one of parts!) rig.areas[to]!.push({ ...one, iova: one.iova + shift });
      },
  );

const attach = fc.record({ ioas: index, smallest: fc.constantFrom(2048n, 4096n), room: fc.nat(40) }).map(
  ({ ioas, smallest, room }): Step =>
    (rig) => {
      if (rig.domains.length >= 3) return;
      const domain = new GrainDomain(smallest | 0x20_0000n);
      const areas = rig.areas[ioas]!;
      const others = rig.domains.some((one) => one.ioas === ioas);
      const fits = areas.every((one) => aligned(Number(smallest), one.iova, one.start, one.length));
      const grains = areas.reduce((sum, one) => sum + one.length / GRAIN, 0);
      if (room < 4) domain.room = room;
      let expected: string | undefined;
      if (!fits) expected = "EADDRINUSE";
      else if (!others && areas.some((one) => one.va + one.length > USER + USER_PAGES * PAGE_BYTES))
        expected = "EFAULT";
      else if (grains > domain.room) expected = "ENOMEM";
      const got = rig.attempt(() => rig.ioas[ioas]!.pagetable.attachDomain(domain));
      expect(got).toBe(expected);
      domain.room = Number.POSITIVE_INFINITY;
      if (got) expect(domain.grains.size).toBe(0);
      else rig.domains.push({ ioas, domain });
    },
);

/** By one of two owners, who may reserve the same range. */
const OWNERS = [{}, {}] as const;
const reserve = fc
  .record({ ioas: index, owner: fc.constantFrom(...OWNERS), iova: place(WINDOW), length: size })
  .map(
    ({ ioas, owner, iova, length }): Step =>
      (rig) => {
        const taken = overlaps(rig.areas[ioas]!, iova, length).length > 0;
        const range = { start: BigInt(iova), last: BigInt(iova + length - 1) };
        const got = rig.attempt(() => rig.ioas[ioas]!.pagetable.reserve(owner, range));
        expect(got).toBe(taken ? "EADDRINUSE" : undefined);
        if (!got) rig.reserved[ioas]!.push({ owner, iova, length });
      },
  );

const unreserve = fc.record({ ioas: index, owner: fc.constantFrom(...OWNERS) }).map(
  ({ ioas, owner }): Step =>
    (rig) => {
      rig.ioas[ioas]!.pagetable.unreserve(owner);
      rig.reserved[ioas] = rig.reserved[ioas]!.filter((one) => one.owner !== owner);
    },
);

/** From one domain to another without a moment of nothing: both are filled for a while. */
const replace = fc.record({ at: fc.nat(2), smallest: fc.constantFrom(2048n, 4096n) }).map(
  ({ at, smallest }): Step =>
    (rig) => {
      const one = rig.domains[at];
      if (!one) return;
      const areas = rig.areas[one.ioas]!;
      const next = new GrainDomain(smallest | 0x20_0000n);
      const fits = areas.every((area) => aligned(Number(smallest), area.iova, area.start, area.length));
      const { pagetable } = rig.ioas[one.ioas]!;
      const pinned = rig.task.memory.pinnedPages;
      const got = rig.attempt(() => pagetable.attachDomain(next));
      expect(got).toBe(fits ? undefined : "EADDRINUSE");
      if (got) return;
      expect(rig.task.memory.pinnedPages).toBe(pinned);
      pagetable.detachDomain(one.domain);
      rig.domains[at] = { ioas: one.ioas, domain: next };
    },
);

const detach = fc.nat(2).map(
  (at): Step =>
    (rig) => {
      const one = rig.domains[at];
      if (!one) return;
      rig.domains.splice(at, 1);
      rig.ioas[one.ioas]!.pagetable.detachDomain(one.domain);
      expect(one.domain.grains.size).toBe(0);
    },
);

const pin = fc.record({ ioas: index, iova: place(WINDOW), length: size }).map(
  ({ ioas, iova, length }): Step =>
    (rig) => {
      const parts = behind(rig.areas[ioas]!, iova, length);
      let expected: string | undefined;
      const skewed = overlaps(rig.areas[ioas]!, iova, length).some(
        (one) => (one.start - one.iova) % PAGE_BYTES !== 0,
      );
      if (!parts) expected = "ENOENT";
      else if (skewed) expected = "EINVAL";
      else if (parts.some((one) => one.va + one.length > USER + USER_PAGES * PAGE_BYTES)) expected = "EFAULT";
      let made: AccessPin | undefined;
      const got = rig.attempt(() => {
        made = rig.accesses[ioas]!.pin(BigInt(iova), BigInt(length), true);
      });
      // What comes before a hole may fail first.
      if (expected === "ENOENT") expect(["ENOENT", "EINVAL", "EFAULT"]).toContain(got);
      else expect(got).toBe(expected);
      if (!made) return;
      let at = 0;
      made.physical((pa, bytes) => {
        const part = parts!.find((one) => one.iova <= iova + at && iova + at < one.iova + one.length)!;
        expect(pa).toBe(rig.task.memory.physical(part.va + (iova + at - part.iova)));
        at += bytes;
      });
      expect(at).toBe(length);
      const pinned = parts!.map(({ pages, start, length: bytes }) => ({
        pages,
        first: Math.floor(start / PAGE_BYTES),
        last: Math.floor((start + bytes - 1) / PAGE_BYTES),
      }));
      rig.pins.push({ pin: made, ioas, iova, length, parts: pinned });
    },
);

const unpin = fc.nat(9).map(
  (at): Step =>
    (rig) => {
      rig.pins[at]?.pin.release();
      rig.pins.splice(at, 1);
    },
);

describe("an IOAS", () => {
  it("gives domains, copies and accesses exactly what a list of areas says, and pins each page once", () => {
    const step = fc.oneof(
      { weight: 6, arbitrary: map },
      { weight: 4, arbitrary: unmap },
      { weight: 3, arbitrary: copy },
      { weight: 2, arbitrary: attach },
      { weight: 1, arbitrary: detach },
      { weight: 1, arbitrary: replace },
      { weight: 1, arbitrary: reserve },
      { weight: 1, arbitrary: unreserve },
      { weight: 2, arbitrary: pin },
      { weight: 1, arbitrary: unpin },
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const rig = new Rig();
        for (const run of steps) {
          run(rig);
          rig.check();
        }
        rig.close();
      }),
      { numRuns: 120 },
    );
  }, 120_000);
});

describe("a domain with several apertures", () => {
  const rig = new Rig();
  const { pagetable } = rig.ioas[0];
  const two = new GrainDomain(4096n, [
    { start: 0x2_0000, end: 0x3_0000 },
    { start: 0x1000, end: 0x3000 },
  ]);
  /** Memory in one piece; that at `USER` is in single frames. */
  const WHOLE = 0x20_0000;
  rig.task.memory.map(WHOLE, 16 * PAGE_BYTES, { contiguous: true });
  const map = (iova: number | undefined, bytes = 4096, start = 0, va = WHOLE) => {
    const source = new UserSource(rig.task.memory, BigInt(va), 16 * PAGE_BYTES);
    const pages = new Pages(source, true, rig.context.payer(rig.task));
    return pagetable.map(
      [{ pages, start: BigInt(start), length: BigInt(bytes) }],
      BOTH,
      iova === undefined ? iova : BigInt(iova),
    );
  };
  const unmap = (iova: number, bytes = 4096) => pagetable.unmap(BigInt(iova), BigInt(iova + bytes - 1));
  afterAll(() => rig.close());

  it("leaves what lies between them to nobody, for as long as it is attached", () => {
    map(0x8000);
    expect(rig.attempt(() => pagetable.attachDomain(two))).toBe("EADDRINUSE");
    expect(pagetable.space.usable).toHaveLength(1);
    unmap(0x8000);
    pagetable.attachDomain(two);
    expect(pagetable.space.usable).toEqual([
      { start: 0x1000n, last: 0x2fffn },
      { start: 0x2_0000n, last: 0x2_ffffn },
    ]);
    for (const iova of [0, 0x3000, 0x1_f000, 0x3_0000]) expect(rig.attempt(() => map(iova))).toBe("EINVAL");
    expect([map(undefined), map(undefined), map(undefined)]).toEqual([0x1000n, 0x2000n, 0x2_0000n]);
    pagetable.detachDomain(two);
    expect(pagetable.space.usable).toHaveLength(1);
    for (const iova of [0x1000, 0x2000, 0x2_0000]) unmap(iova);
  });

  it("beside another narrows the address space to what both map", () => {
    const other = new GrainDomain(4096n, [{ start: 0x2000, end: 0x2_8000 }]);
    pagetable.attachDomain(two);
    pagetable.attachDomain(other);
    expect(pagetable.space.usable).toEqual([
      { start: 0x2000n, last: 0x2fffn },
      { start: 0x2_0000n, last: 0x2_7fffn },
    ]);
    pagetable.detachDomain(two);
    expect(pagetable.space.usable).toEqual([{ start: 0x2000n, last: 0x2_7fffn }]);
    pagetable.detachDomain(other);
  });

  describe("with pages of sizes of their own", () => {
    const graded = () =>
      new GrainDomain(0x5000n, [
        { start: 0x1000, end: 0x4000, pageSizes: 0x1000n },
        { start: 0x2_0000, end: 0x4_0000, pageSizes: 0x4000n },
      ]);

    it("asks in each for what its pages need, and tells what suits both", () => {
      const domain = graded();
      pagetable.attachDomain(domain);
      expect(pagetable.alignment).toBe(0x4000n);
      map(0x2000);
      for (const [iova, bytes, start] of [
        [0x2_0000, 0x1000, 0],
        [0x2_1000, 0x4000, 0],
        [0x2_0000, 0x4000, 0x1000],
      ] as const)
        expect(rig.attempt(() => map(iova, bytes, start))).toBe("EINVAL");
      map(0x2_4000, 0x8000);
      expect(domain.grains.size).toBe(0x9000 / GRAIN);
      pagetable.cut({ start: 0x2_6000n, last: 0x2_7fffn });
      pagetable.cut({ start: 0x2_8000n, last: 0x2_8fffn });
      expect([...pagetable.areas].map(({ iova }) => iova)).toEqual([0x2000n, 0x2_4000n, 0x2_8000n]);
      for (const [iova, bytes] of [
        [0x2000, 0x1000],
        [0x2_4000, 0x8000],
      ] as const)
        unmap(iova, bytes);
      pagetable.detachDomain(domain);
      expect(pagetable.alignment).toBe(1n);
    });

    it("takes memory that lies in whole pages on the host, and says so of other memory", () => {
      for (const large of [true, false]) {
        const domain = graded();
        pagetable.setLargePages(large);
        pagetable.attachDomain(domain);
        map(0x2000, 0x2000, 0, USER);
        const split = () => map(0x2_4000, 0x8000, 0, USER);
        expect(reasonOf(split)).toMatch(/area \[0x24000, 0x2bfff\] .* in pieces of 0x4000 bytes on the host/);
        expect(rig.attempt(split)).toBe("EINVAL");
        expect(domain.grains.size).toBe(0x2000 / GRAIN);
        expect(map(0x2_4000, 0x8000)).toBe(0x2_4000n);
        unmap(0x2000, 0x2000);
        unmap(0x2_4000, 0x8000);
        pagetable.detachDomain(domain);
      }
      pagetable.setLargePages(true);
    });

    it("places bytes where their length and memory fit the pages", () => {
      const domain = graded();
      pagetable.attachDomain(domain);
      expect([map(undefined), map(undefined), map(undefined)]).toEqual([0x1000n, 0x2000n, 0x3000n]);
      expect(rig.attempt(() => map(undefined))).toBe("ENOSPC");
      expect(rig.attempt(() => map(undefined, 0x4000, 0x1000))).toBe("ENOSPC");
      expect(map(undefined, 0x4000)).toBe(0x2_0000n);
      for (const iova of [0x1000, 0x2000, 0x3000]) unmap(iova);
      unmap(0x2_0000, 0x4000);
      pagetable.detachDomain(domain);
    });

    it("takes no areas that do not fit, and maps whole pages without large ones", () => {
      map(0x2_0000);
      expect(rig.attempt(() => pagetable.attachDomain(graded()))).toBe("EADDRINUSE");
      unmap(0x2_0000);
      const domain = graded();
      const lengths: number[] = [];
      const { map: mapped } = domain;
      domain.map = (iova, pa, length) => {
        lengths.push(length);
        mapped.call(domain, iova, pa, length);
      };
      pagetable.setLargePages(false);
      pagetable.attachDomain(domain);
      map(0x2000);
      map(0x2_0000, 0x8000);
      expect(lengths[0]).toBe(0x1000);
      expect(Math.max(...lengths)).toBe(0x4000);
      unmap(0x2000);
      unmap(0x2_0000, 0x8000);
      pagetable.detachDomain(domain);
      pagetable.setLargePages(true);
    });
  });
});

describe("unmapping everything", () => {
  const host = new ModelHost();
  const iommufd = new IommufdSubsystem(host);
  afterAll(() => host.memory.close());
  const AREAS = 5000;

  it("looks at what goes and at what stops it, not at the areas behind, however often it is tried", () => {
    const context = new IommufdContext(iommufd.system, "iommufd");
    const task = new ModelTask(host.memory);
    task.memory.map(USER, PAGE_BYTES);
    const ioas = context.add(new Ioas(context));
    const { pagetable } = ioas;
    const pages = new Pages(new UserSource(task.memory, BigInt(USER), PAGE_BYTES), true, context.payer(task));
    const at = (area: number) => BigInt(area * 2 * PAGE_BYTES);
    for (let area = 1; area <= AREAS; area++)
      pagetable.map([{ pages, start: 0n, length: BigInt(PAGE_BYTES) }], BOTH, at(area));
    const access = createAccess(context, { pins: true, unmap: () => {} });
    access.attach(ioas.id);
    const pin = access.pin(at(3), BigInt(PAGE_BYTES), true);
    const seeks = vi.spyOn(IntervalMap.prototype, "seek");
    const nexts = vi.spyOn(IntervalMap.prototype, "next");
    const everything = () => pagetable.unmap(0n, MAX_ADDRESS);
    expect(everything()).toEqual({ bytes: BigInt(2 * PAGE_BYTES), done: false });
    for (let again = 0; again < 20; again++) expect(everything()).toEqual({ bytes: 0n, done: false });
    expect(seeks.mock.calls.length + nexts.mock.calls.length).toBeLessThan(200);
    vi.restoreAllMocks();
    // Given up, the area is as any other; then all of it goes.
    expect(() => access.pin(at(3), BigInt(PAGE_BYTES), true)).toThrow("is being unmapped");
    pagetable.keep(0n, MAX_ADDRESS);
    access.pin(at(3), BigInt(PAGE_BYTES), true).release();
    pin.release();
    expect(everything()).toEqual({ bytes: BigInt((AREAS - 2) * PAGE_BYTES), done: true });
    expect(pagetable.areas.size).toBe(0);
    access.destroy();
    context.release();
    task.exit();
  });
});

/** No IOVA of the test below lies beyond. */
const LIMIT = 400_000;

describe("automatic IOVAs", () => {
  const host = new ModelHost();
  const iommufd = new IommufdSubsystem(host);
  afterAll(() => host.memory.close());

  it("are the first that fit, whatever was mapped and unmapped before", () => {
    const request = fc.record({
      what: fc.constantFrom("map", "map", "unmap", "reserve", "allow"),
      at: fc.nat(100),
      length: fc.constantFrom(16, 1000, 4096, 8192, 12288, 20000, 65536),
      offset: fc.constantFrom(0, 0, 0, 2048, 16, 0x3000),
    });
    fc.assert(
      fc.property(fc.array(request, { maxLength: 60 }), (requests) => {
        const context = new IommufdContext(iommufd.system, "iommufd");
        const task = new ModelTask(host.memory);
        const { pagetable } = context.add(new Ioas(context));
        let areas: { start: number; last: number }[] = [];
        let reserved: { start: number; last: number }[] = [];
        let allowed: { start: number; last: number }[] = [];
        const isFree = (start: number, last: number) =>
          [...areas, ...reserved].every((one) => one.last < start || last < one.start) &&
          (allowed.length === 0 || allowed.some((one) => one.start <= start && last <= one.last));
        for (const { what, at, length, offset } of requests) {
          const range = { start: at * 1000, last: at * 1000 + length * 4 };
          if (what === "map") {
            const va = 0x10_0000_0000 + offset;
            const alignment = Math.min(2 ** Math.ceil(Math.log2(length)), lowestBit(va), 2 ** 21);
            let expected: number | undefined;
            const offsetInPage = va % PAGE_BYTES;
            let hole: number | undefined;
            for (let at = PAGE_BYTES; at < LIMIT && expected === undefined; at += 1) {
              if (!isFree(at, at)) hole = undefined;
              else if (hole === undefined) {
                hole = at;
                const iova = (Math.ceil(at / alignment) * alignment) | offsetInPage;
                if (isFree(at, iova + length - 1)) expected = iova;
              }
            }
            const source = new UserSource(task.memory, BigInt(va - (va % PAGE_BYTES)), PAGE_BYTES);
            const pages = new Pages(source, true, context.payer(task));
            const piece = { pages, start: BigInt(va % PAGE_BYTES), length: BigInt(length) };
            let got: number | undefined;
            try {
              got = Number(pagetable.map([piece], BOTH, undefined));
            } catch (error) {
              expect((error as LinuxError).code).toBe("ENOSPC");
            }
            expect(got).toBe(expected);
            if (got !== undefined) areas.push({ start: got, last: got + length - 1 });
          } else if (what === "unmap") {
            const area = areas[at % Math.max(areas.length, 1)];
            if (!area) continue;
            expect(pagetable.unmap(BigInt(area.start), BigInt(area.last)).done).toBe(true);
            areas = areas.filter((one) => one !== area);
          } else if (what === "reserve" && isFree(range.start, range.last) && allowed.length === 0) {
            pagetable.reserve({}, { start: BigInt(range.start), last: BigInt(range.last) });
            reserved = [...reserved, range];
          } else if (
            what === "allow" &&
            reserved.every((one) => one.last < range.start || range.last < one.start)
          ) {
            allowed = at % 3 === 0 ? [] : [range];
            pagetable.space.allow(
              allowed.map(({ start, last }) => ({ start: BigInt(start), last: BigInt(last) })),
            );
          }
        }
        context.release();
        task.exit();
      }),
      { numRuns: 60 },
    );
  });
});

const lowestBit = (value: number): number => Number(BigInt(value) & -BigInt(value));
