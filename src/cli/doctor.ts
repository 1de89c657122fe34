/**
 * `softiommu doctor`: what this computer can do for softiommu, each finding with a remedy. Only what nothing works
 * without is essential; the rest costs speed or a program.
 */
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmdirSync, statfsSync } from "node:fs";
import { join } from "node:path";
import { builtLibrary } from "../attach/library.ts";
import { findProgram } from "../attach/program.ts";
import { close, pidfdGetfd, pidfdOpen, processRead } from "../base/libc.ts";
import { runsFolder } from "../base/places.ts";
import { ExitCode } from "./exit.ts";
import { colorsOf, print } from "./output.ts";

export interface Finding {
  readonly what: string;
  /** `missing` is essential; `limited` works with a drawback. */
  readonly state: "ok" | "limited" | "missing";
  readonly found: string;
  readonly remedy?: string;
}

const NODE_FLOOR = [20, 19] as const;
const MIB = 2 ** 20;

export const doctor = async ({ json = false }: { json?: boolean }): Promise<number> => {
  const findings = await examine();
  const missing = findings.some(({ state }) => state === "missing");
  if (json) print(JSON.stringify({ ok: !missing, findings }, undefined, 2));
  else for (const line of findings.flatMap(say)) print(line);
  return missing ? ExitCode.failed : ExitCode.ok;
};

const say = ({ what, state, found, remedy }: Finding): string[] => {
  const { green, red, cyan } = colorsOf(process.stdout);
  const mark = { ok: green("ok     "), limited: cyan("limited"), missing: red("missing") }[state];
  return [`${mark}  ${what}: ${found}`, ...(remedy === undefined ? [] : [`           ${remedy}`])];
};

export const examine = async (): Promise<Finding[]> => [
  system(),
  node(process.versions.node),
  library(),
  await otherProcess(readYama()),
  folder(),
  compiler(),
  qemu(),
  mapCount(Number(readProc("/proc/sys/vm/max_map_count"))),
  descriptors(limitOf("Max open files")),
  memlock(limitOf("Max locked memory")),
  hugepages(
    readProc("/proc/sys/vm/nr_hugepages"),
    readProc("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
  ),
];

const readProc = (path: string): string => {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return "";
  }
};

const system = (): Finding => {
  const found = `${process.platform} ${process.arch}`;
  if (process.platform === "linux" && process.arch === "x64") return { what: "system", state: "ok", found };
  return { what: "system", state: "missing", found, remedy: "softiommu runs on Linux, x86-64" };
};

export const node = (version: string): Finding => {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const enough = major > NODE_FLOOR[0] || (major === NODE_FLOOR[0] && minor >= NODE_FLOOR[1]);
  const remedy = `install Node ${NODE_FLOOR.join(".")} or newer`;
  return { what: "Node", state: enough ? "ok" : "missing", found: version, ...(!enough && { remedy }) };
};

const library = (): Finding => {
  const what = "preload library";
  try {
    return { what, state: "ok", found: builtLibrary() };
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    return {
      what,
      state: "missing",
      found,
      remedy: "install a C compiler and make (Debian: build-essential)",
    };
  }
};

const readYama = (): string => readProc("/proc/sys/kernel/yama/ptrace_scope");

/** Reads a child's memory and takes a descriptor from it, as is done with every program. */
const otherProcess = async (yama: string): Promise<Finding> => {
  const what = "access to programs (ptrace rights)";
  const child = spawn("sleep", ["60"], { stdio: "ignore" });
  try {
    await new Promise((resolve, reject) => child.once("spawn", resolve).once("error", reject));
    const maps = readProc(`/proc/${child.pid}/maps`);
    const address = Number.parseInt(maps.split("-")[0]!, 16);
    const read = Number.isNaN(address) ? -1 : processRead(child.pid!, address, new Uint8Array(1));
    const pidfd = pidfdOpen(child.pid!);
    const taken = pidfd < 0 ? pidfd : pidfdGetfd(pidfd, 0);
    for (const fd of [taken, pidfd]) if (fd >= 0) close(fd);
    const scope = yama === "" ? "no Yama" : `Yama ptrace_scope ${yama}`;
    if (read === 1 && taken >= 0)
      return { what, state: "ok", found: `memory and descriptors of a child can be reached (${scope})` };
    const remedy =
      Number(yama) >= 2
        ? "sysctl kernel.yama.ptrace_scope=1, or run with CAP_SYS_PTRACE"
        : "in a container allow process_vm_readv and pidfd_getfd (a recent seccomp profile, or --cap-add SYS_PTRACE)";
    return { what, state: "missing", found: `refused (read ${read}, descriptor ${taken}; ${scope})`, remedy };
  } catch (error) {
    return { what, state: "missing", found: error instanceof Error ? error.message : String(error) };
  } finally {
    child.kill("SIGKILL");
  }
};

