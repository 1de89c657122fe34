/**
 * The driver of devices made by software, in front of which no IOMMU is: their maker reaches memory for them, through the
 * domain that they have. Page tables and no more: no PASIDs, no guests' tables, no dirty tracking.
 */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import {
  type DeviceCapabilities,
  type Domain,
  type FixedDomain,
  type IommuDriver,
  type PagingOptions,
  type Requester,
  type ReservedRegion,
  requirePlain,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { SoftwareDomain } from "./domain.ts";
import { SoftwareUnit } from "./unit.ts";

export class SoftwareDriver implements IommuDriver {
  readonly name = "software";
  readonly software = true;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  readonly #memory: HostMemory;
  readonly #events: EventSink;
  readonly #ids = new Ids(1);
  readonly #domains = new Set<SoftwareDomain>();
  readonly #units = new Map<Requester, SoftwareUnit>();

  constructor(memory: HostMemory, events: EventSink) {
    this.#memory = memory;
    this.#events = events;
  }

  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }

  /** What is to stand before a device, which is one of the driver's once it is admitted. */
  makeUnit(): SoftwareUnit {
    return new SoftwareUnit(this.name, this.#events);
  }

  admit(device: Requester, unit: SoftwareUnit): void {
    this.#units.set(device, unit);
  }

  /** What stands before the device, when it is one of the driver's. */
  unitOf(device: Requester): SoftwareUnit | undefined {
    return this.#units.get(device);
  }

  probe(device: Requester): DeviceCapabilities {
    this.#admitted(device);
    return { cacheCoherent: true, dirtyTracking: false, pasidBits: 0, nesting: false };
  }

  release(device: Requester): void {
    if (this.#units.has(device)) this.attach(device, this.blocked);
    this.#units.delete(device);
  }

  reserved(): readonly ReservedRegion[] {
    return [];
  }

  allocatePaging(_device: Requester, options?: PagingOptions): SoftwareDomain {
    requirePlain(options, this.name);
    allocate("a domain of software");
    const id = this.#ids.take();
    try {
      const domain = new SoftwareDomain(id, this.#memory, (gone) => {
        this.#domains.delete(gone);
        this.#ids.give(gone.id);
      });
      this.#domains.add(domain);
      return domain;
    } catch (error) {
      this.#ids.give(id);
      throw error;
    }
  }

  attach(device: Requester, domain: Domain, pasid?: number): void {
    const unit = this.#admitted(device);
    if (pasid !== undefined)
      throw new LinuxError("EINVAL", `PASID ${pasid}: a device made by software has none`, device.name);
    const next = domain instanceof SoftwareDomain ? domain : fixed(domain);
    if (next === "foreign" || (next instanceof SoftwareDomain && !this.#domains.has(next)))
      throw new LinuxError("EINVAL", `${domain.name} is no domain of ${this.name}`, device.name);
    const before = unit.domain;
    if (before instanceof SoftwareDomain) before.users -= 1;
    if (next instanceof SoftwareDomain) next.users += 1;
    unit.domain = next;
  }

  #admitted(device: Requester): SoftwareUnit {
    const unit = this.#units.get(device);
    if (unit) return unit;
    throw new LinuxError("ENODEV", "it is no device made by software", device.name);
  }
}

const fixed = ({ kind }: Domain): "identity" | "foreign" | undefined => {
  if (kind === "blocked") return undefined;
  return kind === "identity" ? kind : "foreign";
};
