/**
 * A guest's table as a shadowing back end looks at it, whatever its format: page after page, by walks of the guest's own
 * unit. Walking is using: a page that is mapped for writing is made dirty in the guest's table then, because nobody sees
 * the writes through a copy. Everything found here is the guest's: it may be malformed, cyclic or change meanwhile.
 */
import { Permission, WalkFault } from "../../pagetable/format.ts";

/** Addresses [start, end). */
export interface AddressRange {
  readonly start: number;
  readonly end: number;
}
export const EVERYWHERE: AddressRange = { start: 0, end: 2 ** 64 };

/** A page of a guest's table, or where a hole ends. */
export type Found =
  | {
      readonly page: true;
      readonly start: number;
      readonly length: number;
      /** Guest physical. */
      readonly target: number;
      readonly readable: boolean;
      readonly writable: boolean;
    }
  | { readonly page: false; readonly end: number };

/** What a front end supplies: one table that a device, or a PASID of it, goes through. */
export interface GuestTable {
  /** Two are the same table when they have the same key. */
  readonly key: string;
  /** Addresses it translates, in order. */
  readonly ranges: readonly AddressRange[];
  /** The page around an address, or where the hole around it ends. A page that may not be used is a hole. */
  find(iova: number): Found;
}

/** A walk of a table by its format. */
export interface Walk {
  /** Walks for these `Permission` bits: 0, or the `WalkFault`. */
  walk(iova: number, need: number): number;
  /** Of the last one, which found a page: where, and how many bytes are left of it; log2 of its bytes. */
  readonly pa: number;
  readonly span: number;
  readonly lg2: number;
  /** Of the last one, which did not: log2 of the bytes around the address of which that is true. */
  readonly holeLg2: number;
}

const { read, write } = Permission;

/** As `GuestTable.find`. What cannot be read and written may still be read, or written. */
export const findPage = (walk: Walk, iova: number): Found => {
  let fault = walk.walk(iova, read | write);
  if (fault === 0) return pageOf(walk, iova, true, true);
  if (fault !== WalkFault.read && fault !== WalkFault.write) return holeOf(iova, walk.holeLg2);
  fault = walk.walk(iova, read);
  if (fault === 0) return pageOf(walk, iova, true, false);
  const unreadable = walk.holeLg2;
  if (fault !== WalkFault.read) return holeOf(iova, unreadable);
  if (walk.walk(iova, write) === 0) return pageOf(walk, iova, false, true);
  return holeOf(iova, Math.min(unreadable, walk.holeLg2));
};

const pageOf = ({ pa, lg2, span }: Walk, iova: number, readable: boolean, writable: boolean): Found => {
  const length = 2 ** lg2;
  const before = length - span;
  return { page: true, start: iova - before, length, target: pa - before, readable, writable };
};

const holeOf = (iova: number, lg2: number): Found => {
  const bytes = 2 ** lg2;
  return { page: false, end: (Math.floor(iova / bytes) + 1) * bytes };
};

/** What of a range lies in a table's addresses, in order. */
export const within = ({ ranges }: GuestTable, { start, end }: AddressRange): AddressRange[] =>
  ranges
    .map((range) => ({ start: Math.max(start, range.start), end: Math.min(end, range.end) }))
    .filter((range) => range.start < range.end);
