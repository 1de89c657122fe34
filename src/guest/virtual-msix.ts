/**
 * MSI-X of a device of the host in a guest (PCIe §7.7.2): the guest writes a table that the VMM keeps, and the device's own
 * vectors end in eventfds of the VMM (VFIO_DEVICE_SET_IRQS), which then sends the guest's message. It is set up on the host
 * while the guest has it enabled.
 */
import type { Scheduler } from "../base/scheduler.ts";
import type { SendMessage } from "../hardware/unit.ts";
import type { MsixPlace } from "../pci/capabilities.ts";
import { type Configured, findCapability } from "../pci/capability-list.ts";
import { Msix } from "../pci/msix.ts";
import { CapabilityId, MsixCapability, MsixControl, MsixLocation } from "../pci/spec.ts";
import { VFIO_PCI_MSIX_IRQ_INDEX } from "../uapi/vfio.ts";
import type { DeviceCalls } from "../viommu/device-calls.ts";
import { whenCounted } from "../viommu/ready.ts";

/** Where the device has its vectors; undefined: it has no MSI-X. */
export const msixPlaceOf = (device: Configured): MsixPlace | undefined => {
  const at = findCapability(device, CapabilityId.MSIX);
  if (at === undefined) return undefined;
  const { BIR, Offset } = MsixLocation.fields;
  const table = [device.configRead(at + MsixCapability.TABLE, 4)];
  const pending = [device.configRead(at + MsixCapability.PBA, 4)];
  const control = [device.configRead(at + MsixCapability.MESSAGE_CONTROL, 2)];
  return {
    vectors: MsixControl.fields.TableSize.get(control) + 1,
    bar: BIR.get(table),
    table: Offset.get(table),
    pending: Offset.get(pending),
  };
};

export class VirtualMsix {
  readonly #calls: DeviceCalls;
  readonly #device: number;
  readonly #msix: Msix;
  /** One for each vector. */
  readonly #eventfds: readonly number[];

  /** `send`: the guest's memory takes a message. */
  constructor(calls: DeviceCalls, device: number, place: MsixPlace, scheduler: Scheduler, send: SendMessage) {
    const { task } = calls;
    this.#calls = calls;
    this.#device = device;
    this.#msix = new Msix(place, (_vector, lo, hi, data) =>
      send((BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0), data >>> 0),
    );
    this.#eventfds = Array.from({ length: place.vectors }, (_, vector) => {
      const fd = task.eventfd();
      whenCounted(task, fd, scheduler, () => this.#msix.signal(vector));
      return fd;
    });
  }

  /** Message Control was written. Throws what the host answers. */
  control(enabled: boolean, masked: boolean): void {
    if (enabled !== this.#msix.enabled)
      this.#calls.setInterrupts(this.#device, VFIO_PCI_MSIX_IRQ_INDEX, enabled ? this.#eventfds : []);
    this.#msix.control(enabled, masked);
  }

  covers(bar: number, offset: number, length: number): boolean {
    return this.#msix.covers(bar, offset, length);
  }
  read(offset: number, into: Uint8Array): void {
    this.#msix.read(offset, into);
  }
  write(offset: number, data: Uint8Array): void {
    this.#msix.write(offset, data);
  }
}
