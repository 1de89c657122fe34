/** Programs on the Arm host: the same that use the Intel one, unchanged, and Debian's own qemu-io. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { Random } from "../src/base/clock.ts";
import { hostOf, leftOver, runOn, start } from "./support/host.ts";
import { client, hasQemu, softiommu } from "./support/run.ts";

describe("the machine smmuv3", () => {
  let host: Host;
  beforeAll(() => {
    host = hostOf("smmuv3");
  });
  afterAll(() => host.stop());

  const works = async (said: string, name: string, ...args: string[]) => {
    const { status, stdout, stderr } = await runOn(host, client(name), ...args);
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: `${said}\n`, stderr: "" });
    expect(await leftOver(host)).toEqual({});
  };

  it.each(["iommufd", "device"])(
    "a controller as a character device: found, mapped, interrupted, moved between tables under load; %s closed first",
    (first) => works("data, interrupts and tables were right", "cdev-nvme", first),
  );

  it("a program for containers that opens /dev/iommu instead reads and writes", () =>
    works("the container was an iommufd", "compat-nvme"));

  it("killed at a random moment, 10 seeds: nothing is left of it, and the next one works", async () => {
    const random = new Random(5);
    const program = client("cdev-nvme");
    for (let seed = 0; seed < 10; seed++) {
      const child = start(host, program, seed % 2 === 0 ? "iommufd" : "device");
      const closed = new Promise((resolve) => child.once("close", resolve));
      await new Promise((resolve) => setTimeout(resolve, random.below(150)));
      child.kill("SIGKILL");
      await closed;
      expect(await leftOver(host)).toEqual({});
    }
    await works("data, interrupts and tables were right", "cdev-nvme", "device");
  });
});

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
