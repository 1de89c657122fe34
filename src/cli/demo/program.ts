/** A program inside this process that uses VFIO's legacy interface as a C program does: same calls, same structures. */
import { ModelTask } from "../../kernel/model-task.ts";
import type { Machine } from "../../machine/machine.ts";
import { Command, Header } from "../../pci/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import * as uapi from "../../uapi/vfio.ts";

export class Program {
  readonly task: ModelTask;
  readonly #machine: Machine;
  container = -1;
  group = -1;
  device = -1;

  constructor(machine: Machine) {
    this.#machine = machine;
    this.task = new ModelTask(machine.memory, { name: "demo" });
  }

  open(path: string): number {
    const node = this.#machine.nodes().find((candidate) => candidate.path === path);
    if (node === undefined) throw new LinuxError("ENOENT", `${path} is not there`);
    return this.task.open(node);
  }

  setContainer(): void {
    this.task.ioctl(
      this.group,
      uapi.VFIO_GROUP_SET_CONTAINER,
      new Uint8Array(Int32Array.of(this.container).buffer),
    );
  }

  setIommu(): void {
    this.task.ioctl(this.container, uapi.VFIO_SET_IOMMU, uapi.VFIO_TYPE1v2_IOMMU);
  }

  /** The device file, with bus mastering turned on as a driver does. */
  openDevice(name: string): void {
    const text = Buffer.alloc(64);
    text.write(name);
    this.device = this.task.ioctl(this.group, uapi.VFIO_GROUP_GET_DEVICE_FD, text);
    const command = new Uint8Array(Uint16Array.of(Command.MEMORY_SPACE | Command.BUS_MASTER).buffer);
    const config = this.regionOffset(uapi.VFIO_PCI_CONFIG_REGION_INDEX);
    this.task.pwrite(this.device, config + BigInt(Header.COMMAND), command);
  }

  regionOffset(index: number): bigint {
    const bytes = uapi.VfioRegionInfo.bytes({ argsz: uapi.VfioRegionInfo.size, index });
    this.task.ioctl(this.device, uapi.VFIO_DEVICE_GET_REGION_INFO, bytes);
    return uapi.VfioRegionInfo.read(bytes).offset;
  }

  map(va: number, iova: number, size: number, flags: number): void {
    const layout = uapi.VfioIommuType1DmaMap;
    const bytes = layout.bytes({
      argsz: layout.size,
      flags,
      vaddr: BigInt(va),
      iova: BigInt(iova),
      size: BigInt(size),
    });
    this.task.ioctl(this.container, uapi.VFIO_IOMMU_MAP_DMA, bytes);
  }

  /** The bytes that were unmapped. */
  unmap(iova: number, size: number): number {
    const layout = uapi.VfioIommuType1DmaUnmap;
    const bytes = layout.bytes({ argsz: layout.size, iova: BigInt(iova), size: BigInt(size) });
    this.task.ioctl(this.container, uapi.VFIO_IOMMU_UNMAP_DMA, bytes);
    return Number(layout.read(bytes).size);
  }

  /** The program's own memory. */
  write(va: number, text: string): void {
    this.task.memory.write(BigInt(va), Buffer.from(text));
  }
  read(va: number, length: number): string {
    const bytes = new Uint8Array(length);
    this.task.memory.read(BigInt(va), bytes);
    return Buffer.from(bytes).toString();
  }
}
