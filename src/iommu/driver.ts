/**
 * The contract of a kernel-side IOMMU driver. The core asks; a driver writes tables, registers and queue entries of
 * its unit. Addresses of a mapping are numbers of bytes: an address that is a multiple of 2 KiB is exact as a double
 * over all 64 bits; the end of a range is exclusive, so that 2^64 can be written.
 *
 * What not every unit can do is an optional member: where it is absent the core refuses with EOPNOTSUPP. Vendor data
 * (page tables of a guest, invalidations, virtual IOMMUs) passes through the core unread, as `UserData` and
 * `UserArray`; only the driver knows its layout.
 */
import type { PciFunction } from "../pci/function.ts";
import { LinuxError } from "../uapi/errno.ts";

export { Protection } from "../pagetable/format.ts";

/** What a driver needs to know of a device: its name for messages and its requester id. */
export type Requester = Pick<PciFunction, "name" | "rid">;

/** A range of IOVAs with a purpose of its own (RMRR, MSI doorbell). */
export interface ReservedRegion {
  readonly start: number;
  readonly length: number;
  readonly kind: "direct" | "direct-relaxable" | "reserved" | "msi" | "sw-msi";
}

/** What a domain can hold. */
export interface DomainGeometry {
  /** Address ranges [start, end) a mapping may use. One for most; two for POWER. */
  readonly apertures: readonly Aperture[];
  /** Bit n: pages of 2^n bytes. */
  readonly pageSizes: bigint;
}

/** A range [start, end) of addresses that a mapping may use. */
export interface Aperture {
  readonly start: number;
  readonly end: number;
  /** Those of the domain's page sizes that there are here. Absent: all. */
  readonly pageSizes?: bigint;
}

/** Vendor data of one structure. */
export interface UserData {
  /** What the caller says it is: a number of IOMMU_HWPT_DATA_* or IOMMU_VIOMMU_TYPE_*. */
  readonly type: number;
  /** Bytes the caller has. */
  readonly length: number;
  /**
   * The structure of `size` bytes, of which the caller must have given `minSize` and no more than `size` (EINVAL); what
   * it left out is zero. EFAULT: not readable.
   */
  read(size: number, minSize?: number): Uint8Array;
  /** Answers in place, as far as the caller has room. EFAULT: not writable. */
  write(bytes: Uint8Array): void;
}

/** Vendor data of several structures: a list of invalidations. */
export interface UserArray {
  readonly type: number;
  /** Bytes of one, as the caller has them. */
  readonly entryLength: number;
  readonly count: number;
  /**
   * One of them; what the caller left out is zero. Throws EINVAL when an entry has fewer than `minSize` bytes, E2BIG
   * when it has more than `size` that are not zero, EFAULT.
   */
  read(index: number, size: number, minSize?: number): Uint8Array;
}

/** How far a list of invalidations came. */
export interface InvalidationOutcome {
  /** Entries that were carried out. */
  readonly done: number;
  /** A LinuxError: what stopped it at the entry after them. */
  readonly error?: unknown;
}

/** Which pages a device has written to. */
export interface DirtyTracking {
  /** Throws what the unit answers; nothing has changed then. */
  set(enabled: boolean): void;
  /**
   * Tells the ranges within [iova, iova + length) that were written to; clears them and flushes the unit when asked. A
   * large leaf that touches the range is told whole.
   */
  read(iova: number, length: number, clear: boolean, visit: (iova: number, bytes: number) => void): void;
}

/** A page table of the host that devices can be given. */
export interface PagingDomain extends DomainGeometry {
  readonly kind: "paging";
  readonly id: number;
  readonly name: string;
  /**
   * Maps [iova, iova + length) to contiguous physical memory, with the largest leaves that fit. All or nothing:
   * throws EEXIST where something is mapped, ENOMEM when tables cannot be had; then nothing has changed.
   */
  map(iova: number, pa: number, length: number, protection: number): void;
  /** Unmaps what is mapped in the range, flushes the units, and returns the bytes that were mapped. A leaf that reaches beyond the range stays; callers unmap whole mappings. */
  unmap(iova: number, length: number): number;
  /** The physical address behind a byte, or -1. */
  physical(iova: number): number;
  /** No device has it and it has no content any more; tables are returned. */
  free(): void;
  /** Present when it was allocated for dirty tracking. */
  readonly dirty?: DirtyTracking;
}

/** Bus addresses that one table translates, in pages of one size. */
export interface DmaWindow {
  /** First bus address. */
  readonly start: number;
  /** Bytes. */
  readonly length: number;
  readonly pageLg2: number;
  /** Levels of its table. */
  readonly levels: number;
}

/** What a unit can do that translates windows rather than a whole address space. */
export interface WindowAbilities {
  /** Bit n: pages of 2^n bytes. */
  readonly pageSizes: bigint;
  /** Levels that a table can have at most. */
  readonly levels: number;
  /** Windows a domain can have at a time. */
  readonly count: number;
  /** The one below 4 GiB that a new domain has. It has another one high up when there can be two. */
  readonly first: { readonly start: number; readonly length: number };
}

