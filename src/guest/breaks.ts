/**
 * Faults of a VMM, injected on purpose, to show that what finds them would: each is a real mistake of one that forwards a
 * guest's unit to its host.
 */
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { HostCalls, type HostMapping } from "../viommu/host-calls.ts";
import type { BackEnd } from "../viommu/vtd/back-end.ts";

/** By name: what the VMM does wrong. */
export const VMM_BREAKS = {
  "stale-iotlb": "the VMM tells the guest that its IOTLB invalidations are done, and does not tell the host",
  "wrong-page": "the VMM maps the page after the guest's own",
  "wrong-pasid": "the VMM gives the guest's tables to the PASID after the right one",
  "lost-response": "the VMM loses the guest's answers to page requests",
} as const;
export type VmmBreak = keyof typeof VMM_BREAKS;

export const isVmmBreak = (name: string): name is VmmBreak => Object.hasOwn(VMM_BREAKS, name);

/** Calls of a VMM that is wrong about pages, PASIDs or answers. */
export class MistakenCalls extends HostCalls {
  readonly mistakes: ReadonlySet<VmmBreak>;

  constructor(mistakes: ReadonlySet<VmmBreak>, ...calls: ConstructorParameters<typeof HostCalls>) {
    super(...calls);
    this.mistakes = mistakes;
  }

  override map(ioas: number, mapping: HostMapping): void {
    const off = this.mistakes.has("wrong-page") ? FRAME_BYTES : 0;
    const length = Math.max(FRAME_BYTES, mapping.length - off);
    super.map(ioas, { ...mapping, va: mapping.va + off, length });
  }

  override attach(device: number, table: number, pasid?: number): void {
    super.attach(device, table, this.#mistaken(pasid));
  }
  override detach(device: number, pasid?: number): void {
    super.detach(device, this.#mistaken(pasid));
  }

  override respond(fd: number, cookie: number, code: number): void {
    if (!this.mistakes.has("lost-response")) super.respond(fd, cookie, code);
  }

  #mistaken(pasid: number | undefined): number | undefined {
    return pasid !== undefined && this.mistakes.has("wrong-pasid") ? pasid + 1 : pasid;
  }
}

/** A back end that forgets nothing. */
export const remembering = (backEnd: BackEnd): BackEnd => ({
  get held() {
    return backEnd.held;
  },
  reread: (what) => backEnd.reread(what),
  forget: (list) => ({ done: list.length }),
});
