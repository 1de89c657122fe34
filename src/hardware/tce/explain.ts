/**
 * A transaction told step by step: the requester's PE, the window, every TCE; then what the bridge remembers, where that
 * is something else. Literal, with no effect on the unit; `unit.ts` must agree with it.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import { WalkFault } from "../../pagetable/format.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import {
  type Ending,
  explainTwice,
  fromIotlb,
  hex,
  refused,
  type Steps,
  stale,
  translated,
} from "../explained.ts";
import type { Iotlb } from "../iotlb.ts";
import type { Transaction } from "../unit.ts";
import type { ChipTables } from "./chip-tables.ts";
import { describeFault, TceFault, walkCodes } from "./faults.ts";
import type { Requesters } from "./requesters.ts";
import { PES, RealTve, Rte, Space, Tve, WINDOW_LG2, WINDOWS } from "./spec.ts";
import { needOf, showWindow } from "./translate.ts";

/** What of a unit a translation depends on, besides memory. */
export interface Explained {
  readonly enabled: boolean;
  readonly takesMessages: boolean;
  readonly messages: { readonly start: number; readonly length: number };
  readonly requesters: Requesters;
  readonly chip: ChipTables;
  readonly iotlb: Iotlb;
}

const SPACE_LG2 = 60n;
const OFFSET = (1n << BigInt(WINDOW_LG2)) - 1n;

const refusal = (code: number, why: string): Ending => refused(code, `${describeFault(code)}: ${why}`);
const ioda = (why: string): Ending => refusal(TceFault.ioda, why);

function* findPe({ requesters }: Explained, rid: number, asUnit: boolean): Steps<number | Ending> {
  const at = requesters.address(rid);
  const pe = requesters.read(rid);
  const valid = pe !== undefined && pe < PES;
  if (pe === undefined) yield { what: "RTE", address: at, note: "no memory answers" };
  else {
    const value = BigInt(pe);
    const note = valid ? `requester ${hex(rid)} belongs to PE ${pe}` : `there are ${PES} PEs`;
    yield { what: "RTE", address: at, value, fields: Rte.decode(value), note };
  }
  const known = asUnit ? requesters.known(rid) : undefined;
  if (known !== undefined) {
    if (known !== pe) yield stale("requester cache", `PE ${known}`);
    return known;
  }
  if (pe === undefined) return refusal(TceFault.memory, `the RTE at ${hex(at)} cannot be read`);
  return valid ? pe : ioda(`the RTE at ${hex(at)} names PE ${pe}, and there are ${PES}`);
}

function* wayOf(
  unit: Explained,
  memory: HostMemory,
  transaction: Transaction,
  tables?: Ending,
): Steps<Ending> {
  const { lo, hi, rid, pasid, access } = transaction;
  const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
  if (!unit.enabled)
    return translated(Number(address), Number.MAX_SAFE_INTEGER, "RTT_BAR.ENABLE = 0: addresses pass");
  const pe = yield* findPe(unit, rid, tables !== undefined);
  if (typeof pe !== "number") return pe;
  if (pasid >= 0) return ioda(`PASID ${pasid}: a host bridge of POWER has none`);
  if (transaction.translated) return ioda("the address was translated before, which the bridge never does");
  const need = needOf(access);
  const space = Number(address >> SPACE_LG2);
  if (space === Space.messages) return message(unit, address, need);
  if (space !== Space.dma) return ioda(`bits 63:60 of the address are ${hex(space)}, which is no space`);
  const index = pe * WINDOWS + Number(address >> BigInt(WINDOW_LG2));
  const held = tables && lookup(unit.iotlb, index, transaction, need);
  if (held) {
    const note = `holds ${hex(held.size)} bytes at ${hex(held.page)}`;
    const offset = (lo >>> 0) % held.size;
    const end = translated(held.page + offset, held.size - offset, `the TCE cache ${note}`);
    yield fromIotlb(note, end, tables);
    return end;
  }
  return yield* through(unit, memory, index, address & OFFSET, need);
}

const lookup = (iotlb: Iotlb, context: number, { lo, hi }: Transaction, need: number) => {
  const entry = iotlb.lookup(context, lo, hi);
  if (entry < 0 || (need & iotlb.denied(entry)) !== 0) return undefined;
  return { page: iotlb.page(entry), size: 2 ** iotlb.lg2(entry) };
};

const message = ({ takesMessages, messages }: Explained, address: bigint, need: number): Ending => {
  if (!takesMessages) return ioda("PHB4_CONFIG.MSI64_EN = 0: there are no messages");
  const offset = address & ((1n << SPACE_LG2) - 1n);
  if (offset >= BigInt(messages.length)) return ioda(`message address ${hex(address)} is no interrupt's`);
  if (need !== needOf(2)) return ioda("messages are written, not read");
  const at = Number(offset);
  return translated(messages.start + at, messages.length - at, "an interrupt message");
};

function* through(
  { chip }: Explained,
  memory: HostMemory,
  index: number,
  offset: bigint,
  need: number,
): Steps<Ending> {
  const window = chip.window(index);
  const value = chip.tve(index);
  const what = `TVE ${index}`;
  if (typeof window === "string") {
    yield { what, value, fields: Tve.decode(value), note: window };
    return ioda(`window ${index % WINDOWS} of PE ${Math.floor(index / WINDOWS)}: ${window}`);
  }
  const { decode } = window.kind === "tce" ? Tve : RealTve;
  yield { what, value, fields: decode(value), note: showWindow(window) };
  if (window.kind === "tce") {
    const walk = yield* explainWalk(window.format, memory, window.root, offset, need);
    if (walk.fault === WalkFault.none) return translated(walk.pa, walk.span, walk.reason);
    return refusal(walkCodes[walk.fault]!, walk.reason);
  }
  const at = Number(offset);
  if (at < window.start || at >= window.end)
    return ioda(`${hex(offset)} is outside of ${showWindow(window)}`);
  return translated(at, window.end - at, "the window is memory itself");
}

export const explainRequest = (
  unit: Explained,
  memory: HostMemory,
  transaction: Transaction,
): Generator<ExplainStep> => explainTwice((tables) => wayOf(unit, memory, transaction, tables));
