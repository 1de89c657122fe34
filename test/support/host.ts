/** A host in the test's own process, so that a test can look at what is alive between programs. */
import { spawn } from "node:child_process";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { Host } from "../../src/attach/host.ts";
import type { EventSink } from "../../src/base/events.ts";
import { silent } from "../../src/base/events.ts";
import { parseMachine } from "../../src/machine/file.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import { type Outcome, outcome } from "./run.ts";

export const hostOf = (preset: string, events: EventSink = silent): Host =>
  new Host(parseMachine(PRESETS.get(preset)!, preset), { events });

export const vtdHost = (events: EventSink = silent): Host => hostOf("vtd", events);

/** `onBug` is told of internal errors. */
export const mockHost = (onBug: (where: string, reason: string) => void): Host =>
  new Host(parseMachine(PRESETS.get("mock")!, "mock"), { onBug });

export const start = (host: Host, command: string, ...args: string[]) =>
  spawn(command, args, { env: { ...process.env, ...host.environment() }, stdio: ["ignore", "pipe", "pipe"] });

export const runOn = (host: Host, command: string, ...args: string[]): Promise<Outcome> =>
  outcome(start(host, command, ...args));

/** Whatever clients left behind; empty when nothing is. Descriptors close a moment after a process has ended. */
export const leftOver = async (host: Host): Promise<Record<string, number>> => {
  for (let patience = 100; ; patience--) {
    const left = Object.fromEntries(Object.entries(host.live()).filter(([, count]) => count !== 0));
    if (Object.keys(left).length === 0 || patience === 0) return left;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

setFlagsFromString("--expose_gc");
const collect = runInNewContext("gc") as () => void;

/** Bytes of heap in use after a full collection. */
export const heapInUse = (): number => {
  collect();
  collect();
  return process.memoryUsage().heapUsed;
};