/** The folder for sockets and the shadow tree. */
const folder = (): Finding => {
  const what = "folder for runs";
  const path = runsFolder();
  try {
    rmdirSync(mkdtempSync(join(path, "softiommu-doctor-")));
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    return { what, state: "missing", found, remedy: "set TMPDIR to a folder that can be written" };
  }
  const { bavail, bsize } = statfsSync(path);
  const free = Math.floor((bavail * bsize) / MIB);
  const remedy = "set TMPDIR to a folder with room: every run keeps a small tree of files there";
  return free >= 16
    ? { what, state: "ok", found: `${path}, ${free} MiB free` }
    : { what, state: "limited", found: `${path}, ${free} MiB free`, remedy };
};

const compiler = (): Finding => {
  const what = "C compiler";
  const command = process.env["CC"] ?? "cc";
  const { status, stdout } = spawnSync(command, ["--version"], { encoding: "utf8" });
  if (status === 0) return { what, state: "ok", found: stdout.split("\n")[0]! };
  const remedy = "needed to build from source and for examples and benchmarks (Debian: build-essential)";
  return { what, state: "limited", found: `${command} does not run`, remedy };
};

const qemu = (): Finding => {
  const what = "qemu-io, qemu-img";
  const paths = ["qemu-io", "qemu-img"].map((program) => findProgram(program));
  if (paths.every((path) => path !== undefined)) return { what, state: "ok", found: paths.join(", ") };
  const remedy = "a ready-made program to try (Debian: qemu-utils)";
  return { what, state: "limited", found: "not installed", remedy };
};

/** A mapping of client memory is a mapping of ours. */
export const mapCount = (count: number): Finding => {
  const what = "mappings a process (vm.max_map_count)";
  if (count >= 65_530) return { what, state: "ok", found: String(count) };
  const remedy = "sysctl vm.max_map_count=65530: programs with many DMA mappings need as many here";
  return { what, state: "limited", found: String(count), remedy };
};

/** Soft and hard limit from /proc/self/limits; Infinity when unlimited. */
const limitOf = (name: string): readonly [soft: number, hard: number] => {
  const line = readProc("/proc/self/limits")
    .split("\n")
    .find((each) => each.startsWith(name));
  const [soft = 0, hard = 0] = (line?.slice(name.length).match(/unlimited|\d+/g) ?? []).map((text) =>
    text === "unlimited" ? Number.POSITIVE_INFINITY : Number(text),
  );
  return [soft, hard];
};

export const descriptors = ([soft, hard]: readonly [number, number]): Finding => {
  const what = "open files (ulimit -n)";
  const found = `${soft} (hard limit ${hard})`;
  if (soft >= 1024) return { what, state: "ok", found };
  return {
    what,
    state: "limited",
    found,
    remedy: "ulimit -n 1024 or more: every file of a program is one here",
  };
};

export const memlock = ([soft]: readonly [number, number]): Finding => {
  const what = "lockable memory (ulimit -l)";
  if (soft === Number.POSITIVE_INFINITY) return { what, state: "ok", found: "unlimited" };
  const found = `${Math.floor(soft / MIB)} MiB`;
  const remedy =
    "programs may map so much for DMA, as on Linux; more: ulimit -l, or prlimit --memlock=unlimited as root";
  return { what, state: soft >= 8 * MIB ? "ok" : "limited", found, ...(soft < 64 * MIB && { remedy }) };
};

export const hugepages = (reserved: string, shmem: string): Finding => {
  const what = "hugepages";
  const transparent = /\[(\w+)\]/.exec(shmem)?.[1] ?? "not offered";
  const found = `${reserved || 0} reserved, transparent for shared memory: ${transparent}`;
  if (Number(reserved) > 0) return { what, state: "ok", found };
  const remedy =
    "none are needed: ordinary pages stand in for programs that ask for some; real ones: sysctl vm.nr_hugepages=64";
  return { what, state: "ok", found, remedy };
};
