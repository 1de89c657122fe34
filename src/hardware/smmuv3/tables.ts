/**
 * Where stream table entries and context descriptors lie and how they are fetched (IHI 0070, §3.3): linear and two-level
 * stream tables, one and two levels of context descriptors, which with stage 2 lie at intermediate addresses.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { Permission } from "../../pagetable/format.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import type { Capabilities } from "./capabilities.ts";
import { alignedDown, type Context, decodeCd, decodeSte, type Stage2, type Stream } from "./config.ts";
import { type Fault, walkFaultCode } from "./faults.ts";
import { walkerOf } from "./formats.ts";
import { EventClass, EventCode } from "./queue-spec.ts";
import { L1Cd, L1Std, StrtabBaseCfg, TWO_LEVEL } from "./spec.ts";

const WORD = 0x1_0000_0000;
export const STRUCTURE_LG2 = 6;
const DESCRIPTOR_LG2 = 3;

/** The stream table as the registers give it. */
export interface StreamTable {
  readonly base: number;
  /** StreamIDs have so many bits. */
  readonly bits: number;
  /** Bits that the second level indexes; 0: linear. */
  readonly split: number;
}

/** §6.3.23, §6.3.24 The stream table that the base registers describe. */
export const streamTableOf = (address: number, configuration: number, unit: Capabilities): StreamTable => {
  const { LOG2SIZE, SPLIT, FMT } = StrtabBaseCfg.fields;
  const bits = Math.min(LOG2SIZE.get([configuration]), unit.streamIdBits);
  const wanted = SPLIT.get([configuration]);
  const twoLevel = unit.twoLevelStreams && FMT.get([configuration]) === TWO_LEVEL;
  const split = twoLevel ? (wanted === 8 || wanted === 10 ? wanted : 6) : 0;
  const lg2 = twoLevel ? Math.max(bits - split, 0) + DESCRIPTOR_LG2 : bits + STRUCTURE_LG2;
  return { base: alignedDown(address, lg2), bits, split };
};

const words = new Uint32Array(16);

/** Fetches `count` 64-bit words into `words`. */
export const fetchWords = (memory: HostMemory, pa: number, count: number, into: Uint32Array): boolean => {
  for (let i = 0; i < count; i++) {
    if (!memory.load64(pa + 8 * i)) return false;
    into[2 * i] = memory.lo;
    into[2 * i + 1] = memory.hi;
  }
  return true;
};

/** Index of a StreamID in the level 1 table, and in its part of level 2. */
export const streamIndices = (sid: number, { split }: StreamTable): readonly [number, number] => {
  const part = 2 ** split;
  return [Math.floor(sid / part), sid % part];
};

/** §5.1 Entries of the level 2 table that a Span stands for; 0 also for what is reserved. */
export const spanEntries = (span: number, split: number): number =>
  span === 0 || span > split + 1 ? 0 : 2 ** (span - 1);

/** Where the entry of a stream is; -1, with the fault, when there is none. */
export const locateSte = (memory: HostMemory, table: StreamTable, sid: number, fault: Fault): number => {
  if (sid >= 2 ** table.bits) return fault.set(EventCode.C_BAD_STREAMID) && -1;
  if (table.split === 0) return table.base + sid * 64;
  const [first, second] = streamIndices(sid, table);
  const at = table.base + first * 8;
  if (!fetchWords(memory, at, 1, words)) return fault.set(EventCode.F_STE_FETCH, at) && -1;
  if (second >= spanEntries(L1Std.fields.SPAN.get(words), table.split))
    return fault.set(EventCode.C_BAD_STREAMID) && -1;
  return L1Std.fields.L2PTR.get(words) + second * 64;
};

/** Fetches the entry of a stream; false: the fault says why there is none, or that it cannot be read. */
export const fetchSte = (
  memory: HostMemory,
  table: StreamTable,
  sid: number,
  into: Uint32Array,
  fault: Fault,
): boolean => {
  const at = locateSte(memory, table, sid, fault);
  if (at < 0) return false;
  if (fetchWords(memory, at, 8, into)) return true;
  fault.set(EventCode.F_STE_FETCH, at);
  return false;
};

