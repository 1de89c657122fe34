/** What fails half way leaves nothing behind: allocations that fail, answers that cannot be written, pins that stay. */
import { beforeEach, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { Allocations } from "../kernel/allocations.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { LinuxError } from "../uapi/errno.ts";
import * as uapi from "../uapi/iommufd.ts";
import { VFIO_IOMMU_MAP_DMA, VfioIommuType1DmaMap } from "../uapi/vfio.ts";
import { type Access, type AccessPin, createAccess } from "./access.ts";
import type { IommufdContext } from "./context.ts";
import { bindDevice, type DeviceObject } from "./device.ts";
import { contextOf, IommufdSubsystem } from "./file.ts";

const USER = 0x10_0000;
const IOVA = 0x4000n;
const LENGTH = 0x4000n;

let host: ModelHost;
let iommufd: IommufdSubsystem;
let task: ModelTask;
let fd: number;
let context: IommufdContext;
let allocations: Allocations;

beforeEach(() => {
  host = new ModelHost();
  iommufd = new IommufdSubsystem(host);
  allocations = new Allocations();
  task = new ModelTask(host.memory, { uid: 5, allocations });
  task.memory.map(USER, 0x1_0000);
  fd = task.open(iommufd.node);
  context = contextOf(task.file(fd))!;
  return () => {
    task.exit();
    expect(iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
    expect(host.driver.domains.size).toBe(0);
    host.memory.close();
  };
});

const allocIoas = (): number => {
  const bytes = uapi.IommuIoasAlloc.bytes({ size: uapi.IommuIoasAlloc.size });
  task.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, bytes);
  return uapi.IommuIoasAlloc.read(bytes).out_ioas_id;
};
const mapArgument = (ioas: number, iova: bigint) =>
  uapi.IommuIoasMap.bytes({
    size: uapi.IommuIoasMap.size,
    flags: 7,
    ioas_id: ioas,
    user_va: BigInt(USER),
    length: LENGTH,
    iova,
  });
const map = (ioas: number, iova = IOVA) => task.ioctl(fd, uapi.IOMMU_IOAS_MAP, mapArgument(ioas, iova));
const unmapArgument = (ioas: number) =>
  uapi.IommuIoasUnmap.bytes({ size: uapi.IommuIoasUnmap.size, ioas_id: ioas, iova: IOVA, length: LENGTH });
const bind = (): DeviceObject => bindDevice(context, host.core.devices.get(host.endpoint.name)!);

/** Everything that can be counted. */
const state = () => ({
  ...iommufd.live(),
  pinned: task.memory.pinnedPages,
  domains: host.driver.domains.size,
  mapped: [...host.driver.domains].map(({ pages }) => pages.size),
  frames: host.memory.allocated,
});

describe("an allocation that fails", () => {
  /** Fails the first, the second, … allocation of what is done, until none fails. */
  const sweep = (work: () => void): number => {
    for (let nth = 1; nth < 50; nth += 1) {
      const before = state();
      allocations.arm(task, nth);
      try {
        allocations.run(task, work);
        expect(allocations.remaining(task)).toBeGreaterThan(0);
        allocations.arm(task, 0);
        return nth - 1;
      } catch (error) {
        expect(error).toMatchObject({ code: "ENOMEM" });
        expect(allocations.remaining(task)).toBe(0);
        expect(state()).toEqual(before);
      }
    }
    throw new Error("it never succeeds");
  };

  it("leaves no object, area, pin, table or reservation of any command", () => {
    const failed: { [command: string]: number } = {};
    let ioas = 0;
    failed["IOAS_ALLOC"] = sweep(() => {
      ioas = allocIoas();
    });
    const other = allocIoas();
    failed["IOAS_MAP"] = sweep(() => map(ioas));
    failed["IOAS_COPY"] = sweep(() => {
      const bytes = uapi.IommuIoasCopy.bytes({
        size: uapi.IommuIoasCopy.size,
        flags: 7,
        dst_ioas_id: other,
        src_ioas_id: ioas,
        length: LENGTH,
        dst_iova: IOVA,
        src_iova: IOVA,
      });
      task.ioctl(fd, uapi.IOMMU_IOAS_COPY, bytes);
    });
    let device: DeviceObject | undefined;
    failed["bind"] = sweep(() => {
      device = bind();
    });
    failed["attach"] = sweep(() => device!.attach(ioas));
    failed["IOAS_MAP, attached"] = sweep(() => map(ioas, 0x1_0000n));
    failed["replace"] = sweep(() => device!.replace(other));
    let access: Access | undefined;
    failed["access"] = sweep(() => {
      access = createAccess(context, { pins: true, unmap: () => {} });
    });
    access!.attach(other);
    let pin: AccessPin | undefined;
    failed["pin"] = sweep(() => {
      pin = access!.pin(IOVA, LENGTH, true);
    });
    pin!.release();
    context.compatIoas = undefined;
    task.ioctl(fd, uapi.IOMMU_VFIO_IOAS, uapi.IommuVfioIoas.bytes({ size: 12, ioas_id: other, op: 1 }));
    failed["VFIO_IOMMU_MAP_DMA"] = sweep(() => {
      const bytes = VfioIommuType1DmaMap.bytes({
        argsz: VfioIommuType1DmaMap.size,
        flags: 3,
        vaddr: BigInt(USER),
        iova: 0x10_0000n,
        size: LENGTH,
      });
      task.ioctl(fd, VFIO_IOMMU_MAP_DMA, bytes);
    });
    expect(Object.entries(failed).filter(([, count]) => count === 0)).toEqual([]);
    access!.release();
    device!.unbind();
  });

  it("is that of the task it was asked for, once", () => {
    allocations.arm({ pid: task.pid, tid: task.tid + 1 }, 1);
    const ioas = allocIoas();
    expect(ioas).toBe(1);
    allocations.arm(task, 1);
    expect(allocations.remaining(task)).toBe(1);
    expect(allocIoas).toThrow("ENOMEM");
    expect(allocIoas()).toBe(2);
  });
});

describe("a batch of pages", () => {
  it("is taken for every so many runs of frames, as many as the limit of temporary memory holds", () => {
    const ioas = allocIoas();
    const device = bind();
    device.attach(ioas);
    // Pages that came in this order have no neighbours in memory.
    const va = 0x40_0000;
    for (const page of [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15])
      task.memory.map(va + page * 4096, 4096);
    const argument = uapi.IommuIoasMap.bytes({
      size: uapi.IommuIoasMap.size,
      flags: 6,
      ioas_id: ioas,
      user_va: BigInt(va),
      length: 0x1_0000n,
    });
    const allocated = (bytes: number): number => {
      iommufd.system.batch.bytes = bytes;
      allocations.arm(task, 1000);
      allocations.run(task, () => task.ioctl(fd, uapi.IOMMU_IOAS_MAP, new Uint8Array(argument)));
      return 1000 - allocations.remaining(task);
    };
    const least = allocated(65_536);
    let runs = 0;
    const [domain] = host.driver.domains;
    const frames = [...domain!.pages.values()].map(({ pa }) => pa);
    frames.forEach((pa, i) => {
      if (i === 0 || pa !== frames[i - 1]! + 4096) runs += 1;
    });
    expect(runs).toBeGreaterThan(3);
    expect(allocated(0)).toBe(least + runs - 1);
    expect(allocated(24)).toBe(least + Math.ceil(runs / 2) - 1);
    allocations.arm(task, 0);
    device.unbind();
  });
});

describe("an answer that cannot be written", () => {
  it("undoes a new object and leaves a mapping that was made", () => {
    const at = 0x20_0000;
    task.memory.map(at, 4096);
    const put = (bytes: Uint8Array) => task.memory.poke(at, bytes);
    put(uapi.IommuIoasAlloc.bytes({ size: uapi.IommuIoasAlloc.size }));
    task.memory.protect(at, 4096, false);
    expect(() => task.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, BigInt(at))).toThrow("EFAULT");
    expect(iommufd.live().objects).toBe(0);
    const ioas = allocIoas();
    put(mapArgument(ioas, IOVA));
    expect(() => task.ioctl(fd, uapi.IOMMU_IOAS_MAP, BigInt(at))).toThrow("EFAULT");
    expect(iommufd.live().areas).toBe(1);
    put(unmapArgument(ioas));
    expect(() => task.ioctl(fd, uapi.IOMMU_IOAS_UNMAP, BigInt(at))).toThrow("EFAULT");
    expect(iommufd.live().areas).toBe(0);
  });
});

