/** A userspace driver for the Data Streaming Accelerator, over every way to an IOMMU. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Host } from "../src/attach/host.ts";
import { silent } from "../src/base/events.ts";
import { leftOver, runOn, vtdHost } from "./support/host.ts";
import { queueMachine } from "./support/queue-machine.ts";
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

it("an ordinary program opens a work queue, and work is done at its own addresses", async () => {
  const host = new Host(queueMachine(), { events: silent });
  try {
    const { status, stdout, stderr } = await runOn(host, client("wq"));
    expect({ status, stdout, stderr }).toEqual({
      status: 0,
      stdout: "the queue worked at the program's own addresses\n",
      stderr: "",
    });
    expect(await leftOver(host)).toEqual({});
  } finally {
    await host.stop();
  }
});
