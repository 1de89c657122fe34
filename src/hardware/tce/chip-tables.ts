/** The tables on the chip, reached through IODA_ADDR and IODA_DATA0: windows (TVT), and which PEs had an error (PEEV). */
import { IodaAddr, PEEV_ROW, PES, Table, WINDOWS } from "./spec.ts";
import { decodeTve, type Window } from "./translate.ts";

const VOID = "it was never written";

export class ChipTables {
  readonly #pageLg2s: readonly number[];
  readonly #tvt = new BigUint64Array(PES * WINDOWS);
  readonly #windows = new Map<number, Window | string>();
  readonly #failed = new Set<number>();

  constructor(pageLg2s: readonly number[]) {
    this.#pageLg2s = pageLg2s;
  }

  reset(): void {
    this.#tvt.fill(0n);
    this.#windows.clear();
    this.#failed.clear();
  }

  /** The window of a TVE, by its number: that of the PE times two, and one more for addresses with bit 59. */
  window(index: number): Window | string {
    return this.#windows.get(index) ?? VOID;
  }
  /** The TVE itself. */
  tve(index: number): bigint {
    return this.#tvt[index]!;
  }

  /** Whether a PE had an error that was not cleared yet. */
  hasFailed(pe: number): boolean {
    return this.#failed.has(pe);
  }
  fail(pe: number): void {
    this.#failed.add(pe);
  }

  /** The entry that IODA_ADDR selects; 0 where there is none. */
  read(selected: bigint): bigint {
    const [table, entry] = place(selected);
    if (table === Table.TVT) return this.#tvt[entry] ?? 0n;
    if (table !== Table.PEEV) return 0n;
    let row = 0n;
    for (const pe of this.#failed)
      if (Math.floor(pe / PEEV_ROW) === entry) row |= 1n << BigInt(PEEV_ROW - 1 - (pe % PEEV_ROW));
    return row;
  }

  write(selected: bigint, value: bigint): void {
    const [table, entry] = place(selected);
    if (table === Table.PESTB) this.#failed.delete(entry);
    if (table !== Table.TVT || entry >= this.#tvt.length) return;
    this.#tvt[entry] = value;
    this.#windows.set(entry, decodeTve(value, this.#pageLg2s));
  }
}

const place = (selected: bigint): [table: number, entry: number] => {
  const { TSEL, TADR } = IodaAddr.fields;
  return [Number(TSEL.of(selected)), Number(TADR.of(selected))];
};
