/**
 * A virtual SMMUv3 in a VMM: above an Arm host that nests, with what of the host's unit a guest can have, and its events; or
 * by copies of the guest's tables on any host.
 */
import { capabilitiesOf, type SmmuCapabilities } from "../hardware/smmuv3/capabilities.ts";
import { NO_PASID } from "../hardware/unit.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { ArmRegisters } from "../viommu/device-calls.ts";
import { NestedCommands } from "../viommu/nested-commands.ts";
import { PageFaults } from "../viommu/page-faults.ts";
import { whenReady } from "../viommu/ready.ts";
import { SmmuFrontEnd } from "../viommu/smmuv3/front-end.ts";
import { smmuNesting } from "../viommu/smmuv3/nested.ts";
import { ShadowBackEnd } from "../viommu/smmuv3/shadow.ts";
import { GuestContexts } from "../viommu/smmuv3/tables.ts";
import { isTlbCommand, rememberingTlb } from "./breaks.ts";
import { roomFor } from "./room.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** Events that wait for the VMM at most; more are counted as lost. */
const EVENTS = 256;

/** Throws EOPNOTSUPP when the host's unit does not nest, or when there are several that are not alike. */
export const nestedSmmu = (parts: VirtualUnitParts): VirtualUnit => {
  const { name, memory, events, interrupt, calls, ram, devices, scheduler, broken } = parts;
  const { smmu } = devices[0]?.info ?? {};
  if (!smmu) throw new RangeError("a virtual IOMMU without devices has nothing to nest");
  const alike = JSON.stringify(smmu);
  if (devices.some(({ info }) => JSON.stringify(info.smmu) !== alike))
    throw new LinuxError("EOPNOTSUPP", "the host's units in front of the guest's devices are not alike");
  const capabilities = nestable(smmu);
  const iommu = new SmmuFrontEnd({
    ...{ name, memory, events, interrupt, capabilities },
    messagesPass: true,
  });
  const stalling =
    capabilities.stalls === "terminate" ? undefined : new PageFaults({ calls, iommu, devices, scheduler });
  const entryOf = (sid: number): bigint => iommu.entryOf(sid);
  const backEnd = new NestedCommands(smmuNesting, { calls, ram, devices, entryOf, faults: stalling?.id });
  for (const viommu of backEnd.viommus) {
    const queue = calls.allocateEvents(viommu, EVENTS);
    whenReady(calls.task, queue, scheduler, () => {
      for (const event of calls.readEvents(queue)) iommu.reportEvent(event);
    });
  }
  iommu.connect(broken.has("stale-iotlb") ? rememberingTlb(backEnd, isTlbCommand) : backEnd);
  return { iommu, backEnd };
};

/** By copies, with SubstreamIDs and stalls where the host has what they take. */
export const shadowedSmmu = (parts: VirtualUnitParts): VirtualUnit => {
  const { name, memory, events, interrupt, calls, ram, devices, scheduler, broken, addressWidth } = parts;
  const room = roomFor(parts, GRANULES.at(-1)!);
  const iommu = new SmmuFrontEnd({
    ...{ name, memory, events, interrupt, remembersAbsent: true },
    capabilities: {
      outputBits: OUTPUT_BITS.findLast((bits) => bits <= addressWidth) ?? OUTPUT_BITS[0],
      granules: GRANULES.filter((granule) => granule >= room.pageLg2),
      substreamIdBits: room.pasidBits,
      stalls: room.faults ? "both" : "terminate",
      msi: true,
    },
  });
  const contexts = new GuestContexts(memory, iommu.capabilities);
  const stalling = room.faults ? new PageFaults({ calls, iommu, devices, scheduler }) : undefined;
  const backEnd = new ShadowBackEnd({
    ...{ calls, ram, devices, unit: iommu.capabilities },
    contexts,
    entryOf: (sid) => iommu.entryOf(sid),
    pasids: room.pasidBits > 0,
    faults: stalling?.id,
  });
  iommu.connect(broken.has("stale-iotlb") ? rememberingTlb(backEnd, isTlbCommand) : backEnd);
  const messageTarget = (rid: number, address: number): number => {
    const translation = contexts.translationOf(iommu.entryOf(rid), NO_PASID);
    if (translation.kind !== "table") return translation.kind === "identity" ? address : -1;
    const found = translation.table.find(address);
    return found.page && found.writable ? found.target + address - found.start : -1;
  };
  return { iommu, backEnd, messageTarget };
};

const GRANULES = [12, 14, 16] as const;
const OUTPUT_BITS = [32, 36, 40, 42, 44, 48] as const;

/** A unit with stage 1 as the host's has it, messages, and nothing that only a host's driver can use. */
const nestable = ({ idr, iidr, aidr }: ArmRegisters): SmmuCapabilities => {
  const [idr0 = 0, idr1 = 0, , idr3 = 0, , idr5 = 0] = idr;
  const host = capabilitiesOf({ idr0, idr1, idr3, idr5, iidr, aidr });
  if (!host.stage1 || !host.stage2)
    throw new LinuxError("EOPNOTSUPP", "the host's IOMMU does not nest (IDR0.S1P, IDR0.S2P)");
  return { ...host, stage2: false, hyp: false, pri: false, msi: true, updates: "none" };
};
