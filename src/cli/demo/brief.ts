/** A walk in a story: one line for each step, without the fields of the entries. */
import type { Walk } from "../../trace/walk.ts";

export const brief = ({ steps }: Walk): string[] =>
  steps.map(({ what, address, value, note, outcome }) => {
    if (outcome?.ok === true) return `reaches ${outcome.pa}`;
    if (outcome?.ok === false) return `refused: ${outcome.reason}`;
    return `${what.padEnd(14)} ${address ? `at ${address} is ${value}: ` : ""}${note ?? ""}`;
  });
