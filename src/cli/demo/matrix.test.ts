/** The matrix of guests and hosts, as the manual prints it. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { PRESETS } from "../../machine/presets.ts";
import { plain } from "../../trace/explain.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { type Cell, cellOf, type MatrixGuest, matrix, matrixLines, tellMatrix } from "./matrix.ts";
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

  it("only what the host lacks is a refusal: an aperture, a size of pages, a unit", () => {
    const lifeOf = (tell: MatrixGuest["tell"]) => cellOf({ name: "x", tell }, "vtd", PRESETS.get("vtd")!);
    const refused = (reason: string, claims = 0) =>
      lifeOf((_stage, teller) => {
        for (let claim = 0; claim < claims; claim++) teller.claim("so far", true);
        throw new LinuxError("EOPNOTSUPP", reason);
      });
    for (const reason of [
      "the host has no aperture for guest memory, which is at 0x0-0xfff: it maps 0x1000-0xffff",
      "the host maps pages of 65536 bytes, and the guest's tables have pages of 4096",
    ]) {
      expect(refused(reason)).toMatchObject({ claims: 0, wrong: [], refusal: reason });
      expect(refused(reason, 2)).toMatchObject({ claims: 2, wrong: [reason], refusal: undefined });
    }
    const mishap = "host memory has no free frame for a table";
    expect(refused(mishap)).toMatchObject({ wrong: [mishap], refusal: undefined });
    expect(lifeOf(() => {}).wrong).toEqual(["nothing was checked"]);
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
