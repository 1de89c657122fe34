/**
 * A scalable-mode translation told step by step (Intel VT-d revision 4.1, §3.4.3, §7.1.3): root, context, PASID directory
 * and PASID table entry, then the stages, and what the unit remembers where it is something else. Literal, in BigInt,
 * with no effect on the unit; `scalable-tables.ts` and `scalable.ts` must agree with it.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import { explainNested, type Remembered } from "../../pagetable/explain-nested.ts";
import { Fetch } from "../../pagetable/nested.ts";
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
  type Steps,
  stale,
  translated,
} from "../explained.ts";
import type { Iotlb } from "../iotlb.ts";
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import { fault } from "./explain.ts";
import { describeFault, FaultCode, modeFault } from "./faults.ts";
import { PasidSlot } from "./pasid-cache.ts";
import { faultOf, grantedBytes, isPrevented, needOfRequest, type ScalableRemapping } from "./scalable.ts";
import {
  PASID_DIRECTORY_BITS,
  PASID_TABLE_BITS,
  PasidDirectoryEntry,
  PasidEntry,
  Pgtt,
  ScalableContextEntry,
  ScalableRootEntry,
} from "./scalable-spec.ts";
import { admit, type PasidContext, readPasidContext } from "./scalable-tables.ts";
import {
  beforeInterrupts,
  coversInterrupts,
  interruptSpan,
  isInterruptAddress,
  pageOffset,
} from "./translate.ts";

const WORD = 0x1_0000_0000;

/** What of a unit a translation depends on, besides memory. */
export interface ExplainedScalable {
  readonly mode: number;
  readonly iotlb: Iotlb;
  readonly scalable: ScalableRemapping;
}

/** An entry of a table on the way: what it is, where, and what it said. */
function* step(memory: HostMemory, layout: Layout, at: number, note: string): Steps<bigint | undefined> {
  const value = loadStructure(memory, at, layout.bytes);
  if (value === undefined) yield { what: layout.name, address: at, note: "no memory answers" };
  else yield { what: layout.name, address: at, value, fields: layout.decode(value), note };
  return value;
}

/** Tells the entries that a request goes through, as far as they are fetched. */
function* tellTables(
  memory: HostMemory,
  root: number,
  rid: number,
  pasid: number,
  code: number,
): Steps<void> {
  const rootAt = root + (rid >>> 8) * ScalableRootEntry.bytes;
  const upper = (rid & 0x80) !== 0;
  const last = (from: number, to: number, note: string) =>
    code >= from && code <= to ? describeFault(code) : note;
  const { LCTP, UCTP } = ScalableRootEntry.fields;
  const rootNote = `${upper ? "upper" : "lower"} context table of bus ${hex(rid >>> 8)}`;
  const rootEntry = yield* step(memory, ScalableRootEntry, rootAt, last(0x38, 0x3a, rootNote));
  if (rootEntry === undefined || (code >= 0x38 && code <= 0x3a)) return;
  const context = Number((upper ? UCTP : LCTP).of(rootEntry)) + (rid & 0x7f) * ScalableContextEntry.bytes;
  const contextEntry = yield* step(
    memory,
    ScalableContextEntry,
    context,
    last(0x40, 0x48, "PASID directory"),
  );
  if (contextEntry === undefined || (code >= 0x40 && code <= 0x48)) return;
  const { PASIDDIRPTR, PDTS } = ScalableContextEntry.fields;
  const used = `PASID ${hex(pasid)} of ${hex(1 << (Number(PDTS.of(contextEntry)) + PASID_DIRECTORY_BITS + PASID_TABLE_BITS))}`;
  const index = pasid >>> PASID_TABLE_BITS;
  const directory = Number(PASIDDIRPTR.of(contextEntry)) + index * PasidDirectoryEntry.bytes;
  const directoryEntry = yield* step(memory, PasidDirectoryEntry, directory, last(0x50, 0x52, used));
  if (directoryEntry === undefined || (code >= 0x50 && code <= 0x52)) return;
  const table = Number(PasidDirectoryEntry.fields.SMPTBLPTR.of(directoryEntry));
  const at = table + (pasid & (2 ** PASID_TABLE_BITS - 1)) * PasidEntry.bytes;
  yield* step(memory, PasidEntry, at, last(0x58, 0x5b, "what translates the request"));
}

const sameContext = (a: PasidContext, b: PasidContext): boolean =>
  (Object.keys(new PasidSlot(0, false)) as (keyof PasidContext)[])
    .filter((key) => compared.has(key))
    .every((key) => a[key] === b[key]);
const compared = new Set<keyof PasidContext>([
  "pgtt",
  "domain",
  "aw",
  "secondTable",
  "firstTable",
  "levels",
  "supervisor",
  "execute",
  "writeProtect",
  "secondAccessedDirty",
]);

const describeContext = ({ pgtt, domain, pasid }: PasidContext): string =>
  `${PasidEntry.fields.PGTT.meanings?.[pgtt] ?? "reserved"}, domain ${domain}, PASID ${pasid}`;

const finish = ({ page, lg2 }: Page, { lo, hi, pasid }: Transaction, note: string): Ending => {
  const pa = page + pageOffset(lo, lg2);
  const span = grantedBytes(lo, hi, page, lg2, pasid !== NO_PASID);
  return span === 0
    ? fault(FaultCode.translatedInterrupt, `${hex(pa)} (${note})`)
    : translated(pa, span, note);
};

