/**
 * A transaction of an SMMUv3 told step by step: every structure and entry fetched, where it lies, its fields and what it
 * means; then what the unit remembers, where that is something else; then what the function would get now. Literal, after
 * the specification (IHI 0070, §3.3, §3.4, §3.9), with no effect on the unit; `transactions.ts` must agree with it.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { explainWalk, type WalkOutcome } from "../../pagetable/explain.ts";
import { explainNested, type NestedOutcome, type Remembered } from "../../pagetable/explain-nested.ts";
import { Permission, WalkFault } from "../../pagetable/format.ts";
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
  refused,
  type Steps,
  stale,
  translated,
} from "../explained.ts";
import { NO_PASID, type Transaction } from "../unit.ts";
import type { StreamCache, StreamSlot } from "./caches.ts";
import type { Capabilities } from "./capabilities.ts";
import { type Context, decodeCd, decodeSte, intermediateBits, type Stream } from "./config.ts";
import { ABORTED, describeFault, walkFaultCode } from "./faults.ts";
import { EventCode } from "./queue-spec.ts";
import { needOf, rightsOf, wantOf } from "./rights.ts";
import { Kind } from "./spaces.ts";
import { Cd, Config, Eats, L1Cd, L1Std, S1Dss, Ste, StreamWorld } from "./spec.ts";
import { contextAddress, contextSplit, type StreamTable, spanEntries, streamIndices } from "./tables.ts";
import type { Tlb } from "./tlb.ts";
import { canonicalHigh, indexedHigh, indexedLow, isInside, isUpper, PART_LG2, rangeOf } from "./translate.ts";

/** What of a unit a translation depends on, besides memory. */
export interface Explained {
  readonly enabled: boolean;
  readonly aborting: boolean;
  readonly checksTranslated: boolean;
  readonly table: StreamTable;
  readonly e2h: boolean;
  readonly streams: StreamCache;
  readonly tlb: Tlb;
}

/** The transaction ends with this code, for this reason. */
class Refusal {
  readonly code: number;
  readonly why: string | undefined;
  constructor(code: number, why?: string) {
    this.code = code;
    this.why = why;
  }
}

const WORD = 0x1_0000_0000;

const endOf = ({ code, why }: Refusal): Ending =>
  refused(code, why ? `${describeFault(code)}: ${why}` : describeFault(code));

const wordsOf = (layout: Layout, value: bigint): Uint32Array => {
  const words = new Uint32Array(layout.words);
  layout.toWords(value, words);
  return words;
};

class Explainer {
  readonly #unit: Explained;
  readonly #memory: HostMemory;
  readonly #has: Capabilities;
  readonly #transaction: Transaction;

  constructor(unit: Explained, memory: HostMemory, has: Capabilities, transaction: Transaction) {
    this.#unit = unit;
    this.#memory = memory;
    this.#has = has;
    this.#transaction = transaction;
  }

  /** The way of the transaction; with `tables` as the unit goes it. */
  *way(tables: Ending | undefined): Steps<Ending> {
    const { enabled, table, checksTranslated } = this.#unit;
    const { rid, translated: before } = this.#transaction;
    if (!enabled) return this.#disabled();
    if (before && !checksTranslated) return this.#passTranslated("translated before; CR0.ATSCHK = 0");
    const read = yield* this.#readStream(table, rid);
    const slot = this.#unit.streams.slot(rid);
    const held = tables && slot?.held ? slot.stream : undefined;
    const stream = yield* this.#remembered(read, held, "configuration cache: stream table entry");
    return stream instanceof Refusal
      ? endOf(stream)
      : yield* this.#translate(stream, tables && { tables, slot });
  }

  #disabled(): Ending {
    const { aborting } = this.#unit;
    const note = "CR0.SMMUEN = 0: nothing is translated";
    if (this.#transaction.translated) return endOf(new Refusal(EventCode.F_TRANSL_FORBIDDEN, note));
    const why = aborting ? "CR0.SMMUEN = 0 and GBPA.ABORT = 1" : note;
    return aborting || this.#beyond() ? endOf(new Refusal(ABORTED, why)) : this.#pass(note);
  }

  #passTranslated(note: string): Ending {
    if (!this.#beyond()) return this.#pass(note);
    return endOf(new Refusal(ABORTED, `more than ${this.#has.outputBits} bits; ${note}`));
  }

