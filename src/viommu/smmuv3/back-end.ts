/**
 * What stands behind a virtual SMMUv3: it makes the host do what the guest's stream table entries say, and hands the
 * guest's commands on. Errors are `LinuxError`s of the host.
 */
import { Config, Ste } from "../../hardware/smmuv3/spec.ts";
import type { InvalidationCount } from "../host-calls.ts";

/**
 * What stands for an entry that is missing or not valid: one that every unit finds illegal when a device makes an access,
 * with more context descriptors than SubstreamIDs have (IHI 0070, §5.2), and no host objects to before.
 */
export const NO_ENTRY = Ste.make({ V: true, CONFIG: Config.stage1, S1CDMAX: 31 });

export interface SmmuBackEnd {
  /** Stage 1 tables of the guest that the host's unit walks. */
  readonly held: number;
  /** Entries of the streams [first, end) changed: reads them again. Throws what the host answers. */
  reread(first: number, end: number): void;
  /** Commands as they were in the guest's queue, in order; stops at the first that the host refuses. */
  command(commands: readonly bigint[]): InvalidationCount;
}
