/**
 * One table of a guest and its copy: an IOAS of the host with a mapping for each leaf, because mappings are unmapped
 * whole. A guest page becomes the VMM's memory behind it; what lies outside the guest's RAM is left out, so that a device
 * faults there. What is as it was is left alone, whatever else is invalidated: devices use it meanwhile.
 *
 * What has gone from the guest's table is taken away first, and always. What the host refuses to map stays unmapped, and
 * all else is mapped. A guest's tables can be endless: what is looked at and mapped has its bounds (`Budget`).
 */
import { IntervalMap } from "../../base/interval-map.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { GuestRam } from "../assigned.ts";
import type { HostCalls } from "../host-calls.ts";
import { type AddressRange, type Found, type GuestTable, within } from "./table.ts";

/** What a copy asks of its host. */
export type ShadowCalls = Pick<
  HostCalls,
  "allocateIoas" | "allocateHwpt" | "attach" | "destroy" | "detach" | "map" | "unmap"
>;

/** A leaf as it is mapped: the part of it that lies in RAM. */
interface Area {
  readonly iova: number;
  readonly length: number;
  readonly target: number;
  readonly readable: boolean;
  readonly writable: boolean;
}

/** What the copies of one guest may take, together. */
export class Budget {
  /** Mappings there are. */
  mapped = 0;
  readonly #mappings: number;
  readonly #steps: number;
  #looked = 0;

  /** Mappings in all, and pages and holes looked at for one request. */
  constructor(mappings: number, steps: number) {
    this.#mappings = mappings;
    this.#steps = steps;
  }

  /** Another request begins. */
  begin(): void {
    this.#looked = 0;
  }
  /** Throws ENOSPC beyond the bound. */
  look(): void {
    if (this.#looked === this.#steps)
      throw new LinuxError("ENOSPC", `to copy a guest's table takes more than ${this.#steps} steps`);
    this.#looked += 1;
  }
  /** So many mappings more. Throws ENOSPC beyond the bound. */
  require(more: number): void {
    if (this.mapped + more > this.#mappings)
      throw new LinuxError("ENOSPC", `the tables of a guest have more than ${this.#mappings} mappings`);
  }
}

const PAGE = 4096;

export class Copy {
  readonly ioas: number;
  readonly table: GuestTable;
  readonly #calls: ShadowCalls;
  readonly #ram: GuestRam;
  readonly #budget: Budget;
  readonly #areas = new IntervalMap<Area>();

  /** Empty. */
  constructor(table: GuestTable, calls: ShadowCalls, ram: GuestRam, budget: Budget) {
    this.table = table;
    this.#calls = calls;
    this.#ram = ram;
    this.#budget = budget;
    this.ioas = calls.allocateIoas();
  }

  /** What is mapped and is not in the guest's table any more goes. Throws what unmapping throws. */
  revoke(range: AddressRange): AddressRange {
    let { start, end } = range;
    for (const area of this.#overlapping(range)) {
      if (isSame(area, areaOf(this.table.find(area.iova), this.#ram.bytes))) continue;
      this.#unmap(area);
      // What has taken its place may lie beyond what was asked for.
      start = Math.min(start, area.iova);
      end = Math.max(end, area.iova + area.length);
    }
    return { start, end };
  }

  /**
   * What is in the guest's table and not mapped is mapped. Throws ENOSPC beyond the bounds, and nothing is mapped then; else
   * the first thing that the host refused.
   */
  add(range: AddressRange): void {
    const missing = within(this.table, range).flatMap((part) => this.#missing(part));
    this.#budget.require(missing.length);
    const refused = missing.map((area) => this.#map(area)).find((error) => error !== undefined);
    if (refused) throw refused;
  }

  /** The host forgets all of it; no device has it any more. */
  free(): void {
    this.#budget.mapped -= this.#areas.size;
    this.#calls.destroy(this.ioas);
  }

  /** Throws ENOSPC beyond the bounds. */
  #missing({ start, end }: AddressRange): Area[] {
    const missing: Area[] = [];
    for (let at = start; at < end; ) {
      const known = this.#areaAt(at);
      if (known) {
        at = known.iova + known.length;
        continue;
      }
      this.#budget.look();
      const found = this.table.find(at);
      at = found.page ? found.start + found.length : found.end;
      const area = areaOf(found, this.#ram.bytes);
      if (!area) continue;
      missing.push(area);
      this.#budget.require(missing.length);
    }
    return missing;
  }

  /** What the host said when it refused. */
  #map(area: Area): LinuxError | undefined {
    for (const other of this.#overlapping({ start: area.iova, end: area.iova + area.length })) {
      if (isSame(other, area)) return undefined;
      this.#unmap(other);
    }
    const { iova, length, target, readable, writable } = area;
    try {
      this.#calls.map(this.ioas, { iova, va: this.#ram.va + target, length, readable, writable });
    } catch (error) {
      if (error instanceof LinuxError) return error;
      throw error;
    }
    this.#areas.insert(iova / PAGE, 0, (iova + length) / PAGE - 1, PAGE - 1, area);
    this.#budget.mapped += 1;
    return undefined;
  }

  #unmap({ iova, length }: Area): void {
    this.#calls.unmap(this.ioas, iova, length);
    this.#areas.find(iova / PAGE, 0);
    this.#areas.remove();
    this.#budget.mapped -= 1;
  }

  #areaAt(iova: number): Area | undefined {
    return this.#areas.find(Math.floor(iova / PAGE), 0) ? this.#areas.value : undefined;
  }

  #overlapping({ start, end }: AddressRange): Area[] {
    const areas: Area[] = [];
    const last = Math.ceil(end / PAGE) - 1;
    if (!this.#areas.overlaps(Math.floor(start / PAGE), 0, last, PAGE - 1)) return areas;
    do areas.push(this.#areas.value);
    while (this.#areas.next() && this.#areas.startPage <= last);
    return areas;
  }
}

/** The whole pages of a leaf that lie in RAM; undefined: none. */
const areaOf = (found: Found, bytes: number): Area | undefined => {
  if (!found.page) return undefined;
  const { start, target, readable, writable } = found;
  const length = Math.min(found.length, Math.floor((bytes - target) / PAGE) * PAGE);
  return length > 0 ? { iova: start, length, target, readable, writable } : undefined;
};

const isSame = (area: Area, other: Area | undefined): boolean =>
  other !== undefined &&
  area.iova === other.iova &&
  area.length === other.length &&
  area.target === other.target &&
  area.readable === other.readable &&
  area.writable === other.writable;
