/** Libraries that a program loads later. */
import { expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

it("calls of a library are ours when it binds deeply, and those looked up in the C library by name", async () => {
  const helper = client("helper", "-shared", "-fPIC");
  const { status, stdout, stderr } = await softiommu("run", "--", client("loader"), helper);
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "done\n", stderr: "" });
});
