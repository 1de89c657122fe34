/** Maps and unmaps of type 1: every refusal, the limits, and the whole against a model of pages. */
import * as fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MapDriver, ModelHost } from "../../test/support/model-host.ts";
import { type MapArguments, outcome, reasonOf, VfioClient } from "../../test/support/vfio-client.ts";
import { Capability } from "../kernel/call.ts";
import { ModelTask, type ModelTaskOptions } from "../kernel/model-task.ts";
import {
  VFIO_DMA_MAP_FLAG_VADDR,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_DMA_UNMAP_FLAG_VADDR,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VfioBitmap,
  VfioIommuType1DirtyBitmap,
  VfioIommuType1DirtyBitmapGet,
  VfioIommuType1DmaUnmap,
} from "../uapi/vfio.ts";
import { VfioSubsystem } from "./subsystem.ts";
import { MAPPING_LIMIT } from "./type1.ts";

const VA = 0x1_0000_0000;
const PAGES = 64;
const PAGE = 4096;

let host: ModelHost;
let vfio: VfioSubsystem;
let client: VfioClient;
let container: number;

const start = (type = 3, options: ModelTaskOptions = {}): void => {
  host = new ModelHost();
  vfio = new VfioSubsystem(host);
  client = newClient(options);
  container = client.attach(0, type).container;
};
const newClient = (options: ModelTaskOptions = {}): VfioClient => {
  const task = new ModelTask(host.memory, options);
  task.memory.map(VA, PAGES * PAGE, { private: true });
  return new VfioClient(task, vfio);
};
const map = (request: Partial<MapArguments>): unknown =>
  outcome(() => client.map(container, { vaddr: VA, iova: 0x10_0000, size: PAGE, ...request }));
const unmap = (iova: bigint | number, size: bigint | number, flags = 0): unknown =>
  outcome(() => client.unmap(container, iova, size, flags));
const domain = () => host.driver.domainOf(host.endpoint);
const locked = () => client.task.memory.lockedPages;

beforeEach(() => start());
afterEach(() => {
  client.task.exit();
  expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 });
  host.memory.close();
});

