/** Where stories take place: a machine in this process with a test function, and the lines that explain what failed. */
import { ManualClock } from "../../base/clock.ts";
import { WorkQueue } from "../../base/scheduler.ts";
import type { Break } from "../../machine/breaks.ts";
import { parseDevice, withDevices } from "../../machine/file.ts";
import { Machine } from "../../machine/machine.ts";
import type { MachineDescription } from "../../machine/schema.ts";
import { explain } from "../../trace/explain.ts";
import { Fan } from "../../trace/fan.ts";

/** A bus that no preset uses. */
const DEVICE = "0000:7f:00.0";

export class Stage {
  readonly machine: Machine;
  readonly device = DEVICE;
  /** What `--explain` would have said since the list was last emptied. */
  readonly explained: string[] = [];
  readonly #work = new WorkQueue();

  constructor(description: MachineDescription, broken: ReadonlySet<Break>) {
    const clock = new ManualClock();
    const events = new Fan(clock);
    events.listen((event) => {
      const line = explain(event);
      if (line !== undefined) this.explained.push(line);
    });
    this.machine = new Machine(withDevices(description, [parseDevice(`test@${DEVICE}`)]), {
      events,
      clock,
      scheduler: this.#work,
      broken,
    });
  }

  /** Devices do what they were told to. */
  settle(): void {
    this.#work.run();
  }

  close(): void {
    this.machine.close();
  }
}
