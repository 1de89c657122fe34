/** sPAPR containers on a POWER host bridge: every refusal, what is pinned and charged, windows, and all against a model. */
import * as fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MapDriver, ModelHost } from "../../../test/support/model-host.ts";
import { powerUp } from "../../../test/support/power-rig.ts";
import { SpaprClient } from "../../../test/support/spapr-client.ts";
import { type MapArguments, outcome, reasonOf } from "../../../test/support/vfio-client.ts";
import type { TceDriver } from "../../drivers/tce/driver.ts";
import { TranslateStatus } from "../../hardware/unit.ts";
import type { PagingDomain } from "../../iommu/driver.ts";
import { Capability } from "../../kernel/call.ts";
import { ModelTask, type ModelTaskOptions } from "../../kernel/model-task.ts";
import { Header } from "../../pci/spec.ts";
import * as uapi from "../../uapi/vfio.ts";
import { regionOffset } from "../regions.ts";
import { VfioSubsystem } from "../subsystem.ts";

const VA = 0x1_0000_0000;
const PAGES = 64;
const PAGE = 4096;
const LOW = { start: 0, length: 2 ** 31 };
const HIGH = 2 ** 59;
const V1 = uapi.VFIO_SPAPR_TCE_IOMMU;
const V2 = uapi.VFIO_SPAPR_TCE_v2_IOMMU;
const GIB = 2 ** 30;

let host: ModelHost;
let driver: TceDriver;
let vfio: VfioSubsystem;
let client: SpaprClient;
let container: number;
let group: number;
let frames: number;

const newClient = (options: ModelTaskOptions = {}): SpaprClient => {
  const task = new ModelTask(host.memory, options);
  task.memory.map(VA, PAGES * PAGE);
  return new SpaprClient(task, vfio);
};
const start = (type: number, options: ModelTaskOptions = {}): void => {
  client = newClient(options);
  ({ container, group } = client.attach(0, type));
};
const map = (request: Partial<MapArguments> = {}): unknown =>
  outcome(() => client.map(container, { vaddr: VA, iova: 0x10_0000, size: PAGE, ...request }));
const unmap = (iova: number, size: number, flags = 0): unknown =>
  outcome(() => {
    client.unmap(container, iova, size, flags);
    return 0;
  });
const register = (vaddr: number, size: number): unknown =>
  outcome(() => client.register(container, vaddr, size));
const unregister = (vaddr: number, size: number): unknown =>
  outcome(() => client.unregister(container, vaddr, size));
const create = (length: number, pageLg2: number, levels = 1): unknown =>
  outcome(() => client.createWindow(container, { length, pageLg2, levels }));
const remove = (at: number): unknown => outcome(() => client.removeWindow(container, at));
const domain = (group = 0) => host.core.groups.get(group)!.domain as PagingDomain;
const locked = () => client.task.memory.lockedPages;
/** Which page of user memory a device reaches there, -1: none. */
const reached = (iova: number): number => {
  const pa = domain().physical(iova);
  for (let page = 0; page < PAGES && pa >= 0; page += 1)
    if (client.task.memory.physical(VA + page * PAGE) === pa) return page;
  return -1;
};

beforeEach(() => {
  host = new ModelHost({
    power: (memory, msi) => {
      const powered = powerUp(memory, msi);
      driver = powered.driver;
      return powered;
    },
  });
  vfio = new VfioSubsystem(host);
  frames = host.memory.allocated;
});
afterEach(() => {
  const { memory } = client.task;
  client.task.exit();
  expect(memory.lockedPages).toBe(0);
  expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 });
  expect(driver.domains).toBe(0);
  expect(host.memory.allocated).toBe(frames);
  host.memory.close();
});

