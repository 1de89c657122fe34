/**
 * A host with the mock IOMMU and its test command, and processes on it that make every request of /dev/iommu: what
 * sweeps over failing allocations and random programs are written with. A process has 64 pages of memory to map, and
 * pages for what requests point to.
 */
import { silent } from "../../src/base/events.ts";
import { MockDriver } from "../../src/drivers/mock/driver.ts";
import type { IommufdContext } from "../../src/iommufd/context.ts";
import { contextOf, IommufdSubsystem } from "../../src/iommufd/file.ts";
import { HwptPaging } from "../../src/iommufd/hwpt.ts";
import { Ioas } from "../../src/iommufd/ioas.ts";
import { Allocations } from "../../src/kernel/allocations.ts";
import { Capability } from "../../src/kernel/call.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import { testCommand } from "../../src/machine/mock/test-command.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import * as mock from "../../src/uapi/iommufd-mock.ts";
import type { Members, Struct, StructValue, StructWrite } from "../../src/uapi/struct.ts";
import { ModelHost } from "./model-host.ts";

export const USER = 0x10_0000;
export const USER_PAGES = 64;
/** Where data that requests point to is put, and answers come. */
export const DATA = 0x80_0000;
const DATA_BYTES = 0x1_0000;
const PAGE = 4096;

type TestArgument = StructWrite<typeof mock.IommuTestCmd.members>;

export class MockRig {
  readonly host = new ModelHost();
  readonly driver = new MockDriver(this.host.memory);
  readonly allocations = new Allocations();
  readonly iommufd = new IommufdSubsystem({
    memory: this.host.memory,
    scheduler: this.host.scheduler,
    extra: [testCommand(this.driver, silent)],
  });
  /** Those that live. */
  readonly processes = new Set<MockProcess>();
  /** Those that lived: what is accounted for them must go too. */
  readonly spawned = new Set<MockProcess>();
  readonly #framesAtRest = this.host.memory.allocated;

  spawn(): MockProcess {
    return new MockProcess(this);
  }

  /** Counts of what exists because of processes. */
  live(): { readonly [what: string]: number } {
    return {
      ...this.iommufd.live(),
      domains: this.driver.domains,
      viommus: this.driver.viommus,
      devices: this.driver.devices,
      frames: this.host.memory.allocated - this.#framesAtRest,
      waiting: this.host.scheduler.pending,
      accounted: [...this.spawned].reduce(
        (sum, { task }) => sum + task.memory.pinnedPages + task.memory.lockedPages,
        0,
      ),
    };
  }

  close(): void {
    this.host.memory.close();
  }
}

export class MockProcess {
  readonly rig: MockRig;
  readonly task: ModelTask;
  /** Its first /dev/iommu. */
  readonly fd: number;

  constructor(rig: MockRig) {
    this.rig = rig;
    this.task = new ModelTask(rig.host.memory, {
      uid: 0,
      capabilities: Object.values(Capability),
      allocations: rig.allocations,
    });
    this.task.memory.map(USER, USER_PAGES * PAGE);
    this.task.memory.map(DATA, DATA_BYTES);
    this.fd = this.task.open(rig.iommufd.node);
    rig.processes.add(this);
    rig.spawned.add(this);
  }

  get context(): IommufdContext {
    return contextOf(this.task.file(this.fd))!;
  }

  /** Dies, whatever it was doing. */
  exit(): void {
    this.rig.processes.delete(this);
    this.task.exit();
  }

  put(bytes: Uint8Array, at = DATA): bigint {
    this.task.memory.poke(at, bytes);
    return BigInt(at);
  }

  /** A request on the first file, or on another; the structure as it was answered. */
  call<F extends Members>(
    request: number,
    layout: Struct<F>,
    value: StructWrite<F>,
    fd = this.fd,
  ): StructValue<F> {
    const bytes = layout.bytes({ size: layout.size, ...value } as StructWrite<F>);
    this.task.ioctl(fd, request, bytes);
    return layout.read(bytes);
  }

  test(op: number, id: number, value: TestArgument = {}, fd = this.fd) {
    return this.call(mock.IOMMU_TEST_CMD, mock.IommuTestCmd, { op, id, ...value }, fd);
  }

  /** Any request with its value: that of the call. */
  raw(request: number, argument: bigint | Uint8Array): number {
    return this.task.ioctl(this.fd, request, argument);
  }

  // ---- what programs begin with ------------------------------------------------------------------------------------

  ioas(fd = this.fd): number {
    return this.call(uapi.IOMMU_IOAS_ALLOC, uapi.IommuIoasAlloc, {}, fd).out_ioas_id;
  }

  destroy(id: number, fd = this.fd): void {
    this.call(uapi.IOMMU_DESTROY, uapi.IommuDestroy, { id }, fd);
  }

