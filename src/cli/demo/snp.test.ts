/** The story of a guest with private memory, as the manual tells it. */
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { parseMachine } from "../../machine/file.ts";
import { PRESETS } from "../../machine/presets.ts";
import { plain } from "../../trace/explain.ts";
import { snp } from "./snp.ts";
import { Stage } from "./stage.ts";
import { Teller } from "./story.ts";

const manual = readFileSync(new URL("../../../docs/snp.md", import.meta.url), "utf8");

/** Where a driver has its tables is no matter of the story. */
const anywhere = (line: string): string => line.replaceAll(/0x[0-9a-f]+/g, "0x");

it("docs/snp.md shows what is said, and the table as it is", () => {
  const lines: string[] = [];
  const stage = new Stage(parseMachine(PRESETS.get("snp")!, "snp"), new Set());
  snp(stage, new Teller(plain, (line) => lines.push(line.trim())));
  stage.close();
  const shown = [...manual.matchAll(/^```\n(.*?)\n```$/gms)].flatMap(([, text]) => text!.split("\n"));
  expect(shown.length).toBeGreaterThan(4);
  const said = lines.map(anywhere);
  for (const line of shown) expect(said).toContain(anywhere(line));
  const table = lines.filter((line) => line.startsWith("|"));
  expect(table).toHaveLength(7);
  expect(manual).toContain(table.join("\n"));
});
