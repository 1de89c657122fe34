/** Character devices: what BIND, ATTACH and DETACH promise, who excludes whom, and what closing does. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CdevClient } from "../../test/support/cdev-client.ts";
import { MapDomain, ModelHost, type ModelHostOptions } from "../../test/support/model-host.ts";
import { outcome, reasonOf } from "../../test/support/vfio-client.ts";
import { IommufdSubsystem } from "../iommufd/file.ts";
import { Allocations } from "../kernel/allocations.ts";
import { ModelTask } from "../kernel/model-task.ts";
import * as iommu from "../uapi/iommufd.ts";
import * as uapi from "../uapi/vfio.ts";
import { regionOffset } from "./regions.ts";
import { VfioSubsystem } from "./subsystem.ts";

const VA = 0x1_0000_0000;
const READ_ONLY = VA + 0x10_0000;
const PAGE = 4096;
const { VfioDeviceBindIommufd, VfioDeviceAttachIommufdPt, VfioDeviceDetachIommufdPt } = uapi;

let host: ModelHost;
let kernel: { vfio: VfioSubsystem; iommufd: IommufdSubsystem };
let client: CdevClient;
let fd: number;
let frames: number;

const newTask = (): ModelTask => {
  const task = new ModelTask(host.memory);
  task.memory.map(VA, 32 * PAGE, { private: true });
  return task;
};
const start = (options: ModelHostOptions = {}): void => {
  host = new ModelHost(options);
  kernel = { vfio: new VfioSubsystem(host), iommufd: new IommufdSubsystem(host) };
  frames = host.memory.allocated;
  client = new CdevClient(newTask(), kernel);
  fd = client.iommu();
};
const restart = (options: ModelHostOptions): void => {
  client.task.exit();
  host.memory.close();
  start(options);
};
const call = (device: number, request: number, argument: bigint | Uint8Array) =>
  outcome(() => client.task.ioctl(device, request, argument));
/** A structure in memory that the kernel cannot write to. */
const unwritable = (bytes: Uint8Array): bigint => {
  client.task.memory.map(READ_ONLY, PAGE);
  client.task.memory.write(BigInt(READ_ONLY), bytes);
  client.task.memory.protect(READ_ONLY, PAGE, false);
  return BigInt(READ_ONLY);
};
const domain = (index = 0) => host.driver.attached.get(host.endpoints[index]!);

