/** Debian's own qemu-io and qemu-img, unmodified, on the NVMe models of the vtd machine. */
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmodSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { heapInUse, leftOver, runOn, vtdHost } from "./support/host.ts";
import { exec, hasQemu, SOFTIOMMU, scratch, softiommu } from "./support/run.ts";

const WRITE_READ = ["qemu-io", "-f", "raw", "-c", "write -P 0xa5 0 1M", "-c", "read -P 0xa5 0 1M"];
const FIRST = "nvme://0000:01:00.0/1";
const SECOND = "nvme://0000:02:00.0/1";
const WROTE_AND_READ = /wrote 1048576\/1048576[\s\S]*read 1048576\/1048576/;

/** Ways to start the same command with less. */
const circumstances: [string, string[]][] = [
  ["with 8 MiB of lockable memory", ["prlimit", "--memlock=8388608:8388608"]],
  ["without any capability and with no_new_privs", []],
];
if (process.getuid?.() === 0) {
  // Root is not held to the limit while it has CAP_IPC_LOCK.
  circumstances[0]![1] = [
    "setpriv",
    "--bounding-set=-ipc_lock",
    "--inh-caps=-ipc_lock",
    ...circumstances[0]![1],
  ];
  circumstances[1]![1] = [
    "setpriv",
    ..."--reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs".split(
      " ",
    ),
    "prlimit",
    "--memlock=8388608",
  ];
} else circumstances[1]![1] = ["setpriv", "--no-new-privs"];
if (spawnSync("prlimit", ["--memlock=unlimited:unlimited", "true"]).status === 0)
  circumstances.push(["with unlimited lockable memory", ["prlimit", "--memlock=unlimited:unlimited"]]);
else console.log("skipping unlimited lockable memory: raising the limit needs CAP_SYS_RESOURCE");

describe.skipIf(!hasQemu)("qemu-io on nvme://", () => {
  it.each(circumstances)("writes and reads back %s", async (_how, [command, ...prefix]) => {
    const { status, stdout, stderr } = await exec(command!, [
      ...prefix,
      process.execPath,
      SOFTIOMMU,
      "run",
      "--",
      ...WRITE_READ,
      FIRST,
    ]);
    expect(stderr).toBe("");
    expect(stdout).toMatch(WROTE_AND_READ);
    expect(status).toBe(0);
  });

  it("fails a read that does not match, with qemu-io's own status", async () => {
    const { status, stdout } = await softiommu(
      "run",
      "--",
      ...WRITE_READ.slice(0, 5),
      "-c",
      "read -P 0x5a 0 1M",
      FIRST,
    );
    expect(stdout).toContain("Pattern verification failed");
    expect(status).toBe(1);
  });

  it("keeps what was written in the file of --device", async () => {
    const folder = scratch();
    const file = join(folder, "disk.img");
    const device = `nvme@0000:01:00.0,file=${file},size=16M`;
    const { status } = await softiommu("run", "--device", device, "--", ...WRITE_READ, FIRST);
    expect(status).toBe(0);
    const image = readFileSync(file);
    expect(image.length).toBe(16 << 20);
    expect(image.subarray(0, 1 << 20).every((byte) => byte === 0xa5)).toBe(true);
    expect(image.subarray(1 << 20).every((byte) => byte === 0)).toBe(true);
    rmSync(folder, { recursive: true });
  });
});

