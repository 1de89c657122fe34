/** docs/machine-files.md against the schema: every setting has its row with its default, and no row is without a setting. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { deviceSchema, machineSchema } from "./schema.ts";

/** What is asked of a valibot schema here. */
interface Schema {
  readonly type: string;
  readonly entries?: { readonly [key: string]: Schema };
  readonly wrapped?: Schema;
  readonly default?: unknown;
  readonly item?: Schema;
  readonly options?: readonly Schema[];
  readonly literal?: unknown;
  readonly pipe?: readonly Schema[];
}

/** A setting as documentation has it: its name and its default as JSON, empty where there is none. */
type Row = readonly [name: string, fallback: string];

const manual = readFileSync(new URL("../../docs/machine-files.md", import.meta.url), "utf8");

/** The rows of the table under a heading. */
const rowsUnder = (heading: string): Row[] => {
  const start = manual.indexOf(`\n${heading}\n`);
  if (start < 0) throw new Error(`no heading ${heading}`);
  const section = manual.slice(start + heading.length + 2).split(/^#/m)[0]!;
  return [...section.matchAll(/^\| `([^`]+)` \|[^|]*\|([^|]*)\|/gm)].map(
    ([, name, fallback]): Row => [name!, fallback!.trim().replaceAll("`", "")],
  );
};

const inner = (schema: Schema): Schema => (schema.wrapped ? inner(schema.wrapped) : schema);

/** The rows that an object's settings ask for. */
const rowsOf = (schema: Schema, leftOut: readonly string[] = []): Row[] =>
  Object.entries(inner(schema).entries ?? {})
    .filter(([name]) => !leftOut.includes(name))
    .map(([name, setting]): Row => {
      const fallback = setting.default;
      return [name, setting.type === "optional" && fallback !== undefined ? JSON.stringify(fallback) : ""];
    });

const machine = machineSchema as unknown as Schema;
const devices = (deviceSchema as unknown as Schema).options!;
const modelOf = (schema: Schema): string => String(schema.entries!["model"]!.literal);
const COMMON = ["at", "unit", "group", "mmap", "rom"];
const units = inner(machine.entries!["units"]!).item!.options!;

describe("docs/machine-files.md", () => {
  it("has the settings of a machine and its memory", () => {
    expect(rowsUnder("## The machine")).toEqual(rowsOf(machine));
    expect(rowsUnder("### `memory`")).toEqual(rowsOf(machine.entries!["memory"]!));
  });

  it.each(units.map((unit) => [modelOf(unit), unit] as const))(
    "has the settings of a %s unit",
    (model, unit) => {
      expect(rowsUnder(`### \`model: ${model}\``)).toEqual(rowsOf(unit, ["model"]));
    },
  );

  it("has the settings of mediated devices", () => {
    expect(rowsUnder("### `mdevs`")).toEqual(rowsOf(inner(machine.entries!["mdevs"]!).item!));
  });

  it("has the settings of further namespaces", () => {
    const nvme = devices.find((device) => modelOf(device) === "nvme")!;
    const more = inner(nvme.entries!["more-namespaces"]!);
    expect(rowsUnder("#### `more-namespaces`")).toEqual(rowsOf(more.pipe![0]!.item!));
  });

  it("has the settings of reserved memory and of BARs", () => {
    const reserved = inner(units[0]!.entries!["reserved-memory"]!).item!;
    expect(rowsUnder("#### `reserved-memory`")).toEqual(rowsOf(reserved));
    const bare = devices.find((device) => modelOf(device) === "bare")!;
    expect(rowsUnder("#### `bars`")).toEqual(rowsOf(inner(bare.entries!["bars"]!).item!));
  });

  it("has what every device takes, once", () => {
    for (const device of devices) {
      const common = rowsOf(device).filter(([name]) => COMMON.includes(name));
      expect(rowsUnder("## Devices"), modelOf(device)).toEqual(common);
    }
  });

  it.each(devices.map((device) => [modelOf(device), device] as const))(
    "has the settings of the model %s",
    (model, device) => {
      expect(rowsUnder(`### \`model: ${model}\``)).toEqual(rowsOf(device, ["model", ...COMMON]));
    },
  );
});
