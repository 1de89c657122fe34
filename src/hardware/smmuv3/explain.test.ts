import { describe, expect, it } from "vitest";
import { access, requestOf } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { Opcode } from "./queue-spec.ts";
import { readWrite, SmmuRig, sync, tlbi } from "./rig.suite.ts";
import { Config } from "./spec.ts";

const RID = 0x18;
const steps = (rig: SmmuRig, iova: number, what: number = Access.read, pasid = -1) => [
  ...rig.unit.explain(requestOf(RID, iova, what, pasid)),
];
const reasonOf = (rig: SmmuRig, iova: number, what?: number, pasid?: number): string => {
  const { outcome } = steps(rig, iova, what, pasid).at(-1)!;
  return outcome!.ok ? "ok" : outcome!.reason;
};

describe("an explained transaction", () => {
  it("tells every structure and entry in the order they are fetched", () => {
    const rig = new SmmuRig({ stages: "nested" });
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    rig.enable();
    const told = steps(rig, 0x5000).map(({ what }) => what);
    expect(told[0]).toBe("stream table entry");
    expect(told.filter((what) => what === "context descriptor")).toHaveLength(1);
    // Four levels of stage 1, each through two of stage 2; the context descriptor and the page too.
    expect(told.filter((what) => /^L\d descriptor/.test(what)).length).toBeGreaterThan(4);
    expect(told.at(-1)).toBe("outcome");
  });

  it("says what is remembered when the tables say something else, and that it is used", () => {
    const rig = new SmmuRig();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    rig.enable();
    access(rig, RID, 0x5000);
    expect(steps(rig, 0x5000).some(({ what }) => what === "IOTLB")).toBe(false);
    rig.map(RID, 0x5000, 0x50_0000, 12, readWrite);
    const held = steps(rig, 0x5000);
    expect(held.find(({ what }) => what === "IOTLB")?.note).toMatch(/0x400000.*0x500000/);
    expect(held.at(-1)?.outcome).toMatchObject({ ok: true, pa: 0x40_0000 });
    rig.ste(RID, { CONFIG: Config.abort });
    expect(steps(rig, 0x5000).some(({ what }) => /^configuration cache/.test(what))).toBe(true);
  });

  it("tells every entry of both stages when guest addresses are remembered, and reveals one that is as it was", () => {
    const rig = new SmmuRig({ stages: "nested" });
    const guest = 0x40_0000_0000;
    const { stage2 } = rig.stream(RID);
    rig.mapStage2(stage2, guest, 0x40_0000, 12, readWrite);
    rig.map(RID, 0x5000, guest, 12, readWrite);
    rig.enable();
    const entries = () => steps(rig, 0x5000).filter(({ level }) => level !== undefined).length;
    const fresh = entries();
    access(rig, RID, 0x5000);
    rig.submit(tlbi(Opcode.TLBI_NH_ALL, { VMID: 1 }), sync());
    expect(entries()).toBe(fresh);
    expect(steps(rig, 0x5000).at(-1)!.note).toMatch(/the unit answers the same from its guest cache$/);
    // The page of stage 1 moves in stage 2.
    rig.mapStage2(stage2, guest, 0x50_0000, 12, readWrite);
    const told = steps(rig, 0x5000);
    expect(told.filter(({ cache }) => cache === "stale").map(({ what }) => what)).toEqual(["guest cache"]);
    expect(told.at(-1)).toMatchObject({
      outcome: { ok: true, pa: 0x40_0000 },
      note: "the unit answered from its guest cache: 0x400000; the tables now say 0x500000",
    });
  });

  it("says why: the event, its section, the entry and the field", () => {
    const rig = new SmmuRig();
    rig.map(RID, 0x5000, 0x40_0000, 12, Access.read);
    expect(reasonOf(rig, 0x5000)).toBe("ok");
    rig.enable();
    expect(reasonOf(rig, 0x5000, Access.write)).toMatch(
      /^F_PERMISSION \(§7\.3\.16\).*AP\[2\] = 1 denies write/,
    );
    expect(reasonOf(rig, 0x6000)).toMatch(/^F_TRANSLATION \(§7\.3\.13\).*L3 descriptor.* not present/);
    expect(reasonOf(rig, 0x5000, Access.read, 4)).toMatch(/^C_BAD_SUBSTREAMID.*no substreams/);
    rig.ste(RID, { CONFIG: Config.stage1, S1CDMAX: 9 });
    expect(reasonOf(rig, 0x5000)).toMatch(/^C_BAD_STE.*S1CDMax = 9 is more than the 8 bits/);
    rig.ste(RID, { CONFIG: Config.abort });
    expect(reasonOf(rig, 0x5000)).toMatch(/^abort \(§5\.2\).*STE\.Config aborts/);
  });
});
