import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { monotonic } from "../base/clock.ts";
import type { EventFields } from "../base/events.ts";
import { processRead, processWrite } from "../base/libc.ts";
import { WorkQueue } from "../base/scheduler.ts";
import type { KernelFile, MapSegment } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { ClientMemory } from "./process.ts";
import { AttachServer } from "./server.ts";
import { TrapWindow } from "./trap-bus.ts";
import { OP_TRAP, TrapBody, TrapOutcome, TrapReply, trapHandlers } from "./traps.ts";

const SIZE = 256 * 1024;
const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "traps-"));
  execFileSync("make", ["-s", "-C", here("shim"), `OUT=${folder}`], { stdio: "pipe" });
  const flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"];
  execFileSync("cc", [...flags, "-o", join(folder, "client"), here("trap-client.c")]);
}, 60_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A BAR that is memory, and remembers how it was accessed. Its last page does not answer; page 2 is a busy portal. */
class Bar implements KernelFile {
  readonly kind = "bar";
  readonly name = "bar";
  readonly memory = new Uint8Array(SIZE);
  readonly accesses = new Map<string, number>();
  closed = false;

  mmap(_call: unknown, offset: bigint, length: number): readonly MapSegment[] {
    return [{ kind: "trap", offset: Number(offset), length }];
  }
  trapRead(offset: bigint, into: Uint8Array): void {
    if (offset >= SIZE - 4096) throw new LinuxError("EIO", "memory decode is off");
    this.count("r", offset, into.length);
    into.set(this.memory.subarray(Number(offset), Number(offset) + into.length));
  }
  trapWrite(offset: bigint, data: Uint8Array): void {
    this.count("w", offset, data.length);
    this.memory.set(data, Number(offset));
  }
  trapEnqueue(offset: bigint, command: Uint8Array): boolean {
    if (offset >= 8192) return false;
    this.trapWrite(offset, command);
    return true;
  }
  close(): void {
    this.closed = true;
  }
  private count(direction: string, offset: bigint, length: number): void {
    const key = `${direction}${length}@${offset}`;
    this.accesses.set(key, (this.accesses.get(key) ?? 0) + 1);
  }
}

function memoryOf(pid: number): ClientMemory {
  const fault = (va: bigint): LinuxError => new LinuxError("EFAULT", `no memory at ${va}`);
  return {
    id: pid,
    lockedPages: 0,
    pinnedPages: 0,
    read(va, into) {
      if (processRead(pid, Number(va), into) !== into.length) throw fault(va);
    },
    write(va, data) {
      if (processWrite(pid, Number(va), data) !== data.length) throw fault(va);
    },
    pin(va) {
      throw fault(BigInt(va));
    },
  };
}

let server: AttachServer;
let bars: Bar[];
let refused: EventFields[];
beforeEach(() => {
  bars = [];
  refused = [];
  const events = {
    on: true,
    emit(_kind: string, fields: EventFields) {
      if (fields["what"] === "access refused") refused.push(fields);
    },
  };
  const node = {
    path: "/dev/bar",
    major: 1,
    minor: 2,
    mode: 0o666,
    open() {
      const bar = new Bar();
      bars.push(bar);
      return bar;
    },
  };
  server = new AttachServer({
    nodes: () => [node],
    events,
    clock: monotonic(),
    work: new WorkQueue(),
    memory: memoryOf,
    handlers: [trapHandlers(events)],
    library: join(folder, "libsoftiommu.so"),
  });
  server.start();
});
afterEach(() => server.stop());

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly output: string;
}

function start(scenario: string): { child: ChildProcess; ended: Promise<Ended> } {
  const child = spawn(join(folder, "client"), [scenario], {
    env: { ...process.env, ...server.environment() },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  child.stdout?.on("data", (data) => (output += data));
  child.stderr?.on("data", (data) => (output += data));
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code, signal) => resolve({ code, signal, output }));
  });
  return { child, ended };
}

const run = (scenario: string): Promise<Ended> => start(scenario).ended;

async function succeeds(scenario: string): Promise<Bar> {
  expect(await run(scenario)).toEqual({ code: 0, signal: null, output: "" });
  return bars[0]!;
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

  it("is inherited by a forked child", async () => {
    await succeeds("forked");
  });

  it("ends with munmap and MAP_FIXED, page by page, and outlives its descriptor", async () => {
    const bar = await succeeds("unmapped");
    expect(refused).toEqual([]);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(bar.closed).toBe(true);
  });

  it("follows mprotect", async () => {
    await succeeds("protection");
  });

  it("survives a program that is killed in the middle", async () => {
    for (let i = 0; i < 5; i++) {
      const { child, ended } = start("forever");
      await new Promise((resolve) => child.stdout?.once("data", resolve));
      await new Promise((resolve) => setTimeout(resolve, 5 * i));
      child.kill("SIGKILL");
      expect((await ended).signal).toBe("SIGKILL");
    }
    await succeeds("widths");
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(bars.every((bar) => bar.closed)).toBe(true);
    expect(server.live).toMatchObject({ files: 0, tasks: 0, connections: 0 });
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
    const reasons = refused.map((fields) => String(fields["reason"]));
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
