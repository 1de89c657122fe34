/** The machine `vtd` with the extension `wq-chardev`: the accelerator's first four work queues are for programs. */
import { parseMachine } from "../../src/machine/file.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";

export const queueMachine = (): MachineDescription => {
  const text = PRESETS.get("vtd")!
    .replace("name: vtd\n", "name: vtd-wq\nextensions: [wq-chardev]\n")
    .replace("at: 0000:03:00.0\n", "at: 0000:03:00.0\n    user-queues: 4\n");
  return parseMachine(text, "vtd-wq");
};
