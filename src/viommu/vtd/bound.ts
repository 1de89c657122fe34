/**
 * The back end for hosts with the interface of 2020 for virtual SVA: the first-stage table of each of a guest's PASID table
 * entries is bound to the PASID (VFIO_IOMMU_NESTING_OP), which the guest has from the host. The host's unit walks the
 * guest's tables itself, and the guest's invalidations go to the container, one by one.
 *
 * A container has one second stage for guest memory, which is there for requests without a PASID always: such requests reach
 * guest memory at its own addresses, whether the guest lets them or not, and tables for them are refused.
 */
import { NO_PASID } from "../../hardware/unit.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import {
  affected,
  type BackEnd,
  type Forget,
  type GuestSide,
  type Reread,
  type Translation,
} from "../by-domain.ts";
import type { ContainerCalls } from "../container-calls.ts";
import { forEvery } from "../every.ts";
import type { Told } from "../following.ts";
import type { FirstStageTable } from "./tables.ts";

export interface BoundOptions {
  readonly calls: ContainerCalls;
  readonly ram: GuestRam;
  /** Their ids are descriptors of containers. */
  readonly devices: readonly AssignedDevice[];
  readonly guest: GuestSide<FirstStageTable>;
}

/** What is bound to a PASID. */
interface Bound {
  readonly key: string;
  /** The guest's domain. */
  readonly domain: number;
}

export class BoundBackEnd implements BackEnd {
  readonly #options: BoundOptions;
  /** By device, by PASID. */
  readonly #bound = new Map<AssignedDevice, Map<number, Bound>>();
  /** The PASID that stands for requests without one, by device. */
  readonly #stands = new Map<AssignedDevice, number>();

  /** Maps all of the guest's RAM. */
  constructor(options: BoundOptions) {
    const { calls, ram, devices } = options;
    this.#options = options;
    for (const device of devices) {
      calls.map(device.id, { iova: 0, va: ram.va, length: ram.bytes });
      this.#bound.set(device, new Map());
    }
  }

  /** Tables. */
  get held(): number {
    return [...this.#bound.values()].reduce((sum, { size }) => sum + size, 0);
  }

  reread({ rid, pasid }: Reread): void {
    for (const [device, had] of this.#bound) {
      if (rid !== undefined && rid !== device.rid) continue;
      const known = { pasids: [...had.keys()], stands: this.#stands.get(device) };
      forEvery(affected(this.#options.guest, device.rid, known, pasid), (one) =>
        this.#follow(device, had, one),
      );
    }
  }

  forget(list: readonly Forget[]): Told {
    for (const [done, asked] of list.entries())
      try {
        this.#invalidate(asked);
      } catch (error) {
        return { done, error };
      }
    return { done: list.length };
  }

  /** Gives the PASID what the guest's entry says now. */
  #follow(device: AssignedDevice, had: Map<number, Bound>, pasid: number): void {
    const { calls, guest } = this.#options;
    const wanted = guest.translationOf(device.rid, pasid);
    if (pasid === NO_PASID) {
      this.#standFor(device, wanted);
      return;
    }
    const key = keyOf(wanted);
    if (had.get(pasid)?.key === key) return;
    if (had.has(pasid)) {
      calls.unbind(device.id, pasid);
      had.delete(pasid);
    }
    if (wanted.kind === "blocked") return;
    if (wanted.kind === "passThrough" || !wanted.stage.first)
      throw new LinuxError("EOPNOTSUPP", "a host binds first stages; the guest's entry for a PASID has none");
    calls.bind(device.id, pasid, wanted.stage.first);
    had.set(pasid, { key: key!, domain: wanted.domain });
  }

  #standFor(device: AssignedDevice, wanted: Translation<FirstStageTable>): void {
    if (wanted.kind !== "blocked") this.#stands.set(device, wanted.pasid);
    if (wanted.kind === "stage")
      throw new LinuxError(
        "EOPNOTSUPP",
        "a container has its own second stage for requests without a PASID; the guest's entry must be pass-through",
      );
  }

  #invalidate({ domain, pasid, range, leavesOnly }: Forget): void {
    const { calls } = this.#options;
    for (const [device, had] of this.#bound)
      for (const [one, bound] of had) {
        if (domain !== undefined && domain !== bound.domain) continue;
        if (pasid !== undefined && pasid !== one) continue;
        // Addresses of a request without a PASID are those of a second stage: the first stages above forget everything.
        const narrow = pasid === undefined ? undefined : range;
        calls.invalidate(device.id, { pasid: one, range: narrow, leavesOnly });
      }
  }
}

/** Undefined: it has nothing. */
const keyOf = (translation: Translation<FirstStageTable>): string | undefined => {
  switch (translation.kind) {
    case "blocked":
      return undefined;
    case "passThrough":
      return "identity";
    case "stage":
      return `${translation.domain} ${translation.stage.key}`;
  }
};
