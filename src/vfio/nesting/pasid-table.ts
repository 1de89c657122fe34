/**
 * A guest's whole table of PASIDs, which the functions of a group have instead of plain second stages until it is unbound.
 * A slice of the unit (vIOMMU) stands behind it, in which the guest's numbers of functions are the host's.
 */
import type { Group } from "../../iommu/core.ts";
import type { NestedDomain, PagingDomain, UserArray, UserData, VirtualIommu } from "../../iommu/driver.ts";
import type { Task } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { VfioContext } from "../context.ts";
import type { FaultOwner } from "../fault-region.ts";
import { kernelData, type Stream } from "./format.ts";
import { GuestFaults } from "./guest-faults.ts";

const NO_DATA = kernelData(0, new Uint8Array(0));

export interface TableOptions {
  readonly group: Group;
  /** The second stage. */
  readonly parent: PagingDomain;
  /** The guest's entry for its functions. */
  readonly entry: UserData;
  /** Who binds it. */
  readonly task: Task;
}

export class PasidTable implements FaultOwner {
  readonly #group: Group;
  readonly #parent: PagingDomain;
  readonly #owner: number;
  readonly #viommu: VirtualIommu;
  readonly #nested: NestedDomain;
  readonly #faults: GuestFaults;

  /** Throws EOPNOTSUPP where the unit gives no slices, and what allocating and attaching throw; then nothing has changed. */
  constructor(context: VfioContext, { group, parent, entry, task }: TableOptions) {
    this.#group = group;
    this.#parent = parent;
    this.#owner = task.memory.id;
    const { driver, function: requester } = group.devices[0]!;
    if (!driver.allocateViommu)
      throw new LinuxError("EOPNOTSUPP", "it takes no tables of PASIDs", driver.name);
    this.#viommu = driver.allocateViommu(requester, parent, NO_DATA, () => 0n);
    let nested: NestedDomain | undefined;
    try {
      for (const device of group.devices)
        this.#viommu.addDevice?.(device.function, BigInt(device.function.rid));
      nested = this.#viommu.allocateNested!(requester, entry, { faults: true });
      group.attach(nested);
    } catch (error) {
      nested?.free();
      this.#viommu.free();
      throw error;
    }
    this.#nested = nested;
    this.#faults = new GuestFaults(context, { group, pasid: undefined, guestPasid: undefined, under: this });
  }

  /** Its functions, as the guest numbers them. */
  get streams(): readonly Stream[] {
    return this.#group.devices.map(({ function: { rid }, capabilities }) => ({
      id: BigInt(rid),
      ats: capabilities.ats ?? false,
    }));
  }

  ownedBy({ memory }: Task): boolean {
    return memory.id === this.#owner;
  }

  /** The functions have the second stage alone again. Throws what the unit answers; then it is bound still. */
  unbind(): void {
    this.#group.attach(this.#parent);
    this.#faults.close();
    this.#nested.free();
    for (const { function: requester } of this.#group.devices)
      this.#viommu.removeDevice?.(requester, BigInt(requester.rid));
    this.#viommu.free();
  }

  /** Throws what stopped it. */
  invalidate(commands: UserArray): void {
    if (commands.count === 0) return;
    const { error } = this.#viommu.invalidate!(commands);
    if (error !== undefined) throw error;
  }
}
