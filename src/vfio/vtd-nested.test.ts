/**
 * A VMM's calls on a VT-d unit in scalable mode, encoded as a program makes them: guests' tables, their invalidations,
 * PASIDs on a live device, dirty tracking, and what is refused with which errno. DMA passes the silicon.
 */
import { afterEach, beforeEach, expect, it } from "vitest";
import { CdevClient } from "../../test/support/cdev-client.ts";
import { ModelHost } from "../../test/support/model-host.ts";
import { outcome } from "../../test/support/vfio-client.ts";
import { silent } from "../base/events.ts";
import { VtdDriver } from "../drivers/vtd/driver.ts";
import { TranslateStatus } from "../hardware/unit.ts";
import { VtdUnit } from "../hardware/vtd/unit.ts";
import { IommufdSubsystem } from "../iommufd/file.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { Header } from "../pci/spec.ts";
import * as uapi from "../uapi/iommufd.ts";
import type { Members, Struct, StructValue, StructWrite } from "../uapi/struct.ts";
import {
  IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
  IOMMU_HWPT_DATA_VTD_S1,
  IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
  IommuHwInfoVtd,
  IommuHwptVtdS1,
  IommuHwptVtdS1Invalidate,
} from "../uapi/vendor/vtd.ts";
import { regionOffset } from "./regions.ts";
import { VfioSubsystem } from "./subsystem.ts";

const PAGE = 4096;
const VA = 0x1_0000_0000;
/** Guest physical memory: 64 pages from 0 on. Tables of the guest lie at page 32 and above. */
const GUEST_PAGES = 64;
const TABLE = 32 * PAGE;
/** Where the VMM puts what it passes. */
const SCRATCH = 0x2_0000_0000;
const { IOMMU_HWPT_ALLOC_NEST_PARENT: NEST, IOMMU_HWPT_ALLOC_PASID: PASID } = uapi;
const { IOMMU_HWPT_ALLOC_DIRTY_TRACKING: DIRTY, IOMMU_HWPT_FAULT_ID_VALID: FAULTS } = uapi;

let host: ModelHost;
let client: CdevClient;
let fd: number;
let device: number;
let id: number;
let ioas: number;
let rest: number;

const call = <F extends Members>(
  number: number,
  layout: Struct<F>,
  members: StructWrite<F>,
): StructValue<F> => {
  const bytes = layout.bytes({ size: layout.size, ...members } as StructWrite<F>);
  client.task.ioctl(fd, number, bytes);
  return layout.read(bytes);
};
const put = (bytes: Uint8Array): bigint => {
  client.task.memory.write(BigInt(SCRATCH), bytes);
  return BigInt(SCRATCH);
};
/** A guest's table above the parent. */
const nest = (parent: number, members = {}, flags = 0, type = IOMMU_HWPT_DATA_VTD_S1): number => {
  const data = IommuHwptVtdS1.bytes({ addr_width: 48, pgtbl_addr: BigInt(TABLE), ...members });
  return call(uapi.IOMMU_HWPT_ALLOC, uapi.IommuHwptAlloc, {
    flags,
    dev_id: id,
    pt_id: parent,
    data_type: type,
    data_len: data.length,
    data_uptr: put(data),
  }).out_hwpt_id;
};
type Entry = Parameters<typeof IommuHwptVtdS1Invalidate.bytes>[0];
/** The errno, or 0, and how many entries were done. */
const invalidate = (hwpt: number, entries: readonly Entry[], type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1) => {
  const { size } = IommuHwptVtdS1Invalidate;
  const list = new Uint8Array(size * entries.length);
  entries.forEach((entry, index) => {
    list.set(IommuHwptVtdS1Invalidate.bytes(entry), index * size);
  });
  const bytes = uapi.IommuHwptInvalidate.bytes({
    size: uapi.IommuHwptInvalidate.size,
    hwpt_id: hwpt,
    data_uptr: put(list),
    data_type: type,
    entry_len: size,
    entry_num: entries.length,
  });
  const code = outcome(() => client.task.ioctl(fd, uapi.IOMMU_HWPT_INVALIDATE, bytes));
  return [code, uapi.IommuHwptInvalidate.read(bytes).entry_num];
};
/** The guest writes an entry of one of its tables: present, writable, user. */
const write = (at: number, target: number | undefined): void => {
  const entry = new Uint8Array(8);
  new DataView(entry.buffer).setBigUint64(0, target === undefined ? 0n : BigInt(target) | 7n, true);
  client.task.memory.write(BigInt(VA + at), entry);
};
/** The guest's tables for its first 2 MiB; page `index` leads to guest physical `target`. */
const makeTables = (): void => {
  for (const level of [0, 1, 2]) write(TABLE + level * PAGE, TABLE + (level + 1) * PAGE);
};
const map = (index: number, target: number | undefined): void => write(TABLE + 3 * PAGE + index * 8, target);
const read = (iova: number): number | "fault" => {
  const into = new Uint8Array(1);
  return host.endpoint.dmaRead(iova, into) === TranslateStatus.ok ? into[0]! : "fault";
};

