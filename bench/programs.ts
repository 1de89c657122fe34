/**
 * Whole programs: what a call and a trapped access cost a client beside a bare socket echo between two C programs, a copy
 * by the DSA model beside memcpy, and qemu-io on the NVMe model beside qemu-io on a file in memory. Client and daemon are
 * two processes on one machine, as for a user.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type BenchRow, median } from "./row.ts";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const ROUNDS = 5;

const run = (command: string, ...args: string[]): string => {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: "utf8",
    maxBuffer: 1 << 26,
  });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${error?.message ?? stderr}`);
  return stdout;
};

interface Place {
  /** The built command. */
  readonly softiommu: string;
  /** Scratch folder. */
  readonly folder: string;
}

const attached = ({ softiommu }: Place, ...command: string[]): string =>
  run(process.execPath, softiommu, "run", "--", ...command);

const compile = ({ folder }: Place, name: string): string => {
  const program = join(folder, name);
  run("cc", "-D_GNU_SOURCE", "-O2", "-o", program, here(`c/${name}.c`));
  return program;
};

/** The 50th and 99th of a hundred, in microseconds; the first tenth warms up. */
const percentiles = (output: string): { p50: number; p99: number } => {
  const figures = output.trim().split("\n").map(Number);
  const sorted = figures.slice(figures.length / 10).sort((a, b) => a - b);
  return {
    p50: sorted[Math.floor(sorted.length * 0.5)]! / 1000,
    p99: sorted[Math.floor(sorted.length * 0.99)]! / 1000,
  };
};

const roundTrips = (place: Place): BenchRow[] => {
  const echo = compile(place, "echo");
  const client = compile(place, "roundtrip");
  const paces = [
    { pace: "back to back", count: "20000", pause: "0" },
    { pace: "200 µs apart", count: "2000", pause: "200" },
  ];
  return paces.flatMap(({ pace, count, pause }) => {
    const rounds = Array.from({ length: ROUNDS }, () => ({
      echo: percentiles(run(echo, count, pause)),
      ioctl: percentiles(attached(place, client, "ioctl", count, pause)),
      trap: percentiles(attached(place, client, "trap", count, pause)),
    }));
    return (["ioctl", "trap"] as const).flatMap((what) =>
      (["p50", "p99"] as const).map((percentile) => {
        const ours = median(rounds.map((round) => round[what][percentile]));
        const baseline = median(rounds.map((round) => round.echo[percentile]));
        const name = what === "ioctl" ? "ioctl round trip" : "trapped 4-byte BAR read";
        return {
          name: `${name}, ${pace}, ${percentile}`,
          ours,
          baseline,
          unit: "µs",
          ratio: ours / baseline,
        };
      }),
    );
  });
};

/** Seconds that qemu-io's commands took together, from the rate it prints for each: its times have two digits only. */
const qemuSeconds = (output: string): number => {
  const commands = [...output.matchAll(/(\d+) ops; .* and ([\d.]+) ops\/sec/g)];
  if (commands.length === 0) throw new Error(`qemu-io did not say how long it took:\n${output}`);
  return commands.reduce((sum, [, count, rate]) => sum + Number(count) / Number(rate), 0);
};

const qemu = (place: Place): BenchRow[] => {
  if (spawnSync("which", ["qemu-io"]).status !== 0) return [];
  const file = join(place.folder, "disk.img");
  writeFileSync(file, "");
  truncateSync(file, 1 << 30);
  const random = Array.from({ length: 2000 }, (_, i) => `read ${((i * 7919) % 16384) * 4096} 4096`);
  const sequential = Array.from({ length: 64 }, (_, i) => `read ${i << 20} 1048576`);
  const fill = ["write 0 64M"];
  const measure = (commands: readonly string[]): { ours: number; baseline: number } => {
    const args = ["-f", "raw", ...[...fill, ...commands].flatMap((command) => ["-c", command])];
    const lessFill = (output: string): number => qemuSeconds(output.slice(output.indexOf("read ")));
    const rounds = Array.from({ length: ROUNDS }, () => ({
      ours: lessFill(attached(place, "qemu-io", ...args, "nvme://0000:01:00.0/1")),
      baseline: lessFill(run("qemu-io", ...args, file)),
    }));
    return {
      ours: median(rounds.map(({ ours }) => ours)),
      baseline: median(rounds.map(({ baseline }) => baseline)),
    };
  };
  const row = (name: string, commands: readonly string[]): BenchRow => {
    const { ours, baseline } = measure(commands);
    const each = (seconds: number): number => (seconds / commands.length) * 1e6;
    return { name, ours: each(ours), baseline: each(baseline), unit: "µs", ratio: ours / baseline };
  };
  return [
    row("qemu-io NVMe 4 KiB random read (against a file in memory)", random),
    row("qemu-io NVMe 1 MiB sequential read (against a file in memory)", sequential),
  ];
};

const COPIED_BYTES = 2 ** 20;

/** A mebibyte copied by the accelerator for a program, beside memcpy in that program. */
const accelerator = (place: Place): BenchRow => {
  const program = compile(place, "dsa");
  const rate = (output: string): number => COPIED_BYTES / (percentiles(output).p50 * 1000);
  const rounds = Array.from({ length: ROUNDS }, () => ({
    ours: rate(attached(place, program, "dsa", "200")),
    baseline: rate(run(program, "memcpy", "200")),
  }));
  const ours = median(rounds.map((round) => round.ours));
  const baseline = median(rounds.map((round) => round.baseline));
  return {
    name: "DSA memory move of 1 MiB (against memcpy)",
    ours,
    baseline,
    unit: "GB/s",
    ratio: ours / baseline,
  };
};

/** `softiommu` is the built command. Without qemu-io its rows are left out. */
export const programsBench = async (softiommu: string): Promise<BenchRow[]> => {
  const place = { softiommu, folder: mkdtempSync(join(tmpdir(), "softiommu-bench-")) };
  try {
    return [...roundTrips(place), accelerator(place), ...qemu(place)];
  } finally {
    rmSync(place.folder, { recursive: true });
  }
};
