/**
 * A modelled guest: memory, an IOMMU with the driver that hosts use (`drivers/`), devices and processes. It knows nothing
 * of the VMM: it reads and writes its memory, registers of its IOMMU and BARs of its devices, and takes interrupts.
 */

import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import type { DeviceCapabilities, Requester } from "../iommu/driver.ts";
import { type PageRequestGroup, PageRequests } from "../iommu/page-requests.ts";
import { MsiController } from "../kernel/msi.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import type { Walker } from "../pagetable/walker.ts";
import { findCapability } from "../pci/capability-list.ts";
import type { PciFunction } from "../pci/function.ts";
import { CapabilityId, MsixCapability, MsixControl, MsixEntry, MsixLocation } from "../pci/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import { IOMMU_PGFAULT_PERM_WRITE } from "../uapi/iommufd.ts";
import {
  driverFor,
  type GuestDriver,
  type GuestIommu,
  type GuestPasids,
  pasidsOf,
  processorWalkers,
} from "./firmware.ts";
import { GuestProcess } from "./process.ts";

export interface GuestOptions {
  readonly name: string;
  readonly memory: HostMemory;
  /** The registers of its IOMMU. */
  readonly iommu: GuestIommu;
  /** The functions on its bus. */
  readonly devices: readonly Requester[];
  /** Bits of its physical addresses. */
  readonly addressWidth: number;
  /** Runs what its interrupts have set going. */
  readonly scheduler: Scheduler;
  readonly events: EventSink;
}

/** A function as a guest's drivers reach it. */
export type GuestFunction = Requester &
  Pick<PciFunction, "configSize" | "configRead" | "configWrite" | "barRead" | "barWrite">;

/** Requests in a row for pages that were there already: what the device sees is not what the guest's tables say. */
const MOST_IN_VAIN = 16;

export class Guest {
  readonly memory: HostMemory;
  readonly driver: GuestDriver;
  /** Page requests that the guest has answered: pages that came, and those that may not. */
  readonly answered = { success: 0, invalid: 0 };
  readonly #walker: Walker;
  readonly #msi: MsiController;
  readonly #requests: PageRequests;
  /** What devices can do: whether they ask for translations, and so for pages, and bits of their PASIDs. */
  readonly #abilities = new Map<Requester, DeviceCapabilities>();
  /** Its pages are on a slow disk: requests for them are answered by `serve`. */
  slow = false;
  readonly #waiting = new Set<{ readonly process: GuestProcess; readonly group: PageRequestGroup }>();
  #inVain = 0;
  readonly #pasids: GuestPasids;
  /** PASID of each process that has one. */
  readonly #processes = new Map<GuestProcess, number>();
  /** Devices that have its addresses. */
  readonly #bound = new Map<GuestProcess, Set<Requester>>();

  /** Boots as far as its IOMMU driver, which finds the devices. */
  constructor(options: GuestOptions) {
    const { memory, iommu, devices } = options;
    this.memory = memory;
    this.#msi = new MsiController(memory);
    this.#walker = processorWalkers[iommu.model];
    this.#pasids = pasidsOf(iommu, options.name);
    this.driver = driverFor({ ...options, msi: this.#msi });
    for (const device of devices) this.#abilities.set(device, this.driver.probe(device));
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

  // Interrupts

  /** The handler is called for the vector of the device from now on (MSI-X). Throws ENODEV when it has none. */
  listen(device: GuestFunction, vector: number, handler: () => void): void {
    const at = findCapability(device, CapabilityId.MSIX);
    if (at === undefined) throw new LinuxError("ENODEV", "it has no MSI-X", device.name);
    const message = this.#msi.allocate(handler, { source: device.rid });
    const address = this.driver.doorbell?.(device, message.address) ?? message.address;
    const place = [device.configRead(at + MsixCapability.TABLE, 4)];
    const { BIR, Offset } = MsixLocation.fields;
    const entry = new DataView(new ArrayBuffer(MsixEntry.BYTES));
    entry.setBigUint64(MsixEntry.ADDRESS, address, true);
    entry.setUint32(MsixEntry.DATA, message.data, true);
    const offset = Offset.get(place) + vector * MsixEntry.BYTES;
    device.barWrite(BIR.get(place), offset, new Uint8Array(entry.buffer));
    const control = device.configRead(at + MsixCapability.MESSAGE_CONTROL, 2);
    device.configWrite(at + MsixCapability.MESSAGE_CONTROL, 2, control | MsixControl.fields.Enable.mask);
  }

  // Processes

  /** Bits of PASIDs that the device can have; 0: none. */
  pasidBitsOf(device: Requester): number {
    return this.#abilities.get(device)?.pasidBits ?? 0;
  }

  /** A process whose addresses the device can be given. */
  start(name: string, device: Requester): GuestProcess {
    const faults = this.#abilities.get(device)?.ats ?? false;
    const table = this.driver.allocatePaging(device, { pasid: true, faults });
    return new GuestProcess({ name, memory: this.memory, table, walker: this.#walker }, (process) =>
      this.#forget(process),
    );
  }

  /** The device shares the process's addresses; with which PASID. */
  bind(device: Requester, process: GuestProcess): number {
    let pasid = this.#processes.get(process);
    if (pasid === undefined) {
      pasid = this.#pasids.take();
      this.#processes.set(process, pasid);
    }
    this.#requests.handle(device, pasid, (group) => this.#take(process, group));
    let bound = this.#bound.get(process);
    if (!bound) this.#bound.set(process, (bound = new Set()));
    bound.add(device);
    this.driver.attach(device, process.table, pasid);
    return pasid;
  }

  unbind(device: Requester, process: GuestProcess): void {
    const pasid = this.#processes.get(process);
    if (pasid === undefined) return;
    this.driver.attach(device, this.driver.blocked, pasid);
    this.#requests.unhandle(device, pasid);
    this.#bound.get(process)?.delete(device);
  }

  /** The process dies, whatever is under way: devices lose it first, requests for its pages are refused, its memory is free. */
  kill(process: GuestProcess): void {
    for (const device of this.#bound.get(process) ?? []) this.unbind(device, process);
    for (const waiting of this.#waiting) {
      if (waiting.process !== process) continue;
      this.#waiting.delete(waiting);
      this.#answer(waiting.group, false);
    }
    process.exit();
  }

  /** Pages that were asked for come from the slow disk. */
  serve(): void {
    for (const waiting of [...this.#waiting]) {
      this.#waiting.delete(waiting);
      this.#bringIn(waiting.process, waiting.group);
    }
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
    this.#bound.delete(process);
    this.#pasids.give(pasid);
  }

  #take(process: GuestProcess, group: PageRequestGroup): void {
    if (this.slow) this.#waiting.add({ process, group });
    else this.#bringIn(process, group);
  }

  /** A device wants pages of the process. One that keeps asking for what is there is refused in the end. */
  #bringIn(process: GuestProcess, group: PageRequestGroup): void {
    const before = process.faults;
    const present = group.requests.every(({ address, permissions }) =>
      process.touch(Number(address), (permissions & IOMMU_PGFAULT_PERM_WRITE) !== 0),
    );
    this.#inVain = process.faults === before ? this.#inVain + 1 : 0;
    if (this.#inVain > MOST_IN_VAIN) {
      this.#inVain = 0;
      this.#answer(group, false);
      return;
    }
    this.#answer(group, present);
  }

  #answer(group: PageRequestGroup, present: boolean): void {
    const code = present ? "success" : "invalid";
    this.answered[code] += 1;
    group.respond(code);
  }
}
