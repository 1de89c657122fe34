import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { BUILD_MILLISECONDS, buildClient, buildLibrary, ended, Harness, until } from "./testing/harness.ts";

let harness: Harness;
beforeAll(() => {
  buildLibrary();
}, BUILD_MILLISECONDS);
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

  it("the library is found where LD_PRELOAD cannot say its path", async () => {
    const folder = mkdtempSync(join(tmpdir(), "softiommu with blank-"));
    copyFileSync(buildLibrary(), join(folder, "libsoftiommu.so"));
    const other = new Harness({ library: join(folder, "libsoftiommu.so") }).start();
    expect(await other.run(buildClient("calls"))).toMatchObject({ code: 0, stdout: "done\n", stderr: "" });
    other.stop();
    rmSync(folder, { recursive: true });
  });

  it("also through glibc's checked variants", async () => {
    expect(await harness.run(buildClient("calls", true))).toMatchObject({ code: 0, stdout: "done\n" });
    await harness.quiet();
  });

  it("readers in several processes lose no event to each other", async () => {
    expect(await harness.client("doorbell")).toBe("done\n");
    await harness.quiet();
  });

  it("a call that failed is told with its errno and reason, a mistake of ours as a bug", async () => {
    await harness.client("calls");
    const calls = harness.events.filter(({ kind }) => kind === "call").map(({ fields }) => fields);
    expect(calls).toContainEqual(
      expect.objectContaining({ error: "EBUSY", reason: "the fake file is always busy", object: "fake 0" }),
    );
    expect(calls).toContainEqual(expect.objectContaining({ error: "BUG" }));
    expect(calls).toContainEqual(
      expect.objectContaining({ error: "EFAULT", reason: "memory could not be adopted in 16 attempts" }),
    );
  });
});

describe("a descriptor is a socket: its last duplicate closes the file, once", () => {
  it.each(["dup", "fork", "exec", "exec-bare", "spawn", "rights", "closefrom"])("%s", async (what) => {
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

  it.each(["end-threads", "fork-child"])(
    "a thread that ends takes its connection along: %s",
    async (what) => {
      const child = harness.spawn(buildClient("threads"), [what]);
      const end = ended(child);
      await until(() => harness.server.live.suspended === 1);
      await until(
        () => harness.server.live.connections === 1,
        () => JSON.stringify(harness.server.live),
      );
      child.kill("SIGKILL");
      await end;
    },
  );

  it("a handler may jump out of a waiting call", async () => {
    expect(await harness.client("jump")).toBe("done\n");
    await harness.quiet();
    expect(harness.node.cancelled).toBe(7);
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
