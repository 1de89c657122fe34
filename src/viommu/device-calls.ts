/**
 * How a VMM reaches devices of its host, whichever interface gave them (`recorded-calls.ts`). Data that a request points to
 * lies in the VMM's own memory, as for any program.
 */
import type { ModelTask } from "../kernel/model-task.ts";
import * as vfio from "../uapi/vfio.ts";
import { DATA_BYTES, DATA_VA, type Record, RecordedCalls } from "./recorded-calls.ts";

/** SMMU_IDR0 to SMMU_IDR5, SMMU_IIDR and SMMU_AIDR. */
export interface ArmRegisters {
  readonly idr: readonly number[];
  readonly iidr: number;
  readonly aidr: number;
}

export interface DeviceInfo {
  /** Capability registers of a VT-d unit; undefined: it is another IOMMU. */
  readonly vtd: { readonly cap: bigint; readonly ecap: bigint } | undefined;
  /** Identification registers of an SMMUv3; undefined: it is another IOMMU. */
  readonly smmu: ArmRegisters | undefined;
  /** Feature registers of an AMD-Vi unit; undefined: it is another IOMMU. */
  readonly amd: { readonly efr: bigint; readonly efr2: bigint } | undefined;
  /** 0: none. */
  readonly pasidBits: number;
  /** The device asks for translations, and keeps them. */
  readonly ats: boolean;
}

/** A device that is a VMM's: the number by which the interface knows it, and what it can do. */
export interface TakenDevice {
  readonly id: number;
  readonly info: DeviceInfo;
}

export abstract class DeviceCalls extends RecordedCalls {
  constructor(task: ModelTask, record?: Record) {
    super(task, record);
    task.memory.map(DATA_VA, DATA_BYTES);
  }

  /** The device behind an open file is the VMM's from now on, as far as the interface asks for that. */
  abstract take(fd: number): TakenDevice;

  /** Where a region is in the device's file; VFIO_PCI_*_REGION_INDEX. */
  regionOffset(device: number, index: number): bigint {
    const layout = vfio.VfioRegionInfo;
    const bytes = layout.bytes({ argsz: layout.size, index });
    this.device(device, vfio.VFIO_DEVICE_GET_REGION_INFO, bytes);
    return layout.read(bytes).offset;
  }

  /** Interrupts of the device go to eventfds from now on, one for each vector; without any: to nobody. */
  setInterrupts(device: number, index: number, eventfds: readonly number[]): void {
    const layout = vfio.VfioIrqSet;
    const data = [...new Uint8Array(Int32Array.from(eventfds).buffer)];
    const kind = eventfds.length > 0 ? vfio.VFIO_IRQ_SET_DATA_EVENTFD : vfio.VFIO_IRQ_SET_DATA_NONE;
    const bytes = layout.bytes({
      argsz: layout.fieldEnd("count") + data.length,
      flags: kind | vfio.VFIO_IRQ_SET_ACTION_TRIGGER,
      index,
      start: 0,
      count: eventfds.length,
      data,
    });
    this.device(device, vfio.VFIO_DEVICE_SET_IRQS, bytes);
  }

  protected device(fd: number, request: number, bytes: Uint8Array): number {
    return this.call("vfio-device", fd, request, bytes);
  }
}
