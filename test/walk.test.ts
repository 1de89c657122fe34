/** `softiommu walk` on a run whose program, qemu-io, holds its mappings while it sleeps. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Walk } from "../src/trace/walk.ts";
import { exec, hasQemu, SOFTIOMMU, scratch } from "./support/run.ts";

/** Runs of other tests are elsewhere. */
let folder: string;
const softiommu = (...args: string[]) =>
  exec(process.execPath, [SOFTIOMMU, ...args], { ...process.env, TMPDIR: folder });
const DEVICE = ["--device", "0000:01:00.0"];

describe.skipIf(!hasQemu)("softiommu walk on a live run", () => {
  let program: ReturnType<typeof spawn>;
  beforeAll(async () => {
    folder = scratch();
    program = spawn(
      process.execPath,
      [
        ...[SOFTIOMMU, "run", "--", "qemu-io", "-f", "raw"],
        ...["-c", "write 0 1M", "-c", "sleep 60000", "nvme://0000:01:00.0/1"],
      ],
      { env: { ...process.env, TMPDIR: folder }, stdio: "ignore" },
    );
    // What it writes comes when it ends: ask until it has mapped its queues.
    for (let patience = 100; patience > 0; patience--)
      if ((await softiommu("walk", ...DEVICE, "--iova", "0x10000")).status === 0) return;
    throw new Error("qemu-io has mapped nothing");
  }, 60_000);
  afterAll(async () => {
    const ended = once(program, "exit");
    program.kill();
    await ended;
    rmSync(folder, { recursive: true });
  });

  it("shows every table of a mapped address, decoded, and where it leads", async () => {
    const { status, stdout } = await softiommu("walk", ...DEVICE, "--iova", "0x10000");
    for (const what of [
      "scalable-mode root entry",
      "PASID table entry",
      "FS-PML4E",
      "FS-PDPE",
      "FS-PDE",
      "FS-PTE",
    ])
      expect(stdout).toMatch(new RegExp(`^${what}.* at 0x[0-9a-f]+ is 0x[0-9a-f]+$`, "m"));
    expect(stdout).toMatch(/^reaches host physical 0x[0-9a-f]+/m);
    expect(status).toBe(0);
  });

  it("shows where an unmapped address ended, with the reason, as JSON too", async () => {
    const { status, stdout } = await softiommu(
      "walk",
      ...DEVICE,
      "--iova",
      "0x7000000000",
      "--write",
      "--json",
    );
    const { steps, access } = JSON.parse(stdout) as Walk;
    expect(access).toBe("write");
    expect(steps.at(-2)?.note).toBe("not present");
    expect(steps.at(-1)?.outcome).toMatchObject({ ok: false });
    expect(status).toBe(1);
  });

  it("saves a state that gives the same walk after the run", async () => {
    const file = join(folder, "state.json");
    const live = await softiommu("walk", "--save", file, ...DEVICE, "--iova", "0x11234", "--json");
    const saved = await softiommu("walk", "--state", file, ...DEVICE, "--iova", "0x11234", "--json");
    const tables = (text: string) => (JSON.parse(text) as Walk).steps.slice(0, 6);
    expect(live.stderr).toMatch(/state of run \d+ saved in .*state\.json: \d+ frames/);
    expect(tables(saved.stdout)).toEqual(tables(live.stdout));
  });

  it("lists the runs when there are several, and takes the one that is named", async () => {
    const second = spawn(process.execPath, [SOFTIOMMU, "run", "--", "sleep", "60"], {
      env: { ...process.env, TMPDIR: folder },
      stdio: "ignore",
    });
    try {
      const question = ["walk", ...DEVICE, "--iova", "0x10000"];
      let stderr = "";
      for (let patience = 100; !stderr.includes("several runs") && patience > 0; patience--)
        ({ stderr } = await softiommu(...question));
      expect(stderr).toContain(`softiommu:   ${program.pid}  vtd  qemu-io`);
      expect(stderr).toContain(`softiommu:   ${second.pid}  vtd  sleep 60`);
      expect((await softiommu(...question, "--run", String(program.pid))).status).toBe(0);
      expect((await softiommu(...question, "--run", String(second.pid))).status).toBe(1);
    } finally {
      const ended = once(second, "exit");
      second.kill();
      await ended;
    }
  });

  it("says what is wrong with the question", async () => {
    const wrong = async (...args: string[]) => {
      const { status, stderr } = await softiommu("walk", ...args);
      return { status, stderr };
    };
    expect(await wrong()).toMatchObject({ status: 2, stderr: expect.stringContaining("--device BDF") });
    expect(await wrong(...DEVICE, "--iova", "12x")).toMatchObject({ status: 2 });
    expect(await wrong(...DEVICE, "--iova", "1", "--pasid", "1048576")).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("a PASID is a number below 1048576"),
    });
    expect(await wrong("--device", "0000:77:00.0", "--iova", "1")).toMatchObject({
      status: 1,
      stderr: expect.stringContaining("there is 0000:01:00.0"),
    });
    expect(await wrong(...DEVICE, "--iova", "1", "--state", SOFTIOMMU)).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("no saved state"),
    });
  });
});
