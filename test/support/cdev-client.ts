/** The calls a program makes on VFIO's character devices and on the iommufd behind them; errors are LinuxErrors. */
import type { IommufdSubsystem } from "../../src/iommufd/file.ts";
import type { ModelTask } from "../../src/kernel/model-task.ts";
import { LinuxError } from "../../src/uapi/errno.ts";
import * as iommu from "../../src/uapi/iommufd.ts";
import * as uapi from "../../src/uapi/vfio.ts";
import type { VfioSubsystem } from "../../src/vfio/subsystem.ts";
import { VfioClient } from "./vfio-client.ts";

/** Both halves of a machine's interface. */
export interface Kernel {
  readonly vfio: VfioSubsystem;
  readonly iommufd: IommufdSubsystem;
}

export class CdevClient extends VfioClient {
  readonly iommufd: IommufdSubsystem;

  constructor(task: ModelTask, { vfio, iommufd }: Kernel) {
    super(task, vfio);
    this.iommufd = iommufd;
  }

  /** Opens /dev/iommu. */
  iommu(): number {
    return this.task.open(this.iommufd.node);
  }

  /** Opens /dev/vfio/devices/vfioN. */
  cdev(index = 0): number {
    return this.open(`/dev/vfio/devices/vfio${index}`);
  }

  /** The device's id in the iommufd. */
  bind(device: number, fd: number, argsz: number = uapi.VfioDeviceBindIommufd.size): number {
    const bytes = uapi.VfioDeviceBindIommufd.bytes({ argsz, iommufd: fd });
    this.task.ioctl(device, uapi.VFIO_DEVICE_BIND_IOMMUFD, bytes);
    return uapi.VfioDeviceBindIommufd.read(bytes).out_devid;
  }

  /** The page table's id. */
  attachTo(device: number, id: number, pasid?: number): number {
    const layout = uapi.VfioDeviceAttachIommufdPt;
    const bytes = layout.bytes({
      argsz: pasid === undefined ? layout.fieldEnd("pt_id") : layout.size,
      flags: pasid === undefined ? 0 : uapi.VFIO_DEVICE_ATTACH_PASID,
      pt_id: id,
      pasid: pasid ?? 0,
    });
    this.task.ioctl(device, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, bytes);
    return layout.read(bytes).pt_id;
  }

  detachFrom(device: number, pasid?: number): number {
    const layout = uapi.VfioDeviceDetachIommufdPt;
    const bytes = layout.bytes({
      argsz: pasid === undefined ? layout.fieldEnd("flags") : layout.size,
      flags: pasid === undefined ? 0 : uapi.VFIO_DEVICE_DETACH_PASID,
      pasid: pasid ?? 0,
    });
    return this.task.ioctl(device, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, bytes);
  }

  ioas(fd: number): number {
    const bytes = iommu.IommuIoasAlloc.bytes({ size: iommu.IommuIoasAlloc.size });
    this.task.ioctl(fd, iommu.IOMMU_IOAS_ALLOC, bytes);
    return iommu.IommuIoasAlloc.read(bytes).out_ioas_id;
  }

  /** A page table of the device for the address space. */
  hwpt(fd: number, device: number, ioas: number, flags = 0): number {
    const layout = iommu.IommuHwptAlloc;
    const bytes = layout.bytes({ size: layout.size, flags, dev_id: device, pt_id: ioas });
    this.task.ioctl(fd, iommu.IOMMU_HWPT_ALLOC, bytes);
    return layout.read(bytes).out_hwpt_id;
  }

  mapAt(fd: number, ioas: number, iova: bigint | number, va: bigint | number, length: number): number {
    const layout = iommu.IommuIoasMap;
    const bytes = layout.bytes({
      size: layout.size,
      flags: iommu.IOMMU_IOAS_MAP_FIXED_IOVA | iommu.IOMMU_IOAS_MAP_READABLE | iommu.IOMMU_IOAS_MAP_WRITEABLE,
      ioas_id: ioas,
      user_va: BigInt(va),
      length: BigInt(length),
      iova: BigInt(iova),
    });
    return this.task.ioctl(fd, iommu.IOMMU_IOAS_MAP, bytes);
  }

  destroy(fd: number, id: number): number {
    const bytes = iommu.IommuDestroy.bytes({ size: iommu.IommuDestroy.size, id });
    return this.task.ioctl(fd, iommu.IOMMU_DESTROY, bytes);
  }

  /** What the address space may use. Asks twice, as programs do: for the number, then for the ranges. */
  ranges(fd: number, ioas: number): { readonly start: bigint; readonly last: bigint }[] {
    const layout = iommu.IommuIoasIovaRanges;
    const at = 0x7000_0000;
    this.task.memory.map(at, 4096);
    const ask = (room: number): number => {
      const bytes = layout.bytes({
        size: layout.size,
        ioas_id: ioas,
        num_iovas: room,
        allowed_iovas: BigInt(at),
      });
      try {
        this.task.ioctl(fd, iommu.IOMMU_IOAS_IOVA_RANGES, bytes);
      } catch (error) {
        if (!(error instanceof LinuxError && error.code === "EMSGSIZE")) throw error;
      }
      return layout.read(bytes).num_iovas;
    };
    const count = ask(0);
    ask(count);
    const bytes = new Uint8Array(count * iommu.IommuIovaRange.size);
    this.task.memory.read(BigInt(at), bytes);
    return Array.from({ length: count }, (_, index) =>
      iommu.IommuIovaRange.read(bytes.subarray(index * iommu.IommuIovaRange.size)),
    );
  }

  /** GET or CLEAR or SET of the address space that VFIO's requests use. */
  compatIoas(fd: number, op: number = iommu.IOMMU_VFIO_IOAS_GET, id = 0): number {
    const layout = iommu.IommuVfioIoas;
    const bytes = layout.bytes({ size: layout.size, op, ioas_id: id });
    this.task.ioctl(fd, iommu.IOMMU_VFIO_IOAS, bytes);
    return layout.read(bytes).ioas_id;
  }
}
