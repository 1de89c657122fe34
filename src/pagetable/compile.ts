/**
 * Generates the fast walker of a format: one straight-line function, a block for each level, with every shift, mask and
 * test of the declaration as a literal. It reads memory through the direct view (`HostMemory.words` and `.state`; what
 * is not direct is asked for), keeps an entry in two 32-bit words, and allocates nothing. `walkerSource` is the text, for
 * people; `explain.ts` is the document it must agree with, and `format.suite.ts` holds the two equal.
 */
import { type LeafKind, type PageTableFormat, Permission, type SizedLeafKind, WalkFault } from "./format.ts";
import {
  changeBits,
  descent,
  ended,
  field,
  found,
  foundSized,
  holds,
  outsideTest,
  prelude,
  rootOf,
  type Stage,
} from "./generate.ts";
import { nearSource } from "./near.ts";
import type { Walker } from "./walker.ts";

/** Address of the entry. */
const PLACE = "bank * 4294967296 + at * 4";

/** Sets the accessed bits of the entries used, and the dirty bit of the leaf. */
const note = (format: PageTableFormat, index: number, leaf: LeafKind | SizedLeafKind): string[] => {
  const lines: string[] = [];
  const tablesToo = format.accessedAtOnce !== true;
  for (let above = format.levels.length - 1; tablesToo && above > index; above--) {
    const accessed = format.levels[above]!.tables.find((table) => table.accessed !== undefined)?.accessed;
    if (accessed === undefined) continue;
    const set = changeBits(format, "or64", `entry${above}`, accessed);
    lines.push(`if (entry${above} !== 0 && !${set}) ${ended(WalkFault.tableUnreadable, index)}`);
  }
  const mark = (bits: bigint, value: bigint, also: string) => {
    const missing = `!(${holds({ mask: bits, value })})`;
    const change = changeBits(format, value ? "or64" : "clear64", PLACE, bits);
    lines.push(`if (${also}${missing} && !${change}) ${ended(WalkFault.tableUnreadable, index)}`);
  };
  const written = `(need & ${Permission.write}) !== 0 && `;
  if (leaf.accessed !== undefined) mark(leaf.accessed, leaf.accessed, "");
  if (leaf.dirty !== undefined) mark(leaf.dirty, leaf.dirty, written);
  if ("dirtyCleared" in leaf && leaf.dirtyCleared !== undefined) mark(leaf.dirtyCleared, 0n, written);
  return lines;
};

const oneStage = (format: PageTableFormat): Stage => ({
  find(index) {
    const { shift, bits } = format.levels[index]!;
    return [`at = (base >>> 2) + ((${field(shift, bits)}) << 1);`];
  },
  touch: (index, missing, accessed) => [
    format.accessedAtOnce
      ? `if (${missing} && !${changeBits(format, "or64", PLACE, accessed)}) ${ended(WalkFault.tableUnreadable, index)}`
      : `if (${missing}) entry${index} = ${PLACE};`,
  ],
  leaf: (index, leaf) => [...note(format, index, leaf), ...found(index, leaf)],
  sizedLeaf: (index, leaf) => [...note(format, index, leaf), ...foundSized(index, leaf)],
});

const wholeSource = (format: PageTableFormat): string[] => {
  const noting = format.levels.flatMap(({ tables }, index) =>
    !format.accessedAtOnce && tables.some(({ accessed }) => accessed !== undefined)
      ? [`entry${index} = 0`]
      : [],
  );
  return [
    "const words = memory.words, states = memory.state;",
    "let denied = 0, elo = 0, ehi = 0, at = 0, view;",
    ...rootOf(format),
    ...(noting.length ? [`let ${noting.join(", ")};`] : []),
    ...outsideTest(format, "return outside(out);"),
    ...descent(format, oneStage(format)),
  ];
};

/** The text of the format's walker: the body of a function that returns it. */
export const walkerSource = (format: PageTableFormat): string => {
  const define = (name: string, lines: readonly string[]) => [
    `const ${name} = (memory, root, lo, hi, need, out) => {`,
    ...lines.map((line) => `  ${line}`),
    "};",
  ];
  return [
    `// ${format.name}`,
    prelude,
    ...define("whole", wholeSource(format)),
    ...define("near", nearSource(format)),
    "return near;",
  ].join("\n");
};

/** Makes the walker. A unit does so once for a format, not for a walk. */
export const compileWalker = (format: PageTableFormat): Walker =>
  new Function(`"use strict";\n${walkerSource(format)}`)() as Walker;
