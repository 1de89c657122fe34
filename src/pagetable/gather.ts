/**
 * What a mapper's owner must make its units forget before memory is given back: an address range, and whether tables
 * went away inside it (then caches of table entries must go too, not only those of leaves).
 */
export class Gather {
  /** First byte, and the end (exclusive), of what was unmapped or changed; empty when `start` is not below `end`. */
  start = Number.POSITIVE_INFINITY;
  end = 0;
  /** Tables were unlinked. */
  tables = false;

  get pending(): boolean {
    return this.start < this.end;
  }

  add(start: number, end: number): void {
    if (start < this.start) this.start = start;
    if (end > this.end) this.end = end;
  }

  reset(): void {
    this.start = Number.POSITIVE_INFINITY;
    this.end = 0;
    this.tables = false;
  }
}
