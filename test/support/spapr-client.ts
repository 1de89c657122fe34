/** The calls a program makes on a sPAPR container, as methods; errors are LinuxErrors. For tests with a modelled task. */
import type { DmaWindow } from "../../src/iommu/driver.ts";
import * as uapi from "../../src/uapi/vfio.ts";
import { VfioClient } from "./vfio-client.ts";

export class SpaprClient extends VfioClient {
  /** What is answered within so many bytes. */
  windowInfo(container: number, argsz: number = uapi.VfioIommuSpaprTceInfo.size) {
    const bytes = new Uint8Array(Math.max(argsz, uapi.VfioIommuSpaprTceInfo.size));
    uapi.VfioIommuSpaprTceInfo.write(bytes, { argsz });
    this.task.ioctl(container, uapi.VFIO_IOMMU_SPAPR_TCE_GET_INFO, bytes);
    return uapi.VfioIommuSpaprTceInfo.read(bytes);
  }

  enable(container: number): number {
    return this.task.ioctl(container, uapi.VFIO_IOMMU_ENABLE);
  }

  disable(container: number): number {
    return this.task.ioctl(container, uapi.VFIO_IOMMU_DISABLE);
  }

  register(container: number, vaddr: bigint | number, size: bigint | number, flags = 0): number {
    return this.#block(container, uapi.VFIO_IOMMU_SPAPR_REGISTER_MEMORY, vaddr, size, flags);
  }

  unregister(container: number, vaddr: bigint | number, size: bigint | number, flags = 0): number {
    return this.#block(container, uapi.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, vaddr, size, flags);
  }

  /** Bus address of the new window. */
  createWindow(container: number, { length, pageLg2, levels }: Omit<DmaWindow, "start">, flags = 0): number {
    const layout = uapi.VfioIommuSpaprTceCreate;
    const wanted = { page_shift: pageLg2, window_size: BigInt(length), levels };
    const bytes = layout.bytes({ argsz: layout.size, flags, ...wanted });
    this.task.ioctl(container, uapi.VFIO_IOMMU_SPAPR_TCE_CREATE, bytes);
    return Number(layout.read(bytes).start_addr);
  }

  removeWindow(container: number, start: bigint | number, flags = 0): number {
    const layout = uapi.VfioIommuSpaprTceRemove;
    const bytes = layout.bytes({ argsz: layout.size, flags, start_addr: BigInt(start) });
    return this.task.ioctl(container, uapi.VFIO_IOMMU_SPAPR_TCE_REMOVE, bytes);
  }

  #block(
    container: number,
    request: number,
    vaddr: bigint | number,
    size: bigint | number,
    flags: number,
  ): number {
    const layout = uapi.VfioIommuSpaprRegisterMemory;
    const range = { vaddr: BigInt(vaddr), size: BigInt(size) };
    return this.task.ioctl(container, request, layout.bytes({ argsz: layout.size, flags, ...range }));
  }
}
