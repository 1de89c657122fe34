/** What the files of VFIO share: the machine's IOMMU core, where interrupts end, who listens, and what is alive. */
import type { EventSink } from "../base/events.ts";
import type { Group, IommuCore } from "../iommu/core.ts";
import type { Pasids } from "../iommu/pasids.ts";
import type { DeviceObject } from "../iommufd/device.ts";
import type { KernelFile } from "../kernel/call.ts";
import type { MsiController } from "../kernel/msi.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import type { FaultRegion } from "./fault-region.ts";

/** Counts of what exists now; all zero when every client is gone. */
export interface LiveObjects {
  containers: number;
  /** Group files that are open. */
  groups: number;
  /** Device files that are open and reach their device. */
  devices: number;
  /** Character devices that are open, bound or not. */
  cdevs: number;
  mappings: number;
  /** Eventfds of clients that are held. */
  eventfds: number;
}

export interface VfioContext {
  readonly core: IommuCore;
  readonly msi: MsiController;
  readonly events: EventSink;
  readonly live: LiveObjects;
  /** The machine's PASIDs. */
  readonly pasids: Pasids;
  /** The interface of 2020 is there: nesting containers, and what goes with them. */
  readonly vsva2020: boolean;
  /** Units, by name, that tell nesting containers nothing of themselves. */
  readonly untold: ReadonlySet<string>;
  /** Where fault regions of devices lie; undefined: devices have none. */
  readonly faultMemory: HostMemory | undefined;
  /** The IOMMU group behind a file, when it is a group's. */
  groupOf(file: KernelFile): Group | undefined;
  /** What can be reset under this name, and the iommufd's object of it while it is bound to one. */
  device(name: string):
    | {
        reset(): void;
        readonly bound: DeviceObject | undefined;
        /** While a file of it is open. */
        readonly faults: FaultRegion | undefined;
      }
    | undefined;
}
