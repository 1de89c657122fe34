import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { runVector } from "./run.ts";
import { parseVectors, type Vector } from "./vector.ts";
import { vtdSubject } from "./vtd.ts";

const load = (path: string): Vector[] => parseVectors(readFileSync(new URL(path, import.meta.url), "utf8"));

describe("recorded translations of VT-d in legacy mode", () => {
  const vectors = load("../vtd/data/vtd-legacy.jsonl");
  const reports = vectors.map((vector) => runVector(vector, vtdSubject));

  it("are all that was recorded, most of them judged in full", () => {
    expect(vectors.length).toBe(392);
    const judged = (how: string) => reports.filter((report) => report.judged === how).length;
    expect({ nothing: judged("nothing"), outcomes: judged("outcomes") }).toEqual({ nothing: 9, outcomes: 1 });
  });

  it("come out as recorded", () => {
    const failed = reports.filter(({ failures }) => failures.length > 0);
    expect(failed).toEqual([]);
  });
});
