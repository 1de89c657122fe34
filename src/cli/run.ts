/** `softiommu run`: a machine, a program in front of it, and the program's own exit status. */
import { spawn } from "node:child_process";
import { constants } from "node:os";
import { Host } from "../attach/host.ts";
import { checkProgram, findProgram } from "../attach/program.ts";
import { monotonic } from "../base/clock.ts";
import { explain } from "../trace/explain.ts";
import { Fan } from "../trace/fan.ts";
import { TraceFile } from "../trace/file.ts";
import { Inspection } from "../trace/inspect.ts";
import { Tally } from "../trace/tally.ts";
import { ExitCode } from "./exit.ts";
import { loadMachine } from "./machines.ts";
import { colorsOf } from "./output.ts";

export interface RunOptions {
  readonly machine: string;
  readonly device: readonly string[];
  readonly trace?: string;
  readonly explain?: boolean;
  readonly quiet: boolean;
}

/** Signals of a terminal reach the program itself; those sent to us alone are passed on. */
const PASSED_ON = ["SIGTERM", "SIGHUP"] as const;

export const runProgram = async ([program, ...args]: string[], options: RunOptions): Promise<number> => {
  const refusal = checkProgram(program!);
  if (refusal !== undefined) {
    process.stderr.write(`softiommu: ${refusal}\n`);
    return findProgram(program!) === undefined ? ExitCode.notFound : ExitCode.notAttachable;
  }
  const description = loadMachine(options.machine, options.device);
  const clock = monotonic();
  const events = new Fan(clock);
  const trace = options.trace === undefined ? undefined : new TraceFile(options.trace);
  if (trace) events.listen((event) => trace.write(event));
  const tally = options.explain && !options.quiet ? explainOnStderr(events) : undefined;
  const host = new Host(description, {
    events,
    clock,
    onBug: (where, reason) => {
      if (!options.quiet) process.stderr.write(`softiommu: internal error (${where}): ${reason}\n`);
    },
  });
  const inspection = new Inspection(host.machine, host.folder, [program, ...args].join(" "));
  let stopped = false;
  const stop = (): void => {
    if (stopped) return;
    stopped = true;
    inspection.close();
    host.stop();
    trace?.close();
  };
  process.once("exit", stop); // whatever ends us, the run's folder goes
  try {
    return await statusOf(program!, args, host);
  } finally {
    stop();
    process.off("exit", stop);
    if (trace?.failure) process.stderr.write(`softiommu: the trace ended early: ${trace.failure}\n`);
    if (tally) process.stderr.write(`softiommu: ${tally}\n`);
  }
};

/** A line for everything that failed; what it returns sums the run up. */
const explainOnStderr = (events: Fan): Tally => {
  const tally = new Tally();
  const colors = colorsOf(process.stderr);
  events.listen((event) => {
    tally.count(event);
    const line = explain(event, colors);
    if (line !== undefined) process.stderr.write(`softiommu: ${line}\n`);
  });
  return tally;
};

const statusOf = (program: string, args: readonly string[], host: Host): Promise<number> =>
  new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: "inherit", env: { ...process.env, ...host.environment() } });
    const ignore = (): void => {};
    const passOn = (signal: NodeJS.Signals): void => void child.kill(signal);
    process.on("SIGINT", ignore);
    process.on("SIGQUIT", ignore);
    for (const signal of PASSED_ON) process.on(signal, passOn);
    const settle = (act: () => void): void => {
      process.off("SIGINT", ignore);
      process.off("SIGQUIT", ignore);
      for (const signal of PASSED_ON) process.off(signal, passOn);
      act();
    };
    child.on("error", (error) => settle(() => reject(error)));
    child.on("exit", (code, signal) => settle(() => resolve(code ?? 128 + constants.signals[signal!])));
  });
