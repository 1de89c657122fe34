/** Where stories take place: a machine in this process with a test function, and the lines that explain what failed. */
import { ManualClock } from "../../base/clock.ts";
import { WorkQueue } from "../../base/scheduler.ts";
import { isBreak } from "../../machine/breaks.ts";
import { parseDevice, withDevices } from "../../machine/file.ts";
import { Machine } from "../../machine/machine.ts";
import type { MachineDescription } from "../../machine/schema.ts";
import { explain } from "../../trace/explain.ts";
import { Fan, type TraceEvent } from "../../trace/fan.ts";
import type { RecordedCall } from "../../viommu/recorded-calls.ts";
import type { Fault } from "./faults.ts";

/** A bus that no preset uses. */
const DEVICE = "0000:7f:00.0";

/** What a device did: bytes that it read or wrote, and how that ended. */
export interface Transfer {
  readonly direction: "read" | "write";
  readonly address: number;
  readonly pasid: number | undefined;
  readonly result: string;
  readonly bytes: Uint8Array;
}

export class Stage {
  readonly machine: Machine;
  readonly device = DEVICE;
  /** What `--explain` would have said since the list was last emptied. */
  readonly explained: string[] = [];
  readonly broken: ReadonlySet<Fault>;
  readonly events: Fan;
  /** Everything that was asked of the host, moved by devices, and refused. */
  readonly calls: RecordedCall[] = [];
  readonly transfers: Transfer[] = [];
  readonly faults: TraceEvent[] = [];
  readonly work = new WorkQueue();

  constructor(description: MachineDescription, broken: ReadonlySet<Fault>) {
    const clock = new ManualClock();
    const events = new Fan(clock);
    events.listen((event) => {
      const line = explain(event);
      if (line !== undefined) this.explained.push(line);
      if (event.kind === "fault") this.faults.push(event);
    });
    this.broken = broken;
    this.events = events;
    this.machine = new Machine(withDevices(stalling(description), [parseDevice(`test@${DEVICE}`)]), {
      events,
      clock,
      scheduler: this.work,
      broken: new Set([...broken].filter(isBreak)),
    });
  }

  /** Devices do what they were told to. */
  settle(): void {
    this.work.run();
  }

  close(): void {
    this.machine.close();
  }
}

/** Where firmware says whose accesses may wait, the device's may. */
const stalling = (description: MachineDescription): MachineDescription => ({
  ...description,
  units: description.units.map((unit) =>
    unit.model === "smmuv3" ? { ...unit, "can-stall": [...unit["can-stall"], DEVICE] } : unit,
  ),
});
