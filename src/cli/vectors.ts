/**
 * `npm run vectors -- FILE…`: runs files of recorded translations (`hardware/vectors`) on the models. Prints every failure
 * and a last line that counts; exit status 1 when something failed, 2 when a file cannot be read.
 */
import { readFileSync } from "node:fs";
import { reportVectors } from "../hardware/vectors/report.ts";

const names = process.argv.slice(2);
try {
  if (names.length === 0) throw new Error("npm run vectors -- FILE…: no file is named");
  const { lines, passed } = reportVectors(names.map((name) => ({ name, text: readFileSync(name, "utf8") })));
  console.log(lines.join("\n"));
  process.exitCode = passed ? 0 : 1;
} catch (error) {
  console.error((error as Error).message);
  process.exitCode = 2;
}