/** A domain whose apertures are windows, which come and go while devices have it. */
export interface WindowedDomain extends PagingDomain {
  /** By address; the apertures are theirs. */
  readonly windows: readonly DmaWindow[];
  /**
   * The unit chooses where it begins. Throws EINVAL for a size, page size or number of levels it cannot have, ENOSPC when
   * there are as many as can be, ENOMEM; then nothing has changed.
   */
  createWindow(wanted: Omit<DmaWindow, "start">): DmaWindow;
  /** The window that begins there goes with all that is mapped in it, units are flushed. Throws EINVAL: there is none. */
  removeWindow(start: number): void;
}

/** A page table of a guest above a domain of the host. */
export interface NestedDomain {
  readonly kind: "nested";
  readonly name: string;
  readonly parent: PagingDomain;
  /** The guest changed its tables: forgets what the unit remembers of them. */
  invalidate?(requests: UserArray): InvalidationOutcome;
  /** No device has it. */
  free(): void;
}

/** Every access passes untranslated / is refused. */
export interface FixedDomain {
  readonly kind: "identity" | "blocked";
  readonly name: string;
}

export type Domain = PagingDomain | NestedDomain | FixedDomain;

/** What a paging domain is wanted for; a unit that cannot refuses with EOPNOTSUPP. */
export interface PagingOptions {
  /** Nested domains may lie above it. */
  readonly nestParent?: boolean;
  readonly dirtyTracking?: boolean;
  /** PASIDs of a device may be given it. */
  readonly pasid?: boolean;
  /** Page faults under it are reported. */
  readonly faults?: boolean;
  /** The vendor's wishes. */
  readonly data?: UserData;
}

export interface NestedOptions {
  readonly faults?: boolean;
  readonly pasid?: boolean;
}

export interface DeviceCapabilities {
  readonly cacheCoherent: boolean;
  readonly dirtyTracking: boolean;
  /** Bits of a PASID; 0: it has none. */
  readonly pasidBits: number;
  readonly nesting: boolean;
  /** The device may ask for translations. Absent: it may not. */
  readonly ats?: boolean;
  /** Accesses to pages that are not there can wait until somebody answers. Absent: they fail. */
  readonly pageRequests?: boolean;
  /** What the PASID capability of the device allows. */
  readonly pasidExecute?: boolean;
  readonly pasidPrivileged?: boolean;
}

/** What the unit tells about itself: a type (IOMMU_HW_INFO_TYPE_*) and the vendor's structure. */
export interface HardwareInfo {
  readonly type: number;
  readonly bytes: Uint8Array;
}

/** What an access wants: IOMMU_PGFAULT_PERM_*. */
export const RequestPermission = { read: 1, write: 2, execute: 4, privileged: 8 } as const;

/** A page that a device asks for. */
export interface PageRequest {
  /** Absent: the request has none. */
  readonly pasid?: number;
  /** The device's number for requests that are answered together. */
  readonly group: number;
  /** The last one of its group. */
  readonly last: boolean;
  readonly address: bigint;
  /** `RequestPermission`. */
  readonly permissions: number;
}

/** Why an access failed for good: what the tables of its owner said, or that they could not be read. */
export type FaultReason =
  | "unknown"
  /** The table of PASIDs could not be read; its entry is malformed; there is none for the PASID. */
  | "pasid-fetch"
  | "bad-pasid-entry"
  | "pasid-invalid"
  /** An entry of the table could not be read; it is not present or malformed. */
  | "walk-abort"
  | "entry"
  | "permission"
  /** The accessed flag could not be set. */
  | "accessed-flag"
  | "address-range";

/** An access that failed and is not tried again. */
export interface UnrecoverableFault {
  /** Absent: the access had none. */
  readonly pasid?: number;
  /** Absent: the unit did not get as far as to look at it, nor at what was wanted. */
  readonly address?: bigint;
  /** As those of a page request; 0: not known. */
  readonly permissions: number;
  readonly reason: FaultReason;
  /** Where the entry lies that could not be read, when the unit says so. */
  readonly fetch?: bigint;
}

export interface PageResponse {
  readonly pasid?: number;
  readonly group: number;
  readonly code: "success" | "invalid" | "failure";
}

/** A queue that the unit reads in a guest's memory by itself. */
export interface HardwareQueue {
  free(): void;
}

