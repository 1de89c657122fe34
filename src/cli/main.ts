#!/usr/bin/env node
/** The `softiommu` command: its options, and where each command is. Exit codes are listed in docs/commands.md. */
import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { ExitCode, fail } from "./exit.ts";

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
  .option("--explain", "say on stderr why each failed call or refused DMA failed, and sum the run up")
  .option("--quiet", "say nothing of our own once the program runs", false)
  .argument("<program...>", "the program and its arguments")
  .passThroughOptions()
  .action(async (command: string[], options) => {
    const { runProgram } = await import("./run.ts");
    process.exitCode = await runProgram(command, options);
  });

program
  .command("walk")
  .description(
    "one translation, every table entry fetched and decoded, and how it ended; of a live run or a saved state",
  )
  .option("--device <BDF>", "the function that makes the access, such as 0000:01:00.0")
  .option("--iova <ADDRESS>", "the address it uses")
  .option("--pasid <NUMBER>", "the access carries this PASID")
  .option("--write", "the access is a write")
  .option("--run <PID>", "which run, when there are several")
  .option("--state <FILE>", "a state saved earlier instead of a run")
  .option("--save <FILE>", "save the state of the run (and walk, when --device and --iova are given)")
  .option("--json", "the steps as one JSON document")
  .action(async (options) => {
    const { walkCommand } = await import("./walk.ts");
    process.exitCode = await walkCommand(options);
  });

program
  .command("demo")
  .description(
    "a guided tour of one DMA, from a program's mapping to the tables and back; every claim is checked",
  )
  .argument("[story]", "which story", "basics")
  .option("--machine <NAME|FILE>", "preset or machine file; default vtd, of the story vsva vtd-vsva")
  .option("--break <FAULT>", "inject a fault on purpose; the story must fail")
  .option("--json", "the claims and what was found, as one JSON document")
  .action(async (story: string, options) => {
    const { demo } = await import("./demo.ts");
    process.exitCode = demo(story, options);
  });

const machine = program.command("machine").description("machine files: presets, and checking one's own");
machine
  .command("show")
  .description("a preset or a machine file; without a name, the list of presets")
  .argument("[name|file]")
  .option("--full", "every setting written out, defaults included")
  .option("--json", "the checked description, defaults included")
  .action(async (name: string | undefined, options) => {
    const { showMachine } = await import("./machine.ts");
    process.exitCode = showMachine(name, options);
  });
machine
  .command("check")
  .description("says whether a machine file is right, and if not where it is wrong")
  .argument("<file>")
  .option("--json", "as one JSON document")
  .action(async (file: string, options) => {
    const { checkMachine } = await import("./machine.ts");
    process.exitCode = checkMachine(file, options);
  });

program
  .command("doctor")
  .description("what this computer can do for softiommu, with remedies")
  .option("--json", "as one JSON document")
  .action(async (options) => {
    const { doctor } = await import("./doctor.ts");
    process.exitCode = await doctor(options);
  });

program
  .command("bench")
  .description("figures of this computer, as ratios against C baselines (from a source checkout)")
  .argument("[name...]", "only these files of bench/")
  .option("--json", "as one JSON document")
  .action(async (names: string[], options) => {
    const { bench } = await import("./bench.ts");
    process.exitCode = await bench(names, options);
  });

program
  .command("tour")
  .description("runs a real program on the vtd machine, then the demo")
  .action(async () => {
    const { tour } = await import("./tour.ts");
    process.exitCode = await tour();
  });

/** Who reads our output may stop doing so; a program under `run` goes on. */
process.stdout.on("error", () => process.exit(ExitCode.brokenPipe));
process.stderr.on("error", () => {});

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? ExitCode.ok : ExitCode.usage;
  else process.exitCode = fail(error);
}
