/**
 * Formats and generated walkers of the stages in use, by what makes them differ. A guest chooses what its context
 * descriptors say, so that there can be many: what has not been used for longest is forgotten, and generated again when
 * it comes back.
 */
import { compileWalker } from "../../pagetable/compile.ts";
import type { PageTableFormat } from "../../pagetable/format.ts";
import { type CachedNestedWalker, compileCachedNested } from "../../pagetable/nested.ts";
import {
  type VmsaStage1Options,
  type VmsaStage2Options,
  vmsaStage1,
  vmsaStage2,
} from "../../pagetable/vmsa.ts";
import type { Walker } from "../../pagetable/walker.ts";

const LIMIT = 128;

/** What was asked for, or what `make` gives; the newest `LIMIT` of them. */
const recall = <T>(known: Map<string, T>, key: string, make: () => T): T => {
  const found = known.get(key) ?? make();
  known.delete(key);
  known.set(key, found);
  const oldest = known.keys().next();
  if (known.size > LIMIT && !oldest.done) known.delete(oldest.value);
  return found;
};

const formats = new Map<string, PageTableFormat>();
const walkers = new WeakMap<PageTableFormat, Walker>();
const nested = new WeakMap<PageTableFormat, WeakMap<PageTableFormat, CachedNestedWalker>>();

export const stage1Format = (options: VmsaStage1Options): PageTableFormat =>
  recall(formats, `1 ${JSON.stringify(options)}`, () => vmsaStage1(options));
export const stage2Format = (options: VmsaStage2Options): PageTableFormat =>
  recall(formats, `2 ${JSON.stringify(options)}`, () => vmsaStage2(options));

export const walkerOf = (format: PageTableFormat): Walker => {
  let walker = walkers.get(format);
  if (!walker) {
    walker = compileWalker(format);
    walkers.set(format, walker);
  }
  return walker;
};

/** The walker of one stage over the other. */
export const nestedWalkerOf = (first: PageTableFormat, second: PageTableFormat): CachedNestedWalker => {
  let over = nested.get(first);
  if (!over) {
    over = new WeakMap();
    nested.set(first, over);
  }
  let walker = over.get(second);
  if (!walker) {
    walker = compileCachedNested({ first, second });
    over.set(second, walker);
  }
  return walker;
};
