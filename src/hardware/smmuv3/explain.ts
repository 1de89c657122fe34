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
import { NO_PASID, type Transaction } from "../unit.ts";
import type { StreamCache, StreamSlot } from "./caches.ts";
import type { Capabilities } from "./capabilities.ts";
import { type Context, decodeCd, decodeSte, intermediateBits, type Stream } from "./config.ts";
import { ABORTED, describeFault, walkFaultCode } from "./faults.ts";
import { EventCode } from "./queue-spec.ts";
import { needOf, rightsOf, wantOf } from "./rights.ts";
import { Kind } from "./spaces.ts";
import { Cd, Config, L1Cd, L1Std, S1Dss, Ste, StreamWorld } from "./spec.ts";
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

type Steps<T> = Generator<ExplainStep, T>;

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
const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

const outcomeOf = ({ code, why }: Refusal): ExplainStep => {
  const reason = why ? `${describeFault(code)}: ${why}` : describeFault(code);
  return { what: "outcome", outcome: { ok: false, code, reason } };
};
const translated = (pa: number, span: number, note: string): ExplainStep => ({
  what: "outcome",
  note,
  outcome: { ok: true, pa, span },
});

/** A structure of so many bytes in memory. */
const load = (memory: HostMemory, pa: number, bytes: number): bigint | undefined => {
  let value = 0n;
  for (let at = bytes - 8; at >= 0; at -= 8) {
    if (!memory.load64(pa + at)) return undefined;
    value = (value << 64n) | (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
  }
  return value;
};
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

  *steps(): Steps<void> {
    const { enabled, aborting, table } = this.#unit;
    const { rid, translated: before } = this.#transaction;
    if (!enabled) {
      const why = aborting ? "CR0.SMMUEN = 0 and GBPA.ABORT = 1" : "CR0.SMMUEN = 0: nothing is translated";
      yield aborting || before || this.#beyond()
        ? outcomeOf(new Refusal(ABORTED, why))
        : this.#pass("CR0.SMMUEN = 0: nothing is translated");
      return;
    }
    const read = yield* this.#readStream(table, rid);
    const slot = this.#unit.streams.slot(rid);
    const held = slot?.held ? slot.stream : undefined;
    const stream = yield* this.#remembered(read, held, "configuration cache: stream table entry");
    yield stream instanceof Refusal ? outcomeOf(stream) : yield* this.#translate(stream, slot);
  }

  #beyond(): boolean {
    return this.#transaction.hi >>> (this.#has.outputBits - 32) !== 0;
  }

  #pass(note: string): ExplainStep {
    const { lo, hi } = this.#transaction;
    return translated((hi >>> 0) * WORD + (lo >>> 0), WORD - (lo >>> 0), note);
  }

  #bypass(note: string): ExplainStep {
    if (!this.#beyond()) return this.#pass(note);
    return outcomeOf(new Refusal(EventCode.F_ADDR_SIZE, `more than ${this.#has.outputBits} bits; ${note}`));
  }

  /** What is remembered is used, whatever memory says now. */
  *#remembered<T extends Stream | Context>(
    read: T | Refusal,
    cached: T | undefined,
    what: string,
  ): Steps<T | Refusal> {
    if (!cached) return read;
    if (read instanceof Refusal || !same(read, cached))
      yield { what, note: "holds something else than memory says; it is used until it is invalidated" };
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
      const value = load(this.#memory, where, 8);
      const what = "level 1 stream table descriptor";
      if (value === undefined) return yield* unread(what, where, EventCode.F_STE_FETCH);
      const entries = spanEntries(Number(L1Std.fields.SPAN.of(value)), split);
      const next = Number(L1Std.fields.L2PTR.of(value));
      const note = `${entries} stream table entries at ${hex(next)}`;
      yield { what, address: where, value, fields: L1Std.decode(value), note };
      if (second >= entries) return new Refusal(EventCode.C_BAD_STREAMID, `entry ${second} of ${entries}`);
      at = next + second * 64;
    }
    const value = load(this.#memory, at, 64);
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
      const value = load(this.#memory, where, 8);
      const what = "level 1 context descriptor";
      if (value === undefined) return yield* unread(what, where, EventCode.F_CD_FETCH);
      const valid = L1Cd.fields.V.of(value) === 1n;
      const next = Number(L1Cd.fields.L2PTR.of(value));
      const note = valid ? `context descriptors at ${hex(next)}` : "V = 0";
      yield { what, address: where, value, fields: L1Cd.decode(value), note };
      if (!valid) return new Refusal(EventCode.C_BAD_SUBSTREAMID, `${what} at ${hex(where)}: V = 0`);
      at = next + (ssid % 2 ** split) * 64;
    }
    const where = yield* this.#throughStage2(stream, at);
    if (where instanceof Refusal) return where;
    const value = load(this.#memory, where, 64);
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

  *#translate(stream: Stream, slot: StreamSlot | undefined): Steps<ExplainStep> {
    if (stream.config === Config.abort) return outcomeOf(new Refusal(ABORTED, "STE.Config aborts"));
    const { translated: before, access, pasid } = this.#transaction;
    const want = wantOf(access, stream, stream.world === StreamWorld.el1 || this.#unit.e2h);
    if (before) {
      const { checksTranslated } = this.#unit;
      if (checksTranslated && stream.ats === 0)
        return outcomeOf(new Refusal(EventCode.F_TRANSL_FORBIDDEN, "STE.EATS = 0"));
      return checksTranslated && stream.ats === 2
        ? yield* this.#stage2(stream, slot, want)
        : this.#bypass("translated before");
    }
    const substream = substreamOf(stream, pasid);
    if (substream instanceof Refusal) return outcomeOf(substream);
    if (substream >= 0) return yield* this.#stage1(stream, slot, substream, want);
    return stream.stage2 ? yield* this.#stage2(stream, slot, want) : this.#bypass("STE: bypass");
  }

  *#stage1(stream: Stream, slot: StreamSlot | undefined, ssid: number, want: number): Steps<ExplainStep> {
    const read = yield* this.#readContext(stream, ssid);
    const cached = slot?.contexts.get(ssid)?.context;
    const context = yield* this.#remembered(read, cached, "configuration cache: context descriptor");
    if (context instanceof Refusal) return outcomeOf(context);
    const { lo, hi } = this.#transaction;
    const range = rangeOf(hi, context);
    if (!range)
      return outcomeOf(new Refusal(EventCode.F_TRANSLATION, "EPD = 1: walks of the range are disabled"));
    const high = canonicalHigh(hi, range);
    const upper = isUpper(context, range);
    const name = upper ? "TTB1" : "TTB0";
    const walk = isInside(lo, high, range, upper)
      ? yield* this.#walk(
          stream,
          range,
          (BigInt(indexedHigh(high, range) >>> 0) << 32n) | BigInt(indexedLow(lo, range) >>> 0),
          want,
        )
      : new Refusal(
          EventCode.F_TRANSLATION,
          `the address is not one of the ${range.inputBits} bits of ${name}`,
        );
    const found = judge(walk, want, context);
    const el2 = stream.world === StreamWorld.el2;
    const kinds = el2 ? ([Kind.el2, Kind.el2Global] as const) : ([Kind.el1, Kind.el1Global] as const);
    const spaces = [
      this.#unit.tlb.spaces.find(kinds[0], stream.vmid, context.asid),
      this.#unit.tlb.spaces.find(kinds[1], stream.vmid, 0),
    ];
    return yield* this.#finish(found, slot, spaces, high, want);
  }

  *#walk(
    { stage2 }: Stream,
    range: { readonly format: Parameters<typeof explainWalk>[0]; readonly table: number },
    address: bigint,
    want: number,
  ): Steps<WalkOutcome | NestedOutcome> {
    const { format, table } = range;
    const need = needOf(want);
    if (!stage2) return yield* explainWalk(format, this.#memory, table, address, need);
    const formats = { first: format, second: stage2.format };
    const { guests } = this.#unit.tlb;
    const known: Remembered = (guest, wanted, fetch) =>
      guests.find(stage2.vmid, guest, wanted, fetch === Fetch.page);
    return yield* explainNested(formats, this.#memory, table, stage2.table, address, need, known);
  }

  *#stage2(stream: Stream, slot: StreamSlot | undefined, want: number): Steps<ExplainStep> {
    const { lo, hi } = this.#transaction;
    const bits = intermediateBits(this.#has);
    const { format, table, vmid } = stream.stage2!;
    const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    const walk =
      address >> BigInt(bits) === 0n
        ? yield* explainWalk(format, this.#memory, table, address, needOf(want))
        : new Refusal(
            EventCode.F_ADDR_SIZE,
            `${hex(address)} has more than ${bits} bits; stage 1 is bypassed`,
          );
    const found = judge(walk, want, undefined);
    return yield* this.#finish(found, slot, [this.#unit.tlb.spaces.find(Kind.stage2, vmid, 0)], hi, want);
  }

  /** The outcome: what is remembered, if that grants the access, else what the tables say. */
  *#finish(
    found: Found | Refusal,
    slot: StreamSlot | undefined,
    spaces: readonly number[],
    high: number,
    want: number,
  ): Steps<ExplainStep> {
    const { lo } = this.#transaction;
    const cached = this.#lastPage(slot, want) ?? this.#cached(spaces, high, want);
    if (!cached) {
      if (found instanceof Refusal) return outcomeOf(found);
      return answer(found.pa, Math.min(found.lg2, PART_LG2), lo, found.reason);
    }
    const pa = cached.base + (lo & (2 ** cached.lg2 - 1));
    const note = `holds ${hex(2 ** cached.lg2)} bytes at ${hex(cached.base)}`;
    if (found instanceof Refusal || found.pa !== pa) {
      const says = found instanceof Refusal ? describeFault(found.code) : found.reason;
      yield {
        what: "IOTLB",
        note: `${note}. That is not what the tables say (${says}); it is used until it is invalidated`,
      };
    }
    return answer(pa, cached.lg2, lo, `the IOTLB ${note}`);
  }

  #lastPage(slot: StreamSlot | undefined, want: number): Cached | undefined {
    const { lo, hi, pasid, translated: before } = this.#transaction;
    if (!slot || before || slot.stamp !== this.#unit.tlb.iotlb.stamp || slot.pasid !== pasid)
      return undefined;
    if (slot.pageLo !== (lo & slot.mask) || slot.pageHi !== (hi | 0) || (want & slot.denied) !== 0)
      return undefined;
    return { base: slot.pa, lg2: Math.log2(slot.size) };
  }

  #cached(spaces: readonly number[], high: number, want: number): Cached | undefined {
    const { iotlb } = this.#unit.tlb;
    for (const space of spaces) {
      const entry = space < 0 ? -1 : iotlb.lookup(space, this.#transaction.lo, high);
      if (entry < 0) continue;
      if ((want & iotlb.denied(entry)) !== 0) return undefined;
      return { base: iotlb.page(entry), lg2: iotlb.lg2(entry) };
    }
    return undefined;
  }
}

interface Cached {
  readonly base: number;
  readonly lg2: number;
}

/** What a walk found, judged. */
interface Found {
  readonly pa: number;
  readonly lg2: number;
  readonly reason: string;
}

const judge = (
  walk: WalkOutcome | NestedOutcome | Refusal,
  want: number,
  context: Context | undefined,
): Found | Refusal => {
  if (walk instanceof Refusal) return walk;
  if (walk.fault !== WalkFault.none) return new Refusal(walkFaultCode(walk.fault), walk.reason);
  if (want & ~rightsOf(walk.allowed, context))
    return new Refusal(EventCode.F_PERMISSION, "read, write and privilege together refuse it (WXN, PAN)");
  return { pa: walk.pa, lg2: walk.lg2, reason: walk.reason };
};

const answer = (pa: number, lg2: number, lo: number, note: string): ExplainStep => {
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
    return refuse("substream 0 is for transactions without SubstreamID");
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

/** Whether two decoded structures say the same; a format by its name and output size. */
const same = (a: Stream | Context, b: Stream | Context): boolean => comparable(a) === comparable(b);
const comparable = (value: Stream | Context): string =>
  JSON.stringify(value, (key, part) => (key === "format" ? `${part.name} ${part.outputBits}` : part));

export function* explainTransaction(
  unit: Explained,
  memory: HostMemory,
  has: Capabilities,
  transaction: Transaction,
): Generator<ExplainStep> {
  yield* new Explainer(unit, memory, has, transaction).steps();
}
