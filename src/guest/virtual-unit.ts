/** What a VMM makes a virtual IOMMU of, whatever its model, and what comes out. */
import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import type { SendMessage } from "../hardware/unit.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import type { GuestRam } from "../viommu/assigned.ts";
import type { DeviceCalls } from "../viommu/device-calls.ts";
import type { HostCalls } from "../viommu/host-calls.ts";
import type { VmmBreak } from "./breaks.ts";
import type { GuestIommu } from "./firmware.ts";
import type { PassedDevice } from "./passed-device.ts";

export interface VirtualUnitParts<Calls extends DeviceCalls = HostCalls> {
  readonly name: string;
  readonly calls: Calls;
  /** Where guest memory is in the VMM's, and guest memory itself. */
  readonly ram: GuestRam;
  readonly memory: HostMemory;
  readonly devices: readonly PassedDevice[];
  /** Of `none` and virtio: what devices have where nothing translates. Others map the guest's memory as a whole. */
  readonly maps: MemoryMapping;
  /** Bits of guest physical addresses. */
  readonly addressWidth: number;
  readonly scheduler: Scheduler;
  /** What the guest's processors run later. */
  readonly processors: Scheduler;
  readonly events: EventSink;
  /** Interrupts the guest. */
  readonly interrupt: SendMessage;
  readonly broken: ReadonlySet<VmmBreak>;
}

/**
 * What of a guest's memory its VMM maps for devices: all of it, so that the host makes its pages as large as it can; all of
 * it in pages of 4 KiB; or what the guest shares, while it does, for a guest whose memory is private otherwise.
 */
export type MemoryMapping = "whole" | "small" | "shared";

/** Told of pages that a guest shares with its host, and takes back: before they are private again. */
export interface Sharing {
  share(gpa: number, length: number): void;
  takeBack(gpa: number, length: number): void;
}

export interface VirtualUnit {
  readonly iommu: GuestIommu;
  readonly backEnd: {
    /** What the host holds because of the guest's tables, or its requests: mappings, HWPTs, or bound tables. */
    readonly held: number;
    /** The guest is told of accesses to what it has not mapped, as the host can tell of them. */
    readonly reports?: boolean;
  };
  /** Where devices have what is shared. */
  readonly sharing?: Sharing;
  /**
   * Where in guest memory a message of a device goes that is written to this address, or -1; left out: just there. The
   * guest's unit translates messages like any access.
   */
  messageTarget?(rid: number, address: number): number;
}
