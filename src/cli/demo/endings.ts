/** How stories end: what the host has left when all that used it is gone. */
import { reached, walk } from "../../trace/walk.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

/** Of everything that a machine counts nothing is left; and `also` holds. */
export const claimNothingLeft = (
  { machine }: Stage,
  teller: Teller,
  claim = "nothing is left on the host",
  also = true,
): void => {
  const left = Object.entries(machine.live()).filter(([, count]) => count !== 0);
  teller.claim(claim, left.length === 0 && also, left.map(([what, count]) => `${what}: ${count}`).join(", "));
};

/** The story's device, by the story's name for such, reaches nothing at an address where it did. */
export const claimBlocked = (stage: Stage, teller: Teller, name: string, iova: number): void =>
  teller.claim(`the ${name} is blocked again`, isBlocked(stage, iova));

export const isBlocked = ({ machine, device }: Stage, iova: number): boolean =>
  !reached(walk(machine, { device, iova: BigInt(iova), write: false }));