/** A slice of a unit given to a guest: it knows the guest's device numbers and has a nest parent. */
export interface VirtualIommu {
  readonly parent: PagingDomain;
  /** Kinds of events it can report (IOMMU_VEVENTQ_TYPE_*). */
  readonly eventTypes?: readonly number[];
  /** Set by whoever listens: an event of this kind, in the vendor's layout. False: nobody wants events of the kind. */
  onEvent?: ((type: number, data: Uint8Array) => boolean) | undefined;
  /** Set by whoever listens: events of this kind may have been lost on the way, nobody knows how many or whose. */
  onEventsLost?: ((type: number) => void) | undefined;
  allocateNested?(device: Requester, data: UserData, options: NestedOptions): NestedDomain;
  /** Invalidations by the guest's device numbers. */
  invalidate?(requests: UserArray): InvalidationOutcome;
  /** The guest calls the device by this number from now on, or no more. Throws what the unit cannot do. */
  addDevice?(device: Requester, virtualId: bigint): void;
  removeDevice?(device: Requester, virtualId: bigint): void;
  /** Kinds of queues it can read (IOMMU_HW_QUEUE_TYPE_*); with `allocateQueue`. */
  readonly queueTypes?: readonly number[];
  /** Whether queues take physical addresses, so that their memory must be contiguous and pinned. */
  readonly queuesArePhysical?: boolean;
  /** A queue at the guest's address, which lies at `pa` when addresses are physical. */
  allocateQueue?(queue: {
    readonly type: number;
    readonly index: number;
    readonly address: bigint;
    readonly pa: number;
    readonly length: number;
  }): HardwareQueue;
  /** Nothing refers to it any more. */
  free(): void;
}

export interface IommuDriver {
  readonly name: string;
  /** Its devices are made by software, which reaches memory for them: no unit stands behind it. */
  readonly software?: boolean;
  /** No IOMMU is in front of its devices: they reach all memory, whoever has them. */
  readonly unprotected?: boolean;
  /** Its paging domains are `WindowedDomain`s. Absent: they have no windows. */
  readonly windows?: WindowAbilities;
  /** The function is behind this unit: prepare. Throws ENODEV when it is not. */
  probe(device: Requester): DeviceCapabilities;
  release(device: Requester): void;
  reserved(device: Requester): readonly ReservedRegion[];
  /**
   * The address at which the device reaches the interrupt doorbell that is at this physical address, in whatever domain it
   * has, from now on. Absent: messages pass untranslated. Throws ENOMEM.
   */
  doorbell?(device: Requester, address: bigint): bigint;
  /** A new, empty domain that fits the device. Throws ENOMEM, and EOPNOTSUPP for an option the unit does not have. */
  allocatePaging(device: Requester, options?: PagingOptions): PagingDomain;
  readonly identity: FixedDomain;
  readonly blocked: FixedDomain;
  /**
   * The device's requests, or those with the PASID, go to the domain from now on; what it had is left; `blocked` is how
   * a PASID is detached. Throws EINVAL when they do not fit; then nothing has changed.
   */
  attach(device: Requester, domain: Domain, pasid?: number): void;
  /**
   * What the unit tells about itself, to whoever has a device behind it or looks at the unit as such (`device` undefined);
   * `type` 0: whatever it is. Absent, or undefined for a type it has not: nothing.
   */
  hardwareInfo?(device: Requester | undefined, type: number): HardwareInfo | undefined;
  /** Bits of PASIDs that mean one address space to all its functions and all units alike. Absent, or 0: it has none. */
  readonly pasidBits?: number;
  /** Its devices have one table of PASIDs together, so that a number is one device's at a time. */
  readonly sharesPasids?: boolean;
  /** A guest's page table above a nest parent. Throws EOPNOTSUPP for another kind of data, EINVAL. */
  allocateNested?(
    device: Requester,
    parent: PagingDomain,
    data: UserData,
    options: NestedOptions,
  ): NestedDomain;
  /** Whether `allocateViommu` knows the type (IOMMU_VIOMMU_TYPE_*). */
  hasViommu?(device: Requester, type: number): boolean;
  /** `share` offers physical memory to the caller's mmap, as long as the vIOMMU exists, and gives the offset. */
  allocateViommu?(
    device: Requester,
    parent: PagingDomain,
    data: UserData,
    share: (pa: number, length: number) => bigint,
  ): VirtualIommu;
  /** Set by the core: a device asked for a page. */
  onPageRequest?: ((device: Requester, request: PageRequest) => void) | undefined;
  /** Set by the core: page requests were lost on the way; the groups they were of are the unit's to answer. */
  onPageRequestsLost?: (() => void) | undefined;
  /** Set by the core: an access failed for good. */
  onFault?: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  /** Answers a group of page requests. */
  respond?(device: Requester, response: PageResponse): void;
}

/** For a driver whose unit has none of them: throws EOPNOTSUPP when an option is asked for. */
export const requirePlain = (options: PagingOptions | undefined, unit: string): void => {
  const asked = Object.entries(options ?? {}).find(([, wanted]) => wanted);
  if (asked) throw new LinuxError("EOPNOTSUPP", `the unit has no domains with ${asked[0]}`, unit);
};