describe("MAP_DMA", () => {
  it("pins the caller's memory and gives devices exactly these pages with these rights", () => {
    expect(map({ flags: 1, size: 3 * PAGE })).toBe(0);
    expect(map({ flags: 2, iova: 0x20_0000, vaddr: VA + PAGE })).toBe(0);
    expect([...domain().pages.keys()]).toEqual([0x100, 0x101, 0x102, 0x200]);
    for (let page = 0; page < 3; page += 1)
      expect(domain().physical(0x10_0000 + page * PAGE)).toBe(client.task.memory.physical(VA + page * PAGE));
    expect(domain().pages.get(0x100)!.protection).toBe(1);
    expect(domain().pages.get(0x200)!.protection).toBe(2);
    expect(locked()).toBe(4);
  });

  it("devices keep the pages that were pinned when the program maps others there", () => {
    const pa = client.task.memory.physical(VA);
    map({});
    client.task.memory.map(VA, PAGE);
    expect(domain().physical(0x10_0000)).toBe(pa);
    expect(client.task.memory.physical(VA)).not.toBe(pa);
  });

  it.each<[string, Partial<MapArguments>, string]>([
    ["argsz too small", { argsz: 31 }, "EINVAL"],
    ["unknown flags", { flags: 8 }, "EINVAL"],
    ["an unknown high flag", { flags: 0x8000_0003 }, "EINVAL"],
    ["neither READ nor WRITE", { flags: 0 }, "EINVAL"],
    ["VADDR with READ", { flags: 5 }, "EINVAL"],
    ["size 0", { size: 0 }, "EINVAL"],
    ["iova that wraps", { iova: 2n ** 64n - 4096n, size: 8192 }, "EOVERFLOW"],
    ["vaddr that wraps", { vaddr: 2n ** 64n - 4096n, size: 8192 }, "EOVERFLOW"],
    ["wrapping comes before alignment", { iova: 2n ** 64n - 1n }, "EOVERFLOW"],
    ["unaligned iova", { iova: 0x10_0800 }, "EINVAL"],
    ["unaligned vaddr", { vaddr: VA + 16 }, "EINVAL"],
    ["unaligned size", { size: 4097 }, "EINVAL"],
    ["half a page", { size: 2048 }, "EINVAL"],
    ["the MSI window", { iova: 0xfee0_0000 }, "EINVAL"],
    ["into the MSI window", { iova: 0xfedf_f000, size: 8192 }, "EINVAL"],
    ["beyond the unit's width", { iova: 2n ** 48n }, "EINVAL"],
    ["the last page of 64 bits", { iova: 2n ** 64n - 4096n }, "EINVAL"],
    ["memory that is not there", { vaddr: 0x5000_0000 }, "EFAULT"],
    ["memory that ends too early", { vaddr: VA + (PAGES - 1) * PAGE, size: 8192 }, "EFAULT"],
    ["the kernel's addresses", { vaddr: 0xffff_8880_0000_0000n }, "EFAULT"],
  ])("%s: nothing is mapped, pinned or charged", (_what, request, errno) => {
    const before = host.memory.allocated;
    expect(map(request)).toBe(errno);
    expect(domain().pages.size).toBe(0);
    expect(locked()).toBe(0);
    client.task.memory.unmap(VA, PAGES * PAGE);
    expect(host.memory.allocated).toBe(before - PAGES);
  });

  it("read-only memory can be mapped for reading only", () => {
    client.task.memory.protect(VA, PAGE, false);
    expect(map({ flags: 3 })).toBe("EFAULT");
    expect(map({ flags: 2 })).toBe("EFAULT");
    expect(map({ flags: 1 })).toBe(0);
  });

  it("EFAULT when the argument cannot be read", () => {
    expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_MAP_DMA, 0n))).toBe("EFAULT");
    expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_UNMAP_DMA, 0n))).toBe("EFAULT");
    expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_DIRTY_PAGES, 0n))).toBe("EFAULT");
  });

  it("EEXIST for every way to overlap; the reason names the mapping", () => {
    map({ iova: 0x10_0000, size: 4 * PAGE });
    for (const [iova, size] of [
      [0x10_0000, PAGE],
      [0x10_1000, PAGE],
      [0x10_3000, 2 * PAGE],
      [0xf_f000, 2 * PAGE],
      [0xf_f000, 16 * PAGE],
    ] as const)
      expect(map({ iova, size })).toBe("EEXIST");
    expect(reasonOf(() => client.map(container, { vaddr: VA, iova: 0x10_1000, size: PAGE }))).toContain(
      "[0x100000, 0x104000)",
    );
    expect(map({ iova: 0xf_f000 })).toBe(0);
    expect(map({ iova: 0x10_4000 })).toBe(0);
  });

  it("memory that must be adopted first is, and then mapped once", () => {
    expect(map({ size: 8 * PAGE })).toBe(0);
    expect(client.task.memory.adoptions).toBe(1);
    expect(vfio.live().mappings).toBe(1);
    expect(locked()).toBe(8);
  });

  it("a table that cannot be had undoes the mapping in every domain", () => {
    domain().room = 2;
    client.task.memory.map(VA + PAGE, PAGE); // no run of frames
    expect(map({ size: 3 * PAGE })).toBe("ENOMEM");
    expect(domain().pages.size).toBe(0);
    expect(locked()).toBe(0);
    expect(map({ size: 2 * PAGE })).toBe(0);
  });
});

describe("the limit of mappings", () => {
  it("65,535 mappings and no more; an unmap makes room", { timeout: 60_000 }, () => {
    for (let i = 0; i < MAPPING_LIMIT; i += 1)
      client.map(container, { vaddr: VA, iova: i * 8192, size: PAGE });
    expect(client.info(container).available).toBe(0);
    expect(map({ iova: 2 ** 40 })).toBe("ENOSPC");
    expect(map({ iova: 0 })).toBe("EEXIST");
    expect(unmap(8192, PAGE)).toBe(PAGE);
    expect(map({ iova: 2 ** 40 })).toBe(0);
    expect(client.unmapAll(container)).toBe(MAPPING_LIMIT * PAGE);
    expect(client.info(container).available).toBe(MAPPING_LIMIT);
  });
});

