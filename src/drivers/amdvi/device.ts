/**
 * A function behind an AMD-Vi unit as its driver knows it: what it may do beyond plain requests, its GCR3 table, and what it
 * has been given. What both the function and its unit have is switched on; its own translations only while they are given.
 */
import type { Capabilities } from "../../hardware/amdvi/capabilities.ts";
import type { Domain, Requester } from "../../iommu/driver.ts";
import { type AtsSwitch, FunctionServices, type PasidAbility } from "../function-services.ts";
import type { AmdDomain } from "./domain.ts";
import type { Gcr3Table } from "./gcr3-table.ts";

export class AmdDevice {
  readonly requester: Requester;
  readonly rid: number;
  readonly name: string;
  readonly pasid: PasidAbility;
  /** It can ask for pages. */
  readonly pri: boolean;
  /** Its own translations; undefined: there are none, or it did not answer and is not trusted with them any more. */
  ats: AtsSwitch | undefined;
  /** Undefined: the unit has no tables for PASIDs that requests without one could go through, too. */
  readonly gcr3: Gcr3Table | undefined;
  /** What its accesses without PASID go to. */
  domain: Domain;
  /** What those with a PASID go to. What is not here is refused. */
  readonly pasids = new Map<number, AmdDomain>();

  /** `makeGcr3` is asked for a table for PASIDs of so many bits. */
  constructor(
    requester: Requester,
    unit: Capabilities,
    pasidBits: number,
    blocked: Domain,
    makeGcr3: (name: string, bits: number) => Gcr3Table | undefined,
  ) {
    this.requester = requester;
    this.rid = requester.rid;
    this.name = requester.name;
    this.domain = blocked;
    const services = new FunctionServices(requester);
    this.pasid = services.enablePasids(pasidBits);
    this.ats = unit.deviceTlb ? services.ats : undefined;
    this.pri = this.ats !== undefined && unit.pageRequests && services.enablePageRequests();
    this.gcr3 = makeGcr3(this.name, this.pasid.bits);
  }

  /** Requests with PASIDs go through tables of their own. */
  get hasPasids(): boolean {
    return this.pasids.size > 0;
  }
}
