/**
 * The way of page requests between a host and a guest by iommufd: from the host's fault queue to the guest's unit, and the
 * guest's answers back (IOMMU_FAULT_QUEUE_ALLOC).
 */
import type { Scheduler } from "../base/scheduler.ts";
import { NO_PASID } from "../hardware/unit.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_PGFAULT_FLAGS_LAST_PAGE,
  IOMMU_PGFAULT_FLAGS_PASID_VALID,
  IOMMUFD_PAGE_RESP_INVALID,
  IOMMUFD_PAGE_RESP_SUCCESS,
} from "../uapi/iommufd.ts";
import type { AssignedDevice } from "./assigned.ts";
import type { HostCalls, PageFault } from "./host-calls.ts";
import { PageGroups, type PageRequestTaker } from "./page-groups.ts";
import { whenReady } from "./ready.ts";

export interface PageFaultsOptions {
  readonly calls: HostCalls;
  readonly iommu: PageRequestTaker;
  readonly devices: readonly AssignedDevice[];
  readonly scheduler: Scheduler;
}

export class PageFaults {
  /** Of the fault queue. */
  readonly id: number;
  readonly #options: PageFaultsOptions;
  readonly #fd: number;
  /** By the host's cookie. */
  readonly #groups: PageGroups<number>;

  constructor(options: PageFaultsOptions) {
    const { calls, iommu } = options;
    this.#options = options;
    const { id, fd } = calls.allocateFaults();
    this.id = id;
    this.#fd = fd;
    this.#groups = new PageGroups(iommu, (cookie, success) => this.#respond(cookie, success));
    whenReady(calls.task, fd, options.scheduler, () => this.#read());
  }

  /** Groups that the guest has not answered. */
  get waiting(): number {
    return this.#groups.waiting;
  }

  #read(): void {
    const { calls } = this.#options;
    for (let faults = calls.readFaults(this.#fd); faults.length > 0; faults = calls.readFaults(this.#fd))
      for (const fault of faults) this.#forward(fault);
  }

  #forward({ dev_id, flags, pasid, addr, perm, cookie }: PageFault): void {
    const device = this.#options.devices.find(({ id }) => id === dev_id);
    const last = (flags & IOMMU_PGFAULT_FLAGS_LAST_PAGE) !== 0;
    const tagged = (flags & IOMMU_PGFAULT_FLAGS_PASID_VALID) !== 0;
    if (device) {
      const tag = tagged ? pasid : NO_PASID;
      this.#groups.ask({ rid: device.rid, pasid: tag, address: addr, permissions: perm, last }, cookie);
    } else if (last) this.#respond(cookie, false);
  }

  #respond(cookie: number, success: boolean): void {
    const { calls } = this.#options;
    // A VMM that was killed has answered everything by that.
    if (!calls.task.file(this.#fd)) return;
    try {
      calls.respond(this.#fd, cookie, success ? IOMMUFD_PAGE_RESP_SUCCESS : IOMMUFD_PAGE_RESP_INVALID);
    } catch (error) {
      // The host answered it itself: the device has left the table meanwhile.
      if (!(error instanceof LinuxError && error.code === "EINVAL")) throw error;
    }
  }
}
