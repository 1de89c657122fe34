/**
 * A function behind a VT-d unit as its driver knows it: what it may do beyond plain requests (PASIDs, translation
 * requests, page requests), and what it has been given. What both the function and its unit have is switched on.
 */
import type { Domain, Requester } from "../../iommu/driver.ts";
import { FunctionServices } from "../function-services.ts";
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
    const services = new FunctionServices(requester);
    const pasid = services.enablePasids(abilities.pasidBits);
    this.pasidBits = pasid.bits;
    this.pasidExecute = pasid.execute;
    this.pasidPrivileged = pasid.privileged;
    const ats = abilities.deviceTlb ? services.ats : undefined;
    this.pri = ats !== undefined && abilities.pageRequests && services.enablePageRequests();
    if (ats) ats.on = true;
    this.ats = ats !== undefined;
  }
}
