/** A virtual VT-d unit in a VMM, above a host that nests or by copies of the guest's tables. */
import { EcapRegister } from "../hardware/vtd/spec.ts";
import type { VtdCapabilities } from "../hardware/vtd/unit.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { DeviceInfo } from "../viommu/host-calls.ts";
import { PageFaults } from "../viommu/page-faults.ts";
import type { BackEnd } from "../viommu/vtd/back-end.ts";
import { VtdFrontEnd } from "../viommu/vtd/front-end.ts";
import { NestedBackEnd } from "../viommu/vtd/nested.ts";
import { ShadowBackEnd } from "../viommu/vtd/shadow.ts";
import { remembering } from "./breaks.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** Throws EOPNOTSUPP when it is to nest and the host's units do not. */
export const virtualVtd = (parts: VirtualUnitParts, follow: "nested" | "shadow"): VirtualUnit => {
  const { name, memory, events, interrupt, devices, addressWidth, broken } = parts;
  const infos = devices.map(({ info }) => info);
  const iommu = new VtdFrontEnd({
    name,
    memory,
    events,
    interrupt,
    capabilities: follow === "nested" ? nestable(infos, addressWidth) : plain(addressWidth),
  });
  const backEnd = follow === "nested" ? nest(iommu, infos, parts) : shadow(iommu, parts);
  iommu.connect(broken.has("stale-iotlb") ? remembering(backEnd) : backEnd);
  return { iommu, backEnd };
};

const nest = (
  iommu: VtdFrontEnd,
  infos: readonly DeviceInfo[],
  { calls, ram, devices, scheduler }: VirtualUnitParts,
): BackEnd => {
  const asking = infos.every(asksForPages) ? new PageFaults({ calls, iommu, devices, scheduler }) : undefined;
  return new NestedBackEnd({
    calls,
    ram,
    devices,
    translationOf: (rid, pasid) => iommu.translationOf(rid, pasid),
    pasidsOf: (rid) => iommu.pasidsOf(rid),
    pasids: infos.every(({ pasidBits }) => pasidBits > 0),
    faults: asking?.id,
  });
};

const shadow = (iommu: VtdFrontEnd, { calls, ram, devices }: VirtualUnitParts): BackEnd =>
  new ShadowBackEnd({
    ...{ calls, ram, devices, tables: iommu.tables },
    translationOf: (rid) => iommu.translationOf(rid),
  });

/** A unit in legacy mode: second stages, which a VMM can copy. */
const plain = (hostAddressWidth: number): VtdCapabilities => ({ addressWidths: [39, 48], hostAddressWidth });

/** A unit in scalable mode with what all devices' units have for guests: first stages, and PASIDs. */
const nestable = (infos: readonly DeviceInfo[], hostAddressWidth: number): VtdCapabilities => {
  const all = (test: (info: DeviceInfo) => boolean): boolean => infos.every(test);
  const hostHas = (name: keyof typeof EcapRegister.fields) =>
    all(({ vtd }) => vtd !== undefined && EcapRegister.fields[name].of(vtd.ecap) !== 0n);
  if (!hostHas("NEST"))
    throw new LinuxError("EOPNOTSUPP", "the host's IOMMU does not nest (ECAP.NEST): shadow instead");
  const pasidBits = Math.min(...infos.map((info) => info.pasidBits));
  const pageRequests = all(asksForPages);
  return {
    ...plain(hostAddressWidth),
    deviceTlb: all(({ ats }) => ats),
    scalable: {
      firstStage: true,
      supervisorRequests: hostHas("SRS"),
      extendedAccessed: hostHas("EAFS"),
      pageRequests,
      ...(pasidBits > 0 && { pasidBits }),
    },
  };
};

/** Whether page requests of the device can reach a fault queue. */
const asksForPages = ({ vtd, ats }: DeviceInfo): boolean =>
  ats && vtd !== undefined && EcapRegister.fields.PRS.of(vtd.ecap) !== 0n;