describe("RLIMIT_MEMLOCK", () => {
  it("bounds what is mapped, page by page, and is given back by unmaps", () => {
    start(3, { memlock: 4 * PAGE });
    expect(map({ size: 5 * PAGE })).toBe("ENOMEM");
    expect(reasonOf(() => client.map(container, { vaddr: VA, iova: 0, size: 5 * PAGE }))).toContain(
      "RLIMIT_MEMLOCK",
    );
    expect(map({ size: 4 * PAGE })).toBe(0);
    expect(map({ iova: 0 })).toBe("ENOMEM");
    expect(unmap(0x10_0000, 4 * PAGE)).toBe(4 * PAGE);
    expect(locked()).toBe(0);
    expect(map({ iova: 0, size: 4 * PAGE })).toBe(0);
  });

  it("counts what the process has locked otherwise, and a page mapped twice counts twice", () => {
    start(3, { memlock: 4 * PAGE });
    client.task.memory.lockedPages = 1;
    client.task.mlocked = 1;
    expect(map({})).toBe(0);
    expect(map({ iova: 0 })).toBe(0);
    expect(map({ iova: 0x20_0000 })).toBe("ENOMEM");
  });

  it("does not bind with CAP_IPC_LOCK, but counts", () => {
    start(3, { memlock: 0, capabilities: [Capability.ipcLock] });
    expect(map({ size: 8 * PAGE })).toBe(0);
    expect(locked()).toBe(8);
  });

  it("is charged to the process that mapped, also when another one unmaps", () => {
    const other = newClient();
    const theirs = client.task.pass(container, other.task);
    other.map(theirs, { vaddr: VA, iova: 0, size: 2 * PAGE });
    expect([locked(), other.task.memory.lockedPages]).toEqual([0, 2]);
    client.unmapAll(container);
    expect(other.task.memory.lockedPages).toBe(0);
    other.task.exit();
  });
});

describe("UNMAP_DMA", () => {
  it.each<[string, bigint | number, bigint | number, number, unknown]>([
    ["unknown flags", 0x10_0000, PAGE, 8, "EINVAL"],
    ["ALL with a range", 0x10_0000, PAGE, 2, "EINVAL"],
    ["ALL with a bitmap", 0, 0, 3, "EINVAL"],
    ["VADDR with a bitmap", 0x10_0000, PAGE, 5, "EINVAL"],
    ["a bitmap that is not there", 0x10_0000, PAGE, 1, "EINVAL"],
    ["unaligned iova", 0x10_0800, PAGE, 0, "EINVAL"],
    ["size 0", 0x10_0000, 0, 0, "EINVAL"],
    ["unaligned size", 0x10_0000, 2048, 0, "EINVAL"],
    ["a range that wraps", 2n ** 64n - 4096n, 8192, 0, "EOVERFLOW"],
    ["an unaligned range that wraps", 0x10_0000, 2n ** 64n - 1n, 0, "EINVAL"],
    ["where nothing is", 0x7000_0000, PAGE, 0, 0],
    ["the last page there is", 2n ** 64n - 4096n, PAGE, 0, 0],
  ])("%s", (_what, iova, size, flags, answer) => {
    map({ size: 4 * PAGE });
    expect(unmap(iova, size, flags)).toBe(answer);
    expect(domain().pages.size).toBe(4);
  });

  it("argsz below the structure is EINVAL", () => {
    const bytes = VfioIommuType1DmaUnmap.bytes({ argsz: 23, iova: 0n, size: 4096n });
    expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_UNMAP_DMA, bytes))).toBe("EINVAL");
  });

  it("version 2 refuses to cut a mapping and unmaps several whole ones", () => {
    map({ iova: 0x1000, size: 2 * PAGE });
    map({ iova: 0x5000, size: PAGE });
    for (const [iova, size] of [
      [0x1000, PAGE],
      [0x2000, PAGE],
      [0x2000, 4 * PAGE],
      [0x0000, 2 * PAGE],
    ] as const)
      expect(unmap(iova, size)).toBe("EINVAL");
    expect(unmap(0, 0x10_000)).toBe(3 * PAGE);
    expect(domain().pages.size).toBe(0);
  });

  it("version 1 unmaps nothing from within a mapping, and all of one it cuts at the end", () => {
    start(1);
    map({ iova: 0x1000, size: 4 * PAGE });
    map({ iova: 0x8000, size: 4 * PAGE });
    expect(unmap(0x2000, 8 * PAGE)).toBe(0);
    expect(unmap(0x1000, PAGE)).toBe(4 * PAGE);
    expect(unmap(0x7000, 2 * PAGE)).toBe(4 * PAGE);
    expect(vfio.live().mappings).toBe(0);
  });

  it("ALL unmaps everything and may find nothing", () => {
    expect(unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL)).toBe(0);
    map({ size: 4 * PAGE });
    map({ iova: 2 ** 47, size: PAGE });
    expect(unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL)).toBe(5 * PAGE);
    expect(locked()).toBe(0);
  });

  it("unpins only after no domain has the pages", () => {
    map({ size: 2 * PAGE });
    client.task.memory.unmap(VA, 2 * PAGE);
    const table = domain();
    const free = host.memory.free.bind(host.memory);
    const freed: number[] = [];
    host.memory.free = (pa, count) => {
      expect([...table.pages.values()].some((page) => page.pa === pa)).toBe(false);
      freed.push(pa);
      free(pa, count);
    };
    unmap(0x10_0000, 2 * PAGE);
    expect(freed).toHaveLength(2);
    map({ vaddr: VA + 4 * PAGE });
    client.task.memory.unmap(VA + 4 * PAGE, PAGE);
    client.task.exit();
    expect(freed.length).toBeGreaterThan(2);
  });
});

