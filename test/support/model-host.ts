/**
 * A small host for tests of the kernel side: real memory, interrupt window and core, a driver that is nothing but a
 * map from page to page, and an endpoint with every kind of interrupt. What the driver did is recorded.
 */

import { ManualClock } from "../../src/base/clock.ts";
import { type EventFields, type EventKind, type EventSink, silent } from "../../src/base/events.ts";
import { WorkQueue } from "../../src/base/scheduler.ts";
import type { IommuUnit, TranslateStatus } from "../../src/hardware/unit.ts";
import { IommuCore } from "../../src/iommu/core.ts";
import type {
  DeviceCapabilities,
  Domain,
  FixedDomain,
  IommuDriver,
  PagingDomain,
  ReservedRegion,
} from "../../src/iommu/driver.ts";
import { allocatePages } from "../../src/kernel/allocations.ts";
import { MsiController } from "../../src/kernel/msi.ts";
import { type Banks, createMemory } from "../../src/memory/banks.ts";
import { pasid, serialNumber } from "../../src/pci/capabilities.ts";
import { HostBridge } from "../../src/pci/dma.ts";
import type { PciAddress, PciFunction } from "../../src/pci/function.ts";
import { Endpoint, type FunctionContext, type FunctionShape } from "../../src/pci/pci-function.ts";
import { placement } from "../../src/pci/placement.ts";
import { LinuxError } from "../../src/uapi/errno.ts";

const PAGE = 4096;
export const MSI_WINDOW: ReservedRegion = { start: 0xfee0_0000, length: 0x10_0000, kind: "msi" };

/** Events as they came. */
export class Recorder implements EventSink {
  readonly on = true;
  readonly seen: { readonly kind: EventKind; readonly fields: EventFields }[] = [];
  emit(kind: EventKind, fields: EventFields): void {
    this.seen.push({ kind, fields });
  }
}

/** A page table that is a map. */
export class MapDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly apertures: readonly { readonly start: number; readonly end: number }[];
  readonly pageSizes = 0x4020_1000n;
  readonly pages = new Map<number, { readonly pa: number; readonly protection: number }>();
  freed = false;
  /** Refuses this many pages from now on. */
  room = Number.POSITIVE_INFINITY;
  readonly #driver: MapDriver;

  constructor(driver: MapDriver, id: number) {
    this.#driver = driver;
    this.id = id;
    this.name = `map ${id}`;
    this.apertures = [{ start: 0, end: driver.apertureEnd }];
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    this.#within(iova, length);
    const count = length / PAGE;
    if (this.pages.size + count > this.room) throw new LinuxError("ENOMEM", "no table left", this.name);
    for (let i = 0; i < count; i += 1)
      if (this.pages.has(iova / PAGE + i)) throw new LinuxError("EEXIST", "mapped", this.name);
    for (let i = 0; i < count; i += 1) this.pages.set(iova / PAGE + i, { pa: pa + i * PAGE, protection });
  }

  unmap(iova: number, length: number): number {
    this.#within(iova, length);
    let bytes = 0;
    const end = (iova + length) / PAGE;
    if (length / PAGE > this.pages.size) {
      for (const page of [...this.pages.keys()])
        if (page >= iova / PAGE && page < end && this.pages.delete(page)) bytes += PAGE;
      return bytes;
    }
    for (let page = iova / PAGE; page < end; page += 1) if (this.pages.delete(page)) bytes += PAGE;
    return bytes;
  }

  physical(iova: number): number {
    const page = this.pages.get(Math.floor(iova / PAGE));
    return page ? page.pa + (iova % PAGE) : -1;
  }

  free(): void {
    this.#live();
    if (this.pages.size > 0) throw new Error(`${this.name} is freed with ${this.pages.size} pages mapped`);
    for (const [device, domain] of this.#driver.attached)
      if (domain === this) throw new Error(`${this.name} is freed while ${device.name} has it`);
    this.freed = true;
    this.#driver.domains.delete(this);
  }

  #within(iova: number, length: number): void {
    this.#live();
    if (!this.apertures.some(({ start, end }) => start <= iova && iova + length <= end))
      throw new LinuxError("ERANGE", `0x${iova.toString(16)} is beyond it`, this.name);
  }

  #live(): void {
    if (this.freed) throw new Error(`${this.name} was freed`);
  }
}

export class MapDriver implements IommuDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  readonly attached = new Map<PciFunction, Domain>();
  /** By function and PASID, "0000:01:00.0 5". */
  readonly pasids = new Map<string, Domain>();
  readonly domains = new Set<MapDomain>();
  readonly apertureEnd: number;
  readonly regions: ReservedRegion[] = [MSI_WINDOW];
  capabilities: DeviceCapabilities = {
    cacheCoherent: true,
    dirtyTracking: false,
    pasidBits: 0,
    nesting: false,
  };
  #next = 1;

  constructor(name: string, options: { readonly apertureEnd?: number } = {}) {
    this.name = name;
    this.apertureEnd = options.apertureEnd ?? 2 ** 48;
  }

  probe(): DeviceCapabilities {
    return this.capabilities;
  }
  release(device: PciFunction): void {
    this.attached.delete(device);
  }
  reserved(): readonly ReservedRegion[] {
    return this.regions;
  }
  allocatePaging(): MapDomain {
    const domain = new MapDomain(this, this.#next++);
    this.domains.add(domain);
    return domain;
  }
  attach(device: PciFunction, domain: Domain, pasid?: number): void {
    if (domain instanceof MapDomain && !this.domains.has(domain))
      throw new LinuxError("EINVAL", `${domain.name} belongs to another unit`, this.name);
    if (pasid === undefined) this.attached.set(device, domain);
    else if (domain === this.blocked) this.pasids.delete(`${device.name} ${pasid}`);
    else this.pasids.set(`${device.name} ${pasid}`, domain);
  }

  /** The domain a function has, which must be a paging one. */
  domainOf(device: PciFunction): MapDomain {
    const domain = this.attached.get(device);
    if (!(domain instanceof MapDomain)) throw new Error(`${device.name} has ${domain?.name}`);
    return domain;
  }
}

