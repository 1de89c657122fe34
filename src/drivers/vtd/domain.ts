/**
 * A host domain of a VT-d unit: a second-stage table and a domain id. What is unmapped is flushed from the IOTLB
 * before its table pages go back to memory (§6.5.1).
 */
import type { EventSink } from "../../base/events.ts";
import type { DomainGeometry, PagingDomain } from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { vtdSecondLevel } from "../../pagetable/vtd-second-level.ts";
import { LinuxError } from "../../uapi/errno.ts";

/** What a domain asks of the driver that made it. */
export interface DomainHost {
  /** Flushes [iova, iova + length) of a domain id; `leavesOnly`: no table page was taken away. */
  flushRange(domainId: number, iova: number, length: number, leavesOnly: boolean): void;
  /** After entries were added: needed only where the unit may have cached that nothing was there (CAP.CM). */
  flushAdded(domainId: number, iova: number, length: number): void;
  forget(domain: VtdDomain): void;
}

export interface VtdGeometry {
  readonly levels: 3 | 4 | 5;
  /** Address bits that the table translates and the unit accepts (MGAW). */
  readonly addressBits: number;
  readonly hostAddressWidth: number;
  /** Log2 of the leaf sizes. */
  readonly pageLg2s: readonly number[];
  /** Leaves are made snooped, so that a device cannot go past the caches. */
  readonly snoopControl: boolean;
}

export class VtdDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly levels: 3 | 4 | 5;
  readonly apertures: DomainGeometry["apertures"];
  readonly pageSizes: bigint;
  /** Requester ids that have it. */
  readonly attached = new Set<number>();
  readonly #host: DomainHost;
  readonly #mapper: Mapper;
  readonly #events: EventSink;
  #freed = false;

  constructor(
    unit: string,
    id: number,
    memory: HostMemory,
    geometry: VtdGeometry,
    host: DomainHost,
    events: EventSink,
  ) {
    this.id = id;
    this.name = `${unit} domain ${id}`;
    this.levels = geometry.levels;
    this.#host = host;
    this.#events = events;
    this.pageSizes = geometry.pageLg2s.reduce((sizes, lg2) => sizes | (1n << BigInt(lg2)), 0n);
    this.apertures = [{ start: 0, end: 2 ** geometry.addressBits }];
    const { pageLg2s, hostAddressWidth, snoopControl } = geometry;
    const format = vtdSecondLevel(geometry.levels, {
      pageLg2s,
      hostAddressWidth,
      snoopControl,
      forceSnoop: snoopControl,
    });
    this.#mapper = new Mapper(memory, format);
  }

  /** Host physical address of the top table. */
  get root(): number {
    return this.#mapper.root;
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    if (iova + length > this.apertures[0]!.end)
      throw new LinuxError(
        "EFAULT",
        `iova 0x${iova.toString(16)} + 0x${length.toString(16)} is beyond 0x${this.apertures[0]!.end.toString(16)}, where this domain's addresses end`,
        this.name,
      );
    this.#mapper.map(iova, pa, length, protection);
    this.#host.flushAdded(this.id, iova, length);
    if (this.#events.on) this.#events.emit("map", { domain: this.name, iova, pa, length, protection });
  }

  unmap(iova: number, length: number): number {
    const unmapped = this.#mapper.unmap(iova, length);
    const { gather } = this.#mapper;
    if (gather.pending)
      this.#host.flushRange(this.id, gather.start, gather.end - gather.start, !gather.tables);
    this.#mapper.release();
    if (this.#events.on) this.#events.emit("unmap", { domain: this.name, iova, length, unmapped });
    return unmapped;
  }

  physical(iova: number): number {
    return this.#mapper.physical(iova);
  }

  free(): void {
    if (this.#freed) return;
    if (this.attached.size > 0)
      throw new LinuxError(
        "EBUSY",
        `${this.attached.size} device(s) still have it; they must be detached first`,
        this.name,
      );
    this.#freed = true;
    this.#host.forget(this);
    this.#mapper.destroy();
  }
}
