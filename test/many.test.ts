/** Programs with thousands of descriptors. */
import { expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

it("thousands of descriptors work, and closefrom and a loop over all numbers close what is the program's", async () => {
  const { status, stdout, stderr } = await softiommu("run", "--", client("many"));
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "done\n", stderr: "" });
});
