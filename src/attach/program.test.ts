import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { checkProgram, findProgram } from "./program.ts";

let folder: string;
const put = (name: string, text: string, mode = 0o755): string => {
  writeFileSync(join(folder, name), text);
  chmodSync(join(folder, name), mode);
  return join(folder, name);
};
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-program-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

describe("a program is checked before it starts", () => {
  it("dynamic programs and scripts of them pass", () => {
    expect(checkProgram("/bin/ls")).toBeUndefined();
    expect(checkProgram("ls")).toBeUndefined();
    expect(checkProgram(put("script", "#!/bin/sh -e\necho\n"))).toBeUndefined();
    expect(checkProgram(put("via-env", "#!/usr/bin/env bash\n"))).toBeUndefined();
  });

  it("a static program is refused and told why", () => {
    const source = put("static.c", "int main(void) { return 0; }\n", 0o644);
    const program = join(folder, "static");
    expect(spawnSync("cc", ["-static", "-o", program, source]).status).toBe(0);
    expect(checkProgram(program)).toMatch(/statically linked.*PT_INTERP.*dynamically linked build/);
    expect(checkProgram(put("wrapper", `#!${program}\n`))).toMatch(/statically linked/);
  });

  it("setuid programs, other machines' programs and damaged files are refused", () => {
    const setuid = join(folder, "setuid");
    copyFileSync("/bin/ls", setuid);
    chmodSync(setuid, 0o4755);
    expect(checkProgram(setuid)).toMatch(/setuid/);
    const elf32 = Buffer.alloc(64);
    elf32.write("\x7fELF\x01\x01\x01", "latin1");
    writeFileSync(join(folder, "elf32"), elf32, { mode: 0o755 });
    expect(checkProgram(join(folder, "elf32"))).toMatch(/not a 64-bit x86-64 program/);
    expect(checkProgram(put("short", "\x7fELF"))).toMatch(/not a 64-bit/);
    expect(checkProgram(put("text", "hello"))).toMatch(/neither an ELF program nor a script/);
  });

  it("a program that is not there, or a chain of scripts that does not end, is said to be so", () => {
    expect(checkProgram("no-such-program-anywhere")).toBe("no-such-program-anywhere: no such program");
    expect(checkProgram(put("no-exec", "x", 0o644))).toMatch(/no such program/);
    expect(checkProgram(put("orphan", "#!/absent/interpreter\n"))).toMatch(/cannot be read/);
    const loop = join(folder, "loop");
    expect(checkProgram(put("loop", `#!${loop}\n`))).toMatch(/too deep/);
  });

  it("a name is looked up as execvp does", () => {
    const program = put("found", "#!/bin/sh\n");
    expect(findProgram("found", `/absent:${folder}`)).toBe(program);
    expect(findProgram("found", "/absent")).toBeUndefined();
  });
});
