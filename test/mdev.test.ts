/** Mediated devices by programs: a C client on the machine vtd-vsva, and a shell that makes and removes them. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { hostOf, leftOver, runOn } from "./support/host.ts";
import { client, softiommu } from "./support/run.ts";

const UUID = "0f0e0d0c-509f-382f-3c1e-e6bfe0fa1003";

describe("mediated devices", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "softiommu-test-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it("of one function are apart, come and go; a fault names requester and PASID, a refusal says why", async () => {
    const { status, stdout, stderr } = await softiommu(
      "run",
      "--machine",
      "vtd-vsva",
      "--explain",
      "--",
      client("mdev"),
    );
    expect(stdout).toMatch(/^fault of pasid \d+\nmdev\n$/);
    expect(status).toBe(0);
    const [, pasid] = /pasid (\d+)/.exec(stdout)!;
    expect(stderr).toContain(`DMA read by 07:00.0 pasid ${pasid} at`);
    expect(stderr).toContain("is not IOMMU-backed");
    expect(stderr).toMatch(
      /work queue stopped → PASID 6 in a descriptor has no table that its user has bound/,
    );
  });

  it("leave nothing behind but themselves", async () => {
    const host = hostOf("vtd-vsva");
    try {
      const { status, stderr } = await runOn(host, client("mdev"));
      expect(stderr).toBe("");
      expect(status).toBe(0);
      expect(await leftOver(host)).toEqual({});
      expect(host.machine.mdevs.devices.size).toBe(3);
    } finally {
      host.stop();
    }
  });

  it("are made and removed by a shell, and files say what there is", async () => {
    const script = join(folder, "mdev.sh");
    writeFileSync(
      script,
      `set -e
cd /sys/bus/pci/devices/0000:07:00.0/mdev_supported_types/softiommu_queues-queue
cat name device_api available_instances
echo ${UUID} > create
cat available_instances
test -L devices/${UUID} && test -L /sys/bus/mdev/devices/${UUID}
group=$(basename $(readlink /sys/bus/mdev/devices/${UUID}/iommu_group))
test -c /dev/vfio/$group && ls /sys/kernel/iommu_groups/$group/devices
basename $(readlink /sys/bus/mdev/devices/${UUID}/mdev_type)
echo 0 > /sys/bus/mdev/devices/${UUID}/remove
test -L devices/${UUID}
echo 1 > /sys/bus/mdev/devices/${UUID}/remove
cat available_instances
test ! -e devices/${UUID} && test ! -e /sys/bus/mdev/devices/${UUID} && test ! -e /dev/vfio/$group
basename $(readlink /sys/bus/pci/devices/0000:07:00.0/driver)
`,
    );
    const { status, stdout, stderr } = await softiommu("run", "--machine", "vtd-vsva", "--", "sh", script);
    expect(stderr).toBe("");
    expect(stdout).toBe(`queue\nvfio-pci\n2\n1\n${UUID}\nsoftiommu_queues-queue\n2\nsoftiommu_queues\n`);
    expect(status).toBe(0);
  });
});
