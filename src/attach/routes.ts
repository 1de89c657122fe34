/**
 * What the preload library reads when a program starts: which path prefixes lie in which shadow tree, and how the
 * names of emulated descriptors begin. Device nodes are shown by regular files in the shadow tree, "chr MAJOR MINOR
 * MODE"; a node that no tree covers gets a tree of its own.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { DeviceNode } from "../kernel/call.ts";

/**
 * A shadow tree: a folder that mirrors "/" and the prefixes that it replaces as a whole. A prefix covers itself and
 * everything below it; one that ends in "*" covers whatever begins so ("/sys/devices/pci*").
 */
export interface ShadowTree {
  readonly shadowRoot: string;
  readonly routed: readonly string[];
}

const covers = (prefix: string, path: string): boolean =>
  prefix.endsWith("*")
    ? path.startsWith(prefix.slice(0, -1))
    : path === prefix || path.startsWith(`${prefix}/`);

export class Routes {
  readonly #folder: string;
  readonly #filePrefix: string;
  readonly #trees: ShadowTree[] = [];
  /** Nodes that no tree covers. */
  readonly #own: { readonly shadowRoot: string; routed: string[] };
  #shown = new Map<string, string>();

  constructor(folder: string, filePrefix: string) {
    this.#folder = folder;
    this.#filePrefix = filePrefix;
    this.#own = { shadowRoot: join(folder, "nodes"), routed: [] };
  }

  add(tree: ShadowTree): void {
    for (const prefix of tree.routed)
      if (!/^\/[^\s]+$/.test(prefix))
        throw new RangeError(`"${prefix}" is not an absolute path without blanks`);
    if (/\s/.test(tree.shadowRoot)) throw new RangeError(`"${tree.shadowRoot}" has a blank in it`);
    this.#trees.push(tree);
  }

  #treeOf(path: string): ShadowTree {
    const tree = this.#trees.find(({ routed }) => routed.some((prefix) => covers(prefix, path)));
    if (tree !== undefined) return tree;
    if (!this.#own.routed.includes(path)) this.#own.routed.push(path);
    return this.#own;
  }

  /** Makes the shadow trees show these nodes and no others, and writes the library's configuration. */
  write(nodes: readonly DeviceNode[]): void {
    const shown = new Map<string, string>();
    for (const { path, major, minor, mode } of nodes) {
      const file = `${this.#treeOf(path).shadowRoot}${path}`;
      const text = `chr ${major} ${minor} ${(mode & 0o7777).toString(8)}\n`;
      if (this.#shown.get(file) !== text) {
        mkdirSync(dirname(file), { recursive: true });
        writeFileSync(file, text, { mode: 0o600 });
      }
      shown.set(file, text);
    }
    for (const file of this.#shown.keys()) if (!shown.has(file)) rmSync(file, { force: true });
    this.#shown = shown;
    const lines = [`files ${this.#filePrefix}`];
    for (const { shadowRoot, routed } of [...this.#trees, this.#own])
      for (const prefix of routed) lines.push(`route ${shadowRoot} ${prefix}`);
    writeFileSync(join(this.#folder, "routes"), `${lines.join("\n")}\n`, { mode: 0o600 });
  }
}
