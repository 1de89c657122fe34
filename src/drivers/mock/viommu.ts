/**
 * A virtual mock IOMMU: knows devices by a guest's numbers, keeps nothing but their cache slots coherent, has two
 * queues that must be made in order, and two pages of registers of which the first word holds what its maker gave.
 */
import type {
  HardwareQueue,
  InvalidationOutcome,
  NestedOptions,
  Requester,
  UserArray,
  UserData,
  VirtualIommu,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_HW_QUEUE_TYPE_SELFTEST,
  IOMMU_TEST_HW_QUEUE_MAX,
  IOMMU_TEST_INVALIDATE_FLAG_ALL,
  IOMMU_VEVENTQ_TYPE_SELFTEST,
  IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
  IommuViommuEventSelftest,
  IommuViommuInvalidateSelftest,
  IommuViommuSelftest,
  MOCK_DEV_CACHE_ID_MAX,
} from "../../uapi/vendor/mock.ts";
import type { MockDevice } from "./device.ts";
import { each, type MockDomain, type MockNestedDomain, requireInvalidateFlags } from "./domain.ts";

const WINDOW_FRAMES = 2;
const FRAME = 4096;

export interface MockViommuHost {
  readonly memory: HostMemory;
  device(requester: Requester): MockDevice;
  nested(parent: MockDomain, data: UserData, options: NestedOptions, viommu: MockViommu): MockNestedDomain;
  share(pa: number, length: number): bigint;
  forget(viommu: MockViommu): void;
}

export class MockViommu implements VirtualIommu {
  readonly parent: MockDomain;
  readonly eventTypes = [IOMMU_VEVENTQ_TYPE_SELFTEST];
  readonly queueTypes = [IOMMU_HW_QUEUE_TYPE_SELFTEST];
  readonly queuesArePhysical = true;
  onEvent: ((type: number, data: Uint8Array) => boolean) | undefined;
  readonly #host: MockViommuHost;
  readonly #devices = new Map<bigint, MockDevice>();
  /** Physical address of its pages. */
  readonly #window: number;
  readonly #queues: (HardwareQueue | undefined)[] = [];

  /** Throws EINVAL and EFAULT for its data, ENOMEM. */
  constructor(parent: MockDomain, data: UserData, host: MockViommuHost) {
    this.parent = parent;
    this.#host = host;
    const { memory } = host;
    const given = data.length > 0 ? IommuViommuSelftest.read(data.read(IommuViommuSelftest.size)) : undefined;
    this.#window = memory.allocate(WINDOW_FRAMES);
    if (this.#window < 0) throw new LinuxError("ENOMEM", "no host memory for the pages of a mock vIOMMU");
    try {
      if (given) this.#answer(given.in_data, data);
    } catch (error) {
      memory.free(this.#window, WINDOW_FRAMES);
      throw error;
    }
    parent.users += 1;
  }

  /** The number the guest has given the device. */
  virtualIdOf(device: MockDevice): bigint | undefined {
    for (const [id, known] of this.#devices) if (known === device) return id;
    return undefined;
  }

  allocateNested(_device: Requester, data: UserData, options: NestedOptions): MockNestedDomain {
    return this.#host.nested(this.parent, data, options, this);
  }

  invalidate(requests: UserArray): InvalidationOutcome {
    if (requests.type !== IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST)
      return {
        done: 0,
        error: new LinuxError("EINVAL", `data type 0x${requests.type.toString(16)} is unknown here`),
      };
    return each(requests, (index) => this.#invalidateOne(requests, index));
  }

  addDevice(device: Requester, virtualId: bigint): void {
    allocate("a guest's number of a device");
    this.#devices.set(virtualId, this.#host.device(device));
  }
  removeDevice(_device: Requester, virtualId: bigint): void {
    this.#devices.delete(virtualId);
  }

  /** Reports an event of the device with this number. Throws EOPNOTSUPP when nobody listens. */
  report(virtualId: bigint): void {
    const event = IommuViommuEventSelftest.bytes({ virt_id: Number(virtualId & 0xffff_ffffn) });
    if (!this.onEvent?.(IOMMU_VEVENTQ_TYPE_SELFTEST, event))
      throw new LinuxError("EOPNOTSUPP", "nobody listens to events of the vIOMMU");
  }

  allocateQueue({ index }: { readonly index: number }): HardwareQueue {
    if (index >= IOMMU_TEST_HW_QUEUE_MAX)
      throw new LinuxError("EINVAL", `index ${index}: there are ${IOMMU_TEST_HW_QUEUE_MAX} queues`);
    if (this.#queues[index]) throw new LinuxError("EEXIST", `queue ${index} exists already`);
    if (index > 0 && !this.#queues[index - 1])
      throw new LinuxError("EIO", `queue ${index - 1} must be made before queue ${index}`);
    allocate("a queue of a mock vIOMMU");
    const queue = {
      free: () => {
        this.#queues[0] = undefined;
      },
    };
    this.#queues[index] = queue;
    return queue;
  }

  free(): void {
    this.onEvent = undefined;
    this.parent.users -= 1;
    this.#host.memory.free(this.#window, WINDOW_FRAMES);
    this.#host.forget(this);
  }

  #answer(in_data: number, data: UserData): void {
    const length = WINDOW_FRAMES * FRAME;
    const out_mmap_offset = this.#host.share(this.#window, length);
    this.#host.memory.store32(this.#window, in_data);
    data.write(
      IommuViommuSelftest.bytes({
        in_data,
        out_data: in_data,
        out_mmap_offset,
        out_mmap_length: BigInt(length),
      }),
    );
  }

  #invalidateOne(requests: UserArray, index: number): void {
    const { size } = IommuViommuInvalidateSelftest;
    const least = IommuViommuInvalidateSelftest.fieldEnd("vdev_id");
    const { flags, vdev_id, cache_id } = IommuViommuInvalidateSelftest.read(
      requests.read(index, size, least),
    );
    requireInvalidateFlags(flags);
    if (cache_id > MOCK_DEV_CACHE_ID_MAX)
      throw new LinuxError("EINVAL", `cache_id ${cache_id} is above ${MOCK_DEV_CACHE_ID_MAX}`);
    const device = this.#devices.get(BigInt(vdev_id));
    if (!device) throw new LinuxError("EINVAL", `the guest has no device ${vdev_id} on this vIOMMU`);
    if (flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) device.cache.fill(0);
    else device.cache[cache_id] = 0;
  }
}
