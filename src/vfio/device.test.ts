/** The device file: what it says about itself, its regions by every way, resets. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ModelHost, MSIX_TABLE } from "../../test/support/model-host.ts";
import { outcome, reasonOf, VfioClient } from "../../test/support/vfio-client.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { Command, Header } from "../pci/spec.ts";
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_PCI_HOT_RESET,
  VFIO_DEVICE_QUERY_GFX_PLANE,
  VFIO_DEVICE_RESET,
  VFIO_IOMMU_GET_INFO,
  VfioDeviceFeature,
  VfioDeviceInfo,
  VfioIrqInfo,
  VfioPciHotReset,
  VfioPciHotResetInfo,
  VfioRegionInfo,
} from "../uapi/vfio.ts";
import { regionOffset } from "./regions.ts";
import { VfioSubsystem } from "./subsystem.ts";

let host: ModelHost;
let vfio: VfioSubsystem;
let client: VfioClient;
let group: number;
let device: number;

const start = (options: ConstructorParameters<typeof ModelHost>[0] = {}): void => {
  host = new ModelHost(options);
  vfio = new VfioSubsystem(host);
  client = new VfioClient(new ModelTask(host.memory), vfio);
  group = client.attach(0).group;
  device = client.device(group, host.endpoint.name);
};
const pread = (region: number, at: number, length: number): unknown =>
  outcome(() => {
    const into = new Uint8Array(length);
    const count = client.task.pread(device, regionOffset(region) + BigInt(at), into);
    return Buffer.from(into.subarray(0, count)).toString("hex");
  });
const pwrite = (region: number, at: number, hex: string): unknown =>
  outcome(() => client.task.pwrite(device, regionOffset(region) + BigInt(at), Buffer.from(hex, "hex")));
const file = () => client.task.kernelFile(device);
const mmap = (region: number, at: number, length: number, flags = 1): unknown =>
  outcome(() =>
    client.task
      .run(device, (target, call) => {
        segments = target.mmap!(call, regionOffset(region) + BigInt(at), length, 3, flags);
        return 0;
      })
      .result(),
  );
let segments: unknown;

beforeEach(() => start());
afterEach(() => {
  client.task.exit();
  expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 });
  host.memory.close();
});

describe("information", () => {
  it("a PCI device that can be reset, with 9 regions and 5 interrupt indices", () => {
    expect(client.deviceInfo(device)).toMatchObject({ flags: 3, num_regions: 9, num_irqs: 5, cap_offset: 0 });
  });

  it("regions: BARs that may be mapped, an I/O BAR that may not, config space, nothing else", () => {
    const regions = Array.from({ length: 8 }, (_, index) => client.region(device, index));
    expect(regions.map(({ size }) => Number(size))).toEqual([0x1_0000, 0, 0, 0, 32, 256, 0, 4096]);
    expect(regions.map(({ flags }) => flags)).toEqual([15, 0, 0, 0, 3, 7, 0, 3]);
    expect(regions.map(({ offset }) => offset)).toEqual(regions.map((_, index) => BigInt(index) << 40n));
    expect(regions[0]!.capabilities).toEqual([3]);
    expect(regions[5]!.capabilities).toEqual([]);
  });

  it("without room for the capability only its size is told", () => {
    expect(client.region(device, 0, 32)).toMatchObject({ argsz: 40, cap_offset: 0, flags: 15 });
    expect(client.region(device, 0, 40)).toMatchObject({ argsz: 40, cap_offset: 32 });
  });

  it("a machine can forbid mapping: no MMAP flag, no capability, mmap is EINVAL", () => {
    Object.assign(host.endpoint.bars[0]!, { mappable: false });
    expect(client.region(device, 0)).toMatchObject({ flags: 3, cap_offset: 0 });
    expect(mmap(0, 0, 4096)).toBe("EINVAL");
  });

  it("interrupts: counts and flags as programs check them", () => {
    const irqs = Array.from({ length: 5 }, (_, index) => client.irqInfo(device, index));
    expect(irqs.map(({ count }) => count)).toEqual([1, 8, 8, 1, 1]);
    expect(irqs.map(({ flags }) => flags)).toEqual([7, 9, 1, 9, 9]);
  });

  it.each([
    ["GET_INFO with 15 bytes", VFIO_DEVICE_GET_INFO, VfioDeviceInfo.bytes({ argsz: 15 })],
    ["GET_REGION_INFO with 31", VFIO_DEVICE_GET_REGION_INFO, VfioRegionInfo.bytes({ argsz: 31 })],
    ["region 8, VGA", VFIO_DEVICE_GET_REGION_INFO, VfioRegionInfo.bytes({ argsz: 32, index: 8 })],
    ["region 9", VFIO_DEVICE_GET_REGION_INFO, VfioRegionInfo.bytes({ argsz: 32, index: 9 })],
    ["GET_IRQ_INFO with 15", VFIO_DEVICE_GET_IRQ_INFO, VfioIrqInfo.bytes({ argsz: 15 })],
    ["interrupt index 5", VFIO_DEVICE_GET_IRQ_INFO, VfioIrqInfo.bytes({ argsz: 16, index: 5 })],
  ])("%s is EINVAL", (_what, request, bytes) => {
    expect(outcome(() => client.task.ioctl(device, request, bytes))).toBe("EINVAL");
    expect(outcome(() => client.task.ioctl(device, request, 0n))).toBe("EFAULT");
  });

  it("requests of containers and of devices with an iommufd mean nothing here", () => {
    expect(outcome(() => client.task.ioctl(device, VFIO_DEVICE_BIND_IOMMUFD))).toBe("EINVAL");
    expect(outcome(() => client.task.ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT))).toBe("ENOTTY");
    expect(outcome(() => client.task.ioctl(device, VFIO_DEVICE_QUERY_GFX_PLANE))).toBe("ENOTTY");
    expect(outcome(() => client.task.ioctl(device, 0x3b64))).toBe("ENOTTY");
    // The number of the container's GET_INFO is the device's hot reset information.
    expect(VFIO_IOMMU_GET_INFO).toBe(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO);
  });

  it("features: argsz is checked, and none is supported", () => {
    const feature = (argsz: number, flags: number) =>
      outcome(() =>
        client.task.ioctl(device, VFIO_DEVICE_FEATURE, VfioDeviceFeature.bytes({ argsz, flags })),
      );
    expect(feature(7, 1)).toBe("EINVAL");
    expect(feature(8, 0x1_0000 | 1)).toBe("ENOTTY");
  });
});

describe("pread and pwrite", () => {
  it("reach the BAR in naturally aligned pieces of at most 8 bytes, at any place and length", () => {
    expect(pwrite(0, 0x101, "0102030405060708090a0b0c0d0e0f10")).toBe(16);
    expect(host.endpoint.widths).toEqual([1, 2, 4, 8, 1]);
    expect(pread(0, 0x101, 16)).toBe("0102030405060708090a0b0c0d0e0f10");
    expect(pwrite(4, 3, "aabb")).toBe(2);
    expect(pread(4, 3, 2)).toBe("aabb");
  });

  it("stop at the end of the region, and begin nowhere beyond it", () => {
    expect(pread(5, 250, 16)).toHaveLength(12);
    expect(pwrite(5, 255, "0102")).toBe(1);
    expect(pread(5, 256, 1)).toBe("EINVAL");
    expect(pread(1, 0, 4)).toBe("EINVAL");
    expect(pread(6, 0, 4)).toBe("EINVAL");
    expect(pread(8, 0, 4)).toBe("EINVAL");
    expect(pread(9, 0, 4)).toBe("EINVAL");
    expect(outcome(() => client.task.pread(device, 2n ** 63n, new Uint8Array(4)))).toBe("EINVAL");
    expect(pread(0, 0, 0)).toBe("");
    expect(pwrite(7, 0, "")).toBe(0);
  });

  it("config space takes whole accesses only, of any size and alignment", () => {
    expect(pread(7, 0, 4)).toBe("34127856");
    expect(pread(7, 1, 3)).toBe("127856");
    expect(pread(7, 4093, 3)).toHaveLength(6);
    expect(pread(7, 4094, 3)).toBe("EINVAL");
    expect(pwrite(7, 4096, "00")).toBe("EINVAL");
    expect(pread(7, 0, 4096)).toHaveLength(8192);
  });

  it("do not reach the MSI-X table: reads are all ones, writes are dropped", () => {
    host.endpoint.registers.fill(0x77, MSIX_TABLE - 8, MSIX_TABLE);
    expect(pread(0, MSIX_TABLE - 4, 8)).toBe("77777777ffffffff");
    expect(pwrite(0, MSIX_TABLE - 2, "00000000")).toBe(4);
    expect(pread(0, MSIX_TABLE - 4, 4)).toBe("77770000");
    const entry = new Uint8Array(16);
    host.endpoint.barRead(0, MSIX_TABLE, entry);
    expect(Buffer.from(entry).toString("hex")).toBe(`${"00".repeat(12)}01000000`);
    expect(pread(0, MSIX_TABLE + 8 * 16 - 2, 4)).toBe("ffff0000");
  });

  it("are EIO while the BAR is not decoded; the reason names the bit", () => {
    pwrite(7, Header.COMMAND, "0000");
    for (const region of [0, 4, 5]) {
      expect(pread(region, 0, 4)).toBe("EIO");
      expect(pwrite(region, 0, "00")).toBe("EIO");
    }
    expect(reasonOf(() => client.task.pread(device, 0n, new Uint8Array(4)))).toContain("memory (bit 1)");
    pwrite(7, Header.COMMAND, "0200");
    expect(pread(0, 0, 4)).toBe("00000000");
    expect(pread(4, 0, 4)).toBe("EIO");
  });
});

describe("mmap", () => {
  it("of a BAR is a trap for its whole length; loads and stores arrive with their width", () => {
    expect(mmap(0, 0x1000, 0x2000)).toBe(0);
    expect(segments).toEqual([{ kind: "trap", offset: 0, length: 0x2000 }]);
    file().trapWrite!(0x1004n, Uint8Array.of(1, 2, 3, 4));
    const into = new Uint8Array(8);
    file().trapRead!(0x1000n, into);
    expect([...into]).toEqual([0, 0, 0, 0, 1, 2, 3, 4]);
    expect(host.endpoint.widths).toEqual([4, 8]);
  });

  it("takes non-posted writes of 64 aligned bytes, and tells when the device wants one again", () => {
    const enqueue = (offset: bigint, bytes: number) =>
      file().trapEnqueue!(offset, new Uint8Array(bytes), client.task.memory);
    expect([enqueue(0x40n, 64), enqueue(regionOffset(5) + 64n, 64)]).toEqual([true, false]);
    expect([enqueue(0x48n, 64), enqueue(0x40n, 32), enqueue(0x1_0000n, 64)]).toEqual([false, false, false]);
    expect(host.endpoint.commands).toEqual(["64@0:64", "64@5:64"]);
    pwrite(7, Header.COMMAND, "0000");
    expect(outcome(() => enqueue(0n, 64))).toBe("EIO");
  });

  it("reaches the MSI-X table, as the capability says", () => {
    expect(mmap(0, MSIX_TABLE, 4096)).toBe(0);
    file().trapWrite!(BigInt(MSIX_TABLE + 8), Uint8Array.of(5, 0, 0, 0));
    const into = new Uint8Array(4);
    file().trapRead!(BigInt(MSIX_TABLE + 8), into);
    expect([...into]).toEqual([5, 0, 0, 0]);
  });

  it("a BAR of less than a page is mapped with the page it has for itself", () => {
    expect(mmap(5, 0, 4096)).toBe(0);
    file().trapWrite!(regionOffset(5) + 4n, Uint8Array.of(9));
    expect(host.endpoint.small[4]).toBe(9);
    const beyond = new Uint8Array(4);
    file().trapRead!(regionOffset(5) + 512n, beyond);
    expect([...beyond]).toEqual([255, 255, 255, 255]);
  });

  it.each([
    ["a private mapping", 0, 0, 4096, 2],
    ["beyond the end", 0, 0xf000, 0x2000, 1],
    ["an unaligned place", 0, 8, 4096, 1],
    ["no length", 0, 0, 0, 1],
    ["an I/O BAR", 4, 0, 4096, 1],
    ["a BAR that is not there", 1, 0, 4096, 1],
    ["config space", 7, 0, 4096, 1],
    ["no region", 9, 0, 4096, 1],
    ["beyond a small BAR's page", 5, 0, 8192, 1],
  ])("%s is EINVAL", (_what, region, at, length, flags) => {
    expect(mmap(region, at, length, flags)).toBe("EINVAL");
  });

  it("an access while the BAR is not decoded fails, so that the program gets SIGBUS", () => {
    pwrite(7, Header.COMMAND, "0000");
    expect(outcome(() => file().trapRead!(0n, new Uint8Array(4)))).toBe("EIO");
    expect(outcome(() => file().trapWrite!(0n, new Uint8Array(4)))).toBe("EIO");
    const closed = file();
    client.task.close(device);
    expect(outcome(() => closed.trapRead!(0n, new Uint8Array(4)))).toBe("EIO");
  });
});

describe("reset", () => {
  it("opening resets the function, with decoding on and bus mastering off; the last close does again", () => {
    const second = client.device(group, host.endpoint.name);
    expect(host.endpoint.resets).toBe(1);
    expect(host.endpoint.configRead(Header.COMMAND, 2)).toBe(Command.MEMORY_SPACE | Command.IO_SPACE);
    pwrite(7, Header.COMMAND, "0700");
    client.task.close(second);
    expect(host.endpoint.resets).toBe(1);
    client.task.close(device);
    expect(host.endpoint.resets).toBe(2);
    expect(host.endpoint.configRead(Header.COMMAND, 2) & Command.BUS_MASTER).toBe(0);
    device = client.device(group, host.endpoint.name);
  });

  it("VFIO_DEVICE_RESET clears the function and keeps what was set in config space", () => {
    pwrite(7, Header.COMMAND, "0700");
    pwrite(7, Header.CACHE_LINE_SIZE, "10");
    pwrite(0, 0, "ff");
    expect(client.task.ioctl(device, VFIO_DEVICE_RESET)).toBe(0);
    expect(host.endpoint.resets).toBe(2);
    expect(pread(0, 0, 1)).toBe("00");
    expect(pread(7, Header.COMMAND, 2)).toBe("0700");
    expect(pread(7, Header.CACHE_LINE_SIZE, 1)).toBe("10");
  });

  it("is EINVAL, and not in the flags, for a function without function-level reset", () => {
    const { endpoint } = host;
    const read = endpoint.configRead.bind(endpoint);
    endpoint.configRead = (offset, width) => {
      const value = read(offset, width);
      return width === 4 &&
        value === read(offset, 4) &&
        (value & (1 << 28)) !== 0 &&
        offset > 0x40 &&
        offset < 0x100
        ? (value & ~(1 << 28)) >>> 0
        : value;
    };
    expect(client.deviceInfo(device).flags).toBe(2);
    expect(outcome(() => client.task.ioctl(device, VFIO_DEVICE_RESET))).toBe("EINVAL");
  });
});

describe("hot reset", () => {
  const info = (room: number) => {
    const bytes = new Uint8Array(Math.max(room, 12));
    VfioPciHotResetInfo.write(bytes, { argsz: room });
    const answer = outcome(() => client.task.ioctl(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, bytes));
    return { answer, ...VfioPciHotResetInfo.read(bytes) };
  };
  const reset = (
    fds: readonly number[],
    { argsz = 12 + 4 * fds.length, flags = 0, count = fds.length } = {},
  ) =>
    outcome(() =>
      client.task.ioctl(
        device,
        VFIO_DEVICE_PCI_HOT_RESET,
        VfioPciHotReset.bytes({ argsz, flags, count, group_fds: [...fds] }),
      ),
    );

  beforeEach(() => {
    client.task.exit();
    host.memory.close();
    start({ groups: [["01:00"], ["01:01", "01:02"], ["02:00"]] });
  });

  it("tells the functions on the bus with their groups, or how many there are", () => {
    expect(info(11).answer).toBe("EINVAL");
    expect(info(12)).toMatchObject({ answer: "ENOSPC", count: 3 });
    expect(info(35)).toMatchObject({ answer: "ENOSPC", count: 3 });
    const { answer, flags, count, devices } = info(36);
    expect({ answer, flags, count }).toEqual({ answer: 0, flags: 0, count: 3 });
    expect(devices.map(({ group_id, segment, bus, devfn }) => [group_id, segment, bus, devfn])).toEqual([
      [0, 0, 1, 0],
      [1, 0, 1, 8],
      [1, 0, 1, 16],
    ]);
  });

  it("needs a group file for every group on the bus, and then resets all its functions", () => {
    const other = client.group(1);
    const unrelated = client.group(2);
    const resets = () => host.endpoints.map((endpoint) => endpoint.resets);
    expect(resets()).toEqual([1, 0, 0, 0]);
    expect(reset([group])).toBe("EINVAL");
    expect(reset([group, unrelated])).toBe("EINVAL");
    expect(reset([group, 99])).toBe("EBADF");
    expect(reset([group, device])).toBe("EINVAL");
    expect(reset([])).toBe("EINVAL");
    expect(reset([group, other], { flags: 1 })).toBe("EINVAL");
    expect(reset([group, other], { argsz: 16 })).toBe("EINVAL");
    expect(reset([group, other], { count: 4 })).toBe("EINVAL");
    expect(reset([group, other], { argsz: 11 })).toBe("EINVAL");
    expect(resets()).toEqual([1, 0, 0, 0]);
    expect(reset([group, other])).toBe(0);
    expect(resets()).toEqual([2, 1, 1, 0]);
  });
});
