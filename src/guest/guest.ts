/**
 * A modelled guest: memory, an IOMMU with the driver that hosts use (`drivers/vtd`), and devices. It knows nothing of the
 * VMM: it reads and writes its memory, registers of its IOMMU and BARs of its devices, and takes interrupts.
 */
import type { EventSink } from "../base/events.ts";
import { VtdDriver } from "../drivers/vtd/driver.ts";
import type { RegisterFile } from "../drivers/vtd/registers.ts";
import type { Requester } from "../iommu/driver.ts";
import { MsiController } from "../kernel/msi.ts";
import type { HostMemory } from "../memory/host-memory.ts";

export interface GuestOptions {
  readonly name: string;
  readonly memory: HostMemory;
  /** The registers of its IOMMU. */
  readonly iommu: RegisterFile;
  /** The functions on its bus. */
  readonly devices: readonly Requester[];
  /** Bits of its physical addresses. */
  readonly addressWidth: number;
  readonly events: EventSink;
}

export class Guest {
  readonly memory: HostMemory;
  readonly driver: VtdDriver;
  readonly #msi: MsiController;

  /** Boots as far as its IOMMU driver, which finds the devices. */
  constructor({ name, memory, iommu, devices, addressWidth, events }: GuestOptions) {
    this.memory = memory;
    this.#msi = new MsiController(memory);
    this.driver = new VtdDriver({
      name: `${name}'s dmar0`,
      unit: iommu,
      memory,
      msi: this.#msi,
      events,
      firmware: { hostAddressWidth: addressWidth, covers: () => true, reservedMemory: [] },
    });
    for (const device of devices) this.driver.probe(device);
  }

  /** Fresh zeroed pages; the guest physical address. */
  allocate(pages: number): number {
    const pa = this.memory.allocate(pages);
    if (pa < 0) throw new RangeError(`the guest has no ${pages} free pages`);
    return pa;
  }

  write(pa: number, text: string): void {
    this.memory.writeBytes(pa, Buffer.from(text));
  }
  read(pa: number, length: number): string {
    const bytes = new Uint8Array(length);
    this.memory.readBytes(pa, bytes);
    return Buffer.from(bytes).toString();
  }

  /** Turns its IOMMU off; its domains must be free. */
  shutDown(): void {
    this.driver.close();
    this.#msi.close();
  }
}