const passThrough = ({ scalable }: ExplainedScalable, { lo, hi }: Transaction, note: string): Ending => {
  const pa = (hi >>> 0) * WORD + (lo >>> 0);
  if (scalable.beyondUnit(hi)) return fault(FaultCode.unitWidth, hex(pa));
  if (coversInterrupts(pa, 1)) return fault(FaultCode.translatedInterrupt, hex(pa));
  return translated(pa, beforeInterrupts(pa, WORD - (lo >>> 0)), note);
};

/** Walks the stages, with what is remembered of guest addresses when that is asked for. */
function* walkStages(
  { scalable }: ExplainedScalable,
  memory: HostMemory,
  transaction: Transaction,
  slot: PasidSlot,
  recall: boolean,
): Steps<Ending> {
  const { lo, hi, access } = transaction;
  const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
  const need = needOfRequest(access, slot.supervises, slot.pgtt);
  const first = slot.pgtt === Pgtt.first;
  const { nested, stage, firstTable, secondTable } = slot;
  const remembered: Remembered = (guest, wanted, fetch) =>
    recall ? scalable.remembered(slot, guest, wanted, fetch) : undefined;
  const walk = nested
    ? yield* explainNested(nested, memory, firstTable, secondTable, address, need, remembered)
    : yield* explainWalk(stage!.format, memory, first ? firstTable : secondTable, address, need);
  const end = { stage: first ? 1 : 2, fetch: Fetch.page as number, guestLevel: -1, ...walk };
  if (walk.fault !== 0) return fault(faultOf(slot, end), walk.reason);
  if (isPrevented(slot, slot.supervises, walk.allowed, access))
    return fault(FaultCode.noExecute, walk.reason);
  return finish({ page: walk.pa - (2 ** walk.lg2 - walk.span), lg2: walk.lg2 }, transaction, walk.reason);
}

/** The page that is remembered and serves the access: the requester's last one, else the IOTLB's. */
const known = (
  { scalable, iotlb }: ExplainedScalable,
  { lo, hi, access }: Transaction,
  slot: PasidSlot,
): Page | undefined => {
  const entry = iotlb.lookup(slot.space, lo, hi);
  const suffices = entry >= 0 && scalable.suffices(slot, iotlb.denied(entry), access);
  return suffices ? { page: iotlb.page(entry), lg2: iotlb.lg2(entry) } : undefined;
};

function* resolve(
  unit: ExplainedScalable,
  memory: HostMemory,
  transaction: Transaction,
  slot: PasidSlot,
  tables: Ending | undefined,
): Steps<Ending> {
  const { scalable, iotlb } = unit;
  const { lo, hi, access } = transaction;
  const code = slot.fault || admit(slot, access, slot.supervises);
  if (code !== 0) return fault(code, slot.fault ? `entry at ${hex(slot.entryAddress)}` : undefined);
  if (transaction.translated)
    return slot.deviceTlb
      ? passThrough(unit, transaction, "a translated request of a function with a device-TLB")
      : fault(FaultCode.deviceTlbDisabled);
  if (slot.pgtt === Pgtt.passThrough) return passThrough(unit, transaction, "pass-through");
  const beyond = slot.pgtt === Pgtt.second ? scalable.beyondSecond(slot, hi) : 0;
  if (beyond !== 0) return fault(beyond);
  if (!tables) return yield* walkStages(unit, memory, transaction, slot, false);
  const held = lastPage(slot, iotlb.stamp, transaction, access) ?? known(unit, transaction, slot);
  if (!held) return yield* walkStages(unit, memory, transaction, slot, true);
  const pa = held.page + pageOffset(lo, held.lg2);
  const note = `holds ${hex(pa)}, in a page of ${hex(2 ** held.lg2)} bytes`;
  const answer = finish(held, transaction, `the IOTLB ${note}`);
  yield fromIotlb(note, answer, tables);
  return answer;
}

function* wayOf(
  unit: ExplainedScalable,
  memory: HostMemory,
  transaction: Transaction,
  tables: Ending | undefined,
): Steps<Ending> {
  const { scalable, mode } = unit;
  const { lo, hi, rid, pasid, access } = transaction;
  const refusal = modeFault(mode);
  if (refusal !== 0) return fault(refusal);
  if (pasid === NO_PASID && isInterruptAddress(lo, hi)) {
    const note = "a write to the interrupt address range is an interrupt (§3.15)";
    return access === Access.write ? translated(lo >>> 0, interruptSpan(lo), note) : fault(FaultCode.aborted);
  }
  const privileged = pasid !== NO_PASID && (access & Access.privileged) !== 0;
  const now = new PasidSlot(rid, privileged);
  now.fault = readPasidContext(memory, scalable.config, scalable.root, rid, pasid, now);
  yield* tellTables(memory, scalable.root, rid, now.pasid, now.fault);
  if (now.fault === 0) {
    scalable.equip(now, now);
    now.space = scalable.spaceOf(now);
  }
  const slot = tables && scalable.pasids.slot(rid, pasid, privileged);
  if (!slot || !scalable.pasids.holds(slot)) return yield* resolve(unit, memory, transaction, now, tables);
  if (now.fault !== 0 || !sameContext(slot, now)) yield stale("PASID cache", describeContext(slot));
  return yield* resolve(unit, memory, transaction, slot, tables);
}

export const explainScalable = (
  unit: ExplainedScalable,
  memory: HostMemory,
  transaction: Transaction,
): Generator<ExplainStep> => explainTwice((tables) => wayOf(unit, memory, transaction, tables));
