/**
 * A guest's first-stage table above a domain of the host (revision 4.1, §3.8): the VMM's IOMMU_HWPT_DATA_VTD_S1. It has a
 * domain id of its own on each unit, so that the first stages of guests with one parent are apart in the caches.
 */
import type { InvalidationOutcome, NestedDomain, UserArray, UserData } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_HWPT_DATA_VTD_S1,
  IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
  IOMMU_VTD_INV_FLAGS_LEAF,
  IOMMU_VTD_S1_EAFE,
  IOMMU_VTD_S1_SRE,
  IOMMU_VTD_S1_WPE,
  IommuHwptVtdS1,
  IommuHwptVtdS1Invalidate,
} from "../../uapi/vendor/vtd.ts";
import { EVERYTHING, type Range } from "../range.ts";
import { flushFirstStage, type GuestTable, type VtdDomain } from "./domain.ts";
import { Resident } from "./residence.ts";
import type { Translation } from "./translation.ts";
import type { Unit } from "./unit.ts";

const PAGE = 4096n;
const EVERY_PAGE = 2n ** 64n - 1n;
const PAGE_MASK = 2n ** 64n - PAGE;

/** The guest's table, as the VMM describes it. */
type FirstStageData = ReturnType<typeof IommuHwptVtdS1.read>;

export class VtdNestedDomain extends Resident implements NestedDomain, GuestTable {
  readonly kind = "nested";
  readonly name: string;
  readonly parent: VtdDomain;
  /** Page faults under it are reported. */
  readonly faults: boolean;
  readonly #data: FirstStageData;

  /**
   * Throws EOPNOTSUPP for another kind of data, EINVAL for its length, EFAULT. Flags that mean nothing and `__reserved` are
   * passed over, as Linux refuses neither (it does so in invalidations).
   */
  constructor(parent: VtdDomain, data: UserData, faults: boolean) {
    super();
    this.parent = parent;
    this.faults = faults;
    this.name = `nested above ${parent.name}`;
    if (data.type !== IOMMU_HWPT_DATA_VTD_S1)
      throw new LinuxError(
        "EOPNOTSUPP",
        `data of type 0x${data.type.toString(16)}: VT-d takes ${IOMMU_HWPT_DATA_VTD_S1} (VTD_S1)`,
        this.name,
      );
    this.#data = IommuHwptVtdS1.read(data.read(IommuHwptVtdS1.size));
    parent.nested.add(this);
  }

  /** Why functions behind the unit cannot have it; undefined: they can. */
  unfitFor(unit: Unit): string | undefined {
    const { addr_width: width, flags } = this.#data;
    const { firstLevels, supervisorRequests, extendedAccessed } = unit.abilities;
    if (width !== 48 && !(width === 57 && firstLevels === 5))
      return `the unit has no first stage of ${width} address bits`;
    if (flags & BigInt(IOMMU_VTD_S1_SRE) && !supervisorRequests)
      return "the unit has no supervisor requests (SRE)";
    if (flags & BigInt(IOMMU_VTD_S1_EAFE) && !extendedAccessed)
      return "the unit has no extended accessed flags (EAFE)";
    return this.parent.unfitFor(unit);
  }

  translation(unit: Unit): Translation {
    const { addr_width, flags, pgtbl_addr } = this.#data;
    return {
      id: this.idOn(unit),
      snoop: unit.abilities.snoopControl,
      second: this.parent.secondStage,
      first: {
        root: pgtbl_addr & PAGE_MASK,
        levels: addr_width === 57 ? 5 : 4,
        supervisor: (flags & BigInt(IOMMU_VTD_S1_SRE)) !== 0n,
        extendedAccessed: (flags & BigInt(IOMMU_VTD_S1_EAFE)) !== 0n,
        writeProtect: (flags & BigInt(IOMMU_VTD_S1_WPE)) !== 0n,
      },
    };
  }

  /** The guest changed its table: what units and functions know of the addresses goes. */
  invalidate(requests: UserArray): InvalidationOutcome {
    if (requests.type !== IOMMU_HWPT_INVALIDATE_DATA_VTD_S1)
      return {
        done: 0,
        error: new LinuxError(
          "EINVAL",
          `data_type ${requests.type}: VT-d takes ${IOMMU_HWPT_INVALIDATE_DATA_VTD_S1} (VTD_S1)`,
          this.name,
        ),
      };
    for (let index = 0; index < requests.count; index += 1)
      try {
        this.#flush(this.#rangeOf(requests, index));
      } catch (error) {
        return { done: index, error };
      }
    return { done: requests.count };
  }

  /**
   * The host's table below changed: guest addresses of the range are forgotten. Which of a function's translations came of
   * them nobody knows, so its own TLB forgets everything.
   */
  parentChanged(range: Range, added: boolean): void {
    for (const { unit, id, attachments } of this.residences.values()) {
      if (attachments.size === 0 || (added && !unit.abilities.cachingMode)) continue;
      unit.invalidations.iotlbRange(id, range);
      for (const { device, pasid } of attachments) unit.flushDevice(device, pasid, EVERYTHING);
    }
  }

  leave(unit: Unit): void {
    this.depart(unit);
  }

  free(): void {
    if (this.isAttached)
      throw new LinuxError("EBUSY", "devices still have it; they must be detached first", this.name);
    this.parent.nested.delete(this);
  }

  #rangeOf(requests: UserArray, index: number): Range {
    const { size } = IommuHwptVtdS1Invalidate;
    const { addr, npages, flags, __reserved } = IommuHwptVtdS1Invalidate.read(requests.read(index, size));
    if ((flags & ~IOMMU_VTD_INV_FLAGS_LEAF) !== 0 || __reserved !== 0)
      throw new LinuxError(
        "EOPNOTSUPP",
        `entry ${index}: flags 0x${flags.toString(16)}, of which LEAF (1) is known, and __reserved must be 0`,
        this.name,
      );
    if (addr % PAGE !== 0n)
      throw new LinuxError(
        "EINVAL",
        `entry ${index}: address 0x${addr.toString(16)} is not a multiple of 0x1000`,
        this.name,
      );
    if (npages === EVERY_PAGE && addr !== 0n)
      throw new LinuxError(
        "EINVAL",
        `entry ${index}: everything (npages 2^64 - 1) begins at address 0, not 0x${addr.toString(16)}`,
        this.name,
      );
    const leavesOnly = (flags & IOMMU_VTD_INV_FLAGS_LEAF) !== 0;
    if (addr + npages * PAGE > 2n ** 64n) return { ...EVERYTHING, leavesOnly };
    return { iova: Number(addr), length: Number(npages * PAGE), leavesOnly };
  }

  #flush(range: Range): void {
    for (const residence of this.residences.values()) {
      flushFirstStage(residence, range);
      for (const { device, pasid } of residence.attachments) residence.unit.flushDevice(device, pasid, range);
    }
  }
}
