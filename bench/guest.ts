/**
 * What a guest's use of its virtual IOMMU costs on the host, in this process (there is no program in between): map, DMA,
 * unmap and invalidate, above a host that nests, above one that is given copies, and by a virtio-iommu; invalidations handed to the host in
 * batches; and a page request from the device through fault queue, VMM and guest back to the device.
 */
import { Instructions } from "../src/drivers/zpci/instructions.ts";
import { Protection } from "../src/iommu/driver.ts";
import type { ForgottenRange } from "../src/viommu/host-calls.ts";
import { GuestRig, type RigOptions } from "../test/support/guest-rig.ts";
import { elapsed } from "./measure.ts";
import { type BenchRow, median } from "./row.ts";

const ROUNDS = 7;
const PAGE = 4096;
const IOVA = 0x1_2345_6000;
/** Of many pages. */
const BUFFER = 0x2_0000_0000;
const RW = Protection.read | Protection.write;
const BYTES = 64;
const MODELS = ["vtd", "smmuv3", "amd"] as const;
/** Of hosts that nest; the last has no page requests. */
const NESTING = [...MODELS, "s390"] as const;
type Model = (typeof NESTING)[number];
/** AMD's hosts nest by an extension; a guest that is shadowed there, or on s390, has a unit of the host's model. */
const nesting: { readonly [M in Model]?: RigOptions } = {
  amd: { edit: (text) => `${text}extensions: [amd-nesting]\n`, shows: "amdvi" },
  s390: { shows: "zpci" },
};

/** The device reads, and has read. */
const fetch = (rig: GuestRig, address: number, pasid?: number): void => {
  const device = rig.devices[0]!;
  device.fetch(address, BYTES, pasid);
  const result = rig.settle(device);
  if (result !== "done") throw new Error(`the device's read ended with ${result}`);
};

interface Action {
  /** Does it so many times; returns nanoseconds for each. */
  measure(count: number): number;
  close(): void;
}

const closing = (rig: GuestRig): void => {
  const left = Object.keys(rig.close());
  if (left.length > 0) throw new Error(`the guest has left ${left.join(", ")}`);
};

/** Map, DMA, unmap with what the guest's driver does of invalidation. */
const cycle = (model: Model, follow: "nested" | "shadow" | "virtio"): Action => {
  const rig =
    follow === "virtio"
      ? new GuestRig(model, "shadow", { shows: "virtio" })
      : new GuestRig(model, follow, nesting[model]);
  const { driver } = rig.guest;
  const requester = rig.vmm.devices[0]!;
  const domain = driver.allocatePaging(requester);
  driver.attach(requester, domain);
  const page = rig.guest.allocate(1);
  return {
    measure: (count) => {
      rig.takeCalls();
      return elapsed(() => {
        for (let i = 0; i < count; i++) {
          domain.map(IOVA, page, PAGE, RW);
          fetch(rig, IOVA);
          domain.unmap(IOVA, PAGE);
        }
      }, count);
    },
    close: () => {
      driver.attach(requester, driver.blocked);
      domain.free();
      closing(rig);
    },
  };
};

/** Hands ranges of a guest's domain to the host, so many with one call. */
const invalidations = (batch: number): Action => {
  const rig = new GuestRig("vtd", "nested");
  const { driver } = rig.guest;
  const requester = rig.vmm.devices[0]!;
  const domain = driver.allocatePaging(requester);
  driver.attach(requester, domain);
  const { calls } = rig.vmm;
  const hwpt = rig.calls.filter(({ name }) => name === "IOMMU_HWPT_ALLOC").at(-1)!;
  const id = new DataView(hwpt.answered.buffer, hwpt.answered.byteOffset).getUint32(16, true);
  const ranges = Array.from(
    { length: batch },
    (_, i): ForgottenRange => ({ address: BigInt(IOVA + i * PAGE), pages: 1n, leavesOnly: true }),
  );
  return {
    measure: (count) => {
      rig.takeCalls();
      const times = Math.ceil(count / batch);
      return elapsed(() => {
        for (let i = 0; i < times; i++)
          if (calls.invalidate(id, ranges).done !== batch) throw new Error("the host has refused a range");
      }, times * batch);
    },
    close: () => {
      driver.attach(requester, driver.blocked);
      domain.free();
      closing(rig);
    },
  };
};