beforeEach(() => {
  host = new ModelHost({
    power: (memory, msi) => {
      const unit = new VtdUnit({
        name: "dmar0",
        memory,
        events: silent,
        interrupt: (address, data) =>
          memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer)),
        capabilities: {
          addressWidths: [48],
          scalable: {
            firstStage: true,
            secondStage: true,
            nested: true,
            pasidBits: 16,
            ridPasid: true,
            secondStageAccessedDirty: true,
          },
        },
      });
      const firmware = { hostAddressWidth: 46, covers: () => true, reservedMemory: [] };
      return { unit, driver: new VtdDriver({ name: "dmar0", unit, memory, msi, events: silent, firmware }) };
    },
  });
  rest = host.memory.allocated;
  const kernel = { vfio: new VfioSubsystem(host), iommufd: new IommufdSubsystem(host) };
  const task = new ModelTask(host.memory);
  task.memory.map(VA, GUEST_PAGES * PAGE, { private: true });
  task.memory.map(SCRATCH, PAGE);
  for (let page = 0; page < 32; page++) task.memory.write(BigInt(VA + page * PAGE), Uint8Array.of(page + 1));
  client = new CdevClient(task, kernel);
  fd = client.iommu();
  device = client.cdev();
  id = client.bind(device, fd);
  task.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(7, 0));
  ioas = client.ioas(fd);
  client.mapAt(fd, ioas, 0, VA, GUEST_PAGES * PAGE);
});
afterEach(() => {
  client.task.exit();
  expect(read(0)).toBe("fault");
  expect(host.memory.allocated).toBe(rest);
  host.memory.close();
});

it("a guest's table above a nest parent: DMA, stale until it is invalidated, gone with the parent's mapping", () => {
  const parent = client.hwpt(fd, id, ioas, NEST);
  const guest = nest(parent);
  makeTables();
  map(5, 3 * PAGE);
  expect(client.attachTo(device, guest)).toBe(guest);
  expect(read(5 * PAGE)).toBe(4);
  expect(read(6 * PAGE)).toBe("fault");
  map(5, 9 * PAGE);
  expect(read(5 * PAGE)).toBe(4);
  expect(invalidate(guest, [{ addr: BigInt(5 * PAGE), npages: 1n, flags: 1 }])).toEqual([0, 1]);
  expect(read(5 * PAGE)).toBe(10);
  map(5, GUEST_PAGES * PAGE); // beyond the guest's memory
  expect(invalidate(guest, [{ addr: 0n, npages: 2n ** 64n - 1n }])).toEqual([0, 1]);
  expect(read(5 * PAGE)).toBe("fault");
  map(5, 9 * PAGE);
  expect(read(5 * PAGE)).toBe(10);
  call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, { ioas_id: ioas, iova: 0n, length: 2n ** 64n - 1n });
  expect(read(5 * PAGE)).toBe("fault");
});

it("invalidations stop at the entry that is wrong, and tell how many were done", () => {
  const guest = nest(client.hwpt(fd, id, ioas, NEST));
  const good = { addr: 0x1000n, npages: 1n };
  expect(invalidate(guest, [good, good, { ...good, flags: 2 }])).toEqual(["EOPNOTSUPP", 2]);
  expect(invalidate(guest, [good, { ...good, __reserved: 1 }, good])).toEqual(["EOPNOTSUPP", 1]);
  expect(invalidate(guest, [{ addr: 0x1001n, npages: 1n }])).toEqual(["EINVAL", 0]);
  expect(invalidate(guest, [good, { addr: 0x1000n, npages: 2n ** 64n - 1n }])).toEqual(["EINVAL", 1]);
  expect(invalidate(guest, [good], 1)).toEqual(["EINVAL", 0]);
  expect(invalidate(guest, [])).toEqual([0, 0]);
});

it("tables of the wrong kind are refused, each with its errno", () => {
  const parent = client.hwpt(fd, id, ioas, NEST);
  const plain = client.hwpt(fd, id, ioas);
  expect(outcome(() => nest(plain))).toBe("EINVAL");
  expect(outcome(() => nest(parent, {}, 0, 2))).toBe("EOPNOTSUPP");
  for (const flags of [NEST, DIRTY]) expect(outcome(() => nest(parent, {}, flags))).toBe("EOPNOTSUPP");
  expect(nest(parent, {}, PASID)).toBeGreaterThan(parent);
  expect(outcome(() => client.attachTo(device, nest(parent, { addr_width: 57 })))).toBe("EINVAL");
  expect(outcome(() => client.attachTo(device, nest(parent, { flags: 2n })))).toBe("EINVAL");
  expect(outcome(() => client.destroy(fd, parent))).toBe("EBUSY");
});