describe("the types of sPAPR", () => {
  const extensions = (of = container) =>
    Array.from({ length: 16 }, (_, id) => client.extension(of, id)).flatMap((value, id) =>
      value ? [id] : [],
    );

  it("are offered where units have windows; a container of theirs offers nothing else", () => {
    client = newClient();
    host.core.addDriver(new MapDriver("another"));
    expect(extensions(client.container())).toEqual([1, 2, 3, 7, 9, 10]);
    container = client.attach(0, V2).container;
    expect(extensions()).toEqual([2, 7]);
    expect(client.extension(container, uapi.VFIO_EEH)).toBe(0);
  });

  it("are refused where units have none, and the reason says what there is", () => {
    const other = new ModelHost({ drivers: [new MapDriver("map0")] });
    const theirs = new SpaprClient(new ModelTask(other.memory), new VfioSubsystem(other));
    for (const type of [V1, V2]) {
      const opened = theirs.container();
      expect(theirs.extension(opened, type)).toBe(0);
      const group = theirs.group(0);
      theirs.setContainer(group, opened);
      expect(outcome(() => theirs.setIommu(opened, type))).toBe("EINVAL");
      expect(reasonOf(() => theirs.setIommu(opened, type))).toContain("1 (type 1)");
      theirs.unsetContainer(group);
      theirs.task.close(group);
    }
    theirs.task.exit();
    other.memory.close();
    start(V2);
  });

  it("take requests by the type: the numbers of a device's file, of type 1 and of EEH are other ones here", () => {
    start(V2);
    const second = client.container();
    client.setContainer(client.group(1), second);
    client.setIommu(second, uapi.VFIO_TYPE1v2_IOMMU);
    expect(uapi.VFIO_IOMMU_SPAPR_REGISTER_MEMORY).toBe(uapi.VFIO_IOMMU_DIRTY_PAGES);
    const block = uapi.VfioIommuSpaprRegisterMemory.bytes({ argsz: 24, vaddr: BigInt(VA), size: 4096n });
    expect(outcome(() => client.task.ioctl(second, uapi.VFIO_IOMMU_DIRTY_PAGES, block))).toBe("EINVAL");
    expect(client.task.ioctl(container, uapi.VFIO_IOMMU_SPAPR_REGISTER_MEMORY, block)).toBe(0);
    for (const request of [
      uapi.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY,
      uapi.VFIO_IOMMU_SPAPR_TCE_CREATE,
      uapi.VFIO_EEH_PE_OP,
    ])
      expect(outcome(() => client.task.ioctl(second, request, block))).toBe("ENOTTY");
    const operation = uapi.VfioEehPeOp.bytes({
      argsz: uapi.VfioEehPeOp.size,
      op: uapi.VFIO_EEH_PE_GET_STATE,
    });
    expect(outcome(() => client.task.ioctl(container, uapi.VFIO_EEH_PE_OP, operation))).toBe("ENOTTY");
  });

  it("GET_INFO tells the window below 4 GiB, and with room for it, in version 2, what windows there can be", () => {
    start(V2);
    const whole = client.windowInfo(container);
    expect(whole).toMatchObject({ flags: 1, dma32_window_start: 0, dma32_window_size: 2 ** 31 });
    expect(whole.ddw).toEqual({
      pgsizes: driver.windows.pageSizes,
      max_dynamic_windows_supported: 2,
      levels: 5,
    });
    expect(client.windowInfo(container, 31)).toMatchObject({ flags: 0, ddw: { levels: 0 } });
    expect(outcome(() => client.windowInfo(container, 15))).toBe("EINVAL");
    client.task.exit();
    start(V1);
    expect(client.windowInfo(container)).toMatchObject({ flags: 0, dma32_window_size: 2 ** 31 });
  });
});

