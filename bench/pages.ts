/** Pages that walks are measured on: a few in a row, or many at random in 4 GiB; and sides that walk them. */
import { Random } from "../src/base/clock.ts";
import { inParts, type Side } from "./measure.ts";

export const PAGE = 4096;
/** Address of page 0, and host physical address of what it is mapped to. */
export const BASE = 2 ** 30;
export const TARGET = 2 ** 33;
const WORD = 2 ** 32;

/** Numbers of the pages. */
export const inCache: Uint32Array = Uint32Array.from({ length: 64 }, (_, i) => i);
export const atRandom = (count: number): Uint32Array => {
  const random = new Random(1);
  return Uint32Array.from({ length: count }, () => random.below(2 ** 20));
};

/** An access in each page, as words. */
export interface Accesses {
  readonly los: Int32Array;
  readonly his: Int32Array;
}
export const accessesOf = (pages: Uint32Array): Accesses => {
  const addresses = Array.from(pages, (page) => BASE + page * PAGE + 64);
  return {
    los: Int32Array.from(addresses, (address) => (address % WORD) | 0),
    his: Int32Array.from(addresses, (address) => Math.floor(address / WORD)),
  };
};

/**
 * A side that walks the accesses over and over. `call` is the call of the walker with `lo` and `hi`, by the names of `scope`; each
 * side is code of its own, as a unit's is.
 */
export const walkingSide = (name: string, call: string, accesses: Accesses, scope: object): Side => {
  const source = `return (from, count) => { // ${name}
    const items = los.length;
    let sum = 0, next = from | 0;
    for (let i = 0; i < (count | 0); i++) {
      const lo = los[next], hi = his[next];
      if (${call} !== 0) throw new Error("the walk faulted");
      sum += out.pa;
      if (++next === items) next = 0;
    }
    return sum;
  };`;
  const all = { ...accesses, ...scope };
  const walk = new Function(...Object.keys(all), `"use strict";${source}`)(...Object.values(all)) as Side;
  return inParts(accesses.los.length, walk);
};
