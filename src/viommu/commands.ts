/**
 * What stands behind a virtual unit whose guest's commands a host takes as they are (SMMUv3, AMD-Vi): it makes the host do
 * what the guest's entries for its devices say, and hands the commands on, or carries them out on copies. Errors are
 * `LinuxError`s of the host.
 */
import type { Followed } from "./following.ts";
import type { InvalidationCount } from "./host-calls.ts";

export interface CommandBackEnd {
  /** What the host holds because of the guest's tables: nested HWPTs, or mappings. */
  readonly held: number;
  /** Entries of the devices [first, end) changed: reads them again. Throws what the host answers. */
  reread(first: number, end: number): void;
  /** Commands as they were in the guest's queue, in order; stops at the first that the host refuses. */
  command(commands: readonly bigint[]): InvalidationCount;
}

/** Devices by the guest's numbers: [first, end). */
export interface DeviceRange {
  readonly first: number;
  readonly end: number;
}
export const ALL_DEVICES: DeviceRange = { first: 0, end: Number.POSITIVE_INFINITY };

/** As a front end asks it. */
export const followedBy = (backEnd: CommandBackEnd): Followed<bigint, DeviceRange> => ({
  tell: (commands) => backEnd.command(commands),
  reread: ({ first, end }) => backEnd.reread(first, end),
});
