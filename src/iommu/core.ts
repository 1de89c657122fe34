/**
 * The kernel-side core: devices, their groups, who owns a group's DMA, and which domain it has. It knows no vendor:
 * drivers do the work, the core keeps the rules. A group is the unit of isolation and of ownership; all its devices
 * have one domain. While nobody owns a group, and while its owner has given it none, its domain is the blocked one.
 */
import type { EventSink } from "../base/events.ts";
import { Ids } from "../base/ids.ts";
import { allocate } from "../kernel/allocations.ts";
import type { PciFunction } from "../pci/function.ts";
import { LinuxError } from "../uapi/errno.ts";
import type {
  DeviceCapabilities,
  Domain,
  IommuDriver,
  PagingDomain,
  PagingOptions,
  Requester,
  ReservedRegion,
} from "./driver.ts";

/** Stands for "without PASID" where domains are kept by PASID. */
const NO_PASID = -1;

/** A device behind an IOMMU: a PCI function, or of another kind `F` that its driver knows. */
export interface Device<F extends Requester = PciFunction> {
  readonly function: F;
  readonly driver: IommuDriver;
  readonly group: Group<F>;
  readonly capabilities: DeviceCapabilities;
  /** "0000:01:00.0" */
  readonly name: string;
}

export class Group<F extends Requester = PciFunction> {
  /** The number in /dev/vfio/N and in the sysfs link. */
  readonly id: number;
  readonly #devices: Device<F>[] = [];
  readonly #events: EventSink;
  #owner: object | undefined;
  /** What its owner gave it, without PASID (`NO_PASID`) and by PASID. */
  readonly #domains = new Map<number, Domain>();

  constructor(id: number, events: EventSink) {
    this.id = id;
    this.#events = events;
  }

  get devices(): readonly Device<F>[] {
    return this.#devices;
  }
  /** The domain its owner gave it; undefined: blocked. */
  get domain(): Domain | undefined {
    return this.#domains.get(NO_PASID);
  }
  get owned(): boolean {
    return this.#owner !== undefined;
  }

  /** Used by the core while it builds the group. */
  admit(device: Device<F>): void {
    this.#devices.push(device);
    device.driver.attach(device.function, device.driver.blocked);
  }

  /** Used by the core: the device is no more. Nobody owns the group. */
  dismiss(device: Device<F>): void {
    this.#devices.splice(this.#devices.indexOf(device), 1);
    device.driver.release(device.function);
  }

  /** Takes the group's DMA; an owner may claim once. Throws EBUSY while somebody else has it. */
  claim(owner: object): void {
    if (this.#owner !== undefined && this.#owner !== owner)
      throw new LinuxError(
        "EBUSY",
        "its DMA already has an owner; it must be released first",
        `group ${this.id}`,
      );
    this.#owner = owner;
  }

  /** Gives the DMA back: devices are blocked from now on. */
  release(owner: object): void {
    if (this.#owner !== owner) return;
    for (const key of [...this.#domains.keys()]) this.detach(key === NO_PASID ? undefined : key);
    this.#owner = undefined;
  }

  /**
   * Gives all devices, or their PASID, this domain: when one does not fit, those before it get back what they had, and
   * the error of the driver (EINVAL, EPERM) is thrown.
   */
  attach(domain: Domain, pasid?: number): void {
    const before = this.#domains.get(pasid ?? NO_PASID);
    allocate("the handle of a domain");
    this.#devices.forEach((device, index) => {
      try {
        device.driver.attach(device.function, domain, pasid);
      } catch (error) {
        for (const done of this.#devices.slice(0, index))
          done.driver.attach(done.function, before ?? done.driver.blocked, pasid);
        throw error;
      }
    });
    this.#domains.set(pasid ?? NO_PASID, domain);
    if (this.#events.on) this.#events.emit("attach", { group: this.id, domain: domain.name, pasid });
  }

  /** Back to blocked. */
  detach(pasid?: number): void {
    const domain = this.#domains.get(pasid ?? NO_PASID);
    if (!domain) return;
    for (const { driver, function: device } of this.#devices) driver.attach(device, driver.blocked, pasid);
    if (this.#events.on) this.#events.emit("detach", { group: this.id, domain: domain.name, pasid });
    this.#domains.delete(pasid ?? NO_PASID);
  }

  /** Reserved regions of all devices, by address, those of equal kind and range once. */
  reserved(): readonly ReservedRegion[] {
    const all = new Map<string, ReservedRegion>();
    for (const device of this.#devices)
      for (const region of device.driver.reserved(device.function))
        all.set(`${region.start} ${region.length} ${region.kind}`, region);
    return [...all.values()].sort((a, b) => a.start - b.start);
  }
}

export class IommuCore {
  readonly #events: EventSink;
  readonly #groups = new Map<number, Group>();
  readonly #groupIds = new Ids();
  readonly #devices = new Map<string, Device>();
  readonly #drivers = new Set<IommuDriver>();

  constructor(events: EventSink) {
    this.#events = events;
  }

  get groups(): ReadonlyMap<number, Group> {
    return this.#groups;
  }
  /** By name, "0000:01:00.0". */
  get devices(): ReadonlyMap<string, Device> {
    return this.#devices;
  }

  /** The drivers of all units, of those without a device too. */
  get drivers(): ReadonlySet<IommuDriver> {
    return this.#drivers;
  }

  /** A unit is there; its devices may come later. */
  addDriver(driver: IommuDriver): void {
    this.#drivers.add(driver);
  }

  /** A new, empty group with the lowest free number. */
  addGroup(): Group {
    const group = new Group(this.#groupIds.take(), this.#events);
    this.#groups.set(group.id, group);
    return group;
  }

  /** Puts a function behind its driver and into a group. Throws ENODEV when the driver's unit does not cover it. */
  addDevice(pciFunction: PciFunction, driver: IommuDriver, group: Group): Device {
    const capabilities = driver.probe(pciFunction);
    this.#drivers.add(driver);
    const device: Device = { function: pciFunction, driver, group, capabilities, name: pciFunction.name };
    this.#devices.set(device.name, device);
    group.admit(device);
    return device;
  }

  /** The device goes, and with the last one its group, which nobody owns. */
  removeDevice(device: Device): void {
    const { group } = device;
    this.#devices.delete(device.name);
    group.dismiss(device);
    if (group.devices.length > 0) return;
    this.#groups.delete(group.id);
    this.#groupIds.give(group.id);
  }

  /** A new, empty domain that fits the device. Throws ENOMEM, EOPNOTSUPP. */
  allocatePaging(device: Device, options?: PagingOptions): PagingDomain {
    return device.driver.allocatePaging(device.function, options);
  }
}
