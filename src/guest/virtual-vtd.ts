/** A virtual VT-d unit in a VMM: above a host that nests, by iommufd or by the interface of 2020, or by copies of the guest's tables. */
import { EcapRegister } from "../hardware/vtd/spec.ts";
import type { VtdCapabilities } from "../hardware/vtd/unit.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { BackEnd } from "../viommu/by-domain.ts";
import type { ContainerCalls } from "../viommu/container-calls.ts";
import type { DeviceInfo } from "../viommu/device-calls.ts";
import { PageFaults } from "../viommu/page-faults.ts";
import { RegionFaults } from "../viommu/region-faults.ts";
import { ShadowBackEnd } from "../viommu/shadow/by-domain.ts";
import { BoundBackEnd } from "../viommu/vtd/bound.ts";
import { VtdFrontEnd } from "../viommu/vtd/front-end.ts";
import { NestedBackEnd } from "../viommu/vtd/nested.ts";
import { remembering } from "./breaks.ts";
import { roomFor } from "./room.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** Above a host that nests. Throws EOPNOTSUPP when the host's units do not. */
export const nestedVtd = (parts: VirtualUnitParts): VirtualUnit => {
  const { name, memory, events, interrupt, devices, addressWidth, calls, ram, scheduler } = parts;
  const infos = devices.map(({ info }) => info);
  const capabilities = nestable(infos, addressWidth);
  const iommu = new VtdFrontEnd({ name, memory, events, interrupt, capabilities });
  const asking = infos.every(asksForPages) ? new PageFaults({ calls, iommu, devices, scheduler }) : undefined;
  const pasids = infos.every(({ pasidBits }) => pasidBits > 0);
  return join(
    iommu,
    new NestedBackEnd({ calls, ram, devices, guest: iommu, pasids, faults: asking?.id }),
    parts,
  );
};

/** Above a host with the interface of 2020: PASIDs come from the host. */
export const boundVtd = (parts: VirtualUnitParts<ContainerCalls>): VirtualUnit => {
  const { name, memory, events, interrupt, devices, addressWidth, calls, ram, scheduler } = parts;
  const infos = devices.map(({ info }) => info);
  const first = devices[0];
  if (!first) throw new RangeError("a virtual IOMMU without devices has nothing to bind");
  const iommu = new VtdFrontEnd({
    ...{ name, memory, events, interrupt },
    capabilities: firstStagesOf(infos, addressWidth),
    // PASIDs are the process's, whichever of its containers is asked.
    pasids: {
      allocate: () => calls.allocatePasid(first.id),
      free: (pasid) => calls.freePasid(first.id, pasid),
    },
  });
  if (infos.every(asksForPages)) new RegionFaults({ calls, iommu, devices, scheduler });
  return join(iommu, new BoundBackEnd({ calls, ram, devices, guest: iommu }), parts);
};

/** By copies of the guest's tables, on any host; `scalable`: with first stages, and PASIDs where the host has them. */
export const shadowedVtd = (parts: VirtualUnitParts, scalable: boolean): VirtualUnit => {
  const { name, memory, events, interrupt, devices, addressWidth, calls, ram, scheduler } = parts;
  const room = roomFor(parts, PAGE_LG2);
  const waits = scalable && room.faults;
  const plain = { ...legacy(addressWidth), guestAddressWidth: Math.min(room.addressBits, WIDEST) };
  const iommu = new VtdFrontEnd({
    ...{ name, memory, events, interrupt },
    capabilities: scalable ? { ...plain, ...both(room.pasidBits, waits) } : plain,
  });
  if (waits) for (const device of devices) device.showPageRequests();
  const asking = waits ? new PageFaults({ calls, iommu, devices, scheduler }) : undefined;
  const pasids = scalable && room.pasidBits > 0;
  return join(
    iommu,
    new ShadowBackEnd({ calls, ram, devices, guest: iommu, pasids, faults: asking?.id }),
    parts,
  );
};

const join = (
  iommu: VtdFrontEnd,
  backEnd: BackEnd,
  { broken }: Pick<VirtualUnitParts, "broken">,
): VirtualUnit => {
  iommu.connect(broken.has("stale-iotlb") ? remembering(backEnd) : backEnd);
  return { iommu, backEnd };
};

const PAGE_LG2 = 12;
/** Bits of the widest tables. */
const WIDEST = 48;

/** A unit in legacy mode. */
const legacy = (hostAddressWidth: number): VtdCapabilities => ({ addressWidths: [39, 48], hostAddressWidth });

/** Scalable mode with all kinds of tables: what walks them is the VMM. */
const both = (pasidBits: number, pageRequests: boolean): Partial<VtdCapabilities> => ({
  deviceTlb: pageRequests,
  scalable: {
    firstStage: true,
    secondStage: true,
    nested: true,
    pageRequests,
    ...(pasidBits > 0 && { pasidBits }),
  },
});

const allHave = (infos: readonly DeviceInfo[], name: keyof typeof EcapRegister.fields): boolean =>
  infos.every(({ vtd }) => vtd !== undefined && EcapRegister.fields[name].of(vtd.ecap) !== 0n);

const nestable = (infos: readonly DeviceInfo[], hostAddressWidth: number): VtdCapabilities => {
  if (!allHave(infos, "NEST"))
    throw new LinuxError("EOPNOTSUPP", "the host's IOMMU does not nest (ECAP.NEST): shadow instead");
  return firstStagesOf(infos, hostAddressWidth);
};

/** A unit in scalable mode with what all devices' units have for guests: first stages, and PASIDs. */
const firstStagesOf = (infos: readonly DeviceInfo[], hostAddressWidth: number): VtdCapabilities => {
  const all = (test: (info: DeviceInfo) => boolean): boolean => infos.every(test);
  const pasidBits = Math.min(...infos.map((info) => info.pasidBits));
  const pageRequests = all(asksForPages);
  return {
    ...legacy(hostAddressWidth),
    deviceTlb: all(({ ats }) => ats),
    scalable: {
      firstStage: true,
      supervisorRequests: allHave(infos, "SRS"),
      extendedAccessed: allHave(infos, "EAFS"),
      pageRequests,
      ...(pasidBits > 0 && { pasidBits }),
    },
  };
};

/** Whether page requests of the device can reach a fault queue. */
const asksForPages = ({ vtd, ats }: DeviceInfo): boolean =>
  ats && vtd !== undefined && EcapRegister.fields.PRS.of(vtd.ecap) !== 0n;
