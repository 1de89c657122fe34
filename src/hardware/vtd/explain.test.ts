import { describe, expect, it } from "vitest";
import { answer, request } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { iotlb, readWrite } from "./rig.suite.ts";
import { ScalableRig } from "./scalable-rig.suite.ts";
import { PasidIotlbInvalidate, Pgtt } from "./scalable-spec.ts";

const RID = 0x18;
const IOVA = 0x5000;
/** A guest page of data, and where the second stage has it: first, and later. */
const GUEST = 0x2_0000_0000;
const [BEFORE, AFTER] = [0x40_0000, 0x50_0000];
/** Four levels of the first stage, each through as many of the second as tell a large page, and the page through four. */
const ENTRIES = 4 * (1 + 2) + 4;

const nested = () => {
  const rig = new ScalableRig({ pgtt: Pgtt.nested });
  const { second } = rig.tablesOf(RID);
  rig.mapPage(second, 4, GUEST, BEFORE, 12, readWrite);
  rig.map(RID, IOVA, GUEST, 12, readWrite);
  rig.enable();
  rig.enableQueue();
  const move = (pa: number) => rig.mapPage(second, 4, GUEST, pa, 12, readWrite);
  const read = () => answer(rig.unit, request(RID, IOVA, Access.read));
  const explain = () => [...rig.unit.explain(request(RID, IOVA, Access.read))];
  const entries = () => explain().filter(({ level }) => level !== undefined);
  return { rig, move, read, explain, entries };
};
/** Of the first stage: what is known of guest addresses stays. */
const firstStage = PasidIotlbInvalidate.make({ TYPE: 6, G: 2, DID: 1, PASID: 0 });

describe("an explained nested translation", () => {
  it("tells every entry of both stages, also when the unit remembers the page or guest addresses", () => {
    const { rig, read, explain, entries } = nested();
    read(); // sets accessed bits
    rig.submit(iotlb({ G: 1 }));
    const fresh = explain();
    expect(fresh.at(-1)!.note).not.toMatch(/the unit answers/);
    expect(read()).toMatchObject({ pa: BEFORE });
    expect(entries()).toHaveLength(ENTRIES);
    expect(explain().at(-1)!.note).toMatch(/the unit answers the same from its IOTLB$/);
    rig.submit(firstStage);
    expect(entries()).toHaveLength(ENTRIES);
    expect(explain().at(-1)!.note).toMatch(/the unit answers the same from its guest cache$/);
    expect(explain().slice(0, -1)).toEqual(fresh.slice(0, -1));
  });

  it("sets what the IOTLB answers beside what the tables say now", () => {
    const { rig, move, read, explain, entries } = nested();
    read();
    move(AFTER);
    expect(read()).toMatchObject({ pa: BEFORE });
    expect(entries()).toHaveLength(ENTRIES);
    const steps = explain();
    expect(steps.find(({ what }) => what === "IOTLB")).toMatchObject({ cache: "stale" });
    expect(steps.at(-1)).toMatchObject({
      outcome: { ok: true, pa: BEFORE },
      note: "the unit answered from its IOTLB: 0x400000; the tables now say 0x500000",
    });
    rig.submit(iotlb({ G: 2, DID: 1 }));
    expect(explain().at(-1)).toMatchObject({ outcome: { pa: AFTER } });
    expect(explain().some(({ cache }) => cache !== undefined)).toBe(false);
  });

  it("reveals a guest address that is remembered as it was, and what the unit makes of it", () => {
    const { rig, move, read, explain } = nested();
    read();
    move(AFTER);
    rig.submit(firstStage);
    const steps = explain();
    const stale = steps.filter(({ cache }) => cache === "stale");
    expect(stale.map(({ what }) => what)).toEqual(["guest cache"]);
    expect(stale[0]!.note).toMatch(
      /guest address 0x200000000 is remembered to be 0x400000\. That is not what the tables say \(.*0x500000/,
    );
    expect(steps.at(-1)).toMatchObject({
      outcome: { ok: true, pa: BEFORE },
      note: "the unit answered from its guest cache: 0x400000; the tables now say 0x500000",
    });
    expect(read()).toMatchObject({ pa: BEFORE });
  });

  it("says what the tables refuse and the unit still allows", () => {
    const { move, read, explain, rig } = nested();
    read();
    rig.mapPage(rig.tablesOf(RID).second, 4, GUEST, BEFORE, 12, 0);
    expect(explain().at(-1)!.note).toMatch(
      /^the unit answered from its IOTLB: 0x400000; the tables now say .*SS-PTE at 0x[0-9a-f]+ is not present/,
    );
    move(BEFORE);
    expect(explain().at(-1)!.note).toMatch(/answers the same from its IOTLB$/);
  });

  it("walks what a remembered PASID table entry names, after what the present one names", () => {
    const { rig, read, explain } = nested();
    read();
    const table = rig.memory.allocate(1);
    rig.mapFirst(table, IOVA, AFTER, 12, 3);
    const { second } = rig.tablesOf(RID);
    rig.pasid(RID, 0, { PGTT: Pgtt.nested, DID: 1, FSPTPTR: table, SSPTPTR: second, WPE: true });
    rig.submit(iotlb({ G: 2, DID: 1 }));
    const steps = explain();
    const at = steps.findIndex(({ what }) => what === "PASID cache");
    const roots = (from: number, to: number) =>
      steps
        .slice(from, to)
        .filter(({ what }) => what === "FS-PML4E")
        .map(({ address }) => address);
    expect(roots(0, at)).toEqual([table]);
    expect(roots(at, steps.length)).toEqual([rig.tablesOf(RID).first]);
    expect(steps.at(-1)!.note).toBe(
      "the unit answered from its PASID cache: 0x400000; the tables now say 0x500000",
    );
    expect(read()).toMatchObject({ pa: BEFORE });
  });
});