describe("version 1", () => {
  it("must be enabled, which charges the whole window", () => {
    start(V1, { memlock: 2 ** 31 - 1 });
    expect([map(), unmap(0, PAGE)]).toEqual(["EPERM", "EPERM"]);
    expect(outcome(() => client.enable(container))).toBe("ENOMEM");
    client.task.memlock = 2 ** 31;
    expect(client.enable(container)).toBe(0);
    expect(outcome(() => client.enable(container))).toBe("EBUSY");
    expect(locked()).toBe(2 ** 31 / PAGE);
    expect([map(), map({ iova: 0x20_0000 })]).toEqual([0, 0]);
    expect(locked()).toBe(2 ** 31 / PAGE);
    expect(client.disable(container)).toBe(0);
    expect([locked(), reached(0x10_0000), map()]).toEqual([0, -1, "EPERM"]);
    expect([client.disable(container), client.enable(container), map()]).toEqual([0, 0, 0]);
  });

  it("does not know what version 2 brought", () => {
    start(V1);
    expect(register(VA, PAGE)).toBe("ENOTTY");
    expect(unregister(VA, PAGE)).toBe("ENOTTY");
    expect([create(GIB, 12), remove(0)]).toEqual(["ENOTTY", "ENOTTY"]);
  });

  it("pins what it maps, whatever becomes of the address, until the entries go one by one", () => {
    start(V1);
    client.enable(container);
    const pa = client.task.memory.physical(VA + PAGE);
    expect(map({ size: 4 * PAGE })).toBe(0);
    client.task.memory.map(VA, 4 * PAGE);
    expect(domain().physical(0x10_1000)).toBe(pa);
    const held = host.memory.allocated;
    expect(unmap(0x10_1000, PAGE)).toBe(0);
    expect(host.memory.allocated).toBe(held - 1);
    expect([0, 1, 2, 3].map((page) => domain().physical(0x10_0000 + page * PAGE) >= 0)).toEqual([
      true,
      false,
      true,
      true,
    ]);
    expect(unmap(0, LOW.length)).toBe(0);
    expect(host.memory.allocated).toBeLessThanOrEqual(held - 4);
  });

  it("is one address space's to enable and disable", () => {
    start(V1);
    client.enable(container);
    const other = newClient();
    const theirs = client.task.pass(container, other.task);
    expect(outcome(() => other.disable(theirs))).toBe("EPERM");
    expect(outcome(() => other.enable(theirs))).toBe("EPERM");
    expect(map()).toBe(0);
    other.task.exit();
  });

  it("takes one group", () => {
    start(V1);
    expect(outcome(() => client.setContainer(client.group(1), container))).toBe("EBUSY");
  });

  it("cannot map for writing what may only be read, and leaves nothing pinned", () => {
    start(V1);
    client.enable(container);
    client.task.memory.protect(VA, PAGE, false);
    expect([map(), map({ flags: 1 })]).toEqual(["EFAULT", 0]);
    expect(map({ vaddr: 0x5000_0000, iova: 0x20_0000 })).toBe("EFAULT");
  });
});

