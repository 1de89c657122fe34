/** Devices that reach the registers of other devices. */
import { expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

it("a container maps another device's registers, uncounted, for as long as they decode", async () => {
  const { status, stdout, stderr } = await softiommu("run", "--", client("peer"));
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "done\n", stderr: "" });
});
