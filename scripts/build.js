// Builds dist/: the TypeScript, then the C of the preload library. Prints nothing when all is well.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = (command, args) => {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
};
run(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"]);
if (existsSync(`${root}src/attach/shim/Makefile`))
  run("make", ["-s", "-C", "src/attach/shim", "OUT=../../../dist/shim"]);
