/**
 * The page-table formats of a scalable-mode unit and their generated walkers, made when a PASID table entry first asks for
 * them and shared by the units that have the same: first stages by levels, write protection, extended accessed flag and
 * execute disable; second stages by levels and accessed and dirty bits; and every first over every second.
 */
import { compileWalker } from "../../pagetable/compile.ts";
import type { PageTableFormat } from "../../pagetable/format.ts";
import {
  type CachedNestedWalker,
  compileCachedNested,
  compileNested,
  type NestedFormats,
  type NestedWalker,
} from "../../pagetable/nested.ts";
import { vtdFirstLevel } from "../../pagetable/vtd-first-level.ts";
import { vtdSecondLevel } from "../../pagetable/vtd-second-level.ts";
import type { Walker } from "../../pagetable/walker.ts";
import type { Capabilities } from "./capabilities.ts";
import type { PasidContext } from "./scalable-tables.ts";

export interface Stage {
  readonly format: PageTableFormat;
  readonly walk: Walker;
}
export interface NestedStages extends NestedFormats {
  readonly walk: NestedWalker;
  readonly walkCached: CachedNestedWalker;
}

const made = new Map<string, unknown>();
const once = <T>(key: string, make: () => T): T => {
  if (!made.has(key)) made.set(key, make());
  return made.get(key) as T;
};

/** The choices of a PASID table entry as a small number. */
const firstIndex = ({ levels, extendedAccessed, executeDisable }: PasidContext, protect: boolean): number =>
  (levels === 5 ? 1 : 0) | (protect ? 2 : 0) | (extendedAccessed ? 4 : 0) | (executeDisable ? 8 : 0);
const secondIndex = ({ aw, secondAccessedDirty }: PasidContext): number => aw | (secondAccessedDirty ? 4 : 0);
const SECONDS = 8;

export class Stages {
  readonly #capabilities: Capabilities;
  readonly #key: string;
  readonly #first: Stage[] = [];
  readonly #second: Stage[] = [];
  readonly #nested: NestedStages[] = [];

  constructor(capabilities: Capabilities) {
    const { has, pageLg2s, firstStagePageLg2s, hostAddressWidth } = capabilities;
    const { snoopControl, deviceTlb, executeRequests } = has;
    this.#capabilities = capabilities;
    this.#key = [
      pageLg2s,
      firstStagePageLg2s,
      hostAddressWidth,
      snoopControl,
      deviceTlb,
      executeRequests,
    ].join(" ");
  }

  /** `protect`: R/W = 0 forbids the request's writes. */
  first(context: PasidContext, protect: boolean): Stage {
    const index = firstIndex(context, protect);
    return (this.#first[index] ??= once(`first ${index} ${this.#key}`, () => {
      const { has, firstStagePageLg2s: pageLg2s, hostAddressWidth } = this.#capabilities;
      const format = vtdFirstLevel(context.levels, {
        pageLg2s,
        hostAddressWidth,
        executeDisable: has.executeRequests ? context.executeDisable : "ignored",
        writeProtect: protect,
        extendedAccessed: context.extendedAccessed,
      });
      return { format, walk: compileWalker(format) };
    }));
  }

  second(context: PasidContext): Stage {
    const index = secondIndex(context);
    return (this.#second[index] ??= once(`second ${index} ${this.#key}`, () => {
      const { has, pageLg2s, hostAddressWidth } = this.#capabilities;
      const { snoopControl, deviceTlb } = has;
      const accessedDirty = context.secondAccessedDirty;
      const options = { pageLg2s, hostAddressWidth, snoopControl, deviceTlb, accessedDirty };
      const format = vtdSecondLevel((context.aw + 2) as 3 | 4 | 5, options);
      return { format, walk: compileWalker(format) };
    }));
  }

  nested(context: PasidContext, protect: boolean): NestedStages {
    const index = firstIndex(context, protect) * SECONDS + secondIndex(context);
    return (this.#nested[index] ??= once(`nested ${index} ${this.#key}`, () => {
      const formats = { first: this.first(context, protect).format, second: this.second(context).format };
      return { ...formats, walk: compileNested(formats), walkCached: compileCachedNested(formats) };
    }));
  }
}
