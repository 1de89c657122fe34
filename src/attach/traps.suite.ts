/** A device node whose BAR is memory, the server that offers it, and C programs that use it. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { monotonic } from "../base/clock.ts";
import type { EventFields } from "../base/events.ts";
import { processRead, processWrite } from "../base/libc.ts";
import { WorkQueue } from "../base/scheduler.ts";
import type { KernelFile, MapSegment } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { ClientMemory } from "./process.ts";
import { AttachServer } from "./server.ts";
import { trapHandlers } from "./traps.ts";

const SIZE = 256 * 1024;
export const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** A folder with the preload library and the named C programs of this folder, without their ".c". */
export function compile(...programs: string[]): string {
  const folder = mkdtempSync(join(tmpdir(), "traps-"));
  execFileSync("make", ["-s", "-C", here("shim"), `OUT=${folder}`], { stdio: "pipe" });
  const flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-pthread"];
  for (const name of programs) execFileSync("cc", [...flags, "-o", join(folder, name), here(`${name}.c`)]);
  return folder;
}

export const discard = (folder: string): void => rmSync(folder, { recursive: true, force: true });

/** A BAR that is memory, and remembers how it was accessed. Its last page does not answer; page 2 is a busy portal. */
export class Bar implements KernelFile {
  readonly kind = "bar";
  readonly name = "bar";
  readonly memory = new Uint8Array(SIZE);
  readonly accesses = new Map<string, number>();
  closed = false;

  mmap(_call: unknown, _offset: bigint, length: number): readonly MapSegment[] {
    return [{ kind: "trap", offset: 0, length }];
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

export interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly output: string;
}

/** The server of one test. */
export class BarHost {
  readonly bars: Bar[] = [];
  /** Events of accesses that were refused. */
  readonly refused: EventFields[] = [];
  readonly server: AttachServer;
  private readonly folder: string;

  constructor(folder: string) {
    this.folder = folder;
    const { bars, refused } = this;
    const events = {
      on: true,
      emit(_kind: string, fields: EventFields) {
        if (fields["what"] === "access refused") refused.push(fields);
      },
    };
    const open = (): Bar => {
      const bar = new Bar();
      bars.push(bar);
      return bar;
    };
    this.server = new AttachServer({
      nodes: () => [{ path: "/dev/bar", major: 1, minor: 2, mode: 0o666, open }],
      events,
      clock: monotonic(),
      work: new WorkQueue(),
      memory: memoryOf,
      handlers: [trapHandlers(events)],
      library: join(folder, "libsoftiommu.so"),
    });
    this.server.start();
  }

  start(program: string, ...words: string[]): { child: ChildProcess; ended: Promise<Ended> } {
    return started(join(this.folder, program), words, this.server.environment());
  }

  run(program: string, ...words: string[]): Promise<Ended> {
    return this.start(program, ...words).ended;
  }
}

/** Runs a program; what it printed on either stream is `output`. */
export function started(
  program: string,
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): { child: ChildProcess; ended: Promise<Ended> } {
  const child = spawn(program, words, {
    env: { ...process.env, ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  child.stdout?.on("data", (data) => {
    output += data;
  });
  child.stderr?.on("data", (data) => {
    output += data;
  });
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code, signal) => resolve({ code, signal, output }));
  });
  return { child, ended };
}
