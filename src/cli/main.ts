#!/usr/bin/env node
/** The `softiommu` command: its options, and where each command is. Exit codes are listed in docs/commands.md. */
import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { ExitCode, fail } from "./exit.ts";
import { runProgram } from "./run.ts";

const version = (): string => {
  const { version: text } = JSON.parse(
    readFileSync(new URL("../../package.json", import.meta.url), "utf8"),
  ) as {
    version: string;
  };
  return text;
};

const collect = (value: string, before: readonly string[]): readonly string[] => [...before, value];

const program = new Command("softiommu")
  .description("A software Linux IOMMU host: /dev/iommu and /dev/vfio from an ordinary process.")
  .version(version())
  .exitOverride()
  .enablePositionalOptions()
  .showHelpAfterError("(softiommu --help, or softiommu COMMAND --help, lists what is possible)");

program
  .command("run")
  .description("run a program against the software host; the exit status is the program's")
  .usage("[options] -- PROGRAM [ARGS…]")
  .option("--machine <NAME|FILE>", "preset or machine file", "vtd")
  .option("--device <MODEL@BDF[,k=v…]>", "add or replace a device; may be repeated", collect, [])
  .option("--trace <FILE>", "write every event: JSON Lines, or Perfetto when FILE ends in .json")
  .option("--explain", "say on stderr why each failed call or refused DMA failed")
  .option("--quiet", "say nothing of our own", false)
  .argument("<program...>", "the program and its arguments")
  .passThroughOptions()
  .action(async (command: string[], options) => {
    process.exitCode = await runProgram(command, options);
  });

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? ExitCode.ok : ExitCode.usage;
  else process.exitCode = fail(error);
}
