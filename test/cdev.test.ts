/** Programs that use iommufd with a real device: through its character device, and in a container's place. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { Random } from "../src/base/clock.ts";
import { hostOf, leftOver, runOn, start } from "./support/host.ts";
import { client } from "./support/run.ts";

describe.each([
  ["vtd", 20],
  ["smmuv3", 10],
  ["amd", 5],
  ["s390", 3],
  ["power", 5],
] as const)("an NVMe controller and iommufd, on the machine %s", (machine, seeds) => {
  let host: Host;
  beforeAll(() => {
    host = hostOf(machine);
  });
  afterAll(() => host.stop());

  const works = async (said: string, name: string, ...args: string[]) => {
    const { status, stdout, stderr } = await runOn(host, client(name), ...args);
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: `${said}\n`, stderr: "" });
    expect(await leftOver(host)).toEqual({});
  };

  it.each(["iommufd", "device"])(
    "bound as a character device: found, mapped, interrupted, moved between tables under load; %s closed first",
    (first) => works("data, interrupts and tables were right", "cdev-nvme", first),
  );

  it(`killed at a random moment, ${seeds} seeds: nothing is left of it, and the next one works`, async () => {
    const random = new Random(3);
    const program = client("cdev-nvme");
    for (let seed = 0; seed < seeds; seed++) {
      const child = start(host, program, seed % 2 === 0 ? "iommufd" : "device");
      const closed = new Promise((resolve) => child.once("close", resolve));
      await new Promise((resolve) => setTimeout(resolve, random.below(150)));
      child.kill("SIGKILL");
      await closed;
      expect(await leftOver(host)).toEqual({});
    }
    await works("data, interrupts and tables were right", "cdev-nvme", "device");
  });

  it("a program for containers that opens /dev/iommu instead reads and writes", () =>
    works("the container was an iommufd", "compat-nvme"));
});