describe("registered memory", () => {
  it("is pinned and charged once, however often it is mapped, and goes as the block it came as", () => {
    start(V2);
    expect(map()).toBe("EINVAL");
    expect(reasonOf(() => client.map(container, { vaddr: VA, iova: 0, size: PAGE }))).toContain(
      "SPAPR_REGISTER_MEMORY comes before",
    );
    expect(register(VA, 8 * PAGE)).toBe(0);
    expect(locked()).toBe(8);
    for (const iova of [0, 0x10_0000, 0x20_0000]) expect(map({ iova, size: 8 * PAGE })).toBe(0);
    expect(locked()).toBe(8);
    expect(unregister(VA, 8 * PAGE)).toBe("EBUSY");
    for (const iova of [0, 0x10_0000]) unmap(iova, 8 * PAGE);
    unmap(0x20_0000, 7 * PAGE);
    expect(unregister(VA, 8 * PAGE)).toBe("EBUSY");
    unmap(0x20_7000, PAGE);
    expect([unregister(VA, 4 * PAGE), unregister(VA + PAGE, 8 * PAGE)]).toEqual(["ENOENT", "ENOENT"]);
    expect([unregister(VA, 8 * PAGE), unregister(VA, 8 * PAGE), locked()]).toEqual([0, "ENOENT", 0]);
    expect(map()).toBe("EINVAL");
  });

  it("cannot overlap, be registered twice, or be mapped across two blocks", () => {
    start(V2);
    register(VA, 4 * PAGE);
    register(VA + 4 * PAGE, 4 * PAGE);
    expect([register(VA, 4 * PAGE), register(VA, 2 * PAGE), register(VA + 3 * PAGE, 2 * PAGE)]).toEqual([
      "EBUSY",
      "EINVAL",
      "EINVAL",
    ]);
    expect(map({ vaddr: VA + 3 * PAGE, size: 2 * PAGE })).toBe("EINVAL");
    expect(map({ vaddr: VA + 8 * PAGE })).toBe("EINVAL");
    expect(map({ vaddr: VA + 5 * PAGE, size: 3 * PAGE })).toBe(0);
    expect(reached(0x10_0000)).toBe(5);
  });

  it("is bounded by RLIMIT_MEMLOCK, for whoever has no CAP_IPC_LOCK", () => {
    start(V2, { memlock: 4 * PAGE });
    expect([register(VA, 5 * PAGE), register(VA, 4 * PAGE), register(VA + 8 * PAGE, PAGE)]).toEqual([
      "ENOMEM",
      0,
      "ENOMEM",
    ]);
    client.task.exit();
    start(V2, { memlock: 0, capabilities: [Capability.ipcLock] });
    expect([register(VA, 5 * PAGE), locked()]).toEqual([0, 5]);
  });

  it("is writable memory that is there, given as whole pages", () => {
    start(V2);
    client.task.memory.protect(VA, PAGE, false);
    expect(register(VA, PAGE)).toBe("EFAULT");
    expect(register(0x5000_0000, PAGE)).toBe("EFAULT");
    expect([register(VA + 1, PAGE), register(VA, 100), register(VA, 0)]).toEqual(Array(3).fill("EINVAL"));
    expect(outcome(() => client.register(container, 2n ** 64n - 4096n, 8192n))).toBe("EINVAL");
    expect(outcome(() => client.register(container, VA, PAGE, 1))).toBe("EINVAL");
    expect(outcome(() => client.unregister(container, VA, PAGE, 1))).toBe("EINVAL");
    const short = uapi.VfioIommuSpaprRegisterMemory.bytes({ argsz: 23, vaddr: BigInt(VA), size: 4096n });
    const ask = (argument: Uint8Array | bigint) => () =>
      client.task.ioctl(container, uapi.VFIO_IOMMU_SPAPR_REGISTER_MEMORY, argument);
    expect([outcome(ask(short)), outcome(ask(0n))]).toEqual(["EINVAL", "EFAULT"]);
    expect(locked()).toBe(0);
  });

  it("belongs to one address space, and so does the container", () => {
    start(V2);
    register(VA, PAGE);
    const other = newClient();
    const theirs = client.task.pass(container, other.task);
    for (const work of [
      () => other.register(theirs, VA + PAGE, PAGE),
      () => other.unregister(theirs, VA, PAGE),
      () => other.map(theirs, { vaddr: VA, iova: 0, size: PAGE }),
      () => other.unmap(theirs, 0, PAGE),
      () => other.createWindow(theirs, { length: GIB, pageLg2: 12, levels: 1 }),
      () => other.removeWindow(theirs, 0),
    ])
      expect(outcome(work)).toBe("EPERM");
    expect(other.windowInfo(theirs).dma32_window_size).toBe(2 ** 31);
    other.task.exit();
  });
});

