/** The whole way on a real unit: VFIO maps through the VT-d driver, the function's DMA and interrupts pass the silicon. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CdevClient } from "../../test/support/cdev-client.ts";
import { ModelHost } from "../../test/support/model-host.ts";
import { outcome, VfioClient } from "../../test/support/vfio-client.ts";
import { silent } from "../base/events.ts";
import { VtdDriver } from "../drivers/vtd/driver.ts";
import { TranslateStatus } from "../hardware/unit.ts";
import { Register } from "../hardware/vtd/spec.ts";
import { VtdUnit } from "../hardware/vtd/unit.ts";
import { IommufdSubsystem } from "../iommufd/file.ts";
import { Allocations } from "../kernel/allocations.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { Header } from "../pci/spec.ts";
import { IOMMU_GET_HW_INFO, IOMMU_HW_INFO_FLAG_INPUT_TYPE, IommuHwInfo } from "../uapi/iommufd.ts";
import { IOMMU_HW_INFO_TYPE_INTEL_VTD, IommuHwInfoVtd } from "../uapi/vendor/vtd.ts";
import { regionOffset } from "./regions.ts";
import { VfioSubsystem } from "./subsystem.ts";

const VA = 0x1_0000_0000;
const PAGE = 4096;

let host: ModelHost;
let vfio: VfioSubsystem;
let iommufd: IommufdSubsystem;
let driver: VtdDriver;
let unit: VtdUnit;

beforeAll(() => {
  host = new ModelHost({
    power: (memory, msi) => {
      unit = new VtdUnit({
        name: "dmar0",
        memory,
        events: silent,
        interrupt: (address, data) =>
          memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer)),
        capabilities: { addressWidths: [39, 48], hostAddressWidth: 46 },
      });
      driver = new VtdDriver({
        name: "dmar0",
        unit,
        memory,
        msi,
        events: silent,
        firmware: { hostAddressWidth: 46, covers: () => true, reservedMemory: [] },
      });
      return { unit, driver };
    },
  });
  vfio = new VfioSubsystem(host);
  iommufd = new IommufdSubsystem(host);
});
afterAll(() => host.memory.close());

const open = () => {
  const task = new ModelTask(host.memory);
  task.memory.map(VA, 64 * PAGE, { private: true });
  const client = new VfioClient(task, vfio);
  const { container, group } = client.attach(0);
  const device = client.device(group, host.endpoint.name);
  task.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(7, 0));
  return { client, container, device };
};

it("DMA reaches the program's pages while they are mapped, and nothing before, after or beside", () => {
  const { client, container } = open();
  const data = Uint8Array.from({ length: 3 * PAGE }, (_, i) => i * 7);
  expect(host.endpoint.dmaWrite(0x10_0000, data)).toBe(TranslateStatus.fault);
  client.map(container, { vaddr: VA, iova: 0x10_0000, size: 4 * PAGE });
  expect(host.endpoint.dmaWrite(0x10_0100, data)).toBe(TranslateStatus.ok);
  const seen = new Uint8Array(data.length);
  client.task.memory.read(BigInt(VA + 0x100), seen);
  expect(Buffer.from(seen).equals(data)).toBe(true);
  expect(host.endpoint.dmaWrite(0x10_4000, data)).toBe(TranslateStatus.fault);
  client.map(container, { vaddr: VA, iova: 0x20_0000, size: PAGE, flags: 1 });
  expect(host.endpoint.dmaWrite(0x20_0000, data.subarray(0, 8))).toBe(TranslateStatus.fault);
  expect(host.endpoint.dmaRead(0x20_0000, seen.subarray(0, 8))).toBe(TranslateStatus.ok);
  client.unmapAll(container);
  for (const iova of [0x10_0000, 0x20_0000])
    expect(host.endpoint.dmaRead(iova, seen.subarray(0, 8))).toBe(TranslateStatus.fault);
  client.task.exit();
});

it("after the program's death its IOVAs fault and every table frame is returned", () => {
  const before = host.memory.allocated;
  const { client, container } = open();
  for (let i = 0; i < 32; i += 1)
    client.map(container, { vaddr: VA + i * PAGE, iova: i * 2 ** 30, size: PAGE });
  expect(host.endpoint.dmaRead(2 ** 30, new Uint8Array(4))).toBe(TranslateStatus.ok);
  client.task.exit();
  expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 });
  expect(host.memory.allocated).toBe(before);
  const { client: next } = open();
  expect(host.endpoint.dmaRead(2 ** 30, new Uint8Array(4))).toBe(TranslateStatus.fault);
  next.task.exit();
});

it("an MSI-X message passes the unit and ends in the eventfd", () => {
  const { client, device } = open();
  const eventfd = client.task.eventfd();
  client.trigger(device, 2, [eventfd]);
  host.endpoint.fire(0);
  expect(client.task.counter(eventfd).take()).toBe(1);
  client.task.exit();
});

it("IOVAs beyond the unit's tables, and the interrupt window, are refused", () => {
  const { client, container } = open();
  const [first] = client.info(container).ranges;
  expect(first!.end).toBe(0xfedf_ffffn);
  const last = client.info(container).ranges.at(-1)!.end;
  expect(outcome(() => client.map(container, { vaddr: VA, iova: last + 1n, size: PAGE }))).toBe("EINVAL");
  expect(outcome(() => client.map(container, { vaddr: VA, iova: last - 4095n, size: PAGE }))).toBe(0);
  client.task.exit();
});

describe("through a character device", () => {
  const openCdev = () => {
    const task = new ModelTask(host.memory);
    task.memory.map(VA, 64 * PAGE, { private: true });
    const client = new CdevClient(task, { vfio, iommufd });
    const fd = client.iommu();
    const device = client.cdev();
    const id = client.bind(device, fd);
    task.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(7, 0));
    return { client, fd, device, id };
  };
  const read = (iova: number) => {
    const into = new Uint8Array(4);
    return host.endpoint.dmaRead(iova, into) === TranslateStatus.ok ? into[0] : "fault";
  };

  it("DMA follows the page table that is attached: replaced, detached, attached again", () => {
    const { client, fd, device, id } = openCdev();
    const [one, two] = [client.ioas(fd), client.ioas(fd)];
    client.task.memory.write(BigInt(VA), Uint8Array.of(1));
    client.task.memory.write(BigInt(VA + PAGE), Uint8Array.of(2));
    client.mapAt(fd, one, 0x10_0000, VA, PAGE);
    client.mapAt(fd, two, 0x10_0000, VA + PAGE, PAGE);
    expect(read(0x10_0000)).toBe("fault");
    client.attachTo(device, one);
    expect(read(0x10_0000)).toBe(1);
    client.attachTo(device, client.hwpt(fd, id, two));
    expect(read(0x10_0000)).toBe(2);
    client.detachFrom(device);
    expect(read(0x10_0000)).toBe("fault");
    client.attachTo(device, one);
    expect(read(0x10_0000)).toBe(1);
    client.task.close(fd);
    expect(read(0x10_0000)).toBe(1);
    client.task.close(device);
    expect(read(0x10_0000)).toBe("fault");
    client.task.exit();
  });

  it("the unit in legacy mode has page tables of one kind: no nest parents, no dirty tracking, no PASIDs", () => {
    const { client, fd, device, id } = openCdev();
    const ioas = client.ioas(fd);
    for (const flags of [1, 2, 8]) expect(outcome(() => client.hwpt(fd, id, ioas, flags))).toBe("EOPNOTSUPP");
    expect(outcome(() => client.attachTo(device, ioas, 1))).toBe("EINVAL");
    client.task.exit();
  });

  it("GET_HW_INFO tells the unit's registers as they are", () => {
    const { client, fd, id } = openCdev();
    const ask = (data_len: number, type?: number) => {
      const bytes = IommuHwInfo.bytes({
        size: IommuHwInfo.size,
        flags: type === undefined ? 0 : IOMMU_HW_INFO_FLAG_INPUT_TYPE,
        dev_id: id,
        data_len,
        data_uptr: BigInt(VA),
        in_data_type: type ?? 0,
      });
      client.task.ioctl(fd, IOMMU_GET_HW_INFO, bytes);
      const data = new Uint8Array(IommuHwInfoVtd.size);
      client.task.memory.read(BigInt(VA), data);
      return { ...IommuHwInfo.read(bytes), info: IommuHwInfoVtd.read(data) };
    };
    const { CAP, ECAP } = Register;
    const answer = { flags: 1, cap_reg: unit.mmioRead(CAP, 8), ecap_reg: unit.mmioRead(ECAP, 8) };
    for (const type of [undefined, 0, IOMMU_HW_INFO_TYPE_INTEL_VTD])
      expect(ask(24, type)).toMatchObject({ data_len: 24, out_max_pasid_log2: 0, info: answer });
    expect(outcome(() => ask(24, 2))).toBe("EOPNOTSUPP");
    expect(ask(24).out_data_type).toBe(IOMMU_HW_INFO_TYPE_INTEL_VTD);
    client.task.exit();
  });
});

it("what iommufd allocates for a device fails in turn, and the unit has what it had", () => {
  const allocations = new Allocations();
  const task = new ModelTask(host.memory, { allocations });
  task.memory.map(VA, 64 * PAGE);
  const client = new CdevClient(task, { vfio, iommufd });
  const fd = client.iommu();
  const device = client.cdev();
  const state = () => ({
    ...iommufd.live(),
    domains: driver.domains,
    frames: host.memory.allocated,
    pinned: task.memory.pinnedPages,
  });
  /** The answer, after every allocation failed once; how many there are must be told. */
  const sweep = (least: number, call: () => number): number => {
    for (let nth = 1; ; nth += 1) {
      const before = state();
      allocations.arm(task, nth);
      const answer = outcome(call);
      const fired = allocations.remaining(task) === 0;
      allocations.arm(task, 0);
      if (!fired) {
        expect(nth - 1).toBeGreaterThanOrEqual(least);
        return Number(answer);
      }
      expect([answer, state()]).toEqual(["ENOMEM", before]);
    }
  };
  const ioas = client.ioas(fd);
  client.mapAt(fd, ioas, 0x10_0000, VA, 4 * PAGE);
  const id = sweep(2, () => client.bind(device, fd));
  // The table of the bus is made once and stays: from here on the unit's frames are those of domains.
  client.attachTo(device, ioas);
  client.detachFrom(device);
  sweep(8, () => client.attachTo(device, ioas));
  const hwpt = sweep(8, () => client.hwpt(fd, id, ioas));
  sweep(4, () => client.mapAt(fd, ioas, 2 ** 39 - 2 * PAGE, VA, 4 * PAGE));
  sweep(1, () => client.attachTo(device, hwpt));
  task.exit();
  expect([driver.domains, iommufd.live().objects, task.memory.pinnedPages]).toEqual([0, 0, 0]);
});
