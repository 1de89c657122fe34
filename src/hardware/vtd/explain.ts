/**
 * A legacy-mode translation of a VT-d unit told step by step: every entry fetched, where it lies, its fields and what it
 * means; then what the unit remembers, where that is something else; then what the requester would get now (`explained.ts`).
 * Literal, in BigInt, after the specification (revision 4.1, §3.4, §7.1.3), with no effect on the unit; `translate.ts` and `remapping.ts` must
 * agree with it.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import type { Layout } from "../../uapi/layout.ts";
import {
  type Ending,
  explainTwice,
  fromIotlb,
  hex,
  lastPage,
  loadStructure,
  type Page,
  refused,
  type Steps,
  stale,
  translated,
} from "../explained.ts";
import type { Iotlb } from "../iotlb.ts";
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import { type ContextCache, type ContextSlot, cachedFault } from "./caches.ts";
import { describeFault, FaultCode } from "./faults.ts";
import { addressWidthOf, ContextEntry, RootEntry, TranslationType } from "./spec.ts";
import {
  beforeInterrupts,
  contextEntryAddress,
  grantedSpan,
  interruptSpan,
  isInterruptAddress,
  needOf,
  pageOffset,
  pageStart,
  rootEntryAddress,
  type TranslationConfig,
  walkFaultCode,
} from "./translate.ts";

const WORD = 0x1_0000_0000;

/** What of a unit a translation depends on, besides memory. */
export interface Explained {
  readonly enabled: boolean;
  readonly root: number;
  readonly config: TranslationConfig;
  readonly contexts: ContextCache;
  readonly iotlb: Iotlb;
}

/** What a context entry, or the cache of it, says. */
interface Reading {
  readonly fault: number;
  readonly why?: string;
  readonly translationType: number;
  readonly aw: number;
  readonly domain: number;
  readonly table: number;
}

export const fault = (code: number, why?: string): Ending =>
  refused(code, why ? `${describeFault(code)}: ${why}` : describeFault(code));

/** Reserved bits that are set, those of a pointer beyond the host address width included. */
const reservedBits = (layout: Layout, config: TranslationConfig, value: bigint): bigint =>
  value & (layout.reserved | (BigInt(config.beyondHost) << 32n));

const nothing = { translationType: 0, aw: 0, domain: 0, table: 0 };
const unreadable = (code: number, why?: string): Reading => ({
  fault: code,
  ...(why && { why }),
  ...nothing,
});

function* readContext(unit: Explained, memory: HostMemory, rid: number): Steps<Reading> {
  const { config, root } = unit;
  const rootAt = rootEntryAddress(root, rid);
  const rootEntry = loadStructure(memory, rootAt, RootEntry.bytes);
  const bus = `bus ${hex(rid >>> 8)}`;
  if (rootEntry === undefined) {
    yield { what: "root entry", address: rootAt, note: `no memory answers; ${bus}` };
    return unreadable(FaultCode.rootAccess, `root entry at ${hex(rootAt)}`);
  }
  const rootStep = {
    what: "root entry",
    address: rootAt,
    value: rootEntry,
    fields: RootEntry.decode(rootEntry),
  };
  if (RootEntry.fields.P.of(rootEntry) === 0n) {
    yield { ...rootStep, note: `not present: ${bus} has no context table` };
    return unreadable(FaultCode.rootNotPresent, `root entry at ${hex(rootAt)}`);
  }
  const rootReserved = reservedBits(RootEntry, config, rootEntry);
  if (rootReserved) {
    yield { ...rootStep, note: `reserved bits are set: ${hex(rootReserved)}` };
    return unreadable(
      FaultCode.rootReserved,
      `bits ${hex(rootReserved)} of the root entry at ${hex(rootAt)}`,
    );
  }
  const table = Number(RootEntry.fields.CTP.of(rootEntry));
  yield { ...rootStep, note: `context table of ${bus} at ${hex(table)}` };
  return yield* readContextEntry(config, memory, contextEntryAddress(table, rid));
}

