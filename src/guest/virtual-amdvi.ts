/**
 * A virtual AMD-Vi unit in a VMM: above a host of AMD's that nests (extension `amd-nesting`), with what of the host's unit a
 * guest can have; or by copies of the guest's tables on any host.
 */
import { ExtendedFeature, ExtendedFeature2, GCR3_BITS } from "../hardware/amdvi/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import { AmdViFrontEnd } from "../viommu/amdvi/front-end.ts";
import { AmdNested } from "../viommu/amdvi/nested.ts";
import { AmdShadow } from "../viommu/amdvi/shadow.ts";
import type { CommandBackEnd } from "../viommu/commands.ts";
import type { DeviceInfo } from "../viommu/device-calls.ts";
import { PageFaults } from "../viommu/page-faults.ts";
import { rememberingTlb } from "./breaks.ts";
import { roomFor } from "./room.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** Throws EOPNOTSUPP when the host does not nest, or has several units that are not alike. */
export const nestedAmd = (parts: VirtualUnitParts): VirtualUnit => {
  const { name, memory, events, interrupt, calls, ram, devices, scheduler } = parts;
  const infos = devices.map(({ info }) => info);
  const ats = infos.every((info) => info.ats);
  const efr = nestable(infos, ats);
  const iommu = new AmdViFrontEnd({
    ...{ name, memory, events, interrupt, guestTablesOnly: true },
    capabilities: { efr, efr2: 0n, deviceTlb: ats },
  });
  const { pageRequests } = iommu.capabilities;
  const asking = pageRequests ? new PageFaults({ calls, iommu, devices, scheduler }) : undefined;
  const entryOf = (rid: number): bigint => iommu.entryOf(rid);
  const backEnd = new AmdNested({ calls, ram, devices, entryOf, faults: asking?.id });
  return join(iommu, backEnd, parts);
};

/** By copies, with PASIDs, and accesses that wait, where the host has what they take. */
export const shadowedAmd = (parts: VirtualUnitParts): VirtualUnit => {
  const { name, memory, events, interrupt, calls, ram, devices, scheduler } = parts;
  const { pasidBits: hostBits, faults } = roomFor(parts, PAGE_LG2);
  const pasidBits = Math.min(hostBits, SHADOWED_PASID_BITS);
  const waits = faults && pasidBits > 0;
  const iommu = new AmdViFrontEnd({
    ...{ name, memory, events, interrupt, remembersAbsent: true },
    // Beside host tables a device's PASIDs would have no place.
    guestTablesOnly: pasidBits > 0,
    capabilities: {
      efr: ExtendedFeature.make({
        ...ANYWAY,
        ...(pasidBits > 0 && { GT_SUP: true, GIO_SUP: true, PAS_MAX: pasidBits - 1, GLX_SUP: 1 }),
        PPR_SUP: waits,
        PPR_AUTO_RSP_SUP: waits,
      }),
      efr2: 0n,
      deviceTlb: waits,
    },
  });
  if (waits) for (const device of devices) device.showPageRequests();
  const asking = waits ? new PageFaults({ calls, iommu, devices, scheduler }) : undefined;
  const backEnd = new AmdShadow({
    ...{ calls, ram, devices, guest: iommu },
    pasids: pasidBits > 0,
    faults: asking?.id,
  });
  return join(iommu, backEnd, parts);
};

const join = (
  iommu: AmdViFrontEnd,
  backEnd: CommandBackEnd,
  { broken }: Pick<VirtualUnitParts, "broken">,
): VirtualUnit => {
  // Whatever goes on is an invalidation.
  iommu.connect(broken.has("stale-iotlb") ? rememberingTlb(backEnd, () => true) : backEnd);
  return { iommu, backEnd };
};

const PAGE_LG2 = 12;
/** Of the PASIDs of a device all that its GCR3 tables, of two levels, can have are looked through. */
const SHADOWED_PASID_BITS = 2 * GCR3_BITS;

/** What no host has to do for the guest. */
const ANYWAY = { NX_SUP: true, US_SUP: true, IA_SUP: true, MSI_CAP_MMIO_SUP: true };

/** A unit with guest tables as the host's has them, and nothing that only a host's driver can use. */
const nestable = (infos: readonly DeviceInfo[], ats: boolean): bigint => {
  const { efr, efr2 } = infos[0]?.amd ?? {};
  if (efr === undefined || efr2 === undefined)
    throw new RangeError("a virtual IOMMU without devices has nothing to nest");
  if (infos.some(({ amd }) => amd?.efr !== efr || amd.efr2 !== efr2))
    throw new LinuxError("EOPNOTSUPP", "the host's units in front of the guest's devices are not alike");
  const { NX_SUP, US_SUP, GT_SUP, GIO_SUP, GATS, GLX_SUP, PAS_MAX, PPR_SUP, PPR_AUTO_RSP_SUP } =
    ExtendedFeature.fields;
  const has = ({ of }: typeof GT_SUP): number => Number(of(efr));
  if (!has(GT_SUP) || !has(GIO_SUP) || !ExtendedFeature2.fields.GCR3_TRP_MODE_SUP.of(efr2))
    throw new LinuxError(
      "EOPNOTSUPP",
      "the host's IOMMU does not nest (EFR.GTSup, EFR.GIoSup, EFR2.GCR3TRPMode)",
    );
  return ExtendedFeature.make({
    ...ANYWAY,
    NX_SUP: has(NX_SUP),
    US_SUP: has(US_SUP),
    GT_SUP: true,
    GIO_SUP: true,
    GATS: has(GATS),
    GLX_SUP: has(GLX_SUP),
    PAS_MAX: has(PAS_MAX),
    PPR_SUP: ats ? has(PPR_SUP) : 0,
    PPR_AUTO_RSP_SUP: ats ? has(PPR_AUTO_RSP_SUP) : 0,
  });
};
