/**
 * A translation of a VT-d unit told step by step: every entry fetched, where it lies, its fields and what it means; then
 * what the unit remembers, where that is something else; then what the requester would get now. Literal, in BigInt, after
 * the specification (revision 4.1, §3.4, §7.1.3), with no effect on the unit; `translate.ts` and `remapping.ts` must
 * agree with it.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import type { Layout } from "../../uapi/layout.ts";
import type { Iotlb } from "../iotlb.ts";
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import { type ContextCache, type ContextSlot, cachedFault } from "./caches.ts";
import { describeFault, FaultCode } from "./faults.ts";
import { addressWidthOf, ContextEntry, RootEntry, TranslationType } from "./spec.ts";
import {
  beforeInterrupts,
  contextEntryAddress,
  deniedBy,
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

export type Steps<T> = Generator<ExplainStep, T>;

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;
export const fault = (code: number, why?: string): ExplainStep => ({
  what: "outcome",
  outcome: { ok: false, code, reason: why ? `${describeFault(code)}: ${why}` : describeFault(code) },
});
export const translated = (pa: number, span: number, note: string): ExplainStep => ({
  what: "outcome",
  note,
  outcome: { ok: true, pa, span },
});

/** The integer of a structure of so many bytes; undefined where no memory answers. */
export const loadStructure = (memory: HostMemory, pa: number, bytes: number): bigint | undefined => {
  let value = 0n;
  for (let at = bytes - 8; at >= 0; at -= 8) {
    if (!memory.load64(pa + at)) return undefined;
    value = (value << 64n) | (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
  }
  return value;
};

/** Reserved bits that are set, those of a pointer beyond the host address width included. */
const reservedBits = (layout: Layout, config: TranslationConfig, value: bigint): bigint =>
  value & (layout.reserved | (BigInt(config.beyondHost) << 32n));

const nothing = { translationType: 0, aw: 0, domain: 0, table: 0 };
const refused = (code: number, why?: string): Reading => ({ fault: code, ...(why && { why }), ...nothing });

function* readContext(unit: Explained, memory: HostMemory, rid: number): Steps<Reading> {
  const { config, root } = unit;
  const rootAt = rootEntryAddress(root, rid);
  const rootEntry = loadStructure(memory, rootAt, RootEntry.bytes);
  const bus = `bus ${hex(rid >>> 8)}`;
  if (rootEntry === undefined) {
    yield { what: "root entry", address: rootAt, note: `no memory answers; ${bus}` };
    return refused(FaultCode.rootAccess, `root entry at ${hex(rootAt)}`);
  }
  const rootStep = {
    what: "root entry",
    address: rootAt,
    value: rootEntry,
    fields: RootEntry.decode(rootEntry),
  };
  if (RootEntry.fields.P.of(rootEntry) === 0n) {
    yield { ...rootStep, note: `not present: ${bus} has no context table` };
    return refused(FaultCode.rootNotPresent, `root entry at ${hex(rootAt)}`);
  }
  const rootReserved = reservedBits(RootEntry, config, rootEntry);
  if (rootReserved) {
    yield { ...rootStep, note: `reserved bits are set: ${hex(rootReserved)}` };
    return refused(FaultCode.rootReserved, `bits ${hex(rootReserved)} of the root entry at ${hex(rootAt)}`);
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
    return refused(FaultCode.contextAccess, where);
  }
  const step = { what: "context entry", address: at, value, fields: ContextEntry.decode(value) };
  const { P, TT, AW, DID, SSPTPTR } = ContextEntry.fields;
  if (P.of(value) === 0n) {
    yield { ...step, note: "not present: the device has no translation" };
    return refused(FaultCode.contextNotPresent, where);
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
    return refused(FaultCode.contextReserved, why);
  }
  const why = invalid(config, reading);
  yield { ...step, note: why ?? described(reading) };
  return why ? refused(FaultCode.contextInvalid, `${where}: ${why}`) : reading;
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

/** A page as a cache or the tables give it. */
interface Page {
  readonly page: number;
  readonly lg2: number;
  readonly denied: number;
}

/** What the unit remembers for the address: the requester's last page, else the IOTLB's entry. */
const remembered = (
  unit: Explained,
  slot: ContextSlot | undefined,
  reading: Reading,
  { lo, hi, access }: Transaction,
): Page | undefined => {
  const { iotlb } = unit;
  if (
    slot &&
    slot.stamp === iotlb.stamp &&
    slot.pageLo === (lo & slot.mask) &&
    slot.pageHi === (hi | 0) &&
    (access & slot.denied) === 0
  )
    return { page: slot.pa, lg2: Math.log2(slot.size), denied: slot.denied };
  const entry = iotlb.lookup(reading.domain, lo, hi);
  if (entry < 0) return undefined;
  return { page: iotlb.page(entry), lg2: iotlb.lg2(entry), denied: iotlb.denied(entry) };
};

const finish = ({ page, lg2 }: Page, { lo, hi }: Transaction, note: string): ExplainStep => {
  const pa = page + pageOffset(lo, lg2);
  const span = grantedSpan(lo, hi, page, lg2);
  return span === 0 ? fault(FaultCode.interruptAddress, `${hex(pa)} (${note})`) : translated(pa, span, note);
};

function* secondStage(
  unit: Explained,
  memory: HostMemory,
  transaction: Transaction,
  reading: Reading,
  slot: ContextSlot | undefined,
): Steps<ExplainStep> {
  const { lo, hi, access } = transaction;
  const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
  const format = unit.config.formats[reading.aw]!;
  const walk = yield* explainWalk(format, memory, reading.table, address, needOf(access));
  const code = walk.fault === 0 ? 0 : walkFaultCode(unit.config, reading, walk.fault, walk.level, access);
  const start = walk.pa - (2 ** walk.lg2 - walk.span);
  const found = { page: start, lg2: walk.lg2, denied: deniedBy(walk.allowed) };
  const cached = remembered(unit, slot, reading, transaction);
  if (!cached) return code ? fault(code, walk.reason) : finish(found, transaction, walk.reason);
  const cachedCode = cachedFault(cached.denied, access);
  const same =
    cachedCode === code &&
    (code !== 0 || cached.page + pageOffset(lo, cached.lg2) === found.page + pageOffset(lo, found.lg2));
  const says = cachedCode
    ? describeFault(cachedCode)
    : `${hex(pageStart(lo, hi, cached.lg2))} is ${hex(cached.page)}, ${hex(2 ** cached.lg2)} bytes`;
  const note = `holds for domain ${reading.domain}: ${says}`;
  if (!same)
    yield {
      what: "IOTLB",
      note: `${note}. That is not what the tables say (${walk.reason}); it is used until it is invalidated`,
    };
  if (cachedCode) return fault(cachedCode, `the IOTLB ${note}`);
  return finish(cached, transaction, `the IOTLB ${note}`);
}

export function* explainTranslation(
  unit: Explained,
  memory: HostMemory,
  transaction: Transaction,
): Generator<ExplainStep> {
  const { lo, hi, rid, pasid, access } = transaction;
  const pa = (hi >>> 0) * WORD + (lo >>> 0);
  if (!unit.enabled) {
    yield translated(pa, WORD - (lo >>> 0), "GSTS.TES = 0: nothing is translated");
    return;
  }
  if (pasid !== NO_PASID) {
    yield fault(FaultCode.pasidInLegacyMode, `PASID ${pasid}`);
    return;
  }
  if (isInterruptAddress(lo, hi)) {
    yield access === Access.write
      ? translated(pa, interruptSpan(lo), "a write to the interrupt address range is an interrupt (§3.15)")
      : fault(FaultCode.aborted);
    return;
  }
  const reading = yield* readContext(unit, memory, rid);
  const slot = unit.contexts.slot(rid);
  const held = slot && unit.contexts.holds(slot) ? slot : undefined;
  let used: Reading = reading;
  if (held && !sameReading(held, reading)) {
    const says = held.fault ? describeFault(held.fault) : described(held);
    yield {
      what: "context cache",
      note: `holds: ${says}. That is not what the entry says; it is used until it is invalidated`,
    };
    used = held;
  }
  if (used.fault !== 0) {
    yield fault(used.fault, used.why);
    return;
  }
  if (transaction.translated) {
    yield used.translationType === TranslationType.deviceTlb
      ? translated(pa, WORD - (lo >>> 0), "a translated request of a function with a device-TLB")
      : fault(FaultCode.requestBlocked, "a translated request");
    return;
  }
  const width = unit.config.widths[used.aw]!;
  if (hi >>> (width - 32) !== 0) {
    const why = `address ${hex((BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0))}, ${width} bits`;
    yield fault(FaultCode.addressWidth, `${why} (the context entry has ${addressWidthOf(used.aw)})`);
    return;
  }
  if (used.translationType === TranslationType.passThrough) {
    yield translated(pa, beforeInterrupts(pa, WORD - (lo >>> 0)), "pass-through");
    return;
  }
  yield yield* secondStage(unit, memory, transaction, used, held);
}
