/**
 * The contract of a page-table format: declared constants and small questions; it owns no memory and knows no device.
 * From one declaration come the literal walker (`explain`), the fast walker (generated), and the mapper.
 *
 * Entries are two 32-bit words (lo, hi). Levels are counted from 0 = the table whose entries map the smallest page,
 * upwards to the root. A `Lg2` is a log2 of bytes.
 */
export interface FormatLevel {
  /** First address bit that indexes this table. */
  readonly shift: number;
  /** Number of address bits that index this table (entries = 2^bits). */
  readonly bits: number;
  /** A leaf is legal at this level (then it maps 2^shift bytes). */
  readonly leaf: boolean;
}

/** A test on an entry: `(word & mask) == value` over both words. */
export interface EntryTest {
  readonly maskLo: number;
  readonly maskHi: number;
  readonly valueLo: number;
  readonly valueHi: number;
}
