/**
 * Explanations: what they tell, and that they agree with the unit where recorded set-ups have bits of structures, tables
 * and registers turned over.
 */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Random } from "../../base/clock.ts";
import { silent } from "../../base/events.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { access, answer, explained, requestOf } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { parseVectors, type Vector } from "../vectors/vector.ts";
import { AmdViRig, invalidateDevice, invalidatePages, readWrite, wait } from "./rig.suite.ts";
import { Dte } from "./spec.ts";
import { AmdViUnit } from "./unit.ts";

const RID = 0x18;
const steps = (rig: AmdViRig, iova: number, what: number = Access.read, pasid = -1) => [
  ...rig.unit.explain(requestOf(RID, iova, what, pasid)),
];
const reasonOf = (rig: AmdViRig, iova: number, what?: number, pasid?: number): string => {
  const { outcome } = steps(rig, iova, what, pasid).at(-1)!;
  return outcome!.ok ? "ok" : outcome!.reason;
};

describe("an explained request", () => {
  it("tells every structure and entry in the order they are fetched", () => {
    const rig = new AmdViRig({ stages: "nested" });
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    rig.enable();
    const told = steps(rig, 0x5000).map(({ what }) => what);
    // The GCR3 entry and each of four levels of the guest's tables lie at guest addresses: two levels of host tables each.
    expect(told[0]).toBe("DTE");
    expect(told.filter((what) => what === "GCR3 entry, level 1")).toHaveLength(1);
    expect(told.filter((what) => what === "PDE3").length).toBeGreaterThan(4);
    expect(told.filter((what) => /^guest P/.test(what))).toEqual([
      "guest PML4E",
      "guest PDPE",
      "guest PDE",
      "guest PTE",
    ]);
    expect(told.at(-1)).toBe("outcome");
  });

  it("says what is remembered when the tables say something else, and that it is used", () => {
    const rig = new AmdViRig();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    rig.enable();
    access(rig, RID, 0x5000);
    expect(steps(rig, 0x5000).some(({ what }) => what === "IOTLB")).toBe(false);
    rig.map(RID, 0x5000, 0x50_0000, 12, readWrite);
    const held = steps(rig, 0x5000);
    expect(held.find(({ what }) => what === "IOTLB")?.note).toMatch(/0x400000.*0x500000/);
    expect(held.at(-1)?.outcome).toMatchObject({ ok: true, pa: 0x40_0000 });
    rig.dte(RID, { TV: false });
    expect(steps(rig, 0x5000).some(({ what }) => what === "device table cache")).toBe(true);
    rig.submit(invalidateDevice(RID), invalidatePages(1, 0, 64), wait());
    expect(reasonOf(rig, 0x5000)).toMatch(/DTE\.TV = 0/);
  });

  it("says that a PASID's tables are remembered", () => {
    const rig = new AmdViRig({ stages: "guest" });
    const table = rig.memory.allocate(1);
    rig.mapGuest(table, 0x5000, 0x40_0000, 12, readWrite);
    const gcr3 = rig.gcr3({ 3: table });
    rig.dte(RID, { DOMAIN: 1, ...rig.gcr3Fields(gcr3) });
    rig.enable();
    access(rig, RID, 0x5000, Access.read, 3);
    rig.store64(gcr3 + 24, 0n);
    expect(steps(rig, 0x6000, Access.read, 3).some(({ what }) => what === "GCR3 cache")).toBe(true);
    expect(reasonOf(rig, 0x6000, Access.read, 3)).toMatch(/guest PTE.* not present/);
  });

  it("says why: the event, its section, the entry and the field", () => {
    const rig = new AmdViRig();
    rig.map(RID, 0x5000, 0x40_0000, 12, Access.read);
    expect(reasonOf(rig, 0x5000)).toBe("ok");
    rig.enable();
    expect(reasonOf(rig, 0x5000, Access.write)).toMatch(/^IO_PAGE_FAULT \(§2\.5\.3\).*IW = 0 denies write/);
    expect(reasonOf(rig, 0x6000)).toMatch(/the PTE at 0x\w+ is not present/);
    expect(reasonOf(rig, 0x5000, Access.read, 4)).toMatch(/^INVALID_DEVICE_REQUEST \(§2\.5\.9\)/);
    rig.dte(RID, { MODE: 7 });
    expect(reasonOf(rig, 0x5000)).toMatch(/^ILLEGAL_DEV_TABLE_ENTRY.*Mode = 7 is reserved/);
    rig.dte(RID, { IW: false });
    expect(reasonOf(rig, 0x5000, Access.write)).toMatch(/IR or IW of the DTE/);
  });
});

