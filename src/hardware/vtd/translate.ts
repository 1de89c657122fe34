/**
 * Legacy-mode address translation of Intel VT-d (revision 4.1, §3.4 and §3.7): from a requester id over root and
 * context entry to the second stage or pass-through. Pure: functions of memory and of what the unit is configured to,
 * in the order of checks of §7.1.3. They allocate nothing; answers are left in the results that are handed in.
 *
 * Scalable mode is in `scalable-tables.ts` and `scalable.ts`.
 */

import type { HostMemory } from "../../memory/host-memory.ts";
import { compileWalker } from "../../pagetable/compile.ts";
import { type PageTableFormat, Permission, WalkFault } from "../../pagetable/format.ts";
import { vtdSecondLevel } from "../../pagetable/vtd-second-level.ts";
import type { Walker, WalkResult } from "../../pagetable/walker.ts";
import { Access, type Transaction } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import { FaultCode, secondStageFault } from "./faults.ts";
import { addressWidthOf, ContextEntry, InterruptRange, RootEntry, TranslationType } from "./spec.ts";

const WORD = 0x1_0000_0000;

/** What a context entry says, decoded. One is kept and used again. */
export class Context {
  translationType = 0;
  /** AW: levels of the second stage, minus 2. */
  aw = 0;
  domain = 0;
  /** Physical address of the second stage's root table. */
  table = 0;
  /** FPD: faults of the device are not recorded. */
  silent = false;
  /** Where the last entry looked at is. */
  entryAddress = 0;
}

/** What of a unit's capabilities matters to a translation, prepared once. */
export interface TranslationConfig {
  readonly sagaw: number;
  readonly largestAw: number;
  readonly passThrough: boolean;
  readonly deviceTlb: boolean;
  readonly domains: number;
  /** Bits of an address's upper word from the host address width on. */
  readonly beyondHost: number;
  /** By AW: format, walker, and how many bits of an address's upper word are translated. */
  readonly formats: readonly (PageTableFormat | undefined)[];
  readonly walkers: readonly (Walker | undefined)[];
  readonly widths: readonly number[];
}

interface Stage {
  readonly format: PageTableFormat;
  readonly walker: Walker;
}
/** Formats and their generated walkers, shared by the units that have them; by what makes them differ. */
const stages = new Map<string, Stage>();
const stageOf = (levels: 3 | 4 | 5, { pageLg2s, hostAddressWidth, has }: Capabilities): Stage => {
  const { snoopControl, deviceTlb } = has;
  const key = [levels, pageLg2s, hostAddressWidth, snoopControl, deviceTlb].join();
  let stage = stages.get(key);
  if (!stage) {
    const format = vtdSecondLevel(levels, { pageLg2s, hostAddressWidth, snoopControl, deviceTlb });
    stage = { format, walker: compileWalker(format) };
    stages.set(key, stage);
  }
  return stage;
};

export const configure = (capabilities: Capabilities): TranslationConfig => {
  const { sagaw, largestAw, hostAddressWidth, guestAddressWidth, has } = capabilities;
  const levels = [undefined, 3, 4, 5] as const;
  const byAw = levels.map((count, aw) =>
    count && sagaw & (1 << aw) ? stageOf(count, capabilities) : undefined,
  );
  return {
    sagaw,
    largestAw,
    passThrough: has.passThrough,
    deviceTlb: has.deviceTlb,
    domains: 2 ** capabilities.domainBits,
    beyondHost: (-1 << (hostAddressWidth - 32)) >>> 0,
    formats: byAw.map((stage) => stage?.format),
    walkers: byAw.map((stage) => stage?.walker),
    widths: [0, 1, 2, 3].map((aw) => Math.min(addressWidthOf(aw), guestAddressWidth)),
  };
};

const reservedWords = ({ reserved }: { readonly reserved: bigint }): readonly number[] =>
  [0n, 32n, 64n, 96n].map((shift) => Number((reserved >> shift) & 0xffff_ffffn));
const rootReserved = reservedWords(RootEntry);
const contextReserved = reservedWords(ContextEntry);
const PAGE = RootEntry.fields.CTP.mask;
const { P, FPD, TT, AW, DID } = ContextEntry.fields;

const entry = new Uint32Array(4);
const load = (memory: HostMemory, pa: number): boolean => {
  if (!memory.load64(pa)) return false;
  entry[0] = memory.lo;
  entry[1] = memory.hi;
  if (!memory.load64(pa + 8)) return false;
  entry[2] = memory.lo;
  entry[3] = memory.hi;
  return true;
};
const reservedSet = (reserved: readonly number[], beyond: number): boolean =>
  ((entry[0]! & reserved[0]!) |
    (entry[1]! & (reserved[1]! | beyond)) |
    (entry[2]! & reserved[2]!) |
    (entry[3]! & reserved[3]!)) !==
  0;
const pointer = (): number => entry[1]! * WORD + ((entry[0]! & PAGE) >>> 0);

/** Where the root entry of a bus and the context entry of a device and function lie. */
export const rootEntryAddress = (root: number, rid: number): number => root + (rid >>> 8) * RootEntry.bytes;
export const contextEntryAddress = (table: number, rid: number): number =>
  table + (rid & 0xff) * ContextEntry.bytes;

