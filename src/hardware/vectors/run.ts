/**
 * Runs a vector on a unit and tells where it does not do what was recorded. What a deviation of the recording from the
 * specification names is not judged: after `result:` nothing of the vector is, after `record:` the outcomes are and
 * fault records and registers are not. Where several outcomes are legal, any that the vector shows for the same address
 * is; the records that follow from another choice are not judged.
 */

import type { SparseMemory } from "../../memory/sparse-memory.ts";
import { Access, type IommuUnit, NO_PASID, Transaction, TranslateStatus } from "../unit.ts";
import type { AccessUnderTest, Expectation, Segment, Step, Vector } from "./vector.ts";

/** A unit made for a vector, and how its fault reporting compares. */
export interface Subject {
  readonly unit: IommuUnit;
  readonly memory: SparseMemory;
  /** What of the unit's fault reporting differs from the recording; undefined: nothing recorded. */
  faultMismatches(expected: Expectation["fault"]): string[];
  /** Whether a memory word that is not the recorded one is so because the recorded model deviates there. */
  deviates?(found: bigint, recorded: bigint): boolean;
  /** Rules by which the recording was found to deviate where its vector does not say so: only outcomes are judged then. */
  readonly rules?: ReadonlySet<string>;
  /** Other records that `either` allows. */
  alsoLegal?(either: readonly string[], expected: Expectation["fault"]): Expectation["fault"][];
}

export type SubjectFactory = (vector: Vector) => Subject;

export interface VectorReport {
  readonly name: string;
  /** How much was judged: all of it, the outcomes only, or nothing. */
  readonly judged: "all" | "outcomes" | "nothing";
  /** The rules of the unit's subject that keep the rest from being judged; none: the vector's own `deviation` does. */
  readonly rules: readonly string[];
  /** Empty: passed. */
  readonly failures: readonly string[];
}

const WORD = 0x1_0000_0000n;
const number = (hex: string): number => Number(BigInt(hex));
const show = (value: bigint | number): string => `0x${value.toString(16)}`;

/** What an access did. */
interface Outcome {
  readonly result: "ok" | "fault" | "unbacked";
  readonly segments: readonly { readonly pa: number; readonly length: number }[];
  readonly data: Uint8Array;
}

/** Bus errors are told from faults by whether the address was translated. */
const perform = ({ unit, memory }: Subject, access: AccessUnderTest, requester: string): Outcome => {
  const transaction = new Transaction();
  transaction.rid = number(access.requester ?? requester);
  transaction.pasid = NO_PASID;
  transaction.access = access.write ? Access.write : Access.read;
  const data = new Uint8Array(access.length).map((_, at) => (access.write ? 0xc0 + at : 0));
  const segments: { pa: number; length: number }[] = [];
  for (let at = 0; at < access.length; ) {
    const iova = BigInt(access.iova) + BigInt(at);
    transaction.lo = Number(iova % WORD);
    transaction.hi = Number(iova / WORD);
    if (unit.translate(transaction) !== TranslateStatus.ok) return { result: "fault", segments, data };
    const { pa } = transaction;
    const length = Math.min(transaction.span, 0x1000 - (pa % 0x1000), access.length - at);
    const part = data.subarray(at, at + length);
    const moved = access.write ? memory.writeBytes(pa, part) : memory.readBytes(pa, part);
    if (!moved) return { result: "unbacked", segments, data };
    segments.push({ pa, length });
    at += length;
  }
  return { result: "ok", segments, data };
};

const segmentsDiffer = (found: Outcome["segments"], expected: readonly Segment[]): boolean =>
  found.length !== expected.length ||
  found.some(({ pa, length }, i) => pa !== number(expected[i]!.pa) || length !== expected[i]!.length);

const describe = ({ result, segments }: Outcome): string =>
  `${result}${segments.map(({ pa, length }) => ` ${show(pa)}+${length}`).join("")}`;

