/** Formats and generated walkers of AMD-Vi, made when a device table entry first asks for them and shared by all units. */
import { type AmdV1Levels, type AmdV1Options, amdV1 } from "../../pagetable/amdv1.ts";
import { compileWalker } from "../../pagetable/compile.ts";
import type { PageTableFormat } from "../../pagetable/format.ts";
import {
  type CachedNestedWalker,
  compileCachedNested,
  compileNested,
  type NestedFormats,
  type NestedWalker,
} from "../../pagetable/nested.ts";
import type { Walker } from "../../pagetable/walker.ts";
import { x86Paging } from "../../pagetable/x86-64.ts";

export interface Stage {
  readonly format: PageTableFormat;
  readonly walk: Walker;
}

const made = new Map<string, unknown>();
const once = <T>(key: string, make: () => T): T => {
  if (!made.has(key)) made.set(key, make());
  return made.get(key) as T;
};
const stageOf = (format: PageTableFormat): Stage => ({ format, walk: compileWalker(format) });

export type Updates = AmdV1Options["updates"];

/** §2.2.3 Host tables of so many levels. */
export const hostStage = (levels: AmdV1Levels, updates: Updates): Stage =>
  once(`host ${levels} ${updates}`, () => stageOf(amdV1(levels, updates ? { updates } : {})));

/** §2.2.6 Guest tables are those of x86 processors with CR0.WP = 1, and with EFER.NXE = 1 where the unit has NX. */
export const guestStage = (levels: 4 | 5, executeDisable: boolean): Stage =>
  once(`guest ${levels} ${executeDisable}`, () =>
    stageOf(x86Paging(levels, { executeDisable, name: "AMD-Vi guest tables", prefix: "guest " })),
  );

/** One for each pair of a guest's tables and host tables, made when it is first asked for. */
const perPair = <Walk>(make: (formats: NestedFormats) => Walk) => {
  const made = new Map<Stage, Map<Stage, Walk>>();
  return (guest: Stage, host: Stage): Walk => {
    let over = made.get(guest);
    if (!over) made.set(guest, (over = new Map()));
    let walker = over.get(host);
    if (!walker) over.set(host, (walker = make({ first: guest.format, second: host.format })));
    return walker;
  };
};
/** §2.2.6.4 Guest tables over host tables. */
export const nestedWalker = perPair<CachedNestedWalker>(compileCachedNested);
/** The same without a cache of guest addresses. */
export const plainNestedWalker = perPair<NestedWalker>(compileNested);
