/** Fault injection in real programs: its files, and that what failed leaves nothing. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
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
});
