/**
 * What an area of an IOAS costs when there are a million of them, against ten thousand: mapped where it fits, unmapped
 * and mapped anywhere, and closed with all others. Processor time, so that a busy machine does not count.
 */
import { Random } from "../src/base/clock.ts";
import { WorkQueue } from "../src/base/scheduler.ts";
import { Protection } from "../src/iommu/driver.ts";
import { IommufdContext } from "../src/iommufd/context.ts";
import { IommufdSubsystem } from "../src/iommufd/file.ts";
import type { IoPagetable } from "../src/iommufd/io-pagetable.ts";
import { Ioas } from "../src/iommufd/ioas.ts";
import { Pages, UserSource } from "../src/iommufd/pages.ts";
import { ModelTask } from "../src/kernel/model-task.ts";
import { createMemory } from "../src/memory/banks.ts";
import { type BenchRow, median } from "./row.ts";

const ROUNDS = 3;
const FEW = 10_000;
const MANY = 1_000_000;
const CHURN = 200_000;
const PAGE = 4096n;
const BOTH = Protection.read | Protection.write;

/** ns of processor time. */
const timed = (work: () => void): number => {
  const start = process.cpuUsage();
  work();
  return process.cpuUsage(start).user * 1000;
};

/** Areas of a page with a page between them, so that each is a hole's neighbour. */
const fill = (pagetable: IoPagetable, page: () => Pages, count: number): void => {
  for (let i = 0; i < count; i += 1)
    pagetable.map([{ pages: page(), start: 0n, length: PAGE }], BOTH, BigInt(2 * i + 1) * PAGE);
};

/** ns an area: [unmapped and mapped where it fits, unmapped and mapped there again, closed]. */
const round = (count: number): number[] => {
  const memory = createMemory({ ramBytes: 2 ** 20 });
  const iommufd = new IommufdSubsystem({ memory, scheduler: new WorkQueue() });
  const context = new IommufdContext(iommufd.system, "iommufd");
  const task = new ModelTask(memory);
  const page = () => new Pages(new UserSource(task.memory, 0x10_0000n, 4096), true, context.payer(task));
  const { pagetable } = context.add(new Ioas(context));
  fill(pagetable, page, count);
  const random = new Random(1);
  const unmapOne = (): bigint => {
    const iova = BigInt(2 * (random.next() % count) + 1) * PAGE;
    pagetable.unmap(iova, iova + PAGE - 1n);
    return iova;
  };
  const fits = timed(() => {
    for (let i = 0; i < CHURN; i += 1) {
      unmapOne();
      pagetable.map([{ pages: page(), start: 0n, length: PAGE }], BOTH, undefined);
    }
  });
  const churn = timed(() => {
    for (let i = 0; i < CHURN; i += 1) {
      const iova = unmapOne();
      if (pagetable.areas.at(iova)) continue;
      pagetable.map([{ pages: page(), start: 0n, length: PAGE }], BOTH, iova);
    }
  });
  const areas = pagetable.areas.size;
  const close = timed(() => context.release());
  task.exit();
  memory.close();
  return [fits / CHURN, churn / CHURN, close / areas];
};

export const areasBench = (): BenchRow[] => {
  const few: number[][] = [];
  const many: number[][] = [];
  for (let i = 0; i < ROUNDS; i += 1) {
    few.push(round(FEW));
    many.push(round(MANY));
  }
  return ["unmap, map where it fits", "unmap, map there again", "close"].map((what, at) => {
    const [ours, baseline] = [many, few].map((rounds) => median(rounds.map((one) => one[at]!))) as [
      number,
      number,
    ];
    return { name: `${what}: 1M areas, against 10k`, ours, baseline, unit: "ns", ratio: ours / baseline };
  });
};