/** Registers of 64 KiB, an I/O BAR, a small one, 8 MSI-X and 8 MSI vectors, INTA. */
export class TestEndpoint extends Endpoint {
  readonly registers = new Uint8Array(0x1_0000);
  readonly ports = new Uint8Array(32);
  readonly small = new Uint8Array(256);
  resets = 0;
  /** Places of non-posted writes that arrived; the second and all after it are to be tried again. */
  readonly commands: string[] = [];
  /** Widths of the accesses that arrived. */
  readonly widths: number[] = [];

  protected override readBar(index: number, offset: number, into: Uint8Array): void {
    this.widths.push(into.length);
    into.set(this.#bytes(index).subarray(offset, offset + into.length));
  }
  protected override writeBar(index: number, offset: number, data: Uint8Array): void {
    this.widths.push(data.length);
    this.#bytes(index).set(data, offset);
  }
  protected override enqueueBar(index: number, offset: number, command: Uint8Array): boolean {
    this.commands.push(`${command.length}@${index}:${offset}`);
    return this.commands.length === 1;
  }
  protected override resetModel(): void {
    this.resets += 1;
    this.registers.fill(0);
  }
  fire(vector: number): void {
    this.signal(vector);
  }
  line(level: boolean): void {
    this.drive(level);
  }
  /** DMA to an IOVA below 2^53. */
  dmaWrite(iova: number, data: Uint8Array): TranslateStatus {
    return this.dma.write(iova >>> 0, Math.floor(iova / 2 ** 32), data);
  }
  dmaRead(iova: number, into: Uint8Array): TranslateStatus {
    return this.dma.read(iova >>> 0, Math.floor(iova / 2 ** 32), into);
  }

  #bytes(index: number): Uint8Array {
    if (index === 0) return this.registers;
    return index === 4 ? this.ports : this.small;
  }
}

export const MSIX_TABLE = 0x2000;
export const MSIX_VECTORS = 8;

export interface ModelHostOptions {
  readonly ramBytes?: number;
  readonly events?: EventSink;
  /** Groups, each a list of functions "bus:device"; default: one function in each of two groups. */
  readonly groups?: readonly (readonly string[])[];
  /** Drivers by group; default: one for all. */
  readonly drivers?: readonly MapDriver[];
  /** A real unit and its driver for all groups, instead. */
  readonly power?: (
    memory: Banks,
    msi: MsiController,
    scheduler: WorkQueue,
  ) => { unit: IommuUnit; driver: IommuDriver };
  /** Other functions than `TestEndpoint`s. */
  readonly makeEndpoint?: (shape: FunctionShape, context: FunctionContext) => TestEndpoint;
}

export class ModelHost {
  readonly memory: Banks;
  readonly core: IommuCore;
  readonly msi: MsiController;
  readonly events: EventSink;
  readonly endpoints: TestEndpoint[] = [];
  readonly drivers: readonly MapDriver[];
  readonly scheduler = new WorkQueue();

  constructor(options: ModelHostOptions = {}) {
    this.events = options.events ?? silent;
    this.memory = createMemory({ ramBytes: options.ramBytes ?? 64 * 2 ** 20 });
    this.memory.onAllocate = allocatePages;
    this.core = new IommuCore(this.events);
    this.msi = new MsiController(this.memory, this.events);
    this.drivers = options.drivers ?? [new MapDriver("map0")];
    const powered = options.power?.(this.memory, this.msi, this.scheduler);
    const { makeEndpoint = (shape, context) => new TestEndpoint(shape, context) } = options;
    const bridge = new HostBridge({ memory: this.memory, unit: powered?.unit });
    const barBase = placement({
      mem32: { start: 0xc000_0000, end: 0xd000_0000 },
      mem64: { start: 2 ** 37, end: 2 ** 38 },
      io: { start: 0x1000, end: 0x8000 },
    });
    (options.groups ?? [["01:00"], ["02:00"]]).forEach((functions, index) => {
      const group = this.core.addGroup();
      for (const name of functions) {
        const endpoint = makeEndpoint(SHAPE, {
          address: addressOf(name),
          bridge,
          barBase,
          scheduler: this.scheduler,
          clock: new ManualClock(),
          events: this.events,
        });
        this.endpoints.push(endpoint);
        this.core.addDevice(endpoint, powered?.driver ?? this.drivers[index % this.drivers.length]!, group);
      }
    });
  }

  get endpoint(): TestEndpoint {
    return this.endpoints[0]!;
  }
  get driver(): MapDriver {
    return this.drivers[0]!;
  }
}

const SHAPE = {
  model: "test",
  vendorId: 0x1234,
  deviceId: 0x5678,
  classCode: 0xff0000,
  bars: [
    { index: 0, kind: "mem64", size: 0x1_0000 },
    { index: 4, kind: "io", size: 32 },
    { index: 5, kind: "mem32", size: 256 },
  ],
  interruptPin: 1,
  msiVectorsLg2: 3,
  msix: { vectors: MSIX_VECTORS, bar: 0, table: MSIX_TABLE, pending: 0x3000 },
  capabilities: [serialNumber(1, 2), pasid(20)],
} as const;

/** "01:00" is device 0 on bus 1. */
const addressOf = (name: string): PciAddress => {
  const [bus = "0", device = "0"] = name.split(":");
  return { segment: 0, bus: Number.parseInt(bus, 16), device: Number.parseInt(device, 16), function: 0 };
};
