/**
 * Where the preload library is. A build has it in dist/shim; where it is missing it is compiled once from its sources
 * into the user's cache folder.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

const NAME = "libsoftiommu.so";
/** Seen from dist/attach (a build has copies of the sources) and from src/attach. */
const BUILT = ["../shim", "../../dist/shim"];
const SOURCES = ["../shim", "shim"];

/** The path of the library. Throws an Error with a sentence when it is not there and cannot be compiled. */
export const builtLibrary = (here: string = import.meta.dirname): string => {
  const place = BUILT.map((folder) => join(here, folder, NAME)).find((path) => existsSync(path));
  return place ?? compiled(SOURCES.map((folder) => join(here, folder)));
};

const compiled = (sources: readonly string[]): string => {
  const source = sources.find((folder) => existsSync(join(folder, "Makefile")));
  if (source === undefined) throw new Error(`neither ${NAME} nor its sources are where they were installed`);
  const hash = createHash("sha256");
  for (const file of readdirSync(source).sort())
    if (/(\.[ch]|Makefile)$/.test(file)) hash.update(readFileSync(join(source, file)));
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "softiommu");
  const library = join(cache, `shim-${hash.digest("hex").slice(0, 16)}.so`);
  if (existsSync(library)) return library;
  const work = `${library}.${process.pid}`;
  mkdirSync(work, { recursive: true, mode: 0o700 });
  try {
    const { status, stderr, error } = spawnSync("make", ["-s", "-C", source, `OUT=${work}`], {
      encoding: "utf8",
    });
    if (status !== 0)
      throw new Error(`the preload library cannot be compiled: ${error?.message ?? stderr.trim()}`);
    renameSync(join(work, NAME), library);
    return library;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
};
