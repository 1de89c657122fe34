/**
 * A tree of files that stands in for real paths of the machine, such as those of sysfs: its entries, and the folder in
 * which they are shown to programs. Attributes that act when they are written are among them; what they and everything
 * else say is written anew when the machine has changed.
 */
import { chmodSync, mkdirSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, posix } from "node:path";
import { Capability, type DeviceNode } from "../kernel/call.ts";
import { parseNumber } from "../kernel/fault-attributes.ts";
import { AttributeFile } from "../kernel/fault-injection.ts";
import { formatAddress } from "../pci/address.ts";
import type { PciFunction } from "../pci/function.ts";
import { LinuxError } from "../uapi/errno.ts";

export interface FileEntry {
  readonly path: string;
  readonly kind: "file";
  readonly content: string | Uint8Array;
  readonly mode?: number;
  /** What a write does. Throws what it fails with. Absent: nothing. */
  readonly store?: (text: string) => void;
}

export type TreeEntry =
  | { readonly path: string; readonly kind: "folder" }
  | FileEntry
  | { readonly path: string; readonly kind: "link"; readonly target: string };

export const folder = (path: string): TreeEntry => ({ path, kind: "folder" });
export const file = (path: string, content: string | Uint8Array): FileEntry => ({
  path,
  kind: "file",
  content: typeof content === "string" ? `${content}\n` : content,
});
/** A file that is there to be written. */
export const action = (path: string, store: (text: string) => void): TreeEntry => ({
  path,
  kind: "file",
  content: new Uint8Array(),
  mode: 0o200,
  store,
});
/** A file that does it when a number other than 0 is written. Throws EINVAL for what is no number. */
export const trigger = (path: string, act: () => void): TreeEntry =>
  action(path, (text) => {
    if (parseNumber(text, 0n, 2n ** 64n - 1n) !== 0n) act();
  });
/** A relative link, as sysfs has them. */
export const link = (path: string, target: string): TreeEntry => ({
  path,
  kind: "link",
  target: posix.relative(dirname(path), target),
});

/** Where a device is: of a PCI function, below its bus; a mediated device, below its parent, whose address it has. */
export const homeOf = ({ address, name, mediated }: PciFunction): string => {
  const { segment, bus } = address;
  const root = `${segment.toString(16).padStart(4, "0")}:${bus.toString(16).padStart(2, "0")}`;
  const home = `/sys/devices/pci${root}/${mediated ? formatAddress(address) : name}`;
  return mediated ? `${home}/${name}` : home;
};

const MODE = 0o644;
const S_IFREG = 0o100000;
const O_ACCMODE = 3;
const O_RDONLY = 0;

const isSame = (one: TreeEntry, other: TreeEntry): boolean => {
  if (one.kind === "folder") return other.kind === "folder";
  if (one.kind === "link") return other.kind === "link" && one.target === other.target;
  return other.kind === "file" && Buffer.from(one.content).equals(Buffer.from(other.content));
};

/** A tree below a folder: `/sys/x` is at `ROOT/sys/x`. */
export class ShownTree {
  readonly #root: string;
  /** Something was written: what the tree says may be different now. */
  readonly #stored: () => void;
  #shown: ReadonlyMap<string, TreeEntry> = new Map();

  constructor(root: string, stored: () => void) {
    this.#root = root;
    this.#stored = stored;
  }

  /** Shows these entries, and no others; what has not changed is left as it is. Folders come before what is in them. */
  show(entries: readonly TreeEntry[]): void {
    const next = new Map(entries.map((entry) => [entry.path, entry]));
    const before = this.#shown;
    const gone = [...before.keys()].filter((path) => next.get(path)?.kind !== before.get(path)!.kind);
    for (const path of gone) rmSync(this.#root + path, { recursive: true, force: true });
    for (const [path, entry] of next) {
      const old = before.get(path);
      if (!old || !isSame(old, entry)) this.#write(entry);
    }
    this.#shown = next;
  }

  /**
   * What open(2) for writing of a path reaches, by whatever links; undefined: a file that does nothing. Only root may open
   * it, which throws EACCES.
   */
  attribute(path: string): DeviceNode | undefined {
    const entry = this.#shown.get(this.#resolve(path));
    if (entry?.kind !== "file" || !entry.store) return undefined;
    const { store } = entry;
    const attribute = {
      show: () => this.#contentOf(entry.path),
      store: (text: string) => {
        store(text);
        this.#stored();
      },
    };
    return {
      path: entry.path,
      major: 0,
      minor: 0,
      mode: S_IFREG | (entry.mode ?? MODE),
      open: (task, flags) => {
        if ((flags & O_ACCMODE) !== O_RDONLY && !task.capable(Capability.sysAdmin))
          throw new LinuxError("EACCES", `only root may write it, and ${task.name} is not root`, entry.path);
        return new AttributeFile(entry.path, attribute, flags);
      },
    };
  }

  #contentOf(path: string): string {
    const entry = this.#shown.get(path);
    return entry?.kind === "file" ? Buffer.from(entry.content).toString() : "";
  }

  #resolve(path: string): string {
    try {
      const root = realpathSync(this.#root);
      const real = realpathSync(this.#root + path);
      return real.startsWith(`${root}/`) ? real.slice(root.length) : path;
    } catch {
      return path;
    }
  }

  #write(entry: TreeEntry): void {
    const path = this.#root + entry.path;
    mkdirSync(entry.kind === "folder" ? path : dirname(path), { recursive: true });
    if (entry.kind === "link") {
      rmSync(path, { force: true });
      symlinkSync(entry.target, path);
    } else if (entry.kind === "file") {
      writeFileSync(path, entry.content);
      chmodSync(path, entry.mode ?? MODE);
    }
  }
}