const outcomeMismatches = (found: Outcome, expected: Expectation): string[] => {
  const wanted = `${expected.result} ${expected.pa ?? JSON.stringify(expected.segments ?? expected.partial ?? "")}`;
  const wrong = [`${describe(found)}, recorded ${wanted}`];
  if (found.result !== expected.result) return wrong;
  if (expected.segments && segmentsDiffer(found.segments, expected.segments)) return wrong;
  if (expected.partial && segmentsDiffer(found.segments, expected.partial)) return wrong;
  if (expected.pa !== undefined && found.segments[0]?.pa !== number(expected.pa)) return wrong;
  if (expected.data !== undefined) {
    const data = found.data.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
    const wide = BigInt(expected.data) & ((1n << BigInt(8 * found.data.length)) - 1n);
    if (data !== wide) return [`read ${show(data)}, recorded ${expected.data}`];
  }
  return [];
};

class Run {
  readonly failures: string[] = [];
  #recordsJudged: boolean;
  readonly #subject: Subject;
  readonly #vector: Vector;
  /** Every expectation of the vector, for accesses of which several are legal. */
  readonly #shown: readonly { readonly access: AccessUnderTest; readonly expect: Expectation }[];

  constructor(vector: Vector, subject: Subject, recordsJudged: boolean) {
    this.#vector = vector;
    this.#subject = subject;
    this.#recordsJudged = recordsJudged;
    const steps = [...vector.setup, ...(vector.after ?? [])];
    this.#shown = [...steps.filter((step) => "access" in step), vector];
  }

  step(step: Step, where: string): void {
    const { unit, memory } = this.#subject;
    if ("mmio" in step) {
      const [offset, size, value] = step.mmio;
      unit.mmioWrite(number(offset), size, BigInt(value));
    } else if ("mem64" in step) {
      const [pa, value] = step.mem64;
      memory.store64(number(pa), Number(BigInt(value) % WORD), Number(BigInt(value) / WORD));
    } else if ("read" in step) {
      const [offset, size, value] = step.read;
      const found = unit.mmioRead(number(offset), size);
      if (found !== BigInt(value))
        this.#record(`${where}: register ${offset} is ${show(found)}, recorded ${value}`);
    } else if ("check64" in step) {
      const [pa, value] = step.check64;
      memory.load64(number(pa));
      const found = BigInt(memory.hi >>> 0) * WORD + BigInt(memory.lo >>> 0);
      if (found !== BigInt(value) && !this.#subject.deviates?.(found, BigInt(value)))
        this.failures.push(`${where}: memory ${pa} is ${show(found)}, recorded ${value}`);
    } else this.access(step.access, step.expect, step.either, where);
  }

  access(
    access: AccessUnderTest,
    expect: Expectation,
    either: readonly string[] | undefined,
    where: string,
  ): void {
    const found = perform(this.#subject, access, this.#vector.requester);
    let mismatches = outcomeMismatches(found, expect);
    if (mismatches.length > 0 && either && this.#isShown(found, access)) {
      mismatches = [];
      this.#recordsJudged = false;
    }
    this.failures.push(...mismatches.map((mismatch) => `${where}: ${mismatch}`));
    const faults = this.#subject.faultMismatches(expect.fault);
    const others = (either && this.#subject.alsoLegal?.(either, expect.fault)) ?? [];
    const legal = others.some((other) => this.#subject.faultMismatches(other).length === 0);
    if (!legal) for (const fault of faults) this.#record(`${where}: ${fault}`);
  }

  #isShown(found: Outcome, access: AccessUnderTest): boolean {
    return this.#shown.some(
      (shown) => shown.access.iova === access.iova && outcomeMismatches(found, shown.expect).length === 0,
    );
  }

  #record(failure: string): void {
    if (this.#recordsJudged) this.failures.push(failure);
  }
}

export const runVector = (vector: Vector, make: SubjectFactory): VectorReport => {
  const { name, deviation = "", setup, access, expect, either, after = [] } = vector;
  const judged = deviation.includes("result:")
    ? "nothing"
    : deviation.includes("record:")
      ? "outcomes"
      : "all";
  const subject = make(vector);
  const run = new Run(vector, subject, judged === "all");
  for (const [index, step] of setup.entries()) run.step(step, `setup ${index}`);
  run.access(access, expect, either, "access");
  for (const [index, step] of after.entries()) run.step(step, `after ${index}`);
  const rules = judged === "all" ? [...(subject.rules ?? [])] : [];
  const failures = judged === "nothing" ? [] : run.failures;
  return { name, judged: rules.length > 0 ? "outcomes" : judged, rules, failures };
};
