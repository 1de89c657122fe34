/**
 * What a TVE makes of addresses, and what a transaction wants of a page. Pure: the state of a bridge is in `unit.ts`.
 */
import { compileWalker } from "../../pagetable/compile.ts";
import { type PageTableFormat, Permission } from "../../pagetable/format.ts";
import { type TceGeometry, tce, tceUnfit } from "../../pagetable/tce.ts";
import type { Walker } from "../../pagetable/walker.ts";
import { Access } from "../unit.ts";
import { RealTve, SIZE_LG2, Tve } from "./spec.ts";

/** Addresses of this window are translated by TCE tables. */
export interface TceWindow {
  readonly kind: "tce";
  readonly root: number;
  readonly format: PageTableFormat;
  readonly walk: Walker;
  /** Log2 of the bytes of its pages. */
  readonly pageLg2: number;
}

/** Addresses of this window are those of memory, from `start` to `end`. */
export interface RealWindow {
  readonly kind: "real";
  readonly start: number;
  readonly end: number;
}

export type Window = TceWindow | RealWindow;

interface Compiled {
  readonly format: PageTableFormat;
  readonly walk: Walker;
}
/** There are few: page sizes of units times levels times sizes of tables. */
const compiled = new Map<string, Compiled>();

const compile = (geometry: TceGeometry): Compiled => {
  const key = `${geometry.pageLg2} ${geometry.levels} ${geometry.tableLg2}`;
  let known = compiled.get(key);
  if (!known) {
    const format = tce(geometry);
    known = { format, walk: compileWalker(format) };
    compiled.set(key, known);
  }
  return known;
};

/** The window of a TVE; a string says why there is none. `pageLg2s`: the page sizes the unit has. */
export const decodeTve = (tve: bigint, pageLg2s: readonly number[]): Window | string => {
  const { TABLE, LEVELS, TABLE_SIZE, PSIZE } = Tve.fields;
  if (PSIZE.of(tve) === 0n) return decodeReal(tve);
  if (TABLE_SIZE.of(tve) === 0n) return "TABLE_SIZE = 0: the window has no table";
  const pageLg2 = Number(PSIZE.of(tve)) + SIZE_LG2;
  if (!pageLg2s.includes(pageLg2)) return `the unit has no pages of 2^${pageLg2} bytes`;
  const geometry = {
    pageLg2,
    levels: Number(LEVELS.of(tve)) + 1,
    tableLg2: Number(TABLE_SIZE.of(tve)) + SIZE_LG2,
  };
  const root = TABLE.of(tve);
  if (root >= 1n << 52n) return `the table at 0x${root.toString(16)} is beyond 52 address bits`;
  const unfit = tceUnfit(geometry);
  return unfit ?? { kind: "tce", root: Number(root), pageLg2, ...compile(geometry) };
};

const decodeReal = (tve: bigint): RealWindow | string => {
  const { START, END, START_HIGH, END_HIGH } = RealTve.fields;
  const start = Number(START.of(tve) | (START_HIGH.of(tve) << 48n));
  const end = Number(END.of(tve) | (END_HIGH.of(tve) << 48n));
  return start < end ? { kind: "real", start, end } : "the window is empty";
};

/** The `Permission` bits that an access needs: fetching instructions is reading, an atomic operation both. */
export const needOf = (access: number): number => {
  if (access & Access.atomic) return Permission.read | Permission.write;
  const write = access & Access.write ? Permission.write : 0;
  return write | (access & (Access.read | Access.execute) ? Permission.read : 0);
};

/** For people. */
export const showWindow = (window: Window): string =>
  window.kind === "tce"
    ? `${window.format.name}, at 0x${window.root.toString(16)}`
    : `memory itself, 0x${window.start.toString(16)} to 0x${window.end.toString(16)}`;
