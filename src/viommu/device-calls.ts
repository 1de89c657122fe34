/**
 * How a VMM reaches devices of its host, whichever interface gave them: requests as encoded bytes, each told to whoever
 * records them. Data that a request points to lies in the VMM's own memory, as for any program. Errors are the
 * `LinuxError`s of the calls.
 */
import type { ModelTask } from "../kernel/model-task.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type RequestKind, requestName } from "../uapi/requests.ts";
import * as vfio from "../uapi/vfio.ts";

/** One call that was made: its argument before and after, and the data it pointed to. */
export interface RecordedCall {
  readonly kind: RequestKind;
  readonly name: string;
  readonly request: number;
  readonly given: Uint8Array;
  readonly data: Uint8Array | undefined;
  readonly answered: Uint8Array;
  /** Name of the errno when it failed. */
  readonly error: string | undefined;
}
export type Record = (call: RecordedCall) => void;

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

/** Where data is put, in the VMM's memory. */
export const DATA_VA = 0x7ffe_0000_0000;
export const DATA_BYTES = 64 * 1024;

export abstract class DeviceCalls {
  readonly task: ModelTask;
  readonly #record: Record;

  constructor(task: ModelTask, record: Record = () => {}) {
    this.task = task;
    this.#record = record;
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

  /** The call's value; `bytes` has what came back. */
  protected call(
    kind: RequestKind,
    fd: number,
    request: number,
    argument: Uint8Array | number,
    data?: Uint8Array,
  ): number {
    const bytes = argument instanceof Uint8Array ? argument : new Uint8Array();
    const given = bytes.slice();
    if (data) this.task.memory.write(BigInt(DATA_VA), data);
    let error: string | undefined;
    try {
      return this.task.ioctl(fd, request, argument);
    } catch (thrown) {
      if (thrown instanceof LinuxError) error = thrown.code;
      throw thrown;
    } finally {
      this.#record({ kind, name: requestName(kind, request), request, given, data, answered: bytes, error });
    }
  }
}