/** Reads the context entry of a requester with the root table at `root`: 0, or the fault code. `out` is the entry as far as it was read. */
export const readContext = (
  memory: HostMemory,
  config: TranslationConfig,
  root: number,
  rid: number,
  out: Context,
): number => {
  out.silent = false;
  out.domain = 0;
  out.entryAddress = rootEntryAddress(root, rid);
  if (!load(memory, out.entryAddress)) return FaultCode.rootAccess;
  if ((entry[0]! & RootEntry.fields.P.mask) === 0) return FaultCode.rootNotPresent;
  if (reservedSet(rootReserved, config.beyondHost)) return FaultCode.rootReserved;
  out.entryAddress = contextEntryAddress(pointer(), rid);
  if (!load(memory, out.entryAddress)) return FaultCode.contextAccess;
  out.silent = (entry[0]! & FPD.mask) !== 0;
  if ((entry[0]! & P.mask) === 0) return FaultCode.contextNotPresent;
  out.translationType = (entry[TT.word]! & TT.mask) >>> TT.shift;
  out.aw = (entry[AW.word]! & AW.mask) >>> AW.shift;
  out.domain = (entry[DID.word]! & DID.mask) >>> DID.shift;
  const passThrough = out.translationType === TranslationType.passThrough;
  // The pointer of a pass-through entry is ignored, its bits beyond the host address width too.
  if (reservedSet(contextReserved, passThrough ? 0 : config.beyondHost) || out.domain >= config.domains)
    return FaultCode.contextReserved;
  out.table = pointer();
  return valid(config, out) ? 0 : FaultCode.contextInvalid;
};

const valid = (config: TranslationConfig, { translationType, aw }: Context): boolean => {
  switch (translationType) {
    case TranslationType.secondStage:
      return (config.sagaw & (1 << aw)) !== 0;
    case TranslationType.deviceTlb:
      return config.deviceTlb && (config.sagaw & (1 << aw)) !== 0;
    case TranslationType.passThrough:
      return config.passThrough && aw === config.largestAw;
    default:
      return false;
  }
};

/** Whether a request without PASID is to the interrupt address range. */
export const isInterruptAddress = (lo: number, hi: number): boolean =>
  hi === 0 && (lo & InterruptRange.MASK_LO) >>> 0 === InterruptRange.VALUE_LO;

/** Whether the address has bits beyond what the context entry, or the unit, translates. */
export const beyondWidth = (config: TranslationConfig, context: Context, hi: number): boolean =>
  hi >>> (config.widths[context.aw]! - 32) !== 0;

/** `Permission` bits an access needs. */
export const needOf = (access: number): number =>
  (access & Access.atomic) !== 0
    ? Permission.read | Permission.write
    : (access & Access.write) !== 0
      ? Permission.write | (access & Access.read ? Permission.read : 0)
      : Permission.read;

/** What a second-stage walk that faulted is reported as, when it ended at this level. */
export const walkFaultCode = (
  config: TranslationConfig,
  { aw }: { readonly aw: number },
  fault: number,
  level: number,
  access: number,
): number =>
  // A root table that cannot be read makes the context entry that points to it an invalid one.
  fault === WalkFault.tableUnreadable && level === config.formats[aw]!.levels.length - 1
    ? FaultCode.contextInvalid
    : secondStageFault(fault, access);

/** Walks the second stage: a `WalkFault`, 0 with the leaf in `out`. The address is within the width. */
export const walkSecondStage = (
  memory: HostMemory,
  config: TranslationConfig,
  context: Context,
  transaction: Transaction,
  out: WalkResult,
): number =>
  config.walkers[context.aw]!(
    memory,
    context.table,
    transaction.lo,
    transaction.hi,
    needOf(transaction.access),
    out,
  );

/** `Access` bits that a leaf with these permissions refuses. */
export const deniedBy = (allowed: number): number =>
  ((allowed & Permission.read) !== 0 ? 0 : Access.read | Access.atomic) |
  ((allowed & Permission.write) !== 0 ? 0 : Access.write | Access.atomic);

const INTERRUPT_START = InterruptRange.VALUE_LO;
const INTERRUPT_END = INTERRUPT_START + 0x10_0000;
/** Bytes of the interrupt address range from an address within it on. */
export const interruptSpan = (lo: number): number => INTERRUPT_END - (lo >>> 0);
/** Whether the bytes [start, start + size) hold interrupt addresses. */
export const coversInterrupts = (start: number, size: number): boolean =>
  start < INTERRUPT_END && start + size > INTERRUPT_START;
/** Of `span` bytes from an address that is no interrupt address on, those before the interrupt address range. */
export const beforeInterrupts = (start: number, span: number): number =>
  start < INTERRUPT_START && start + span > INTERRUPT_START ? INTERRUPT_START - start : span;

const sizes = Float64Array.from({ length: 64 }, (_, lg2) => 2 ** lg2);
/** Bytes of a page of 2^lg2 bytes. Looked up: raising to a power costs more than all else of a remembered translation. */
export const pageSize = (lg2: number): number => sizes[lg2]!;
/** The first byte of the page of 2^lg2 bytes around an address, exact to a page over 64 bits. */
export const pageStart = (lo: number, hi: number, lg2: number): number =>
  (hi >>> 0) * WORD + ((lo & (-1 << lg2)) >>> 0);
/** Offset of an address in its page of 2^lg2 bytes. */
export const pageOffset = (lo: number, lg2: number): number => (lo & ~(-1 << lg2)) >>> 0;

/** Bytes that may be accessed from an address on, in its page of 2^lg2 bytes at `page`; 0: it is an interrupt address now. */
export const grantedSpan = (lo: number, hi: number, page: number, lg2: number): number => {
  const offset = pageOffset(lo, lg2);
  const size = pageSize(lg2);
  const start = pageStart(lo, hi, lg2);
  if (!coversInterrupts(start, size) && !coversInterrupts(page, size)) return size - offset;
  if (coversInterrupts(page + offset, 1)) return 0;
  return beforeInterrupts(page + offset, beforeInterrupts(start + offset, size - offset));
};