describe.skipIf(!hasQemu)("qemu-img convert of 256 MiB onto the controller and back", () => {
  let folder: string;
  let image: Buffer;
  beforeAll(() => {
    folder = scratch();
    chmodSync(folder, 0o777);
    image = randomBytes(256 << 20);
    image.fill(0, 64 << 20, 128 << 20); // a hole for the zero-writing paths
    writeFileSync(join(folder, "in.img"), image);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  // Zeros come back so fast that requests would be answered before qemu-img lets go: see PROMPT_BYTES of the engine.
  it.each(circumstances)("reads zeros faster than it maps %s", async (_how, [command, ...prefix]) => {
    const back = join(folder, "zeros.img");
    const script = `for i in 1 2 3; do qemu-img convert -f raw -O raw ${FIRST} ${back} || exit; done`;
    const device = "nvme@0000:01:00.0,size=256M";
    const run = [process.execPath, SOFTIOMMU, "run", "--device", device, "--", "sh", "-c", script];
    const { status, stderr } = await exec(command!, [...prefix, ...run]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    rmSync(back, { force: true });
  });

  it.each(circumstances)("is the same, byte for byte, %s", async (_how, [command, ...prefix]) => {
    const back = join(folder, "out.img");
    const script = `
      qemu-img convert -n -f raw -O raw ${folder}/in.img ${FIRST} &&
      qemu-img convert -O raw --image-opts driver=nvme,device=0000:01:00.0,namespace=1 ${back}`;
    const device = "nvme@0000:01:00.0,size=256M";
    const run = [process.execPath, SOFTIOMMU, "run", "--device", device, "--", "sh", "-c", script];
    const { status, stderr } = await exec(command!, [...prefix, ...run]);
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(readFileSync(back).equals(image)).toBe(true);
    rmSync(back, { force: true });
  });
});

describe.skipIf(!hasQemu)("one host, many programs", () => {
  let host: Host;
  beforeAll(() => {
    host = vtdHost();
  });
  afterAll(() => host.stop());

  it("serves two programs at once, each with its own controller", async () => {
    const results = await Promise.all(
      [FIRST, SECOND].map((disk, i) =>
        runOn(
          host,
          "qemu-io",
          "-f",
          "raw",
          "-c",
          `write -P ${i + 1} 0 8M`,
          "-c",
          `read -P ${i + 1} 0 8M`,
          disk,
        ),
      ),
    );
    for (const { status, stdout } of results) expect({ status, stdout }).toMatchObject({ status: 0 });
    expect(await leftOver(host)).toEqual({});
  });

  it("refuses a second program the controller that the first one has: EBUSY, as Linux", async () => {
    const first = runOn(host, "qemu-io", "-f", "raw", "-c", "write 0 1M", "-c", "sleep 1500", FIRST);
    await new Promise((resolve) => setTimeout(resolve, 700));
    const second = await runOn(host, "qemu-io", "-f", "raw", "-c", "write 0 1M", FIRST);
    expect(second.status).toBe(1);
    expect(second.stderr).toContain("Device or resource busy");
    expect((await first).status).toBe(0);
    expect(await leftOver(host)).toEqual({});
  });

  it("runs one fifty times in a row and is left as it was: no object, descriptor, frame or heap remains", async () => {
    const descriptors = (): number => readdirSync("/proc/self/fd").length;
    const mappings = (): string[] => readFileSync("/proc/self/maps", "utf8").split("\n");
    const shared = (lines: string[]): number => lines.filter((line) => line.includes("/memfd:")).length;
    const once = async (): Promise<void> => {
      const { status, stderr, stdout } = await runOn(host, ...(WRITE_READ as [string]), FIRST);
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      expect(stdout).toMatch(WROTE_AND_READ);
    };
    for (let i = 0; i < 10; i++) await once();
    expect(await leftOver(host)).toEqual({});
    const before = { heap: heapInUse(), descriptors: descriptors(), mappings: mappings() };
    for (let i = 0; i < 40; i++) await once();
    expect(await leftOver(host)).toEqual({});
    const after = { heap: heapInUse(), descriptors: descriptors(), mappings: mappings() };
    expect(after.descriptors).toBeLessThanOrEqual(before.descriptors);
    expect(shared(after.mappings)).toBeLessThanOrEqual(shared(before.mappings));
    // The allocator's own arenas move a little.
    expect(after.mappings.length - before.mappings.length).toBeLessThan(80);
    expect(after.heap - before.heap).toBeLessThan(1 << 20); // 26 KiB a run would be a leak of every run
  });
});
