import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { TrapWindow } from "./trap-bus.ts";
import { type Bar, BarHost, compile, discard, here } from "./traps.suite.ts";
import { OP_TRAP, TrapBody, TrapOutcome, TrapReply } from "./traps.ts";

let folder = "";
beforeAll(() => {
  folder = compile("trap-client");
}, 60_000);
afterAll(() => discard(folder));

let host: BarHost;
beforeEach(() => {
  host = new BarHost(folder);
});
afterEach(() => host.server.stop());

async function succeeds(scenario: string): Promise<Bar> {
  expect(await host.run("trap-client", scenario)).toEqual({ code: 0, signal: null, output: "" });
  return host.bars[0]!;
}

describe("a mapped BAR", () => {
  it("sees each access once, with the width of the instruction", async () => {
    const { accesses } = await succeeds("widths");
    const once = ["1@0", "2@2", "4@4", "8@8", "16@16"];
    expect(new Map(accesses)).toEqual(
      new Map(once.flatMap((at) => [[`w${at}`, 1] as const, [`r${at}`, 1] as const])),
    );
  });

  it("sees an AVX move as one access of 32 bytes", async () => {
    const { accesses } = await succeeds("avx");
    for (const key of accesses.keys()) expect(["w32@64", "r32@64"]).toContain(key);
  });

  it("is a source and a target of the C library's memcpy, memset, memmove and memcmp", async () => {
    await succeeds("copies");
  });

  it("takes repeated string moves of any length, one access an element", async () => {
    const { accesses } = await succeeds("rep_movs");
    expect(accesses.get("w1@99999")).toBe(1);
    expect(accesses.get("r4@99996")).toBe(1);
  });

  it("executes locked instructions atomically against other threads", async () => {
    await succeeds("atomics");
  });

  it("sees every access of threads in parallel exactly once", async () => {
    const { accesses } = await succeeds("threads");
    expect([...accesses.values()]).toEqual([1000, 1000, 1000, 1000]);
  });

  it("is reached from signal handlers that block everything, on a small stack, between accesses", async () => {
    await succeeds("handlers");
  });

  it("may share an access with ordinary memory", async () => {
    const { accesses } = await succeeds("straddling");
    expect(accesses.get("w4@8188")).toBe(1);
  });

  it("takes MOVDIR64B and ENQCMD, also on a CPU without them", async () => {
    const { accesses } = await succeeds("direct_stores");
    expect(accesses.get("w64@4096")).toBe(2);
    expect(accesses.has("w64@8192")).toBe(false);
  });

  it("leaves the other vector registers alone", async () => {
    await succeeds("vectors_kept");
  });

  it("may be mapped many times over, and one instruction may reach two mappings", async () => {
    await succeeds("many_windows");
  });

  it("serves threads while others map, unmap and fork", async () => {
    const { accesses } = await succeeds("commotion");
    expect([0, 4, 8, 12].map((at) => accesses.get(`w4@${4096 + at}`))).toEqual([1000, 1000, 1000, 1000]);
  });

  it("stays a thread's own when its addresses were another's a moment ago", async () => {
    await succeeds("handed_over");
  });

  it("and the handlers are the parent's own after a vfork child changed its signals", async () => {
    await succeeds("vforked");
  });

  it("is inherited by a forked child", async () => {
    await succeeds("forked");
  });

  it("ends with munmap and MAP_FIXED, page by page, and outlives its descriptor", async () => {
    const bar = await succeeds("unmapped");
    expect(host.refused).toEqual([]);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(bar.closed).toBe(true);
  });

  it("follows mprotect", async () => {
    await succeeds("protection");
  });

  it("moves and shrinks with mremap, and does not grow", async () => {
    await succeeds("moved");
  });

  it("takes madvise as memory of a device does, and is not inherited after MADV_DONTFORK", async () => {
    await succeeds("advised");
  });

  it("outlives a program that puts its own files at every number, and closes none of them", async () => {
    const bar = await succeeds("renumbered");
    await expect.poll(() => bar.closed, { timeout: 10_000 }).toBe(true);
  });

  it("survives a program that is killed in the middle", async () => {
    for (let i = 0; i < 5; i++) {
      const { child, ended } = host.start("trap-client", "forever");
      await new Promise((resolve) => child.stdout?.once("data", resolve));
      await new Promise((resolve) => setTimeout(resolve, 5 * i));
      child.kill("SIGKILL");
      expect((await ended).signal).toBe("SIGKILL");
    }
    await succeeds("widths");
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(host.bars.every((bar) => bar.closed)).toBe(true);
    expect(host.server.live).toMatchObject({ files: 0, tasks: 0, connections: 0 });
  });
});

describe("a program's own signals", () => {
  it("reach its handler, which may jump out, repair, touch the BAR, and is what it sees when it asks", async () => {
    await succeeds("own_handler");
  });

  it("may be blocked, stay pending and be waited for without blocking the traps", async () => {
    await succeeds("blocked");
  });

  it("kill it as they would: blocked, ignored, reset, nested, raised, or refused by us with a reason", async () => {
    await succeeds("deaths");
    const reasons = host.refused.map((fields) => String(fields["reason"]));
    expect(reasons).toHaveLength(2);
    expect(reasons[0]).toContain("fld");
    expect(reasons[1]).toContain("memory decode is off");
  });

  it("are handled on the alternate stack when the stack overflows", async () => {
    await succeeds("stack_overflow");
  });
});

describe("the trap protocol", () => {
  it("has the layout of shim/trap.h", () => {
    const checks = [
      ...offsets("trap_body", TrapBody),
      ...offsets("trap_window", TrapWindow),
      ...offsets("trap_reply", TrapReply),
      `OP_TRAP == ${OP_TRAP}`,
      `TRAP_DONE == ${TrapOutcome.done}`,
      `TRAP_REFUSED == ${TrapOutcome.refused}`,
      `TRAP_BUS_ERROR == ${TrapOutcome.busError}`,
    ];
    const source = join(folder, "layout.c");
    const lines = checks.map((check) => `_Static_assert(${check}, "layout");`);
    writeFileSync(source, ["#include <stddef.h>", '#include "trap.h"', ...lines].join("\n"));
    execFileSync("cc", ["-std=gnu11", "-fsyntax-only", "-I", here("shim"), source]);
  });
});

function offsets(struct: string, layout: Readonly<Record<string, number>>): string[] {
  return Object.entries(layout).map(([field, value]) =>
    field === "size"
      ? `sizeof(struct ${struct}) == ${value}`
      : `offsetof(struct ${struct}, ${field}) == ${value}`,
  );
}
