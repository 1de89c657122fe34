import { cpSync, existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { builtLibrary } from "./library.ts";

/** An installation without the built library. */
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-library-"));
  vi.stubEnv("XDG_CACHE_HOME", join(folder, "cache"));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

describe("the preload library, where the build's is missing", () => {
  it("is compiled into the user's cache, once", () => {
    cpSync(join(import.meta.dirname, "shim"), join(folder, "dist/shim"), { recursive: true });
    const library = builtLibrary(join(folder, "dist/attach"));
    expect(library).toMatch(/cache\/softiommu\/shim-[0-9a-f]{16}\.so$/);
    expect(existsSync(library)).toBe(true);
    vi.stubEnv("PATH", "");
    expect(builtLibrary(join(folder, "dist/attach"))).toBe(library);
  }, 60_000);

  it("is said to be missing when there is nothing to compile, or nothing to compile it with", () => {
    expect(() => builtLibrary(join(folder, "dist/attach"))).toThrow(
      "neither libsoftiommu.so nor its sources",
    );
    cpSync(join(import.meta.dirname, "shim"), join(folder, "dist/shim"), { recursive: true });
    vi.stubEnv("PATH", "");
    expect(() => builtLibrary(join(folder, "dist/attach"))).toThrow("cannot be compiled");
  });
});