  #beyond(): boolean {
    return this.#transaction.hi >>> (this.#has.outputBits - 32) !== 0;
  }

  #pass(note: string): Ending {
    const { lo, hi } = this.#transaction;
    return translated((hi >>> 0) * WORD + (lo >>> 0), WORD - (lo >>> 0), note);
  }

  #bypass(note: string): Ending {
    if (!this.#beyond()) return this.#pass(note);
    return endOf(new Refusal(EventCode.F_ADDR_SIZE, `more than ${this.#has.outputBits} bits; ${note}`));
  }

  /** What is remembered is used, whatever memory says now. */
  *#remembered<T extends Stream | Context>(
    read: T | Refusal,
    cached: T | undefined,
    what: string,
  ): Steps<T | Refusal> {
    if (!cached) return read;
    if (read instanceof Refusal || !same(read, cached)) yield stale(what, describe(cached));
    return cached;
  }

  // Configuration

  *#readStream(table: StreamTable, sid: number): Steps<Stream | Refusal> {
    const { base, bits, split } = table;
    if (sid >= 2 ** bits)
      return new Refusal(EventCode.C_BAD_STREAMID, `StreamID ${hex(sid)} has more than ${bits} bits`);
    let at = base + sid * 64;
    if (split > 0) {
      const [first, second] = streamIndices(sid, table);
      const where = base + first * 8;
      const value = loadStructure(this.#memory, where, 8);
      const what = "level 1 stream table descriptor";
      if (value === undefined) return yield* unread(what, where, EventCode.F_STE_FETCH);
      const entries = spanEntries(Number(L1Std.fields.SPAN.of(value)), split);
      const next = Number(L1Std.fields.L2PTR.of(value));
      const note = `${entries} stream table entries at ${hex(next)}`;
      yield { what, address: where, value, fields: L1Std.decode(value), note };
      if (second >= entries) return new Refusal(EventCode.C_BAD_STREAMID, `entry ${second} of ${entries}`);
      at = next + second * 64;
    }
    const value = loadStructure(this.#memory, at, 64);
    const what = "stream table entry";
    if (value === undefined) return yield* unread(what, at, EventCode.F_STE_FETCH);
    const stream = decodeSte(wordsOf(Ste, value), this.#has);
    const illegal = typeof stream === "string";
    const note = illegal ? stream : describeStream(stream);
    yield { what, address: at, value, fields: Ste.decode(value), note };
    return illegal ? new Refusal(EventCode.C_BAD_STE, `${what} at ${hex(at)}: ${stream}`) : stream;
  }

  *#readContext(stream: Stream, ssid: number): Steps<Context | Refusal> {
    let at = contextAddress(stream, ssid);
    const split = contextSplit(stream);
    if (split > 0) {
      const where = yield* this.#throughStage2(stream, at);
      if (where instanceof Refusal) return where;
      const value = loadStructure(this.#memory, where, 8);
      const what = "level 1 context descriptor";
      if (value === undefined) return yield* unread(what, where, EventCode.F_CD_FETCH);
      const valid = L1Cd.fields.V.of(value) === 1n;
      const next = Number(L1Cd.fields.L2PTR.of(value));
      const note = valid ? `context descriptors at ${hex(next)}` : "V = 0";
      yield { what, address: where, value, fields: L1Cd.decode(value), note };
      if (!valid) return new Refusal(EventCode.C_BAD_SUBSTREAMID, `${what} at ${hex(where)}: V = 0`);
      if (next >= 2 ** this.#has.outputBits)
        return new Refusal(EventCode.C_BAD_SUBSTREAMID, `L2Ptr is beyond ${this.#has.outputBits} bits`);
      at = next + (ssid % 2 ** split) * 64;
    }
    const where = yield* this.#throughStage2(stream, at);
    if (where instanceof Refusal) return where;
    const value = loadStructure(this.#memory, where, 64);
    const what = "context descriptor";
    if (value === undefined) return yield* unread(what, where, EventCode.F_CD_FETCH);
    const context = decodeCd(wordsOf(Cd, value), this.#has, stream, this.#unit.e2h);
    const illegal = typeof context === "string";
    const note = illegal ? context : `ASID ${context.asid}`;
    yield { what, address: where, value, fields: Cd.decode(value), note };
    return illegal ? new Refusal(EventCode.C_BAD_CD, `${what} at ${hex(where)}: ${context}`) : context;
  }

  *#throughStage2({ stage2 }: Stream, address: number): Steps<number | Refusal> {
    if (!stage2) return address;
    const { format, table } = stage2;
    const walk = yield* explainWalk(format, this.#memory, table, BigInt(address), Permission.read);
    if (walk.fault === WalkFault.none) return walk.pa;
    return new Refusal(walkFaultCode(walk.fault), `stage 2, for a context descriptor: ${walk.reason}`);
  }

  // Translation

  *#translate(stream: Stream, known: Known | undefined): Steps<Ending> {
    if (stream.config === Config.abort) return endOf(new Refusal(ABORTED, "STE.Config aborts"));
    const { translated: before, access, pasid } = this.#transaction;
    const want = wantOf(access, stream, stream.world === StreamWorld.el1 || this.#unit.e2h);
    if (before) {
      if (stream.ats === Eats.none)
        return endOf(new Refusal(EventCode.F_TRANSL_FORBIDDEN, "the stream has no ATS (STE.EATS, Config)"));
      return stream.ats === Eats.split
        ? yield* this.#stage2(stream, known, want)
        : this.#passTranslated("translated before");
    }
    const substream = substreamOf(stream, pasid);
    if (substream instanceof Refusal) return endOf(substream);
    if (substream >= 0) return yield* this.#stage1(stream, known, substream, want);
    return stream.stage2 ? yield* this.#stage2(stream, known, want) : this.#bypass("STE: bypass");
  }

  *#stage1(stream: Stream, known: Known | undefined, ssid: number, want: number): Steps<Ending> {
    const read = yield* this.#readContext(stream, ssid);
    const cached = known?.slot?.contexts.get(ssid)?.context;
    const context = yield* this.#remembered(read, cached, "configuration cache: context descriptor");
    if (context instanceof Refusal) return endOf(context);
    const { lo, hi } = this.#transaction;
    const range = rangeOf(hi, context);
    if (!range)
      return endOf(new Refusal(EventCode.F_TRANSLATION, "EPD = 1: walks of the range are disabled"));
    const high = canonicalHigh(hi, range);
    const el2 = stream.world === StreamWorld.el2;
    const kinds = el2 ? ([Kind.el2, Kind.el2Global] as const) : ([Kind.el1, Kind.el1Global] as const);
    const held = this.#held(
      known,
      [
        this.#unit.tlb.spaces.find(kinds[0], stream.vmid, context.asid),
        this.#unit.tlb.spaces.find(kinds[1], stream.vmid, 0),
      ],
      high,
      want,
    );
    if (held) return yield* this.#fromIotlb(held, known!.tables);
    const upper = isUpper(context, range);
    if (!isInside(lo, high, range, upper)) {
      const name = upper ? "TTB1" : "TTB0";
      const why = `the address is not one of the ${range.inputBits} bits of ${name}`;
      return endOf(new Refusal(EventCode.F_TRANSLATION, why));
    }
    const address = (BigInt(indexedHigh(high, range) >>> 0) << 32n) | BigInt(indexedLow(lo, range) >>> 0);
    const walk = yield* this.#walk(stream, range, address, want, known !== undefined);
    return judge(walk, want, context, lo);
  }

  *#walk(
    { stage2 }: Stream,
    range: { readonly format: Parameters<typeof explainWalk>[0]; readonly table: number },
    address: bigint,
    want: number,
    recall: boolean,
  ): Steps<WalkOutcome | NestedOutcome> {
    const { format, table } = range;
    const need = needOf(want);
    if (!stage2) return yield* explainWalk(format, this.#memory, table, address, need);
    const formats = { first: format, second: stage2.format };
    const { guests } = this.#unit.tlb;
    const known: Remembered = (guest, wanted, fetch) =>
      recall ? guests.find(stage2.vmid, guest, wanted, fetch === Fetch.page) : undefined;
    return yield* explainNested(formats, this.#memory, table, stage2.table, address, need, known);
  }

  *#stage2(stream: Stream, known: Known | undefined, want: number): Steps<Ending> {
    const { lo, hi } = this.#transaction;
    const { format, table, vmid } = stream.stage2!;
    const held = this.#held(known, [this.#unit.tlb.spaces.find(Kind.stage2, vmid, 0)], hi, want);
    if (held) return yield* this.#fromIotlb(held, known!.tables);
    const bits = intermediateBits(this.#has);
    const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    if (address >> BigInt(bits)) {
      const why = `${hex(address)} has more than ${bits} bits; stage 1 is bypassed`;
      return endOf(new Refusal(EventCode.F_ADDR_SIZE, why));
    }
    const walk = yield* explainWalk(format, this.#memory, table, address, needOf(want));
    return judge(walk, want, undefined, lo);
  }

  /** The page that is remembered and grants the access: the stream's last one, else the IOTLB's. */
  #held(known: Known | undefined, spaces: readonly number[], high: number, want: number): Page | undefined {
    if (!known) return undefined;
    const { iotlb } = this.#unit.tlb;
    const { slot } = known;
    const { lo, pasid, translated: before } = this.#transaction;
    const last = lastPage(slot, iotlb.stamp, this.#transaction, want);
    if (last && !before && slot?.pasid === pasid) return last;
    for (const space of spaces) {
      const entry = space < 0 ? -1 : iotlb.lookup(space, lo, high);
      if (entry < 0) continue;
      if ((want & iotlb.denied(entry)) !== 0) return undefined;
      return { page: iotlb.page(entry), lg2: iotlb.lg2(entry) };
    }
    return undefined;
  }

  *#fromIotlb({ page, lg2 }: Page, tables: Ending): Steps<Ending> {
    const { lo } = this.#transaction;
    const note = `holds ${hex(2 ** lg2)} bytes at ${hex(page)}`;
    const end = answer(page + (lo & (2 ** lg2 - 1)), lg2, lo, `the IOTLB ${note}`);
    yield fromIotlb(note, end, tables);
    return end;
  }
}

/** What a unit goes by besides memory: what it knows of the stream; and how the transaction ends by the tables. */
interface Known {
  readonly slot: StreamSlot | undefined;
  readonly tables: Ending;
}

/** How a walk that is judged by the context ends the transaction. */
const judge = (
  walk: WalkOutcome | NestedOutcome,
  want: number,
  context: Context | undefined,
  lo: number,
): Ending => {
  if (walk.fault !== WalkFault.none) return endOf(new Refusal(walkFaultCode(walk.fault), walk.reason));
  if (want & ~rightsOf(walk.allowed, context)) {
    const why = "read, write and privilege together refuse it (WXN, PAN)";
    return endOf(new Refusal(EventCode.F_PERMISSION, why));
  }
  return answer(walk.pa, Math.min(walk.lg2, PART_LG2), lo, walk.reason);
};

const answer = (pa: number, lg2: number, lo: number, note: string): Ending => {
  const size = 2 ** lg2;
  return translated(pa, size - (lo & (size - 1)), note);
};

function* unread(what: string, address: number, code: number): Steps<Refusal> {
  yield { what, address, note: "no memory answers" };
  return new Refusal(code, `${what} at ${hex(address)}`);
}

/** §3.9 The substream whose context translates, or -1: none does. */
const substreamOf = (stream: Stream, pasid: number): number | Refusal => {
  const { stage1, contextLg2, withoutSubstream } = stream;
  if (pasid === NO_PASID) {
    if (!stage1) return -1;
    if (contextLg2 === 0 || withoutSubstream === S1Dss.substream0) return 0;
    if (withoutSubstream === S1Dss.bypass) return -1;
    return new Refusal(EventCode.F_STREAM_DISABLED, "STE.S1DSS = 0: only transactions with SubstreamID");
  }
  const refuse = (why: string) => new Refusal(EventCode.C_BAD_SUBSTREAMID, why);
  if (!stage1 || contextLg2 === 0) return refuse("the stream has no substreams");
  if (pasid >= 2 ** contextLg2) return refuse(`SubstreamID ${pasid} has more than ${contextLg2} bits`);
  if (pasid === 0 && withoutSubstream === S1Dss.substream0)
    return new Refusal(EventCode.F_STREAM_DISABLED, "substream 0 is for transactions without SubstreamID");
  return pasid;
};

const configNames = new Map<number, string>([
  [Config.abort, "abort"],
  [Config.bypass, "bypass"],
  [Config.stage1, "stage 1"],
  [Config.stage2, "stage 2"],
  [Config.nested, "stages 1 and 2"],
]);
const describeStream = ({ config, contexts, stage1, stage2, vmid }: Stream): string =>
  [
    configNames.get(config),
    ...(stage1 ? [`context descriptors at ${hex(contexts)}`] : []),
    ...(stage2 ? [`VMID ${vmid}, ${stage2.format.name} at ${hex(stage2.table)}`] : []),
  ].join("; ");

const describe = (held: Stream | Context): string =>
  "config" in held ? describeStream(held) : `ASID ${held.asid}`;

/** Whether two decoded structures say the same; a format by its name and output size. */
const same = (a: Stream | Context, b: Stream | Context): boolean => comparable(a) === comparable(b);
const comparable = (value: Stream | Context): string =>
  JSON.stringify(value, (key, part) => (key === "format" ? `${part.name} ${part.outputBits}` : part));

export const explainTransaction = (
  unit: Explained,
  memory: HostMemory,
  has: Capabilities,
  transaction: Transaction,
): Generator<ExplainStep> => {
  const explainer = new Explainer(unit, memory, has, transaction);
  return explainTwice((tables) => explainer.way(tables));
};
