/**
 * The context cache of a VT-d unit (revision 4.1, §6.2.2): what the context entry of a requester said when it was last
 * read, tagged with requester and domain id; and, in front of the IOTLB, the page a requester used last.
 *
 * With caching mode an entry that faulted is cached too, with domain id 0.
 */
import { Access } from "../unit.ts";
import { FaultCode, secondStageFault } from "./faults.ts";
import { Context } from "./translate.ts";

/** With caching mode an IOTLB entry can say why a walk failed (`WalkFault`), in bits above those of `Access`. */
export const CACHED_FAULT_SHIFT = 8;

/** What an IOTLB entry that denies this says to an access: 0, or the fault code. */
export const cachedFault = (denied: number, access: number): number => {
  const fault = denied >>> CACHED_FAULT_SHIFT;
  if (fault !== 0) return secondStageFault(fault, access);
  const refused = access & denied;
  if (refused === 0) return 0;
  return (refused & (Access.read | Access.atomic)) !== 0 && (denied & Access.read) !== 0
    ? FaultCode.read
    : FaultCode.write;
};

/** What is remembered of one requester. */
export class ContextSlot extends Context {
  /** The cache's generation when it was entered; another one: nothing is remembered. */
  generation = -1;
  /** Fault code of a cached faulting entry; 0: the entry is good. */
  fault = 0;

  // The page used last: good while the IOTLB's stamp is `stamp`.
  stamp = -1;
  /** Lower word of the page's address, and its mask; the upper word, signed. */
  pageLo = 0;
  pageHi = 0;
  mask = 0;
  /** Physical address and size of the page, in bytes. */
  pa = 0;
  size = 0;
  /** `Access` bits that are refused. */
  denied = 0;
}

export class ContextCache {
  #generation = 0;
  readonly #buses: (ContextSlot | undefined)[][] = [];

  /** The requester's slot, whatever it holds. */
  slot(rid: number): ContextSlot | undefined {
    return this.#buses[rid >>> 8]?.[rid & 0xff];
  }

  holds(slot: ContextSlot): boolean {
    return slot.generation === this.#generation;
  }

  /** The requester's slot, made when it is its first. */
  open(rid: number): ContextSlot {
    const bus = (this.#buses[rid >>> 8] ??= []);
    return (bus[rid & 0xff] ??= new ContextSlot());
  }

  /** What is in the slot holds from now on. */
  enter(slot: ContextSlot): void {
    slot.generation = this.#generation;
  }

  forget(slot: ContextSlot): void {
    slot.generation = -1;
    slot.stamp = -1;
  }

  invalidateAll(): void {
    this.#generation += 1;
    this.#forEach((slot) => {
      slot.stamp = -1;
    });
  }

  invalidateDomain(domain: number): void {
    this.#forEach((slot) => {
      if (slot.domain === domain) this.forget(slot);
    });
  }

  /** §6.5.1.1 Function mask: so many of the lower function bits of `rid` are not compared. */
  invalidateDevice(domain: number, rid: number, functionMask: number): void {
    const ignored = [0, 4, 6, 7][functionMask]!;
    for (let fn = 0; fn < 8; fn++) {
      if (((fn ^ rid) & 7 & ~ignored) !== 0) continue;
      const slot = this.slot((rid & ~7) | fn);
      if (slot && slot.domain === domain) this.forget(slot);
    }
  }

  #forEach(visit: (slot: ContextSlot) => void): void {
    for (const bus of this.#buses) for (const slot of bus ?? []) if (slot) visit(slot);
  }
}
