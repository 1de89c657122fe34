/** How a story is told: scenes, sentences, what is shown, and claims, each of which was checked. */
import type { Colors } from "../../trace/explain.ts";

export interface Claim {
  readonly scene: string;
  readonly claim: string;
  readonly holds: boolean;
  /** What was found instead, or in particular. */
  readonly found: string;
}

export class Teller {
  readonly claims: Claim[] = [];
  #scene = "";
  readonly #colors: Colors;
  readonly #print: (line: string) => void;

  constructor(colors: Colors, print: (line: string) => void) {
    this.#colors = colors;
    this.#print = print;
  }

  get failed(): number {
    return this.claims.filter(({ holds }) => !holds).length;
  }

  scene(title: string): void {
    this.#scene = title;
    this.#print("");
    this.#print(this.#colors.bold(title));
  }

  say(sentence: string): void {
    this.#print(`  ${sentence}`);
  }

  show(lines: readonly string[]): void {
    for (const line of lines) this.#print(this.#colors.dim(`    ${line}`));
  }

  /** States something that was checked. */
  claim(claim: string, holds: boolean, found = ""): void {
    this.claims.push({ scene: this.#scene, claim, holds, found });
    const { green, red } = this.#colors;
    const mark = holds ? green("✓") : red("✗");
    this.#print(`  ${mark} ${claim}${found ? ` (${found})` : ""}`);
  }
}
