/**
 * What stands behind a virtual unit whose guest's commands a host takes as they are (SMMUv3, AMD-Vi): it makes the host do
 * what the guest's entries for its devices say, and hands the commands on, or carries them out on copies. Errors are
 * `LinuxError`s of the host.
 */
import type { InvalidationCount } from "./host-calls.ts";

export interface CommandBackEnd {
  /** What the host holds because of the guest's tables: nested HWPTs, or mappings. */
  readonly held: number;
  /** Entries of the devices [first, end) changed: reads them again. Throws what the host answers. */
  reread(first: number, end: number): void;
  /** Commands as they were in the guest's queue, in order; stops at the first that the host refuses. */
  command(commands: readonly bigint[]): InvalidationCount;
}
