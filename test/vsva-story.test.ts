/**
 * Virtual SVA by the interface of 2020, from a C program and from the modelled guest of the demo: they bind the same tables to
 * the same PASIDs in the same order, and their devices see the same.
 */
import { spawnSync } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Stage } from "../src/cli/demo/stage.ts";
import { STORIES, tellStory } from "../src/cli/demo/stories.ts";
import { Teller } from "../src/cli/demo/story.ts";
import { parseMachine } from "../src/machine/file.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { plain } from "../src/trace/explain.ts";
import { printArgument } from "../src/uapi/requests.ts";
import { ROOT, scratch, softiommu } from "./support/run.ts";

const MACHINE = "vtd-vsva";
/** Where the demo has its test function, and a function for somebody else. */
const DEVICE = "0000:7f:00.0";
const OTHER = "0000:06:00.0";

let folder: string;
beforeAll(() => {
  folder = scratch();
});
afterAll(() => rmSync(folder, { recursive: true }));

/** What a request does to PASIDs and tables; invalidations and where tables lie are the guest's own matter. */
const kept = (requests: readonly string[]): string[] =>
  requests.flatMap((text) => {
    const asked = /^VFIO_IOMMU_PASID_REQUEST \{ flags=(\w+)/.exec(text)?.[1];
    if (asked !== undefined) return [asked];
    const [, operation, pasid] = /op=(\w+_PGTBL).*?hpasid=(\w+)/.exec(text) ?? [];
    return operation === undefined ? [] : [`${operation} ${pasid}`];
  });

const tell = () => {
  const stage = new Stage(parseMachine(PRESETS.get(MACHINE)!, MACHINE), new Set());
  try {
    tellStory(STORIES.get("vsva")!, stage, new Teller(plain, () => {}));
    const requests = stage.calls.map(
      ({ kind, name, request, given }) => `${name} ${printArgument(kind, request, given)}`,
    );
    const transfers = stage.transfers.map(({ direction, address, pasid = 0, result, bytes }) =>
      `dma ${direction} 0x${address.toString(16)} pasid ${pasid} ${result} ${Buffer.from(bytes).toString("hex")}`.trim(),
    );
    return { requests: kept(requests), transfers };
  } finally {
    stage.close();
  }
};

const run = async () => {
  const program = join(folder, "vfio-vsva");
  const flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror"];
  const source = join(ROOT, "examples/vfio-vsva.c");
  expect(spawnSync("cc", [...flags, "-o", program, source], { encoding: "utf8" }).stderr).toBe("");
  const trace = join(folder, "trace.jsonl");
  const { status, stdout, stderr } = await softiommu(
    ...["run", "--machine", MACHINE, "--device", `test@${DEVICE}`, "--trace", trace],
    ...["--", program, DEVICE, OTHER],
  );
  expect(stderr).toBe("");
  expect(stdout).toContain("virtual SVA works: every byte was right");
  expect(status).toBe(0);
  const requests = readFileSync(trace, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map(
      (line) =>
        JSON.parse(line) as { readonly kind: string; readonly call?: string; readonly details?: string },
    )
    .flatMap(({ kind, call, details = "" }) => (kind === "call" && call === "ioctl" ? [details] : []));
  const transfers = stdout.split("\n").filter((line) => line.startsWith("dma "));
  return { requests: kept(requests), transfers: transfers.map((line) => line.trim()) };
};

describe("virtual SVA on the machine vtd-vsva", () => {
  it("by a C program is what the demo's VMM does: PASIDs, tables, and every byte of the device", async () => {
    const made = await run();
    const told = tell();
    expect(made.transfers).toEqual(told.transfers);
    expect(made.transfers).toHaveLength(15);
    // The demo's third process has a work queue as well. The C program's trace has the other program's PASID too.
    expect(told.requests.filter((request) => request === "BIND_PGTBL 0x3")).toHaveLength(2);
    const expected = [...told.requests];
    expected.splice(expected.lastIndexOf("BIND_PGTBL 0x3"), 1, "ALLOC");
    expect(made.requests).toEqual(expected);
  });

  it.each(["skip-flush", "stale-iotlb", "wrong-page", "wrong-pasid", "lost-response", "wrong-owner"])(
    "the demo fails when %s is injected",
    async (fault) => {
      const { status, stdout } = await softiommu("demo", "vsva", `--break=${fault}`);
      expect(stdout).toContain("✗");
      expect(status).toBe(1);
    },
  );

  it("the demo's record has every call in bytes, and its calls are those of the legacy container alone", async () => {
    const { status, stdout } = await softiommu("demo", "vsva", "--json");
    expect(status).toBe(0);
    const told = JSON.parse(stdout) as {
      machine: string;
      ok: boolean;
      calls: { kind: string; given: string }[];
    };
    expect(told).toMatchObject({ machine: MACHINE, ok: true });
    expect(new Set(told.calls.map(({ kind }) => kind))).toEqual(
      new Set(["vfio-group", "vfio-container", "vfio-container:nesting", "vfio-device"]),
    );
    expect(told.calls.filter(({ kind, given }) => kind !== "vfio-container" && given === "")).toEqual([]);
  });
});
