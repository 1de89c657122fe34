/**
 * IOTLB hits against the same table in C (`c/iotlb.c`), and a whole `translate` of the VT-d unit that the requester's last
 * page answers. Processor time, so that a busy machine does not count; medians of interleaved rounds in one run.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Random } from "../src/base/clock.ts";
import { silent } from "../src/base/events.ts";
import { Iotlb } from "../src/hardware/iotlb.ts";
import { Access, Transaction } from "../src/hardware/unit.ts";
import { SparseMemory } from "../src/hardware/vectors/sparse-memory.ts";
import { ContextEntry, Gcmd, Register, RootEntry } from "../src/hardware/vtd/spec.ts";
import { VtdUnit } from "../src/hardware/vtd/unit.ts";
import { type BenchRow, median } from "./row.ts";

const ROUNDS = 5;
const CONTEXTS = 4;
const LOOKUPS = 8_000_000;
/** Lookups of a part. */
const PART = 1000;

interface Addresses {
  readonly context: Uint32Array;
  readonly lo: Uint32Array;
  readonly hi: Uint32Array;
}

/** The same addresses as the C program's, without the few that were replaced. */
const fill = (iotlb: Iotlb, count: number): Addresses => {
  const random = new Random(1);
  const all = Array.from({ length: count }, (_, i) => {
    const lo = random.next();
    const hi = random.next() & 0xff;
    iotlb.enter(i % CONTEXTS, lo, hi, 12, (i << 12) | (lo & 0xfff), i >>> 20, 0);
    return { context: i % CONTEXTS, lo, hi };
  });
  const held = all.filter(({ context, lo, hi }) => iotlb.lookup(context, lo, hi) >= 0);
  return {
    context: Uint32Array.from(held, ({ context }) => context),
    lo: Uint32Array.from(held, ({ lo }) => lo),
    hi: Uint32Array.from(held, ({ hi }) => hi),
  };
};

/** A part of the work: short and called often, so that what is measured was compiled as a whole, not amid its loop. */
const lookUpPart = (iotlb: Iotlb, addresses: Addresses, from: number, to: number): number => {
  const { context, lo, hi } = addresses;
  let sum = 0;
  for (let i = from; i < to; i++) {
    const entry = iotlb.lookup(context[i]!, lo[i]!, hi[i]!);
    if (entry < 0) throw new Error("not in the IOTLB");
    sum += iotlb.page(entry);
  }
  return sum;
};

const lookUp = (iotlb: Iotlb, addresses: Addresses, lookups: number): number => {
  const count = addresses.context.length;
  let sum = 0;
  for (let done = 0; done < lookups; ) {
    const from = done % count;
    const part = Math.min(PART, count - from, lookups - done);
    sum += lookUpPart(iotlb, addresses, from, from + part);
    done += part;
  }
  return sum;
};

/** A unit and a request whose page is the requester's last one. */
const lastPage = (): { unit: VtdUnit; transaction: Transaction } => {
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
  store(0x6000 + 5 * 8, 0x40_0003n);
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

const translatePart = (unit: VtdUnit, transaction: Transaction, count: number): number => {
  let sum = 0;
  for (let i = 0; i < count; i++) {
    transaction.lo = 0x5000 + ((i * 8) & 0xfff);
    if (unit.translate(transaction) !== 0) throw new Error(`fault ${transaction.fault}`);
    sum += transaction.pa + transaction.span;
  }
  return sum;
};

const translate = ({ unit, transaction }: ReturnType<typeof lastPage>, lookups: number): number => {
  let sum = 0;
  for (let done = 0; done < lookups; done += PART) sum += translatePart(unit, transaction, PART);
  return sum;
};

const compare = (name: string, baseline: () => number, ours: (lookups: number) => number): BenchRow => {
  const figures = { ours: [] as number[], baseline: [] as number[] };
  ours(LOOKUPS / 4);
  for (let round = 0; round < ROUNDS; round++) {
    figures.baseline.push(baseline());
    const start = process.cpuUsage();
    ours(LOOKUPS);
    figures.ours.push((process.cpuUsage(start).user * 1000) / LOOKUPS);
  }
  const row = { name, ours: median(figures.ours), baseline: median(figures.baseline), unit: "ns" };
  return { ...row, ratio: row.ours / row.baseline };
};

/** Needs `cc`. */
export const iotlbBench = async (): Promise<BenchRow[]> => {
  const folder = mkdtempSync(join(tmpdir(), "softiommu-bench-"));
  try {
    const program = join(folder, "iotlb");
    const source = fileURLToPath(new URL("c/iotlb.c", import.meta.url));
    execFileSync("cc", ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", program, source]);
    const baseline = (what: string) => () =>
      Number(execFileSync(program, [what, `${LOOKUPS}`], { encoding: "utf8" }));
    const rows = [64, 4096, 65536].map((count) => {
      const iotlb = new Iotlb({ contexts: CONTEXTS, capacity: 4 * count });
      const addresses = fill(iotlb, count);
      return compare(`IOTLB hit, ${count} entries`, baseline(`${count}`), (n) => lookUp(iotlb, addresses, n));
    });
    const device = lastPage();
    rows.push(compare("translation in the last page", baseline("last"), (n) => translate(device, n)));
    return rows;
  } finally {
    rmSync(folder, { recursive: true });
  }
};
