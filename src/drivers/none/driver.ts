/**
 * Stands where no IOMMU is: the functions it takes put physical addresses on the bus and reach all memory, whoever has
 * them. There is nothing to translate with, so it has no domains but the one that passes everything and the one it
 * cannot enforce; whoever admits its functions says that they are not isolated (linux/vfio.h, VFIO_NOIOMMU_IOMMU).
 */
import type {
  DeviceCapabilities,
  Domain,
  FixedDomain,
  IommuDriver,
  PagingDomain,
  Requester,
  ReservedRegion,
} from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";

export class NoIommuDriver implements IommuDriver {
  readonly name = "none";
  readonly unprotected = true;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };

  probe(): DeviceCapabilities {
    return { cacheCoherent: false, dirtyTracking: false, pasidBits: 0, nesting: false };
  }
  release(): void {}
  reserved(): readonly ReservedRegion[] {
    return [];
  }

  /** Throws ENODEV: nothing translates. */
  allocatePaging(device: Requester): PagingDomain {
    throw new LinuxError("ENODEV", "no IOMMU is in front of it, so it can have no page table", device.name);
  }

  /** Changes nothing: devices reach what they like. Throws EINVAL for a page table or a PASID. */
  attach(device: Requester, domain: Domain, pasid?: number): void {
    if (domain !== this.identity && domain !== this.blocked)
      throw new LinuxError("EINVAL", `no IOMMU is in front of it to use ${domain.name}`, device.name);
    if (pasid !== undefined)
      throw new LinuxError("EINVAL", `PASID ${pasid}: no IOMMU is in front of it`, device.name);
  }
}