describe("VADDR: a user address is exchanged", () => {
  it("an address is taken, must be gone before another is given, and belongs to one whole mapping", () => {
    map({ size: 2 * PAGE });
    const give = (iova: number, size: number) => map({ flags: VFIO_DMA_MAP_FLAG_VADDR, iova, size });
    expect(give(0x10_0000, 2 * PAGE)).toBe("EINVAL");
    expect(unmap(0x10_0000, 2 * PAGE, VFIO_DMA_UNMAP_FLAG_VADDR)).toBe(2 * PAGE);
    expect(domain().pages.size).toBe(2);
    expect(unmap(0x10_0000, 2 * PAGE, VFIO_DMA_UNMAP_FLAG_VADDR)).toBe("EINVAL");
    expect(give(0x7000_0000, PAGE)).toBe("ENOENT");
    expect(give(0x10_0000, PAGE)).toBe("EINVAL");
    expect(give(0x10_1000, PAGE)).toBe("EINVAL");
    expect(map({ size: 2 * PAGE })).toBe("EEXIST");
    expect(give(0x10_0000, 2 * PAGE)).toBe(0);
    expect(give(0x10_0000, 2 * PAGE)).toBe("EINVAL");
  });

  it("with ALL it takes every address, or none when one is gone already", () => {
    map({ iova: 0x1000 });
    map({ iova: 0x5000 });
    unmap(0x5000, PAGE, VFIO_DMA_UNMAP_FLAG_VADDR);
    expect(unmap(0, 0, VFIO_DMA_UNMAP_FLAG_VADDR | VFIO_DMA_UNMAP_FLAG_ALL)).toBe("EINVAL");
    expect(unmap(0x1000, PAGE, VFIO_DMA_UNMAP_FLAG_VADDR)).toBe(PAGE);
  });

  it("moves the charge to the process that gives the new one, within its limit", () => {
    map({ size: 2 * PAGE });
    unmap(0x10_0000, 2 * PAGE, VFIO_DMA_UNMAP_FLAG_VADDR);
    const other = newClient({ memlock: PAGE });
    const theirs = client.task.pass(container, other.task);
    const give = () =>
      outcome(() =>
        other.map(theirs, { flags: VFIO_DMA_MAP_FLAG_VADDR, vaddr: VA, iova: 0x10_0000, size: 2 * PAGE }),
      );
    expect(give()).toBe("ENOMEM");
    other.task.memlock = 2 * PAGE;
    expect(give()).toBe(0);
    expect([locked(), other.task.memory.lockedPages]).toEqual([0, 2]);
    other.task.exit();
    client.unmapAll(container);
    expect(other.task.memory.lockedPages).toBe(0);
  });
});

