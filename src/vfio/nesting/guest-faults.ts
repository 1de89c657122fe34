/**
 * Faults under a guest's tables on their way to the VMM: page requests, which then wait for its answer, and accesses that
 * failed for good, as struct iommu_fault in the fault region of the function that made them. A VMM that has not opened the
 * function, or listens to no faults of it, is not waited for.
 */
import type { Device, Group } from "../../iommu/core.ts";
import type { FaultReason, PageRequest, UnrecoverableFault } from "../../iommu/driver.ts";
import { type PageRequestGroup, pageRequestsOf } from "../../iommu/page-requests.ts";
import { unrecoverableFaultsOf } from "../../iommu/unrecoverable-faults.ts";
import {
  IOMMU_FAULT_DMA_UNRECOV,
  IOMMU_FAULT_PAGE_REQ,
  IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE,
  IOMMU_FAULT_PAGE_REQUEST_PASID_VALID,
  IOMMU_FAULT_PAGE_RESPONSE_NEEDS_PASID,
  IOMMU_FAULT_REASON_ACCESS,
  IOMMU_FAULT_REASON_BAD_PASID_ENTRY,
  IOMMU_FAULT_REASON_OOR_ADDRESS,
  IOMMU_FAULT_REASON_PASID_FETCH,
  IOMMU_FAULT_REASON_PASID_INVALID,
  IOMMU_FAULT_REASON_PERMISSION,
  IOMMU_FAULT_REASON_PTE_FETCH,
  IOMMU_FAULT_REASON_UNKNOWN,
  IOMMU_FAULT_REASON_WALK_EABT,
  IOMMU_FAULT_UNRECOV_ADDR_VALID,
  IOMMU_FAULT_UNRECOV_FETCH_ADDR_VALID,
  IOMMU_FAULT_UNRECOV_PASID_VALID,
  IommuFault,
} from "../../uapi/vsva.ts";
import type { VfioContext } from "../context.ts";
import type { FaultOwner } from "../fault-region.ts";

/** A response names no function: numbers of groups say which of the IOMMU group's functions they are of. */
const NUMBER_BITS = 16;

const REASONS: { readonly [reason in FaultReason]: number } = {
  unknown: IOMMU_FAULT_REASON_UNKNOWN,
  "pasid-fetch": IOMMU_FAULT_REASON_PASID_FETCH,
  "bad-pasid-entry": IOMMU_FAULT_REASON_BAD_PASID_ENTRY,
  "pasid-invalid": IOMMU_FAULT_REASON_PASID_INVALID,
  "walk-abort": IOMMU_FAULT_REASON_WALK_EABT,
  entry: IOMMU_FAULT_REASON_PTE_FETCH,
  permission: IOMMU_FAULT_REASON_PERMISSION,
  "accessed-flag": IOMMU_FAULT_REASON_ACCESS,
  "address-range": IOMMU_FAULT_REASON_OOR_ADDRESS,
};

/** Which faults of the group are the guest's, and how the guest calls the PASIDs. */
export interface FaultScope {
  readonly group: Group;
  /** Those of this PASID; undefined: all. */
  readonly pasid: number | undefined;
  /** The guest's name of it; undefined: the host's. */
  readonly guestPasid: number | undefined;
  /** Whose tables they are: responses find their groups by it. */
  readonly under: FaultOwner;
}

export class GuestFaults {
  readonly #context: Pick<VfioContext, "device">;
  readonly #scope: FaultScope;

  /** Functions have the tables, or are about to have them. */
  constructor(context: Pick<VfioContext, "device">, scope: FaultScope) {
    this.#context = context;
    this.#scope = scope;
    const { group, pasid } = scope;
    group.devices.forEach((device, index) => {
      const { driver, function: requester } = device;
      pageRequestsOf(driver).handle(requester, pasid, (requests) => this.#ask(device, index, requests));
      unrecoverableFaultsOf(driver).handle(requester, pasid, (fault) => this.#tell(device, fault));
    });
  }

  /** The functions have the tables no more: who waits is denied. */
  close(): void {
    const { group, pasid, under } = this.#scope;
    for (const { driver, function: requester, name } of group.devices) {
      pageRequestsOf(driver).unhandle(requester, pasid);
      unrecoverableFaultsOf(driver).unhandle(requester, pasid);
      this.#context.device(name)?.faults?.answer((waiting) => waiting.under === under, "invalid");
    }
  }

  #ask({ name }: Device, index: number, { pasid, number, requests, respond }: PageRequestGroup): void {
    const faults = this.#context.device(name)?.faults;
    if (!faults) {
      respond("invalid");
      return;
    }
    const told = this.#called(pasid);
    const grpid = index * 2 ** NUMBER_BITS + number;
    const group = {
      under: this.#scope.under,
      pasids: pasid === undefined || told === undefined ? [] : [told, pasid],
      number: grpid,
      respond,
    };
    faults.report(
      group,
      requests.map((request) => requestBytes(request, told, grpid)),
    );
  }

  #tell({ name }: Device, fault: UnrecoverableFault): void {
    this.#context.device(name)?.faults?.record([faultBytes(fault, this.#called(fault.pasid))]);
  }

  #called(pasid: number | undefined): number | undefined {
    return pasid === undefined ? undefined : (this.#scope.guestPasid ?? pasid);
  }
}

const requestBytes = (
  { last, permissions, address }: PageRequest,
  pasid: number | undefined,
  grpid: number,
): Uint8Array => {
  const named =
    pasid === undefined ? 0 : IOMMU_FAULT_PAGE_REQUEST_PASID_VALID | IOMMU_FAULT_PAGE_RESPONSE_NEEDS_PASID;
  const flags = named | (last ? IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE : 0);
  const prm = { flags, pasid: pasid ?? 0, grpid, perm: permissions, addr: address };
  return IommuFault.bytes({ type: IOMMU_FAULT_PAGE_REQ, prm });
};

const faultBytes = (
  { permissions, address, reason, fetch }: UnrecoverableFault,
  pasid: number | undefined,
): Uint8Array => {
  const flags =
    (address === undefined ? 0 : IOMMU_FAULT_UNRECOV_ADDR_VALID) |
    (pasid === undefined ? 0 : IOMMU_FAULT_UNRECOV_PASID_VALID) |
    (fetch === undefined ? 0 : IOMMU_FAULT_UNRECOV_FETCH_ADDR_VALID);
  return IommuFault.bytes({
    type: IOMMU_FAULT_DMA_UNRECOV,
    event: {
      reason: REASONS[reason],
      flags,
      pasid: pasid ?? 0,
      perm: permissions,
      addr: address ?? 0n,
      fetch_addr: fetch ?? 0n,
    },
  });
};
