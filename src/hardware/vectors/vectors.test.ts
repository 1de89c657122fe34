import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { amdviSubject } from "./amdvi.ts";
import { reportVectors } from "./report.ts";
import { runVector } from "./run.ts";
import { smmuv3Subject } from "./smmuv3.ts";
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

describe("recorded translations of SMMUv3", () => {
  const counts: [string, number, number, number][] = [
    ["s1", 230, 8, 15],
    ["s2", 135, 5, 49],
    ["nested", 126, 6, 35],
    ["commands", 99, 9, 1],
  ];
  it.each(counts)("%s: all come out as recorded, but for what deviates", (name, all, nothing, outcomes) => {
    const vectors = load(`../smmuv3/data/smmuv3-${name}.jsonl`);
    const reports = vectors.map((vector) => runVector(vector, smmuv3Subject));
    expect(reports.filter(({ failures }) => failures.length > 0)).toEqual([]);
    const judged = (how: string) => reports.filter((report) => report.judged === how).length;
    expect([vectors.length, judged("nothing"), judged("outcomes")]).toEqual([all, nothing, outcomes]);
  });
});

describe("recorded translations of AMD-Vi", () => {
  const vectors = load("../amdvi/data/amdvi.jsonl");
  const reports = vectors.map((vector) => runVector(vector, amdviSubject));

  it("come out as recorded, but for what the recordings say deviates", () => {
    expect(reports.filter(({ failures }) => failures.length > 0)).toEqual([]);
    const judged = (how: string) => reports.filter((report) => report.judged === how).length;
    expect([vectors.length, judged("nothing"), judged("outcomes")]).toEqual([292, 88, 83]);
  });
});

describe("a report on files", () => {
  const text = readFileSync(new URL("../smmuv3/data/smmuv3-s2.jsonl", import.meta.url), "utf8");
  const [line] = text.split("\n") as [string];

  it("counts, and tells what failed", () => {
    const broken = line.replace(/"expect":\{[^}]*\}/, '"expect":{"result":"ok","pa":"0x1000"}');
    const other = line.replace('"smmuv3"', '"other"');
    const elsewhere = line.replace('"IDR5":"0x74"', '"IDR5":"0x174"');
    const files = [{ name: "some.jsonl", text: [line, broken, other, elsewhere].join("\n") }];
    const { lines, passed } = reportVectors(files);
    expect(passed).toBe(false);
    expect(lines.at(-1)).toBe("4 vectors, 1 as recorded, 0 known deviations, 3 failed");
    expect(lines.join("\n")).toContain("recorded ok 0x1000");
    expect(lines).toContain("  there is no model of the unit other");
    expect(lines).toContain("  IDR5 is 0x74, recorded 0x174");
    expect(reportVectors([{ name: "good", text: line }]).passed).toBe(true);
  });
});

describe("a report on what deviates", () => {
  it("tells deviations that the recordings mark from those that a rule found, and by which", () => {
    const text = readFileSync(new URL("../vtd/data/vtd-scalable.jsonl", import.meta.url), "utf8");
    const { lines, passed } = reportVectors([{ name: "vtd-scalable", text }]);
    expect(passed).toBe(true);
    expect(lines).toEqual([
      "of 60 known deviations 43 are marked in the recordings, 17 found by rule:",
      expect.stringMatching(/^ {2}16: a root or context entry .* code of legacy mode \(§7\.1\.3\)$/),
      expect.stringMatching(/^ {2}1: a write does not set the dirty bit/),
      "229 vectors, 169 as recorded, 60 known deviations, 0 failed",
    ]);
  });
});

describe("recorded translations of VT-d in scalable mode", () => {
  const vectors = load("../vtd/data/vtd-scalable.jsonl");
  const reports = vectors.map((vector) => runVector(vector, vtdSubject));

  it("are all that was recorded; deviations that are not marked are 16 fault codes and a dirty bit", () => {
    expect(vectors.length).toBe(229);
    const judged = (how: string) => reports.filter((report) => report.judged === how).length;
    expect({ nothing: judged("nothing"), outcomes: judged("outcomes") }).toEqual({
      nothing: 18,
      outcomes: 25 + 17,
    });
    expect(reports.filter(({ rules }) => rules.length > 0).length).toBe(17);
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
