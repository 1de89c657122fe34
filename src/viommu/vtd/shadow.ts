/**
 * The back end for hosts without nesting: every table of a guest is copied into an IOAS of its own, page after page, when
 * the guest invalidates. A guest page becomes a mapping of the VMM's memory behind it; what lies outside the guest's RAM is
 * left out, so that a device faults there. One mapping for each leaf of the guest, because mappings are unmapped whole.
 *
 * A guest's tables can be cyclic or endless: what is looked at and what is mapped at once is bounded, and beyond it the
 * invalidation is refused. Left out: PASIDs, which need an IOAS each and hosts that give them to devices.
 */
import { LinuxError } from "../../uapi/errno.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import type { HostCalls } from "../host-calls.ts";
import type { BackEnd, Forget, ForgetOutcome, Reread } from "./back-end.ts";
import { endOf, type Found, type GuestStage, type GuestTables, type Translation } from "./tables.ts";

export interface ShadowOptions {
  readonly calls: HostCalls;
  readonly ram: GuestRam;
  readonly devices: readonly AssignedDevice[];
  readonly tables: Pick<GuestTables, "find">;
  /** Of requests without PASID. */
  translationOf(rid: number): Translation;
  /** Pages looked for at once, and mappings of one table. */
  readonly mostSteps?: number;
  readonly mostMappings?: number;
}

/** A leaf as it is mapped: the part of it that lies in RAM. */
interface Area {
  readonly iova: number;
  readonly length: number;
  readonly target: number;
  readonly readable: boolean;
  readonly writable: boolean;
}

/** A guest's table and its copy. */
interface Shadow {
  readonly ioas: number;
  readonly stage: GuestStage;
  readonly domain: number;
  /** By first address. */
  readonly areas: Map<number, Area>;
  readonly devices: Set<number>;
}

const MOST_STEPS = 2 ** 20;
const MOST_MAPPINGS = 2 ** 16;
const PAGE = 4096;

export class ShadowBackEnd implements BackEnd {
  readonly #options: ShadowOptions;
  readonly #shadows = new Map<string, Shadow>();
  /** What each device has: the key of a shadow, or identity. */
  readonly #attached = new Map<number, string>();
  readonly #identity: number;

