/** No virtual IOMMU: a device has the guest's memory, at the guest's addresses, on any host that maps them. */
import { allocateSpace, attachSpace } from "../viommu/shadow/space.ts";
import { roomFor } from "./room.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** Memory comes in huge pages, of which those of any host are a part. */
const LARGEST_PAGE_LG2 = 21;

/** Throws EOPNOTSUPP when the host does not map the addresses of guest memory. */
export const withoutIommu = (parts: VirtualUnitParts): VirtualUnit => {
  const { calls, ram, devices } = parts;
  roomFor(parts, LARGEST_PAGE_LG2);
  const space = allocateSpace(calls);
  calls.map(space.ioas, { iova: 0, va: ram.va, length: ram.bytes });
  for (const device of devices) attachSpace(calls, space, device, { pasids: false, faults: undefined });
  const iommu = { model: "none", mmioRead: () => 0n, mmioWrite: () => {} } as const;
  return { iommu, backEnd: { held: 1 } };
};
