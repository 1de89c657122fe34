/**
 * What of a guest is its platform's: which IOMMU it has, the driver for it, which is the one that hosts use, and the page
 * tables of its processors, which the IOMMU walks too.
 */
import type { EventSink } from "../base/events.ts";
import { Ids } from "../base/ids.ts";
import type { Scheduler } from "../base/scheduler.ts";
import { AmdDriver } from "../drivers/amdvi/driver.ts";
import { SmmuDriver } from "../drivers/smmuv3/driver.ts";
import { VtdDriver } from "../drivers/vtd/driver.ts";
import { VirtualPasids } from "../drivers/vtd/virtual-pasids.ts";
import { ZpciDriver } from "../drivers/zpci/driver.ts";
import type { MsiController } from "../kernel/msi.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { compileWalker } from "../pagetable/compile.ts";
import { s390Dat } from "../pagetable/s390.ts";
import { vmsaStage1 } from "../pagetable/vmsa.ts";
import type { Walker } from "../pagetable/walker.ts";
import { x86Paging } from "../pagetable/x86-64.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { GuestDriver, GuestHypervisor, GuestIommu } from "./iommu.ts";
import { TceGuestDriver } from "./tce/driver.ts";
import { VirtioIommuDriver } from "./virtio/driver.ts";

export type { GuestDomain, GuestDriver, GuestHypervisor, GuestIommu } from "./iommu.ts";

export interface GuestPlatform {
  readonly name: string;
  readonly memory: HostMemory;
  readonly iommu: GuestIommu;
  /** Bits of its physical addresses. */
  readonly addressWidth: number;
  readonly msi: MsiController;
  readonly scheduler: Scheduler;
  readonly events: EventSink;
}

/** A guest's functions are on one bus. */
const LAST_DEVICE = 0xff;

/** Throws ENODEV when it has none, or not what firmware says. */
export const driverFor = (platform: GuestPlatform): GuestDriver => {
  const { name, memory, iommu, addressWidth, msi, scheduler, events } = platform;
  const common = { unit: iommu, memory, msi, events };
  switch (iommu.model) {
    case "vtd":
      return new VtdDriver({
        ...common,
        name: `${name}'s dmar0`,
        firmware: { hostAddressWidth: addressWidth, covers: () => true, reservedMemory: [] },
      });
    case "smmuv3":
      return new SmmuDriver({
        ...common,
        name: `${name}'s smmu3`,
        scheduler,
        firmware: {
          covers: () => true,
          canStall: () => true,
          remembersAbsent: iommu.remembersAbsent ?? false,
          messagesPass: iommu.messagesPass ?? false,
        },
      });
    case "amdvi":
      return new AmdDriver({
        ...common,
        name: `${name}'s ivhd0`,
        scheduler,
        firmware: {
          covers: () => true,
          lastDevice: LAST_DEVICE,
          deviceTlb: iommu.deviceTlb ?? false,
          remembersAbsent: iommu.remembersAbsent ?? false,
          guestTablesOnly: iommu.guestTablesOnly ?? false,
        },
      });
    case "zpci":
      return new ZpciDriver({
        ...common,
        name: `${name}'s zpci0`,
        firmware: { covers: () => true, ...(iommu.addresses ?? { start: 0, end: 0 }) },
      });
    case "tce":
      return new TceGuestDriver(`${name}'s windows`, iommu as GuestIommu & GuestHypervisor, memory);
    case "virtio":
      return new VirtioIommuDriver(`${name}'s virtio-iommu`, iommu, memory);
    case "none":
      throw new LinuxError("ENODEV", "it has no IOMMU", name);
  }
};

/** Numbers for its processes: chosen freely, or asked of the unit where that says so. */
export interface GuestPasids {
  take(): number;
  give(pasid: number): void;
}
export const pasidsOf = (iommu: GuestIommu, name: string): GuestPasids =>
  iommu.model === "vtd" && VirtualPasids.has(iommu) ? new VirtualPasids(iommu, name) : new Ids(1, 2 ** 20);

const x86Walker = compileWalker(x86Paging(4));

/** How a processor walks the tables of its processes. */
export const processorWalkers: { readonly [Model in GuestIommu["model"]]: Walker } = {
  vtd: x86Walker,
  amdvi: x86Walker,
  zpci: compileWalker(s390Dat(3)),
  // Its functions have no PASIDs, and so nobody asks for its processors' tables.
  tce: x86Walker,
  virtio: x86Walker,
  none: x86Walker,
  smmuv3: compileWalker(vmsaStage1({ granuleLg2: 12, inputBits: 48, outputBits: 48 })),
};
