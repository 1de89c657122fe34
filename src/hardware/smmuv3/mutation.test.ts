/**
 * Recorded set-ups with bits turned over in structures, tables and registers: whatever that makes of them, the unit and
 * its literal explanation say the same, cached or not, and nothing throws.
 */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Random } from "../../base/clock.ts";
import { silent } from "../../base/events.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { answer, explained, requestOf } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { parseVectors, type Vector } from "../vectors/vector.ts";
import { capabilitiesOf } from "./capabilities.ts";
import { type SmmuCapabilities, SmmuV3Unit } from "./unit.ts";

const load = (name: string): Vector[] =>
  parseVectors(readFileSync(new URL(`data/smmuv3-${name}.jsonl`, import.meta.url), "utf8"));

/** Runs a set-up with a bit of some values turned over, and compares a few accesses. */
const mutate = ({ registers, setup, requester, access }: Vector, random: Random): number => {
  const memory = new SparseMemory([{ start: 0x4000_0000, end: 0x2_4000_0000 }]);
  const id = (name: string) => Number(registers[name]);
  const capabilities: SmmuCapabilities = {
    ...capabilitiesOf({
      idr0: id("IDR0"),
      idr1: id("IDR1"),
      idr3: id("IDR3"),
      idr5: id("IDR5"),
      iidr: 0,
      aidr: 1,
    }),
    // More of what a unit can do, so that more of the bits mean something.
    ...(random.below(2) && { substreamIdBits: 6, updates: "dirty", ats: true, hyp: true }),
    ...(random.below(2) && { outputBits: 52 }),
  };
  const cache = random.below(2) ? "normal" : "none";
  const options = { name: "smmu", memory, events: silent, interrupt: () => {}, capabilities, cache } as const;
  const unit = new SmmuV3Unit(options);
  const turned = (value: string, width: number) =>
    BigInt(value) ^ (random.below(20) === 0 ? 1n << BigInt(random.below(width)) : 0n);
  for (const step of setup) {
    if ("mem64" in step) {
      const value = turned(step.mem64[1], 64);
      memory.store64(Number(step.mem64[0]), Number(value & 0xffff_ffffn), Number(value >> 32n));
    } else if ("mmio" in step) unit.mmioWrite(Number(step.mmio[0]), step.mmio[1], BigInt(step.mmio[2]));
  }
  let translated = 0;
  for (let i = 0; i < 6; i++) {
    const iova = BigInt(access.iova) ^ (i < 2 ? 0n : 1n << BigInt(random.below(64)));
    const what = i === 0 && access.write ? Access.write : random.below(32);
    const pasid = random.below(4) ? -1 : random.below(70);
    const transaction = requestOf(Number(requester), iova, what, pasid);
    const told = explained(unit, transaction);
    const found = answer(unit, transaction);
    expect(found).toEqual(told);
    if (found.ok) translated += 1;
  }
  return translated;
};

describe("set-ups with bits turned over", () => {
  it.each([["s1"], ["s2"], ["nested"]])("%s", (name) => {
    const random = new Random(20_26);
    let translated = 0;
    for (const vector of load(name)) translated += mutate(vector, random);
    expect(translated).toBeGreaterThan(20);
  });
});
