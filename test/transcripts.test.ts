/**
 * The recorded programs through the real library: a replayer in C makes their calls under `softiommu run` and compares
 * every answer with Linux's. The same programs run in-process beside the rooms they are about.
 */
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { client, ROOT, softiommu } from "./support/run.ts";

const MOCK = [
  "access",
  "dirty",
  "fault",
  "hwpt",
  "ioas",
  "ioas_long",
  "ioas_reserved",
  "malformed",
  "map_file",
  "mixed",
  "pasid",
  "vfio_compat",
  "viommu",
];
/** Recorded with one device, alone in its group, behind a VT-d unit. */
const VTD = ["vfio_cdev", "vfio_legacy"];
const DEVICE = ["--group", "/dev/vfio/0", "--cdev", "/dev/vfio/devices/vfio0", "--bdf", "0000:01:00.0"];

describe("Linux 7.2's answers, through the preload library", () => {
  let replay: string;
  beforeAll(() => {
    replay = client("replay");
  });

  const passes = async (machine: string, name: string, ...options: string[]): Promise<void> => {
    const file = join(ROOT, "test/data/transcripts", `${name}.jsonl`);
    const { status, stdout, stderr } = await softiommu(
      ...["run", "--machine", machine, "--", replay, "--check", "--strict-ids", ...options, file],
    );
    expect(stdout.split("\n").filter((line) => !line.startsWith("PASS"))).toEqual([
      expect.stringMatching(/^(\d+) programs, \1 passed, 0 failed, (\d+)\/\2 steps equal$/),
      "",
    ]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  };

  it.each(MOCK)("%s", (name) => passes("mock", name));
  it.each(VTD)("%s", (name) => passes("vtd", name, ...DEVICE));
});
