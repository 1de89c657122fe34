/** From `--machine` and `--device` to a checked description. */
import { existsSync, readFileSync } from "node:fs";
import { MachineFileError, parseDevice, parseMachine, withDevices } from "../machine/file.ts";
import { PRESETS } from "../machine/presets.ts";
import type { MachineDescription } from "../machine/schema.ts";

/** The text of a preset or a file. Throws MachineFileError. */
export const machineText = (nameOrFile: string): string => {
  const preset = PRESETS.get(nameOrFile);
  if (preset !== undefined) return preset;
  if (!existsSync(nameOrFile))
    throw new MachineFileError(
      `--machine ${nameOrFile}: neither a preset (${[...PRESETS.keys()].join(", ")}) nor a file that exists`,
    );
  try {
    return readFileSync(nameOrFile, "utf8");
  } catch (error) {
    throw new MachineFileError(
      `--machine ${nameOrFile}: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
};

export const loadMachine = (nameOrFile: string, devices: readonly string[] = []): MachineDescription =>
  withDevices(parseMachine(machineText(nameOrFile), nameOrFile), devices.map(parseDevice));