describe("entries", () => {
  beforeEach(() => {
    start(V2);
    register(VA, PAGES * PAGE);
  });

  it.each<[string, Partial<MapArguments>, string]>([
    ["argsz too small", { argsz: 31 }, "EINVAL"],
    ["neither READ nor WRITE", { flags: 0 }, "EINVAL"],
    ["VADDR, which type 1 has", { flags: 7 }, "EINVAL"],
    ["size 0", { size: 0 }, "EINVAL"],
    ["unaligned iova", { iova: 0x800 }, "EINVAL"],
    ["unaligned vaddr", { vaddr: VA + 16 }, "EINVAL"],
    ["unaligned size", { size: 100 }, "EINVAL"],
    ["beyond the window", { iova: 2 ** 31 }, "ENXIO"],
    ["out of the window", { iova: 2 ** 31 - PAGE, size: 2 * PAGE }, "ENXIO"],
    ["where no window is yet", { iova: HIGH }, "ENXIO"],
    ["around the end of 64 bits", { iova: 2n ** 64n - 4096n, size: 8192 }, "EINVAL"],
    ["the last page of 64 bits", { iova: 2n ** 64n - 4096n }, "ENXIO"],
    ["memory that is not registered", { vaddr: VA + PAGES * PAGE }, "EINVAL"],
  ])("%s: nothing is mapped", (_what, request, errno) => {
    expect(map(request)).toBe(errno);
    expect(vfio.live().mappings).toBe(1);
    expect(unregister(VA, PAGES * PAGE)).toBe(0);
  });

  it("are set and cleared page by page, and replace what they pointed to", () => {
    expect([map({ size: 4 * PAGE }), map({ vaddr: VA + 9 * PAGE, iova: 0x10_1000, size: 2 * PAGE })]).toEqual(
      [0, 0],
    );
    const seen = () => [0, 1, 2, 3].map((page) => reached(0x10_0000 + page * PAGE));
    expect(seen()).toEqual([0, 9, 10, 3]);
    expect(unmap(0x10_0000, 2 * PAGE)).toBe(0);
    expect(seen()).toEqual([-1, -1, 10, 3]);
    expect(unmap(0, LOW.length)).toBe(0);
    expect(unmap(0, PAGE)).toBe(0);
    expect(seen()).toEqual([-1, -1, -1, -1]);
    expect(unregister(VA, PAGES * PAGE)).toBe(0);
  });

  it("UNMAP_DMA takes no flags and wants whole pages of one window", () => {
    expect(unmap(0, PAGE, uapi.VFIO_DMA_UNMAP_FLAG_ALL)).toBe("EINVAL");
    expect([unmap(0, 0), unmap(1, PAGE), unmap(0, 5)]).toEqual(["EINVAL", "EINVAL", "EINVAL"]);
    expect([unmap(0, 2 ** 31 + PAGE), unmap(HIGH, PAGE)]).toEqual(["ENXIO", "ENXIO"]);
  });

  it("say what a device may do, at once", () => {
    const device = client.device(group, host.endpoint.name);
    client.task.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(7, 0));
    const words = Uint8Array.from(Buffer.from("through a TCE"));
    const write = (iova: number) => host.endpoint.dmaWrite(iova, words);
    expect(write(0x10_0000)).toBe(TranslateStatus.fault);
    map();
    expect(write(0x10_0000)).toBe(TranslateStatus.ok);
    const seen = new Uint8Array(words.length);
    client.task.memory.read(BigInt(VA), seen);
    expect(seen).toEqual(words);
    map({ flags: 1 });
    expect(write(0x10_0000)).toBe(TranslateStatus.fault);
    expect(host.endpoint.dmaRead(0x10_0000, seen)).toBe(TranslateStatus.ok);
    unmap(0x10_0000, PAGE);
    expect(host.endpoint.dmaRead(0x10_0000, seen)).toBe(TranslateStatus.fault);
  });
});

