/**
 * `softiommu tour`: what somebody sees who has just installed it. A real program does real I/O through the host, then
 * the demo takes the same machinery apart. Which program: qemu-io where it is installed, else a C example that is
 * compiled on the spot, else none, and that is said.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findProgram } from "../attach/program.ts";
import { demo } from "./demo.ts";
import { ExitCode } from "./exit.ts";
import { colorsOf, print, progress } from "./output.ts";
import { runProgram } from "./run.ts";

const DISK = "0000:01:00.0";
const EXAMPLE = join(import.meta.dirname, "../../examples/vfio-nvme.c");

export const tour = async (): Promise<number> => {
  const folder = mkdtempSync(join(tmpdir(), "softiommu-tour-"));
  try {
    const ran = await runReal(folder);
    print("");
    heading("What happens inside: softiommu demo");
    const told = demo("basics", { machine: "vtd" });
    return ran === ExitCode.ok && told === ExitCode.ok ? ExitCode.ok : ExitCode.failed;
  } finally {
    rmSync(folder, { recursive: true });
  }
};

const heading = (text: string): void => print(colorsOf(process.stdout).bold(text));

const runReal = async (folder: string): Promise<number> => {
  const command = chooseProgram(folder);
  if (command === undefined) {
    print(
      "No program to run: neither qemu-io (Debian: qemu-utils) nor a C compiler (build-essential) is here.",
    );
    return ExitCode.ok;
  }
  const shown = command.map((word) => (word.includes(" ") ? `"${word}"` : word)).join(" ");
  heading("A real program, unmodified, on a machine that does not exist");
  print(`$ softiommu run --explain -- ${shown}`);
  const status = await runProgram(command, { machine: "vtd", device: [], explain: true, quiet: false });
  print(
    status === 0
      ? `It ended with status 0: every byte went through the driver's page tables to the NVMe model and back.`
      : `It ended with status ${status}, which it should not; softiommu doctor may know why.`,
  );
  return status;
};

const chooseProgram = (folder: string): string[] | undefined => {
  if (findProgram("qemu-io") !== undefined)
    return [
      ...["qemu-io", "-f", "raw", "-c", "write -P 0xa5 0 1M", "-c", "read -P 0xa5 0 1M"],
      `nvme://${DISK}/1`,
    ];
  const program = join(folder, "vfio-nvme");
  const done = progress(`compiling ${EXAMPLE}`);
  const { status } = spawnSync(process.env["CC"] ?? "cc", ["-O1", "-o", program, EXAMPLE]);
  done();
  return status === 0 ? [program, DISK] : undefined;
};
