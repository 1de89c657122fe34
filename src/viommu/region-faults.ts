/**
 * The way of page requests between a host and a guest by the interface of 2020: from the fault regions of device files to
 * the guest's unit, and the guest's answers back (SOFTIOMMU_NESTING_OP_PAGE_RESPONSE). Faults that nobody can answer are
 * passed over: the guest's unit has no way to take them.
 */
import type { Scheduler } from "../base/scheduler.ts";
import { NO_PASID } from "../hardware/unit.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_FAULT_PAGE_REQ,
  IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE,
  IOMMU_FAULT_PAGE_REQUEST_PASID_VALID,
  IOMMU_PAGE_RESP_INVALID,
  IOMMU_PAGE_RESP_SUCCESS,
} from "../uapi/vsva.ts";
import type { AssignedDevice } from "./assigned.ts";
import type { ContainerCalls, FaultPlace } from "./container-calls.ts";
import { PageGroups, type PageRequestTaker } from "./page-groups.ts";
import { whenCounted } from "./ready.ts";

export interface RegionFaultsOptions {
  readonly calls: ContainerCalls;
  readonly iommu: PageRequestTaker;
  /** Their ids are descriptors of containers. */
  readonly devices: readonly AssignedDevice[];
  readonly scheduler: Scheduler;
}

/** A group as the host calls it. */
interface HostGroup {
  readonly container: number;
  readonly pasid: number;
  readonly number: number;
}

const TOO_LATE: ReadonlySet<string> = new Set(["ENOENT", "EACCES"]);

export class RegionFaults {
  readonly #calls: ContainerCalls;
  readonly #groups: PageGroups<string>;
  readonly #waiting = new Map<string, HostGroup>();

  /** Listens to every device. Throws EOPNOTSUPP when one has no region for faults. */
  constructor({ calls, iommu, devices, scheduler }: RegionFaultsOptions) {
    this.#calls = calls;
    this.#groups = new PageGroups(iommu, (key, success) => this.#respond(key, success));
    for (const device of devices) {
      const place = calls.faultPlace(device.fd);
      if (!place) throw new LinuxError("EOPNOTSUPP", "the device has no region for faults");
      const eventfd = calls.task.eventfd();
      calls.setInterrupts(device.fd, place.interrupt, [eventfd]);
      whenCounted(calls.task, eventfd, scheduler, () => this.#read(device, place));
    }
  }

  /** Groups that the guest has not answered. */
  get waiting(): number {
    return this.#groups.waiting;
  }

  #read({ fd, id: container, rid }: AssignedDevice, place: FaultPlace): void {
    const calls = this.#calls;
    if (!calls.task.file(fd)) return;
    for (const { type, prm } of calls.readFaults(fd, place)) {
      if (type !== IOMMU_FAULT_PAGE_REQ) continue;
      const { flags, pasid, grpid, addr: address, perm: permissions } = prm;
      const tagged = (flags & IOMMU_FAULT_PAGE_REQUEST_PASID_VALID) !== 0;
      const last = (flags & IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE) !== 0;
      const key = `${fd} ${pasid} ${grpid}`;
      this.#waiting.set(key, { container, pasid, number: grpid });
      this.#groups.ask({ rid, pasid: tagged ? pasid : NO_PASID, address, permissions, last }, key);
    }
  }

  #respond(key: string, success: boolean): void {
    const group = this.#waiting.get(key);
    this.#waiting.delete(key);
    // A VMM that was killed has answered everything by that.
    if (!group || !this.#calls.task.file(group.container)) return;
    try {
      this.#calls.respond(
        group.container,
        group,
        success ? IOMMU_PAGE_RESP_SUCCESS : IOMMU_PAGE_RESP_INVALID,
      );
    } catch (error) {
      // The host answered it itself: the table was unbound meanwhile, and the PASID is nobody's now, or another's.
      if (!(error instanceof LinuxError && TOO_LATE.has(error.code))) throw error;
    }
  }
}
