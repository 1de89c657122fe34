import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { runsFolder } from "./places.ts";

describe("the folder of runs", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync("/tmp/places-");
    for (const name of ["with blank", "with:colon", "x".repeat(80)]) mkdirSync(join(folder, name));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it("is TMPDIR", () => expect(runsFolder(folder)).toBe(folder));

  it.each(["with blank", "with:colon", "x".repeat(80), "absent"])("is /tmp where TMPDIR is …/%s", (name) =>
    expect(runsFolder(join(folder, name))).toBe("/tmp"),
  );

  it("is /tmp where TMPDIR is relative or a file", () => {
    expect(runsFolder(".")).toBe("/tmp");
    expect(runsFolder("/etc/passwd")).toBe("/tmp");
  });
});
