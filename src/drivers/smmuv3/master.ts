/**
 * A function behind an SMMUv3 as its driver knows it: what it may do, its context descriptors, and what it has been given.
 */
import type { Domain, Requester } from "../../iommu/driver.ts";
import type { AtsSwitch, PasidAbility } from "../function-services.ts";
import type { ContextTable } from "./context-table.ts";
import type { SmmuDomain } from "./domain.ts";
import type { Guest } from "./nested-domain.ts";

/** The guest that has the function, and the number by which it knows it. */
export interface Ownership {
  readonly guest: Guest;
  readonly virtualId: bigint;
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
