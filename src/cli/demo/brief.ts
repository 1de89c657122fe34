/** What a story shows in one line each. */
import type { Walk } from "../../trace/walk.ts";
import { LinuxError } from "../../uapi/errno.ts";

/** Why it was refused; undefined: it was not. */
export const refusalOf = (work: () => void): string | undefined => {
  try {
    work();
    return undefined;
  } catch (error) {
    if (error instanceof LinuxError) return error.message;
    throw error;
  }
};

/** A walk: one line for each step, without the fields of the entries. */
export const brief = ({ steps }: Walk): string[] =>
  steps.map(({ what, address, value, note, outcome }) => {
    if (outcome?.ok === true) return `reaches ${outcome.pa}`;
    if (outcome?.ok === false) return `refused: ${outcome.reason}`;
    return `${what.padEnd(14)} ${address ? `at ${address} is ${value}: ` : ""}${note ?? ""}`;
  });
