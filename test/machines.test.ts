/**
 * Debian's own qemu-io and the guided tour on the hosts that are not Intel's, and a program for guests on AMD's. Programs for
 * iommufd and containers are in `cdev.test.ts`.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { PRESETS } from "../src/machine/presets.ts";
import { client, hasQemu, scratch, softiommu } from "./support/run.ts";

const MACHINES = ["smmuv3", "amd", "s390", "power"] as const;

describe.each(MACHINES)("qemu-io on the machine %s", (machine) => {
  it.skipIf(!hasQemu).each(["nvme://0000:01:00.0/1", "nvme://0000:02:00.0/1"])(
    "writes and reads back %s",
    async (disk) => {
      const { status, stdout, stderr } = await softiommu(
        ...["run", "--quiet", "--machine", machine, "--", "qemu-io", "-f", "raw"],
        ...["-c", "write -P 0xa5 0 1M", "-c", "read -P 0xa5 0 1M", disk],
      );
      expect(stderr).toBe("");
      expect(stdout).toMatch(/wrote 1048576\/1048576[\s\S]*read 1048576\/1048576/);
      expect(status).toBe(0);
    },
  );
});

describe.each(MACHINES)("softiommu demo basics on the machine %s", (machine) => {
  it("holds every claim", async () => {
    const { status, stdout } = await softiommu("demo", "basics", "--machine", machine);
    expect(stdout).toMatch(/(\d+) of \1 claims hold/);
    expect(status).toBe(0);
  });

  it("fails where invalidations are lost", async () => {
    const { status } = await softiommu("demo", "basics", "--machine", machine, "--break", "skip-flush");
    expect(status).not.toBe(0);
  });
});

describe("the extension amd-nesting", () => {
  it("nests guests by system calls on a machine that has it; and the machine amd makes no nested tables", async () => {
    const file = join(scratch(), "nesting.yaml");
    writeFileSync(file, `${PRESETS.get("amd")!}extensions: [amd-nesting]\n`);
    const works = await softiommu("run", "--quiet", "--machine", file, "--", client("amd-nested"));
    expect(works).toMatchObject({
      status: 0,
      stderr: "",
      stdout: "the host's unit read the guest's tables\n",
    });
    const { status, stderr } = await softiommu(
      "run",
      "--quiet",
      "--machine",
      "amd",
      "--",
      client("amd-nested"),
    );
    expect(stderr).toContain("answer(low, second, 0) == 0");
    expect(status).toBe(1);
  });
});
