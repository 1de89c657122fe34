/** The extension `apertures` by a C program, on the machine power; and the story of its windows. */
import { afterEach, expect, it } from "vitest";
import { Host } from "../src/attach/host.ts";
import { parseMachine } from "../src/machine/file.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { leftOver, runOn } from "./support/host.ts";
import { client, softiommu } from "./support/run.ts";

let host: Host | undefined;
afterEach(() => {
  host?.stop();
  host = undefined;
});

it("windows of a page table, those that a program chooses, and every errno", async () => {
  const bugs: string[] = [];
  host = new Host(parseMachine(PRESETS.get("power")!, "power"), {
    onBug: (where, reason) => bugs.push(`${where}: ${reason}`),
  });
  const { status, stdout, stderr } = await runOn(host, client("apertures"));
  expect({ status, stdout, stderr, bugs }).toEqual({
    status: 0,
    stdout: "windows came and went\n",
    stderr: "",
    bugs: [],
  });
  expect(await leftOver(host)).toEqual({});
});

it("demo nested --machine power is the story of windows", async () => {
  const { status, stdout } = await softiommu("demo", "nested", "--machine", "power");
  expect(stdout).toMatch(/both windows are there[\s\S]*(\d+) of \1 claims hold/);
  expect(status).toBe(0);
});
