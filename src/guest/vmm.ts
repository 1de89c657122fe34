/**
 * A modelled VMM on iommufd, whose guest has an IOMMU of the model that the host has, or of another: a VT-d
 * unit, an SMMUv3, an AMD-Vi unit, tables of s390, windows of POWER or a virtio-iommu.
 */
import type { DeviceInfo } from "../viommu/device-calls.ts";
import { HostCalls } from "../viommu/host-calls.ts";
import { MistakenCalls } from "./breaks.ts";
import { nestedAmd, shadowedAmd } from "./virtual-amdvi.ts";
import { withoutIommu } from "./virtual-none.ts";
import { nestedSmmu, shadowedSmmu } from "./virtual-smmuv3.ts";
import { tceWindows } from "./virtual-tce.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";
import { virtioIommu } from "./virtual-virtio.ts";
import { nestedVtd, shadowedVtd } from "./virtual-vtd.ts";
import { nestedZpci, shadowedZpci } from "./virtual-zpci.ts";
import { openNode, VmmProcess, type VmmProcessOptions } from "./vmm-process.ts";

/**
 * An IOMMU that a VMM can show whatever its host has: VT-d in scalable or legacy mode, SMMUv3, AMD-Vi, s390,
 * windows of POWER (where the host has room, or where POWER has them), virtio-iommu, or none.
 */
export type ShownUnit =
  | "vtd"
  | "vtd-legacy"
  | "smmuv3"
  | "amdvi"
  | "zpci"
  | "tce"
  | "tce-fixed"
  | "virtio"
  | "none";

/** A host's device, and the requester id that the guest is to know it by. */
export interface Assignment {
  /** "/dev/vfio/devices/vfio0" */
  readonly path: string;
  readonly rid: number;
}

export interface VmmOptions extends VmmProcessOptions {
  readonly devices: readonly Assignment[];
  /** How the host is made to follow the guest's tables: by walking them, or by copies of them. */
  readonly follow: "nested" | "shadow";
  /** What a shadowed guest has, on whatever host; default `vtd-legacy`. With nesting it is the host's model. */
  readonly shows?: ShownUnit;
}

export class Vmm extends VmmProcess<HostCalls> {
  constructor(options: VmmOptions) {
    const { host, record, follow, shows = "vtd-legacy" } = options;
    super(options, {
      open(task, broken) {
        const iommufd = openNode(task, host, "/dev/iommu");
        const calls =
          broken.size > 0
            ? new MistakenCalls(broken, task, iommufd, record)
            : new HostCalls(task, iommufd, record);
        const devices = options.devices.map(({ path, rid }) => ({ fd: openNode(task, host, path), rid }));
        return { calls, devices };
      },
      show: (parts) => (follow === "shadow" ? shadowed(parts, shows) : nested(parts)),
    });
  }
}

const nested = (parts: VirtualUnitParts): VirtualUnit => {
  const all = (test: (info: DeviceInfo) => boolean): boolean => parts.devices.every(({ info }) => test(info));
  if (all(({ smmu }) => smmu !== undefined)) return nestedSmmu(parts);
  if (all(({ amd }) => amd !== undefined)) return nestedAmd(parts);
  // A host of s390 has no structure that says what it is.
  return all(({ vtd }) => vtd !== undefined) ? nestedVtd(parts) : nestedZpci(parts);
};

const shadowed = (parts: VirtualUnitParts, shows: ShownUnit): VirtualUnit => {
  switch (shows) {
    case "smmuv3":
      return shadowedSmmu(parts);
    case "amdvi":
      return shadowedAmd(parts);
    case "zpci":
      return shadowedZpci(parts);
    case "tce":
    case "tce-fixed":
      return tceWindows(parts, shows === "tce-fixed");
    case "virtio":
      return virtioIommu(parts);
    case "none":
      return withoutIommu(parts);
    default:
      return shadowedVtd(parts, shows === "vtd");
  }
};
