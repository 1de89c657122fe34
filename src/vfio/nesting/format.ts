/**
 * What a nesting container needs to know of a unit's own format of guests' tables (IOMMU_PASID_FORMAT_*): how it is told in
 * the capability, and how a bind and an invalidation of the 2020 interface become what drivers take. One file a format.
 */
import type { HardwareInfo, UserArray, UserData } from "../../iommu/driver.ts";
import type { ValueOf } from "../../uapi/struct.ts";
import type { IommuGpasidBindData, IommuNestingInfo } from "../../uapi/vsva.ts";

/** What the capability tells; what is left out is 0. */
export type NestingInfo = Parameters<typeof IommuNestingInfo.bytes>[0] & { readonly features: number };
export type BindData = ValueOf<typeof IommuGpasidBindData>;

/** Addresses of a guest's table that changed. */
export interface ChangedRange {
  /** First address, a multiple of 4 KiB; and bytes. */
  readonly start: bigint;
  readonly length: bigint;
  /** Only leaf entries changed. */
  readonly leavesOnly: boolean;
}

/** What the unit and all devices of the container have. */
export interface DevicesHave {
  /** Bits of PASIDs that mean one address space on the whole machine; 0: there are none. */
  readonly pasidBits: number;
  /** Page requests can be passed on. */
  readonly pageRequests: boolean;
}

export interface NestingFormat {
  /** IOMMU_PASID_FORMAT_*. */
  readonly number: number;
  /** Type of the hardware information (IOMMU_HW_INFO_TYPE_*) by which units of the format are known. */
  readonly hardwareType: number;
  /** Why guests' tables cannot be nested on a machine with these units; undefined: they can. */
  unfit(units: readonly NamedUnit[]): string | undefined;
  /** The capability's information for a container on the unit. */
  info(unit: HardwareInfo, devices: DevicesHave): NestingInfo;
  /** The driver's data for a table that is bound. Throws EINVAL for what cannot be, EOPNOTSUPP for what the unit has not. */
  tableOf(data: BindData, unit: HardwareInfo): UserData;
  /** The driver's data for a range that changed; undefined: everything. */
  changeOf(range: ChangedRange | undefined): UserArray;
}

export interface NamedUnit {
  readonly name: string;
  readonly info: HardwareInfo;
}

/** Vendor data that lies in the kernel. */
export const kernelData = (type: number, bytes: Uint8Array): UserData => ({
  type,
  length: bytes.length,
  read: () => bytes,
  write: () => {},
});

/** A list of one. */
export const kernelEntry = (type: number, bytes: Uint8Array): UserArray => ({
  type,
  entryLength: bytes.length,
  count: 1,
  read: () => bytes,
});
