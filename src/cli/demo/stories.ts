/** The stories there are, and what can be injected into each. */
import { basics } from "./basics.ts";
import { fallback } from "./fallback.ts";
import type { Fault } from "./faults.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

export interface Story {
  readonly tell: (stage: Stage, teller: Teller) => void;
  /** Each makes a claim fail. */
  readonly faults: readonly Fault[];
}

export const STORIES: ReadonlyMap<string, Story> = new Map<string, Story>([
  ["basics", { tell: basics, faults: ["skip-flush"] }],
  ["fallback", { tell: fallback, faults: ["skip-flush", "stale-iotlb", "wrong-page"] }],
]);
