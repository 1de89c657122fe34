/** `softiommu demo`: a story told on a machine in this process; exit code 1 when one of its claims does not hold. */
import { BREAKS, isBreak } from "../machine/breaks.ts";
import { plain } from "../trace/explain.ts";
import { basics } from "./demo/basics.ts";
import { Stage } from "./demo/stage.ts";
import { Teller } from "./demo/story.ts";
import { ExitCode, UsageError } from "./exit.ts";
import { loadMachine } from "./machines.ts";
import { colorsOf, print } from "./output.ts";

export interface DemoOptions {
  readonly machine: string;
  readonly break?: string;
  readonly json?: boolean;
}

const stories = { basics } as const;
const isStory = (name: string): name is keyof typeof stories => Object.hasOwn(stories, name);

export const demo = (name: string, { machine, break: fault, json = false }: DemoOptions): number => {
  if (!isStory(name))
    throw new UsageError(`no story is named ${name}; there is ${Object.keys(stories).join(", ")}`);
  if (fault !== undefined && !isBreak(fault))
    throw new UsageError(`--break ${fault}: one of ${Object.keys(BREAKS).join(", ")}`);
  const teller = json ? new Teller(plain, () => {}) : new Teller(colorsOf(process.stdout), print);
  const stage = new Stage(loadMachine(machine), new Set(fault === undefined ? [] : [fault]));
  try {
    if (!json && fault !== undefined) print(`Injected on purpose: ${BREAKS[fault]}.`);
    stories[name](stage, teller);
  } finally {
    stage.close();
  }
  const { claims, failed } = teller;
  if (json)
    print(JSON.stringify({ story: name, machine, break: fault, ok: failed === 0, claims }, undefined, 2));
  else print(`\n${claims.length - failed} of ${claims.length} claims hold.`);
  return failed === 0 ? ExitCode.ok : ExitCode.failed;
};
