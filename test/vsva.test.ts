/** The interface of 2020 for virtual SVA by C programs: nesting containers on the machine vtd-vsva. */
import { describe, expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

const runOn = (machine: string, name: string, ...args: string[]) =>
  softiommu("run", "--machine", machine, "--", client(name), ...args);

describe("a nesting container", () => {
  it("gives a guest's table to a device for a PASID, step by step", async () => {
    const { status, stdout, stderr } = await runOn("vtd-vsva", "vsva");
    expect(stderr).toBe("");
    expect(stdout).toBe("vsva\n");
    expect(status).toBe(0);
  });
});
