/** Programs that use iommufd with a real device: through its character device, and in a container's place. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { leftOver, runOn, vtdHost } from "./support/host.ts";
import { client } from "./support/run.ts";

describe("an NVMe controller and iommufd", () => {
  let host: Host;
  beforeAll(() => {
    host = vtdHost();
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

  it("a program for containers that opens /dev/iommu instead reads and writes", () =>
    works("the container was an iommufd", "compat-nvme"));
});
