/** `softiommu walk`: one translation of a live run or of a saved state, step by step; or the state of a run, saved. */
import { readFileSync, writeFileSync } from "node:fs";
import { restoreState, StateFileError } from "../machine/state.ts";
import { ask, chooseRun, findRuns } from "../trace/runs.ts";
import { formatWalk, reached, type Walk, type WalkQuestion, walk } from "../trace/walk.ts";
import { ExitCode, UsageError } from "./exit.ts";
import { colorsOf, print } from "./output.ts";

export interface WalkOptions {
  readonly device?: string;
  readonly iova?: string;
  readonly pasid?: string;
  readonly write?: boolean;
  readonly run?: string;
  readonly state?: string;
  readonly save?: string;
  readonly json?: boolean;
}

export const walkCommand = async (options: WalkOptions): Promise<number> => {
  const { save, state, json } = options;
  if (save !== undefined) {
    if (state !== undefined) throw new UsageError("--save takes the state of a run; --state is one already");
    await saveRun(save, options.run);
    if (options.device === undefined) return ExitCode.ok;
  }
  const told = await tell(questionOf(options), options);
  if (json) print(JSON.stringify(told));
  else {
    for (const line of formatWalk(told, colorsOf(process.stdout))) print(line);
    if (state !== undefined) print("(a saved state has no caches: a live unit may still use an older entry)");
  }
  return reached(told) ? ExitCode.ok : ExitCode.failed;
};

const tell = async (question: WalkQuestion, { state, run }: WalkOptions): Promise<Walk> => {
  if (state !== undefined) return walkSaved(question, state);
  const { socket } = chooseRun(await findRuns(), pidOf(run));
  const { device, iova, write, pasid } = question;
  const asked = { ask: "walk" as const, device, iova: `0x${iova.toString(16)}`, write, pasid };
  return (await ask(socket, asked)) as Walk;
};

const walkSaved = (question: WalkQuestion, file: string): Walk => {
  try {
    const machine = restoreState(readFileSync(file, "utf8"));
    try {
      return walk(machine, question);
    } finally {
      machine.close();
    }
  } catch (error) {
    if (error instanceof StateFileError) throw new UsageError(`${file}: ${error.message}`);
    throw error;
  }
};

const saveRun = async (file: string, run: string | undefined): Promise<void> => {
  const { socket, pid } = chooseRun(await findRuns(), pidOf(run));
  const state = (await ask(socket, { ask: "state" })) as { readonly frames: object };
  writeFileSync(file, `${JSON.stringify(state)}\n`);
  process.stderr.write(
    `softiommu: state of run ${pid} saved in ${file}: ${Object.keys(state.frames).length} frames\n`,
  );
};

const pidOf = (run: string | undefined): number | undefined => {
  if (run === undefined) return undefined;
  if (!/^\d+$/.test(run)) throw new UsageError(`--run ${run}: a process id is a number`);
  return Number(run);
};

const questionOf = ({ device, iova, pasid, write = false }: WalkOptions): WalkQuestion => {
  if (device === undefined || iova === undefined)
    throw new UsageError("--device BDF and --iova ADDRESS say what is to be walked");
  const name = /^[0-9a-f]{2}:/i.test(device) ? `0000:${device}` : device;
  if (!/^(0x[0-9a-f]{1,16}|\d{1,20})$/i.test(iova) || BigInt(iova) >= 2n ** 64n)
    throw new UsageError(`--iova ${iova}: an address has at most 64 bits, such as 0x10000`);
  if (pasid !== undefined && !(/^\d{1,7}$/.test(pasid) && Number(pasid) < 2 ** 20))
    throw new UsageError(`--pasid ${pasid}: a PASID is a number below ${2 ** 20}`);
  return {
    device: name.toLowerCase(),
    iova: BigInt(iova),
    write,
    ...(pasid !== undefined && { pasid: Number(pasid) }),
  };
};
