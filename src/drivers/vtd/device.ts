/**
 * A function behind a VT-d unit as its driver knows it: what it may do beyond plain requests (PASIDs, translation
 * requests, page requests), and what it has been given. Its capabilities are found and switched on in its config space
 * (PCIe §7.8.9 PASID, §10.5.1 ATS, §10.5.2 PRI).
 */
import type { Domain, Requester } from "../../iommu/driver.ts";
import { extendedCapabilitiesOf } from "../../pci/capability-list.ts";
import type { PciFunction } from "../../pci/function.ts";
import {
  AtsCapability,
  AtsControl,
  ExtendedCapabilityId,
  PasidCapability,
  PasidControl,
  PasidFlags,
  PriCapability,
  PriControl,
} from "../../pci/spec.ts";
import type { Abilities } from "./abilities.ts";

/** PASID table entry of requests without a PASID. */
export const RID_PASID = 0;

/** A PASID of a function, or the function without one (`RID_PASID`), that has a domain. */
export interface Attachment {
  readonly device: VtdDevice;
  readonly pasid: number;
}

/** What a PASID of the function, or the function without one, has been given. */
export interface Given {
  readonly domain: Domain;
  readonly attachment: Attachment;
}

export class VtdDevice {
  readonly requester: Requester;
  readonly rid: number;
  readonly name: string;
  readonly pasidBits: number;
  readonly pasidExecute: boolean;
  readonly pasidPrivileged: boolean;
  readonly pri: boolean;
  /** Its own TLB is kept in step; false from when it failed to answer. */
  ats: boolean;
  /** By PASID, `RID_PASID` for requests without one. What is not here is blocked. */
  readonly given = new Map<number, Given>();

  constructor(requester: Requester, abilities: Abilities) {
    this.requester = requester;
    this.rid = requester.rid;
    this.name = requester.name;
    const found = isConfigured(requester) ? enable(requester, abilities) : NOTHING;
    this.pasidBits = found.pasidBits;
    this.pasidExecute = found.execute;
    this.pasidPrivileged = found.privileged;
    this.ats = found.ats;
    this.pri = found.pri;
  }
}

type Configured = Requester & PciFunction;
const isConfigured = (device: Requester): device is Configured => "configRead" in device;

const NOTHING = { pasidBits: 0, execute: false, privileged: false, ats: false, pri: false };

/** Switches on what both the function and its unit have. PASIDs come before translation requests (PCIe §10.5.1.3). */
const enable = (pci: Configured, abilities: Abilities): typeof NOTHING => {
  const offsets = new Map(extendedCapabilitiesOf(pci).map(({ id, at }) => [id, at]));
  const pasidAt = abilities.pasidBits > 0 ? offsets.get(ExtendedCapabilityId.PASID) : undefined;
  const atsAt = abilities.deviceTlb ? offsets.get(ExtendedCapabilityId.ATS) : undefined;
  const priAt =
    atsAt !== undefined && abilities.pageRequests ? offsets.get(ExtendedCapabilityId.PRI) : undefined;
  const flags = [pasidAt === undefined ? 0 : pci.configRead(pasidAt + PasidCapability.CAPABILITY, 2)];
  const execute = PasidFlags.fields.Execute.get(flags) === 1;
  const privileged = PasidFlags.fields.Privileged.get(flags) === 1;
  const write = (at: number, value: bigint): void => pci.configWrite(at, 2, Number(value));
  if (pasidAt !== undefined)
    write(
      pasidAt + PasidCapability.CONTROL,
      PasidControl.make({ Enable: true, Execute: execute, Privileged: privileged }),
    );
  if (priAt !== undefined) {
    const capacity = pci.configRead(priAt + PriCapability.OUTSTANDING_CAPACITY, 4);
    pci.configWrite(priAt + PriCapability.OUTSTANDING_ALLOCATION, 4, capacity);
    write(priAt + PriCapability.CONTROL, PriControl.make({ Enable: true }));
  }
  if (atsAt !== undefined) write(atsAt + AtsCapability.CONTROL, AtsControl.make({ Enable: true }));
  return {
    pasidBits: Math.min(PasidFlags.fields.MaxWidth.get(flags), abilities.pasidBits),
    execute,
    privileged,
    ats: atsAt !== undefined,
    pri: priAt !== undefined,
  };
};
