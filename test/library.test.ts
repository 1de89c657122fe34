/** The library as its users have it: by its name, from the build. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { ROOT } from "./support/run.ts";

describe("the library", () => {
  it("does what the README's example says", () => {
    const readme = readFileSync(join(ROOT, "README.md"), "utf8");
    const [, code] = /```ts\n([\s\S]*?)```/.exec(readme)!;
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ["--input-type=module", "-e", code!.replaceAll(")!", ")")],
      { cwd: ROOT, encoding: "utf8" },
    );
    expect(stderr).toBe("");
    expect(stdout).toContain("what: 'scalable-mode root entry'");
    expect(status).toBe(0);
  });

  it("runs the example: a reason for what failed, a walk that arrives and one that does not", async () => {
    const log = vi.spyOn(console, "log").mockImplementation(() => {});
    await import("../examples/translate.ts");
    const lines = log.mock.calls.map(([line]) => String(line));
    log.mockRestore();
    expect(lines[0]).toMatch(/^EINVAL: iova 0x100800 is not a multiple of 0x1000/);
    expect(lines.filter((line) => line.startsWith("reaches host physical"))).toHaveLength(1);
    expect(lines.filter((line) => line.startsWith("refused:"))).toHaveLength(1);
  });

  it("has types at the same name", () => {
    const { exports } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as {
      readonly exports: { readonly ".": { readonly types: string; readonly default: string } };
    };
    const types = readFileSync(join(ROOT, exports["."].types), "utf8");
    for (const name of ["Machine", "Host", "ModelTask", "parseMachine", "LinuxError", "Fan"])
      expect(types).toContain(name);
  });
});
