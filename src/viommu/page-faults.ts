/**
 * The way of page requests between a host and a guest: from the host's fault queue to the guest's unit, and the guest's
 * answers back (IOMMU_FAULT_QUEUE_ALLOC). VT-d has a page request queue for them (revision 4.1, §7.4 and §7.7), an SMMUv3
 * accesses that stall (IHI 0070, §3.12.2).
 */
import type { Scheduler } from "../base/scheduler.ts";
import type { PageRequest, PageResponder } from "../hardware/ats.ts";
import { PageResponse } from "../hardware/ats.ts";
import { Access, NO_PASID } from "../hardware/unit.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_PGFAULT_FLAGS_LAST_PAGE,
  IOMMU_PGFAULT_FLAGS_PASID_VALID,
  IOMMU_PGFAULT_PERM_EXEC,
  IOMMU_PGFAULT_PERM_PRIV,
  IOMMU_PGFAULT_PERM_READ,
  IOMMU_PGFAULT_PERM_WRITE,
  IOMMUFD_PAGE_RESP_INVALID,
  IOMMUFD_PAGE_RESP_SUCCESS,
} from "../uapi/iommufd.ts";
import type { AssignedDevice } from "./assigned.ts";
import type { HostCalls, PageFault } from "./host-calls.ts";
import { whenReady } from "./ready.ts";

/** The guest's unit. */
export interface PageRequestTaker {
  /** A page that a device of the guest asks for. */
  requestPage(request: PageRequest): void;
  /** Takes the guest's answers, and those that the unit gives where the guest cannot. */
  onPageResponse: PageResponder;
}

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
  /** Cookies of groups that the guest has not answered, by device, PASID and group. */
  readonly #waiting = new Map<string, number>();

  constructor(options: PageFaultsOptions) {
    const { calls, iommu } = options;
    this.#options = options;
    const { id, fd } = calls.allocateFaults();
    this.id = id;
    this.#fd = fd;
    whenReady(calls.task, fd, options.scheduler, () => this.#read());
    iommu.onPageResponse = (rid, pasid, group, response) => this.#answer(keyOf(rid, pasid, group), response);
  }

  /** Groups that the guest has not answered. */
  get waiting(): number {
    return this.#waiting.size;
  }

  #read(): void {
    const { calls } = this.#options;
    for (let faults = calls.readFaults(this.#fd); faults.length > 0; faults = calls.readFaults(this.#fd))
      for (const fault of faults) this.#forward(fault);
  }

  #forward(fault: PageFault): void {
    const { iommu, devices } = this.#options;
    const device = devices.find(({ id }) => id === fault.dev_id);
    const last = (fault.flags & IOMMU_PGFAULT_FLAGS_LAST_PAGE) !== 0;
    if (!device) {
      if (last) this.#respond(fault.cookie, PageResponse.invalid);
      return;
    }
    const tagged = (fault.flags & IOMMU_PGFAULT_FLAGS_PASID_VALID) !== 0;
    const request: PageRequest = {
      rid: device.rid,
      pasid: tagged ? fault.pasid : NO_PASID,
      lo: Number(fault.addr & 0xffff_ffffn),
      hi: Number(fault.addr >> 32n),
      access: accessOf(fault.perm),
      group: fault.grpid,
      last,
    };
    if (last) this.#waiting.set(keyOf(request.rid, request.pasid, request.group), fault.cookie);
    iommu.requestPage(request);
  }

  #answer(key: string, response: number): void {
    const cookie = this.#waiting.get(key);
    if (cookie === undefined) return;
    this.#waiting.delete(key);
    this.#respond(cookie, response);
  }

  #respond(cookie: number, response: number): void {
    const success = response === PageResponse.success;
    try {
      this.#options.calls.respond(
        this.#fd,
        cookie,
        success ? IOMMUFD_PAGE_RESP_SUCCESS : IOMMUFD_PAGE_RESP_INVALID,
      );
    } catch (error) {
      // The host answered it itself: the device has left the table meanwhile.
      if (!(error instanceof LinuxError && error.code === "EINVAL")) throw error;
    }
  }
}

const keyOf = (rid: number, pasid: number, group: number): string => `${rid} ${pasid} ${group}`;

const accessOf = (permissions: number): number =>
  (permissions & IOMMU_PGFAULT_PERM_READ ? Access.read : 0) |
  (permissions & IOMMU_PGFAULT_PERM_WRITE ? Access.write : 0) |
  (permissions & IOMMU_PGFAULT_PERM_EXEC ? Access.execute : 0) |
  (permissions & IOMMU_PGFAULT_PERM_PRIV ? Access.privileged : 0);
