/**
 * What a guest's tables say of its devices: root and context entries, in scalable mode PASID directories and tables (Intel
 * VT-d revision 4.1, §9.1 to §9.6), read with the code of the unit itself; and its page tables, page after page.
 * Everything read here is the guest's: it may be malformed, cyclic or change meanwhile.
 */

import { NO_PASID } from "../../hardware/unit.ts";
import type { Capabilities } from "../../hardware/vtd/capabilities.ts";
import { describeFault } from "../../hardware/vtd/faults.ts";
import { PASID_TABLE_BITS, PasidDirectoryEntry, PasidEntry, Pgtt } from "../../hardware/vtd/scalable-spec.ts";
import {
  configureScalable,
  PasidContext,
  readPasidContext,
  type ScalableConfig,
} from "../../hardware/vtd/scalable-tables.ts";
import { TranslationType, Ttm } from "../../hardware/vtd/spec.ts";
import { Stages } from "../../hardware/vtd/stages.ts";
import { Context, configure, readContext, type TranslationConfig } from "../../hardware/vtd/translate.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { mappedEnd, type PageTableFormat, Permission, WalkFault } from "../../pagetable/format.ts";
import { type Walker, WalkResult } from "../../pagetable/walker.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_VTD_S1_EAFE, IOMMU_VTD_S1_SRE, IOMMU_VTD_S1_WPE } from "../../uapi/vendor/vtd.ts";
import type { FirstStage } from "../host-calls.ts";

/** The root table that the guest's driver latched. */
export interface Root {
  readonly table: number;
  /** A `Ttm`. */
  readonly mode: number;
}

/** What the requests of a device, or of one of its PASIDs, go through. */
export type Translation =
  | { readonly kind: "blocked"; readonly why: string }
  | { readonly kind: "passThrough"; readonly domain: number; readonly pasid: number }
  | {
      readonly kind: "stage";
      readonly domain: number;
      /** In scalable mode: the PASID by which invalidations call it. */
      readonly pasid: number;
      readonly stage: GuestStage;
    };

/** One table of a guest. Two of them are the same when they have the same key. */
export interface GuestStage {
  readonly key: string;
  readonly table: number;
  readonly format: PageTableFormat;
  readonly walker: Walker;
  /** `Permission` bits that its leaves must give anyway. */
  readonly need: number;
  /** As a host takes it to walk it itself; undefined: a second stage, which it does not. */
  readonly first: FirstStage | undefined;
}

/** A page of a guest's table, or where a hole ends. */
export type Found =
  | {
      readonly page: true;
      readonly start: number;
      readonly length: number;
      readonly target: number;
      readonly readable: boolean;
      readonly writable: boolean;
    }
  | { readonly page: false; readonly end: number };

const WORD = 2 ** 32;
/** PASIDs of one device that a guest may have at once. */
const MOST_PASIDS = 4096;

export class GuestTables {
  readonly #memory: HostMemory;
  readonly #config: TranslationConfig;
  readonly #scalable: ScalableConfig;
  readonly #stages: Stages;
  readonly #context = new Context();
  readonly #pasidContext = new PasidContext();
  readonly #walk = new WalkResult();

  constructor(memory: HostMemory, capabilities: Capabilities) {
    this.#memory = memory;
    this.#config = configure(capabilities);
    this.#scalable = configureScalable(capabilities);
    this.#stages = new Stages(capabilities);
  }

  /** What the tables under this root say of a device, without PASID (`NO_PASID`) or with one. */
  translationOf({ table, mode }: Root, rid: number, pasid: number): Translation {
    if (mode === Ttm.scalable) return this.#ofPasid(table, rid, pasid);
    if (mode !== Ttm.legacy || pasid !== NO_PASID)
      return { kind: "blocked", why: `table mode ${mode} has no such requests` };
    return this.#ofContext(table, rid);
  }

  #ofContext(root: number, rid: number): Translation {
    const context = this.#context;
    const fault = readContext(this.#memory, this.#config, root, rid, context);
    if (fault !== 0) return { kind: "blocked", why: describeFault(fault) };
    const { domain, aw, table } = context;
    const common = { domain, pasid: NO_PASID };
    if (context.translationType === TranslationType.passThrough) return { kind: "passThrough", ...common };
    const format = this.#config.formats[aw]!;
    const walker = this.#config.walkers[aw]!;
    const stage = { key: `second ${table} ${aw}`, table, format, walker, need: 0, first: undefined };
    return { kind: "stage", ...common, stage };
  }

