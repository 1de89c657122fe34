/**
 * First-stage page tables of Intel VT-d in scalable mode (revision 4.1, §3.6 and §9.7; "first-level" before revision
 * 3): x86-64 tables of 4 or 5 levels, with an extended accessed flag. What a unit's capabilities and a PASID table entry
 * make of the bits is in the options. An access is refused at the first entry that denies it, as recorded units do.
 */
import type { PageTableFormat } from "./format.ts";
import { x86Paging } from "./x86-64.ts";

export interface FirstLevelOptions {
  /** Log2 of the leaf sizes: 12 and 21 always, 30 with CAP.FS1GP. Default: all three. */
  readonly pageLg2s?: readonly number[];
  /** HAW: address bits from here up to 51 are reserved. Default 52. */
  readonly hostAddressWidth?: number;
  /** NXE: XD forbids execution, else it is reserved; `"ignored"` on a unit without execute requests (ECAP.ERS = 0). */
  readonly executeDisable?: boolean | "ignored";
  /** False for supervisor requests when WPE = 0: they write where R/W = 0 as well. Default true. */
  readonly writeProtect?: boolean;
  /** EAFE: EA is set where A is. Default false. */
  readonly extendedAccessed?: boolean;
}

export const vtdFirstLevel = (levels: 4 | 5, options: FirstLevelOptions = {}): PageTableFormat => {
  const { hostAddressWidth = 52, executeDisable = "ignored", ...rest } = options;
  return x86Paging(levels, {
    ...rest,
    physicalBits: hostAddressWidth,
    executeDisable,
    deniedAt: "entry",
    name: "VT-d first stage",
    prefix: "FS-",
  });
};