describe("windows", () => {
  beforeEach(() => {
    start(V2);
    client.task.memory.map(VA, PAGES * PAGE, { contiguous: true });
  });

  it("come where the unit puts them, with pages of their own, and go with what they map", () => {
    register(VA, PAGES * PAGE);
    expect(create(2 ** 30, 16, 2)).toBe(HIGH);
    expect(map({ iova: HIGH, size: 16 * PAGE })).toBe(0);
    expect([0, 15].map((page) => reached(HIGH + page * PAGE))).toEqual([0, 15]);
    expect([map({ iova: HIGH + PAGE }), map({ iova: HIGH, vaddr: VA + PAGE, size: 16 * PAGE })]).toEqual([
      "EINVAL",
      "EINVAL",
    ]);
    expect(map({ iova: HIGH + 2 ** 30, size: 16 * PAGE })).toBe("ENXIO");
    expect(create(GIB, 12)).toBe("ENOSPC");
    expect(map({ iova: 0 })).toBe(0);
    expect(outcome(() => client.removeWindow(container, 2n ** 59n + 1n))).toBe("EINVAL");
    expect([remove(HIGH), remove(HIGH), remove(0x1000)]).toEqual([0, "EINVAL", "EINVAL"]);
    expect([map({ iova: HIGH, size: 16 * PAGE }), reached(0)]).toEqual(["ENXIO", 0]);
    unmap(0, PAGE);
    expect(unregister(VA, PAGES * PAGE)).toBe(0);
  });

  it("the first one can go too, and another comes in its place", () => {
    register(VA, PAGES * PAGE);
    map({ iova: 0 });
    expect([remove(0), map({ iova: 0 })]).toEqual([0, "ENXIO"]);
    expect(client.windowInfo(container)).toMatchObject({ dma32_window_start: 0, dma32_window_size: 2 ** 31 });
    expect([create(GIB, 16), map({ iova: 0, size: 16 * PAGE }), reached(15 * PAGE)]).toEqual([0, 0, 15]);
    expect(map({ iova: GIB, size: 16 * PAGE })).toBe("ENXIO");
  });

  it.each<[string, number, number, number]>([
    ["pages the unit has not", GIB, 13, 1],
    ["pages of one byte", GIB, 0, 1],
    ["a shift beyond any", GIB, 2 ** 32 - 1, 1],
    ["no level", GIB, 12, 0],
    ["too many levels", GIB, 12, 6],
    ["no bytes", 0, 12, 1],
    ["no power of two", 3 * GIB, 12, 2],
    ["all bytes there are", 2 ** 64 - 2 ** 12, 12, 2],
    ["less than a page", 2 ** 15, 16, 1],
  ])("%s: EINVAL, and there is none", (_what, length, pageLg2, levels) => {
    expect(create(length, pageLg2, levels)).toBe("EINVAL");
    expect(create(GIB, 12, 2)).toBe(HIGH);
  });

  it("no flags, and the whole structure", () => {
    const wanted = { length: GIB, pageLg2: 12, levels: 1 };
    expect(outcome(() => client.createWindow(container, wanted, 1))).toBe("EINVAL");
    expect(outcome(() => client.removeWindow(container, 0, 1))).toBe("EINVAL");
    const ask = (request: number, argument: Uint8Array | bigint) =>
      outcome(() => client.task.ioctl(container, request, argument));
    const creation = { page_shift: 12, window_size: BigInt(GIB), levels: 1 };
    const short = uapi.VfioIommuSpaprTceCreate.bytes({ argsz: 39, ...creation });
    expect(ask(uapi.VFIO_IOMMU_SPAPR_TCE_CREATE, short)).toBe("EINVAL");
    expect(ask(uapi.VFIO_IOMMU_SPAPR_TCE_CREATE, 0n)).toBe("EFAULT");
    expect(ask(uapi.VFIO_IOMMU_SPAPR_TCE_REMOVE, 0n)).toBe("EFAULT");
    const place = VA + PAGE;
    client.task.memory.write(BigInt(place), uapi.VfioIommuSpaprTceCreate.bytes({ argsz: 40, ...creation }));
    client.task.memory.protect(place, PAGE, false);
    expect(ask(uapi.VFIO_IOMMU_SPAPR_TCE_CREATE, BigInt(place))).toBe("EFAULT");
    expect(create(GIB, 12, 2)).toBe(HIGH);
  });

  it("count their tables as locked memory", () => {
    client.task.exit();
    start(V2, { memlock: 64 * PAGE });
    expect([create(2 ** 28, 12, 1), create(2 ** 27, 12, 1), locked()]).toEqual(["ENOMEM", HIGH, 64]);
    expect([remove(HIGH), locked()]).toEqual([0, 0]);
    expect([create(2 ** 28, 16, 1), locked()]).toEqual([HIGH, 8]);
  });

  it("a table that cannot be had leaves the entries empty and the block free", () => {
    register(VA, PAGES * PAGE);
    const allocate = host.memory.allocate.bind(host.memory);
    map({ iova: 0 });
    host.memory.allocate = () => -1;
    expect([map({ iova: GIB }), reached(0), map({ iova: 0, vaddr: VA + PAGE })]).toEqual([
      "ENOMEM",
      0,
      "ENOMEM",
    ]);
    host.memory.allocate = allocate;
    expect(reached(0)).toBe(-1);
    expect(unregister(VA, PAGES * PAGE)).toBe(0);
  });

  it("memory in pieces does not fit their pages", () => {
    for (let page = 0; page < 16; page += 2) client.task.memory.map(VA + page * PAGE, PAGE);
    register(VA, PAGES * PAGE);
    create(GIB, 16);
    const scattered = { iova: HIGH, size: 16 * PAGE };
    expect(map(scattered)).toBe("EINVAL");
    expect(reasonOf(() => client.map(container, { vaddr: VA, ...scattered }))).toContain(
      "does not lie in whole pages of 0x10000",
    );
    expect(map({ ...scattered, vaddr: VA + 16 * PAGE })).toBe(0);
    expect(map({ iova: 0, size: 16 * PAGE })).toBe(0);
  });

  it("are those of all groups, of one that comes later too", () => {
    register(VA, PAGES * PAGE);
    create(GIB, 12, 2);
    map({ iova: HIGH });
    const second = client.group(1);
    expect(client.setContainer(second, container)).toBe(0);
    expect(domain(1)).toBe(domain(0));
    client.unsetContainer(second);
    expect(domain(1)).toBeUndefined();
    expect(reached(HIGH)).toBe(0);
  });
});

