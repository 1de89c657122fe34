/**
 * Can the preload library reach a program? Looked up before it starts, because a static program would run without
 * the machine and fail in confusing ways. Reads ELF headers (System V ABI, "Program Header") and script interpreters.
 */
import { accessSync, closeSync, constants, openSync, readSync, statSync } from "node:fs";
import { delimiter, join } from "node:path";

const PT_INTERP = 3;
const ELFCLASS64 = 2;
const EM_X86_64 = 62;
const MAX_SCRIPTS = 4;
const SETUID_OR_SETGID = 0o6000;

const executable = (path: string): boolean => {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
};

/** Where execvp(3) would find a program, or undefined. */
export const findProgram = (
  program: string,
  path = process.env["PATH"] ?? "/usr/bin:/bin",
): string | undefined => {
  if (program.includes("/")) return executable(program) ? program : undefined;
  return path
    .split(delimiter)
    .map((folder) => join(folder === "" ? "." : folder, program))
    .find(executable);
};

const readAt = (fd: number, offset: number, length: number): Buffer => {
  const bytes = Buffer.alloc(length);
  return bytes.subarray(0, readSync(fd, bytes, 0, length, offset));
};

/** The sentence why an ELF file cannot be attached. */
const checkElf = (fd: number, path: string, header: Buffer): string | undefined => {
  if (header.length < 64 || header[4] !== ELFCLASS64 || header.readUInt16LE(18) !== EM_X86_64)
    return `${path} is not a 64-bit x86-64 program; the preload library is, and cannot be loaded into it`;
  const offset = Number(header.readBigUInt64LE(32));
  const size = header.readUInt16LE(54);
  const count = header.readUInt16LE(56);
  if (size < 56) return `${path} has a damaged ELF header`;
  const table = readAt(fd, offset, size * count);
  for (let at = 0; at + size <= table.length; at += size)
    if (table.readUInt32LE(at) === PT_INTERP) return undefined;
  return (
    `${path} is statically linked: without a dynamic loader (PT_INTERP) no library can be preloaded into it; ` +
    "use a dynamically linked build"
  );
};

const interpreterOf = (first: Buffer): string | undefined => {
  const [line = ""] = first.toString("latin1").split("\n");
  const [interpreter = "", argument] = line
    .slice(2)
    .trim()
    .split(/[ \t]+/);
  const viaEnv = interpreter.endsWith("/env") && argument !== undefined && !argument.startsWith("-");
  return viaEnv ? findProgram(argument) : interpreter;
};

const check = (path: string, scripts: number): string | undefined => {
  let fd: number;
  try {
    if ((statSync(path).mode & SETUID_OR_SETGID) !== 0)
      return `${path} is setuid or setgid: the dynamic loader ignores LD_PRELOAD for it; run a copy without the bit`;
    fd = openSync(path, "r");
  } catch (error) {
    return `${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`;
  }
  try {
    const header = readAt(fd, 0, 256);
    if (header.length >= 4 && header.readUInt32BE(0) === 0x7f454c46) return checkElf(fd, path, header);
    if (header.subarray(0, 2).toString("latin1") !== "#!")
      return `${path} is neither an ELF program nor a script with an interpreter line`;
    const interpreter = interpreterOf(header);
    if (interpreter === undefined) return `the interpreter of ${path} was not found`;
    if (scripts === MAX_SCRIPTS) return `${path} is a script of a script of a script, too deep to start`;
    return check(interpreter, scripts + 1);
  } finally {
    closeSync(fd);
  }
};

/**
 * Why the program (a path, or a name that is looked up in PATH) cannot be attached, as a sentence for the user;
 * undefined: it can.
 */
export const checkProgram = (program: string): string | undefined => {
  const path = findProgram(program);
  return path === undefined ? `${program}: no such program` : check(path, 0);
};
