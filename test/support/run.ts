/** Real programs for whole-program tests: compiles C clients, runs them and the command, and collects what they say. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
export const SOFTIOMMU = join(ROOT, "dist/cli/main.js");
const CLIENTS = join(ROOT, "test/clients");

export interface Outcome {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A folder for one test file's scratch data. */
export const scratch = (): string => mkdtempSync(join(tmpdir(), "softiommu-test-"));

const outFolder = join(tmpdir(), `softiommu-clients-${process.getuid?.() ?? 0}`);

/** Compiles test/clients/NAME.c, once for its present text; returns the program's path. */
export const client = (name: string, ...flags: string[]): string => {
  mkdirSync(outFolder, { recursive: true, mode: 0o755 });
  const hash = createHash("sha256").update(flags.join(" "));
  for (const file of readdirSync(CLIENTS).filter((each) => each.endsWith(".h") || each === `${name}.c`))
    hash.update(readFileSync(join(CLIENTS, file)));
  const program = join(outFolder, `${name}-${hash.digest("hex").slice(0, 16)}`);
  if (existsSync(program)) return program;
  const fresh = `${program}.${process.pid}`;
  const { status, stderr } = spawnSync(
    "cc",
    [
      "-std=gnu11",
      "-D_GNU_SOURCE",
      "-O1",
      "-Wall",
      "-Wextra",
      "-Werror",
      "-pthread",
      "-o",
      fresh,
      join(CLIENTS, `${name}.c`),
      ...flags,
    ],
    { encoding: "utf8" },
  );
  if (status !== 0) throw new Error(`${name}.c does not compile:\n${stderr}`);
  renameSync(fresh, program);
  return program;
};

/** Everything a child says until it ends. */
export const outcome = (child: ChildProcess): Promise<Outcome> =>
  new Promise((resolve, reject) => {
    let stdout = "";
    let stderr = "";
    child.stdout?.on("data", (data: Buffer) => (stdout += data.toString()));
    child.stderr?.on("data", (data: Buffer) => (stderr += data.toString()));
    child.on("error", reject);
    child.on("close", (status, signal) => resolve({ status, signal, stdout, stderr }));
  });

/** Runs a command to its end. */
export const exec = (
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = process.env,
): Promise<Outcome> => outcome(spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"] }));

/** `softiommu ARGS…` */
export const softiommu = (...args: string[]): Promise<Outcome> =>
  exec(process.execPath, [SOFTIOMMU, ...args]);

/** Whether PATH has a program. */
export const installed = (program: string): boolean => spawnSync("which", [program]).status === 0;

/** Debian's qemu-utils; without it the tests that need it say so. */
export const hasQemu = installed("qemu-io") && installed("qemu-img");
if (!hasQemu)
  console.log("skipping what needs qemu-io and qemu-img: install Debian's package qemu-utils to run it");
