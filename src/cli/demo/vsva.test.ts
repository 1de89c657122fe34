import { expect, it } from "vitest";
import { parseMachine } from "../../machine/file.ts";
import { PRESETS } from "../../machine/presets.ts";
import { plain } from "../../trace/explain.ts";
import { GuestStage } from "./guest-stage.ts";
import { Stage, type Transfer } from "./stage.ts";
import { Teller } from "./story.ts";
import { GREETING, living, TEXT } from "./vsva.ts";

/** PASIDs by their order: which numbers they are is a matter of who gives them out. */
const renamed = (transfers: readonly Transfer[]): unknown[] => {
  const seen: number[] = [];
  return transfers.map(({ pasid, bytes, ...transfer }) => {
    if (pasid !== undefined && !seen.includes(pasid)) seen.push(pasid);
    const name = pasid === undefined ? "none" : seen.indexOf(pasid);
    return { ...transfer, pasid: name, bytes: Buffer.from(bytes).toString() };
  });
};

/** What the device does, and what the VMM asks, when the guest is on that interface. */
const live = (follow: "bound" | "nested") => {
  const stage = new Stage(parseMachine(PRESETS.get("vtd-vsva")!, "vtd-vsva"), new Set());
  try {
    const scene = new GuestStage(stage, follow);
    scene.vmm.memory.writeBytes(GREETING, Buffer.from(TEXT));
    const teller = new Teller(plain, () => {});
    living(scene, teller);
    const wrong = teller.claims.filter(({ holds }) => !holds);
    scene.vmm.exit();
    return {
      wrong,
      claims: teller.claims.length,
      transfers: renamed(stage.transfers),
      kinds: new Set(stage.calls.map(({ kind }) => kind)),
      left: Object.values(stage.machine.live()).filter((count) => count !== 0),
    };
  } finally {
    stage.close();
  }
};

it("the same guest by iommufd and by the interface of 2020: its device does the same, byte by byte", () => {
  const [bound, nested] = [live("bound"), live("nested")];
  expect(bound.wrong).toEqual([]);
  expect(nested.wrong).toEqual([]);
  expect(bound.transfers).toEqual(nested.transfers);
  expect(bound.transfers.length).toBeGreaterThan(12);
  expect(bound.claims).toBe(nested.claims);
  expect(bound.kinds).not.toContain("iommufd");
  expect(nested.kinds).toEqual(new Set(["iommufd", "vfio-device"]));
  expect([bound.left, nested.left]).toEqual([[], []]);
});
