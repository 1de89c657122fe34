/** sPAPR containers on the machine `power` by a C program: both versions, every errno, an NVMe controller behind them. */
import { afterEach, expect, it } from "vitest";
import { Host } from "../src/attach/host.ts";
import { parseMachine } from "../src/machine/file.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { leftOver, runOn } from "./support/host.ts";
import { client } from "./support/run.ts";

let host: Host | undefined;
afterEach(() => host?.stop());

it.each(["1", "2"])("version %s", async (version) => {
  const bugs: string[] = [];
  const power = `${PRESETS.get("power")!}privileges: root\n`;
  host = new Host(parseMachine(power, "power"), {
    onBug: (where, reason) => bugs.push(`${where}: ${reason}`),
  });
  const { status, stdout, stderr } = await runOn(host, client("spapr"), version);
  expect({ status, stderr, bugs }).toEqual({ status: 0, stderr: "", bugs: [] });
  expect(stdout).toBe(`sPAPR version ${version}\n`);
  expect(await leftOver(host)).toEqual({});
});
