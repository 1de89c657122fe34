/** Dirty bitmaps against a set of pages, on the mock driver. */
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../test/support/code-of.ts";
import { APERTURE, MockClient } from "../../test/support/mock-client.ts";
import { MockDomain } from "../drivers/mock/domain.ts";
import * as uapi from "../uapi/iommufd.ts";
import { HwptPaging } from "./hwpt.ts";

const BITMAP = 0x30_0000;
const BITMAP_BYTES = 0x2000;
const PAGE = 4096;
/** Pages that are mapped, one area each, so that each has an entry of its own. */
const PAGES = 16;
const BASE = Number(APERTURE);

let client: MockClient;
let hwpt: number;
let domain: MockDomain;

beforeEach(() => {
  client = new MockClient();
  client.task.memory.map(BITMAP, BITMAP_BYTES);
  const ioas = client.ioas();
  const device = client.plug();
  hwpt = client.hwpt(device.bound.id, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING });
  const { domain: made } = client.context.objects.get(hwpt, HwptPaging, "hwpt");
  if (!(made instanceof MockDomain)) throw new Error("no mock domain");
  domain = made;
  for (let i = 0; i < PAGES; i += 1) client.map(ioas, BASE + i * PAGE, 1, { from: i });
  return () => client.close();
});

const track = (on: boolean): void => {
  const flags = on ? uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0;
  client.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.IommuHwptSetDirtyTracking, { flags, hwpt_id: hwpt });
};
const getBitmap = (
  iova: number,
  length: number,
  { pageSize = PAGE, clear = true, at = BITMAP }: { pageSize?: number; clear?: boolean; at?: number } = {},
): void => {
  client.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.IommuHwptGetDirtyBitmap, {
    hwpt_id: hwpt,
    flags: clear ? 0 : uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
    iova: BigInt(iova),
    length: BigInt(length),
    page_size: BigInt(pageSize),
    data: BigInt(at),
  });
};
const bits = (count: number): number[] => {
  const bytes = new Uint8Array(BITMAP_BYTES);
  client.task.memory.read(BigInt(BITMAP), bytes);
  const set = [...bytes.keys()].flatMap((at) =>
    [0, 1, 2, 3, 4, 5, 6, 7].filter((bit) => bytes[at]! & (1 << bit)).map((bit) => at * 8 + bit),
  );
  expect(set.every((bit) => bit < count)).toBe(true);
  return set;
};
const erase = () => client.task.memory.poke(BITMAP, new Uint8Array(BITMAP_BYTES));
const write = (page: number): boolean => domain.written(BASE + page * PAGE);
describe("a dirty bitmap", () => {
  it("has the pages that were written since it was last read, and bits that were set stay", () => {
    expect(write(1)).toBe(false);
    track(true);
    for (const page of [1, 5]) expect(write(page)).toBe(true);
    client.task.memory.poke(BITMAP, Uint8Array.of(0x80));
    getBitmap(BASE, PAGES * PAGE);
    expect(bits(PAGES)).toEqual([1, 5, 7]);
    erase();
    getBitmap(BASE, PAGES * PAGE);
    expect(bits(PAGES)).toEqual([]);
  });

  it("forgets what was written before tracking was switched on again", () => {
    track(true);
    write(3);
    track(false);
    track(true);
    getBitmap(BASE, PAGES * PAGE);
    expect(bits(PAGES)).toEqual([]);
  });

  it("that lies where no memory is loses its bits without a word, and the pages are clean then", () => {
    track(true);
    write(2);
    expect(codeOf(() => getBitmap(BASE, PAGES * PAGE, { at: 0x6666_0000 }))).toBeUndefined();
    getBitmap(BASE, PAGES * PAGE);
    expect(bits(PAGES)).toEqual([]);
  });

  it("is refused for ranges and granules that make no sense, in Linux's order", () => {
    expect(codeOf(() => getBitmap(BASE, 0))).toBe("EOVERFLOW");
    expect(codeOf(() => getBitmap(BASE, PAGE, { pageSize: 0 }))).toBe("EINVAL");
    expect(codeOf(() => getBitmap(BASE + 0x400, PAGE, { pageSize: 0x400 }))).toBe("EINVAL");
    expect(codeOf(() => getBitmap(BASE, 0x3000, { pageSize: 0x2000 }))).toBe("EINVAL");
  });

  it("agrees with a set of pages, over random writes, ranges, granules and readings", () => {
    const step = fc.oneof(
      { weight: 3, arbitrary: fc.record({ what: fc.constant("write" as const), page: fc.nat(PAGES - 1) }) },
      fc.record({
        what: fc.constant("read" as const),
        granule: fc.constantFrom(1, 2, 4),
        first: fc.nat(7),
        count: fc.integer({ min: 1, max: 8 }),
        clear: fc.boolean(),
      }),
      fc.record({ what: fc.constant("track" as const) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        track(true);
        const dirty = new Set<number>();
        for (const given of steps) {
          if (given.what === "write") {
            expect(write(given.page)).toBe(true);
            dirty.add(given.page);
          } else if (given.what === "track") {
            track(true);
            dirty.clear();
          } else {
            const { granule, first, count, clear } = given;
            const [start, pages] = [first * granule, count * granule];
            erase();
            getBitmap(BASE + start * PAGE, pages * PAGE, { pageSize: granule * PAGE, clear });
            const within = [...dirty].filter((page) => page >= start && page < start + pages);
            const expected = new Set(within.map((page) => Math.floor((page - start) / granule)));
            expect(bits(count)).toEqual([...expected].sort((a, b) => a - b));
            if (clear) for (const page of within) dirty.delete(page);
          }
        }
      }),
      { numRuns: 150 },
    );
  });
});
