/**
 * What stands behind a virtual SMMUv3: it makes the host do what the guest's stream table entries say, and hands the
 * guest's commands on. Errors are `LinuxError`s of the host.
 */
import type { InvalidationCount } from "../host-calls.ts";

export interface SmmuBackEnd {
  /** Stage 1 tables of the guest that the host's unit walks. */
  readonly held: number;
  /** Entries of the streams [first, end) changed: reads them again. Throws what the host answers. */
  reread(first: number, end: number): void;
  /** Commands as they were in the guest's queue, in order; stops at the first that the host refuses. */
  command(commands: readonly bigint[]): InvalidationCount;
}
