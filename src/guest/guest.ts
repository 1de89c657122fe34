/**
 * A modelled guest: memory, an IOMMU with the driver that hosts use (`drivers/vtd`), devices and processes. It knows nothing
 * of the VMM: it reads and writes its memory, registers of its IOMMU and BARs of its devices, and takes interrupts.
 */

import type { EventSink } from "../base/events.ts";
import { Ids } from "../base/ids.ts";
import { VtdDriver } from "../drivers/vtd/driver.ts";
import type { RegisterFile } from "../drivers/vtd/registers.ts";
import type { Requester } from "../iommu/driver.ts";
import { type PageRequestGroup, PageRequests } from "../iommu/page-requests.ts";
import { MsiController } from "../kernel/msi.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { IOMMU_PGFAULT_PERM_WRITE } from "../uapi/iommufd.ts";
import { GuestProcess } from "./process.ts";

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
  /** Page requests that the guest has answered: pages that came, and those that may not. */
  readonly answered = { success: 0, invalid: 0 };
  readonly #msi: MsiController;
  readonly #requests: PageRequests;
  /** Whether a device asks for translations, and so for pages. */
  readonly #asks = new Map<Requester, boolean>();
  readonly #pasids = new Ids(1, 2 ** 20);
  /** PASID of each process that has one. */
  readonly #processes = new Map<GuestProcess, number>();

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
    for (const device of devices) this.#asks.set(device, this.driver.probe(device).ats ?? false);
    this.#requests = new PageRequests(this.driver);
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

  // Processes

  /** A process whose addresses the device can be given. */
  start(name: string, device: Requester): GuestProcess {
    const faults = this.#asks.get(device) ?? false;
    const table = this.driver.allocatePaging(device, { pasid: true, faults });
    return new GuestProcess(name, this.memory, table, (process) => this.#forget(process));
  }

  /** The device shares the process's addresses; with which PASID. */
  bind(device: Requester, process: GuestProcess): number {
    let pasid = this.#processes.get(process);
    if (pasid === undefined) {
      pasid = this.#pasids.take();
      this.#processes.set(process, pasid);
    }
    this.#requests.handle(device, pasid, (group) => this.#bringIn(process, group));
    this.driver.attach(device, process.table, pasid);
    return pasid;
  }

  unbind(device: Requester, process: GuestProcess): void {
    const pasid = this.#processes.get(process);
    if (pasid === undefined) return;
    this.driver.attach(device, this.driver.blocked, pasid);
    this.#requests.unhandle(device, pasid);
  }

  /** Turns its IOMMU off; its domains must be free. */
  shutDown(): void {
    this.driver.close();
    this.#msi.close();
  }

  /** The process has ended: its PASID is free. */
  #forget(process: GuestProcess): void {
    const pasid = this.#processes.get(process);
    if (pasid === undefined) return;
    this.#processes.delete(process);
    this.#pasids.give(pasid);
  }

  /** A device wants pages of the process. */
  #bringIn(process: GuestProcess, group: PageRequestGroup): void {
    const present = group.requests.every(({ address, permissions }) =>
      process.touch(Number(address), (permissions & IOMMU_PGFAULT_PERM_WRITE) !== 0),
    );
    this.answered[present ? "success" : "invalid"] += 1;
    group.respond(present ? "success" : "invalid");
  }
}
