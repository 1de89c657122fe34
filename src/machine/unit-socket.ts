/** Between the description of a unit and its family's silicon and driver: what a unit gets, and what a machine gets of it. */
import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import type { Rmp } from "../hardware/rmp.ts";
import type { IommuUnit, SendMessage } from "../hardware/unit.ts";
import type { IommuDriver } from "../iommu/driver.ts";
import type { MsiController } from "../kernel/msi.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import type { Break } from "./breaks.ts";
import type { Extension } from "./schema.ts";
import type { UnitAttributes } from "./sysfs.ts";

/** What a unit is plugged into. */
export interface UnitSocket {
  readonly memory: HostMemory;
  /** The same, as the unit reaches it. */
  readonly unitMemory: HostMemory;
  readonly msi: MsiController;
  readonly events: EventSink;
  readonly scheduler: Scheduler;
  readonly interrupt: SendMessage;
  readonly seed: number;
  /** Names of the functions behind the unit. */
  readonly behind: ReadonlySet<string>;
  readonly extensions: readonly Extension[];
  /** Injected on purpose. */
  readonly broken: ReadonlySet<Break>;
  /** With secure nested paging: what is whose. */
  readonly rmp?: Rmp;
}

export interface PoweredUnit {
  readonly unit: IommuUnit;
  readonly driver: IommuDriver & {
    /** Domains that exist. */
    readonly domains: number;
    /** Faults that the driver was told of. */
    readonly faultCount: number;
    close(): void;
  };
  readonly sysfs: UnitAttributes;
  /** The registers that a translation depends on, by their specification's names. */
  saveRegisters(): { readonly [register: string]: bigint };
  /** Makes a unit that is up use saved registers; what is missing stays. */
  restoreRegisters(saved: { readonly [register: string]: bigint }): void;
}
