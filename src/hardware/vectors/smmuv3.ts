/** SMMUv3 as a subject of vectors: a unit with the recorded identification registers; new event records and GERROR are compared. */
import { silent } from "../../base/events.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { capabilitiesOf } from "../smmuv3/capabilities.ts";
import { EVENT_BYTES, EventClass, EventRecord } from "../smmuv3/queue-spec.ts";
import { QUEUE_INDEX, QueueBase, Register } from "../smmuv3/spec.ts";
import { SmmuV3Unit } from "../smmuv3/unit.ts";
import type { Subject } from "./run.ts";
import type { Vector } from "./vector.ts";

/** The recorded machine's memory: 1 to 9 GiB. */
const memoryRanges = [{ start: 0x4000_0000, end: 0x2_4000_0000 }];
const identification = ["IDR0", "IDR1", "IDR3", "IDR5", "IIDR", "AIDR"] as const;

const show = (value: bigint | number): string => `0x${value.toString(16)}`;

/** What a recording says of fault reporting. */
interface Recorded {
  /** Event records that were added, as 64-bit words. */
  readonly events?: readonly (readonly string[])[];
  /** GERROR, when it changed. */
  readonly gerror?: string;
  /** EVENTQ_PROD, when the queue overflowed. */
  readonly evtq_prod?: string;
}

class EventReader {
  readonly #unit: SmmuV3Unit;
  readonly #memory: SparseMemory;
  #seen = 0;

  constructor(unit: SmmuV3Unit, memory: SparseMemory) {
    this.#unit = unit;
    this.#memory = memory;
  }

  /** The records since the last time. */
  take(): bigint[][] {
    const base = this.#unit.mmioRead(Register.EVENTQ_BASE, 8);
    const entries = 2 ** Number(base & BigInt(QueueBase.LOG2SIZE));
    const start = Number(base & 0xf_ffff_ffff_ffe0n);
    const prod = Number(this.#unit.mmioRead(Register.EVENTQ_PROD, 4)) & QUEUE_INDEX;
    const records: bigint[][] = [];
    for (; this.#seen !== prod && records.length <= entries; this.#seen = (this.#seen + 1) % (2 * entries))
      records.push(this.#read(start + (this.#seen % entries) * EVENT_BYTES));
    this.#seen = prod;
    return records;
  }

  #read(at: number): bigint[] {
    return [0, 8, 16, 24].map((offset) => {
      this.#memory.load64(at + offset);
      return (BigInt(this.#memory.hi) << 32n) | BigInt(this.#memory.lo);
    });
  }
}

const printed = (words: readonly bigint[]): string =>
  EventRecord.print(words.reduceRight((value, word) => (value << 64n) | word, 0n));

const PAGE = 0xfffn;
/** The largest table of a first stage, in bytes. */
const TABLE = 0x1_0000n;

/** The machine tries the rest of an access that faulted in words of four bytes: what follows in the same way is left out. */
const merged = (records: readonly bigint[][]): bigint[][] => {
  const kept: bigint[][] = [];
  let last: readonly bigint[] | undefined;
  for (const record of records) {
    const again = last?.[0] === record[0] && last?.[1] === record[1] && (last?.[2] ?? 0n) + 4n === record[2];
    if (!again) kept.push(record);
    last = record;
  }
  return kept;
};

/**
 * Where recordings deviate that do not say so. Of tables larger than a page of stage 2 other recordings say it: that
 * only their base is translated.
 */
const TABLE_BASE =
  "a stage 2 fault on a stage 1 entry gives the base of the table as IPA (§7.3.13: of the entry)";

/** `TABLE_BASE`: whether that is all the difference. */
const isTableBase = (found: readonly bigint[], wanted: readonly bigint[]): boolean => {
  const { CLASS, S2 } = EventRecord.fields;
  const header = (found[1]! << 64n) | found[0]!;
  const fetched = CLASS.of(header) === BigInt(EventClass.table) && S2.of(header) === 1n;
  const same = [0, 1, 2].every((at) => found[at] === wanted[at]);
  const offset = found[3]! - wanted[3]!;
  return fetched && same && offset > 0n && offset < TABLE && (offset & PAGE) === 0n;
};

export const smmuv3Subject = ({ registers }: Vector): Subject => {
  const memory = new SparseMemory(memoryRanges);
  const [idr0, idr1, idr3, idr5, iidr, aidr] = identification.map((name) => Number(registers[name] ?? 0));
  const capabilities = capabilitiesOf({
    idr0: idr0!,
    idr1: idr1!,
    idr3: idr3!,
    idr5: idr5!,
    iidr: iidr!,
    aidr: aidr!,
  });
  const unit = new SmmuV3Unit({ name: "smmuv3", memory, events: silent, interrupt: () => {}, capabilities });
  for (const [name, value] of Object.entries(registers)) {
    const found = unit.mmioRead(Register[name as keyof typeof Register], 4);
    if (found !== BigInt(value)) throw new Error(`${name} is ${show(found)}, recorded ${value}`);
  }
  const events = new EventReader(unit, memory);
  const applied = new Set<string>();
  let gerror = 0n;
  return {
    unit,
    memory,
    rules: applied,
    faultMismatches(expected) {
      const recorded = (expected ?? {}) as Recorded;
      const mismatches: string[] = [];
      const found = events.take();
      const wanted = merged((recorded.events ?? []).map((words) => words.map((word) => BigInt(word))));
      const bases = wanted.map((words, at) => found[at] !== undefined && isTableBase(found[at], words));
      if (found.length === wanted.length && bases.some(Boolean)) applied.add(TABLE_BASE);
      const differs = wanted.some((words, at) => !bases[at] && String(found[at]) !== String(words));
      if (differs || found.length !== wanted.length)
        mismatches.push(
          `events are ${found.map(printed).join("; ") || "none"}, recorded ${wanted.map(printed).join("; ") || "none"}`,
        );
      const before = gerror;
      gerror = unit.mmioRead(Register.GERROR, 4);
      const error = recorded.gerror === undefined ? before : BigInt(recorded.gerror);
      if (gerror !== error) mismatches.push(`GERROR is ${show(gerror)}, recorded ${show(error)}`);
      const prod = unit.mmioRead(Register.EVENTQ_PROD, 4);
      if (recorded.evtq_prod !== undefined && prod !== BigInt(recorded.evtq_prod))
        mismatches.push(`EVENTQ_PROD is ${show(prod)}, recorded ${recorded.evtq_prod}`);
      return mismatches;
    },
  };
};
