import { join } from "node:path";
import * as fc from "fast-check";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { BarHost, compile, discard, started } from "./traps.suite.ts";

let folder = "";
beforeAll(() => {
  folder = compile("signal-client");
}, 60_000);
afterAll(() => discard(folder));

let host: BarHost;
beforeEach(() => {
  host = new BarHost(folder);
});
afterEach(() => host.server.stop());

describe("a program that handles, blocks, sends and suffers SIGSEGV, SIGBUS and SIGILL", () => {
  it("sees and does the same with the preload library and BAR accesses in between as without", async () => {
    const property = fc.asyncProperty(fc.integer({ min: 1, max: 1_000_000 }), async (walk) => {
      const words = [String(walk), "12"];
      const native = await started(join(folder, "signal-client"), words).ended;
      const attached = await host.run("signal-client", ...words);
      expect(attached.output.split("\n")).toEqual(native.output.split("\n"));
      expect(native.code).toBe(0);
    });
    await fc.assert(property, { numRuns: 6, endOnFailure: true });
    expect(host.bars[0]?.accesses.size).toBeGreaterThan(0);
    expect(host.refused).toEqual([]);
  });
});
