/** The pages that a virtual mock IOMMU offers to mmap: how long they and what they belong to live. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ModelHost } from "../../../test/support/model-host.ts";
import { silent } from "../../base/events.ts";
import { MockDriver } from "../../drivers/mock/driver.ts";
import { IommufdSubsystem } from "../../iommufd/file.ts";
import { ModelTask } from "../../kernel/model-task.ts";
import * as uapi from "../../uapi/iommufd.ts";
import * as mock from "../../uapi/iommufd-mock.ts";
import {
  IOMMU_HW_QUEUE_TYPE_SELFTEST,
  IOMMU_VIOMMU_TYPE_SELFTEST,
  IommuViommuSelftest,
} from "../../uapi/vendor/mock.ts";
import { testCommand } from "./test-command.ts";

const PAGE = 4096;
const AT = 0x10_0000;
const DATA = 0x20_0000;
const WHOLE = { protection: 3, flags: 1 };

let host: ModelHost;
let iommufd: IommufdSubsystem;
let task: ModelTask;
let fd: number;

beforeEach(() => {
  host = new ModelHost();
  const driver = new MockDriver(host.memory);
  iommufd = new IommufdSubsystem({
    memory: host.memory,
    scheduler: host.scheduler,
    extra: [testCommand(driver, silent)],
  });
  task = new ModelTask(host.memory, { uid: 0 });
  task.memory.map(DATA, PAGE);
  fd = task.open(iommufd.node);
});
afterEach(() => {
  task.exit();
  expect(iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
  expect(host.memory.allocated).toBe(0);
  host.memory.close();
});

/** A vIOMMU, and where its pages are offered. */
const viommu = (): { id: number; offset: bigint; ioas: number } => {
  const ioas = uapi.IommuIoasAlloc.bytes({ size: uapi.IommuIoasAlloc.size });
  task.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, ioas);
  const pt_id = uapi.IommuIoasAlloc.read(ioas).out_ioas_id;
  const { size } = mock.IommuTestCmd;
  const plug = mock.IommuTestCmd.bytes({ size, op: mock.IOMMU_TEST_OP_MOCK_DOMAIN, id: pt_id });
  task.ioctl(fd, mock.IOMMU_TEST_CMD, plug);
  const dev_id = mock.IommuTestCmd.read(plug).mock_domain.out_idev_id;
  const hwpt = uapi.IommuHwptAlloc.bytes({ size: uapi.IommuHwptAlloc.size, flags: 1, dev_id, pt_id });
  task.ioctl(fd, uapi.IOMMU_HWPT_ALLOC, hwpt);
  task.memory.poke(DATA, IommuViommuSelftest.bytes({ in_data: 0x55 }));
  const made = uapi.IommuViommuAlloc.bytes({
    size: uapi.IommuViommuAlloc.size,
    type: IOMMU_VIOMMU_TYPE_SELFTEST,
    dev_id,
    hwpt_id: uapi.IommuHwptAlloc.read(hwpt).out_hwpt_id,
    data_len: IommuViommuSelftest.size,
    data_uptr: BigInt(DATA),
  });
  task.ioctl(fd, uapi.IOMMU_VIOMMU_ALLOC, made);
  const answer = new Uint8Array(IommuViommuSelftest.size);
  task.memory.read(BigInt(DATA), answer);
  const { out_mmap_offset: offset } = IommuViommuSelftest.read(answer);
  return { id: uapi.IommuViommuAlloc.read(made).out_viommu_id, offset, ioas: pt_id };
};

const destroy = (id: number) =>
  task.ioctl(fd, uapi.IOMMU_DESTROY, uapi.IommuDestroy.bytes({ size: uapi.IommuDestroy.size, id }));
const map = (offset: bigint, va = AT) => task.mmap(fd, { va, length: 2 * PAGE }, { offset, ...WHOLE });

describe("the pages of a vIOMMU", () => {
  it("keep it: DESTROY is EBUSY until the last page of the last mapping is unmapped", () => {
    const { id, offset } = viommu();
    map(offset);
    map(offset, AT + 0x1_0000);
    task.memory.unmap(AT, 2 * PAGE);
    expect(() => destroy(id)).toThrow("EBUSY");
    task.memory.unmap(AT + 0x1_0000, PAGE);
    expect(() => destroy(id)).toThrow("EBUSY");
    task.memory.unmap(AT + 0x1_0000 + PAGE, PAGE);
    destroy(id);
    expect(() => map(offset)).toThrow("ENXIO");
  });

  it("keep the file and all its objects when its descriptor is closed", () => {
    const { offset } = viommu();
    map(offset);
    const { objects } = iommufd.live();
    task.close(fd);
    expect(iommufd.live()).toMatchObject({ files: 1, objects });
    const word = new Uint8Array(1);
    task.memory.read(BigInt(AT), word);
    expect(word[0]).toBe(0x55);
    task.memory.unmap(AT, 2 * PAGE);
    expect(iommufd.live()).toMatchObject({ files: 0, objects: 0 });
  });

  it("go with the process that maps them", () => {
    map(viommu().offset);
    task.exit();
    expect(iommufd.live()).toMatchObject({ files: 0, objects: 0 });
  });

  it("are not those of its queues, which lie in the guest's memory: a dma-buf is EINVAL", () => {
    const { id: viommu_id, ioas } = viommu();
    const { size } = mock.IommuTestCmd;
    const get = { size, op: mock.IOMMU_TEST_OP_DMABUF_GET, dmabuf_get: { length: PAGE, open_flags: 0 } };
    const buffer = task.ioctl(fd, mock.IOMMU_TEST_CMD, mock.IommuTestCmd.bytes(get));
    const mapped = { size: uapi.IommuIoasMapFile.size, flags: 7, ioas_id: ioas, fd: buffer };
    const where = { length: BigInt(PAGE), iova: 0x100_0000n };
    task.ioctl(fd, uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile.bytes({ ...mapped, ...where }));
    const queue = uapi.IommuHwQueueAlloc.bytes({
      size: uapi.IommuHwQueueAlloc.size,
      viommu_id,
      type: IOMMU_HW_QUEUE_TYPE_SELFTEST,
      nesting_parent_iova: where.iova,
      length: where.length,
    });
    expect(() => task.ioctl(fd, uapi.IOMMU_HW_QUEUE_ALLOC, queue)).toThrow("memory of a device");
  });

  it("cannot be pinned: EFAULT", () => {
    map(viommu().offset);
    expect(() => task.memory.pin(AT, PAGE, true)).toThrow("EFAULT");
  });
});
