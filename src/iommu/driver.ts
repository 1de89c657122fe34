/**
 * The contract of a kernel-side IOMMU driver. The core asks; a driver writes tables, registers and queue entries of
 * its unit. Addresses of a mapping are numbers of bytes: an address that is a multiple of 2 KiB is exact as a double
 * over all 64 bits; the end of a range is exclusive, so that 2^64 can be written.
 */
import type { PciFunction } from "../pci/function.ts";

export { Protection } from "../pagetable/format.ts";

/** A range of IOVAs with a purpose of its own (RMRR, MSI doorbell). */
export interface ReservedRegion {
  readonly start: number;
  readonly length: number;
  readonly kind: "direct" | "direct-relaxable" | "reserved" | "msi" | "sw-msi";
}

/** What a domain can hold. */
export interface DomainGeometry {
  /** Address ranges [start, end) a mapping may use. One for most; two for POWER. */
  readonly apertures: readonly { readonly start: number; readonly end: number }[];
  /** Bit n: pages of 2^n bytes. */
  readonly pageSizes: bigint;
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
}

/** Every access passes untranslated / is refused. */
export interface FixedDomain {
  readonly kind: "identity" | "blocked";
  readonly name: string;
}

export type Domain = PagingDomain | FixedDomain;

export interface DeviceCapabilities {
  readonly cacheCoherent: boolean;
  readonly dirtyTracking: boolean;
  readonly pasidBits: number;
  readonly nesting: boolean;
}

export interface IommuDriver {
  readonly name: string;
  /** The function is behind this unit: prepare. Throws ENODEV when it is not. */
  probe(device: PciFunction): DeviceCapabilities;
  release(device: PciFunction): void;
  reserved(device: PciFunction): readonly ReservedRegion[];
  /** A new, empty domain that fits the device. Throws ENOMEM, EOPNOTSUPP. */
  allocatePaging(device: PciFunction): PagingDomain;
  readonly identity: FixedDomain;
  readonly blocked: FixedDomain;
  /** The device's requests go to the domain from now on; what it had is left. Throws EINVAL when they do not fit; then nothing has changed. */
  attach(device: PciFunction, domain: Domain): void;
}