describe("dirty pages", () => {
  const DATA = VA + 32 * PAGE;
  const dirty = (flags: number, argsz = 8): unknown =>
    outcome(() =>
      client.task.ioctl(container, VFIO_IOMMU_DIRTY_PAGES, VfioIommuType1DirtyBitmap.bytes({ argsz, flags })),
    );
  const get = (
    iova: bigint | number,
    size: bigint | number,
    bitmap: { pgsize?: bigint; size?: bigint; data?: bigint } = {},
    argsz = 48,
  ): unknown =>
    outcome(() => {
      const bytes = new Uint8Array(48);
      VfioIommuType1DirtyBitmap.write(bytes, { argsz, flags: 4 });
      VfioIommuType1DirtyBitmapGet.write(
        bytes,
        {
          iova: BigInt(iova),
          size: BigInt(size),
          bitmap: { pgsize: 4096n, size: 64n, data: BigInt(DATA), ...bitmap },
        },
        8,
      );
      return client.task.ioctl(container, VFIO_IOMMU_DIRTY_PAGES, bytes);
    });
  const bits = (count: number): number[] => {
    const bytes = new Uint8Array(Math.ceil(count / 8));
    client.task.memory.read(BigInt(DATA), bytes);
    return Array.from({ length: count }, (_, i) => (bytes[i >> 3]! >> (i & 7)) & 1);
  };

  it("are not tracked by version 1", () => {
    start(1);
    for (const flags of [1, 2, 4, 8, 0]) expect(dirty(flags)).toBe("EACCES");
  });

  it("exactly one flag, and a structure of the right size, are needed", () => {
    for (const flags of [0, 3, 5, 8]) expect(dirty(flags)).toBe("EINVAL");
    expect(dirty(1, 7)).toBe("EINVAL");
    expect(dirty(4)).toBe("EINVAL");
    expect([dirty(1), dirty(1), dirty(2), dirty(2)]).toEqual([0, 0, 0, 0]);
  });

  it("every mapped page is dirty, whatever its rights, and stays so; other bits are left alone", () => {
    map({ iova: 0x1000, size: 3 * PAGE, flags: 1 });
    map({ iova: 0x6000, size: PAGE });
    expect(get(0, 8 * PAGE)).toBe("EINVAL");
    dirty(1);
    for (let again = 0; again < 2; again += 1) {
      expect(get(0, 8 * PAGE)).toBe(0);
      expect(bits(8)).toEqual([0, 1, 1, 1, 0, 0, 1, 0]);
    }
    dirty(2);
    expect(get(0, 8 * PAGE)).toBe("EINVAL");
  });

  it("the range must not cut a mapping, and the bitmap must fit it", () => {
    map({ iova: 0x1000, size: 3 * PAGE });
    dirty(1);
    for (const request of [
      () => get(0x2000, 2 * PAGE),
      () => get(0x1000, 2 * PAGE),
      () => get(0x1001, PAGE),
      () => get(0, 100),
      () => get(0, 0),
      () => get(0, 8 * PAGE, { pgsize: 8192n }),
      () => get(0, 8 * PAGE, { pgsize: 0n }),
      () => get(0, 8 * PAGE, { size: 0n }),
      () => get(0, 65 * PAGE, { size: 8n }),
      () => get(0, 8 * PAGE, { size: 2n ** 28n + 8n }),
      () => get(0, 8 * PAGE, { data: 0xffff_8880_0000_0000n }),
      () => get(0, 8 * PAGE, {}, 47),
    ])
      expect(request()).toBe("EINVAL");
    expect(get(2n ** 64n - 1n, 8192)).toBe("EOVERFLOW");
    expect(get(0, 8 * PAGE, { data: 0x5000_0000n })).toBe("EFAULT");
  });

  it("a bitmap of more than a piece is filled whole", () => {
    dirty(1);
    client.task.memory.map(DATA, 4 * PAGE);
    const pages = 40_000;
    const big = 2 ** 32;
    client.task.memory.map(big, 64 * PAGE);
    for (let i = 0; i < pages; i += 64)
      client.map(container, { vaddr: big, iova: i * PAGE, size: 64 * PAGE });
    expect(get(0, pages * PAGE, { size: 5008n })).toBe(0);
    expect(bits(pages).every((bit) => bit === 1)).toBe(true);
  });

  it("an unmap can report them; when the report fails the mappings stay", () => {
    const unmapWith = (bitmap: { pgsize?: bigint; size?: bigint; data?: bigint }): unknown =>
      outcome(() => {
        const bytes = new Uint8Array(48);
        VfioIommuType1DmaUnmap.write(bytes, { argsz: 48, flags: 1, iova: 0x1000n, size: 3n * 4096n });
        VfioBitmap.write(bytes, { pgsize: 4096n, size: 8n, data: BigInt(DATA), ...bitmap }, 24);
        client.task.ioctl(container, VFIO_IOMMU_UNMAP_DMA, bytes);
        return Number(VfioIommuType1DmaUnmap.read(bytes).size);
      });
    map({ iova: 0x1000, size: 2 * PAGE });
    map({ iova: 0x3000, size: PAGE });
    expect(unmapWith({})).toBe("EINVAL");
    dirty(1);
    expect(unmapWith({ pgsize: 8192n })).toBe("EINVAL");
    expect(unmapWith({ data: 0x5000_0000n })).toBe("EFAULT");
    expect(domain().pages.size).toBe(3);
    expect(unmapWith({})).toBe(3 * PAGE);
    expect(bits(8)).toEqual([1, 1, 1, 0, 0, 0, 0, 0]);
  });
});

