/**
 * Runs C clients against a server in this process: builds the preload library and the clients once for each state of
 * their sources, serves fake device nodes, and waits until nothing of a client is left.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { monotonic } from "../../base/clock.ts";
import type { EventFields, EventKind } from "../../base/events.ts";
import { processRead, processWrite } from "../../base/libc.ts";
import { WorkQueue } from "../../base/scheduler.ts";
import type { Pin } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { ClientMemory } from "../process.ts";
import { type AttachOptions, AttachServer } from "../server.ts";
import { FakeNode } from "./fake-node.ts";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

const digest = (...folders: string[]): string => {
  const hash = createHash("sha256");
  for (const folder of folders)
    for (const name of readdirSync(folder).sort())
      if (/\.[ch]$|^Makefile$/.test(name)) hash.update(readFileSync(join(folder, name)));
  return hash.digest("hex").slice(0, 16);
};

const run = (command: string, args: string[]): void => {
  const { status, stderr } = spawnSync(command, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}:\n${stderr}`);
};

const buildRoot = join(tmpdir(), "softiommu-test-build");
mkdirSync(buildRoot, { recursive: true });

/** A busy computer may take this long to build the library. */
export const BUILD_MILLISECONDS = 180_000;

/** libsoftiommu.so of the present sources. */
export const buildLibrary = (): string => {
  const out = join(buildRoot, `shim-${digest(here("../shim"))}`);
  const library = join(out, "libsoftiommu.so");
  if (!existsSync(library)) run("flock", [`${out}.lock`, "make", "-s", "-C", here("../shim"), `OUT=${out}`]);
  return library;
};

/** A client of testing/clients, which may have parts of the library in it, compiled; `fortified`: with glibc's checked variants of its calls. */
export const buildClient = (name: string, fortified = false): string => {
  const sources = digest(here("clients"), here("../shim"));
  const program = join(buildRoot, `${name}${fortified ? "-fortified" : ""}-${sources}`);
  if (existsSync(program)) return program;
  const partial = `${program}.${process.pid}`;
  run("cc", [
    "-std=gnu11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-pthread",
    ...(fortified ? ["-O2", "-D_FORTIFY_SOURCE=2"] : []),
    "-o",
    partial,
    here(`clients/${name}.c`),
  ]);
  renameSync(partial, program);
  return program;
};

let nextMemory = 1;

/** A client's memory without pins: read and write only. */
export class PlainMemory implements ClientMemory {
  readonly id = nextMemory++;
  lockedPages = 0;
  pinnedPages = 0;
  readonly #pid: number;
  constructor(pid: number) {
    this.#pid = pid;
  }
  read(va: bigint, into: Uint8Array): void {
    if (processRead(this.#pid, Number(va), into) !== into.length)
      throw new LinuxError("EFAULT", "cannot be read");
  }
  write(va: bigint, data: Uint8Array): void {
    if (processWrite(this.#pid, Number(va), data) !== data.length)
      throw new LinuxError("EFAULT", "cannot be written");
  }
  pin(): Pin {
    throw new LinuxError("EFAULT", "this memory cannot be pinned");
  }
}

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Recorded {
  readonly kind: EventKind;
  readonly fields: EventFields;
}

export class Harness {
  readonly node = new FakeNode("/dev/softiommu-test/echo");
  readonly events: Recorded[] = [];
  readonly work = new WorkQueue();
  readonly server: AttachServer;

  constructor(options: Partial<AttachOptions> = {}) {
    this.server = new AttachServer({
      nodes: () => [this.node],
      events: { on: true, emit: (kind, fields) => this.events.push({ kind, fields }) },
      clock: monotonic(),
      work: this.work,
      memory: (pid) => new PlainMemory(pid),
      library: buildLibrary(),
      ...options,
    });
  }

  start(): this {
    this.server.start();
    return this;
  }

  stop(): void {
    this.server.stop();
  }

  spawn(program: string, args: readonly string[] = [], env: NodeJS.ProcessEnv = {}): ChildProcess {
    return spawn(program, args, {
      env: { ...process.env, ...this.server.environment(), ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
  }

  /** A program, attached, to its end. */
  async run(program: string, args: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Ended> {
    return ended(this.spawn(program, args, env));
  }

  /** A client of testing/clients, to its end; complains with its output when it failed. */
  async client(name: string, ...args: string[]): Promise<string> {
    const end = await this.run(buildClient(name), args);
    if (end.code !== 0)
      throw new Error(`${name} ${args.join(" ")}: ${end.code ?? end.signal}\n${end.stderr}${end.stdout}`);
    return end.stdout;
  }

  /** Waits until no client is left; throws when something stays. */
  async quiet(): Promise<void> {
    await until(
      () => Object.values(this.server.live).every((count) => count === 0),
      () => JSON.stringify(this.server.live),
    );
  }
}

export const ended = (child: ChildProcess): Promise<Ended> =>
  new Promise((resolve, reject) => {
    let stdout = "";
    let stderr = "";
    child.stdout?.on("data", (data: Buffer) => (stdout += data.toString("latin1")));
    child.stderr?.on("data", (data: Buffer) => (stderr += data.toString("latin1")));
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });

export const until = async (
  condition: () => boolean,
  what: () => string = () => "condition",
): Promise<void> => {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`waited too long: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
};