function* readContextEntry(config: TranslationConfig, memory: HostMemory, at: number): Steps<Reading> {
  const value = loadStructure(memory, at, ContextEntry.bytes);
  const where = `context entry at ${hex(at)}`;
  if (value === undefined) {
    yield { what: "context entry", address: at, note: "no memory answers" };
    return unreadable(FaultCode.contextAccess, where);
  }
  const step = { what: "context entry", address: at, value, fields: ContextEntry.decode(value) };
  const { P, TT, AW, DID, SSPTPTR } = ContextEntry.fields;
  if (P.of(value) === 0n) {
    yield { ...step, note: "not present: the device has no translation" };
    return unreadable(FaultCode.contextNotPresent, where);
  }
  const reading: Reading = {
    fault: 0,
    translationType: Number(TT.of(value)),
    aw: Number(AW.of(value)),
    domain: Number(DID.of(value)),
    table: Number(SSPTPTR.of(value)),
  };
  const passThrough = reading.translationType === TranslationType.passThrough;
  const beyond = passThrough ? { ...config, beyondHost: 0 } : config;
  const reserved = reservedBits(ContextEntry, beyond, value);
  if (reserved || reading.domain >= config.domains) {
    const why = reserved
      ? `bits ${hex(reserved)} of the ${where}`
      : `domain id ${hex(reading.domain)} of the ${where} is beyond the ${config.domains} the unit has`;
    yield { ...step, note: `reserved: ${why}` };
    return unreadable(FaultCode.contextReserved, why);
  }
  const why = invalid(config, reading);
  yield { ...step, note: why ?? described(reading) };
  return why ? unreadable(FaultCode.contextInvalid, `${where}: ${why}`) : reading;
}

const invalid = (config: TranslationConfig, { translationType, aw }: Reading): string | undefined => {
  if (translationType === TranslationType.reserved) return "TT = 3 is reserved";
  if (translationType === TranslationType.deviceTlb && !config.deviceTlb)
    return "TT = 1 needs ECAP.DT, which the unit does not report";
  if (translationType === TranslationType.passThrough) {
    if (!config.passThrough) return "TT = 2 needs ECAP.PT, which the unit does not report";
    if (aw !== config.largestAw)
      return `AW = ${aw}: pass-through needs ${config.largestAw}, the largest of CAP.SAGAW`;
    return undefined;
  }
  if ((config.sagaw & (1 << aw)) === 0) return `AW = ${aw} is not one of CAP.SAGAW (${hex(config.sagaw)})`;
  return undefined;
};

const described = ({ translationType, domain, table, aw }: Reading): string =>
  translationType === TranslationType.passThrough
    ? `domain ${domain}, pass-through`
    : `domain ${domain}, ${aw + 2} levels at ${hex(table)}`;

const sameReading = (a: Reading, b: Reading): boolean =>
  a.fault === b.fault &&
  (a.fault !== 0 ||
    (a.translationType === b.translationType &&
      a.aw === b.aw &&
      a.domain === b.domain &&
      (a.table === b.table || a.translationType === TranslationType.passThrough)));

/** What is remembered of an address also says what is denied. */
interface KnownPage extends Page {
  readonly denied: number;
}

/** What the unit remembers for the address: the requester's last page, else the IOTLB's entry. */
const remembered = (
  { iotlb }: Explained,
  slot: ContextSlot | undefined,
  reading: Reading,
  transaction: Transaction,
): KnownPage | undefined => {
  const last = lastPage(slot, iotlb.stamp, transaction, transaction.access);
  if (last) return { ...last, denied: slot!.denied };
  const entry = iotlb.lookup(reading.domain, transaction.lo, transaction.hi);
  if (entry < 0) return undefined;
  return { page: iotlb.page(entry), lg2: iotlb.lg2(entry), denied: iotlb.denied(entry) };
};

const finish = ({ page, lg2 }: Page, { lo, hi }: Transaction, note: string): Ending => {
  const pa = page + pageOffset(lo, lg2);
  const span = grantedSpan(lo, hi, page, lg2);
  return span === 0 ? fault(FaultCode.interruptAddress, `${hex(pa)} (${note})`) : translated(pa, span, note);
};

