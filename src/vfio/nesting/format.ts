/**
 * What a nesting container needs to know of a unit's own format of guests' tables (IOMMU_PASID_FORMAT_*): how it is told in
 * the capability, and how a bind and an invalidation of the 2020 interface become what drivers take. One file a format.
 */
import type { HardwareInfo, UserArray, UserData } from "../../iommu/driver.ts";
import type { SoftiommuPasidTableSmmuv3 } from "../../uapi/extensions.ts";
import type { InfoChain } from "../../uapi/info-chain.ts";
import type { ValueOf } from "../../uapi/struct.ts";
import type { IommuGpasidBindData } from "../../uapi/vsva.ts";
import type { ChangedRange, Invalidation } from "./changed-range.ts";

export type BindData = ValueOf<typeof IommuGpasidBindData>;
export type PasidTableData = ValueOf<typeof SoftiommuPasidTableSmmuv3>;

/** What the unit and all devices of the container have. */
export interface DevicesHave {
  /** Bits of PASIDs that mean one address space on the whole machine; 0: there are none. */
  readonly pasidBits: number;
  /** Bits of the PASIDs that all devices' requests carry; 0: they carry none. */
  readonly devicePasidBits: number;
  /** Page requests can be passed on. */
  readonly pageRequests: boolean;
}

/** A function as a guest's commands name it. */
export interface Stream {
  readonly id: bigint;
  /** It can have translations of its own. */
  readonly ats: boolean;
}

/** Tables that are bound one by one, each for a PASID (feature BIND_PGTBL). */
export interface SingleTables {
  /** The driver's data for a table that is bound. Throws EINVAL for what cannot be, EOPNOTSUPP for what the unit has not. */
  tableOf(data: BindData, unit: HardwareInfo): UserData;
  /** The driver's data for a range that changed; undefined: everything. */
  changeOf(range: ChangedRange | undefined): UserArray;
}

/** A guest's table of PASIDs, bound as a whole (feature BIND_PASID_TABLE). */
export interface PasidTables {
  /** The driver's data for it. Throws EINVAL for what cannot be, EOPNOTSUPP for what the unit has not. */
  entryOf(data: PasidTableData, unit: HardwareInfo, devices: DevicesHave): UserData;
  /** The commands of the guest that an invalidation stands for. Throws EINVAL. */
  commandsOf(
    data: Invalidation,
    unit: HardwareInfo,
    devices: DevicesHave,
    streams: readonly Stream[],
  ): UserArray;
}

export interface NestingFormat {
  /** IOMMU_PASID_FORMAT_*. */
  readonly number: number;
  /** Type of the hardware information (IOMMU_HW_INFO_TYPE_*) by which units of the format are known. */
  readonly hardwareType: number;
  /** Why guests' tables cannot be nested on a machine with these units; undefined: they can. */
  unfit(units: readonly NamedUnit[]): string | undefined;
  /** IOMMU_NESTING_FEAT_* of a container on the unit. */
  features(unit: HardwareInfo, devices: DevicesHave): number;
  /** Adds the nesting capability. */
  describe(chain: InfoChain, unit: HardwareInfo, devices: DevicesHave): void;
  readonly tables?: SingleTables;
  readonly pasidTables?: PasidTables;
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
