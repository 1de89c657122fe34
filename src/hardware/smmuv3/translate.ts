/**
 * From a stream's configuration to a page (IHI 0070, §3.3 and §3.4): which range of a context an address is in, the walk
 * of one stage or of one over the other, and what of it a fault record tells. Pure but for the access and dirty bits
 * that walks set; nothing is allocated.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { type PageTableFormat, WalkFault } from "../../pagetable/format.ts";
import type { GuestCache } from "../../pagetable/guest-cache.ts";
import { Fetch, NestedResult } from "../../pagetable/nested.ts";
import type { Context, Range, Stream } from "./config.ts";
import { type Fault, walkFaultCode } from "./faults.ts";
import { nestedWalkerOf, walkerOf } from "./formats.ts";
import { EventClass, EventCode } from "./queue-spec.ts";
import { needOf, Right, rightsOf } from "./rights.ts";

const WORD = 0x1_0000_0000;
/** Bit 55 of an address, in its upper word: which range it is in. */
const UPPER_RANGE = 0x80_0000;
/** Entry bit nG. */
const NOT_GLOBAL = 0x800;

/** The IOTLB holds pages of at most 2^30 bytes; larger ones are answered in such parts. */
export const PART_LG2 = 30;

/** What a walk found. One is kept and used again. */
export class Page extends NestedResult {
  /** `Right` bits. */
  rights = 0;
  /** Any ASID may use it. */
  global = false;
  /** lg2 of the leaf of the stage that software invalidates by address; the page may be a part of it. */
  leafLg2 = 0;
}

/** D8.2 The upper word of an address as its range's tables and the TLB see it: the top byte, where ignored, is as bit 55. */
export const canonicalHigh = (hi: number, range: Range): number =>
  range.topByteIgnored ? (hi << 8) >> 8 : hi | 0;

/** The range that an address is in; undefined: walks of it are disabled. */
export const rangeOf = (hi: number, { twoRanges, lower, upper }: Context): Range | undefined =>
  twoRanges && (hi & UPPER_RANGE) !== 0 ? upper : lower;

/** Whether the bits above the input size are all as bit 55; `hi` is canonical. */
export const isInside = (lo: number, hi: number, { inputBits }: Range, upper: boolean): boolean => {
  const above = upper ? -1 : 0;
  if (inputBits >= 32) return hi >> (inputBits - 32) === above;
  return (hi | 0) === above && lo >> inputBits === above;
};

/** Bits of an address that a range's tables index, as two words. */
export const indexedLow = (lo: number, { inputBits }: Range): number =>
  inputBits < 32 ? lo & (2 ** inputBits - 1) : lo;
export const indexedHigh = (hi: number, { inputBits }: Range): number =>
  inputBits <= 32 ? 0 : hi & (2 ** (inputBits - 32) - 1);

/** Whether an address of the range is in the upper one. */
export const isUpper = (context: Context, range: Range): boolean => range === context.upper;

const leafLg2 = (format: PageTableFormat, level: number): number => format.levels[level]!.shift;

const finish = (page: Page, want: number, context: Context | undefined, fault: Fault): number => {
  page.rights = rightsOf(page.allowed, context);
  return (want & ~page.rights) === 0 ? 0 : fault.set(EventCode.F_PERMISSION);
};

/** Stage 1 alone, or over stage 2. */
export const walkStage1 = (
  memory: HostMemory,
  stream: Stream,
  context: Context,
  lo: number,
  hi: number,
  want: number,
  guests: GuestCache,
  page: Page,
  fault: Fault,
): number => {
  page.level = -1;
  const range = rangeOf(hi, context);
  if (!range) return fault.set(EventCode.F_TRANSLATION);
  const high = canonicalHigh(hi, range);
  const upper = isUpper(context, range);
  if (!isInside(lo, high, range, upper)) return fault.set(EventCode.F_TRANSLATION);
  const { format, table } = range;
  const low = indexedLow(lo, range);
  const indexed = indexedHigh(high, range);
  const { stage2 } = stream;
  const need = needOf(want);
  const code = stage2
    ? nestedWalkerOf(format, stage2.format)(
        memory,
        table,
        stage2.table,
        low,
        indexed,
        need,
        page,
        guests,
        guests.tag(stage2.vmid),
      )
    : walkerOf(format)(memory, table, low, indexed, need, page);
  if (code !== 0)
    return stage2 && page.stage === 2 ? lowerFault(code, page, fault) : upperFault(code, page, fault);
  page.global = (page.lo & NOT_GLOBAL) === 0;
  page.leafLg2 = leafLg2(format, page.level);
  return finish(page, want, context, fault);
};

const upperFault = (code: number, page: Page, fault: Fault): number => {
  if (code !== WalkFault.tableUnreadable) return fault.set(walkFaultCode(code));
  fault.set(EventCode.F_WALK_EABT, page.entryAddress);
  fault.class = EventClass.table;
  return fault.code;
};

/** A fault of stage 2: for the access, or for an entry of a stage 1 table. */
const lowerFault = (code: number, page: Page, fault: Fault): number => {
  const what = page.fetch === Fetch.page ? EventClass.input : EventClass.table;
  const unread = code === WalkFault.tableUnreadable;
  fault.below(walkFaultCode(code), what, unread ? page.entryAddress : page.guestAddress);
  // To set bits in an entry is to write it.
  if (page.fetch === Fetch.update) fault.ownRead = false;
  return fault.code;
};

/** Stage 2 alone: the address is an intermediate one. */
export const walkStage2 = (
  memory: HostMemory,
  { stage2 }: Stream,
  intermediateBits: number,
  lo: number,
  hi: number,
  want: number,
  page: Page,
  fault: Fault,
): number => {
  page.level = -1;
  // §3.4.1 Stage 1 is bypassed, and its output too large.
  if (hi >>> (intermediateBits - 32) !== 0) return fault.set(EventCode.F_ADDR_SIZE);
  const { format, table } = stage2!;
  const code = walkerOf(format)(memory, table, lo, hi, needOf(want), page);
  if (code !== 0) {
    const unread = code === WalkFault.tableUnreadable;
    const address = unread ? page.entryAddress : (hi >>> 0) * WORD + (lo >>> 0);
    return fault.below(walkFaultCode(code), EventClass.input, address);
  }
  page.global = true;
  page.leafLg2 = leafLg2(format, page.level);
  return finish(page, want, undefined, fault);
};

/** Rights that may be remembered of a page that was walked for `want`: with dirty bits, writing only when it was written. */
export const rememberedRights = (rights: number, want: number, dirty: boolean): number =>
  dirty && (want & (Right.write | Right.privilegedWrite)) === 0
    ? rights & ~(Right.write | Right.privilegedWrite)
    : rights;
