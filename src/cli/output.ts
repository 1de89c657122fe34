/** How commands speak: results on stdout, remarks on stderr, colours and progress on terminals only. */
import pc from "picocolors";
import type { Colors } from "../trace/explain.ts";

export interface Output {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

/** Colours for an output: none where it is no terminal or NO_COLOR is set. */
export const colorsOf = ({ isTTY }: Output): Colors =>
  pc.createColors(isTTY === true && !process.env["NO_COLOR"]);

export const print = (line: string): void => void process.stdout.write(`${line}\n`);

/** Says what takes a while, on a terminal's stderr; the returned function takes it away. */
export const progress = (what: string, output: Output = process.stderr): (() => void) => {
  if (output.isTTY !== true) return () => {};
  output.write(`${what} …`);
  return () => void output.write("\r\u001b[K");
};
