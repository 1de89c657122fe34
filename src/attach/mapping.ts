/**
 * Pages that programs have mapped and whose owner must know how long: a file that no program opens. The library keeps a
 * descriptor of it with the mapping, forked children inherit it, and when the last is closed the pages are gone.
 */
import type { KernelFile, MapSegment, PageOwner } from "../kernel/call.ts";

export class Mapping implements KernelFile {
  readonly kind = "mapping";
  readonly name: string;
  #owners: readonly PageOwner[];

  constructor(owners: readonly PageOwner[]) {
    this.#owners = owners;
    this.name = `mapping of ${owners.map(({ name }) => name).join(", ")}`;
    for (const owner of owners) owner.mapped();
  }

  close(): void {
    for (const owner of this.#owners) owner.unmapped();
    this.#owners = [];
  }
}

/** Who owns the memory among the segments. */
export const ownersOf = (segments: readonly MapSegment[]): PageOwner[] => {
  const owners = new Set<PageOwner>();
  for (const segment of segments) if (segment.kind === "memory" && segment.owner) owners.add(segment.owner);
  return [...owners];
};
