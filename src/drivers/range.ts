/**
 * Runs of addresses that caches are to forget, as drivers whose commands take naturally aligned blocks say them. The
 * encoding of a block in its address is that of PCIe translation services (§10.3.2.2), which VT-d and AMD-Vi share.
 */
const PAGE = 4096;
/** Address bits above the page offset: a block of as many, lg2 of its pages, is everything. */
export const EVERY_PAGE_LG2 = 52;

/** A run of addresses; ends are exclusive, and 2^64 can be one. */
export interface Range {
  readonly iova: number;
  readonly length: number;
  /** Only leaf entries changed. */
  readonly leavesOnly: boolean;
}
export const EVERYTHING: Range = { iova: 0, length: 2 ** 64, leavesOnly: false };

/** The smallest naturally aligned block that holds a range: its first page and the lg2 of its pages. */
export const coverage = ({ iova, length }: Range): { readonly page: number; readonly lg2: number } => {
  const first = iova / PAGE;
  const pages = Math.max(1, Math.ceil(length / PAGE));
  const last = first + pages - 1;
  let lg2 = Math.min(EVERY_PAGE_LG2, Math.floor(Math.log2(pages)));
  while (lg2 < EVERY_PAGE_LG2 && Math.floor(first / 2 ** lg2) !== Math.floor(last / 2 ** lg2)) lg2 += 1;
  return { page: Math.floor(first / 2 ** lg2) * 2 ** lg2 * PAGE, lg2 };
};

/** How an address says a block of 2^lg2 pages, with S set: ones below its highest page bit, which is zero. */
export const sized = (page: number, lg2: number): number =>
  page + (lg2 === 0 ? 0 : (2 ** (lg2 - 1) - 1) * PAGE);
