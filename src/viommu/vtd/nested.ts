/**
 * The back end for hosts that nest: the first-stage table of each of a guest's PASID table entries becomes a nested HWPT
 * (IOMMU_HWPT_DATA_VTD_S1) above the one that maps guest memory, attached to the device, or to a PASID of it. The host's
 * unit walks the guest's tables itself; the guest's IOTLB invalidations go to the HWPTs, in batches.
 *
 * A guest domain and PASID can be attached to several devices, and a domain-wide invalidation reaches several PASIDs: one
 * descriptor then goes to several HWPTs (notes on the wire format: the ids of the guest are in no ioctl).
 */
import { NO_PASID } from "../../hardware/unit.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_HWPT_ALLOC_NEST_PARENT, IOMMU_HWPT_ALLOC_PASID } from "../../uapi/iommufd.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import {
  affected,
  type BackEnd,
  type Forget,
  type GuestSide,
  type Reread,
  type Translation,
} from "../by-domain.ts";
import type { Told } from "../following.ts";
import { EVERYTHING, type ForgottenRange, type HostCalls } from "../host-calls.ts";
import type { FirstStageTable } from "./tables.ts";

export interface NestedOptions {
  readonly calls: HostCalls;
  readonly ram: GuestRam;
  readonly devices: readonly AssignedDevice[];
  readonly guest: GuestSide<FirstStageTable>;
  /** Devices have PASIDs: page tables are made so that any of them can have any. */
  readonly pasids: boolean;
  /** Fault queue for nested HWPTs; undefined: page requests are not passed on. */
  readonly faults: number | undefined;
}

/** What a device, or a PASID of it, has on the host. */
interface Attached {
  readonly key: string;
  /** The guest's ids. */
  readonly domain: number;
  readonly pasid: number;
  /** Its own HWPT; undefined: the one that maps guest memory. */
  readonly hwpt: number | undefined;
}

/** Invalidations for one HWPT, and which request of the guest each is of. */
interface Batch {
  readonly ranges: ForgottenRange[];
  readonly requests: number[];
}

const PAGE = 4096;

export class NestedBackEnd implements BackEnd {
  readonly #options: NestedOptions;
  /** The HWPT that maps guest memory, one for all devices. */
  readonly #parent: number;
  /** By device, by PASID (`NO_PASID`: without). */
  readonly #attached = new Map<AssignedDevice, Map<number, Attached>>();

  /** Maps all of the guest's RAM; devices get what the guest's tables say. */
  constructor(options: NestedOptions) {
    const { calls, ram, devices, pasids } = options;
    this.#options = options;
    const ioas = calls.allocateIoas();
    calls.map(ioas, { iova: 0, va: ram.va, length: ram.bytes });
    const first = devices[0];
    if (!first) throw new RangeError("a virtual IOMMU without devices has nothing to nest");
    const flags = IOMMU_HWPT_ALLOC_NEST_PARENT | (pasids ? IOMMU_HWPT_ALLOC_PASID : 0);
    this.#parent = calls.allocateHwpt(first.id, ioas, flags);
    for (const device of devices) this.#attached.set(device, new Map());
    this.reread({});
  }

  /** HWPTs. */
  get held(): number {
    let sum = 0;
    for (const had of this.#attached.values())
      for (const { hwpt } of had.values()) if (hwpt !== undefined) sum += 1;
    return sum;
  }

  reread({ rid, pasid }: Reread): void {
    for (const [device, had] of this.#attached) {
      if (rid !== undefined && rid !== device.rid) continue;
      const known = { pasids: [...had.keys()], stands: had.get(NO_PASID)?.pasid };
      for (const one of affected(this.#options.guest, device.rid, known, pasid))
        this.#follow(device, had, one);
    }
  }

  forget(list: readonly Forget[]): Told {
    const batches = this.#batches(list);
    let done = list.length;
    let error: unknown;
    for (const [hwpt, { ranges, requests }] of batches) {
      // What comes after the first that was refused can wait: the guest asks for it again.
      const before = requests.findIndex((request) => request >= done);
      const part = before < 0 ? ranges : ranges.slice(0, before);
      if (part.length === 0) continue;
      const outcome = this.#options.calls.invalidate(hwpt, part);
      if (outcome.done === part.length) continue;
      done = requests[outcome.done]!;
      error = outcome.error;
    }
    return { done, error };
  }

  /** Gives the device, or the PASID, what the guest's entry says now. */
  #follow(device: AssignedDevice, had: Map<number, Attached>, pasid: number): void {
    const { calls, guest } = this.#options;
    const tag = pasid === NO_PASID ? undefined : pasid;
    const wanted = guest.translationOf(device.rid, pasid);
    const before = had.get(pasid);
    const key = keyOf(wanted);
    if (before?.key === key) return;
    if (wanted.kind === "blocked") {
      calls.detach(device.fd, tag);
      had.delete(pasid);
    } else {
      const hwpt = wanted.kind === "stage" ? this.#allocate(device, wanted) : undefined;
      try {
        calls.attach(device.fd, hwpt ?? this.#parent, tag);
      } catch (error) {
        if (hwpt !== undefined) calls.destroy(hwpt);
        throw error;
      }
      had.set(pasid, { key: key!, domain: wanted.domain, pasid: wanted.pasid, hwpt });
    }
    if (before?.hwpt !== undefined) calls.destroy(before.hwpt);
  }

  #allocate(
    { id }: AssignedDevice,
    { stage }: Extract<Translation<FirstStageTable>, { kind: "stage" }>,
  ): number {
    const { calls, faults, pasids } = this.#options;
    if (!stage.first)
      throw new LinuxError("EOPNOTSUPP", "a host nests first stages; the guest's entry has a second stage");
    return calls.allocateNested(id, this.#parent, stage.first, { pasid: pasids, faults });
  }

  #batches(list: readonly Forget[]): Map<number, Batch> {
    const batches = new Map<number, Batch>();
    for (const [request, asked] of list.entries())
      for (const had of this.#attached.values())
        for (const attached of had.values()) {
          if (attached.hwpt === undefined || !isAbout(asked, attached)) continue;
          let batch = batches.get(attached.hwpt);
          if (!batch) batches.set(attached.hwpt, (batch = { ranges: [], requests: [] }));
          batch.ranges.push(rangeOf(asked));
          batch.requests.push(request);
        }
    return batches;
  }
}

/** Undefined: it has nothing. */
const keyOf = (translation: Translation<FirstStageTable>): string | undefined => {
  switch (translation.kind) {
    case "blocked":
      return undefined;
    case "passThrough":
      return `${translation.domain} ${translation.pasid} identity`;
    case "stage":
      return `${translation.domain} ${translation.pasid} ${translation.stage.key}`;
  }
};

const isAbout = ({ domain, pasid }: Forget, attached: Attached): boolean =>
  (domain === undefined || domain === attached.domain) && (pasid === undefined || pasid === attached.pasid);

/** Addresses of a request without a PASID are those of a second stage: the first stages above forget everything. */
const rangeOf = ({ pasid, range, leavesOnly }: Forget): ForgottenRange =>
  pasid === undefined || range === undefined
    ? { address: 0n, pages: EVERYTHING, leavesOnly: false }
    : { address: BigInt(range.start), pages: BigInt(range.length / PAGE), leavesOnly };
