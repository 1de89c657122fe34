/** An address space of the host, with the page tables that devices behind different units have of it. */
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_FAULT_ID_VALID } from "../../uapi/iommufd.ts";
import type { AssignedDevice } from "../assigned.ts";
import type { HostCalls } from "../host-calls.ts";

export interface Space {
  readonly ioas: number;
  readonly hwpts: number[];
}

export type SpaceCalls = Pick<HostCalls, "allocateIoas" | "allocateHwpt" | "attach" | "destroy">;

/** What page tables of a space are made for. */
export interface TableUse {
  /** PASIDs of devices may be given them. */
  readonly pasids: boolean;
  /** Fault queue for accesses that wait where nothing is; undefined: they are refused. */
  readonly faults: number | undefined;
}

export const allocateSpace = (calls: SpaceCalls): Space => ({ ioas: calls.allocateIoas(), hwpts: [] });

/** Gives a device, or a PASID of it, the space's page table that takes it, or a new one of it. Throws what the host refused. */
export const attachSpace = (
  calls: SpaceCalls,
  { ioas, hwpts }: Space,
  device: AssignedDevice,
  { pasids, faults }: TableUse,
  pasid?: number,
): void => {
  const flags =
    (pasids ? IOMMU_HWPT_ALLOC_PASID : 0) | (faults === undefined ? 0 : IOMMU_HWPT_FAULT_ID_VALID);
  if (flags === 0) {
    calls.attach(device.fd, ioas, pasid);
    return;
  }
  for (const hwpt of hwpts)
    try {
      calls.attach(device.fd, hwpt, pasid);
      return;
    } catch (error) {
      // It is of another unit, perhaps.
      if (!(error instanceof LinuxError && error.code === "EINVAL")) throw error;
    }
  const hwpt = calls.allocateHwpt(device.id, ioas, flags, faults);
  try {
    calls.attach(device.fd, hwpt, pasid);
  } catch (error) {
    calls.destroy(hwpt);
    throw error;
  }
  hwpts.push(hwpt);
};

/** No device has it any more. */
export const freeSpace = (calls: SpaceCalls, { ioas, hwpts }: Space): void => {
  for (const hwpt of hwpts) calls.destroy(hwpt);
  calls.destroy(ioas);
};
