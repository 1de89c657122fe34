/**
 * No virtual IOMMU: a device has the guest's memory, at the guest's addresses, on any host that maps them. All of it from the
 * start; or, where the guest's memory is private, what it shares while it does.
 */
import type { HostCalls } from "../viommu/host-calls.ts";
import { allocateSpace, attachSpace } from "../viommu/shadow/space.ts";
import { roomFor } from "./room.ts";
import type { Sharing, VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** Memory comes in huge pages, of which those of any host are a part. */
const LARGEST_PAGE_LG2 = 21;

/** Throws EOPNOTSUPP when the host does not map the addresses of guest memory. */
export const withoutIommu = (parts: VirtualUnitParts): VirtualUnit => {
  const { calls, ram, devices, maps } = parts;
  roomFor(parts, LARGEST_PAGE_LG2);
  const space = allocateSpace(calls);
  // Before anything is mapped: later it is refused.
  if (maps === "small") calls.setHugePages(space.ioas, false);
  if (maps !== "shared") calls.map(space.ioas, { iova: 0, va: ram.va, length: ram.bytes });
  for (const device of devices) attachSpace(calls, space, device, { pasids: false, faults: undefined });
  const iommu = { model: "none", mmioRead: () => 0n, mmioWrite: () => {} } as const;
  const unit = { iommu, backEnd: { held: 1 } };
  return maps === "shared" ? { ...unit, sharing: sharedAt(calls, space.ioas, ram.va) } : unit;
};

const sharedAt = (calls: HostCalls, ioas: number, va: number): Sharing => ({
  share: (gpa, length) => calls.map(ioas, { iova: gpa, va: va + gpa, length }),
  takeBack: (gpa, length) => calls.unmap(ioas, gpa, length),
});
