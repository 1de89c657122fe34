/** A VT-d unit in the hands of its driver: what the parts of the driver share. */
import type { Ids } from "../../base/ids.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { Range } from "../range.ts";
import type { Abilities } from "./abilities.ts";
import type { VtdDevice } from "./device.ts";
import type { Invalidations } from "./invalidations.ts";
import type { Translation } from "./translation.ts";

/** The tables from a requester to what translates it, in either mode. Invalidations are done when a call returns. */
export interface Tables {
  /** The function comes: everything it asks for is blocked. Throws ENOMEM; then nothing has changed. */
  admit(device: VtdDevice): void;
  /** The function does not answer invalidations: translated requests of it are refused from now on. */
  distrust(device: VtdDevice): void;
  /** The function goes; it has been given nothing any more. */
  expel(device: VtdDevice): void;
  /**
   * Requests of the function with the PASID (`RID_PASID`: without one) go through `next`, or nothing, instead of
   * `before`, or nothing. Throws ENOMEM; then nothing has changed.
   */
  write(
    device: VtdDevice,
    pasid: number,
    next: Translation | undefined,
    before: Translation | undefined,
  ): void;
  /** The unit is off. */
  free(): void;
}

export interface Unit {
  readonly name: string;
  readonly memory: HostMemory;
  readonly abilities: Abilities;
  readonly invalidations: Invalidations;
  readonly tables: Tables;
  readonly domainIds: Ids;
  /** What the function's own TLB knows; nothing to do when it has none. */
  flushDevice(device: VtdDevice, pasid: number, range: Range): void;
}
