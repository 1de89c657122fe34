/**
 * A host domain of zPCI units: a region-third table. What is unmapped is refreshed at every function that has it, and before
 * that what guests' tables above it led to is gone, so that nothing reaches a page when it is given back.
 */
import type { EventSink } from "../../base/events.ts";
import { Designation, Iota } from "../../hardware/zpci/spec.ts";
import type { DomainGeometry, PagingDomain } from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { Protection } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { s390Dat } from "../../pagetable/s390.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { stillUsed } from "../refusals.ts";
import type { ZpciDevice } from "./device.ts";

/** What lies above a nest parent. */
export interface Derived {
  /** What it got by pages of [iova, iova + length) goes, and every unit has forgotten it. */
  parentGone(iova: number, length: number): void;
}

export interface ZpciDomainOptions {
  readonly unitName: string;
  readonly id: number;
  readonly memory: HostMemory;
  /** Addresses [start, end). */
  readonly start: number;
  readonly end: number;
  readonly nestParent: boolean;
  readonly events: EventSink;
  readonly forget: (domain: ZpciDomain) => void;
}

/** The tables of hosts. */
export const hostFormat = s390Dat(3);

export class ZpciDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly memory: HostMemory;
  readonly nestParent: boolean;
  readonly apertures: DomainGeometry["apertures"];
  /** 4 KiB. */
  readonly pageSizes = 0x1000n;
  /** Functions that have it. */
  readonly devices = new Set<ZpciDevice>();
  /** Guests' tables above it. */
  readonly nested = new Set<Derived>();
  readonly #mapper: Mapper;
  readonly #events: EventSink;
  readonly #forget: (domain: ZpciDomain) => void;
  #freed = false;

  /** Throws ENOMEM. */
  constructor({ unitName, id, memory, start, end, nestParent, events, forget }: ZpciDomainOptions) {
    this.id = id;
    this.name = `${unitName} domain ${id}`;
    this.memory = memory;
    this.nestParent = nestParent;
    this.apertures = [{ start, end }];
    this.#events = events;
    this.#forget = forget;
    this.#mapper = new Mapper(memory, hostFormat);
  }

  /** Physical address of the top table. */
  get root(): number {
    return this.#mapper.root;
  }
  get freed(): boolean {
    return this.#freed;
  }
  /** I/O table anchor. */
  get iota(): bigint {
    return Iota.make({ ORIGIN: this.root, T: true, DT: Designation.regionThird });
  }

  /** Throws EIO when a function's unit could not take the pages; then nothing is mapped. */
  map(iova: number, pa: number, length: number, protection: number): void {
    const { start, end } = this.apertures[0]!;
    if (iova < start || iova + length > end)
      throw new LinuxError(
        "EFAULT",
        `iova 0x${iova.toString(16)} + 0x${length.toString(16)} is not within 0x${start.toString(16)}-0x${(end - 1).toString(16)}, this domain's addresses`,
        this.name,
      );
    // An entry cannot say that a page is to be written only.
    const alsoRead = protection & Protection.write ? protection | Protection.read : protection;
    this.#mapper.map(iova, pa, length, alsoRead);
    try {
      for (const device of this.devices) device.learn(iova, iova + length);
    } catch (error) {
      this.#take(iova, length);
      throw error;
    }
    if (this.#events.on) this.#events.emit("map", { domain: this.name, iova, pa, length, protection });
  }

  unmap(iova: number, length: number): number {
    for (const derived of this.nested) derived.parentGone(iova, length);
    const unmapped = this.#take(iova, length);
    if (this.#events.on) this.#events.emit("unmap", { domain: this.name, iova, length, unmapped });
    return unmapped;
  }

  physical(iova: number): number {
    return this.#mapper.physical(iova);
  }

  free(): void {
    if (this.#freed) return;
    if (this.devices.size > 0 || this.nested.size > 0)
      throw stillUsed(this.name, "devices, or guests' tables above it,");
    this.#freed = true;
    this.#forget(this);
    this.#mapper.destroy();
  }

  #take(iova: number, length: number): number {
    const unmapped = this.#mapper.unmap(iova, length);
    const { gather } = this.#mapper;
    if (gather.pending) for (const device of this.devices) device.forget(gather.start, gather.end);
    this.#mapper.release();
    return unmapped;
  }
}
