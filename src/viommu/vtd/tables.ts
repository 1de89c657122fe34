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
import { type NestedStages, type Stage, Stages } from "../../hardware/vtd/stages.ts";
import { Context, configure, readContext, type TranslationConfig } from "../../hardware/vtd/translate.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { mappedEnd, Permission } from "../../pagetable/format.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_VTD_S1_EAFE, IOMMU_VTD_S1_SRE, IOMMU_VTD_S1_WPE } from "../../uapi/vendor/vtd.ts";
import type { GuestStage, Translation } from "../by-domain.ts";
import type { FirstStage } from "../host-calls.ts";
import { inStage, inStages } from "../shadow/stages.ts";

/** The root table that the guest's driver latched. */
export interface Root {
  readonly table: number;
  /** A `Ttm`. */
  readonly mode: number;
}

/** A table of a guest, or one above another. */
export interface FirstStageTable extends GuestStage {
  /** As a host takes it to walk it itself; undefined: it has a second stage, which no host does. */
  readonly first: FirstStage | undefined;
}

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

  constructor(memory: HostMemory, capabilities: Capabilities) {
    this.#memory = memory;
    this.#config = configure(capabilities);
    this.#scalable = configureScalable(capabilities);
    this.#stages = new Stages(capabilities);
  }

  /** What the tables under this root say of a device, without PASID (`NO_PASID`) or with one. */
  translationOf({ table, mode }: Root, rid: number, pasid: number): Translation<FirstStageTable> {
    if (mode === Ttm.scalable) return this.#ofPasid(table, rid, pasid);
    if (mode !== Ttm.legacy || pasid !== NO_PASID)
      return { kind: "blocked", why: `table mode ${mode} has no such requests` };
    return this.#ofContext(table, rid);
  }

  #ofContext(root: number, rid: number): Translation<FirstStageTable> {
    const context = this.#context;
    const fault = readContext(this.#memory, this.#config, root, rid, context);
    if (fault !== 0) return { kind: "blocked", why: describeFault(fault) };
    const { domain, aw, table } = context;
    const common = { domain, pasid: NO_PASID };
    if (context.translationType === TranslationType.passThrough) return { kind: "passThrough", ...common };
    const stage = { format: this.#config.formats[aw]!, walk: this.#config.walkers[aw]! };
    const key = `second ${table} ${aw}`;
    return { kind: "stage", ...common, stage: this.#single(key, table, stage, 0, undefined) };
  }

  #ofPasid(root: number, rid: number, tag: number): Translation<FirstStageTable> {
    const context = this.#pasidContext;
    const fault = readPasidContext(this.#memory, this.#scalable, root, rid, tag, context);
    if (fault !== 0) return { kind: "blocked", why: describeFault(fault) };
    const { domain, pasid, pgtt } = context;
    if (pgtt === Pgtt.passThrough) return { kind: "passThrough", domain, pasid };
    return { kind: "stage", domain, pasid, stage: this.#stageOf(context) };
  }

  #stageOf(context: PasidContext): FirstStageTable {
    const { pgtt, firstTable, secondTable, levels, aw } = context;
    const second = `second ${secondTable} ${aw}`;
    if (pgtt === Pgtt.second)
      return this.#single(second, secondTable, this.#stages.second(context), 0, undefined);
    const { supervisor, extendedAccessed, writeProtect } = context;
    const flags =
      (supervisor ? IOMMU_VTD_S1_SRE : 0) |
      (extendedAccessed ? IOMMU_VTD_S1_EAFE : 0) |
      (writeProtect ? IOMMU_VTD_S1_WPE : 0);
    const key = `first ${firstTable} ${levels} ${flags}`;
    if (pgtt === Pgtt.nested)
      return this.#nested(`${key} above ${second}`, context, this.#stages.nested(context, true));
    const first = { flags: BigInt(flags), table: firstTable, addressWidth: levels === 5 ? 57 : 48 };
    return this.#single(key, firstTable, this.#stages.first(context, true), Permission.user, first);
  }

  /** `need`: `Permission` bits that leaves must give anyway. */
  #single(
    key: string,
    root: number,
    stage: Stage,
    need: number,
    first: FirstStage | undefined,
  ): FirstStageTable {
    const ranges = [{ start: 0, end: mappedEnd(stage.format) }];
    return { key, ranges, first, plain: need === 0, find: inStage(this.#memory, root, stage, need) };
  }

  /** A guest's own guest: its table above another, both in the guest's memory. */
  #nested(key: string, { firstTable, secondTable }: PasidContext, stages: NestedStages): FirstStageTable {
    const find = inStages(this.#memory, [firstTable, secondTable], stages);
    return {
      key,
      ranges: [{ start: 0, end: mappedEnd(stages.first) }],
      first: undefined,
      plain: false,
      find,
    };
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
}
