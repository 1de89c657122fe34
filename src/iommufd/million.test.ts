/** An IOAS with a million areas: what it holds, where it places more, and how little is looked at for that. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { Random } from "../base/clock.ts";
import { Protection } from "../iommu/driver.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { IommufdContext } from "./context.ts";
import { IommufdSubsystem } from "./file.ts";
import { Ioas } from "./ioas.ts";
import { Pages, UserSource } from "./pages.ts";

const COUNT = 1_000_000;
const PAGE = 4096n;
const BOTH = Protection.read | Protection.write;

describe("an IOAS with a million areas", () => {
  const host = new ModelHost();
  const iommufd = new IommufdSubsystem(host);
  const context = new IommufdContext(iommufd.system, "iommufd");
  const task = new ModelTask(host.memory);
  const ioas = context.add(new Ioas(context));
  const { pagetable } = ioas;
  const payer = context.payer(task);
  const page = () => new Pages(new UserSource(task.memory, 0x10_0000n, 4096), true, payer);
  const place = (pages: bigint): bigint =>
    pagetable.map([{ pages: page(), start: 0n, length: pages * PAGE }], BOTH, undefined);

  /** What is known of holes is found out lazily: now. */
  const settle = (): void => {
    const iova = place(1n << 20n);
    pagetable.unmap(iova, iova + (PAGE << 20n) - 1n);
  };

  beforeAll(() => {
    for (let i = 0; i < COUNT; i += 1) place(1n);
  }, 120_000);
  afterAll(() => {
    task.exit();
    host.memory.close();
  });

  it("has them one behind the other from the first page on", () => {
    expect(iommufd.live().areas).toBe(COUNT);
    let next = PAGE;
    for (const { iova, length } of pagetable.areas) {
      if (iova !== next || length !== PAGE) throw new Error(`area at ${iova}`);
      next += PAGE;
    }
    expect(next).toBe(BigInt(COUNT + 1) * PAGE);
    expect(pagetable.areas.at(BigInt(COUNT) * PAGE)?.iova).toBe(BigInt(COUNT) * PAGE);
  });

  it("fills holes from the lowest on, each found among a few hundred places", () => {
    const random = new Random(3);
    const holes = new Set<bigint>();
    while (holes.size < 200) holes.add(BigInt(1 + (random.next() % COUNT)) * PAGE);
    for (const iova of holes)
      expect(pagetable.unmap(iova, iova + PAGE - 1n)).toEqual({ bytes: PAGE, done: true });
    const sorted = [...holes].sort((a, b) => Number(a - b));
    settle();
    const before = pagetable.areas.looked;
    expect(sorted.map(() => place(1n))).toEqual(sorted);
    expect((pagetable.areas.looked - before) / sorted.length).toBeLessThan(1000);
    expect(place(1n)).toBe(BigInt(COUNT + 1) * PAGE);
  });

  it("places larger ones beyond all holes that are too small", () => {
    for (const at of [10n, 5000n, 700_000n]) pagetable.unmap(at * PAGE, at * PAGE + PAGE - 1n);
    settle();
    const before = pagetable.areas.looked;
    expect(place(4n)).toBe(BigInt(COUNT + 4) * PAGE);
    expect(pagetable.areas.looked - before).toBeLessThan(2000);
  });

  it("goes as a whole with one unmap, and with its file", () => {
    const other = new IommufdContext(iommufd.system, "another");
    const copies = other.add(new Ioas(other));
    copies.pagetable.map(pagetable.pieces(1000n * PAGE, 3000n * PAGE), BOTH, 0n);
    expect(iommufd.live().areas).toBe(pagetable.areas.size + 3000);
    expect(pagetable.unmap(0n, 2n ** 64n - 1n)).toEqual({ bytes: BigInt(COUNT + 2) * PAGE, done: true });
    expect(iommufd.live().areas).toBe(3000);
    other.release();
    expect(iommufd.live().areas).toBe(0);
    context.release();
  });
});