beforeEach(() => start());
afterEach(() => {
  client.task.exit();
  expect(kernel.vfio.live()).toEqual({
    containers: 0,
    groups: 0,
    devices: 0,
    cdevs: 0,
    mappings: 0,
    eventfds: 0,
  });
  expect(kernel.iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
  expect(host.driver.domains.size).toBe(0);
  expect(host.driver.pasids.size).toBe(0);
  for (const endpoint of host.endpoints) expect(host.driver.attached.get(endpoint)).toBe(host.driver.blocked);
  for (const group of host.core.groups.values()) expect(group.owned).toBe(false);
  expect(host.memory.allocated).toBe(frames);
  host.memory.close();
});

describe("a character device that is not bound", () => {
  it("may be open any number of times, and reaches nothing: every call is EINVAL", () => {
    const device = client.cdev();
    client.cdev();
    for (const request of [
      uapi.VFIO_DEVICE_GET_INFO,
      uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
      uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
      uapi.VFIO_DEVICE_FEATURE,
      uapi.VFIO_DEVICE_RESET,
      0x3b90,
    ])
      expect(call(device, request, 0n)).toBe("EINVAL");
    expect(outcome(() => client.task.pread(device, 0n, new Uint8Array(4)))).toBe("EINVAL");
    expect(outcome(() => client.task.pwrite(device, 0n, new Uint8Array(4)))).toBe("EINVAL");
    const mapping = { offset: 0n, protection: 3, flags: 1 };
    expect(outcome(() => client.task.mmap(device, { va: VA, length: PAGE }, mapping))).toBe("EINVAL");
    expect(host.endpoint.resets).toBe(0);
    expect(reasonOf(() => client.deviceInfo(device))).toContain("VFIO_DEVICE_BIND_IOMMUFD");
  });
});

describe("BIND_IOMMUFD", () => {
  const bindWith = (device: number, members: Parameters<typeof VfioDeviceBindIommufd.bytes>[0], tail = "") =>
    call(
      device,
      uapi.VFIO_DEVICE_BIND_IOMMUFD,
      Buffer.concat([
        VfioDeviceBindIommufd.bytes({ argsz: VfioDeviceBindIommufd.size, iommufd: fd, ...members }),
        Buffer.from(tail, "hex"),
      ]),
    );

  it("takes 16 bytes or more, when what it does not know is zero", () => {
    const device = client.cdev();
    expect(bindWith(device, { argsz: 15 })).toBe("EINVAL");
    expect(bindWith(device, { argsz: 0 })).toBe("EINVAL");
    expect(bindWith(device, { argsz: 32 }, "0000000000000001")).toBe("E2BIG");
    expect(call(device, uapi.VFIO_DEVICE_BIND_IOMMUFD, 0n)).toBe("EFAULT");
    for (const argsz of [16, 20, 24, 32]) {
      const one = client.cdev();
      expect(bindWith(one, { argsz }, "0000000000000000")).toBe(0);
      client.task.close(one);
    }
  });

  it("gives the lowest free id, resets the function, and makes it a device file", () => {
    const device = client.cdev();
    client.ioas(fd);
    expect(client.bind(device, fd)).toBe(2);
    expect(host.endpoint.resets).toBe(1);
    expect(client.deviceInfo(device)).toMatchObject({ num_regions: 9, num_irqs: 5 });
    const config = new Uint8Array(4);
    expect(client.task.pread(device, regionOffset(7), config)).toBe(4);
    expect(Buffer.from(config).toString("hex")).toBe("34127856");
    const into = new Uint8Array(4);
    client.task.kernelFile(device).trapWrite!(8n, Uint8Array.of(1, 2, 3, 4));
    client.task.kernelFile(device).trapRead!(8n, into);
    expect([...into]).toEqual([1, 2, 3, 4]);
    const command = new Uint8Array(64);
    expect(client.task.kernelFile(device).trapEnqueue!(0n, command, client.task.memory)).toBe(true);
    expect(call(device, 0x3b90, 0n)).toBe("ENOTTY");
  });

  it("refuses flags it does not know, descriptors that are no iommufd, tokens it cannot read", () => {
    const device = client.cdev();
    expect(bindWith(device, { flags: 2 })).toBe("EINVAL");
    expect(bindWith(device, { iommufd: -1 })).toBe("EINVAL");
    expect(bindWith(device, { iommufd: 99 })).toBe("EBADF");
    expect(bindWith(device, { iommufd: device })).toBe("EBADFD");
    expect(bindWith(device, { iommufd: client.task.eventfd() })).toBe("EBADFD");
    expect(bindWith(device, { flags: 1 })).toBe("EFAULT");
    // It has no virtual functions: any token will do.
    expect(bindWith(device, { flags: 1, token_uuid_ptr: BigInt(VA) })).toBe(0);
  });

  it("binds one file of a device at a time, to one iommufd", () => {
    const [first, second] = [client.cdev(), client.cdev()];
    client.bind(first, fd);
    expect(outcome(() => client.bind(first, fd))).toBe("EINVAL");
    for (const other of [fd, client.iommu()])
      expect(outcome(() => client.bind(second, other))).toBe("EINVAL");
    expect(client.task.dup(first)).toBeGreaterThan(0);
    client.task.close(first);
    expect(outcome(() => client.bind(second, fd))).toBe("EINVAL");
    client.task.close(client.task.descriptors.at(-1)!);
    expect(client.bind(second, fd)).toBe(1);
  });

  it("and an open group exclude each other", () => {
    const device = client.cdev();
    const group = client.group(0);
    expect(outcome(() => client.bind(device, fd))).toBe("EBUSY");
    client.task.close(group);
    client.bind(device, fd);
    expect(outcome(() => client.group(0))).toBe("EBUSY");
    expect(client.group(1)).toBeGreaterThan(0);
    client.task.close(device);
    client.task.close(client.group(0));
    const inContainer = client.attach(0);
    const opened = client.device(inContainer.group, host.endpoint.name);
    client.task.close(inContainer.group);
    expect(outcome(() => client.bind(client.cdev(), fd))).toBe("EBUSY");
    client.task.close(opened);
    expect(client.bind(client.cdev(), fd)).toBe(1);
  });

  it("that cannot tell the id leaves the device unbound", () => {
    const device = client.cdev();
    const bytes = VfioDeviceBindIommufd.bytes({ argsz: VfioDeviceBindIommufd.size, iommufd: fd });
    expect(call(device, uapi.VFIO_DEVICE_BIND_IOMMUFD, unwritable(bytes))).toBe("EFAULT");
    expect(outcome(() => client.deviceInfo(device))).toBe("EINVAL");
    expect(kernel.iommufd.live().objects).toBe(0);
    client.task.close(client.group(0));
    expect(client.bind(device, fd)).toBe(1);
  });
});

describe("ATTACH_IOMMUFD_PT", () => {
  let device: number;
  let id: number;
  beforeEach(() => {
    device = client.cdev();
    id = client.bind(device, fd);
  });

  it("to an address space makes a page table, which others of it share and the last takes along", () => {
    const ioas = client.ioas(fd);
    client.mapAt(fd, ioas, 0x10_0000, VA, 2 * PAGE);
    const hwpt = client.attachTo(device, ioas);
    expect(hwpt).toBe(ioas + 1);
    expect(host.driver.domainOf(host.endpoint).physical(0x10_0000)).toBe(client.task.memory.physical(VA));
    expect(client.attachTo(device, ioas)).toBe(hwpt);
    const second = client.cdev(1);
    client.bind(second, fd);
    expect(client.attachTo(second, ioas)).toBe(hwpt);
    expect(domain(1)).toBe(domain(0));
    for (const used of [ioas, hwpt, id]) expect(outcome(() => client.destroy(fd, used))).toBe("EBUSY");
    client.detachFrom(device);
    expect(domain(0)).toBe(host.driver.blocked);
    expect(outcome(() => client.destroy(fd, hwpt))).toBe("EBUSY");
    client.task.close(second);
    expect(outcome(() => client.destroy(fd, hwpt))).toBe("ENOENT");
    expect(client.destroy(fd, ioas)).toBe(0);
  });

  it("again replaces what is attached, and keeps it when the new one is refused", () => {
    const [one, two, three] = [client.ioas(fd), client.ioas(fd), client.ioas(fd)];
    client.mapAt(fd, two, 0x20_0000, VA, PAGE);
    client.mapAt(fd, three, 0xfee0_0000, VA, PAGE);
    client.attachTo(device, one);
    const hwpt = client.hwpt(fd, id, two);
    expect(client.attachTo(device, hwpt)).toBe(hwpt);
    expect(client.destroy(fd, one)).toBe(0);
    const before = domain();
    expect(outcome(() => client.attachTo(device, three))).toBe("EADDRINUSE");
    expect(outcome(() => client.attachTo(device, id))).toBe("EINVAL");
    for (const unknown of [0, 99, 0x7fff_fff0])
      expect(outcome(() => client.attachTo(device, unknown))).toBe("ENOENT");
    expect(domain()).toBe(before);
    client.detachFrom(device);
    expect(client.detachFrom(device)).toBe(0);
    expect(client.destroy(fd, hwpt)).toBe(0);
  });

  it("fails without effect when what is mapped cannot be pinned", () => {
    const ioas = client.ioas(fd);
    client.mapAt(fd, ioas, 0, 0x6000_0000, PAGE);
    const objects = kernel.iommufd.live().objects;
    expect(outcome(() => client.attachTo(device, ioas))).toBe("EFAULT");
    expect(kernel.iommufd.live().objects).toBe(objects);
    expect(domain()).toBe(host.driver.blocked);
  });

  it("narrows the ranges of the address space to the device's, and detaching widens them", () => {
    const ioas = client.ioas(fd);
    expect(client.ranges(fd, ioas)).toEqual([{ start: 0n, last: 2n ** 64n - 1n }]);
    client.attachTo(device, ioas);
    expect(client.ranges(fd, ioas)).toEqual([
      { start: 0n, last: 0xfedf_ffffn },
      { start: 0xfef0_0000n, last: 2n ** 48n - 1n },
    ]);
    expect(outcome(() => client.mapAt(fd, ioas, 0xfee0_0000, VA, PAGE))).toBe("EINVAL");
    client.detachFrom(device);
    expect(client.ranges(fd, ioas)).toHaveLength(1);
  });

  it("has 12 bytes or, with a PASID, 16; DETACH 8 or 12; unknown flags are EINVAL", () => {
    const ioas = client.ioas(fd);
    const attach = (members: object) =>
      call(
        device,
        uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
        VfioDeviceAttachIommufdPt.bytes({ argsz: 16, pt_id: ioas, ...members }),
      );
    const detach = (members: object) =>
      call(
        device,
        uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
        VfioDeviceDetachIommufdPt.bytes({ argsz: 12, ...members }),
      );
    for (const wrong of [{ argsz: 11 }, { argsz: 0 }, { flags: 2 }, { flags: 3 }, { flags: 1, argsz: 15 }])
      expect(attach(wrong)).toBe("EINVAL");
    for (const wrong of [{ argsz: 7 }, { flags: 2 }, { flags: 3 }, { flags: 1, argsz: 11 }])
      expect(detach(wrong)).toBe("EINVAL");
    for (const request of [uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT])
      expect(call(device, request, 0n)).toBe("EFAULT");
    expect(attach({ argsz: 12 })).toBe(0);
    expect(detach({ argsz: 8 })).toBe(0);
    expect(detach({ flags: 1, pasid: 7 })).toBe(0);
  });

  it("whose answer cannot be written leaves the device detached", () => {
    const [one, two] = [client.ioas(fd), client.ioas(fd)];
    const attach = (ioas: number) =>
      call(
        device,
        uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
        unwritable(VfioDeviceAttachIommufdPt.bytes({ argsz: 12, pt_id: ioas })),
      );
    expect(attach(one)).toBe("EFAULT");
    expect(domain()).toBe(host.driver.blocked);
    client.attachTo(device, one);
    expect(attach(two)).toBe("EFAULT");
    expect(domain()).toBe(host.driver.blocked);
    expect(client.destroy(fd, one)).toBe(0);
    expect(client.destroy(fd, two)).toBe(0);
  });
});

describe("PASIDs", () => {
  let device: number;
  let ioas: number;
  let tables: number[];
  beforeEach(() => {
    client.task.exit();
    host.memory.close();
    start();
    host.driver.capabilities = { ...host.driver.capabilities, pasidBits: 10 };
    Object.assign(host.core.devices.get(host.endpoint.name)!, { capabilities: host.driver.capabilities });
    device = client.cdev();
    const id = client.bind(device, fd);
    ioas = client.ioas(fd);
    tables = [1, 2].map(() => client.hwpt(fd, id, ioas, iommu.IOMMU_HWPT_ALLOC_PASID));
  });
  const given = () => [...host.driver.pasids.keys()];

  it("are attached, replaced and detached one by one, beside the device as a whole", () => {
    const [one, two] = tables as [number, number];
    expect(client.attachTo(device, one, 5)).toBe(one);
    expect(client.attachTo(device, two, 6)).toBe(two);
    expect(domain()).toBe(host.driver.blocked);
    expect(given()).toEqual(["0000:01:00.0 5", "0000:01:00.0 6"]);
    expect(client.attachTo(device, two, 5)).toBe(two);
    expect(client.destroy(fd, one)).toBe(0);
    client.attachTo(device, two);
    expect(client.detachFrom(device, 5)).toBe(0);
    expect(client.detachFrom(device, 5)).toBe(0);
    expect(given()).toEqual(["0000:01:00.0 6"]);
    expect(domain()).toBeInstanceOf(MapDomain);
    client.task.close(device);
    expect(given()).toEqual([]);
  });

  it("need a page table made for them, and fit the device; PASID 0 is the device as a whole", () => {
    const [one] = tables as [number];
    const refused = (id: number, pasid: number) => outcome(() => client.attachTo(device, id, pasid));
    expect(refused(ioas, 5)).toBe("EINVAL");
    expect(refused(one, 1024)).toBe("EINVAL");
    expect(refused(one, 2 ** 31)).toBe("ENOSPC");
    expect(refused(99, 5)).toBe("ENOENT");
    expect(given()).toEqual([]);
    expect(client.attachTo(device, one, 0)).toBe(one);
    expect(domain()).toBeInstanceOf(MapDomain);
    expect(outcome(() => client.attachTo(device, one))).toBe("EBUSY");
    expect(client.detachFrom(device)).toBe(0);
    expect(domain()).toBeInstanceOf(MapDomain);
    client.detachFrom(device, 0);
    expect(domain()).toBe(host.driver.blocked);
  });
});

describe("a group of several devices", () => {
  beforeEach(() => restart({ groups: [["01:00", "01:01"], ["02:00"]] }));

  it("belongs to one iommufd as soon as one of its devices is bound", () => {
    const [first, second] = [client.cdev(0), client.cdev(1)];
    client.bind(first, fd);
    const other = client.iommu();
    expect(outcome(() => client.bind(second, other))).toBe("EBUSY");
    expect(outcome(() => client.group(0))).toBe("EBUSY");
    client.bind(second, fd);
    client.task.close(first);
    expect(outcome(() => client.group(0))).toBe("EBUSY");
    client.task.close(second);
    expect(client.bind(client.cdev(1), other)).toBe(1);
  });

  it("has one page table: a second device attaches to the same, and a replacement moves all", () => {
    const devices = [client.cdev(0), client.cdev(1)];
    for (const device of devices) client.bind(device, fd);
    const [one, two] = [client.ioas(fd), client.ioas(fd)];
    const hwpt = client.attachTo(devices[0]!, one);
    expect(domain(1)).toBe(domain(0));
    expect(outcome(() => client.attachTo(devices[1]!, two))).toBe("EINVAL");
    expect(client.attachTo(devices[1]!, one)).toBe(hwpt);
    const moved = client.attachTo(devices[0]!, two);
    expect(domain(1)).toBe(domain(0));
    expect(client.destroy(fd, one)).toBe(0);
    client.detachFrom(devices[0]!);
    expect(domain(0)).toBeInstanceOf(MapDomain);
    client.detachFrom(devices[1]!);
    expect(domain(0)).toBe(host.driver.blocked);
    expect(outcome(() => client.destroy(fd, moved))).toBe("ENOENT");
  });
});

describe("closing", () => {
  it("the iommufd first: the bound device keeps its address space, and takes it along", () => {
    const device = client.cdev();
    client.bind(device, fd);
    const ioas = client.ioas(fd);
    client.mapAt(fd, ioas, 0x1000, VA, PAGE);
    client.attachTo(device, ioas);
    const pa = client.task.memory.physical(VA);
    client.task.close(fd);
    expect(host.driver.domainOf(host.endpoint).physical(0x1000)).toBe(pa);
    client.detachFrom(device);
    client.attachTo(device, ioas);
    expect(host.driver.domainOf(host.endpoint).physical(0x1000)).toBe(pa);
    client.task.close(device);
    expect(kernel.iommufd.live().objects).toBe(0);
  });

  it("the device first: its id is free, its DMA blocked, its function reset", () => {
    const device = client.cdev();
    const id = client.bind(device, fd);
    client.attachTo(device, client.ioas(fd));
    client.trigger(device, 2, [client.task.eventfd()]);
    client.task.close(device);
    expect(outcome(() => client.destroy(fd, id))).toBe("ENOENT");
    expect(domain()).toBe(host.driver.blocked);
    expect(host.endpoint.resets).toBe(2);
    expect(client.bind(client.cdev(), fd)).toBe(id);
  });
});

describe("an iommufd as a group's container", () => {
  it("gets an address space for VFIO's requests, in which the group's devices are", () => {
    const group = client.group(0);
    expect(client.setContainer(group, fd)).toBe(0);
    expect(client.status(group)).toBe(3);
    expect(outcome(() => client.setContainer(group, fd))).toBe("EINVAL");
    const ioas = client.compatIoas(fd);
    expect(client.setIommu(fd, uapi.VFIO_TYPE1v2_IOMMU)).toBe(0);
    client.map(fd, { vaddr: VA, iova: 0x1000, size: PAGE });
    const device = client.device(group, host.endpoint.name);
    expect(host.driver.domainOf(host.endpoint).physical(0x1000)).toBe(client.task.memory.physical(VA));
    expect(client.deviceInfo(device)).toMatchObject({ num_regions: 9 });
    expect(outcome(() => client.destroy(fd, ioas))).toBe("EBUSY");
    client.device(group, host.endpoint.name);
    client.unmapAll(fd);
    expect(host.driver.domainOf(host.endpoint).pages.size).toBe(0);
  });

  it("that has one uses it, and two groups share it", () => {
    const ioas = client.ioas(fd);
    client.compatIoas(fd, iommu.IOMMU_VFIO_IOAS_SET, ioas);
    for (const index of [0, 1]) {
      const group = client.group(index);
      client.setContainer(group, fd);
      client.device(group, host.endpoints[index]!.name);
    }
    expect(client.compatIoas(fd)).toBe(ioas);
    expect(domain(1)).toBe(domain(0));
  });

  it("is left at any time, by UNSET_CONTAINER or by closing the group; its devices stay", () => {
    const group = client.group(0);
    client.setContainer(group, fd);
    const device = client.device(group, host.endpoint.name);
    expect(client.unsetContainer(group)).toBe(0);
    expect(client.status(group)).toBe(0);
    expect(outcome(() => client.unsetContainer(group))).toBe("EINVAL");
    expect(outcome(() => client.device(group, host.endpoint.name))).toBe("EINVAL");
    expect(outcome(() => client.setContainer(group, client.container()))).toBe("EBUSY");
    client.task.close(group);
    expect(domain()).toBeInstanceOf(MapDomain);
    expect(outcome(() => client.bind(client.cdev(), fd))).toBe("EINVAL");
    const again = client.group(0);
    expect(client.status(again)).toBe(0);
    client.task.close(device);
    expect(client.status(again)).toBe(1);
    expect(domain()).toBe(host.driver.blocked);
  });

  it("whose address space is gone, or cannot be pinned, gives no device, and leaves none bound", () => {
    const group = client.group(0);
    client.setContainer(group, fd);
    const open = () => outcome(() => client.device(group, host.endpoint.name));
    client.map(fd, { vaddr: 0x6000_0000, iova: 0, size: PAGE });
    expect(open()).toBe("EFAULT");
    client.destroy(fd, client.compatIoas(fd));
    expect(open()).toBe("ENODEV");
    expect(kernel.iommufd.live().objects).toBe(0);
    expect(client.unsetContainer(group)).toBe(0);
    expect(client.setContainer(group, fd)).toBe(0);
    expect(open()).toBeTypeOf("number");
  });

  it("without an IOMMU is refused everywhere: no type, no extension, no node", () => {
    const group = client.group(0);
    client.setContainer(group, fd);
    expect(client.extension(fd, uapi.VFIO_NOIOMMU_IOMMU)).toBe(0);
    expect(outcome(() => client.setIommu(fd, uapi.VFIO_NOIOMMU_IOMMU))).toBe("EINVAL");
    expect(kernel.vfio.nodes.filter(({ path }) => path.includes("noiommu"))).toEqual([]);
  });
});

describe("hot reset of a character device", () => {
  const info = (device: number) => {
    const bytes = new Uint8Array(256);
    uapi.VfioPciHotResetInfo.write(bytes, { argsz: bytes.length });
    client.task.ioctl(device, uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, bytes);
    const { flags, devices } = uapi.VfioPciHotResetInfo.read(bytes);
    return { flags, ids: devices.map(({ devid }) => devid) };
  };
  const reset = (device: number, fds: readonly number[] = [], flags = 0) =>
    call(
      device,
      uapi.VFIO_DEVICE_PCI_HOT_RESET,
      uapi.VfioPciHotReset.bytes({
        argsz: 12 + 4 * fds.length,
        flags,
        count: fds.length,
        group_fds: [...fds],
      }),
    );
  const NOT_OWNED = uapi.VFIO_PCI_DEVID_NOT_OWNED;

  beforeEach(() => restart({ groups: [["01:00", "01:01"], ["01:02"], ["02:00"]] }));

  it("is proven by its iommufd, which must have every function on the bus", () => {
    const device = client.cdev(0);
    const id = client.bind(device, fd);
    expect(info(device)).toEqual({ flags: 1, ids: [id, uapi.VFIO_PCI_DEVID_OWNED, NOT_OWNED] });
    expect(reset(device)).toBe("EINVAL");
    const third = client.cdev(2);
    const other = client.iommu();
    client.bind(third, other);
    expect(info(device)).toEqual({ flags: 1, ids: [id, 0, NOT_OWNED] });
    expect(info(third)).toEqual({ flags: 1, ids: [NOT_OWNED, NOT_OWNED, 1] });
    expect(reset(device)).toBe("EINVAL");
    client.task.close(third);
    const mine = client.cdev(2);
    const second = client.bind(mine, fd);
    expect(info(device)).toEqual({ flags: 3, ids: [id, 0, second] });
    const resets = host.endpoints.map((endpoint) => endpoint.resets);
    expect(reset(device, [client.group(2)])).toBe("EINVAL");
    expect(reset(device, [], 1)).toBe("EINVAL");
    expect(reset(device)).toBe(0);
    expect(host.endpoints.map((endpoint, index) => endpoint.resets - resets[index]!)).toEqual([1, 1, 1, 0]);
  });

  it("of a device opened through a group with an iommufd is proven by groups", () => {
    const groups = [client.group(0), client.group(1)];
    for (const group of groups) client.setContainer(group, fd);
    const device = client.device(groups[0]!, host.endpoint.name);
    expect(info(device).flags).toBe(0);
    expect(reset(device)).toBe("EINVAL");
    expect(reset(device, groups)).toBe(0);
  });
});

describe("VFIO_DEVICE_FEATURE", () => {
  const {
    VFIO_DEVICE_FEATURE_GET: GET,
    VFIO_DEVICE_FEATURE_SET: SET,
    VFIO_DEVICE_FEATURE_PROBE: PROBE,
  } = uapi;
  const ENTRY = uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY;
  const WAKEUP = uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP;
  const EXIT = uapi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT;
  let device: number;
  const feature = (flags: number, data: Uint8Array = new Uint8Array(0), argsz = 8 + data.length) =>
    call(
      device,
      uapi.VFIO_DEVICE_FEATURE,
      Buffer.concat([uapi.VfioDeviceFeature.bytes({ argsz, flags }), data]),
    );
  const wakeup = (eventfd: number, reserved = 0) =>
    uapi.VfioDeviceLowPowerEntryWithWakeup.bytes({ wakeup_eventfd: eventfd, reserved });
  const load = () =>
    outcome(() => client.task.kernelFile(device).trapRead!(0n, new Uint8Array(4))) ?? "answers";

  beforeEach(() => {
    device = client.cdev();
    client.bind(device, fd);
  });

  it("checks size, flags and the pair of GET and SET before it looks for the feature", () => {
    expect(feature(ENTRY | SET, undefined, 7)).toBe("EINVAL");
    expect(feature(0x8_0000 | PROBE | 0x7fff)).toBe("EINVAL");
    expect(feature(0x7fff | GET | SET)).toBe("EINVAL");
    for (const flags of [0, GET, SET, PROBE, PROBE | GET | SET])
      expect(feature(0x7fff | flags)).toBe("ENOTTY");
    for (const id of [0, 1, 2, 6, 7, 8, 9, 10, 12]) expect(feature(id | PROBE)).toBe("ENOTTY");
  });

  it("low power can be set: probed, entered once, left at any time", () => {
    for (const id of [ENTRY, WAKEUP, EXIT]) {
      expect(feature(id | PROBE)).toBe(0);
      expect(feature(id | PROBE | SET)).toBe(0);
      expect(feature(id | PROBE | GET)).toBe("EINVAL");
      expect(feature(id | GET)).toBe("EINVAL");
      expect(feature(id)).toBe("EINVAL");
    }
    expect(feature(EXIT | SET)).toBe(0);
    expect(feature(ENTRY | SET)).toBe(0);
    expect(feature(ENTRY | SET)).toBe("EINVAL");
    expect(feature(EXIT | SET)).toBe(0);
    expect(feature(ENTRY | SET)).toBe(0);
  });

  it("while it is allowed, mappings of regions answer nothing; pread does", () => {
    expect(load()).toBe("answers");
    feature(ENTRY | SET);
    expect(load()).toBe("EIO");
    expect(client.task.pread(device, 0n, new Uint8Array(4))).toBe(4);
    feature(EXIT | SET);
    expect(load()).toBe("answers");
  });

  it("with a wake-up takes an eventfd until it is left, or the device is closed", () => {
    const eventfd = client.task.eventfd();
    expect(feature(WAKEUP | SET)).toBe("EINVAL");
    expect(feature(WAKEUP | SET, wakeup(eventfd, 1))).toBe("EINVAL");
    expect(feature(WAKEUP | SET, wakeup(99))).toBe("EBADF");
    expect(feature(WAKEUP | SET, wakeup(eventfd))).toBe(0);
    expect(kernel.vfio.live().eventfds).toBe(1);
    expect(feature(WAKEUP | SET, wakeup(eventfd))).toBe("EINVAL");
    feature(EXIT | SET);
    expect(kernel.vfio.live().eventfds).toBe(0);
    feature(WAKEUP | SET, wakeup(eventfd));
  });
});

describe("an allocation that fails", () => {
  const allocations = new Allocations();
  const state = () => ({
    ...kernel.vfio.live(),
    ...kernel.iommufd.live(),
    domain: domain(),
    domains: host.driver.domains.size,
    owned: host.core.groups.get(0)!.owned,
    frames: host.memory.allocated,
  });
  /** What a program has before the call. */
  const setUp = () => {
    const task = new ModelTask(host.memory, { allocations });
    task.memory.map(VA, 8 * PAGE);
    const one = new CdevClient(task, kernel);
    const iommufd = one.iommu();
    const [left, right] = [one.ioas(iommufd), one.ioas(iommufd)];
    for (const ioas of [left, right]) one.mapAt(iommufd, ioas, 0, VA, 4 * PAGE);
    return { one, iommufd, left, right };
  };
  type Situation = ReturnType<typeof setUp>;
  const bound = ({ one, iommufd }: Situation): number => {
    const device = one.cdev();
    one.bind(device, iommufd);
    return device;
  };

  it.each<[string, (situation: Situation) => () => unknown]>([
    [
      "BIND_IOMMUFD",
      ({ one, iommufd }) => {
        const device = one.cdev();
        return () => one.bind(device, iommufd);
      },
    ],
    [
      "ATTACH_IOMMUFD_PT",
      (situation) => {
        const device = bound(situation);
        return () => situation.one.attachTo(device, situation.left);
      },
    ],
    [
      "a replacement",
      (situation) => {
        const device = bound(situation);
        situation.one.attachTo(device, situation.left);
        return () => situation.one.attachTo(device, situation.right);
      },
    ],
    [
      "SET_CONTAINER with an iommufd",
      ({ one, iommufd }) => {
        const group = one.group(0);
        return () => one.setContainer(group, iommufd);
      },
    ],
    [
      "GET_DEVICE_FD with an iommufd",
      ({ one, iommufd, left }) => {
        const group = one.group(0);
        one.compatIoas(iommufd, iommu.IOMMU_VFIO_IOAS_SET, left);
        one.setContainer(group, iommufd);
        return () => one.device(group, host.endpoint.name);
      },
    ],
  ])("in %s is ENOMEM and changes nothing", (_what, prepare) => {
    for (let nth = 1; nth < 200; nth += 1) {
      const situation = setUp();
      const { task } = situation.one;
      const work = prepare(situation);
      const before = state();
      allocations.arm(task, nth);
      const answer = outcome(work);
      const failed = allocations.remaining(task) === 0;
      allocations.arm(task, 0);
      if (failed) expect({ answer, ...state() }).toEqual({ answer: "ENOMEM", ...before });
      else expect(answer).toBeTypeOf("number");
      task.exit();
      if (failed) continue;
      expect(nth).toBeGreaterThan(1);
      return;
    }
    throw new Error("it never succeeds");
  });
});
