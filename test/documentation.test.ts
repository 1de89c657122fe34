/** The manual against the commands and the code: nothing is missing in it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { requests } from "../src/uapi/requests.ts";
import { ROOT, softiommu } from "./support/run.ts";

const read = (path: string): string => readFileSync(join(ROOT, path), "utf8");

describe("docs/commands.md", () => {
  const manual = read("docs/commands.md");
  const section = (heading: string): string => {
    const start = manual.indexOf(`\n## softiommu ${heading}`);
    expect(start, heading).toBeGreaterThan(0);
    return manual.slice(start + 4).split("\n## ")[0]!;
  };

  it("has every command and every option", async () => {
    const { stdout } = await softiommu("--help");
    const commands = [...stdout.slice(stdout.indexOf("Commands:")).matchAll(/^ {2}(\w+)/gm)].map(
      ([, name]) => name!,
    );
    expect(commands).toContain("run");
    const forms = commands.flatMap((name) => {
      if (name === "help") return [];
      return name === "machine" ? ["machine show", "machine check"] : [name];
    });
    for (const form of forms) {
      const text = section(form);
      const help = (await softiommu(...form.split(" "), "--help")).stdout;
      for (const [, option] of help.matchAll(/^ +(?:-\w, )?(--[a-z-]+)/gm))
        if (option !== "--help") expect(text, `${form} ${option}`).toContain(option);
    }
  });

  it("has every exit code of ours", () => {
    for (const [, code] of read("src/cli/exit.ts").matchAll(/^ {2}\w+: (\d+),$/gm))
      expect(manual, code).toMatch(new RegExp(`^\\| ${code} \\|`, "m"));
  });
});

describe("docs/vsva.md", () => {
  const manual = read("docs/vsva.md");

  it("shows pieces of programs that are run", () => {
    const pieces = [...manual.matchAll(/<!-- (examples\/\S+) -->\n```c\n(.*?)\n```/gs)];
    expect(pieces.length).toBeGreaterThan(8);
    expect(manual.match(/```c/g)).toHaveLength(pieces.length);
    for (const [, path, piece] of pieces) expect(read(path!), path).toContain(`${piece}\n`);
  });

  it("names requests as the code has them", () => {
    const known = Object.values(requests).flatMap((kind) => [...kind.values()].map(({ name }) => name));
    const named = [...manual.matchAll(/`((?:VFIO|IOMMU)_[A-Z_]+)`/g)].map(([, name]) => name!);
    expect(named.length).toBeGreaterThan(10);
    for (const name of named) expect(known).toContain(name);
  });
});

describe("docs/programs.md", () => {
  const rows = [...read("docs/programs.md").matchAll(/^\| `(.+?)` \| ([^|]+) \|.*$/gm)];

  it("says for every program of which version, and what came of it", () => {
    expect(rows.length).toBeGreaterThan(5);
    for (const [row, , version] of rows) {
      expect(version, row).toMatch(/^\d+(\.\d+)+$/);
      expect(row.split(" | "), row).toHaveLength(4);
    }
  });

  it("names tests that run the program", () => {
    for (const [row, program] of rows)
      for (const [, path] of row.matchAll(/`(test\/[^`]+)`/g)) expect(read(path!), row).toContain(program);
  });
});

describe("docs/tracing.md", () => {
  it("has every kind of event", () => {
    const manual = read("docs/tracing.md");
    const kinds = [...read("src/base/events.ts").matchAll(/^ {2}\| "(\w+)"/gm)].map(([, kind]) => kind!);
    expect(kinds.length).toBeGreaterThan(10);
    for (const kind of kinds) expect(manual, kind).toContain(`\`${kind}\``);
  });
});

describe("docs/dependencies.md", () => {
  it("has every dependency, and no other", () => {
    const { dependencies, devDependencies } = JSON.parse(read("package.json")) as {
      readonly dependencies: object;
      readonly devDependencies: object;
    };
    const manual = read("docs/dependencies.md");
    const rows = [...manual.matchAll(/^\| `([^`]+)` \|/gm)].map(([, name]) => name!);
    expect(rows.sort()).toEqual([...Object.keys(dependencies), ...Object.keys(devDependencies)].sort());
  });
});

describe("docs/architecture.md", () => {
  it("has the rooms in the order that the linter enforces", () => {
    const rules = read(".dependency-cruiser.cjs");
    const rooms = [...rules.slice(0, rules.indexOf("];")).matchAll(/^ {2}"(\w+)",$/gm)].map(
      ([, room]) => room!,
    );
    const table = read("docs/architecture.md").split("## Rooms")[1]!.split("\n## ")[0]!;
    const named = [...table.matchAll(/^\| ((?:`\w+\/`(?:, )?)+) \|/gm)].flatMap(([, cell]) =>
      [...cell!.matchAll(/`(\w+)\/`/g)].map(([, room]) => room!),
    );
    expect(named).toEqual(rooms);
  });
});
