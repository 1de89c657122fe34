/**
 * Domains of the mock IOMMU: a host table with dirty bits, and nested ones, which are nothing but four cache slots that
 * invalidations set to zero.
 */
import type {
  DirtyTracking,
  DomainGeometry,
  InvalidationOutcome,
  NestedDomain,
  PagingDomain,
  UserArray,
} from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { compileWalker } from "../../pagetable/compile.ts";
import { Permission } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { type Walker, WalkResult } from "../../pagetable/walker.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
  IOMMU_TEST_INVALIDATE_FLAG_ALL,
  IommuHwptInvalidateSelftest,
  MOCK_APERTURE_LAST,
  MOCK_APERTURE_START,
  MOCK_HUGE_PAGE_SIZE,
  MOCK_NESTED_DOMAIN_IOTLB_ID_MAX,
  MOCK_NESTED_DOMAIN_IOTLB_NUM,
  MOCK_PAGE_SIZE,
} from "../../uapi/vendor/mock.ts";
import { stillUsed } from "../refusals.ts";
import { mockFormat } from "./format.ts";

/** Bytes of two small pages. */
const PAIR = 2 * MOCK_PAGE_SIZE;

const formats = [mockFormat(false), mockFormat(true)] as const;
const walkers: readonly [Walker, Walker] = [compileWalker(formats[0]), compileWalker(formats[1])];

export interface MockDomainOptions {
  /** Pages of 4 KiB and 1 MiB instead of 2 KiB. */
  readonly huge: boolean;
  readonly nestParent: boolean;
  readonly dirtyTracking: boolean;
}

export class MockDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly apertures: DomainGeometry["apertures"] = [
    { start: MOCK_APERTURE_START, end: MOCK_APERTURE_LAST + 1 },
  ];
  readonly pageSizes: bigint;
  readonly nestParent: boolean;
  readonly dirty?: DirtyTracking;
  /** Devices, PASIDs of devices, nested domains and vIOMMUs that use it. */
  users = 0;
  readonly #memory: HostMemory;
  readonly #mapper: Mapper;
  readonly #walk: Walker;
  readonly #found = new WalkResult();
  readonly #forget: (domain: MockDomain) => void;
  #tracking = false;

  constructor(
    id: number,
    memory: HostMemory,
    { huge, nestParent, dirtyTracking }: MockDomainOptions,
    forget: (domain: MockDomain) => void,
  ) {
    this.id = id;
    this.name = `mock domain ${id}`;
    this.pageSizes = BigInt(huge ? MOCK_HUGE_PAGE_SIZE | (2 * MOCK_PAGE_SIZE) : 2 ** 37 - MOCK_PAGE_SIZE);
    this.nestParent = nestParent;
    this.#memory = memory;
    this.#mapper = new Mapper(memory, formats[huge ? 1 : 0]);
    this.#walk = walkers[huge ? 1 : 0];
    this.#forget = forget;
    if (dirtyTracking)
      this.dirty = {
        set: (enabled) => this.#track(enabled),
        read: (iova, length, clear, visit) => this.#readDirty(iova, length, clear, visit),
      };
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    if (iova < MOCK_APERTURE_START || iova + length > MOCK_APERTURE_LAST + 1)
      throw new LinuxError(
        "EFAULT",
        `iova 0x${iova.toString(16)} + 0x${length.toString(16)} is outside [0x${MOCK_APERTURE_START.toString(16)}, 0x${MOCK_APERTURE_LAST.toString(16)}]`,
        this.name,
      );
    this.#mapper.map(iova, pa, length, protection);
  }

  unmap(iova: number, length: number): number {
    const bytes = this.#mapper.unmap(iova, length);
    this.#mapper.release(); // nothing remembers what the tables said
    return bytes;
  }

  physical(iova: number): number {
    return this.#mapper.physical(iova);
  }

  /** Where an access of a device that has the domain goes; -1: nothing that allows it is mapped. */
  access(iova: number, write: boolean): number {
    const permission = write ? Permission.write : Permission.read;
    const [lo, hi] = [iova >>> 0, Math.floor(iova / 2 ** 32)];
    const status = this.#walk(this.#memory, this.#mapper.root, lo, hi, permission, this.#found);
    return status === 0 ? this.physical(iova) : -1;
  }

  /** A device wrote here: false when nothing writable is mapped, or nobody wants to know. */
  written(iova: number): boolean {
    return this.#tracking && this.access(this.#dirtyHome(iova), true) >= 0;
  }

  get tracking(): boolean {
    return this.#tracking;
  }

  free(): void {
    if (this.users > 0) throw stillUsed(this.name, `${this.users} users`);
    this.#mapper.destroy();
    this.#forget(this);
  }

  /** Two small pages that lie together as one of 4 KiB have one dirty bit: that of the first. */
  #dirtyHome(iova: number): number {
    const first = iova - (iova % PAIR);
    const pa = this.physical(first);
    const paired =
      pa >= 0 && pa % PAIR === 0 && this.physical(first + MOCK_PAGE_SIZE) === pa + MOCK_PAGE_SIZE;
    return paired ? first : iova;
  }

  #track(enabled: boolean): void {
    this.#tracking = enabled;
  }

  #readDirty(
    iova: number,
    length: number,
    clear: boolean,
    visit: (iova: number, bytes: number) => void,
  ): void {
    // One bit an entry, told as the first of the small pages it stands for.
    this.#mapper.scanDirty(iova, length, clear, (at) => visit(at, MOCK_PAGE_SIZE));
    this.#mapper.release();
  }
}

