// Builds dist/: the TypeScript, the two pieces of C, and copies of the C for places that have to compile it again.
// With --bench also dist-bench/. With --clean from nothing. Prints nothing when all is well; on a terminal it says that
// it is at work.
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = (command, ...args) => {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (error) {
    console.error(`${command}: ${error.message}; Debian's package build-essential has what is needed`);
    process.exit(1);
  }
  if (status !== 0) process.exit(status ?? 1);
};
const compile = (project) => run(process.execPath, "node_modules/typescript/bin/tsc", "-p", project);
const copyC = (from, to) =>
  cpSync(join(root, from), join(root, to), {
    recursive: true,
    filter: (path) => !/\.[a-z]+$/.test(path) || /\.[ch]$/.test(path),
  });

/** Compiled benchmarks import ../src/…, which is dist/, and find their C where it is. */
const buildBench = () => {
  rmSync(join(root, "dist-bench"), { recursive: true, force: true });
  compile("tsconfig.bench.json");
  rmSync(join(root, "dist-bench/src"), { recursive: true, force: true });
  mkdirSync(join(root, "dist-bench/test"), { recursive: true });
  const links = { src: "dist", dist: "dist", "bench/c": "bench/c", "test/clients": "test/clients" };
  for (const [link, target] of Object.entries(links))
    symlinkSync(join(root, target), join(root, "dist-bench", link));
};

const terminal = process.stderr.isTTY === true;
if (terminal) process.stderr.write("building …\r");
process.on("exit", () => terminal && process.stderr.write("\r\u001b[K"));
if (process.argv.includes("--clean")) rmSync(join(root, "dist"), { recursive: true, force: true });
compile("tsconfig.build.json");
run("make", "-s", "-C", "src/attach/shim", `OUT=${root}dist/shim`);
run("make", "-s", "-C", "src/memory/guard", `OUT=${root}dist/memory/guard`);
copyC("src/attach/shim", "dist/shim");
copyC("src/memory/guard", "dist/memory/guard");
if (process.argv.includes("--bench")) buildBench();