/** Reads the entry of a stream; undefined: the fault says why not. */
export const readStream = (
  memory: HostMemory,
  unit: Capabilities,
  table: StreamTable,
  sid: number,
  fault: Fault,
): Stream | undefined => {
  if (!fetchSte(memory, table, sid, words, fault)) return undefined;
  const stream = decodeSte(words, unit);
  if (typeof stream !== "string") return stream;
  fault.set(EventCode.C_BAD_STE);
  return undefined;
};

/** §5.2 S1Fmt: context descriptors that one level 1 descriptor covers, lg2; 0: one level. */
export const contextSplit = ({ contextFormat, contextLg2 }: Stream): number =>
  contextLg2 === 0 ? 0 : ([0, 6, 10][contextFormat] ?? 0);

/** Where the level 1 descriptor (with `split`) or the context descriptor of a SubstreamID is. */
export const contextAddress = (stream: Stream, ssid: number): number => {
  const split = contextSplit(stream);
  if (split === 0) return alignedDown(stream.contexts, stream.contextLg2 + STRUCTURE_LG2) + ssid * 64;
  const lg2 = Math.max(stream.contextLg2 - split, 0) + DESCRIPTOR_LG2;
  return alignedDown(stream.contexts, lg2) + Math.floor(ssid / 2 ** split) * 8;
};

const below = new WalkResult();

/** §3.3.2 A structure's address through stage 2, when there is one; -1, with the fault. */
const throughStage2 = (
  memory: HostMemory,
  stage2: Stage2 | undefined,
  address: number,
  fault: Fault,
): number => {
  if (!stage2) return address;
  const { format, table } = stage2;
  const high = Math.floor(address / WORD);
  const code = walkerOf(format)(memory, table, address | 0, high, Permission.read, below);
  if (code === 0) return below.pa;
  return fault.below(walkFaultCode(code), EventClass.cd, code === 9 ? below.entryAddress : address) && -1;
};

/** Fetches the context descriptor of a stream and SubstreamID; false: the fault says why there is none, or not readable. */
export const fetchCd = (
  memory: HostMemory,
  unit: Capabilities,
  stream: Stream,
  ssid: number,
  into: Uint32Array,
  fault: Fault,
): boolean => {
  let at = contextAddress(stream, ssid);
  const split = contextSplit(stream);
  if (split > 0) {
    const pa = throughStage2(memory, stream.stage2, at, fault);
    if (pa < 0) return false;
    if (!fetchWords(memory, pa, 1, into)) return fault.set(EventCode.F_CD_FETCH, pa) < 0;
    if (!L1Cd.fields.V.get(into)) return fault.set(EventCode.C_BAD_SUBSTREAMID) < 0;
    const table = L1Cd.fields.L2PTR.get(into);
    if (table >= 2 ** unit.outputBits) return fault.set(EventCode.C_BAD_SUBSTREAMID) < 0;
    at = table + (ssid % 2 ** split) * 64;
  }
  const pa = throughStage2(memory, stream.stage2, at, fault);
  if (pa < 0) return false;
  return fetchWords(memory, pa, 8, into) || fault.set(EventCode.F_CD_FETCH, pa) < 0;
};

/** Reads the context descriptor of a stream and SubstreamID; undefined: the fault says why not. */
export const readContext = (
  memory: HostMemory,
  unit: Capabilities,
  stream: Stream,
  ssid: number,
  e2h: boolean,
  fault: Fault,
): Context | undefined => {
  if (!fetchCd(memory, unit, stream, ssid, words, fault)) return undefined;
  const context = decodeCd(words, unit, stream, e2h);
  if (typeof context !== "string") return context;
  return void fault.set(EventCode.C_BAD_CD);
};