  /** Maps all of the guest's RAM once, for devices whose requests pass untranslated. */
  constructor(options: ShadowOptions) {
    const { calls, ram } = options;
    this.#options = options;
    this.#identity = calls.allocateIoas();
    calls.map(this.#identity, { iova: 0, va: ram.va, length: ram.bytes });
    this.reread({});
  }

  /** Mappings. */
  get held(): number {
    let sum = 0;
    for (const { areas } of this.#shadows.values()) sum += areas.size;
    return sum;
  }

  reread({ rid }: Reread): void {
    for (const device of this.#options.devices)
      if (rid === undefined || rid === device.rid) this.#follow(device);
  }

  forget(list: readonly Forget[]): ForgetOutcome {
    for (const [done, request] of list.entries())
      try {
        for (const shadow of this.#shadows.values())
          if (request.domain === undefined || request.domain === shadow.domain)
            this.#synchronize(shadow, request.range);
      } catch (error) {
        return { done, error };
      }
    return { done: list.length };
  }

  /** Gives the device what the guest's entries say now. */
  #follow(device: AssignedDevice): void {
    const { calls, translationOf } = this.#options;
    const wanted = translationOf(device.rid);
    const key = keyOf(wanted);
    const before = this.#attached.get(device.rid);
    if (before === key) return;
    if (key === undefined) {
      calls.detach(device.fd);
      this.#attached.delete(device.rid);
    } else {
      const shadow = wanted.kind === "stage" ? this.#shadowOf(key, wanted) : undefined;
      shadow?.devices.add(device.rid);
      try {
        calls.attach(device.fd, shadow?.ioas ?? this.#identity);
      } catch (error) {
        this.#leave(device.rid, key);
        throw error;
      }
      this.#attached.set(device.rid, key);
    }
    if (before !== undefined) this.#leave(device.rid, before);
  }

  #shadowOf(key: string, { domain, stage }: Extract<Translation, { kind: "stage" }>): Shadow {
    const known = this.#shadows.get(key);
    if (known) return known;
    const ioas = this.#options.calls.allocateIoas();
    const shadow = { ioas, stage, domain, areas: new Map<number, Area>(), devices: new Set<number>() };
    try {
      this.#synchronize(shadow, undefined);
    } catch (error) {
      this.#options.calls.destroy(ioas);
      throw error;
    }
    this.#shadows.set(key, shadow);
    return shadow;
  }

  #leave(rid: number, key: string): void {
    const shadow = this.#shadows.get(key);
    if (!shadow) return;
    shadow.devices.delete(rid);
    if (shadow.devices.size > 0) return;
    this.#shadows.delete(key);
    this.#options.calls.destroy(shadow.ioas);
  }

  /** Makes the copy of [start, start + length), or of the whole table, what the guest's table is. */
  #synchronize(shadow: Shadow, range: Forget["range"]): void {
    const { calls, ram } = this.#options;
    const [start, end] = this.#bounds(shadow, range);
    const wanted = this.#leaves(shadow, start, end);
    for (const area of overlapping(shadow.areas, start, end)) {
      if (isSame(area, wanted.get(area.iova))) continue;
      calls.unmap(shadow.ioas, area.iova, area.length);
      shadow.areas.delete(area.iova);
    }
    for (const area of wanted.values()) {
      if (shadow.areas.has(area.iova)) continue;
      const { iova, length, target, readable, writable } = area;
      calls.map(shadow.ioas, { iova, va: ram.va + target, length, readable, writable });
      shadow.areas.set(iova, area);
    }
  }

  /** The range within the table's addresses, with every area that reaches out of it. */
  #bounds({ stage, areas }: Shadow, range: Forget["range"]): readonly [number, number] {
    if (!range) return [0, endOf(stage)];
    let start = Math.min(range.start, endOf(stage));
    let end = Math.min(range.start + range.length, endOf(stage));
    for (const area of overlapping(areas, start, end)) {
      start = Math.min(start, area.iova);
      end = Math.max(end, area.iova + area.length);
    }
    return [start, end];
  }

  /** The guest's leaves that touch the range, as they are to be mapped. Throws ENOSPC beyond the bounds. */
  #leaves({ stage }: Shadow, start: number, end: number): Map<number, Area> {
    const { tables, ram, mostSteps = MOST_STEPS, mostMappings = MOST_MAPPINGS } = this.#options;
    const leaves = new Map<number, Area>();
    let steps = 0;
    for (let at = start; at < end; steps++) {
      if (steps === mostSteps || leaves.size > mostMappings)
        throw new LinuxError(
          "ENOSPC",
          `a guest's table needs more than ${mostMappings} mappings or ${mostSteps} steps`,
        );
      const found = tables.find(stage, at);
      if (found.page) {
        const area = withinRam(found, ram.bytes);
        if (area) leaves.set(area.iova, area);
      }
      at = found.page ? found.start + found.length : found.end;
    }
    return leaves;
  }
}

/** Undefined: it has nothing. */
const keyOf = (translation: Translation): string | undefined => {
  switch (translation.kind) {
    case "blocked":
      return undefined;
    case "passThrough":
      return "identity";
    case "stage":
      return `${translation.domain} ${translation.stage.key}`;
  }
};

/** The whole pages of a leaf that lie in RAM; undefined: none. */
const withinRam = (leaf: Extract<Found, { page: true }>, bytes: number): Area | undefined => {
  const { start, target, readable, writable } = leaf;
  const length = Math.min(leaf.length, Math.floor((bytes - target) / PAGE) * PAGE);
  return length > 0 ? { iova: start, length, target, readable, writable } : undefined;
};

const overlapping = (areas: ReadonlyMap<number, Area>, start: number, end: number): Area[] => {
  if (end - start === PAGE && areas.has(start)) return [areas.get(start)!];
  return [...areas.values()].filter(({ iova, length }) => iova < end && iova + length > start);
};

const isSame = (area: Area, other: Area | undefined): boolean =>
  other !== undefined &&
  area.length === other.length &&
  area.target === other.target &&
  area.readable === other.readable &&
  area.writable === other.writable;
