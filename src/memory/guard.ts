/**
 * Loads guard/guard.c into this process: a SIGBUS handler that turns a page which a client took away into a frame that
 * is marked bad. An installation has it compiled beside this file; from source it is compiled once into the user's
 * cache directory.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import koffi from "koffi";
import { viewOf } from "../base/libc.ts";

export interface Guard {
  /** [0] counts the pages that were replaced. */
  readonly trips: Int32Array;
  /** Watches a bank at `address`; its state bytes are at `state`, its bad bytes at `bad`. */
  watch(address: number, length: number, state: number, bad: number): void;
  forget(address: number): void;
}

const here = import.meta.dirname;

const compiled = (): string => {
  const built = join(here, "guard", "libguard.so");
  if (existsSync(built)) return built;
  const source = join(here, "guard", "guard.c");
  const text = readFileSync(source);
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "softiommu");
  const name = `guard-${createHash("sha256").update(text).digest("hex").slice(0, 16)}.so`;
  const library = join(cache, name);
  if (existsSync(library)) return library;
  mkdirSync(cache, { recursive: true, mode: 0o700 });
  const fresh = `${library}.${process.pid}`;
  const compiler = process.env["CC"] ?? "cc";
  const { status, stderr, error } = spawnSync(
    compiler,
    ["-std=c11", "-O2", "-fPIC", "-shared", "-o", fresh, source],
    { encoding: "utf8" },
  );
  if (status !== 0)
    throw new Error(
      `${compiler} could not compile ${source}: ${error?.message ?? stderr}; a C compiler is needed`,
    );
  renameSync(fresh, library);
  return library;
};

let loaded: Guard | undefined;

/** The guard of this process; compiled and installed at the first call. Throws when there is no C compiler. */
export const loadGuard = (): Guard => {
  if (loaded !== undefined) return loaded;
  const library = koffi.load(compiled());
  const install = library.func("softiommu_guard", "int64_t", []);
  const watch = library.func("softiommu_guard_bank", "int", ["int64_t", "size_t", "int64_t", "int64_t"]);
  const forget = library.func("softiommu_unguard_bank", "void", ["int64_t"]);
  const counter: number = install();
  if (counter === 0) throw new Error("SIGBUS cannot be handled in this process");
  loaded = {
    trips: new Int32Array(viewOf(counter, 4)),
    watch(address, length, state, bad) {
      if (watch(address, length, state, bad) !== 0) throw new Error("too many banks are watched");
    },
    forget: (address) => forget(address),
  };
  return loaded;
};
