/**
 * Nested translation by C programs and by the modelled guest of the demo: they do the same on the host, request by
 * request, and their devices see the same.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Stage } from "../src/cli/demo/stage.ts";
import { placeOf, STORIES, tellStory } from "../src/cli/demo/stories.ts";
import { Teller } from "../src/cli/demo/story.ts";
import { parseMachine } from "../src/machine/file.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { plain } from "../src/trace/explain.ts";
import { printArgument } from "../src/uapi/requests.ts";
import { ROOT, softiommu } from "./support/run.ts";

/** Where the demo has its test function. */
const DEVICE = "0000:7f:00.0";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-test-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Of a trace file, or of the demo. */
interface Told {
  readonly kind: string;
  readonly [field: string]: unknown;
}

/** Descriptors and addresses of the program's own memory. */
const OWN = /\b(iommufd|user_va|data_uptr|data)=((0x)?[0-9a-f]+|\[.*?\])/g;
const request = (text: string): string => text.replace(OWN, "$1=…");

/** A 64-bit value is hexadecimal text in a trace, and in an event it is a number of either kind. */
const number = (value: unknown): unknown =>
  typeof value === "number" || typeof value === "bigint" || typeof value === "string" ? BigInt(value) : value;

/** What the unit was told to forget and answer, and what it refused; not where its tables are. */
const ofUnit = (events: readonly Told[]): unknown[] => {
  const last = events.findLastIndex(({ kind }) => kind === "fault");
  return events.slice(0, last + 1).flatMap((event) => {
    if (event.kind === "command")
      return /^(SYNC|invalidation wait|COMPLETION_WAIT)/.test(String(event["command"]))
        ? []
        : [event["command"]];
    if (event.kind !== "fault") return [];
    const { unit, rid, pasid, address, access, code, reason, recorded, level } = event;
    return [
      { unit, rid: number(rid), pasid, address: number(address), access, code, reason, recorded, level },
    ];
  });
};

/** The demo's story. */
const tell = (preset: string) => {
  const story = STORIES.get("nested")!;
  const stage = new Stage(placeOf(story, parseMachine(PRESETS.get(preset)!, preset)), new Set());
  const events: Told[] = [];
  const { units } = stage.machine;
  stage.events.listen(({ kind, fields }) => {
    // The guest has a unit too.
    if (units.has(String(fields["unit"]))) events.push({ ...fields, kind });
  });
  try {
    tellStory(story, stage, new Teller(plain, () => {}));
    const requests = stage.calls.map(({ kind, name, request: at, given }) =>
      request(`${name} ${printArgument(kind, at, given)}`),
    );
    const transfers = stage.transfers.map(({ direction, address, pasid = 0, result, bytes }) =>
      `dma ${direction} 0x${address.toString(16)} pasid ${pasid} ${result} ${Buffer.from(bytes).toString("hex")}`.trim(),
    );
    return { requests, transfers, unit: ofUnit(events) };
  } finally {
    stage.close();
  }
};

/** What to say as `--machine` for a program that needs it to nest: the preset, or a file with the extension. */
const machineFor = (preset: string): string => {
  const extension =
    STORIES.get("nested")!.extensions?.[parseMachine(PRESETS.get(preset)!, preset).units[0]!.model];
  if (extension === undefined) return preset;
  const path = join(folder, `${preset}.yaml`);
  writeFileSync(path, `${PRESETS.get(preset)}extensions: [${extension}]\n`);
  return path;
};

/** The C program's. */
const run = async (preset: string, name: string) => {
  const program = join(folder, name);
  const flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror"];
  const source = join(ROOT, `examples/${name}.c`);
  expect(spawnSync("cc", [...flags, "-o", program, source], { encoding: "utf8" }).stderr).toBe("");
  const trace = join(folder, `${name}.jsonl`);
  const { status, stdout, stderr } = await softiommu(
    ...["run", "--machine", machineFor(preset), "--device", `test@${DEVICE}`, "--trace", trace],
    ...["--", program, DEVICE],
  );
  expect(stderr).toBe("");
  expect(stdout).toContain("nested translation works: every byte was right");
  expect(stdout).not.toContain("FAIL");
  expect(status).toBe(0);
  const events = readFileSync(trace, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Told);
  const calls = events.filter(({ kind, call }) => kind === "call" && call === "ioctl");
  // Before there is a program the driver has brought the unit up.
  const started = events.findIndex(({ kind }) => kind === "call");
  return {
    requests: calls.map(({ details }) => request(String(details))),
    transfers: stdout
      .split("\n")
      .filter((line) => line.startsWith("dma "))
      .map((line) => line.trim()),
    unit: ofUnit(events.slice(started)),
  };
};

describe.each([
  ["vtd", "vfio-nested", 40],
  ["smmuv3", "vfio-nested-arm", 54],
  ["amd", "vfio-nested-amd", 41],
])("nested translation on the machine %s", (preset, program, requests) => {
  it("by a C program is what the demo's VMM does: requests, bytes, faults, what the unit was told", async () => {
    const made = await run(preset, program);
    const told = tell(preset);
    expect(made.requests).toEqual(told.requests);
    expect(made.transfers).toEqual(told.transfers);
    expect(made.unit).toEqual(told.unit);
    expect(made.requests).toHaveLength(requests);
    expect(made.transfers).toHaveLength(17);
    expect(made.unit.length).toBeGreaterThan(20);
  });

  it.each(["skip-flush", "stale-iotlb", "wrong-page", "wrong-pasid", "lost-response"])(
    "the demo fails when %s is injected",
    async (fault) => {
      const { status, stdout } = await softiommu("demo", "nested", "--machine", preset, `--break=${fault}`);
      expect(stdout).toContain("✗");
      expect(status).toBe(1);
    },
  );
});
