/**
 * The GCR3 table of a function behind an AMD-Vi unit (48882, revision 3.07, §2.2.6.3): by PASID, the root of the
 * guest-format table that requests with it go through, in one to three levels of 512. PASID 0 is for requests without one,
 * by DTE.GIoV. Other tables of lower levels than its own exist while one of their entries is valid.
 */
import { GCR3_BITS, Gcr3Entry } from "../../hardware/amdvi/spec.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { DteValues } from "./device-table.ts";

/** PASID whose table requests without one go through (DTE.GIoV). */
export const NO_PASID_ENTRY = 0;
const ENTRIES = 2 ** GCR3_BITS;

/** A table of one level, and those below it by their index. */
interface Node {
  readonly pa: number;
  /** Entries that are valid. */
  used: number;
  readonly below: Map<number, Node>;
}

export class Gcr3Table {
  /** Domain id under which the unit remembers what the function's PASIDs translate to. */
  readonly domainId: number;
  readonly levels: number;
  readonly #memory: HostMemory;
  readonly #name: string;
  readonly #root: Node;
  readonly #valid = new Set<number>();

  /** For PASIDs of so many bits. Throws ENOMEM. */
  constructor(memory: HostMemory, name: string, domainId: number, bits: number) {
    this.#memory = memory;
    this.#name = name;
    this.domainId = domainId;
    this.levels = Math.max(1, Math.ceil(bits / GCR3_BITS));
    this.#root = this.#make();
    try {
      this.reserve(NO_PASID_ENTRY);
    } catch (error) {
      this.free();
      throw error;
    }
    // Requests without PASID can be given tables at any time: theirs stays.
    this.#path(NO_PASID_ENTRY).at(-1)!.used += 1;
  }

  /** What the device table entry says of it. */
  get fields(): DteValues {
    return { GV: true, GLX: this.levels - 1, ...gcr3Fields(BigInt(this.#root.pa)) };
  }

  /** Makes room for a PASID, so that setting it does not fail. Throws ENOMEM. */
  reserve(pasid: number): void {
    let node = this.#root;
    for (let level = this.levels - 1; level > 0; level--) {
      const index = indexOf(pasid, level);
      let below = node.below.get(index);
      if (!below) {
        try {
          below = this.#make();
        } catch (error) {
          this.#prune(pasid);
          throw error;
        }
        node.below.set(index, below);
        this.#store(node, index, below.pa);
      }
      node = below;
    }
  }

  /** The PASID, which was reserved, has the table with this root. */
  set(pasid: number, root: number): void {
    const leaf = this.#path(pasid).at(-1)!;
    const index = indexOf(pasid, 0);
    if (this.#valid.has(pasid)) leaf.used -= 1;
    this.#valid.add(pasid);
    this.#store(leaf, index, root);
  }

  /** It has none any more. `forget` tells the unit, before memory is given back. */
  clear(pasid: number, forget: () => void): void {
    if (!this.#valid.delete(pasid)) return;
    this.#erase(this.#path(pasid).at(-1)!, indexOf(pasid, 0));
    forget();
    this.#prune(pasid);
  }

  /** The unit does not use it any more. */
  free(): void {
    const free = ({ pa, below }: Node): void => {
      for (const node of below.values()) free(node);
      this.#memory.free(pa, 1);
    };
    free(this.#root);
  }

  #make(): Node {
    const pa = this.#memory.allocate(1);
    if (pa < 0) throw new LinuxError("ENOMEM", "no host memory for a GCR3 table", this.#name);
    return { pa, used: 0, below: new Map() };
  }

  /** The tables on the way to a PASID, as far as there are any, the root first. */
  #path(pasid: number): Node[] {
    const path = [this.#root];
    for (let level = this.levels - 1; level > 0; level--) {
      const below = path.at(-1)!.below.get(indexOf(pasid, level));
      if (!below) break;
      path.push(below);
    }
    return path;
  }

  /** Takes away the tables on the way to a PASID that have nothing in them. */
  #prune(pasid: number): void {
    const path = this.#path(pasid);
    for (let depth = path.length - 1; depth > 0 && path[depth]!.used === 0; depth--) {
      const above = path[depth - 1]!;
      const index = indexOf(pasid, this.levels - depth);
      above.below.delete(index);
      this.#erase(above, index);
      this.#memory.free(path[depth]!.pa, 1);
    }
  }

  #store(node: Node, index: number, address: number): void {
    node.used += 1;
    const entry = Gcr3Entry.make({ V: true, ADDR: address });
    this.#memory.store64(node.pa + 8 * index, Number(entry & 0xffff_ffffn), Number(entry >> 32n));
  }

  #erase(node: Node, index: number): void {
    node.used -= 1;
    this.#memory.store64(node.pa + 8 * index, 0, 0);
  }
}

const indexOf = (pasid: number, level: number): number => (pasid >>> (GCR3_BITS * level)) % ENTRIES;

/** Where a device table entry says that a GCR3 table is. */
export const gcr3Fields = (address: bigint): DteValues => ({
  GCR3_TRP_14: address & 0x7000n,
  GCR3_TRP_30: address & 0x7fff_8000n,
  GCR3_TRP_51: address & 0xf_ffff_8000_0000n,
});
