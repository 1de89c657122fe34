/** What a guest finds as its IOMMU, and what it asks of the driver for it. */

import type { IommuDriver, PagingDomain, PagingOptions, Requester } from "../iommu/driver.ts";
import type { GuestWindow } from "../viommu/tce/spec.ts";

/** Calls of a POWER guest to its hypervisor about the windows of its functions (LoPAR). */
export interface GuestHypervisor {
  /** What the device tree says of a function: its windows from the start. */
  windowsOf(rid: number): readonly GuestWindow[];
  /** The status, and what comes with it. */
  hypercall(
    number: number,
    liobn: bigint,
    ioba: bigint,
    third?: bigint,
    count?: bigint,
  ): { readonly status: number; readonly value: bigint };
  /** What it answers, the status first. */
  rtas(name: string, ...args: readonly number[]): readonly number[];
}

/** The registers of an IOMMU, and what firmware says it is (DMAR, IORT, IVRS, VIOT). */
export interface GuestIommu {
  /** `none`: there is not any. */
  readonly model: "vtd" | "smmuv3" | "amdvi" | "zpci" | "tce" | "virtio" | "none";
  /** It may remember that nothing was there: what it has no register to say so. */
  readonly remembersAbsent?: boolean;
  /** It has no host tables, but guest tables alone (HATDis). */
  readonly guestTablesOnly?: boolean;
  /** It tells functions what to forget: what it has no register to say so (IotlbSup). */
  readonly deviceTlb?: boolean;
  /** Messages of functions must pass through every table at their own addresses, which are reserved (RMR). */
  readonly messagesPass?: boolean;
  /** Addresses [start, end) that its functions may use, where it has no register to say so (CLP). */
  readonly addresses?: { readonly start: number; readonly end: number };
  mmioRead(offset: number, width: 4 | 8): bigint;
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void;
  /** Its wired interrupt, when it has one; set by the driver. */
  onInterrupt?: (() => void) | undefined;
}

/** A domain of the guest's driver. */
export interface GuestDomain extends PagingDomain {
  /** Guest physical address of its top table; 0: it has none. */
  readonly root: number;
}

export interface GuestDriver extends IommuDriver {
  /** Domains that were allocated and not freed. */
  readonly domains: number;
  /** Faults that the driver was told of. */
  readonly faultCount: number;
  allocatePaging(device: Requester, options?: PagingOptions): GuestDomain;
  close(): void;
}