describe("RLIMIT_NOFILE", () => {
  it("reached, a fault queue is EMFILE: no object stays, and its id is not told", () => {
    const poor = new ModelTask(host.memory, { files: 1 });
    const only = poor.open(iommufd.node);
    const bytes = uapi.IommuFaultAlloc.bytes({ size: uapi.IommuFaultAlloc.size });
    expect(() => poor.ioctl(only, uapi.IOMMU_FAULT_QUEUE_ALLOC, bytes)).toThrow(
      expect.objectContaining({ code: "EMFILE" }),
    );
    expect(uapi.IommuFaultAlloc.read(bytes).out_fault_id).toBe(0);
    expect(iommufd.live().objects).toBe(0);
    poor.exit();
  });
});

describe("RLIMIT_MEMLOCK", () => {
  it("is held against the pages of the user: nothing is pinned beyond it", () => {
    const ioas = allocIoas();
    const device = bind();
    device.attach(ioas);
    task.memlock = 6 * 4096;
    map(ioas);
    expect([task.memory.pinnedPages, iommufd.live().pinnedPages]).toEqual([4, 4]);
    const before = state();
    expect(() => map(ioas, 0x1_0000n)).toThrow("beyond RLIMIT_MEMLOCK (6 pages) of user 5");
    expect(state()).toEqual(before);
    device.unbind();
    expect(task.memory.pinnedPages).toBe(0);
  });
});

