/** The extension `s390-nesting` by a C program, on the machine s390. */
import { afterEach, expect, it } from "vitest";
import { Host } from "../src/attach/host.ts";
import { parseMachine } from "../src/machine/file.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { leftOver, runOn } from "./support/host.ts";
import { client } from "./support/run.ts";

let host: Host | undefined;
afterEach(() => host?.stop());

it("a guest's anchor, its refreshes, every errno, and memory that goes meanwhile", async () => {
  const bugs: string[] = [];
  host = new Host(parseMachine(PRESETS.get("s390")!, "s390"), {
    onBug: (where, reason) => bugs.push(`${where}: ${reason}`),
  });
  const { status, stdout, stderr } = await runOn(host, client("s390-nested"));
  expect({ status, stdout, stderr, bugs }).toEqual({
    status: 0,
    stdout: "the guest's tables were followed\n",
    stderr: "",
    bugs: [],
  });
  expect(await leftOver(host)).toEqual({});
});
