/**
 * PCI translation of a virtual s390 in a VMM: above a host whose extension `s390-nesting` takes guests' anchors, or by copies of
 * the guest's tables on any host. The guest's functions have the addresses that the host maps for all of them.
 */
import { MSI_BASE } from "../kernel/msi.ts";
import { rangesOf } from "../viommu/shadow/host.ts";
import type { AddressRange } from "../viommu/shadow/table.ts";
import type { BackEnd } from "../viommu/zpci/back-end.ts";
import { ZpciFrontEnd } from "../viommu/zpci/front-end.ts";
import { ZpciNested } from "../viommu/zpci/nested.ts";
import { ZpciShadow } from "../viommu/zpci/shadow.ts";
import { rememberingRefreshes } from "./breaks.ts";
import { roomFor } from "./room.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

const PAGE_LG2 = 12;
/** What a region-third table translates. */
const WIDEST = 2 ** 42;

/** Throws EOPNOTSUPP when the host does not nest. */
export const nestedZpci = (parts: VirtualUnitParts): VirtualUnit => {
  const { calls, ram, devices } = parts;
  const ranges = devices.map((device) => rangesOf(calls, device));
  const addresses = {
    start: Math.max(...ranges.map(([first]) => first!.start)),
    end: Math.min(...ranges.map((all) => all.at(-1)!.end)),
  };
  const iommu = frontEnd(parts, addresses);
  return join(iommu, new ZpciNested({ calls, ram, devices, stateOf: (rid) => iommu.stateOf(rid) }), parts);
};

/** By copies. */
export const shadowedZpci = (parts: VirtualUnitParts): VirtualUnit => {
  const { calls, ram, devices, memory } = parts;
  const { ranges } = roomFor(parts, PAGE_LG2);
  const addresses = { start: 0, end: Math.min(ranges.at(-1)!.end, WIDEST) };
  const iommu = frontEnd(parts, addresses);
  return join(
    iommu,
    new ZpciShadow({ calls, ram, devices, memory, stateOf: (rid) => iommu.stateOf(rid) }),
    parts,
  );
};

const frontEnd = (
  { name, memory, events, interrupt, devices }: VirtualUnitParts,
  addresses: AddressRange,
): ZpciFrontEnd =>
  new ZpciFrontEnd({
    ...{ name, memory, events, interrupt, addresses },
    msiAddress: MSI_BASE,
    rids: devices.map(({ rid }) => rid),
  });

const join = (
  iommu: ZpciFrontEnd,
  backEnd: BackEnd,
  { broken }: Pick<VirtualUnitParts, "broken">,
): VirtualUnit => {
  iommu.connect(broken.has("stale-iotlb") ? rememberingRefreshes(backEnd) : backEnd);
  return { iommu, backEnd };
};
