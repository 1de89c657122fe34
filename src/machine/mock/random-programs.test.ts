/** Whatever programs do, and whenever they die, nothing of them is left. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MockRig } from "../../../test/support/mock-rig.ts";
import { runRandomProgram } from "../../../test/support/random-program.ts";

const PROGRAMS = 10_000;
const STEPS = 16;

describe("random programs", () => {
  const rig = new MockRig();
  // Most requests fail, and nobody reads where: their stacks would be a fifth of the time.
  const { stackTraceLimit } = Error;
  beforeAll(() => {
    Error.stackTraceLimit = 0;
  });
  afterAll(() => {
    Error.stackTraceLimit = stackTraceLimit;
    rig.close();
  });

  it(`after each of ${PROGRAMS} nothing is alive, pinned, accounted or allocated`, () => {
    for (let seed = 1; seed <= PROGRAMS; seed += 1) {
      try {
        runRandomProgram(rig, seed, STEPS);
        for (const process of [...rig.processes]) process.exit();
        rig.host.scheduler.run();
      } catch (error) {
        throw new Error(`program ${seed}`, { cause: error });
      }
      const left = Object.entries(rig.live()).filter(([, count]) => count !== 0);
      expect(left, `after program ${seed}`).toEqual([]);
      rig.spawned.clear();
    }
  }, 300_000);
});
