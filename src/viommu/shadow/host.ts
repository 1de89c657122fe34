/**
 * What a host can do for guests that are shadowed, found by trying: which addresses and pages its devices can be given,
 * whether PASIDs of theirs can have tables, and whether accesses can wait. Everything that was tried is undone.
 */
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_FAULT_ID_VALID } from "../../uapi/iommufd.ts";
import type { AssignedDevice } from "../assigned.ts";
import type { DeviceInfo } from "../device-calls.ts";
import type { HostCalls } from "../host-calls.ts";
import type { AddressRange } from "./table.ts";

export interface HostRoom {
  /** Addresses that the host maps for all of the devices, in order. */
  readonly ranges: readonly AddressRange[];
  /** The host maps no address with more bits. */
  readonly addressBits: number;
  /** log2 of the bytes that mappings must be whole multiples of. */
  readonly pageLg2: number;
  /** Bits of the PASIDs that all of the devices can have; 0: none. */
  readonly pasidBits: number;
  /** Accesses of all of the devices can wait for a page. */
  readonly faults: boolean;
}

export interface ProbedDevice extends AssignedDevice {
  readonly info: Pick<DeviceInfo, "pasidBits">;
}

/** Devices must have nothing yet, and have nothing afterwards. Throws what attaching to an IOAS throws. */
export const probeHost = (calls: HostCalls, devices: readonly ProbedDevice[]): HostRoom => {
  const ioas = calls.allocateIoas();
  for (const { fd } of devices) calls.attach(fd, ioas);
  const { ranges, alignment } = calls.iovaRanges(ioas);
  for (const { fd } of devices) calls.detach(fd);
  const all = (flags: number, queue?: number): boolean =>
    devices.every((device) => takes(calls, device, ioas, flags, queue));
  const bits = Math.min(...devices.map(({ info }) => info.pasidBits));
  const pasidBits = bits > 0 && all(IOMMU_HWPT_ALLOC_PASID) ? bits : 0;
  const queue = calls.allocateFaults();
  const faults = all((pasidBits > 0 ? IOMMU_HWPT_ALLOC_PASID : 0) | IOMMU_HWPT_FAULT_ID_VALID, queue.id);
  calls.task.close(queue.fd);
  calls.destroy(queue.id);
  calls.destroy(ioas);
  return {
    ranges,
    addressBits: Math.floor(Math.log2(ranges.at(-1)!.end)),
    pageLg2: Math.log2(Number(alignment)),
    pasidBits,
    faults,
  };
};

/** Addresses that the host maps for the device alone, in order. It must have nothing yet, and has nothing afterwards. */
export const rangesOf = (calls: HostCalls, { fd }: AssignedDevice): readonly AddressRange[] => {
  const ioas = calls.allocateIoas();
  calls.attach(fd, ioas);
  const { ranges } = calls.iovaRanges(ioas);
  calls.detach(fd);
  calls.destroy(ioas);
  return ranges;
};

/** Whether the device can be given a page table with these flags. */
const takes = (
  calls: HostCalls,
  { id, fd }: AssignedDevice,
  ioas: number,
  flags: number,
  queue: number | undefined,
): boolean => {
  let hwpt: number | undefined;
  try {
    hwpt = calls.allocateHwpt(id, ioas, flags, queue);
    calls.attach(fd, hwpt);
    calls.detach(fd);
    return true;
  } catch (error) {
    if (error instanceof LinuxError) return false;
    throw error;
  } finally {
    if (hwpt !== undefined) calls.destroy(hwpt);
  }
};
