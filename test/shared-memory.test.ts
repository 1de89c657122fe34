/** Memory that programs and the machine share by files: pages of virtual IOMMUs, memfds mapped for devices, dma-bufs. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { hostOf, leftOver, runOn, start } from "./support/host.ts";
import { client } from "./support/run.ts";

let host: Host;
beforeAll(() => {
  host = hostOf("mock");
});
afterAll(() => host.stop());

describe("pages of a virtual IOMMU", () => {
  it("keep it from being destroyed while any process maps one of them", async () => {
    const { status, stdout, stderr } = await runOn(host, client("viommu-pages"));
    expect({ status, stderr, stdout: stdout.split("\n") }).toEqual({
      status: 0,
      stderr: "",
      stdout: ["parts", "children", "moves", "memory", ""],
    });
    expect(await leftOver(host)).toEqual({});
  });

  it("are let go when the processes that map them are killed", async () => {
    const program = start(host, client("viommu-pages"), "hold");
    const said = await new Promise<string>((resolve, reject) => {
      program.stdout.once("data", (data: Buffer) => resolve(data.toString()));
      program.once("exit", () => reject(new Error("it ended too early")));
    });
    const child = Number(/holding (\d+)/.exec(said)?.[1]);
    program.removeAllListeners("exit");
    const ended = new Promise((resolve) => program.once("exit", resolve));
    process.kill(child, "SIGKILL");
    expect(host.live()["files"]).toBeGreaterThan(0);
    program.kill("SIGKILL");
    await ended;
    expect(await leftOver(host)).toEqual({});
  });
});

describe("files mapped for devices", () => {
  it("are reached without their descriptor, sealed ones written, dma-bufs revoked", async () => {
    const { status, stdout, stderr } = await runOn(host, client("map-file"));
    expect({ status, stderr, stdout: stdout.split("\n") }).toEqual({
      status: 0,
      stderr: "",
      stdout: ["memfd", "memory", "sealed", "elsewhere", "dma-buf", ""],
    });
    expect(await leftOver(host)).toEqual({});
  });
});
