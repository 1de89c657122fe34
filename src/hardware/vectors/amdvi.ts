/** AMD-Vi as a subject of vectors: a unit with the recorded features; new event log entries are compared by code and device, and STATUS. */
import { silent } from "../../base/events.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { ENTRY_BYTES, EventEntry } from "../amdvi/queue-spec.ts";
import { Register, RingBase } from "../amdvi/spec.ts";
import { AmdViUnit } from "../amdvi/unit.ts";
import type { Subject } from "./run.ts";
import type { Vector } from "./vector.ts";

const GIGABYTE = 0x4000_0000;
/** The recorded machine's memory: 2 GiB below the hole, and from 4 to 10 GiB. */
const memoryRanges = [
  { start: 0, end: 2 * GIGABYTE },
  { start: 4 * GIGABYTE, end: 10 * GIGABYTE },
];

const show = (value: bigint): string => `0x${value.toString(16)}`;

/** What a recording says of fault reporting. */
interface Recorded {
  /** Entries that were added, as 64-bit words. */
  readonly events?: readonly (readonly [string, string])[];
  readonly status?: string;
}

export const amdviSubject = ({ registers }: Vector): Subject => {
  const memory = new SparseMemory(memoryRanges);
  const window = { name: "interrupts", read: () => false, write: () => true };
  memory.addWindow(0xfee0_0000, 0x10_0000, window);
  const unit = new AmdViUnit({
    name: "amdvi",
    memory,
    events: silent,
    interrupt: () => {},
    capabilities: { efr: BigInt(registers["EXT_FEATURE"] ?? 0), efr2: 0n },
  });
  for (const [name, value] of Object.entries(registers)) {
    const found = unit.mmioRead(Register[name as keyof typeof Register], 8);
    if (found !== BigInt(value)) throw new Error(`${name} is ${show(found)}, recorded ${value}`);
  }
  let seen = 0;
  /** Code and device of the entries since the last time, as far as they are comparable. */
  const take = (): bigint[] => {
    const base = unit.mmioRead(Register.EVTLOG_BASE, 8);
    const start = Number(RingBase.fields.BASE.of(base));
    const bytes = ENTRY_BYTES * 2 ** Number(RingBase.fields.LEN.of(base));
    const tail = Number(unit.mmioRead(Register.EVTLOG_TAIL, 8));
    const entries: bigint[] = [];
    for (; seen !== tail && entries.length <= bytes; seen = (seen + ENTRY_BYTES) % bytes) {
      memory.load64(start + seen);
      entries.push((BigInt(memory.hi) << 32n) | BigInt(memory.lo));
    }
    seen = tail;
    return entries.map(comparable);
  };
  return {
    unit,
    memory,
    faultMismatches(expected) {
      const { events = [], status } = (expected ?? {}) as Recorded;
      const found = take();
      const wanted = events.map(([head]) => comparable(BigInt(head)));
      const mismatches: string[] = [];
      if (String(found) !== String(wanted))
        mismatches.push(
          `events are ${found.map(EventEntry.print)}, recorded ${wanted.map(EventEntry.print)}`,
        );
      const now = unit.mmioRead(Register.STATUS, 8);
      if (status !== undefined && now !== BigInt(status))
        mismatches.push(`STATUS is ${show(now)}, recorded ${status}`);
      return mismatches;
    },
  };
};

const COMPARABLE = EventEntry.fields.CODE.put(0xfn) | EventEntry.fields.DEVICE.put(0xffffn);
const comparable = (entry: bigint): bigint => entry & COMPARABLE;
