/**
 * What stands behind a virtual unit whose guest names domains and PASIDs (VT-d, AMD-Vi): it makes the host do what the
 * guest's tables say. A nested one gives the guest's tables to the host's unit, a shadowing one copies them into mappings.
 * Errors are `LinuxError`s of the host.
 */
import { NO_PASID } from "../hardware/unit.ts";
import type { Told } from "./following.ts";
import type { GuestTable } from "./shadow/table.ts";

/** A table of a guest, or one above another. */
export interface GuestStage extends GuestTable {
  /** Requests without a PASID that invalidate it by address mean addresses of it: it is a second stage. */
  readonly plain: boolean;
}

/** What the requests of a device, or of one of its PASIDs, go through; `pasid` is that by which invalidations call it. */
export type Translation<Stage extends GuestStage = GuestStage> =
  | { readonly kind: "blocked"; readonly why: string }
  | { readonly kind: "passThrough"; readonly domain: number; readonly pasid: number }
  | { readonly kind: "stage"; readonly domain: number; readonly pasid: number; readonly stage: Stage };

/** A domain, or a part of it, whose translations the guest wants forgotten. */
export interface Forget {
  /** The guest's domain id; undefined: whatever the domain. */
  readonly domain: number | undefined;
  /** Undefined: whatever the PASID. */
  readonly pasid: number | undefined;
  /** Bytes [start, start + length); undefined: every address. */
  readonly range: { readonly start: number; readonly length: number } | undefined;
  /** Entries that are no leaves have not changed. */
  readonly leavesOnly: boolean;
}

/** Devices and PASIDs whose entries the guest has changed. What is left out is meant whatever it is. */
export interface Reread {
  readonly rid?: number;
  readonly pasid?: number;
}

/** What a back end asks the guest's unit. */
export interface GuestSide<Stage extends GuestStage = GuestStage> {
  /** Without PASID: `NO_PASID`. */
  translationOf(rid: number, pasid: number): Translation<Stage>;
  /** PASIDs of a device that the guest's tables have something for. */
  pasidsOf(rid: number): readonly number[];
}

export interface BackEnd {
  /** What the host holds because of the guest's tables: mappings, or HWPTs. */
  readonly held: number;
  /** The guest's root, context or PASID entries changed: reads them again. Throws what the host answers. */
  reread(what: Reread): void;
  /** In order; stops at the first that the host refuses. */
  forget(list: readonly Forget[]): Told;
}

/**
 * Which of a device's PASIDs (`NO_PASID`: its requests without one) a change may be about; `pasid` undefined: any. A PASID may
 * stand for requests without one, and may begin to do so: that one is not asked for by itself.
 */
export const affected = (
  guest: GuestSide,
  rid: number,
  had: { readonly pasids: readonly number[]; readonly stands: number | undefined },
  pasid: number | undefined,
): number[] => {
  const [known, present] = pasid === undefined ? [had.pasids, guest.pasidsOf(rid)] : [[], [pasid]];
  const wanted = guest.translationOf(rid, NO_PASID);
  const stands = wanted.kind === "blocked" ? had.stands : wanted.pasid;
  const tagged = new Set([...known, ...present].filter((one) => one !== NO_PASID && one !== stands));
  return [NO_PASID, ...tagged];
};
