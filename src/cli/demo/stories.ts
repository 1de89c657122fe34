/** The stories there are, and what can be injected into each. */
import type { Extension, MachineDescription } from "../../machine/schema.ts";
import { anchors } from "./anchors.ts";
import { basics } from "./basics.ts";
import { fallback } from "./fallback.ts";
import type { Fault } from "./faults.ts";
import { tellMatrix } from "./matrix.ts";
import { nested } from "./nested.ts";
import { snp } from "./snp.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";
import { virtio } from "./virtio.ts";
import { vsva } from "./vsva.ts";
import { windows } from "./windows.ts";

export interface Story {
  readonly tell: (stage: Stage, teller: Teller) => void;
  /** Each makes a claim fail. */
  readonly faults: readonly Fault[];
  /** Where it takes place unless it is told where; left out: `vtd`. */
  readonly machine?: string;
  /** What a machine gets that Linux 7.2 lacks and the story needs, by the model of a unit of its. */
  readonly extensions?: { readonly [model: string]: Extension };
  /** Words for `--machine` that ask for another story, on the machine where that takes place. */
  readonly guests?: { readonly [word: string]: string };
  /** Told as well when no machine is named. */
  readonly everywhere?: (teller: Teller, faults: ReadonlySet<Fault>) => void;
}

export const STORIES: ReadonlyMap<string, Story> = new Map<string, Story>([
  ["basics", { tell: basics, faults: ["skip-flush"] }],
  [
    "nested",
    {
      tell: nested,
      faults: ["skip-flush", "stale-iotlb", "wrong-page", "wrong-pasid", "lost-response"],
      extensions: { amdvi: "amd-nesting" },
      guests: { virtio: "virtio", s390: "anchors", snp: "snp", power: "windows" },
    },
  ],
  [
    "vsva",
    {
      tell: vsva,
      faults: ["skip-flush", "stale-iotlb", "wrong-page", "wrong-pasid", "lost-response", "wrong-owner"],
      machine: "vtd-vsva",
    },
  ],
  ["windows", { tell: windows, faults: ["skip-flush", "stale-iotlb", "wrong-page"], machine: "power" }],
  ["anchors", { tell: anchors, faults: ["skip-flush", "stale-iotlb", "wrong-page"], machine: "s390" }],
  ["snp", { tell: snp, faults: ["skip-rmp", "skip-flush", "stale-iotlb", "wrong-page"], machine: "snp" }],
  ["virtio", { tell: virtio, faults: ["skip-flush", "stale-iotlb", "wrong-page"] }],
  [
    "fallback",
    { tell: fallback, faults: ["skip-flush", "stale-iotlb", "wrong-page"], everywhere: tellMatrix },
  ],
]);

/** The machine with what the story needs of it. */
export const placeOf = ({ extensions = {} }: Story, description: MachineDescription): MachineDescription => {
  const needed = description.units.flatMap(({ model }) => extensions[model] ?? []);
  return { ...description, extensions: [...new Set([...description.extensions, ...needed])] };
};

/** Tells a story; one that cannot go on has a claim more that does not hold. */
export const tellStory = ({ tell }: Story, stage: Stage, teller: Teller): void => {
  try {
    tell(stage, teller);
  } catch (error) {
    teller.claim(
      "the story can be told to its end",
      false,
      error instanceof Error ? error.message : String(error),
    );
  }
};
