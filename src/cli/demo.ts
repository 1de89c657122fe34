/** `softiommu demo`: a story told on a machine in this process; exit code 1 when one of its claims does not hold. */
import { plain } from "../trace/explain.ts";
import { FAULTS, type Fault } from "./demo/faults.ts";
import { recordOf } from "./demo/record.ts";
import { Stage } from "./demo/stage.ts";
import { placeOf, STORIES, type Story, tellStory } from "./demo/stories.ts";
import { Teller } from "./demo/story.ts";
import { ExitCode, UsageError } from "./exit.ts";
import { loadMachine } from "./machines.ts";
import { colorsOf, print } from "./output.ts";

export interface DemoOptions {
  /** Default: the story's own. */
  readonly machine?: string;
  readonly break?: string;
  readonly json?: boolean;
}

const storyOf = (name: string): Story => {
  const story = STORIES.get(name);
  if (story) return story;
  throw new UsageError(`no story is named ${name}; there is ${[...STORIES.keys()].join(", ")}`);
};

const faultOf = (name: string, story: Story): Fault => {
  const fault = story.faults.find((known) => known === name);
  if (fault !== undefined) return fault;
  throw new UsageError(`--break ${name}: one of ${story.faults.join(", ")} in this story`);
};

export const demo = (name: string, options: DemoOptions): number => {
  const { break: broken, json = false } = options;
  const asked = storyOf(name);
  const guest = asked.guests?.[options.machine ?? ""];
  const story = guest === undefined ? asked : storyOf(guest);
  const machine = (guest === undefined ? options.machine : undefined) ?? story.machine ?? "vtd";
  const faults = broken === undefined ? [] : [faultOf(broken, story)];
  const teller = json ? new Teller(plain, () => {}) : new Teller(colorsOf(process.stdout), print);
  const description = placeOf(story, loadMachine(machine));
  const stage = new Stage(description, new Set(faults));
  try {
    if (!json) for (const fault of faults) print(`Injected on purpose: ${FAULTS[fault]}.`);
    tellStory(story, stage, teller);
    if (options.machine === undefined) story.everywhere?.(teller, stage.broken);
  } finally {
    stage.close();
  }
  const { claims, failed } = teller;
  if (json) {
    const { seed } = description;
    const told = {
      story: guest ?? name,
      machine,
      seed,
      break: broken,
      ok: failed === 0,
      claims,
      ...recordOf(stage),
    };
    print(JSON.stringify(told, undefined, 2));
  } else print(`\n${claims.length - failed} of ${claims.length} claims hold.`);
  return failed === 0 ? ExitCode.ok : ExitCode.failed;
};