function* secondStage(
  { config }: Explained,
  memory: HostMemory,
  transaction: Transaction,
  reading: Reading,
): Steps<Ending> {
  const { lo, hi, access } = transaction;
  const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
  const format = config.formats[reading.aw]!;
  const walk = yield* explainWalk(format, memory, reading.table, address, needOf(access));
  const code = walk.fault === 0 ? 0 : walkFaultCode(config, reading, walk.fault, walk.level, access);
  if (code) return fault(code, walk.reason);
  return finish({ page: walk.pa - (2 ** walk.lg2 - walk.span), lg2: walk.lg2 }, transaction, walk.reason);
}

/** The answer from what is remembered of the address. */
function* fromCache(
  cached: KnownPage,
  { domain }: Reading,
  transaction: Transaction,
  tables: Ending,
): Steps<Ending> {
  const { lo, hi, access } = transaction;
  const code = cachedFault(cached.denied, access);
  const says = code
    ? describeFault(code)
    : `${hex(pageStart(lo, hi, cached.lg2))} is ${hex(cached.page)}, ${hex(2 ** cached.lg2)} bytes`;
  const note = `holds for domain ${domain}: ${says}`;
  const answer = code ? fault(code, `the IOTLB ${note}`) : finish(cached, transaction, `the IOTLB ${note}`);
  yield fromIotlb(note, answer, tables);
  return answer;
}

/** What becomes of the transaction under a context entry; `cached` answers instead of a walk. */
function* resolve(
  unit: Explained,
  memory: HostMemory,
  transaction: Transaction,
  used: Reading,
  cached?: Steps<Ending>,
): Steps<Ending> {
  const { lo, hi } = transaction;
  const pa = (hi >>> 0) * WORD + (lo >>> 0);
  if (used.fault !== 0) return fault(used.fault, used.why);
  if (transaction.translated)
    return used.translationType === TranslationType.deviceTlb
      ? translated(pa, WORD - (lo >>> 0), "a translated request of a function with a device-TLB")
      : fault(FaultCode.requestBlocked, "a translated request");
  const width = unit.config.widths[used.aw]!;
  if (hi >>> (width - 32) !== 0) {
    const why = `address ${hex((BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0))}, ${width} bits`;
    return fault(FaultCode.addressWidth, `${why} (the context entry has ${addressWidthOf(used.aw)})`);
  }
  if (used.translationType === TranslationType.passThrough)
    return translated(pa, beforeInterrupts(pa, WORD - (lo >>> 0)), "pass-through");
  if (cached) return yield* cached;
  return yield* secondStage(unit, memory, transaction, used);
}

function* wayOf(
  unit: Explained,
  memory: HostMemory,
  transaction: Transaction,
  tables: Ending | undefined,
): Steps<Ending> {
  const { lo, hi, rid, pasid, access } = transaction;
  const pa = (hi >>> 0) * WORD + (lo >>> 0);
  if (!unit.enabled) return translated(pa, WORD - (lo >>> 0), "GSTS.TES = 0: nothing is translated");
  if (pasid !== NO_PASID) return fault(FaultCode.pasidInLegacyMode, `PASID ${pasid}`);
  if (isInterruptAddress(lo, hi))
    return access === Access.write
      ? translated(pa, interruptSpan(lo), "a write to the interrupt address range is an interrupt (§3.15)")
      : fault(FaultCode.aborted);
  const reading = yield* readContext(unit, memory, rid);
  if (!tables) return yield* resolve(unit, memory, transaction, reading);
  const slot = unit.contexts.slot(rid);
  const held = slot && unit.contexts.holds(slot) ? slot : undefined;
  const differs = held !== undefined && !sameReading(held, reading);
  if (differs) yield stale("context cache", held.fault ? describeFault(held.fault) : described(held));
  const used = differs ? held : reading;
  const known = remembered(unit, held, used, transaction);
  const cached = known && fromCache(known, used, transaction, tables);
  return yield* resolve(unit, memory, transaction, used, cached);
}

export const explainTranslation = (
  unit: Explained,
  memory: HostMemory,
  transaction: Transaction,
): Generator<ExplainStep> => explainTwice((tables) => wayOf(unit, memory, transaction, tables));
