/** Tables of a guest as `GuestTable` finds pages in them: one stage, or one above another, both in the guest's memory. */
import type { HostMemory } from "../../memory/host-memory.ts";
import { type PageTableFormat, Permission } from "../../pagetable/format.ts";
import { Fetch, type NestedFormats, NestedResult, type NestedWalker } from "../../pagetable/nested.ts";
import { type Walker, WalkResult } from "../../pagetable/walker.ts";
import { type Found, findPage, type Walk } from "./table.ts";

/** As `GuestTable.find`. */
export type Find = (iova: number) => Found;

const WORD = 2 ** 32;
const low = (iova: number): number => iova % WORD;
const high = (iova: number): number => Math.floor(iova / WORD);

/** `walkOnce` leaves what it found in `result`; `holeLg2` says of what it did not find how far that is true. */
const walkInto = <Result extends WalkResult>(
  result: Result,
  walkOnce: (iova: number, need: number) => number,
  holeLg2: (result: Result) => number,
): Walk => ({
  walk: walkOnce,
  get pa() {
    return result.pa;
  },
  get span() {
    return result.span;
  },
  get lg2() {
    return result.lg2;
  },
  get holeLg2() {
    return holeLg2(result);
  },
});

export interface SingleStage {
  readonly format: PageTableFormat;
  readonly walk: Walker;
}

/** `need`: `Permission` bits that leaves must give anyway. */
export const inStage = (memory: HostMemory, root: number, stage: SingleStage, need: number): Find => {
  const result = new WalkResult();
  const walk = walkInto(
    result,
    (iova, wanted) => stage.walk(memory, root, low(iova), high(iova), wanted | need, result),
    ({ level }) => shiftOf(stage.format, level),
  );
  return (iova) => findPage(walk, iova);
};

export interface StageAbove extends NestedFormats {
  readonly walk: NestedWalker;
}

/** A first stage, for requests without privilege, above a second one: the roots of both. */
export const inStages = (
  memory: HostMemory,
  [root, below]: readonly [number, number],
  stages: StageAbove,
): Find => {
  const result = new NestedResult();
  const { user } = Permission;
  const walk = walkInto(
    result,
    (iova, wanted) => stages.walk(memory, root, below, low(iova), high(iova), wanted | user, result),
    (ended) => nestedHole(ended, stages),
  );
  return (iova) => findPage(walk, iova);
};

const shiftOf = ({ levels }: PageTableFormat, level: number): number => levels[Math.max(level, 0)]!.shift;

/** Of a walk of one stage above another that found nothing: log2 of the addresses of which that is true. */
const nestedHole = (
  { stage, level, fetch, guestLevel }: NestedResult,
  { first, second }: NestedFormats,
): number => {
  if (stage === 1) return shiftOf(first, level);
  const shift = shiftOf(first, guestLevel);
  return fetch === Fetch.page ? Math.min(shift, shiftOf(second, level)) : shift;
};
