/** How much a unit remembers: as much as there is room for, unless tests want less. */
import type { Random } from "../base/clock.ts";

/** `none`: nothing is remembered. `paranoid`: at random, things are forgotten and not remembered. */
export type CachePolicy = "normal" | "none" | "paranoid";

/** Throws TypeError when the policy needs random numbers and there are none. */
export const requireRandom = (unit: string, policy: CachePolicy, random: Random | undefined): void => {
  if (policy === "paranoid" && !random)
    throw new TypeError(`${unit}: a paranoid cache needs a source of random numbers`);
};
