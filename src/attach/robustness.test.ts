import { ftruncateSync, writeSync } from "node:fs";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { Fcntl, fcntl, MFD_CLOEXEC, memfdCreate } from "../base/libc.ts";
import { LinuxError } from "../uapi/errno.ts";
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

describe("whatever a client does, the daemon goes on", () => {
  it("rubbish and floods on the socket end in errnos or a lost connection", async () => {
    const socket = harness.server.environment()["SOFTIOMMU_SOCKET"]!;
    expect(await harness.client("flood", socket)).toBe("done\n");
    expect(await harness.client("calls")).toBe("done\n");
    await harness.quiet();
    const bugs = harness.events.filter(({ fields }) => fields["error"] === "BUG");
    expect(bugs.map(({ fields }) => fields["call"])).toEqual(["ioctl of fake 0"]); // what calls.c asks for
  });

  it("a client cannot use a file of another by its cookie", async () => {
    const child = harness.spawn(buildClient("threads"), ["wait-forever"]);
    const end = ended(child);
    await until(() => harness.server.live.suspended === 1);
    const [file] = [...harness.server.files];
    expect(
      await harness.client("stranger", harness.server.environment()["SOFTIOMMU_SOCKET"]!, `${file!.cookie}`),
    ).toBe("-9\n");
    child.kill("SIGKILL");
    await end;
  });

  it("kill -9 at any moment leaves nothing", async () => {
    for (let i = 0; i < 15; i += 1) {
      const child = harness.spawn(buildClient("threads"));
      const end = ended(child);
      await new Promise((resolve) => setTimeout(resolve, 10 + i * 12));
      child.kill("SIGKILL");
      await end;
    }
    await harness.quiet();
    expect(harness.node.closes.every((times) => times === 1)).toBe(true);
  });

  it("an open that is refused gives its errno", async () => {
    harness.node.openFailure = new LinuxError("EBUSY", "the node is in use");
    const { stderr } = await harness.run("bash", ["-c", `exec 5<${harness.node.path}`]);
    expect(stderr).toMatch(/Device or resource busy/);
    await harness.quiet();
  });

  it("without the daemon a program is told EIO and lives", async () => {
    const child = harness.spawn(buildClient("orphan"));
    const end = ended(child);
    await until(() => harness.server.files.size === 1);
    harness.server.stop();
    expect(await end).toMatchObject({ code: 0, stdout: "done\n" });
  });

  it("works in a program that may never gain privileges", async () => {
    const { code, stdout } = await harness.run("setpriv", ["--no-new-privs", buildClient("calls")]);
    expect({ code, stdout }).toEqual({ code: 0, stdout: "done\n" });
  });
});

describe("mappings", () => {
  it("memory is shared with the daemon's, and keeps its file open until it is unmapped", async () => {
    const memfd = memfdCreate("bar", MFD_CLOEXEC);
    writeSync(memfd, new Uint8Array(16384).fill(0x41), 0, 16384, 0);
    harness.stop();
    harness = new Harness({ backing: (pa) => ({ fd: memfd, offset: pa }) }).start();
    harness.node.segments = [
      { kind: "memory", offset: 0, length: 4096, pa: 8192 },
      { kind: "memory", offset: 4096, length: 8192, pa: 0 },
    ];
    expect(await harness.client("mapping")).toBe("done\n");
    await harness.quiet();
    expect(fcntl(memfd, Fcntl.getFd, 0)).toBe(1); // still ours
  });

  it("whose pages they are is told how many there are, whatever is unmapped, moved or forked", async () => {
    const memfd = memfdCreate("pages", MFD_CLOEXEC);
    ftruncateSync(memfd, 12288);
    harness.stop();
    harness = new Harness({ backing: (pa) => ({ fd: memfd, offset: pa }) }).start();
    const { owner } = harness.node;
    harness.node.segments = [{ kind: "memory", offset: 0, length: 12288, pa: 0, owner }];
    for (const seed of ["1", "2", "3"]) {
      const { code, stdout, stderr } = await harness.run(buildClient("mappings"), [], { SEED: seed });
      expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: "done\n", stderr: "" });
    }
    await harness.quiet();
    expect(owner.mappings).toBe(0);
  });

  it("are refused when the memory has no file that a program may have", async () => {
    harness.stop();
    harness = new Harness({ backing: () => undefined }).start();
    const { owner } = harness.node;
    harness.node.segments = [{ kind: "memory", offset: 0, length: 12288, pa: 0, owner }];
    const { code, stderr } = await harness.run(buildClient("mapping"));
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining("errno 12") });
    expect(owner.mappings).toBe(0);
  });
});

describe("who calls", () => {
  it("is known by pid, thread and address space; a forked child is another", async () => {
    expect(await harness.client("whoami")).toBe("done\n");
    await harness.quiet();
  });
});
