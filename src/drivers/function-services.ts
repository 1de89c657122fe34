/**
 * What drivers find in a function's config space and switch on there: PASIDs (PCIe §7.8.9), its own translations
 * (§10.5.1) and its requests for pages (§10.5.2). A requester that has no config space has none of them.
 */
import type { Requester } from "../iommu/driver.ts";
import { extendedCapabilitiesOf } from "../pci/capability-list.ts";
import type { PciFunction } from "../pci/function.ts";
import {
  AtsCapability,
  AtsControl,
  ExtendedCapabilityId,
  PasidCapability,
  PasidControl,
  PasidFlags,
  PriCapability,
  PriControl,
} from "../pci/spec.ts";

/** What the function and its unit both have of PASIDs. */
export interface PasidAbility {
  /** 0: none. */
  readonly bits: number;
  readonly execute: boolean;
  readonly privileged: boolean;
}

const NO_PASIDS: PasidAbility = { bits: 0, execute: false, privileged: false };

/** ATS Control of a function. Off, until it is switched on. */
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

export class FunctionServices {
  readonly #function: PciFunction | undefined;
  readonly #offsets: ReadonlyMap<number, number>;
  /** Its own translations; undefined: it has none. */
  readonly ats: AtsSwitch | undefined;

  constructor(device: Requester) {
    this.#function = isConfigured(device) ? device : undefined;
    const capabilities = this.#function ? extendedCapabilitiesOf(this.#function) : [];
    this.#offsets = new Map(capabilities.map(({ id, at }) => [id, at]));
    const at = this.#offsets.get(ExtendedCapabilityId.ATS);
    this.ats = at === undefined ? undefined : new AtsSwitch(this.#function!, at);
  }

  /** Switches PASIDs on, for a unit with so many bits (0: with none). They come before translation requests (§10.5.1.3). */
  enablePasids(unitBits: number): PasidAbility {
    const at = this.#offsets.get(ExtendedCapabilityId.PASID);
    if (at === undefined || unitBits === 0) return NO_PASIDS;
    const pci = this.#function!;
    const flags = [pci.configRead(at + PasidCapability.CAPABILITY, 2)];
    const execute = PasidFlags.fields.Execute.get(flags) === 1;
    const privileged = PasidFlags.fields.Privileged.get(flags) === 1;
    const control = PasidControl.make({ Enable: true, Execute: execute, Privileged: privileged });
    pci.configWrite(at + PasidCapability.CONTROL, 2, Number(control));
    return { bits: Math.min(PasidFlags.fields.MaxWidth.get(flags), unitBits), execute, privileged };
  }

  /** Switches requests for pages on, as many at once as it can have; false: it has none. */
  enablePageRequests(): boolean {
    const at = this.#offsets.get(ExtendedCapabilityId.PRI);
    if (at === undefined) return false;
    const pci = this.#function!;
    const capacity = pci.configRead(at + PriCapability.OUTSTANDING_CAPACITY, 4);
    pci.configWrite(at + PriCapability.OUTSTANDING_ALLOCATION, 4, capacity);
    pci.configWrite(at + PriCapability.CONTROL, 2, Number(PriControl.make({ Enable: true })));
    return true;
  }
}

const isConfigured = (device: Requester): device is Requester & PciFunction => "configRead" in device;
