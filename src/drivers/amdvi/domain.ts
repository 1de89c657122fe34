/**
 * A host domain of an AMD-Vi unit: a version 1 table, which device table entries point to, or a table of x86 processors,
 * which GCR3 tables point to and PASIDs can have. What is unmapped is flushed before its table pages go back to memory.
 */
import type { EventSink } from "../../base/events.ts";
import type { DirtyTracking, DomainGeometry, PagingDomain } from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { mappedEnd, type PageTableFormat, Protection } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import type { Range } from "../range.ts";
import { requireEnd, stillUsed } from "../refusals.ts";
import type { DteValues } from "./device-table.ts";

/** What a domain asks of the driver that made it. */
export interface DomainHost {
  /** What is added is flushed, too. */
  readonly flushesAdded: boolean;
  /** Its functions, and guests above it, forget the range. */
  flush(domain: AmdDomain, range: Range): void;
  /** What device table entries say of it has changed. */
  refresh(domain: AmdDomain): void;
  /** The unit forgets all of it; its number can be given out again. */
  forget(domain: AmdDomain): void;
}

export interface AmdDomainOptions {
  readonly unitName: string;
  /** Domain id; of a table that PASIDs can have its name only. */
  readonly id: number;
  readonly memory: HostMemory;
  readonly table: "host" | "guest";
  readonly format: PageTableFormat;
  readonly nestParent: boolean;
  readonly dirtyTracking: boolean;
  /** Page faults under it are reported. */
  readonly faults: boolean;
  readonly host: DomainHost;
  readonly events: EventSink;
}

/** DTE.HAD: the unit sets accessed and dirty bits. */
const ACCESSED_AND_DIRTY = 3;

export class AmdDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly table: "host" | "guest";
  readonly nestParent: boolean;
  readonly faults: boolean;
  readonly apertures: DomainGeometry["apertures"];
  readonly pageSizes: bigint;
  readonly dirty?: DirtyTracking;
  /** Functions, PASIDs of functions, nested domains and vIOMMUs that use it. */
  users = 0;
  readonly #host: DomainHost;
  readonly #mapper: Mapper;
  readonly #events: EventSink;
  #tracking = false;
  #freed = false;

  /** Throws ENOMEM. */
  constructor(options: AmdDomainOptions) {
    const { unitName, id, table, format } = options;
    this.id = id;
    this.table = table;
    this.nestParent = options.nestParent;
    this.faults = options.faults;
    this.name = `${unitName} domain ${id}`;
    this.#host = options.host;
    this.#events = options.events;
    this.apertures = [{ start: 0, end: mappedEnd(format) }];
    const sizes = format.levels.flatMap(({ leaves }) => leaves.map(({ lg2 }) => lg2));
    this.pageSizes = sizes.reduce((all, lg2) => all | (1n << BigInt(lg2)), 0n);
    this.#mapper = new Mapper(options.memory, format);
    if (options.dirtyTracking)
      this.dirty = {
        set: (enabled) => this.#track(enabled),
        read: (iova, length, clear, visit) => {
          this.#mapper.scanDirty(iova, length, clear, visit);
          this.#flushGathered();
        },
      };
  }

  /** Physical address of the top table. */
  get root(): number {
    return this.#mapper.root;
  }

  /** §2.2.2.1 What a device table entry says of a version 1 table. */
  get hostFields(): DteValues {
    return {
      MODE: this.#mapper.format.levels.length,
      HOST_TRP: this.root,
      HAD: this.#tracking ? ACCESSED_AND_DIRTY : 0,
    };
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    const { end } = this.apertures[0]!;
    requireEnd(this.name, iova, length, end);
    // A table of processors cannot say that a page is to be written only.
    const alsoRead = this.table === "guest" && protection & Protection.write;
    this.#mapper.map(iova, pa, length, alsoRead ? protection | Protection.read : protection);
    if (this.#host.flushesAdded) this.#host.flush(this, { iova, length, leavesOnly: false });
    if (this.#events.on) this.#events.emit("map", { domain: this.name, iova, pa, length, protection });
  }

  unmap(iova: number, length: number): number {
    const unmapped = this.#mapper.unmap(iova, length);
    this.#flushGathered();
    if (this.#events.on) this.#events.emit("unmap", { domain: this.name, iova, length, unmapped });
    return unmapped;
  }

  physical(iova: number): number {
    return this.#mapper.physical(iova);
  }

  free(): void {
    if (this.#freed) return;
    if (this.users > 0) throw stillUsed(this.name, `${this.users} users`);
    this.#freed = true;
    this.#host.forget(this);
    this.#mapper.destroy();
  }

  /** Dirty bits are set from when device table entries say so. What was written before is not told. */
  #track(enabled: boolean): void {
    if (enabled === this.#tracking) return;
    this.#tracking = enabled;
    this.#host.refresh(this);
  }

  /** Before table pages are given back, every cache forgets. */
  #flushGathered(): void {
    const { gather } = this.#mapper;
    if (gather.pending) {
      const { start: iova, end, tables } = gather;
      this.#host.flush(this, { iova, length: end - iova, leavesOnly: !tables });
    }
    this.#mapper.release();
  }
}
