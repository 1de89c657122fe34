/** What a unit reports of the ways a page-table walk can end: its own code for each. */
import { WalkFault } from "../pagetable/format.ts";

/** By `WalkFault`: the code that is named, or that of all others. */
export const faultCodes = (
  others: number,
  named: { readonly [fault in keyof typeof WalkFault]?: number },
): readonly number[] => {
  const codes: number[] = [];
  for (const [name, fault] of Object.entries(WalkFault) as [keyof typeof WalkFault, number][])
    codes[fault] = named[name] ?? others;
  return codes;
};
