import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { parseMachine } from "../machine/file.ts";
import { Machine } from "../machine/machine.ts";
import { PRESETS } from "../machine/presets.ts";
import { restoreState } from "../machine/state.ts";
import { INSPECT_SOCKET, Inspection } from "./inspect.ts";
import { ask, chooseRun, findRuns, type Run } from "./runs.ts";
import { type Walk, walk } from "./walk.ts";

let base: string;
let machine: Machine;
let inspection: Inspection;
let socket: string;

beforeAll(() => {
  base = mkdtempSync(join(tmpdir(), "inspect-"));
  const folder = join(base, "softiommu-abc");
  mkdirSync(folder);
  machine = new Machine(parseMachine(PRESETS.get("vtd")!, "vtd"), {
    events: silent,
    clock: new ManualClock(),
    scheduler: new WorkQueue(),
  });
  inspection = new Inspection(machine, folder, "qemu-io -c read");
  socket = join(folder, INSPECT_SOCKET);
});
afterAll(() => {
  inspection.close();
  machine.close();
  rmSync(base, { recursive: true });
});

describe("a run that is asked", () => {
  it("is found by its socket; what a killed run left is passed over", async () => {
    mkdirSync(join(base, "softiommu-dead"));
    writeFileSync(join(base, "softiommu-dead", INSPECT_SOCKET), "");
    mkdirSync(join(base, "softiommu-empty"));
    expect(await findRuns(base)).toEqual([
      {
        pid: process.pid,
        machine: "vtd",
        program: "qemu-io -c read",
        devices: ["0000:01:00.0", "0000:02:00.0", "0000:04:00.0", "0000:05:00.0", "0000:03:00.0"],
        socket,
      },
    ]);
  });

  it("walks", async () => {
    const question = { device: "0000:01:00.0", iova: "0x1000", write: true } as const;
    const told = (await ask(socket, { ask: "walk", ...question })) as Walk;
    expect(told).toEqual(walk(machine, { ...question, iova: 0x1000n }));
    expect(told.steps.at(-1)?.outcome?.ok).toBe(false);
  });

  it("gives its state", async () => {
    restoreState(JSON.stringify(await ask(socket, { ask: "state" }))).close();
  });

  it("says which devices there are when the one asked for is not", async () => {
    await expect(
      ask(socket, { ask: "walk", device: "0000:09:00.0", iova: "0x0", write: false }),
    ).rejects.toThrow(
      "there is no device 0000:09:00.0; there is 0000:01:00.0, 0000:02:00.0, 0000:04:00.0, 0000:05:00.0, 0000:03:00.0",
    );
  });

  it.each(["nonsense", "{}", '{"ask":"walk"}', '{"ask":"walk","device":"x","iova":"12","write":true}'])(
    "refuses what is no question: %s",
    async (text) => {
      const answer = await new Promise<string>((resolve) => {
        const client = connect(socket, () => client.write(`${text}\n`));
        client.once("data", (data) => {
          client.destroy();
          resolve(String(data));
        });
      });
      expect(JSON.parse(answer)).toMatchObject({ ok: false });
    },
  );

  it("cuts off who sends without end", async () => {
    await new Promise<void>((resolve) => {
      const client = connect(socket, () => client.write("x".repeat(10_000)));
      client.on("error", () => {});
      client.on("close", () => resolve());
    });
  });
});

describe("the choice of a run", () => {
  const run = (pid: number): Run => ({ pid, machine: "vtd", program: `p${pid}`, devices: [], socket: "" });
  it("is the only one, or the one that was named; otherwise the runs are listed", () => {
    expect(chooseRun([run(5)]).pid).toBe(5);
    expect(chooseRun([run(5), run(6)], 6).pid).toBe(6);
    expect(() => chooseRun([])).toThrow("nothing runs");
    expect(() => chooseRun([run(5), run(6)])).toThrow("--run PID:\n  5  vtd  p5\n  6  vtd  p6");
    expect(() => chooseRun([run(5)], 7)).toThrow("no run has pid 7");
  });
});
