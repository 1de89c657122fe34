/**
 * A host domain of VT-d units: a first-stage or a second-stage table. What is unmapped is flushed from the caches of every
 * unit and function that has it, and of those that have a guest's table above it, before table pages go back to memory
 * (§6.5.1).
 */
import type { EventSink } from "../../base/events.ts";
import type { DirtyTracking, DomainGeometry, PagingDomain } from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { mappedEnd, type PageTableFormat, Protection } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { vtdFirstLevel } from "../../pagetable/vtd-first-level.ts";
import { vtdSecondLevel } from "../../pagetable/vtd-second-level.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Range } from "../range.ts";
import { requireEnd, stillUsed } from "../refusals.ts";
import type { Abilities, Levels } from "./abilities.ts";
import { type Residence, Resident } from "./residence.ts";
import type { SecondStage, Translation } from "./translation.ts";
import type { Unit } from "./unit.ts";

export interface VtdDomainOptions {
  readonly stage: "first" | "second";
  readonly nestParent: boolean;
  readonly dirtyTracking: boolean;
  /** Page faults under it are reported. */
  readonly faults: boolean;
}

/** A guest's table above a domain. */
export interface GuestTable {
  /** The domain's table changed; `added`: nothing was taken away. */
  parentChanged(range: Range, added: boolean): void;
  /** What table entries say of the domain has changed. */
  refresh(): void;
}

/** What of a unit made the table what it is. */
type Geometry = Pick<Abilities, "hostAddressWidth" | "snoopControl"> & {
  readonly levels: Levels;
  readonly pageLg2s: readonly number[];
  /** Addresses end here. */
  readonly end: number;
};

export class VtdDomain extends Resident implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly options: VtdDomainOptions;
  readonly levels: Levels;
  readonly apertures: DomainGeometry["apertures"];
  readonly pageSizes: bigint;
  readonly dirty?: DirtyTracking;
  /** Guests' tables above it. */
  readonly nested = new Set<GuestTable>();
  readonly #maker: Unit;
  readonly #geometry: Geometry;
  readonly #mapper: Mapper;
  readonly #events: EventSink;
  readonly #forget: (domain: VtdDomain) => void;
  #tracking = false;
  #freed = false;

  /** Throws ENOSPC when the unit has no domain id left, ENOMEM. */
  constructor(unit: Unit, options: VtdDomainOptions, events: EventSink, forget: (domain: VtdDomain) => void) {
    super();
    this.options = options;
    this.#maker = unit;
    this.#events = events;
    this.#forget = forget;
    this.id = this.settle(unit).id;
    this.name = `${unit.name} domain ${this.id}`;
    try {
      this.#mapper = new Mapper(unit.memory, formatOf(unit.abilities, options));
    } catch (error) {
      this.depart(unit);
      throw error;
    }
    this.#geometry = geometryOf(unit.abilities, options.stage, this.#mapper);
    this.levels = this.#geometry.levels;
    this.pageSizes = this.#geometry.pageLg2s.reduce((sizes, lg2) => sizes | (1n << BigInt(lg2)), 0n);
    this.apertures = [{ start: 0, end: this.#geometry.end }];
    if (options.dirtyTracking)
      this.dirty = {
        set: (enabled) => this.#track(enabled),
        read: (iova, length, clear, visit) => this.#readDirty(iova, length, clear, visit),
      };
  }

  get memory(): HostMemory {
    return this.#maker.memory;
  }
  /** Host physical address of the top table. */
  get root(): number {
    return this.#mapper.root;
  }

  /** Why functions behind the unit cannot have it; undefined: they can. */
  unfitFor({ abilities, memory }: Unit): string | undefined {
    if (this.#freed) return "it was freed";
    if (memory !== this.memory) return "it is of another machine";
    const { stage, nestParent, dirtyTracking } = this.options;
    const { levels, pageLg2s, hostAddressWidth, snoopControl, end } = this.#geometry;
    const first = stage === "first";
    if (!(first ? abilities.firstStage : abilities.secondStage)) return `the unit has no ${stage} stage`;
    if (first ? levels > abilities.firstLevels : !abilities.secondLevels.includes(levels))
      return `the unit takes no table of ${levels} levels`;
    if (!first && end > 2 ** abilities.guestAddressBits)
      return `the unit accepts ${abilities.guestAddressBits} address bits`;
    const sizes = first ? abilities.firstPageLg2s : abilities.secondPageLg2s;
    if (!pageLg2s.every((lg2) => sizes.includes(lg2))) return "the unit has not all of its page sizes";
    if (hostAddressWidth > abilities.hostAddressWidth)
      return "its tables may lie where the unit does not reach";
    if (snoopControl && !abilities.snoopControl)
      return "its accesses snoop, which the unit cannot make them do";
    if (nestParent && !abilities.nesting) return "the unit does not nest";
    if (dirtyTracking && !abilities.dirtyTracking) return "the unit does not track dirty pages";
    return undefined;
  }

  translation(unit: Unit): Translation {
    const { snoopControl: snoop, levels } = this.#geometry;
    const id = this.idOn(unit);
    return this.options.stage === "first"
      ? {
          id,
          snoop,
          first: {
            root: BigInt(this.root),
            levels: levels as 4 | 5,
            supervisor: false,
            extendedAccessed: false,
            writeProtect: true,
          },
        }
      : {
          id,
          // Its leaves say it themselves.
          snoop: false,
          second: this.secondStage,
        };
  }

  /** Of a second stage: what guests' tables lie above. */
  get secondStage(): SecondStage {
    return { root: this.root, levels: this.levels, accessedDirty: this.#tracking };
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    const { end } = this.#geometry;
    requireEnd(this.name, iova, length, end);
    if (this.options.nestParent && !(protection & Protection.write))
      throw new LinuxError(
        "EINVAL",
        "a nest parent takes no read-only mapping (erratum 772415): map it writable too",
        this.name,
      );
    // A first stage cannot say that a page is to be written only.
    const first = this.options.stage === "first" && protection & Protection.write;
    this.#mapper.map(iova, pa, length, first ? protection | Protection.read : protection);
    this.#flush({ iova, length, leavesOnly: false }, true);
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
    if (this.isAttached || this.nested.size > 0)
      throw stillUsed(this.name, "devices, or guests' tables above it,");
    this.#freed = true;
    for (const unit of [...this.residences.keys()]) this.depart(unit);
    this.#forget(this);
    this.#mapper.destroy();
  }

  /** The last function behind the unit has left: the maker's id stays its name. */
  leave(unit: Unit): void {
    if (unit !== this.#maker) this.depart(unit);
  }

  /** Before table pages are given back, every cache forgets. */
  #flushGathered(): void {
    const { gather } = this.#mapper;
    if (gather.pending)
      this.#flush(
        { iova: gather.start, length: gather.end - gather.start, leavesOnly: !gather.tables },
        false,
      );
    this.#mapper.release();
  }

  /** `added`: needed only where a unit may have cached that nothing was there (CAP.CM). */
  #flush(range: Range, added: boolean): void {
    for (const residence of this.residences.values()) {
      const { unit, id, attachments } = residence;
      if (attachments.size === 0 || (added && !unit.abilities.cachingMode)) continue;
      if (this.options.stage === "second") unit.invalidations.iotlbRange(id, range);
      else flushFirstStage(residence, range);
      for (const { device, pasid } of attachments) unit.flushDevice(device, pasid, range);
    }
    for (const nested of this.nested) nested.parentChanged(range, added);
  }

  #track(enabled: boolean): void {
    if (enabled === this.#tracking) return;
    this.#tracking = enabled;
    this.refresh();
    for (const nested of this.nested) nested.refresh();
  }

  #readDirty(
    iova: number,
    length: number,
    clear: boolean,
    visit: (iova: number, bytes: number) => void,
  ): void {
    this.#mapper.scanDirty(iova, length, clear, visit);
    this.#flushGathered();
  }
}

