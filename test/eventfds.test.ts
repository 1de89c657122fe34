/** Eventfds of a program that act on its device. */
import { expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

it("an eventfd unmasks INTx, and one rings a doorbell, from the moment they are set to the moment they are not", async () => {
  const { status, stdout, stderr } = await softiommu("run", "--", client("eventfds"));
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "done\n", stderr: "" });
});