describe("an unmap of pages that an access has pinned", () => {
  const setUp = (unmap: (pins: AccessPin[]) => void) => {
    const ioas = allocIoas();
    map(ioas);
    const pins: AccessPin[] = [];
    const access = createAccess(context, { pins: true, unmap: () => unmap(pins) });
    access.attach(ioas);
    pins.push(access.pin(IOVA + 0x1000n, 0x1000n, true));
    return { ioas, access, pins };
  };

  it("tells the access, which gives them back at once", () => {
    let told = 0;
    const { ioas, access, pins } = setUp((held) => {
      told += 1;
      for (const pin of held) pin.release();
    });
    task.ioctl(fd, uapi.IOMMU_IOAS_UNMAP, unmapArgument(ioas));
    expect([told, iommufd.live().areas, pins.length]).toEqual([1, 0, 1]);
    access.release();
  });

  it("waits until they are given back, and nothing new is pinned meanwhile", () => {
    const { ioas, access, pins } = setUp(() => {});
    const call = task.start(fd, uapi.IOMMU_IOAS_UNMAP, unmapArgument(ioas));
    host.scheduler.run(3);
    expect(call.settled).toBe(false);
    expect(() => access.pin(IOVA, 0x1000n, true)).toThrow("is being unmapped");
    pins[0]!.release();
    host.scheduler.run();
    expect(call.result()).toBe(0);
    expect(iommufd.live().areas).toBe(0);
    access.release();
  });

  it("is EDEADLOCK after 100 notifications, and the area can be used again", () => {
    let told = 0;
    const { ioas, access, pins } = setUp(() => {
      told += 1;
    });
    const call = task.start(fd, uapi.IOMMU_IOAS_UNMAP, unmapArgument(ioas));
    host.scheduler.run();
    expect(() => call.result()).toThrow("EDEADLK");
    expect(told).toBe(100);
    access.pin(IOVA, 0x1000n, true).release();
    pins[0]!.release();
    access.release();
  });

  it("may be interrupted, and the file closed meanwhile", () => {
    const { ioas, access, pins } = setUp(() => {});
    const call = task.start(fd, uapi.IOMMU_IOAS_UNMAP, unmapArgument(ioas));
    call.interrupt();
    host.scheduler.run();
    expect(() => call.result()).toThrow(LinuxError);
    access.pin(IOVA, 0x1000n, true).release();
    const again = task.start(fd, uapi.IOMMU_IOAS_UNMAP, unmapArgument(ioas));
    task.close(fd);
    pins[0]!.release();
    host.scheduler.run();
    expect(again.result()).toBe(0);
    access.release();
  });
});
