/**
 * The way of page requests between a host and a guest: from the host's fault queue to the guest's unit, and the guest's
 * answers back (IOMMU_FAULT_QUEUE_ALLOC). VT-d has a page request queue for them (revision 4.1, §7.4 and §7.7), an SMMUv3
 * accesses that stall (IHI 0070, §3.12.2).
 */
import { Ids } from "../base/ids.ts";
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

/** A group of the host that the guest has not answered. */
interface Waiting {
  readonly rid: number;
  readonly pasid: number;
  readonly cookie: number;
}

/** Groups that can wait for the guest at a time: PCI Express has 9 bits for their number. */
const GROUPS = 512;

export class PageFaults {
  /** Of the fault queue. */
  readonly id: number;
  readonly #options: PageFaultsOptions;
  readonly #fd: number;
  /** Groups that the guest has not answered, by their numbers in the guest; and these, by the host's cookie. */
  readonly #waiting = new Map<number, Waiting>();
  readonly #groups = new Map<number, number>();
  readonly #numbers = new Ids(0, GROUPS);

  constructor(options: PageFaultsOptions) {
    const { calls, iommu } = options;
    this.#options = options;
    const { id, fd } = calls.allocateFaults();
    this.id = id;
    this.#fd = fd;
    whenReady(calls.task, fd, options.scheduler, () => this.#read());
    iommu.onPageResponse = (rid, pasid, group, response) => this.#answer({ rid, pasid }, group, response);
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
    const tagged = (fault.flags & IOMMU_PGFAULT_FLAGS_PASID_VALID) !== 0;
    const pasid = tagged ? fault.pasid : NO_PASID;
    const group = device ? this.#groupOf({ rid: device.rid, pasid, cookie: fault.cookie }) : -1;
    if (!device || group < 0) {
      if (last) this.#respond(fault.cookie, PageResponse.invalid);
      return;
    }
    const request: PageRequest = {
      rid: device.rid,
      pasid,
      lo: Number(fault.addr & 0xffff_ffffn),
      hi: Number(fault.addr >> 32n),
      access: accessOf(fault.perm),
      group,
      last,
    };
    iommu.requestPage(request);
  }

  /** The number by which the guest knows a group: the host's may be of more bits. -1: too many wait. */
  #groupOf(waiting: Waiting): number {
    const known = this.#groups.get(waiting.cookie);
    if (known !== undefined) return known;
    const number = this.#numbers.take();
    if (number < 0) return -1;
    this.#groups.set(waiting.cookie, number);
    this.#waiting.set(number, waiting);
    return number;
  }

  /** An answer to something else than what waits under that number comes too late. */
  #answer({ rid, pasid }: Omit<Waiting, "cookie">, group: number, response: number): void {
    const waiting = this.#waiting.get(group);
    if (!waiting || waiting.rid !== rid || waiting.pasid !== pasid) return;
    this.#waiting.delete(group);
    this.#groups.delete(waiting.cookie);
    this.#numbers.give(group);
    this.#respond(waiting.cookie, response);
  }

  #respond(cookie: number, response: number): void {
    const success = response === PageResponse.success;
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

const accessOf = (permissions: number): number =>
  (permissions & IOMMU_PGFAULT_PERM_READ ? Access.read : 0) |
  (permissions & IOMMU_PGFAULT_PERM_WRITE ? Access.write : 0) |
  (permissions & IOMMU_PGFAULT_PERM_EXEC ? Access.execute : 0) |
  (permissions & IOMMU_PGFAULT_PERM_PRIV ? Access.privileged : 0);