describe("against a model of entries", () => {
  const page = fc.nat(24);
  const count = fc.integer({ min: 1, max: 6 });
  const steps = fc.array(
    fc.record({
      op: fc.constantFrom("map", "map", "unmap", "register", "unregister"),
      high: fc.boolean(),
      at: page,
      count,
      source: fc.nat(5),
    }),
    { maxLength: 40 },
  );
  const BLOCK = 8;

  it("a version 2 answers, maps and counts like a table and a list of blocks", () => {
    start(V2);
    fc.assert(
      fc.property(steps, (program) => {
        const entries = new Map<number, number>();
        const blocks = new Set<number>();
        create(GIB, 12, 2);
        for (const { op, high, at, count: pages, source } of program) {
          const iova = (high ? HIGH : 0) + at * PAGE;
          const cells = Array.from({ length: pages }, (_, i) => iova + i * PAGE);
          const first = source * BLOCK;
          if (op === "map") {
            const known = blocks.has(source);
            expect(map({ iova, size: pages * PAGE, vaddr: VA + first * PAGE })).toBe(known ? 0 : "EINVAL");
            if (known) for (const [i, cell] of cells.entries()) entries.set(cell, first + i);
          } else if (op === "unmap") {
            expect(unmap(iova, pages * PAGE)).toBe(0);
            for (const cell of cells) entries.delete(cell);
          } else if (op === "register") {
            expect(register(VA + first * PAGE, BLOCK * PAGE)).toBe(blocks.has(source) ? "EBUSY" : 0);
            blocks.add(source);
          } else {
            const used = [...entries.values()].some((value) => Math.floor(value / BLOCK) === source);
            const answer = used ? "EBUSY" : blocks.has(source) ? 0 : "ENOENT";
            expect(unregister(VA + first * PAGE, BLOCK * PAGE)).toBe(answer);
            if (answer === 0) blocks.delete(source);
          }
        }
        for (const start of [0, HIGH])
          for (let cell = 0; cell < 32; cell += 1)
            expect(reached(start + cell * PAGE)).toBe(entries.get(start + cell * PAGE) ?? -1);
        unmap(0, LOW.length);
        expect(remove(HIGH)).toBe(0);
        for (const source of blocks) expect(unregister(VA + source * BLOCK * PAGE, BLOCK * PAGE)).toBe(0);
        expect([locked(), vfio.live().mappings]).toEqual([0, 0]);
      }),
      { numRuns: 60 },
    );
  });
});
