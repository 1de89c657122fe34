/** A process with a /dev/iommu file and mock devices, for tests of what iommufd does with the mock driver's features. */
import { expect } from "vitest";
import { silent } from "../../src/base/events.ts";
import { MockDriver } from "../../src/drivers/mock/driver.ts";
import type { IommufdContext } from "../../src/iommufd/context.ts";
import { contextOf, IommufdSubsystem } from "../../src/iommufd/file.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import { MockBus, MockDeviceObject } from "../../src/machine/mock/mock-device.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import type { Members, Struct, StructValue, StructWrite } from "../../src/uapi/struct.ts";
import { IOMMU_VEVENTQ_TYPE_SELFTEST, IOMMU_VIOMMU_TYPE_SELFTEST } from "../../src/uapi/vendor/mock.ts";
import { ModelHost } from "./model-host.ts";

/** Where it has memory: 16 pages. */
export const USER = 0x10_0000;
export const USER_PAGES = 16;
/** Where a domain of the mock IOMMU begins. */
export const APERTURE = 0x100_0000n;

export class MockClient {
  readonly host = new ModelHost();
  readonly driver = new MockDriver(this.host.memory);
  readonly iommufd = new IommufdSubsystem(this.host);
  readonly task = new ModelTask(this.host.memory, { uid: 5 });
  readonly fd: number;
  readonly context: IommufdContext;
  readonly #bus = new MockBus(this.driver, silent);

  constructor() {
    this.task.memory.map(USER, USER_PAGES * 4096);
    this.fd = this.task.open(this.iommufd.node);
    this.context = contextOf(this.task.file(this.fd))!;
  }

  /** The structure as it was answered. */
  call<F extends Members>(number: number, layout: Struct<F>, members: StructWrite<F>): StructValue<F> {
    const bytes = layout.bytes({ size: layout.size, ...members } as StructWrite<F>);
    this.task.ioctl(this.fd, number, bytes);
    return layout.read(bytes);
  }

  ioas(): number {
    return this.call(uapi.IOMMU_IOAS_ALLOC, uapi.IommuIoasAlloc, {}).out_ioas_id;
  }

  map(ioas: number, iova: bigint, length = 0x4000n, va = BigInt(USER)): void {
    this.call(uapi.IOMMU_IOAS_MAP, uapi.IommuIoasMap, { flags: 7, ioas_id: ioas, user_va: va, length, iova });
  }

  unmap(ioas: number, iova: bigint, length: bigint): bigint {
    return this.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, { ioas_id: ioas, iova, length }).length;
  }

  destroy(id: number): void {
    this.call(uapi.IOMMU_DESTROY, uapi.IommuDestroy, { id });
  }

  /** A new mock device, bound and attached to nothing. */
  plug(): MockDeviceObject {
    const device = this.#bus.plug({ noDirty: false, hasPasids: false });
    const object = this.context.add(new MockDeviceObject(this.#bus, device));
    object.bind(this.context);
    return object;
  }

  hwpt(device: MockDeviceObject, ptId: number, flags = 0): number {
    const members = { flags, dev_id: device.bound.id, pt_id: ptId };
    return this.call(uapi.IOMMU_HWPT_ALLOC, uapi.IommuHwptAlloc, members).out_hwpt_id;
  }

  nestParent(device: MockDeviceObject, ioas: number): number {
    return this.hwpt(device, ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
  }

  viommu(device: MockDeviceObject, hwpt: number): number {
    const members = { type: IOMMU_VIOMMU_TYPE_SELFTEST as number, dev_id: device.bound.id, hwpt_id: hwpt };
    return this.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.IommuViommuAlloc, members).out_viommu_id;
  }

  vdevice(viommu: number, device: MockDeviceObject, number: bigint): number {
    const members = { viommu_id: viommu, dev_id: device.bound.id, virt_id: number };
    return this.call(uapi.IOMMU_VDEVICE_ALLOC, uapi.IommuVdeviceAlloc, members).out_vdevice_id;
  }

  /** Number of the queue, and its file. */
  eventQueue(viommu: number, depth: number): { readonly id: number; readonly fd: number } {
    const type = IOMMU_VEVENTQ_TYPE_SELFTEST as number;
    const members = { viommu_id: viommu, type, veventq_depth: depth };
    const { out_veventq_id: id, out_veventq_fd: fd } = this.call(
      uapi.IOMMU_VEVENTQ_ALLOC,
      uapi.IommuVeventqAlloc,
      members,
    );
    return { id, fd };
  }

  /** The process dies; nothing may be left. */
  close(): void {
    this.task.exit();
    this.host.scheduler.run();
    expect(this.iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
    expect([this.driver.domains, this.driver.viommus, this.driver.devices]).toEqual([0, 0, 0]);
    expect(this.host.memory.allocated).toBe(0);
    this.host.memory.close();
  }
}
