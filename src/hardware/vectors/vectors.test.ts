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

describe("running a vector", () => {
  const [first] = load("../vtd/data/vtd-legacy.jsonl") as [Vector];
  const run = (changes: Partial<Vector>) => runVector({ ...first, ...changes }, vtdSubject);

  it("tells an outcome that differs, and where the access landed", () => {
    const { failures } = run({ expect: { result: "ok", pa: "0x1000" } });
    expect(failures).toEqual([expect.stringContaining("ok 0x1a9d87240+8, recorded ok 0x1000")]);
  });

  it("tells a register, a memory word and a fault record that differ", () => {
    const after = [{ read: ["0x1c", 4, "0x0"] }, { check64: ["0xf249000", "0x1"] }] as const;
    const { failures } = run({
      after,
      expect: { ...first.expect, fault: { fsts: "0x2", frcd: ["0x0", "0x0"] } },
    });
    expect(failures.map((failure) => failure.split(":")[0])).toEqual(["access", "after 0", "after 1"]);
  });

  it("does not judge what a deviation names", () => {
    const wrong = { expect: { result: "fault", fault: { fsts: "0x1" } } } as const;
    expect(run({ ...wrong, deviation: "result: it differs" })).toMatchObject({
      judged: "nothing",
      failures: [],
    });
    const record = run({ ...wrong, deviation: "record: it differs" });
    expect(record.judged).toBe("outcomes");
    expect(record.failures.length).toBe(1);
  });

  it("a line that is no vector is refused with its number", () => {
    expect(() => parseVectors('{"name":1}')).toThrow("line 1: not a vector");
    expect(() => parseVectors("\n{")).toThrow(/^line 2:/);
  });
});
