/** Whatever clients do, the machine goes on and nothing of them is left. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { Random } from "../src/base/clock.ts";
import { Fan } from "../src/trace/fan.ts";
import { heapInUse, leftOver, runOn, start, vtdHost } from "./support/host.ts";
import { client } from "./support/run.ts";

describe("the machine survives", () => {
  const bugs: unknown[] = [];
  let host: Host;
  beforeAll(() => {
    const events = new Fan({ now: () => 0 });
    events.listen(({ fields }) => {
      if (fields["error"] === "BUG") bugs.push(fields);
    });
    host = vtdHost(events);
  });
  afterAll(() => host.stop());

  const worksAndIsClean = async (): Promise<void> => {
    expect(await leftOver(host)).toEqual({});
    const { status, stdout } = await runOn(host, client("dma-outside"));
    expect({ status, stdout }).toMatchObject({ status: 0, stdout: expect.stringContaining("goes on") });
    expect(await leftOver(host)).toEqual({});
    expect(bugs).toEqual([]);
  };

  it("100,000 random ioctls: every answer is an errno", async () => {
    const runs = await Promise.all([1, 2, 3, 4].map((seed) => runOnOwn(seed)));
    for (const { status, stderr } of runs) expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    await worksAndIsClean();
  });
  // One controller has one owner at a time: the seeds take turns.
  let turn: Promise<unknown> = Promise.resolve();
  const runOnOwn = (seed: number) => {
    const mine = turn.then(() => runOn(host, client("fuzz"), String(seed), "25000"));
    turn = mine;
    return mine;
  };

  it("unmaps with DMA in flight: memory is quiet when the unmap has returned", async () => {
    const { status, stdout, stderr } = await runOn(host, client("in-flight"), "150");
    expect({ status, stdout, stderr }).toEqual({
      status: 0,
      stdout: "quiet after every unmap\n",
      stderr: "",
    });
    await worksAndIsClean();
  });

  it("kill -9 at a random moment, 100 seeds: the next run finds a clean machine", async () => {
    const random = new Random(2);
    const program = client("busy");
    const once = async (): Promise<void> => {
      const child = start(host, program);
      let stderr = "";
      child.stderr.on("data", (data: Buffer) => (stderr += data.toString()));
      const late = random.below(2) === 0;
      if (late) await new Promise((resolve) => child.stdout.once("data", resolve));
      await new Promise((resolve) => setTimeout(resolve, random.below(late ? 20 : 60)));
      child.kill("SIGKILL");
      await new Promise((resolve) => child.once("close", resolve));
      expect(stderr).toBe("");
      expect(await leftOver(host)).toEqual({});
    };
    for (let seed = 0; seed < 20; seed++) await once();
    const before = heapInUse();
    for (let seed = 20; seed < 100; seed++) await once();
    expect(heapInUse() - before).toBeLessThan(2 << 20);
    await worksAndIsClean();
  });
});
