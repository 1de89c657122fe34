/**
 * Where a domain is in use. A domain of the host can be given to functions behind several units; on each it has a domain
 * id of its own, by which the unit's caches know it, and what changes in its tables is flushed on each.
 */
import { LinuxError } from "../../uapi/errno.ts";
import type { Attachment } from "./device.ts";
import type { Translation } from "./translation.ts";
import type { Unit } from "./unit.ts";

export interface Residence {
  readonly unit: Unit;
  /** Domain id on the unit. */
  readonly id: number;
  readonly attachments: Set<Attachment>;
}

/** What can be given to functions and has tables. */
export abstract class Resident {
  abstract readonly name: string;
  readonly residences = new Map<Unit, Residence>();
  /** How a table entry says it. Throws EINVAL when the unit cannot. */
  abstract translation(unit: Unit): Translation;

  get isAttached(): boolean {
    for (const { attachments } of this.residences.values()) if (attachments.size > 0) return true;
    return false;
  }

  /** Comes to a unit. Throws ENOSPC. */
  settle(unit: Unit): Residence {
    const before = this.residences.get(unit);
    if (before) return before;
    const id = unit.domainIds.take();
    if (id < 0)
      throw new LinuxError("ENOSPC", `all ${unit.domainIds.inUse} domain ids are in use`, unit.name);
    const residence = { unit, id, attachments: new Set<Attachment>() };
    this.residences.set(unit, residence);
    return residence;
  }

  /** The unit's caches know nothing of it any more. */
  depart(unit: Unit): void {
    const residence = this.residences.get(unit);
    if (!residence) return;
    this.residences.delete(unit);
    unit.domainIds.give(residence.id);
  }

  idOn(unit: Unit): number {
    return this.residences.get(unit)!.id;
  }

  /** Writes the table entries of everyone who has it anew: what they say has changed. */
  refresh(): void {
    for (const { unit, attachments } of this.residences.values())
      for (const { device, pasid } of attachments) {
        const now = this.translation(unit);
        unit.tables.write(device, pasid, now, now);
      }
  }
}
