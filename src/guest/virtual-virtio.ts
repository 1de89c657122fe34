/**
 * A virtio-iommu in a VMM, on any host: what the guest asks for is mapped and unmapped there. Which addresses and pages it
 * has are the host's, found by trying, as is whether anybody learns of accesses that fail.
 */
import { MSI_BASE, MSI_BYTES } from "../kernel/msi.ts";
import { FRAME_LG2 } from "../memory/host-memory.ts";
import { PageFaults } from "../viommu/page-faults.ts";
import { rangesOf } from "../viommu/shadow/host.ts";
import type { AddressRange } from "../viommu/shadow/table.ts";
import { Domains, type ReservedRange } from "../viommu/virtio/domains.ts";
import { VirtioIommu } from "../viommu/virtio/front-end.ts";
import { ReservedKind } from "../viommu/virtio/spec.ts";
import { roomFor } from "./room.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** The guest's own interrupt doorbell, which messages of its devices reach untranslated. */
const DOORBELL: ReservedRange = { start: MSI_BASE, end: MSI_BASE + MSI_BYTES, kind: ReservedKind.MSI };
/** Pages that a host may have larger than its smallest are no matter of a guest's: any multiple is one mapping. */
const LARGEST_GRANULE_LG2 = 16;

export const virtioIommu = (parts: VirtualUnitParts): VirtualUnit => {
  const { name, memory, events, calls, ram, devices, scheduler, processors } = parts;
  // Memory that is private may not be had as a whole.
  const bypass = parts.maps === "whole";
  const room = roomFor(parts, LARGEST_GRANULE_LG2);
  const granuleLg2 = Math.max(room.pageLg2, FRAME_LG2);
  const input = { start: room.ranges[0]!.start, end: room.ranges.at(-1)!.end };
  const endpoints = devices.map(({ rid, fd, id }, index) => ({
    ...{ rid, fd, id },
    reserved: reservedOf(rangesOf(calls, devices[index]!), input),
  }));
  const iommu: VirtioIommu = new VirtioIommu({
    ...{ name, memory, events, input, bypass },
    pageSizes: ~(2n ** BigInt(granuleLg2) - 1n) & WORD,
    reservedRanges: Math.max(...endpoints.map(({ reserved }) => reserved.length)),
    interrupt: () => processors.defer(() => iommu.onInterrupt?.()),
  });
  const faults = room.faults ? new PageFaults({ calls, iommu, devices, scheduler }) : undefined;
  const domains = new Domains({
    ...{ calls, ram, endpoints, input, bypass },
    granule: 2 ** granuleLg2,
    faults: faults?.id,
    report: (what, { message: reason }) => {
      if (events.on) events.emit("device", { device: name, what, reason });
    },
  });
  iommu.connect(domains);
  return {
    iommu,
    backEnd: {
      get held() {
        return domains.mappings;
      },
      reports: faults !== undefined,
    },
  };
};

const WORD = 2n ** 64n - 1n;

/** The doorbell, and what lies between the ranges that the host maps for a device, within what the guest is told of. */
const reservedOf = (ranges: readonly AddressRange[], input: AddressRange): ReservedRange[] => {
  const holes = [...ranges, { start: input.end, end: input.end }]
    .map(({ start }, index) => ({ start: index === 0 ? input.start : ranges[index - 1]!.end, end: start }))
    .flatMap((hole) => without(hole, DOORBELL))
    .map((hole) => ({ ...hole, kind: ReservedKind.RESERVED }));
  return [...holes, DOORBELL].sort((a, b) => a.start - b.start);
};

/** What of a range is not in another. */
const without = ({ start, end }: AddressRange, other: AddressRange): AddressRange[] =>
  [
    { start, end: Math.min(end, other.start) },
    { start: Math.max(start, other.end), end },
  ].filter((part) => part.start < part.end);
