/**
 * What any kernel-side IOMMU driver must do, whatever its unit: run against every one of them. Accesses are made
 * through the unit, so that a driver which forgets an invalidation is found out.
 */

import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../test/support/code-of.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { type IommuDriver, type PagingDomain, Protection, type Requester } from "./driver.ts";

export interface DriverBench {
  readonly driver: IommuDriver;
  readonly memory: HostMemory;
  /** Two devices behind the driver's unit. */
  readonly devices: readonly [Requester, Requester];
  /** The physical address an access of the device reaches through the unit, or "fault". */
  access(device: Requester, iova: number, write: boolean): number | "fault";
  /** From now on `memory.allocate` fails after so many more frames; Infinity: never. */
  limitFrames(count: number): void;
  /** Turns the unit off and returns what the driver holds. */
  close(): void;
}

const PAGE = 4096;
const RW = Protection.read | Protection.write;
export const describeDriver = (name: string, make: () => DriverBench): void => {
  describe(`${name}: the driver contract`, () => {
    let bench: DriverBench;
    const domains: PagingDomain[] = [];
    /** Where the first aperture begins. */
    let base = 0;
    const domain = (): PagingDomain => {
      const made = bench.driver.allocatePaging(bench.devices[0]);
      domains.push(made);
      return made;
    };
    beforeEach(() => {
      bench = make();
      for (const device of bench.devices) {
        bench.driver.probe(device);
        bench.driver.attach(device, bench.driver.blocked);
      }
      const paging = bench.driver.allocatePaging(bench.devices[0]);
      base = paging.apertures[0]!.start;
      paging.free();
    });
    afterEach(() => {
      bench.limitFrames(Number.POSITIVE_INFINITY);
      for (const device of bench.devices) bench.driver.release(device);
      for (const each of domains.splice(0)) each.free();
      bench.close();
      expect(bench.memory.allocated).toBe(0);
    });

    it("blocks a device that has no domain", () => {
      expect(bench.access(bench.devices[0], base, false)).toBe("fault");
      expect(bench.access(bench.devices[0], base + 0x1234_5000, true)).toBe("fault");
    });

    it("lets everything through in an identity domain", () => {
      bench.driver.attach(bench.devices[0], bench.driver.identity);
      expect(bench.access(bench.devices[0], 0x1234_5678, true)).toBe(0x1234_5678);
      expect(bench.access(bench.devices[1], 0x1234_5678, true)).toBe("fault");
    });

    it("translates what is mapped, for every device that has the domain", () => {
      const paging = domain();
      paging.map(base + 0x10_0000, 0x40_0000, 3 * PAGE, RW);
      for (const device of bench.devices) bench.driver.attach(device, paging);
      for (const device of bench.devices) {
        expect(bench.access(device, base + 0x10_0000 + PAGE + 5, true)).toBe(0x40_0000 + PAGE + 5);
        expect(bench.access(device, base + 0x10_0000 - 1, false)).toBe("fault");
        expect(bench.access(device, base + 0x10_0000 + 3 * PAGE, false)).toBe("fault");
      }
    });

    it("keeps reads and writes apart", () => {
      const paging = domain();
      bench.driver.attach(bench.devices[0], paging);
      paging.map(base, 0x40_0000, PAGE, Protection.read);
      paging.map(base + PAGE, 0x41_0000, PAGE, RW);
      expect(bench.access(bench.devices[0], base, false)).toBe(0x40_0000);
      expect(bench.access(bench.devices[0], base, true)).toBe("fault");
      expect(bench.access(bench.devices[0], base + PAGE, true)).toBe(0x41_0000);
    });

    it("makes an unmap final before it returns, even for what the unit has cached", () => {
      const paging = domain();
      bench.driver.attach(bench.devices[0], paging);
      paging.map(base + 0x20_0000, 0x80_0000, 0x20_0000, RW); // 2 MiB, a large leaf where there are any
      expect(bench.access(bench.devices[0], base + 0x20_1000, true)).toBe(0x80_1000);
      expect(paging.unmap(base + 0x20_0000, 0x20_0000)).toBe(0x20_0000);
      expect(bench.access(bench.devices[0], base + 0x20_1000, true)).toBe("fault");
      expect(paging.unmap(base + 0x20_0000, 0x20_0000)).toBe(0);
    });

    it("makes a change of domain final before it returns", () => {
      const [one, other] = [domain(), domain()];
      one.map(base + 0x5000, 0x40_0000, PAGE, RW);
      other.map(base + 0x5000, 0x50_0000, PAGE, RW);
      const [device] = bench.devices;
      bench.driver.attach(device, one);
      expect(bench.access(device, base + 0x5000, true)).toBe(0x40_0000);
      bench.driver.attach(device, other);
      expect(bench.access(device, base + 0x5000, true)).toBe(0x50_0000);
      bench.driver.attach(device, bench.driver.blocked);
      expect(bench.access(device, base + 0x5000, true)).toBe("fault");
    });

    it("refuses to map over a mapping, and changes nothing", () => {
      const paging = domain();
      bench.driver.attach(bench.devices[0], paging);
      paging.map(base + 2 * PAGE, 0x40_0000, PAGE, RW);
      expect(codeOf(() => paging.map(base, 0x50_0000, 4 * PAGE, RW))).toBe("EEXIST");
      expect(bench.access(bench.devices[0], base, false)).toBe("fault");
      expect(paging.physical(base + 2 * PAGE + 7)).toBe(0x40_0007);
      expect(paging.physical(base)).toBe(-1);
    });

    it("refuses what lies beyond its apertures", () => {
      const paging = domain();
      const { end } = paging.apertures.at(-1)!;
      expect(codeOf(() => paging.map(end, 0x40_0000, PAGE, RW))).toBe("EFAULT");
      expect(codeOf(() => paging.map(end - PAGE, 0x40_0000, 2 * PAGE, RW))).toBe("EFAULT");
      paging.map(end - PAGE, 0x40_0000, PAGE, RW);
      expect(paging.physical(end - PAGE)).toBe(0x40_0000);
      paging.unmap(end - PAGE, PAGE);
    });

    it("maps all or nothing when tables cannot be had, wherever memory ends", () => {
      const paging = domain();
      bench.driver.attach(bench.devices[0], paging);
      paging.map(base, 0x40_0000, PAGE, RW);
      const standing = bench.memory.allocated;
      let failures = 0;
      for (let frames = 0; ; frames++) {
        bench.limitFrames(frames);
        const code = codeOf(() => paging.map(base + 0x3fff_f000, 0x50_0000, 2 * PAGE, RW));
        bench.limitFrames(Number.POSITIVE_INFINITY);
        if (code === undefined) break;
        failures += 1;
        expect(code).toBe("ENOMEM");
        expect(bench.memory.allocated).toBe(standing);
        expect(bench.access(bench.devices[0], base + 0x3fff_f000, false)).toBe("fault");
      }
      expect(failures).toBeGreaterThan(0);
      expect(bench.access(bench.devices[0], base, false)).toBe(0x40_0000);
      expect(bench.access(bench.devices[0], base + 0x4000_0000, true)).toBe(0x50_1000);
    });

    it("refuses a domain of somebody else, and the device keeps what it had", () => {
      const paging = domain();
      paging.map(base, 0x40_0000, PAGE, RW);
      bench.driver.attach(bench.devices[0], paging);
      const stranger: PagingDomain = { ...paging, kind: "paging", name: "stranger", id: 1 } as PagingDomain;
      expect(codeOf(() => bench.driver.attach(bench.devices[0], stranger))).toBe("EINVAL");
      expect(bench.access(bench.devices[0], base, false)).toBe(0x40_0000);
    });

    it("does not free a domain that a device has", () => {
      const paging = bench.driver.allocatePaging(bench.devices[0]);
      bench.driver.attach(bench.devices[0], paging);
      expect(codeOf(() => paging.free())).toBe("EBUSY");
      bench.driver.attach(bench.devices[0], bench.driver.blocked);
      const before = bench.memory.allocated;
      paging.free();
      expect(bench.memory.allocated).toBeLessThan(before);
    });

    it("gives ids and tables back: a thousand domains leave nothing", () => {
      const first = bench.driver.allocatePaging(bench.devices[0]);
      const id = first.id;
      first.free();
      const standing = bench.memory.allocated;
      for (let i = 0; i < 1000; i++) {
        const paging = bench.driver.allocatePaging(bench.devices[0]);
        expect(paging.id).toBe(id);
        paging.free();
      }
      expect(bench.memory.allocated).toBe(standing);
    });

    it("agrees with a plain map over random maps, unmaps and accesses", () => {
      const pages = fc.integer({ min: 0, max: 1000 });
      const step = fc.record({
        what: fc.constantFrom("map", "map", "unmap", "access", "access"),
        page: fc.oneof(
          pages,
          pages.map((page) => page * 512),
        ),
        count: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(512, 1024)),
        writable: fc.boolean(),
      });
      fc.assert(
        fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
          const paging = bench.driver.allocatePaging(bench.devices[0]);
          bench.driver.attach(bench.devices[0], paging);
          const model = new Map<number, { pa: number; writable: boolean }>();
          const runs: { page: number; count: number }[] = [];
          for (const { what, page, count, writable } of steps) {
            if (what === "map") {
              const taken = runs.some((run) => run.page < page + count && page < run.page + run.count);
              const pa = 0x4000_0000 + (page % 512) * PAGE;
              const protection = writable ? RW : Protection.read;
              expect(codeOf(() => paging.map(base + page * PAGE, pa, count * PAGE, protection))).toBe(
                taken ? "EEXIST" : undefined,
              );
              if (taken) continue;
              runs.push({ page, count });
              for (let i = 0; i < count; i++) model.set(page + i, { pa: pa + i * PAGE, writable });
            } else if (what === "unmap") {
              const index = runs.findIndex((run) => run.page <= page && page < run.page + run.count);
              if (index < 0) continue;
              const [run] = runs.splice(index, 1);
              expect(paging.unmap(base + run!.page * PAGE, run!.count * PAGE)).toBe(run!.count * PAGE);
              for (let i = 0; i < run!.count; i++) model.delete(run!.page + i);
            } else {
              const entry = model.get(page);
              const expected = entry && (entry.writable || !writable) ? entry.pa + 12 : "fault";
              expect(bench.access(bench.devices[0], base + page * PAGE + 12, writable)).toBe(expected);
              expect(paging.physical(base + page * PAGE)).toBe(entry?.pa ?? -1);
            }
          }
          bench.driver.attach(bench.devices[0], bench.driver.blocked);
          paging.free();
        }),
        { numRuns: 60 },
      );
    });
  });
};