  #ofPasid(root: number, rid: number, tag: number): Translation {
    const context = this.#pasidContext;
    const fault = readPasidContext(this.#memory, this.#scalable, root, rid, tag, context);
    if (fault !== 0) return { kind: "blocked", why: describeFault(fault) };
    const { domain, pasid, pgtt } = context;
    if (pgtt === Pgtt.passThrough) return { kind: "passThrough", domain, pasid };
    const stage = pgtt === Pgtt.first ? this.#firstStage(context) : this.#secondStage(context);
    return { kind: "stage", domain, pasid, stage };
  }

  #firstStage(context: PasidContext): GuestStage {
    const { firstTable: table, levels, supervisor, extendedAccessed, writeProtect } = context;
    const { format, walk: walker } = this.#stages.first(context, true);
    const flags =
      (supervisor ? IOMMU_VTD_S1_SRE : 0) |
      (extendedAccessed ? IOMMU_VTD_S1_EAFE : 0) |
      (writeProtect ? IOMMU_VTD_S1_WPE : 0);
    const first = { flags: BigInt(flags), table, addressWidth: levels === 5 ? 57 : 48 };
    return { key: `first ${table} ${levels} ${flags}`, table, format, walker, need: Permission.user, first };
  }

  #secondStage(context: PasidContext): GuestStage {
    const { secondTable: table, aw } = context;
    const { format, walk: walker } = this.#stages.second(context);
    return { key: `second ${table} ${aw}`, table, format, walker, need: 0, first: undefined };
  }

  /**
   * The PASIDs of a device whose entries are present; the one that stands for requests without any is not among them.
   * Throws ENOSPC when there are more than a guest may have.
   */
  pasidsOf({ table: root, mode }: Root, rid: number): number[] {
    if (mode !== Ttm.scalable) return [];
    const context = this.#pasidContext;
    context.directoryLg2 = -1;
    readPasidContext(this.#memory, this.#scalable, root, rid, NO_PASID, context);
    const { pasid: ridPasid, directory, directoryLg2 } = context;
    if (directoryLg2 < 0) return [];
    const found: number[] = [];
    for (let index = 0; index < 2 ** directoryLg2; index++) {
      if (!this.#isPresent(directory + index * PasidDirectoryEntry.bytes)) continue;
      const table = this.#memory.hi * WORD + ((this.#memory.lo & 0xffff_f000) >>> 0);
      for (let entry = 0; entry < 2 ** PASID_TABLE_BITS; entry++) {
        const pasid = index * 2 ** PASID_TABLE_BITS + entry;
        if (pasid !== ridPasid && this.#isPresent(table + entry * PasidEntry.bytes)) found.push(pasid);
      }
      if (found.length > MOST_PASIDS)
        throw new LinuxError("ENOSPC", `a device of a guest may have at most ${MOST_PASIDS} PASIDs`);
    }
    return found;
  }

  /** The present bit of an entry, which all of them have in the same place. */
  #isPresent(at: number): boolean {
    return this.#memory.load64(at) && (this.#memory.lo & PasidEntry.fields.P.mask) !== 0;
  }

  /** The page around an address, or where the hole around it ends. A page that may not be used is a hole. */
  find({ walker, table, format, need }: GuestStage, iova: number): Found {
    const walk = this.#walk;
    const [lo, hi] = [iova % WORD, Math.floor(iova / WORD)];
    let fault = walker(this.#memory, table, lo, hi, need | Permission.read, walk);
    if (fault === WalkFault.read) fault = walker(this.#memory, table, lo, hi, need | Permission.write, walk);
    if (fault !== 0) {
      const bytes = 2 ** format.levels[Math.max(walk.level, 0)]!.shift;
      return { page: false, end: (Math.floor(iova / bytes) + 1) * bytes };
    }
    const length = 2 ** walk.lg2;
    const before = length - walk.span;
    return {
      page: true,
      start: iova - before,
      length,
      target: walk.pa - before,
      readable: (walk.allowed & Permission.read) !== 0,
      writable: (walk.allowed & Permission.write) !== 0,
    };
  }
}

/** First address beyond those that a stage can map. */
export const endOf = ({ format }: GuestStage): number => mappedEnd(format);
