/** The matrix of guests and hosts, as the manual prints it. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { plain } from "../../trace/explain.ts";
import { type Cell, matrix, matrixLines, tellMatrix } from "./matrix.ts";
import { Teller } from "./story.ts";

const manual = readFileSync(new URL("../../../docs/fallback.md", import.meta.url), "utf8");

/** Each of the first two tells a story in every cell. */
const PATIENCE = { timeout: 300_000 };

describe("every guest on every host", PATIENCE, () => {
  it("runs with every claim true or is refused for what the host lacks, and docs/fallback.md says so", () => {
    const cells = matrix();
    expect(cells.filter(({ wrong }) => wrong.length > 0)).toEqual([]);
    expect(cells.every(({ claims, refusal }) => (refusal === undefined ? claims > 4 : refusal !== ""))).toBe(
      true,
    );
    expect(manual).toContain(matrixLines(cells).join("\n"));
  });

  it("a mistake of the VMM shows in every cell that it is made in", () => {
    const teller = new Teller(plain, () => {});
    tellMatrix(teller, new Set(["stale-iotlb"]));
    const wrong = teller.claims.filter(({ holds }) => !holds).map(({ claim }) => claim.split(" ")[0]);
    expect(new Set(wrong)).toEqual(
      new Set(["vtd-legacy", "vtd", "smmuv3", "amdvi", "zpci", "tce", "tce,", "virtio"]),
    );
  });

  it("a cell says how many claims were checked, that it fails, or which of the reasons it is refused for", () => {
    const cell = { guest: "virtio", claims: 7, wrong: [], refusal: undefined };
    const cells: Cell[] = [
      { ...cell, host: "one" },
      { ...cell, host: "two", wrong: ["the device reads the guest's bytes"] },
      { ...cell, host: "three", claims: 0, refusal: "no room" },
    ];
    const lines = matrixLines(cells);
    expect(lines).toContain("| virtio | runs, 7 claims | fails | refused (1) |");
    expect(lines.at(-1)).toBe("1. no room");
  });
});
