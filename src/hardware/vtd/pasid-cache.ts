/**
 * What a scalable-mode unit remembers of context and PASID table entries (Intel VT-d revision 4.1, §6.2.2): one slot for
 * each requester and PASID, tagged with the domain id, and in it the page used last. An invalidation of the context
 * cache and one of the PASID cache both forget a slot.
 */
import type { FirstStageSpace } from "../first-stage-spaces.ts";
import { NO_PASID } from "../unit.ts";
import { PasidContext } from "./scalable-tables.ts";
import type { NestedStages, Stage } from "./stages.ts";

/** What is remembered of the requests of a function with a PASID (or without) and a privilege. */
export class PasidSlot extends PasidContext {
  readonly rid: number;
  readonly privileged: boolean;
  /** The cache's generation when it was entered; another one: nothing is remembered. */
  generation = -1;
  /** What refused the reading, or refuses every request; 0: nothing. */
  fault = 0;
  /** Requests are privileged: by themselves or by RID_PRIV. */
  supervises = false;
  /** The walkers of its translation type. */
  stage: Stage | undefined;
  nested: NestedStages | undefined;
  /** Address space in the IOTLB; and what it is, with a first stage. */
  space = 0;
  firstStage: FirstStageSpace | undefined;

  // The page used last: good while the IOTLB's stamp is `stamp`.
  stamp = -1;
  pageLo = 0;
  pageHi = 0;
  mask = 0;
  pa = 0;
  size = 0;
  /** `Access` bits that have to be looked at again. */
  denied = 0;

  constructor(rid: number, privileged: boolean) {
    super();
    this.rid = rid;
    this.privileged = privileged;
  }
}

/** Slots that are kept; when there are more, all are forgotten. */
const SLOTS = 0x1_0000;
const PASIDS = 2 ** 20;

export class PasidCache {
  #generation = 0;
  #count = 0;
  /** By requester: without PASID, and by PASID and privilege. */
  readonly #plain: (PasidSlot | undefined)[] = [];
  readonly #tagged = new Map<number, PasidSlot>();

  static #key(rid: number, pasid: number, privileged: boolean): number {
    return (rid * PASIDS + pasid) * 2 + (privileged ? 1 : 0);
  }

  /** The slot, whatever it holds. */
  slot(rid: number, pasid: number, privileged: boolean): PasidSlot | undefined {
    return pasid === NO_PASID ? this.#plain[rid] : this.#tagged.get(PasidCache.#key(rid, pasid, privileged));
  }

  holds(slot: PasidSlot): boolean {
    return slot.generation === this.#generation;
  }

  /** The slot, made when it is the first of its kind. */
  open(rid: number, pasid: number, privileged: boolean): PasidSlot {
    if (pasid === NO_PASID) return (this.#plain[rid] ??= new PasidSlot(rid, false));
    const key = PasidCache.#key(rid, pasid, privileged);
    const found = this.#tagged.get(key);
    if (found) return found;
    if (this.#count >= SLOTS) {
      this.invalidateAll();
      this.#tagged.clear();
      this.#count = 0;
    }
    this.#count += 1;
    const slot = new PasidSlot(rid, privileged);
    this.#tagged.set(key, slot);
    return slot;
  }

  enter(slot: PasidSlot): void {
    slot.generation = this.#generation;
  }

  invalidateAll(): void {
    this.#generation += 1;
    for (const slot of this.#slots()) slot.stamp = -1;
  }

  /** §6.5.1.1 Function mask: so many of the lower function bits of `rid` are not compared. */
  invalidateDevice(rid: number, functionMask: number): void {
    const ignored = [0, 4, 6, 7][functionMask]!;
    this.#forget((slot) => ((slot.rid ^ rid) & ~ignored) === 0);
  }

  invalidateDomain(domain: number): void {
    this.#forget((slot) => slot.domain === domain);
  }

  invalidatePasid(domain: number, pasid: number): void {
    this.#forget((slot) => slot.domain === domain && slot.pasid === pasid);
  }

  #forget(match: (slot: PasidSlot) => boolean): void {
    for (const slot of this.#slots()) {
      if (!match(slot)) continue;
      slot.generation = -1;
      slot.stamp = -1;
    }
  }

  *#slots(): Generator<PasidSlot> {
    for (const slot of this.#plain) if (slot) yield slot;
    yield* this.#tagged.values();
  }
}