  /** Maps `pages` from the process's page `from` on. */
  map(
    ioas: number,
    iova: number,
    pages: number,
    { from = 0, fixed = true, fd = this.fd, flags = 6 }: Partial<MapOptions> = {},
  ): bigint {
    return this.call(
      uapi.IOMMU_IOAS_MAP,
      uapi.IommuIoasMap,
      {
        flags: flags | (fixed ? 1 : 0),
        ioas_id: ioas,
        user_va: BigInt(USER + from * PAGE),
        length: BigInt(pages * PAGE),
        iova: BigInt(iova),
      },
      fd,
    ).iova;
  }

  /** The bytes that went. */
  unmap(ioas: number, iova: bigint, length: bigint): bigint {
    return this.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, { ioas_id: ioas, iova, length }).length;
  }

  /** A file of the process's own pages, as a memfd is. */
  memfd(pages = USER_PAGES): number {
    const { memory } = this.task;
    return this.task.backing({
      size: pages * PAGE,
      writable: true,
      pin: (offset, length, writable) => memory.pin(USER + offset, length, writable),
      close: () => {},
    });
  }

  /** A mock device on an IOAS or HWPT: its object, its number as a bound device, what it is attached to. */
  device(pt: number, flags = 0, fd = this.fd) {
    return this.test(
      mock.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS,
      pt,
      { mock_domain_flags: { dev_flags: flags } },
      fd,
    ).mock_domain_flags;
  }

  hwpt(dev: number, pt: number, value: Partial<HwptOptions> = {}, fd = this.fd): number {
    return this.call(uapi.IOMMU_HWPT_ALLOC, uapi.IommuHwptAlloc, { dev_id: dev, pt_id: pt, ...value }, fd)
      .out_hwpt_id;
  }

  /** On a nest parent or a vIOMMU. */
  nested(dev: number, pt: number, value: Partial<HwptOptions> = {}, fd = this.fd): number {
    const data_uptr = this.put(mock.IommuHwptSelftest.bytes({ iotlb: 7 }));
    const data_type = mock.IOMMU_HWPT_DATA_SELFTEST as number;
    return this.hwpt(dev, pt, { data_type, data_len: mock.IommuHwptSelftest.size, data_uptr, ...value }, fd);
  }

  faultQueue(fd = this.fd) {
    return this.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.IommuFaultAlloc, {}, fd);
  }

  viommu(dev: number, hwpt: number, fd = this.fd): number {
    return this.call(
      uapi.IOMMU_VIOMMU_ALLOC,
      uapi.IommuViommuAlloc,
      { type: mock.IOMMU_VIOMMU_TYPE_SELFTEST, dev_id: dev, hwpt_id: hwpt },
      fd,
    ).out_viommu_id;
  }

  vdevice(viommu: number, dev: number, virt_id: number, fd = this.fd): number {
    const value = { viommu_id: viommu, dev_id: dev, virt_id: BigInt(virt_id) };
    return this.call(uapi.IOMMU_VDEVICE_ALLOC, uapi.IommuVdeviceAlloc, value, fd).out_vdevice_id;
  }

  eventQueue(viommu: number, depth = 4, fd = this.fd) {
    const value = { viommu_id: viommu, type: mock.IOMMU_VEVENTQ_TYPE_SELFTEST, veventq_depth: depth };
    return this.call(uapi.IOMMU_VEVENTQ_ALLOC, uapi.IommuVeventqAlloc, value, fd);
  }

  access(ioas: number, flags: number = mock.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES, fd = this.fd): number {
    return this.test(mock.IOMMU_TEST_OP_CREATE_ACCESS, ioas, { create_access: { flags } }, fd).create_access
      .out_access_fd;
  }

  /** Everything that a failed call must leave as it was. */
  state(): unknown {
    const objects = [...this.context.objects].map((object) => {
      const { id, type, users } = object;
      if (object instanceof Ioas) {
        const { areas, space, alignment, domains } = object.pagetable;
        const mapped = [...areas].map(({ iova, length, protection, accesses, locks, leaving, pages }) => ({
          ...{ iova, length, protection, accesses, locks, leaving, pinned: pages.pinned },
          at: domains.map((domain) => domain.physical(Number(iova))),
        }));
        return { id, type, users, mapped, usable: space.usable, alignment, hwpts: object.hwpts.size };
      }
      return { id, type, users, ...(object instanceof HwptPaging && { tracking: object.tracking }) };
    });
    const { pinnedPages, lockedPages } = this.task.memory;
    return { objects, ...this.rig.live(), pinnedPages, lockedPages, fds: this.task.descriptors };
  }
}

interface MapOptions {
  readonly from: number;
  readonly fixed: boolean;
  readonly fd: number;
  readonly flags: number;
}

export type HwptOptions = StructWrite<typeof uapi.IommuHwptAlloc.members>;
