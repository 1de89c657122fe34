import { describe, expect, it } from "vitest";
import { parseMachine } from "../../machine/file.ts";
import { PRESETS } from "../../machine/presets.ts";
import { plain } from "../../trace/explain.ts";
import { FAULTS, type Fault } from "./faults.ts";
import { recordOf } from "./record.ts";
import { Stage } from "./stage.ts";
import { placeOf, STORIES, tellStory } from "./stories.ts";
import { Teller } from "./story.ts";

/** The story on the preset, with what was said; claims that do not hold first of all. */
const tell = (name: string, preset: string, faults: readonly Fault[] = []) => {
  const lines: string[] = [];
  const teller = new Teller(plain, (line) => lines.push(line));
  const story = STORIES.get(name)!;
  const description = placeOf(story, parseMachine(PRESETS.get(preset)!, preset));
  const stage = new Stage(description, new Set(faults));
  try {
    tellStory(story, stage, teller);
    const wrong = teller.claims.filter(({ holds }) => !holds).map(({ claim }) => claim);
    return { wrong, claims: teller.claims.length, lines, record: recordOf(stage) };
  } finally {
    stage.close();
  }
};

const TOLD: readonly (readonly [story: string, preset: string])[] = [
  ["basics", "vtd"],
  ["basics", "amd"],
  ["basics", "s390"],
  ["basics", "power"],
  ["nested", "vtd"],
  ["nested", "smmuv3"],
  ["nested", "amd"],
  ["vsva", "vtd-vsva"],
  ["anchors", "s390"],
  ["windows", "power"],
  ["snp", "snp"],
  ["virtio", "vtd"],
  ["virtio", "vtd-legacy"],
  ["virtio", "smmuv3"],
  ["virtio", "amd"],
  ["virtio", "s390"],
  ["virtio", "power"],
  ["fallback", "vtd"],
  ["fallback", "vtd-legacy"],
  ["fallback", "smmuv3"],
  ["fallback", "amd"],
  ["fallback", "s390"],
  ["fallback", "power"],
];

it("every story is told here", () => {
  expect(new Set(TOLD.map(([name]) => name))).toEqual(new Set(STORIES.keys()));
});

describe.each(TOLD)("the story %s on %s", (name, preset) => {
  const { faults } = STORIES.get(name)!;
  it("holds", () => {
    const { wrong, claims } = tell(name, preset);
    expect(wrong).toEqual([]);
    expect(claims).toBeGreaterThan(5);
  });

  it.each(faults)("fails when %s is injected, and says what does not hold", (fault) => {
    expect(FAULTS[fault]).not.toBe("");
    expect(tell(name, preset, [fault]).wrong).not.toEqual([]);
  });
});

describe("what a story records", () => {
  it("is every call of the VMM in bytes, what the device moved, and faults", () => {
    const { record } = tell("fallback", "vtd");
    expect(record.calls.map(({ name }) => name)).toEqual(
      expect.arrayContaining(["VFIO_DEVICE_BIND_IOMMUFD", "IOMMU_IOAS_MAP", "IOMMU_IOAS_UNMAP"]),
    );
    const map = record.calls.find(({ name }) => name === "IOMMU_IOAS_MAP")!;
    expect(map).toMatchObject({ kind: "iommufd", request: "0x3b85" });
    expect(map.given).toMatch(/^28000000[0-9a-f]{72}$/);
    const bytes = Buffer.from("bytes of a guest").toString("hex");
    expect(record.transfers).toContainEqual({
      direction: "read",
      address: "0x40000000",
      result: "done",
      bytes,
    });
    expect(record.faults).toContainEqual(expect.objectContaining({ address: "0x40010000" }));
    expect(() => JSON.stringify(record)).not.toThrow();
  });
});
