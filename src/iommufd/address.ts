/**
 * 64-bit addresses between the interface, where they are BigInts, and the interval maps, where a key is a page number
 * and an offset within the page. A range is named by both its ends, so that the whole address space can be said.
 */
export const PAGE_BYTES = 4096;
export const MAX_ADDRESS = (1n << 64n) - 1n;

const wide = new BigUint64Array(1);
const words = new Uint32Array(wide.buffer);

/** Page number, exact. */
export const pageOf = (address: bigint): number => {
  wide[0] = address;
  return words[1]! * 2 ** 20 + (words[0]! >>> 12);
};

/** Bytes into the page. */
export const offsetOf = (address: bigint): number => {
  wide[0] = address;
  return words[0]! & (PAGE_BYTES - 1);
};

export const addressOf = (page: number, offset: number): bigint => {
  words[0] = ((page % 2 ** 20) * PAGE_BYTES + offset) >>> 0;
  words[1] = Math.floor(page / 2 ** 20);
  return wide[0]!;
};

/** Both ends are part of it. */
export interface AddressRange {
  readonly start: bigint;
  readonly last: bigint;
}

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;
export const showRange = ({ start, last }: AddressRange): string => `[${hex(start)}, ${hex(last)}]`;

export const maxOf = (a: bigint, b: bigint): bigint => {
  if (a < b) return b;
  return a;
};
export const minOf = (a: bigint, b: bigint): bigint => {
  if (b < a) return b;
  return a;
};
