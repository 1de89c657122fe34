// Builds dist/: the TypeScript, then the two pieces of C. Prints nothing when all is well.
import { spawnSync } from "node:child_process";
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
run(process.execPath, "node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json");
run("make", "-s", "-C", "src/attach/shim", `OUT=${root}dist/shim`);
run("make", "-s", "-C", "src/memory/guard", `OUT=${root}dist/memory/guard`);
