/** `softiommu machine show` and `check`: presets as files, and what a file comes to with its defaults. */
import { stringify } from "yaml";
import { PRESETS } from "../machine/presets.ts";
import { ExitCode } from "./exit.ts";
import { loadMachine, machineText } from "./machines.ts";
import { print } from "./output.ts";

export interface ShowOptions {
  readonly full?: boolean;
  readonly json?: boolean;
}

export const showMachine = (nameOrFile: string | undefined, { full, json }: ShowOptions): number => {
  const names = nameOrFile === undefined ? [...PRESETS.keys()] : [nameOrFile];
  if (json) {
    const all = names.map((name) => [name, loadMachine(name)] as const);
    print(JSON.stringify(nameOrFile === undefined ? Object.fromEntries(all) : all[0]![1], undefined, 2));
  } else if (nameOrFile !== undefined)
    print((full ? stringify(loadMachine(nameOrFile)) : machineText(nameOrFile)).trimEnd());
  else {
    const width = Math.max(...names.map((name) => name.length));
    for (const name of names) print(`${name.padEnd(width)}  ${firstComment(machineText(name))}`);
  }
  return ExitCode.ok;
};

/** Complaints are thrown, and end with exit code 2. */
export const checkMachine = (file: string, { json = false }: { json?: boolean }): number => {
  const { name, units, devices } = loadMachine(file);
  if (json) print(JSON.stringify({ ok: true, name, units: units.length, devices: devices.length }));
  else print(`${file}: ok: machine ${name}, ${units.length} unit(s), ${devices.length} device(s)`);
  return ExitCode.ok;
};

const firstComment = (text: string): string => /^# ?(.*)$/m.exec(text)?.[1] ?? "";
