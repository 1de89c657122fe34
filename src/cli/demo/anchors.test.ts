import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { parseMachine } from "../../machine/file.ts";
import { PRESETS } from "../../machine/presets.ts";
import { plain } from "../../trace/explain.ts";
import { Stage } from "./stage.ts";
import { STORIES, tellStory } from "./stories.ts";
import { Teller } from "./story.ts";

it("docs/s390.md shows what the story of a guest of s390 claims, as it tells it", () => {
  const manual = readFileSync(new URL("../../../docs/s390.md", import.meta.url), "utf8");
  const lines: string[] = [];
  const stage = new Stage(parseMachine(PRESETS.get("s390")!, "s390"), new Set());
  tellStory(STORIES.get("anchors")!, stage, new Teller(plain, (line) => lines.push(line)));
  stage.close();
  // Scenes and claims.
  const told = lines.filter((line) => /^(\S| {2}✓)/.test(line));
  expect(manual).toContain(`\n\`\`\`\n${told.join("\n")}\n\`\`\`\n`);
});
