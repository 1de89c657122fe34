/** Exit codes of our own, and how an error that ends a command is said. A program under `run` has its own status. */
import { MachineFileError } from "../machine/file.ts";

export const ExitCode = {
  ok: 0,
  /** What was asked for was done, and the answer is no: a check failed, a story did not hold. */
  failed: 1,
  /** The command line or a machine file is wrong. */
  usage: 2,
  /** Nobody reads our output any more: as a shell reports SIGPIPE. */
  brokenPipe: 141,
  /** The program cannot be attached (static, setuid, not for this machine). As of shells: found, but cannot be run. */
  notAttachable: 126,
  /** There is no such program. */
  notFound: 127,
} as const;

/** The command line asks for something that cannot be. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Says what went wrong and returns the exit code. */
export const fail = (error: unknown): number => {
  const known = error instanceof MachineFileError || error instanceof UsageError;
  const text = error instanceof Error ? error.message : String(error);
  process.stderr.write(`softiommu: ${text.split("\n").join("\nsoftiommu: ")}\n`);
  return known ? ExitCode.usage : ExitCode.failed;
};
