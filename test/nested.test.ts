/** Nested translation by a C program and by the modelled guest of the demo: both do the same on the host. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ROOT, softiommu } from "./support/run.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-test-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** What makes translation nested, by name. */
const NESTING = new Set([
  "IOMMU_GET_HW_INFO",
  "IOMMU_IOAS_ALLOC",
  "IOMMU_IOAS_MAP",
  "IOMMU_FAULT_QUEUE_ALLOC",
  "IOMMU_HWPT_ALLOC",
  "IOMMU_HWPT_INVALIDATE",
  "VFIO_DEVICE_BIND_IOMMUFD",
  "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
  "VFIO_DEVICE_DETACH_IOMMUFD_PT",
]);

const namesIn = (file: string): string[] =>
  readFileSync(file, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as { readonly details?: string })
    .flatMap(({ details }) => (details === undefined ? [] : [details.split(" ")[0]!]));

describe("nested translation on the machine vtd", () => {
  it("by a C program: its table, its PASID, a page that is asked for; the same requests as the demo's VMM", async () => {
    const program = join(folder, "vfio-nested");
    const flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror"];
    const source = join(ROOT, "examples/vfio-nested.c");
    expect(spawnSync("cc", [...flags, "-o", program, source], { encoding: "utf8" }).stderr).toBe("");
    const trace = join(folder, "trace.jsonl");
    const { status, stdout, stderr } = await softiommu(
      "run",
      "--trace",
      trace,
      "--",
      program,
      "0000:05:00.0",
    );
    expect(stderr).toBe("");
    expect(stdout).toContain("nested translation works: every byte was right");
    expect(stdout).not.toContain("FAIL");
    expect(status).toBe(0);
    const made = new Set(namesIn(trace).filter((name) => NESTING.has(name)));
    expect(made).toEqual(NESTING);
    const told = await softiommu("demo", "nested", "--json");
    const { calls } = JSON.parse(told.stdout) as { readonly calls: readonly { readonly name: string }[] };
    expect(new Set(calls.map(({ name }) => name).filter((name) => NESTING.has(name)))).toEqual(NESTING);
  });

  it.each(["skip-flush", "stale-iotlb", "wrong-page", "wrong-pasid", "lost-response"])(
    "the demo fails when %s is injected",
    async (fault) => {
      const { status, stdout } = await softiommu("demo", "nested", `--break=${fault}`);
      expect(stdout).toContain("✗");
      expect(status).toBe(1);
    },
  );
});
