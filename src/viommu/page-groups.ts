/**
 * Groups of page requests that a VMM hands on to its guest, and the guest's answers to them, whatever the host's interface
 * calls a group. VT-d has a page request queue for them (revision 4.1, §7.4 and §7.7), an SMMUv3 accesses that stall (IHI
 * 0070, §3.12.2); both know a group by a number of 9 bits.
 */
import { Ids } from "../base/ids.ts";
import { type PageRequest, type PageResponder, PageResponse } from "../hardware/ats.ts";
import { Access } from "../hardware/unit.ts";
import {
  IOMMU_PGFAULT_PERM_EXEC,
  IOMMU_PGFAULT_PERM_PRIV,
  IOMMU_PGFAULT_PERM_READ,
  IOMMU_PGFAULT_PERM_WRITE,
} from "../uapi/iommufd.ts";

/** The guest's unit. */
export interface PageRequestTaker {
  /** A page that a device of the guest asks for. */
  requestPage(request: PageRequest): void;
  /** Takes the guest's answers, and those that the unit gives where the guest cannot. */
  onPageResponse: PageResponder;
}

/** A page that the host says a device wants. */
export interface WantedPage {
  /** The guest's name of the device. */
  readonly rid: number;
  /** `NO_PASID`: none. */
  readonly pasid: number;
  readonly address: bigint;
  /** IOMMU_PGFAULT_PERM_*, which IOMMU_FAULT_PERM_* are too. */
  readonly permissions: number;
  /** The last of its group. */
  readonly last: boolean;
}

interface Waiting<Key> {
  readonly rid: number;
  readonly pasid: number;
  readonly key: Key;
}

/** Groups that can wait for the guest at a time. */
const GROUPS = 512;

export class PageGroups<Key extends string | number> {
  readonly #iommu: PageRequestTaker;
  readonly #answered: (key: Key, success: boolean) => void;
  /** Groups that the guest has not answered, by their numbers in the guest; and these, by the host's name. */
  readonly #waiting = new Map<number, Waiting<Key>>();
  readonly #known = new Map<Key, number>();
  readonly #numbers = new Ids(0, GROUPS);

  /** `answered` is told once for each group. */
  constructor(iommu: PageRequestTaker, answered: (key: Key, success: boolean) => void) {
    this.#iommu = iommu;
    this.#answered = answered;
    iommu.onPageResponse = (rid, pasid, group, response) => this.#answer({ rid, pasid }, group, response);
  }

  /** Groups that the guest has not answered. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /** Hands a page of the group on; a group for which there is no room is refused with its last page. */
  ask({ rid, pasid, address, permissions, last }: WantedPage, key: Key): void {
    const group = this.#numberOf({ rid, pasid, key });
    if (group < 0) {
      if (last) this.#answered(key, false);
      return;
    }
    const [lo, hi] = [Number(address & 0xffff_ffffn), Number(address >> 32n)];
    this.#iommu.requestPage({ rid, pasid, lo, hi, access: accessOf(permissions), group, last });
  }

  /** The number by which the guest knows a group: the host's may be of more bits. -1: too many wait. */
  #numberOf(waiting: Waiting<Key>): number {
    const known = this.#known.get(waiting.key);
    if (known !== undefined) return known;
    const number = this.#numbers.take();
    if (number < 0) return -1;
    this.#known.set(waiting.key, number);
    this.#waiting.set(number, waiting);
    return number;
  }

  /** An answer to something else than what waits under that number comes too late. */
  #answer({ rid, pasid }: Omit<Waiting<Key>, "key">, group: number, response: number): void {
    const waiting = this.#waiting.get(group);
    if (!waiting || waiting.rid !== rid || waiting.pasid !== pasid) return;
    this.#waiting.delete(group);
    this.#known.delete(waiting.key);
    this.#numbers.give(group);
    this.#answered(waiting.key, response === PageResponse.success);
  }
}

const accessOf = (permissions: number): number =>
  (permissions & IOMMU_PGFAULT_PERM_READ ? Access.read : 0) |
  (permissions & IOMMU_PGFAULT_PERM_WRITE ? Access.write : 0) |
  (permissions & IOMMU_PGFAULT_PERM_EXEC ? Access.execute : 0) |
  (permissions & IOMMU_PGFAULT_PERM_PRIV ? Access.privileged : 0);