describe("against a model of pages", () => {
  const page = fc.nat(24);
  const length = fc.integer({ min: 1, max: 6 });
  const steps = fc.array(
    fc.oneof(
      fc.record({ op: fc.constant("map"), at: page, length, source: fc.nat(PAGES - 7) }),
      fc.record({ op: fc.constant("unmap"), at: page, length, source: fc.constant(0) }),
      fc.record({ op: fc.constant("all"), at: page, length, source: fc.constant(0) }),
    ),
    { maxLength: 40 },
  );

  it.each([1, 3])("type %i answers and maps like a list of whole mappings", (type) => {
    client.task.exit();
    host.memory.close();
    start(type);
    fc.assert(
      fc.property(steps, (program) => {
        client.unmapAll(container);
        let model: { at: number; length: number; source: number }[] = [];
        for (const { op, at, length: count, source } of program) {
          const overlapping = model.filter((m) => m.at < at + count && at < m.at + m.length);
          if (op === "map") {
            expect(map({ iova: at * PAGE, size: count * PAGE, vaddr: VA + source * PAGE })).toBe(
              overlapping.length > 0 ? "EEXIST" : 0,
            );
            if (overlapping.length === 0) model.push({ at, length: count, source });
          } else {
            const all = op === "all";
            const cut = overlapping.some((m) => m.at < at || m.at + m.length > at + count);
            const first = overlapping.some((m) => m.at < at);
            let gone = all ? model : overlapping;
            if (!all && type === 1 && first) gone = [];
            const answer = all ? unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL) : unmap(at * PAGE, count * PAGE);
            if (!all && type === 3 && cut) {
              expect(answer).toBe("EINVAL");
              continue;
            }
            expect(answer).toBe(gone.reduce((sum, m) => sum + m.length, 0) * PAGE);
            model = model.filter((m) => !gone.includes(m));
          }
        }
        const expected = new Map<number, number>();
        for (const m of model)
          for (let i = 0; i < m.length; i += 1)
            expected.set(m.at + i, client.task.memory.physical(VA + (m.source + i) * PAGE));
        const actual = new Map([...domain().pages].map(([at, { pa }]) => [at, pa]));
        expect(new Map([...actual].sort())).toEqual(new Map([...expected].sort()));
        expect(locked()).toBe(expected.size);
        expect(client.info(container).available).toBe(MAPPING_LIMIT - model.length);
      }),
      { numRuns: 60 },
    );
  });
});

it("a domain with pages smaller than the host's offers the host's page", () => {
  client.task.exit();
  const driver = new MapDriver("fine");
  const allocate = driver.allocatePaging.bind(driver);
  driver.allocatePaging = () => Object.assign(allocate(), { pageSizes: 0x4020_0a00n });
  host.memory.close();
  host = new ModelHost({ drivers: [driver] });
  vfio = new VfioSubsystem(host);
  client = newClient();
  container = client.attach(0).container;
  expect(client.info(container).pageSizes).toBe(0x4020_1000n);
});
