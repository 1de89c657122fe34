/**
 * IOTLB hits against the same table in C (`c/iotlb.c`), and whole translations of the VT-d unit: in the IOTLB, and in the
 * requester's last page. An invalidation of everything in a large table, against one in a small table.
 */
import { silent } from "../src/base/events.ts";
import { compileIotlb, type Iotlb } from "../src/hardware/iotlb.ts";
import { Access, Transaction } from "../src/hardware/unit.ts";
import { ContextEntry, Gcmd, Register, RootEntry } from "../src/hardware/vtd/spec.ts";
import { VtdUnit } from "../src/hardware/vtd/unit.ts";
import { SparseMemory } from "../src/memory/sparse-memory.ts";
import { Baseline, type Comparison, compareApart, inParts, type Prepared, type Side } from "./measure.ts";
import type { BenchRow } from "./row.ts";

const CONTEXTS = 4;
const PAGE = 4096;
/** Different lookups that are measured. */
const ITEMS = 2 ** 24;
const HIT_TARGET = 1.15;
/** Pages of the requester whose translations are measured: where all are, its last page is never the one before. */
const PAGES = 64;

/** Which item operation `n` is about: no order that a processor could learn. The same formula as in C. */
const itemOf = (n: number): number => {
  const mixed = Math.imul(n ^ (n >>> 15), 0x2c1b_3c6d);
  return mixed ^ (mixed >>> 12);
};
/** The address of item `i`: all over the place, and all different. The same formulas as in C. */
const itemLo = (i: number): number => Math.imul(i, 0x2545_f491);
const itemHi = (i: number): number => i >>> 8;

const filled = (count: number): Iotlb => {
  const iotlb = compileIotlb({ contexts: CONTEXTS, capacity: 4 * count });
  for (let i = 0; i < count; i++) {
    const page = i * PAGE;
    iotlb.enter(i % CONTEXTS, itemLo(i), itemHi(i), 12, page >>> 0, Math.floor(page / 2 ** 32), 0);
  }
  return iotlb;
};

/** A loop of its own for each table: as a unit's own code around its own table. */
const hitsOf = (iotlb: Iotlb, count: number): Side => {
  const source = `return (start, count) => { // ${count} entries
    const first = start | 0, end = (start + count) | 0;
    let sum = 0;
    for (let n = first; n < end; n = (n + 1) | 0) {
      const i = itemOf(n) & ${count - 1};
      const entry = iotlb.lookup(i % ${CONTEXTS}, itemLo(i), itemHi(i));
      if (entry >= 0) sum += iotlb.page(entry);
    }
    return sum;
  };`;
  const define = new Function("iotlb", "itemOf", "itemLo", "itemHi", `"use strict";${source}`);
  return inParts(ITEMS, define(iotlb, itemOf, itemLo, itemHi) as Side);
};

/** Invalidates everything, and looks that nothing is there. */
const invalidationsOf =
  (iotlb: Iotlb): Side =>
  (from, count) => {
    let sum = 0;
    for (let n = from; n < from + count; n++) {
      iotlb.invalidateAll();
      if (iotlb.lookup(0, itemLo(0), 0) >= 0) sum += 1;
    }
    return sum;
  };

/** A unit whose second stage maps `count` pages from 0x9_0000_0000 on to 0x40_0000 on, and a request of the one requester. */
const unitOf = (count: number): { unit: VtdUnit; transaction: Transaction } => {
  const memory = new SparseMemory([{ start: 0, end: 0x100_0000 }]);
  const store = (pa: number, value: bigint) =>
    memory.store64(pa, Number(value & 0xffff_ffffn), Number((value >> 32n) & 0xffff_ffffn));
  const store128 = (pa: number, value: bigint) =>
    store(pa, value & 0xffff_ffff_ffff_ffffn) && store(pa + 8, value >> 64n);
  store128(0x1010, RootEntry.make({ P: true, CTP: 0x2000 }));
  store128(0x2000, ContextEntry.make({ P: true, AW: 2, DID: 1, SSPTPTR: 0x3000 }));
  store(0x3000, 0x4003n);
  store(0x4000 + 36 * 8, 0x5003n);
  store(0x5000, 0x6003n);
  for (let i = 0; i < count; i++) store(0x6000 + i * 8, BigInt(0x40_0003 + i * PAGE));
  const capabilities = { addressWidths: [48] as const };
  const unit = new VtdUnit({ name: "vtd0", memory, events: silent, interrupt: () => {}, capabilities });
  unit.mmioWrite(Register.RTADDR, 8, 0x1000n);
  unit.mmioWrite(Register.GCMD, 4, BigInt(Gcmd.SRTP));
  unit.mmioWrite(Register.GCMD, 4, BigInt(Gcmd.TE));
  const transaction = new Transaction();
  transaction.rid = 0x100;
  transaction.hi = 9;
  transaction.access = Access.read;
  return { unit, transaction };
};

const translate = (unit: VtdUnit, transaction: Transaction, mask: number, first: number, end: number) => {
  let sum = 0;
  for (let n = first | 0; n < end; n = (n + 1) | 0) {
    transaction.lo = ((n & mask) * PAGE + ((n * 8) & 0xfff)) | 0;
    if (unit.translate(transaction) !== 0) throw new Error(`fault ${transaction.fault}`);
    sum += transaction.pa + transaction.span;
  }
  return sum;
};

export const iotlbComparisons = (): Prepared => {
  const c = new Baseline("iotlb");
  const prepareHits = c.action("prepare_hits", "uint32_t");
  const prepareTranslations = c.action("prepare_translations", "uint32_t");
  // C has one table at a time: it is made when the one before was another.
  let made = "";
  const baseline =
    (which: string, make: () => void, side: Side): Side =>
    (from, count) => {
      if (made !== which) make();
      made = which;
      return side(from, count);
    };
  const hits = (count: number): Comparison => ({
    name: `IOTLB hit, ${count} entries`,
    ours: hitsOf(filled(count), count),
    baseline: baseline(`${count}`, () => prepareHits(count), c.side("hits")),
    items: ITEMS,
    operations: 400_000,
    target: HIT_TARGET,
  });
  const { unit, transaction } = unitOf(PAGES);
  const translations = (name: string, count: number): Comparison => ({
    name,
    ours: inParts(count * 512, (from, n) => translate(unit, transaction, count - 1, from, from + n)),
    baseline: baseline(name, () => prepareTranslations(count), c.side("translations")),
    items: count * 512,
    operations: 400_000,
  });
  return {
    comparisons: [
      ...[64, 4096, 65536].map(hits),
      translations("translation in the IOTLB", PAGES),
      translations("translation in the last page", 1),
      {
        name: "invalidate all: 65536 entries, against 64",
        ours: invalidationsOf(filled(65536)),
        baseline: invalidationsOf(filled(64)),
        items: 64,
        operations: 200_000,
        target: 1.15,
      },
    ],
    close: () => {},
  };
};

/** Needs `cc`. */
export const iotlbBench = (): BenchRow[] => compareApart(import.meta.url, "iotlbComparisons");
