/** Containers and groups: the order in which they must be set up, who is refused, and when they go. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MapDriver, ModelHost, Recorder } from "../../test/support/model-host.ts";
import { outcome, reasonOf, VfioClient } from "../../test/support/vfio-client.ts";
import { ModelTask } from "../kernel/model-task.ts";
import {
  VFIO_DEVICE_GET_INFO,
  VFIO_DMA_MAP_FLAG_VADDR,
  VFIO_DMA_UNMAP_FLAG_VADDR,
  VFIO_GET_API_VERSION,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_MAP_DMA,
  VFIO_UPDATE_VADDR,
  VfioGroupStatus,
} from "../uapi/vfio.ts";
import { VfioSubsystem } from "./subsystem.ts";

const VA = 0x1_0000_0000;
const NONE = { containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 };

let host: ModelHost;
let vfio: VfioSubsystem;
let client: VfioClient;

const start = (options: ConstructorParameters<typeof ModelHost>[0] = {}): void => {
  host?.memory.close();
  host = new ModelHost(options);
  vfio = new VfioSubsystem(host);
  client = newClient();
};
const newClient = (): VfioClient => {
  const task = new ModelTask(host.memory);
  task.memory.map(VA, 16 * 4096);
  return new VfioClient(task, vfio);
};

beforeEach(() => start());
afterEach(() => {
  client.task.exit();
  expect(vfio.live()).toEqual(NONE);
});

describe("a container", () => {
  it("knows its version and the extensions of type 1 before anything is set up", () => {
    const container = client.container();
    expect(client.task.ioctl(container, VFIO_GET_API_VERSION)).toBe(0);
    const known = Array.from({ length: 16 }, (_, id) => client.extension(container, id));
    expect(known.map((value, id) => (value ? id : -1)).filter((id) => id >= 0)).toEqual([1, 3, 9, 10]);
    expect(client.task.ioctl(container, 0x3b65, 2n ** 63n)).toBe(0);
  });

  it("VFIO_DMA_CC_IOMMU is offered once every device behind it is coherent", () => {
    const { container } = client.attach(0);
    expect(client.extension(container, 4)).toBe(1);
    const incoherent = new ModelHost({ drivers: [incoherentDriver()] });
    const second = new VfioClient(new ModelTask(incoherent.memory), new VfioSubsystem(incoherent));
    expect(second.extension(second.attach(0).container, 4)).toBe(0);
    second.task.exit();
    incoherent.memory.close();
  });

  it("MAP_DMA before SET_IOMMU is EINVAL whatever the arguments, and the reason says what comes first", () => {
    const container = client.container();
    for (const argument of [0n, 1n, 2n ** 64n - 1n])
      expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_MAP_DMA, argument))).toBe("EINVAL");
    expect(reasonOf(() => client.task.ioctl(container, VFIO_IOMMU_MAP_DMA))).toContain("GROUP_SET_CONTAINER");
    client.setContainer(client.group(0), container);
    expect(outcome(() => client.map(container, { vaddr: VA, iova: 0, size: 4096 }))).toBe("EINVAL");
    expect(reasonOf(() => client.task.ioctl(container, VFIO_IOMMU_MAP_DMA))).toContain("SET_IOMMU");
  });

  it("SET_IOMMU needs a group, a type that is offered, and happens once", () => {
    const container = client.container();
    expect(outcome(() => client.setIommu(container, 1))).toBe("EINVAL");
    client.setContainer(client.group(0), container);
    for (const type of [0, 2, 4, 6, 7, 8, 99])
      expect(outcome(() => client.setIommu(container, type))).toBe("EINVAL");
    expect(client.setIommu(container, 1)).toBe(0);
    for (const type of [1, 3]) expect(outcome(() => client.setIommu(container, type))).toBe("EINVAL");
  });

  it("a request of another kind of file is ENOTTY once there is an IOMMU, EINVAL before", () => {
    const container = client.container();
    expect(outcome(() => client.task.ioctl(container, VFIO_DEVICE_GET_INFO))).toBe("EINVAL");
    client.setContainer(client.group(0), container);
    client.setIommu(container, 3);
    expect(outcome(() => client.task.ioctl(container, VFIO_DEVICE_GET_INFO))).toBe("ENOTTY");
  });

  it("GET_INFO: capabilities in the order migration, mappings left, IOVA ranges without the MSI window", () => {
    const { container } = client.attach(0);
    expect(client.info(container)).toEqual({
      pageSizes: 0x4020_1000n,
      available: 65535,
      ranges: [
        { start: 0n, end: 0xfedf_ffffn },
        { start: 0xfef0_0000n, end: 2n ** 48n - 1n },
      ],
      ids: [2, 3, 1],
    });
    client.map(container, { vaddr: VA, iova: 0, size: 4096 });
    expect(client.info(container).available).toBe(65534);
  });

  it("GET_INFO writes nothing beyond argsz and says how much it needs", () => {
    const { container } = client.attach(0);
    for (const argsz of [16, 20, 24, 119]) {
      const bytes = new Uint8Array(256).fill(0xa5);
      new DataView(bytes.buffer).setUint32(0, argsz, true);
      client.task.ioctl(container, VFIO_IOMMU_GET_INFO, bytes);
      expect(new DataView(bytes.buffer).getUint32(0, true)).toBe(24 + 32 + 16 + 48);
      expect(bytes.subarray(Math.min(argsz, 24)).every((byte) => byte === 0xa5)).toBe(true);
    }
    const short = new Uint8Array(15);
    short[0] = 15;
    expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_GET_INFO, short))).toBe("EINVAL");
    expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_GET_INFO, 8n))).toBe("EFAULT");
  });
});

const incoherentDriver = (): MapDriver => {
  const driver = new MapDriver("incoherent");
  driver.capabilities = { ...driver.capabilities, cacheCoherent: false };
  return driver;
};

describe("a group", () => {
  it("is open once at a time, whoever asks", () => {
    client.group(0);
    const other = newClient();
    expect(outcome(() => client.group(0))).toBe("EBUSY");
    expect(outcome(() => other.group(0))).toBe("EBUSY");
    expect(other.group(1)).toBeGreaterThan(0);
    other.task.exit();
  });

  it("stays busy while a device opened through it is open, and its container works on", () => {
    const { container, group } = client.attach(0);
    const device = client.device(group, host.endpoint.name);
    client.task.close(group);
    expect(outcome(() => client.group(0))).toBe("EBUSY");
    expect(reasonOf(() => client.group(0))).toContain("device");
    expect(client.map(container, { vaddr: VA, iova: 0, size: 4096 })).toBe(0);
    client.task.close(device);
    expect(vfio.live()).toMatchObject({ groups: 0, mappings: 0, containers: 1 });
    expect(outcome(() => client.map(container, { vaddr: VA, iova: 0, size: 4096 }))).toBe("EINVAL");
    expect(client.group(0)).toBeGreaterThan(0);
  });

  it("GET_STATUS: viable, and whether it has a container; argsz below 8 is EINVAL", () => {
    const group = client.group(0);
    expect(client.status(group)).toBe(1);
    client.setContainer(group, client.container());
    expect(client.status(group)).toBe(3);
    const short = VfioGroupStatus.bytes({ argsz: 4 });
    expect(outcome(() => client.task.ioctl(group, VFIO_GROUP_GET_STATUS, short))).toBe("EINVAL");
    expect(outcome(() => client.task.ioctl(group, VFIO_GROUP_GET_STATUS, 0n))).toBe("EFAULT");
  });

  it("SET_CONTAINER: EFAULT, then EBADF, then EINVAL for a group that has one or a file that is none", () => {
    const container = client.container();
    const group = client.group(0);
    const eventfd = client.task.eventfd();
    expect(outcome(() => client.task.ioctl(group, VFIO_GROUP_SET_CONTAINER, 0n))).toBe("EFAULT");
    for (const fd of [-1, 99]) expect(outcome(() => client.setContainer(group, fd))).toBe("EBADF");
    for (const fd of [group, eventfd]) expect(outcome(() => client.setContainer(group, fd))).toBe("EINVAL");
    client.setContainer(group, container);
    expect(outcome(() => client.setContainer(group, container))).toBe("EINVAL");
    expect(outcome(() => client.setContainer(group, 99))).toBe("EBADF");
  });

  it("UNSET_CONTAINER: EINVAL without one, EBUSY while a device is open; with the last group the IOMMU goes", () => {
    const { container, group } = client.attach(0);
    const device = client.device(group, host.endpoint.name);
    client.map(container, { vaddr: VA, iova: 0x1000, size: 4096 });
    expect(outcome(() => client.unsetContainer(group))).toBe("EBUSY");
    client.task.close(device);
    expect(client.unsetContainer(group)).toBe(0);
    expect(vfio.live().mappings).toBe(0);
    expect(host.driver.domains.size).toBe(0);
    expect(outcome(() => client.unsetContainer(group))).toBe("EINVAL");
    client.setContainer(group, container);
    expect(outcome(() => client.task.ioctl(container, VFIO_IOMMU_GET_INFO))).toBe("EINVAL");
    expect(client.setIommu(container, 1)).toBe(0);
  });

  it("is busy when its DMA has another owner, and joins nothing", () => {
    const owner = {};
    host.core.groups.get(0)!.claim(owner);
    const container = client.container();
    const group = client.group(0);
    expect(outcome(() => client.setContainer(group, container))).toBe("EBUSY");
    expect(client.status(group)).toBe(0);
    expect(outcome(() => client.setIommu(container, 1))).toBe("EINVAL");
    host.core.groups.get(0)!.release(owner);
    expect(client.status(group)).toBe(1);
    expect(client.setContainer(group, container)).toBe(0);
  });

  it("GET_DEVICE_FD: ENODEV for a name it does not have, then EINVAL without container or IOMMU", () => {
    const group = client.group(0);
    const { name } = host.endpoint;
    for (const wrong of ["", "0000:ff:1f.7", host.endpoints[1]!.name, `${name}x`])
      expect(outcome(() => client.device(group, wrong))).toBe("ENODEV");
    expect(reasonOf(() => client.device(group, "nothing"))).toContain(name);
    expect(reasonOf(() => client.device(group, name))).toContain("GROUP_SET_CONTAINER");
    const container = client.container();
    client.setContainer(group, container);
    expect(outcome(() => client.device(group, name))).toBe("EINVAL");
    expect(reasonOf(() => client.device(group, name))).toContain("SET_IOMMU");
    client.setIommu(container, 1);
    expect(client.device(group, name)).toBeGreaterThan(0);
    expect(client.device(group, name)).toBeGreaterThan(0);
  });

  it("GET_DEVICE_FD reads its name only to its end, across pages, and EFAULTs beyond memory", () => {
    const { group } = client.attach(0);
    const { memory } = client.task;
    const name = Buffer.from(`${host.endpoint.name}\0`);
    const lastByte = VA + 16 * 4096 - name.length;
    memory.poke(lastByte, name);
    const ask = (at: number) => client.task.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, BigInt(at));
    expect(ask(lastByte)).toBeGreaterThan(0);
    memory.poke(VA + 4096 - 3, name);
    expect(ask(VA + 4096 - 3)).toBeGreaterThan(0);
    memory.poke(lastByte, name.subarray(0, -1));
    memory.poke(VA + 16 * 4096 - 1, Buffer.from("x"));
    expect(outcome(() => ask(lastByte))).toBe("EFAULT");
    memory.poke(VA, new Uint8Array(300).fill(0x61));
    expect(outcome(() => ask(VA))).toBe("EINVAL");
  });

  it("an unknown request is ENOTTY", () => {
    const group = client.group(0);
    for (const request of [0x3b65, 0x3b6b, 0x3b71, 0x3b7f, 0, 0xffff_ffff])
      expect(outcome(() => client.task.ioctl(group, request))).toBe("ENOTTY");
  });

  it("without devices it cannot be opened", () => {
    start({ groups: [["01:00"], []] });
    expect(outcome(() => client.group(1))).toBe("ENODEV");
  });
});

describe("several groups in a container", () => {
  it("behind one unit share a page table; a group that joins later has all mappings", () => {
    const { container } = client.attach(0);
    client.map(container, { vaddr: VA, iova: 0x10_0000, size: 8192 });
    const second = client.group(1);
    client.setContainer(second, container);
    expect(host.driver.domains.size).toBe(1);
    const [a, b] = host.endpoints.map((endpoint) => host.driver.domainOf(endpoint));
    expect(a).toBe(b);
    client.unsetContainer(second);
    expect(host.driver.attached.get(host.endpoints[1]!)).toBe(host.driver.blocked);
    expect(a!.physical(0x10_0000)).toBe(client.task.memory.physical(VA));
  });

  it("behind two units have a table each with the same mappings, and ranges both can map", () => {
    start({ drivers: [new MapDriver("wide"), new MapDriver("narrow", { apertureEnd: 2 ** 39 })] });
    const { container } = client.attach(0);
    client.map(container, { vaddr: VA, iova: 0x10_0000, size: 8192 });
    const second = client.group(1);
    client.setContainer(second, container);
    for (const [index, driver] of host.drivers.entries()) {
      const domain = driver.domainOf(host.endpoints[index]!);
      expect(domain.physical(0x10_1000)).toBe(client.task.memory.physical(VA + 4096));
    }
    expect(client.info(container).ranges.at(-1)!.end).toBe(2n ** 39n - 1n);
    expect(outcome(() => client.map(container, { vaddr: VA, iova: 2 ** 39, size: 4096 }))).toBe("EINVAL");
    client.unsetContainer(second);
    expect(host.drivers[1]!.domains.size).toBe(0);
    expect(client.info(container).ranges.at(-1)!.end).toBe(2n ** 48n - 1n);
    expect(client.map(container, { vaddr: VA, iova: 2 ** 39, size: 4096 })).toBe(0);
  });

  it("a group that cannot have a mapping is refused and changes nothing", () => {
    start({ drivers: [new MapDriver("wide"), new MapDriver("narrow", { apertureEnd: 2 ** 39 })] });
    const { container } = client.attach(0);
    client.map(container, { vaddr: VA, iova: 2 ** 40, size: 4096 });
    const second = client.group(1);
    expect(outcome(() => client.setContainer(second, container))).toBe("EINVAL");
    expect(reasonOf(() => client.setContainer(second, container))).toContain("0x10000000000");
    expect(host.drivers[1]!.domains.size).toBe(0);
    expect(host.core.groups.get(1)!.owned).toBe(false);
    expect(client.info(container).ranges.at(-1)!.end).toBe(2n ** 48n - 1n);
  });

  it("nor is one whose reserved regions lie under a mapping, behind the same unit or another", () => {
    for (const drivers of [undefined, [new MapDriver("a"), new MapDriver("b")]]) {
      start(drivers ? { drivers } : {});
      const { container } = client.attach(0);
      client.map(container, { vaddr: VA, iova: 0x5000, size: 4096 });
      host.drivers.at(-1)!.regions.push({ start: 0x5000, length: 4096, kind: "direct" });
      const second = client.group(1);
      expect(outcome(() => client.setContainer(second, container))).toBe("EINVAL");
      expect(host.driver.attached.get(host.endpoints[1]!)).not.toBe(host.driver.domainOf(host.endpoint));
      client.task.exit();
      expect(vfio.live()).toEqual(NONE);
    }
  });

  it("no group joins while a mapping has no user address", () => {
    const { container } = client.attach(0);
    client.map(container, { vaddr: VA, iova: 0x10_0000, size: 8192 });
    client.map(container, { vaddr: VA, iova: 0x20_0000, size: 4096 });
    client.unmap(container, 0x20_0000, 4096, VFIO_DMA_UNMAP_FLAG_VADDR);
    const second = client.group(1);
    expect(outcome(() => client.setContainer(second, container))).toBe("EBUSY");
    expect(reasonOf(() => client.setContainer(second, container))).toContain("[0x200000, 0x201000)");
    expect(host.core.groups.get(1)!.owned).toBe(false);
    client.map(container, { flags: VFIO_DMA_MAP_FLAG_VADDR, vaddr: VA, iova: 0x20_0000, size: 4096 });
    expect(client.setContainer(second, container)).toBe(0);
  });

  it("a driver that refuses the new table while it is filled leaves nothing of it", () => {
    start({ drivers: [new MapDriver("a"), new MapDriver("b")] });
    const { container } = client.attach(0);
    client.map(container, { vaddr: VA, iova: 0x10_0000, size: 8192 });
    client.map(container, { vaddr: VA, iova: 0x20_0000, size: 8192 });
    const other = host.drivers[1]!;
    const allocate = other.allocatePaging.bind(other);
    other.allocatePaging = () => Object.assign(allocate(), { room: 3 });
    const second = client.group(1);
    expect(outcome(() => client.setContainer(second, container))).toBe("ENOMEM");
    expect(other.domains.size).toBe(0);
    expect(host.driver.domainOf(host.endpoint).pages.size).toBe(4);
  });

  it("with a device made by software, user addresses are not exchanged, and that is not offered", () => {
    const software = Object.assign(new MapDriver("software"), { software: true });
    start({ drivers: [new MapDriver("a"), software] });
    const { container } = client.attach(0);
    const size = 4096;
    client.map(container, { vaddr: VA, iova: 0x10_0000, size });
    const exchange = () => outcome(() => client.unmap(container, 0x10_0000, size, VFIO_DMA_UNMAP_FLAG_VADDR));
    const second = client.group(1);
    client.setContainer(second, container);
    expect([client.extension(container, VFIO_UPDATE_VADDR), exchange()]).toEqual([0, "EBUSY"]);
    client.unsetContainer(second);
    expect([client.extension(container, VFIO_UPDATE_VADDR), exchange()]).toEqual([1, size]);
  });

  it("SET_IOMMU that fails for one group leaves none attached", () => {
    start({ drivers: [new MapDriver("a"), new MapDriver("b")] });
    const container = client.container();
    for (const id of [0, 1]) client.setContainer(client.group(id), container);
    const attach = host.drivers[1]!.attach.bind(host.drivers[1]!);
    host.drivers[1]!.attach = (device, domain) => {
      if (domain.kind === "paging") throw Object.assign(new Error("no"), {});
      attach(device, domain);
    };
    expect(() => client.setIommu(container, 1)).toThrow("no");
    expect(host.drivers.map((driver) => driver.domains.size)).toEqual([0, 0]);
    expect(host.driver.attached.get(host.endpoint)).toBe(host.driver.blocked);
    host.drivers[1]!.attach = attach;
    expect(client.setIommu(container, 1)).toBe(0);
  });
});

it("opening, attaching, mapping and leaving are told to whoever listens", () => {
  const events = new Recorder();
  start({ events });
  const { container } = client.attach(0);
  client.map(container, { vaddr: VA, iova: 0, size: 4096 });
  client.task.exit();
  expect(events.seen.map(({ kind }) => kind)).toEqual([
    "open",
    "open",
    "attach",
    "map",
    "detach",
    "unmap",
    "close",
    "close",
  ]);
});