/** Flushes first-stage addresses of every PASID that goes through the table. */
export const flushFirstStage = ({ unit, id, attachments }: Residence, range: Range): void => {
  const pasids = new Set<number>();
  for (const { pasid } of attachments) pasids.add(pasid);
  for (const pasid of pasids) unit.invalidations.pasidIotlb(id, pasid, range);
};

/** A first stage whose leaves are made accessed and dirty: nobody asks, and the unit has nothing to write to them. */
const marked = (levels: 4 | 5, pageLg2s: readonly number[], hostAddressWidth: number): PageTableFormat => {
  const format = vtdFirstLevel(levels, { pageLg2s, hostAddressWidth });
  const { accessed = 0n, dirty = 0n } = format.levels[0]!.leaves[0]!;
  return {
    ...format,
    leafBits(protection) {
      const bits = format.leafBits(protection);
      return bits < 0n ? bits : bits | accessed | (protection & Protection.write ? dirty : 0n);
    },
  };
};

const formatOf = (abilities: Abilities, { stage, dirtyTracking }: VtdDomainOptions): PageTableFormat => {
  const { hostAddressWidth, snoopControl } = abilities;
  if (stage === "first") return marked(abilities.firstLevels, abilities.firstPageLg2s, hostAddressWidth);
  return vtdSecondLevel(abilities.secondLevels[0]!, {
    pageLg2s: abilities.secondPageLg2s,
    hostAddressWidth,
    snoopControl,
    forceSnoop: snoopControl,
    accessedDirty: dirtyTracking,
  });
};

const geometryOf = (abilities: Abilities, stage: "first" | "second", { format }: Mapper): Geometry => {
  const { hostAddressWidth, snoopControl, guestAddressBits } = abilities;
  const first = stage === "first";
  return {
    hostAddressWidth,
    snoopControl,
    levels: format.levels.length as Levels,
    pageLg2s: first ? abilities.firstPageLg2s : abilities.secondPageLg2s,
    end: first ? mappedEnd(format) : Math.min(mappedEnd(format), 2 ** guestAddressBits),
  };
};
