/** The calls a program makes on VFIO's files, as methods; errors are LinuxErrors. For tests with a modelled task. */
import type { ModelTask } from "../../src/kernel/model-task.ts";
import { LinuxError } from "../../src/uapi/errno.ts";
import { findCapabilities } from "../../src/uapi/info-chain.ts";
import * as uapi from "../../src/uapi/vfio.ts";
import type { VfioSubsystem } from "../../src/vfio/subsystem.ts";

/** The errno a call fails with, or its value. */
export const outcome = (work: () => unknown): unknown => {
  try {
    return work();
  } catch (error) {
    if (error instanceof LinuxError) return error.code;
    throw error;
  }
};

export const reasonOf = (work: () => unknown): string => {
  try {
    work();
  } catch (error) {
    if (error instanceof LinuxError) return error.reason;
    throw error;
  }
  return "";
};

export interface MapArguments {
  readonly argsz?: number;
  readonly flags?: number;
  readonly vaddr: bigint | number;
  readonly iova: bigint | number;
  readonly size: bigint | number;
}

const s32 = (value: number): Uint8Array => new Uint8Array(new Int32Array([value]).buffer);

export class VfioClient {
  readonly task: ModelTask;
  readonly vfio: VfioSubsystem;

  constructor(task: ModelTask, vfio: VfioSubsystem) {
    this.task = task;
    this.vfio = vfio;
  }

  open(path: string): number {
    const node = this.vfio.node(path);
    if (!node) throw new LinuxError("ENOENT", path);
    return this.task.open(node);
  }

  container(): number {
    return this.open("/dev/vfio/vfio");
  }

  group(id: number): number {
    return this.open(`/dev/vfio/${id}`);
  }

  /** Container, group and IOMMU in the usual order. */
  attach(id: number, type: number = uapi.VFIO_TYPE1v2_IOMMU): { container: number; group: number } {
    const container = this.container();
    const group = this.group(id);
    this.setContainer(group, container);
    this.setIommu(container, type);
    return { container, group };
  }

  setContainer(group: number, container: number): number {
    return this.task.ioctl(group, uapi.VFIO_GROUP_SET_CONTAINER, s32(container));
  }

  unsetContainer(group: number): number {
    return this.task.ioctl(group, uapi.VFIO_GROUP_UNSET_CONTAINER);
  }

  setIommu(container: number, type: number): number {
    return this.task.ioctl(container, uapi.VFIO_SET_IOMMU, type);
  }

  extension(container: number, id: number): number {
    return this.task.ioctl(container, uapi.VFIO_CHECK_EXTENSION, id);
  }

  status(group: number): number {
    const bytes = uapi.VfioGroupStatus.bytes({ argsz: uapi.VfioGroupStatus.size });
    this.task.ioctl(group, uapi.VFIO_GROUP_GET_STATUS, bytes);
    return uapi.VfioGroupStatus.read(bytes).flags;
  }

  device(group: number, name: string): number {
    return this.task.ioctl(group, uapi.VFIO_GROUP_GET_DEVICE_FD, Buffer.from(`${name}\0`.padEnd(300, "\0")));
  }

  map(container: number, { flags = 3, vaddr, iova, size, argsz }: MapArguments): number {
    const layout = uapi.VfioIommuType1DmaMap;
    const bytes = layout.bytes({
      argsz: argsz ?? layout.size,
      flags,
      vaddr: BigInt(vaddr),
      iova: BigInt(iova),
      size: BigInt(size),
    });
    return this.task.ioctl(container, uapi.VFIO_IOMMU_MAP_DMA, bytes);
  }

  /** The bytes that were unmapped. */
  unmap(container: number, iova: bigint | number, size: bigint | number, flags = 0): number {
    const layout = uapi.VfioIommuType1DmaUnmap;
    const bytes = layout.bytes({ argsz: layout.size, flags, iova: BigInt(iova), size: BigInt(size) });
    this.task.ioctl(container, uapi.VFIO_IOMMU_UNMAP_DMA, bytes);
    return Number(layout.read(bytes).size);
  }

  unmapAll(container: number): number {
    return this.unmap(container, 0, 0, uapi.VFIO_DMA_UNMAP_FLAG_ALL);
  }

  info(container: number): {
    readonly pageSizes: bigint;
    readonly available: number;
    readonly ranges: readonly { readonly start: bigint; readonly end: bigint }[];
    readonly ids: readonly number[];
  } {
    const bytes = new Uint8Array(4096);
    new DataView(bytes.buffer).setUint32(0, bytes.length, true);
    this.task.ioctl(container, uapi.VFIO_IOMMU_GET_INFO, bytes);
    const { iova_pgsizes, cap_offset } = uapi.VfioIommuType1Info.read(bytes);
    const found = findCapabilities(bytes, cap_offset);
    const place = (id: number) => found.find((capability) => capability.id === id)?.at;
    const avail = place(uapi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
    const ranges = place(uapi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
    return {
      pageSizes: iova_pgsizes,
      available: avail === undefined ? -1 : uapi.VfioIommuType1InfoDmaAvail.read(bytes, avail).avail,
      ranges: ranges === undefined ? [] : uapi.VfioIommuType1InfoCapIovaRange.read(bytes, ranges).iova_ranges,
      ids: found.map(({ id }) => id),
    };
  }

  deviceInfo(device: number): {
    readonly flags: number;
    readonly num_regions: number;
    readonly num_irqs: number;
  } {
    const bytes = uapi.VfioDeviceInfo.bytes({ argsz: uapi.VfioDeviceInfo.size });
    this.task.ioctl(device, uapi.VFIO_DEVICE_GET_INFO, bytes);
    return uapi.VfioDeviceInfo.read(bytes);
  }

  region(device: number, index: number, argsz = 256) {
    const bytes = new Uint8Array(Math.max(argsz, uapi.VfioRegionInfo.size));
    uapi.VfioRegionInfo.write(bytes, { argsz, index });
    this.task.ioctl(device, uapi.VFIO_DEVICE_GET_REGION_INFO, bytes);
    const info = uapi.VfioRegionInfo.read(bytes);
    return { ...info, capabilities: findCapabilities(bytes, info.cap_offset).map(({ id }) => id) };
  }

  irqInfo(device: number, index: number): { readonly flags: number; readonly count: number } {
    const bytes = uapi.VfioIrqInfo.bytes({ argsz: uapi.VfioIrqInfo.size, index });
    this.task.ioctl(device, uapi.VFIO_DEVICE_GET_IRQ_INFO, bytes);
    return uapi.VfioIrqInfo.read(bytes);
  }

  /** SET_IRQS with raw flags; `data` are the bytes behind the structure. */
  setIrqs(
    device: number,
    request: {
      readonly index: number;
      readonly flags: number;
      readonly start?: number;
      readonly count?: number;
    },
    data: Uint8Array = new Uint8Array(0),
    argsz = 20 + data.length,
  ): number {
    const { index, flags, start = 0, count = 0 } = request;
    const bytes = uapi.VfioIrqSet.bytes({ argsz, flags, index, start, count, data: [...data] });
    return this.task.ioctl(device, uapi.VFIO_DEVICE_SET_IRQS, bytes);
  }

  /** Gives vectors from `start` on these eventfds (-1: none). */
  trigger(device: number, index: number, fds: readonly number[], start = 0): number {
    const flags = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER;
    const data = new Uint8Array(Int32Array.from(fds).buffer);
    return this.setIrqs(device, { index, flags, start, count: fds.length }, data);
  }

  disableIrqs(device: number, index: number): number {
    const flags = uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_TRIGGER;
    return this.setIrqs(device, { index, flags });
  }
}