export class MockNestedDomain implements NestedDomain {
  readonly kind = "nested";
  readonly name: string;
  readonly parent: MockDomain;
  /** Devices that have it. */
  users = 0;
  readonly #slots: number[];

  /** Throws nothing: what it needs was checked by its driver. */
  constructor(parent: MockDomain, slotValue: number) {
    this.parent = parent;
    this.name = `nested above ${parent.name}`;
    this.#slots = new Array<number>(MOCK_NESTED_DOMAIN_IOTLB_NUM).fill(slotValue);
    parent.users += 1;
  }

  /** A slot of its cache; undefined: there is none of this number. */
  slot(index: number): number | undefined {
    return this.#slots[index];
  }

  invalidate(requests: UserArray): InvalidationOutcome {
    if (requests.type !== IOMMU_HWPT_INVALIDATE_DATA_SELFTEST)
      return {
        done: 0,
        error: new LinuxError("EINVAL", `data type 0x${requests.type.toString(16)} is unknown here`),
      };
    return each(requests, (index) => this.#invalidateOne(requests, index));
  }

  free(): void {
    if (this.users > 0) throw stillUsed(this.name, `${this.users} devices`);
    this.parent.users -= 1;
  }

  #invalidateOne(requests: UserArray, index: number): void {
    const { size } = IommuHwptInvalidateSelftest;
    if (requests.entryLength !== size)
      throw new LinuxError("EINVAL", `entry_len is ${requests.entryLength}; an entry has ${size} bytes`);
    const { flags, iotlb_id } = IommuHwptInvalidateSelftest.read(requests.read(index, size, size));
    requireInvalidateFlags(flags);
    if (iotlb_id > MOCK_NESTED_DOMAIN_IOTLB_ID_MAX)
      throw new LinuxError(
        "EINVAL",
        `iotlb_id ${iotlb_id} is above ${MOCK_NESTED_DOMAIN_IOTLB_ID_MAX}`,
        this.name,
      );
    if (flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) this.#slots.fill(0);
    else this.#slots[iotlb_id] = 0;
  }
}

/** Flags beyond ALL: EOPNOTSUPP. */
export const requireInvalidateFlags = (flags: number): void => {
  if ((flags & ~IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0)
    throw new LinuxError("EOPNOTSUPP", `flags 0x${flags.toString(16)}: only ALL (1) is known`);
};

/** Carries requests out in order, up to the first that fails. */
export const each = (requests: UserArray, carryOut: (index: number) => void): InvalidationOutcome => {
  for (let index = 0; index < requests.count; index += 1)
    try {
      carryOut(index);
    } catch (error) {
      return { done: index, error };
    }
  return { done: requests.count };
};
