/** What a walk is asked and answers: the same for every format, so that a unit chooses a walker once per domain. */
import type { HostMemory } from "../memory/host-memory.ts";

/** Where a walk ended. One is kept and used again: a walk allocates nothing. */
export class WalkResult {
  /** Physical address of the byte asked for. Valid when there was no fault, as are `lg2`, `span` and `allowed`. */
  pa = 0;
  /** Log2 of the bytes of the leaf. */
  lg2 = 0;
  /** Bytes from `pa` to the end of the leaf. */
  span = 0;
  /** `Permission` bits that no entry on the way denied. */
  allowed = 0;
  /** Index of the level of the last entry looked at in `PageTableFormat.levels`; -1 when none was. */
  level = -1;
  /** Where that entry is, and its words; of a table that could not be read, only the address. */
  entryAddress = 0;
  lo = 0;
  hi = 0;
}

/**
 * Translates the address (`hi`, `lo`: two 32-bit words, signed or not) with the tables at `root` (physical, bytes) for an
 * access that needs all of `need` (`Permission` bits). Returns a `WalkFault`, 0 = translated. Where it ended is in `out`.
 */
export type Walker = (
  memory: HostMemory,
  root: number,
  lo: number,
  hi: number,
  need: number,
  out: WalkResult,
) => number;
