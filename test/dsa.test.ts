/** A userspace driver for the Data Streaming Accelerator, over every way to an IOMMU. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { leftOver, runOn, vtdHost } from "./support/host.ts";
import { client } from "./support/run.ts";

describe("a driver for the accelerator", () => {
  let host: Host;
  beforeAll(() => {
    host = vtdHost();
  });
  afterAll(() => host.stop());

  it.each(["type1", "type1v2", "compat-type1", "compat-type1v2", "cdev"])(
    "copies, fills, compares, is interrupted and told of faults: %s",
    async (way) => {
      const { status, stdout, stderr } = await runOn(host, client("dsa"), way);
      expect({ status, stdout, stderr }).toEqual({
        status: 0,
        stdout: "the accelerator's work was right\n",
        stderr: "",
      });
      expect(await leftOver(host)).toEqual({});
    },
  );
});
