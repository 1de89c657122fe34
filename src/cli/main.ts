#!/usr/bin/env node
/** The `softiommu` command: its options, and where each command is. Exit codes are listed in docs/commands.md. */
import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { ExitCode, fail } from "./exit.ts";
import { runProgram } from "./run.ts";
import { type WalkOptions, walkCommand } from "./walk.ts";

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

program
  .command("walk")
  .description(
    "one translation, every table entry fetched and decoded, and how it ended; of a live run or a saved state",
  )
  .option("--device <BDF>", "the function that makes the access, such as 0000:01:00.0")
  .option("--iova <ADDRESS>", "the address it uses")
  .option("--write", "the access is a write")
  .option("--run <PID>", "which run, when there are several")
  .option("--state <FILE>", "a state saved earlier instead of a run")
  .option("--save <FILE>", "save the state of the run (and walk, when --device and --iova are given)")
  .option("--json", "the steps as one JSON document")
  .action(async (options: WalkOptions) => {
    process.exitCode = await walkCommand(options);
  });

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? ExitCode.ok : ExitCode.usage;
  else process.exitCode = fail(error);
}
