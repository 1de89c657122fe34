/** Runs of the same user on this computer: finding them, and asking one (inspect.ts is the other end). */
import { readdirSync, statSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { runsFolder } from "../base/places.ts";
import { type About, INSPECT_SOCKET, type Question, type Reply } from "./inspect.ts";

/** A run that answered. */
export interface Run extends About {
  readonly socket: string;
}

const PATIENCE_MILLISECONDS = 10_000;

/** Asks one question. Rejects with a sentence when the run is gone, does not answer, or says no. */
export const ask = (socketPath: string, question: Question): Promise<unknown> =>
  new Promise((resolve, reject) => {
    const socket = connect(socketPath);
    let text = "";
    const fail = (reason: string): void => {
      socket.destroy();
      reject(new Error(reason));
    };
    socket.setEncoding("utf8");
    socket.setTimeout(PATIENCE_MILLISECONDS, () => fail("the run does not answer"));
    socket.on("connect", () => socket.write(`${JSON.stringify(question)}\n`));
    socket.on("error", ({ message }) => fail(`the run cannot be asked: ${message}`));
    socket.on("end", () => fail("the run ended"));
    socket.on("data", (part: string) => {
      text += part;
      if (!part.endsWith("\n")) return;
      socket.destroy();
      const reply = JSON.parse(text) as Reply;
      if (reply.ok) resolve(reply.answer);
      else reject(new Error(reply.reason));
    });
  });

/** Every run of this user that answers. */
export const findRuns = async (folder: string = runsFolder()): Promise<Run[]> => {
  const sockets = readdirSync(folder)
    .filter((name) => name.startsWith("softiommu-"))
    .map((name) => join(folder, name, INSPECT_SOCKET))
    .filter(isOurs);
  const answers = await Promise.all(
    sockets.map(async (socket): Promise<Run | undefined> => {
      try {
        return { ...((await ask(socket, { ask: "about" })) as About), socket };
      } catch {
        return undefined; // what a run that was killed has left
      }
    }),
  );
  return answers.filter((run) => run !== undefined).sort((a, b) => a.pid - b.pid);
};

const isOurs = (path: string): boolean => {
  try {
    const stat = statSync(path);
    return stat.isSocket() && stat.uid === process.getuid?.();
  } catch {
    return false;
  }
};

/** The run with this pid; without one the only run there is. Throws a sentence that lists the runs otherwise. */
export const chooseRun = (runs: readonly Run[], pid?: number): Run => {
  const list = runs.map((run) => `  ${run.pid}  ${run.machine}  ${run.program}`).join("\n");
  if (runs.length === 0)
    throw new Error("nothing runs: start a program with softiommu run, or give a saved state with --state");
  if (pid === undefined && runs.length > 1)
    throw new Error(`several runs; choose one with --run PID:\n${list}`);
  const chosen = pid === undefined ? runs[0] : runs.find((run) => run.pid === pid);
  if (chosen === undefined) throw new Error(`no run has pid ${pid}; there is:\n${list}`);
  return chosen;
};