/** Runs a set-up with a bit of some values turned over, and compares a few accesses. */
const mutate = ({ setup, requester, access: { iova, write } }: Vector, random: Random): number => {
  const memory = new SparseMemory([{ start: 0, end: 0x8000_0000 }]);
  const cache = random.below(2) ? "normal" : "none";
  const unit = new AmdViUnit({ name: "amdvi", memory, events: silent, interrupt: () => {}, cache });
  const turned = (value: string) =>
    BigInt(value) ^ (random.below(12) === 0 ? 1n << BigInt(random.below(64)) : 0n);
  const guest = random.below(3) === 0;
  for (const step of setup) {
    if ("mem64" in step) {
      const value = turned(step.mem64[1]);
      memory.store64(Number(step.mem64[0]), Number(value & 0xffff_ffffn), Number(value >> 32n));
    } else if ("mmio" in step) {
      const [offset, size, value] = step.mmio;
      // Guest translation too.
      const more = Number(offset) === 0x18 && guest ? 0x1_0000n : 0n;
      unit.mmioWrite(Number(offset), size, BigInt(value) | more);
    }
  }
  let translated = 0;
  for (let i = 0; i < 6; i++) {
    const address = BigInt(iova) ^ (i < 2 ? 0n : 1n << BigInt(random.below(64)));
    const what = i === 0 && write ? Access.write : random.below(32);
    const transaction = requestOf(Number(requester), address, what, random.below(4) ? -1 : random.below(70));
    const told = explained(unit, transaction);
    const found = answer(unit, transaction);
    expect(found).toEqual(told);
    if (found.ok) translated += 1;
  }
  return translated;
};

describe("recorded set-ups with bits turned over", () => {
  it("are the same to the unit and to its explanation", () => {
    const text = readFileSync(new URL("data/amdvi.jsonl", import.meta.url), "utf8");
    const random = new Random(20_26);
    let translated = 0;
    for (const vector of parseVectors(text)) translated += mutate(vector, random);
    expect(translated).toBeGreaterThan(100);
  });

  it("guests' structures with bits turned over, over host tables", () => {
    const random = new Random(7);
    for (let round = 0; round < 60; round++) {
      const rig = new AmdViRig({ stages: "nested", cache: random.below(2) ? "normal" : "none" });
      for (let page = 0; page < 6; page++)
        rig.map(RID, page * 0x1000, 0x40_0000 + page * 0x1000, 12, readWrite);
      rig.map(RID, 0x20_0000, 0x8000_0000, 21, readWrite);
      const { guest } = rig.domain(RID);
      const dte = rig.deviceTable + RID * Dte.bytes;
      const turn = (at: number) => rig.store64(at, rig.load64(at) ^ (1n << BigInt(random.below(64))));
      for (const at of [dte, dte + 8, rig.gcr3Of(RID), guest]) if (random.below(4) === 0) turn(at);
      rig.enable();
      for (let i = 0; i < 6; i++) {
        const transaction = requestOf(
          RID,
          (random.below(8) ? 0 : 0x20_0000) + random.below(8) * 0x1000 + random.below(4096),
          random.below(32),
          random.below(3) ? -1 : random.below(3),
        );
        const told = explained(rig.unit, transaction);
        expect(answer(rig.unit, transaction)).toEqual(told);
      }
    }
  });
});
