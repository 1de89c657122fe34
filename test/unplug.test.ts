/** Functions that are taken out of their slots. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { PRESETS } from "../src/machine/presets.ts";
import { client, scratch, softiommu } from "./support/run.ts";

it("remove asks the user of a function for it, takes it out when it is closed, and a rescan finds it again", async () => {
  const folder = scratch();
  const machine = join(folder, "machine.yaml");
  writeFileSync(machine, `privileges: root\n${PRESETS.get("vtd")!}`);
  const { status, stdout, stderr } = await softiommu("run", "--machine", machine, "--", client("unplug"));
  rmSync(folder, { recursive: true });
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "done\n", stderr: "" });
});
