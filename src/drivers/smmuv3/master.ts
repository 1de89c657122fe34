/**
 * A function behind an SMMUv3 as its driver knows it: what it may do, its context descriptors, and what it has been given.
 * Its capabilities are found and switched on in its config space (PCIe §7.8.9 PASID, §10.5.1 ATS).
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
} from "../../pci/spec.ts";
import type { ContextTable } from "./context-table.ts";
import type { SmmuDomain } from "./domain.ts";
import type { Guest } from "./nested-domain.ts";

/** What the function and its unit both have of PASIDs. */
export interface PasidAbility {
  /** 0: none. */
  readonly bits: number;
  readonly execute: boolean;
  readonly privileged: boolean;
}

/** The guest that has the function, and the number by which it knows it. */
export interface Ownership {
  readonly guest: Guest;
  readonly virtualId: bigint;
}

/** ATS Control of a function. */
export class AtsSwitch {
  readonly #function: PciFunction;
  readonly #at: number;
  #on = false;

  constructor(pci: PciFunction, at: number) {
    this.#function = pci;
    this.#at = at;
  }

  get on(): boolean {
    return this.#on;
  }
  set on(wanted: boolean) {
    if (wanted === this.#on) return;
    this.#on = wanted;
    const control = AtsControl.make({ Enable: wanted });
    this.#function.configWrite(this.#at + AtsCapability.CONTROL, 2, Number(control));
  }
}

export class Master {
  readonly requester: Requester;
  /** StreamID: the requester id. */
  readonly sid: number;
  readonly name: string;
  readonly pasid: PasidAbility;
  /** Faults of its accesses can wait for an answer. */
  readonly stalls: boolean;
  readonly contexts: ContextTable;
  /** Its own translations can be switched on; undefined: it has none, or its unit gives none. */
  readonly ats: AtsSwitch | undefined;
  /** What its accesses without PASID go to. */
  domain: Domain;
  /** What those with a PASID go to. What is not here is refused. */
  readonly pasids = new Map<number, SmmuDomain>();
  /** Doorbell pages that its interrupts need. */
  readonly doorbells = new Set<number>();
  owner: Ownership | undefined;

  constructor(
    requester: Requester,
    options: {
      readonly pasid: PasidAbility;
      readonly stalls: boolean;
      readonly contexts: ContextTable;
      readonly ats: AtsSwitch | undefined;
      readonly blocked: Domain;
    },
  ) {
    this.requester = requester;
    this.sid = requester.rid;
    this.name = requester.name;
    this.pasid = options.pasid;
    this.stalls = options.stalls;
    this.contexts = options.contexts;
    this.ats = options.ats;
    this.domain = options.blocked;
  }
}

const NONE: PasidAbility = { bits: 0, execute: false, privileged: false };
const isConfigured = (device: Requester): device is Requester & PciFunction => "configRead" in device;

const capabilityOf = (device: Requester, id: number): number | undefined =>
  isConfigured(device) ? extendedCapabilitiesOf(device).find((each) => each.id === id)?.at : undefined;

/** The translation services of a function that has them, off. */
export const atsOf = (device: Requester): AtsSwitch | undefined => {
  const at = capabilityOf(device, ExtendedCapabilityId.ATS);
  return at === undefined || !isConfigured(device) ? undefined : new AtsSwitch(device, at);
};

/** Switches PASIDs on in a function that has them (PCIe §7.8.9), for a unit with so many bits. */
export const enablePasids = (device: Requester, unitBits: number): PasidAbility => {
  const found = unitBits > 0 ? capabilityOf(device, ExtendedCapabilityId.PASID) : undefined;
  if (found === undefined || !isConfigured(device)) return NONE;
  const flags = [device.configRead(found + PasidCapability.CAPABILITY, 2)];
  const execute = PasidFlags.fields.Execute.get(flags) === 1;
  const privileged = PasidFlags.fields.Privileged.get(flags) === 1;
  const control = PasidControl.make({ Enable: true, Execute: execute, Privileged: privileged });
  device.configWrite(found + PasidCapability.CONTROL, 2, Number(control));
  return { bits: Math.min(PasidFlags.fields.MaxWidth.get(flags), unitBits), execute, privileged };
};
