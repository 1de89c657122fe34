import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { buildClient, ended, Harness, until } from "./testing/harness.ts";

let harness: Harness;
beforeEach(() => {
  harness = new Harness().start();
});
afterEach(() => {
  harness.stop();
});

describe("calls of an unmodified program", () => {
  it("every kind of call arrives, and every failure is the errno Linux would give", async () => {
    expect(await harness.client("calls")).toBe("done\n");
    await harness.quiet();
    expect(harness.node.closes.every((times) => times === 1)).toBe(true);
  });

  it("a call that failed is told with its errno and reason, a mistake of ours as a bug", async () => {
    await harness.client("calls");
    const calls = harness.events.filter(({ kind }) => kind === "call").map(({ fields }) => fields);
    expect(calls).toContainEqual(
      expect.objectContaining({ error: "EBUSY", reason: "the fake file is always busy", object: "fake 0" }),
    );
    expect(calls).toContainEqual(expect.objectContaining({ error: "BUG" }));
  });
});

describe("a descriptor is a socket: its last duplicate closes the file, once", () => {
  it.each(["dup", "fork", "exec", "exec-bare", "rights", "closefrom"])("%s", async (what) => {
    await harness.client("lives", what);
    await harness.quiet();
    expect(harness.node.closes.length).toBeGreaterThan(0);
    expect(harness.node.closes.every((times) => times === 1)).toBe(true);
  });
});

describe("threads and signals", () => {
  it("threads call at once, calls wait, resume, and are interrupted", async () => {
    expect(await harness.client("threads")).toBe("done\n");
    await harness.quiet();
  });

  it("a client killed in a waiting call leaves nothing", async () => {
    const child = harness.spawn(buildClient("threads"), ["wait-forever"]);
    const end = ended(child);
    await until(() => harness.server.live.suspended === 1);
    child.kill("SIGKILL");
    await end;
    await harness.quiet();
    expect(harness.node.cancelled).toBe(1);
    expect(harness.node.closes).toEqual([1]);
  });
});
