/** The translation parameters of a function: what its function information block says, decoded. Pure. */
import { compileWalker } from "../../pagetable/compile.ts";
import { inputBits, type PageTableFormat } from "../../pagetable/format.ts";
import { type S390Tables, s390Dat } from "../../pagetable/s390.ts";
import type { Walker } from "../../pagetable/walker.ts";
import { Designation, Fib, Iota } from "./spec.ts";

/** Tables of a designation. */
export interface Stage {
  readonly format: PageTableFormat;
  readonly walk: Walker;
}

export interface Parameters {
  /** First address the function may use, and the one after the last. Both multiples of a page. */
  readonly start: number;
  readonly end: number;
  readonly iota: bigint;
  /** Undefined: requests pass. */
  readonly stage: Stage | undefined;
  /** Physical address of the designated table. */
  readonly origin: number;
}

const PAGE = 4096n;
const ADDRESS_END = 2n ** 52n;
const stages = new Map<bigint, Stage>();

/** The tables that a designation begins with; undefined: it is none of tables. */
export const stageOf = (designation: bigint): Stage | undefined => {
  if (designation > BigInt(Designation.regionFirst)) return undefined;
  let stage = stages.get(designation);
  if (!stage) {
    const format = s390Dat((Number(designation) + 2) as S390Tables);
    stage = { format, walk: compileWalker(format) };
    stages.set(designation, stage);
  }
  return stage;
};

/** What an anchor says; a sentence: why there is no such anchor. */
export const decodeAnchor = (iota: bigint): Pick<Parameters, "iota" | "stage" | "origin"> | string => {
  const { ORIGIN, T, DT, FS } = Iota.fields;
  if (iota & Iota.reserved) return "reserved bits of the anchor are set";
  if (T.of(iota) === 0n) return { iota, stage: undefined, origin: 0 };
  const stage = stageOf(DT.of(iota));
  if (!stage) return `designation ${DT.of(iota)} is not that of a table (0 to ${Designation.regionFirst})`;
  if (FS.of(iota) !== 0n) return "frames are of 4 KiB (FS 0)";
  const origin = ORIGIN.of(iota);
  if (origin >= ADDRESS_END) return "the table is beyond the address bits of the machine";
  return { iota, stage, origin: Number(origin) };
};

/** What a block says; a sentence: why it is not taken. */
export const decodeFib = (fib: bigint): Parameters | string => {
  const first = Fib.fields.PBA.of(fib);
  const end = Fib.fields.PAL.of(fib) + 1n;
  if (first % PAGE !== 0n || end % PAGE !== 0n || end <= first)
    return "PBA and PAL are not the first and the last byte of whole pages";
  const anchor = decodeAnchor(Fib.fields.IOTA.of(fib));
  if (typeof anchor === "string") return anchor;
  return { start: Number(first), end: Number(end), ...anchor };
};

/** The block that says it. */
export const encodeFib = ({ start, end, iota }: Parameters): bigint =>
  Fib.make({ PBA: BigInt(start), PAL: BigInt(end) - 1n, IOTA: iota });

/** One after the last address that is translated for the function. */
export const translatedEnd = ({ end, stage }: Parameters): number =>
  stage ? Math.min(end, 2 ** inputBits(stage.format)) : end;