/** A guest of s390 refreshes pages of its tables, so many at once. */
const refreshes = (batch: number): Action => {
  const rig = new GuestRig("s390", "nested");
  const { driver } = rig.guest;
  const requester = rig.vmm.devices[0]!;
  const domain = driver.allocatePaging(requester);
  driver.attach(requester, domain);
  const buffer = rig.guest.allocate(batch);
  const start = BUFFER;
  const length = batch * PAGE;
  domain.map(start, buffer, length, RW);
  const { iommu } = rig.vmm;
  const instructions = new Instructions(iommu, rig.vmm.memory, "guest");
  return {
    measure: (count) => {
      rig.takeCalls();
      const times = Math.ceil(count / batch);
      return elapsed(() => {
        for (let i = 0; i < times; i++) instructions.refresh(requester.rid, start, start + length);
      }, times * batch);
    },
    close: () => {
      instructions.free();
      domain.unmap(start, length);
      driver.attach(requester, driver.blocked);
      domain.free();
      closing(rig);
    },
  };
};

/** The device reads pages of a process: `present`, those that are there; else those that have to be asked for. */
const reads = (model: Model, present: boolean): Action => {
  const start = 0x5555_0000_0000;
  const rig = new GuestRig(model, "nested", nesting[model]);
  const { guest } = rig;
  const requester = rig.vmm.devices[0]!;
  const process = guest.start("process", requester);
  const pasid = guest.bind(requester, process);
  return {
    measure: (count) => {
      rig.takeCalls();
      process.reserve(start, count);
      for (let i = 0; present && i < count; i++) process.touch(start + i * PAGE, true);
      const each = elapsed(() => {
        for (let i = 0; i < count; i++) fetch(rig, start + i * PAGE, pasid);
      }, count);
      process.release(start, count);
      return each;
    },
    close: () => {
      guest.unbind(requester, process);
      process.exit();
      closing(rig);
    },
  };
};

/** Median nanoseconds of each, in turns. */
const inTurns = (actions: readonly Action[], count: number): number[] => {
  const figures = actions.map((): number[] => []);
  try {
    for (let round = -1; round < ROUNDS; round++)
      actions.forEach((action, index) => {
        const ns = action.measure(count);
        if (round >= 0) figures[index]!.push(ns); // the first warms up
      });
  } finally {
    for (const action of actions) action.close();
  }
  return figures.map(median);
};

const against = (name: string, [ours, baseline]: readonly number[]): BenchRow => ({
  name,
  ours: ours! / 1000,
  baseline: baseline! / 1000,
  unit: "µs",
  ratio: ours! / baseline!,
});

const cycles = (): BenchRow[] =>
  NESTING.flatMap((model) => {
    const [nested, shadow, virtio] = inTurns(
      (["nested", "shadow", "virtio"] as const).map((follow) => cycle(model, follow)),
      1000,
    );
    const what = `guest's map, DMA, unmap on ${model}`;
    return [
      against(`${what}: nested, against shadow`, [nested!, shadow!]),
      against(`${what}: by virtio-iommu, against shadow`, [virtio!, shadow!]),
    ];
  });

const batches = (): BenchRow[] => {
  const sizes = [1, 16, 256];
  const perSecond = inTurns(sizes.map(invalidations), 4096).map((ns) => 1e6 / ns);
  return sizes.map((size, index) => ({
    name: `a guest's invalidations in batches of ${size}, against single ones`,
    ours: perSecond[index]!,
    baseline: perSecond[0]!,
    unit: "k/s",
    ratio: perSecond[index]! / perSecond[0]!,
  }));
};

const refreshesPerPage = (): BenchRow => {
  const [many, one] = inTurns([refreshes(256), refreshes(1)], 4096);
  const name = "s390 refresh per page, 256 pages at once, against one";
  return { name, ours: many!, baseline: one!, unit: "ns", ratio: many! / one! };
};

const pageRequests = (): BenchRow[] =>
  MODELS.map((model) =>
    against(
      `DMA to a page that has to be asked for on ${model}, against one that is there`,
      inTurns([reads(model, false), reads(model, true)], 500),
    ),
  );

export const guestBench = (): BenchRow[] => [
  ...cycles(),
  ...batches(),
  refreshesPerPage(),
  ...pageRequests(),
];