it("nothing is mapped for reading only into an address space with a nest parent", () => {
  client.hwpt(fd, id, ioas, NEST);
  const members = {
    flags: uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_READABLE,
    ioas_id: ioas,
    user_va: BigInt(SCRATCH),
    length: BigInt(PAGE),
    iova: 0x1000_0000n,
  };
  const mapRead = () => call(uapi.IOMMU_IOAS_MAP, uapi.IommuIoasMap, members);
  expect(outcome(mapRead)).toBe("EINVAL");
  expect(outcome(() => client.mapAt(fd, ioas, 0x1000_0000, SCRATCH, PAGE))).toBe(0);
});

it("PASIDs are attached, replaced and detached while the device works without one", () => {
  const plain = client.hwpt(fd, id, ioas, PASID);
  const parent = client.hwpt(fd, id, ioas, NEST | PASID);
  const guest = nest(parent, {}, PASID);
  makeTables();
  client.attachTo(device, plain);
  expect(outcome(() => client.attachTo(device, guest, 7))).toBe(guest);
  expect(outcome(() => client.attachTo(device, plain, 7))).toBe(plain);
  expect(outcome(() => client.attachTo(device, nest(parent), 8))).toBe("EINVAL");
  expect(outcome(() => client.attachTo(device, plain, 0x1_0000))).toBe("EINVAL");
  expect(read(0)).toBe(1);
  expect(outcome(() => client.detachFrom(device, 7))).toBe(0);
  expect(read(0)).toBe(1);
});

it("a page table that reports faults cannot be given to a device that asks for no pages", () => {
  const fault = call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.IommuFaultAlloc, {});
  const parent = client.hwpt(fd, id, ioas, NEST);
  const data = IommuHwptVtdS1.bytes({ addr_width: 48, pgtbl_addr: BigInt(TABLE) });
  const { out_hwpt_id } = call(uapi.IOMMU_HWPT_ALLOC, uapi.IommuHwptAlloc, {
    flags: FAULTS,
    dev_id: id,
    pt_id: parent,
    data_type: IOMMU_HWPT_DATA_VTD_S1,
    data_len: data.length,
    data_uptr: put(data),
    fault_id: fault.out_fault_id,
  });
  expect(outcome(() => client.attachTo(device, out_hwpt_id))).toBe("ENODEV");
  client.task.close(fault.out_fault_fd);
});

it("dirty tracking through a nest parent finds what the device wrote by a guest's table", () => {
  const parent = client.hwpt(fd, id, ioas, NEST | DIRTY);
  makeTables();
  map(5, 3 * PAGE);
  client.attachTo(device, nest(parent));
  call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.IommuHwptSetDirtyTracking, { hwpt_id: parent, flags: 1 });
  const dirty = (): bigint => {
    put(new Uint8Array(8));
    call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.IommuHwptGetDirtyBitmap, {
      hwpt_id: parent,
      iova: 0n,
      length: BigInt(32 * PAGE),
      page_size: BigInt(PAGE),
      data: BigInt(SCRATCH),
    });
    const bitmap = new Uint8Array(8);
    client.task.memory.read(BigInt(SCRATCH), bitmap);
    return new DataView(bitmap.buffer).getBigUint64(0, true);
  };
  expect(dirty()).toBe(0n);
  host.endpoint.dmaWrite(5 * PAGE, Uint8Array.of(99));
  expect(dirty()).toBe(1n << 3n);
  expect(dirty()).toBe(0n);
});

it("GET_HW_INFO tells the erratum, the registers, PASID bits and dirty tracking", () => {
  const info = call(uapi.IOMMU_GET_HW_INFO, uapi.IommuHwInfo, {
    dev_id: id,
    data_len: IommuHwInfoVtd.size,
    data_uptr: BigInt(SCRATCH),
  });
  expect(info).toMatchObject({ data_len: 24, out_data_type: 1, out_max_pasid_log2: 16 });
  expect(info.out_capabilities & BigInt(uapi.IOMMU_HW_CAP_DIRTY_TRACKING)).not.toBe(0n);
  const bytes = new Uint8Array(IommuHwInfoVtd.size);
  client.task.memory.read(BigInt(SCRATCH), bytes);
  const { flags, ecap_reg } = IommuHwInfoVtd.read(bytes);
  expect(flags).toBe(IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17);
  expect((ecap_reg >> 26n) & 1n).toBe(1n); // NEST
});
