/** Debian's own qemu-io and the guided tour on the Arm host. Programs for iommufd and containers are in `cdev.test.ts`. */
import { describe, expect, it } from "vitest";
import { hasQemu, softiommu } from "./support/run.ts";

describe.skipIf(!hasQemu)("qemu-io on the machine smmuv3", () => {
  it.each(["nvme://0000:01:00.0/1", "nvme://0000:02:00.0/1"])("writes and reads back %s", async (disk) => {
    const { status, stdout, stderr } = await softiommu(
      ...["run", "--quiet", "--machine", "smmuv3", "--", "qemu-io", "-f", "raw"],
      ...["-c", "write -P 0xa5 0 1M", "-c", "read -P 0xa5 0 1M", disk],
    );
    expect(stderr).toBe("");
    expect(stdout).toMatch(/wrote 1048576\/1048576[\s\S]*read 1048576\/1048576/);
    expect(status).toBe(0);
  });
});

describe("softiommu demo basics on the machine smmuv3", () => {
  it("holds every claim", async () => {
    const { status, stdout } = await softiommu("demo", "basics", "--machine", "smmuv3");
    expect(stdout).toMatch(/(\d+) of \1 claims hold/);
    expect(status).toBe(0);
  });

  it("fails where invalidations are lost", async () => {
    const { status } = await softiommu("demo", "basics", "--machine", "smmuv3", "--break", "skip-flush");
    expect(status).not.toBe(0);
  });
});
