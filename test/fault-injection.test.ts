/** Fault injection in real programs: its files, and that what failed leaves nothing. */
import { spawn } from "node:child_process";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { Random } from "../src/base/clock.ts";
import { Fan } from "../src/trace/fan.ts";
import { hostOf, leftOver, runOn } from "./support/host.ts";
import { client } from "./support/run.ts";

describe("fault injection", () => {
  const bugs: unknown[] = [];
  let host: Host;
  beforeAll(() => {
    const events = new Fan({ now: () => 0 });
    events.listen(({ fields }) => {
      if (fields["error"] === "BUG") bugs.push(fields);
    });
    host = hostOf("mock", events);
  });
  afterAll(() => host.stop());

  it("its files are those of Linux, by every call that reaches them", async () => {
    const { status, stdout, stderr } = await runOn(host, client("fault-injection"));
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "0 surprises\n", stderr: "" });
    expect(await leftOver(host)).toEqual({});
    expect(bugs).toEqual([]);
  });

  it("requests succeed after every allocation of theirs failed in turn", async () => {
    const { status, stdout, stderr } = await runOn(host, client("sweep"));
    expect({ status, stderr }, stdout).toEqual({ status: 0, stderr: "" });
    const lines = stdout.trimEnd().split("\n");
    expect(lines.pop()).toBe("0 surprises");
    expect(lines).toHaveLength(20);
    expect(lines.filter((line) => !line.endsWith(": 1"))).toEqual([]);
    expect(await leftOver(host)).toEqual({});
    expect(bugs).toEqual([]);
  });

  it("kill -9 among random requests and failing allocations, 20 seeds: nothing is left", async () => {
    const random = new Random(3);
    for (let seed = 0; seed < 20; seed += 1) {
      // A group of its own: its children are killed with it.
      const child = spawn(client("sweep"), [String(seed)], {
        env: { ...process.env, ...host.environment() },
        stdio: ["ignore", "pipe", "inherit"],
        detached: true,
      });
      await new Promise((resolve) => child.stdout.once("data", resolve));
      await new Promise((resolve) => setTimeout(resolve, random.below(60)));
      const gone = new Promise((resolve) => child.once("close", resolve));
      process.kill(-child.pid!, "SIGKILL");
      await gone;
      expect(await leftOver(host), `seed ${seed}`).toEqual({});
    }
    expect(bugs).toEqual([]);
  });
});
