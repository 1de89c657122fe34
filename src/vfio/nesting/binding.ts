/** A guest's table that the devices of a group have for one PASID, until it is unbound, or the PASID is freed. */
import type { Group } from "../../iommu/core.ts";
import type { NestedDomain } from "../../iommu/driver.ts";
import type { PasidSet, PasidUser } from "../../iommu/pasids.ts";
import type { Task } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { VfioContext } from "../context.ts";
import type { FaultOwner } from "../fault-region.ts";
import type { ChangedRange } from "./changed-range.ts";
import type { SingleTables } from "./format.ts";
import { GuestFaults } from "./guest-faults.ts";

export interface Bound {
  readonly group: Group;
  /** The devices have it. */
  readonly nested: NestedDomain;
  /** Whose PASID it is. */
  readonly set: PasidSet;
  readonly pasid: number;
  /** The guest's name for it. */
  readonly guestPasid: number | undefined;
  /** Told when it is unbound. */
  readonly gone: (binding: Binding) => void;
}

export class Binding implements PasidUser, FaultOwner {
  readonly #bound: Bound;
  readonly #faults: GuestFaults;

  /** The devices have it by now. */
  constructor(context: Pick<VfioContext, "device">, bound: Bound) {
    this.#bound = bound;
    this.#faults = new GuestFaults(context, { ...bound, under: this });
  }

  get pasid(): number {
    return this.#bound.pasid;
  }
  get guestPasid(): number | undefined {
    return this.#bound.guestPasid;
  }
  get set(): PasidSet {
    return this.#bound.set;
  }

  ownedBy(task: Task): boolean {
    return this.set.isOf(task);
  }

  /** Whether the host or the guest calls it so. */
  isCalled(pasid: bigint): boolean {
    const { pasid: host, guestPasid } = this.#bound;
    return BigInt(host) === pasid || (guestPasid !== undefined && BigInt(guestPasid) === pasid);
  }

  /** The devices lose the table. Throws what the units answer; then it is bound still. */
  unbind(): void {
    const { group, nested, set, pasid, gone } = this.#bound;
    group.detach(pasid);
    this.#faults.close();
    nested.free();
    set.unuse(pasid, this);
    gone(this);
  }

  /** The guest changed its table there; undefined: everywhere. Throws what stopped it. */
  invalidate(format: SingleTables, range: ChangedRange | undefined): void {
    const { nested } = this.#bound;
    if (!nested.invalidate)
      throw new LinuxError("EOPNOTSUPP", "its unit takes no invalidations", nested.name);
    const { error } = nested.invalidate(format.changeOf(range));
    if (error !== undefined) throw error;
  }
}
