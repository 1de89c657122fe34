/**
 * From a requester and its PASID to what translates it, in scalable mode (Intel VT-d revision 4.1, §3.4.3 and §9.2 to
 * §9.6): root entry, context entry, PASID directory and table. Pure, in the order of checks of §7.1.3; allocates nothing.
 * What a unit cannot do makes fields reserved.
 *
 * Left out: the snoop bits and memory types are checked and kept, and of no effect, as all memory is coherent here.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import type { BitField, Layout } from "../../uapi/layout.ts";
import { Access } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import { FaultCode } from "./faults.ts";
import {
  PASID_DIRECTORY_BITS,
  PASID_TABLE_BITS,
  PasidDirectoryEntry,
  PasidEntry,
  Pgtt,
  ScalableContextEntry,
  ScalableRootEntry,
} from "./scalable-spec.ts";

/** What the tables say about requests of a function with a PASID (or without), decoded. One is kept and used again. */
export class PasidContext {
  /** FPD of any entry on the way: faults of the requests are not recorded. */
  silent = false;
  /** The PASID that the tables were read with. */
  pasid = 0;
  /** Requests without PASID are privileged. */
  ridPrivileged = false;
  /** Context entry: what else the function may do. */
  deviceTlb = false;
  pageRequests = false;
  /** PASID directory: its address, and lg2 of its entries. */
  directory = 0;
  directoryLg2 = 0;
  pgtt = 0;
  /** Second stage: levels minus 2, and the physical address of its root. */
  aw = 0;
  secondTable = 0;
  domain = 0;
  /** First stage: levels, and the address of its root (of a guest when nested). */
  levels: 4 | 5 = 4;
  firstTable = 0;
  secondAccessedDirty = false;
  secondExecute = false;
  supervisor = false;
  execute = false;
  writeProtect = false;
  executeDisable = false;
  supervisorExecutePrevention = false;
  extendedAccessed = false;
  /** Where the last entry looked at is. */
  entryAddress = 0;
}

/** Reserved bits of each entry, by 32-bit words; and what else of the capabilities matters. */
export interface ScalableConfig {
  readonly rootReserved: Uint32Array;
  readonly contextReserved: Uint32Array;
  readonly directoryReserved: Uint32Array;
  readonly pasidReserved: Uint32Array;
  /** Bits of an address's upper word from the host address width on. */
  readonly beyondHost: number;
  readonly domains: number;
  readonly sagaw: number;
  readonly ridPasid: boolean;
  readonly supervisor: boolean;
  /** By PGTT: whether the unit does it. */
  readonly types: readonly boolean[];
  readonly fiveLevels: boolean;
}

type Fields = { readonly [name: string]: BitField };
const maskOf = (fields: Fields, names: readonly string[]): bigint =>
  names.reduce((mask, name) => {
    const { first, width } = fields[name]!;
    return mask | (((1n << BigInt(width)) - 1n) << BigInt(first));
  }, 0n);
const toWords = (layout: Layout, mask: bigint): Uint32Array => {
  const words = new Uint32Array(layout.words);
  layout.toWords(mask, words);
  return words;
};

/** What of a unit's capabilities matters to the tables, prepared once. */
export const configureScalable = ({
  has,
  hostAddressWidth,
  domainBits,
  sagaw,
}: Capabilities): ScalableConfig => {
  const beyondHost = (-1 << (hostAddressWidth - 32)) >>> 0;
  const beyond = (at: number) => BigInt(beyondHost) << BigInt(at + 32);
  const contextMissing = [
    ...(has.deviceTlb ? [] : ["DTE"]),
    ...(has.pasid ? [] : ["PASIDE"]),
    ...(has.pageRequests ? [] : ["PRE"]),
  ];
  const pasidMissing = [
    ...(has.executeRequests ? [] : ["SSEE", "ERE", "SMEP"]),
    ...(has.secondStageAccessedDirty ? [] : ["SSADE"]),
    ...(has.pageWalkCoherency ? [] : ["PWSNP"]),
    ...(has.snoopControl ? [] : ["PGSNP"]),
    ...(has.memoryTypes ? [] : ["CD", "EMTE", "EMT", "PWT", "PCD", "PAT"]),
    ...(has.supervisorRequests ? [] : ["SRE"]),
    ...(has.extendedAccessed ? [] : ["EAFE"]),
  ];
  const pasidMask = PasidEntry.reserved | maskOf(PasidEntry.fields, ["RSVD", ...pasidMissing]);
  return {
    rootReserved: toWords(ScalableRootEntry, ScalableRootEntry.reserved | beyond(0) | beyond(64)),
    contextReserved: toWords(
      ScalableContextEntry,
      ScalableContextEntry.reserved | maskOf(ScalableContextEntry.fields, contextMissing) | beyond(0),
    ),
    directoryReserved: toWords(PasidDirectoryEntry, PasidDirectoryEntry.reserved | beyond(0)),
    pasidReserved: toWords(PasidEntry, pasidMask),
    beyondHost,
    domains: 2 ** domainBits,
    sagaw,
    ridPasid: has.ridPasid,
    supervisor: has.supervisorRequests,
    types: [false, has.firstStage, has.secondStage, has.nested, has.passThrough, false, false, false],
    fiveLevels: has.fiveLevels,
  };
};

const WORD = 0x1_0000_0000;
const PAGE = 0xffff_f000;
const entry = new Uint32Array(PasidEntry.words);

/** Reads so many words. */
const load = (memory: HostMemory, pa: number, words: number): boolean => {
  for (let at = 0; at < words; at += 2) {
    if (!memory.load64(pa + at * 4)) return false;
    entry[at] = memory.lo;
    entry[at + 1] = memory.hi;
  }
  return true;
};
const anyOf = (mask: Uint32Array, from: number, to: number): boolean => {
  for (let at = from; at < to; at++) if ((entry[at]! & mask[at]!) !== 0) return true;
  return false;
};
const pointer = (at: number): number => entry[at + 1]! * WORD + ((entry[at]! & PAGE) >>> 0);

const { P, FPD } = PasidEntry.fields;

/** §9.2 Where the context entry of a requester is: its root entry's half, into `entryAddress`; 0, or the fault. */
const readRoot = (
  memory: HostMemory,
  config: ScalableConfig,
  root: number,
  rid: number,
  out: PasidContext,
): number => {
  const at = root + (rid >>> 8) * ScalableRootEntry.bytes;
  out.entryAddress = at;
  if (!load(memory, at, ScalableRootEntry.words)) return FaultCode.scalableRootAccess;
  const half = (rid & 0x80) === 0 ? 0 : 2;
  if ((entry[half]! & P.mask) === 0) return FaultCode.scalableRootNotPresent;
  if (anyOf(config.rootReserved, half, half + 2)) return FaultCode.scalableRootReserved;
  out.entryAddress = pointer(half) + (rid & 0x7f) * ScalableContextEntry.bytes;
  return 0;
};

const { DTE, PASIDE, PRE, PDTS, RID_PASID, RID_PRIV } = ScalableContextEntry.fields;

/** §9.4 Reads the context entry; leaves the directory's entry of the PASID in `entryAddress`. */
const readContextEntry = (
  memory: HostMemory,
  config: ScalableConfig,
  pasid: number,
  out: PasidContext,
): number => {
  if (!load(memory, out.entryAddress, ScalableContextEntry.words)) return FaultCode.scalableContextAccess;
  out.silent = FPD.get(entry) === 1;
  if ((entry[0]! & P.mask) === 0) return FaultCode.scalableContextNotPresent;
  if (anyOf(config.contextReserved, 0, ScalableContextEntry.words)) return FaultCode.scalableContextReserved;
  out.deviceTlb = DTE.get(entry) === 1;
  out.pageRequests = PRE.get(entry) === 1;
  out.ridPrivileged = config.supervisor && RID_PRIV.get(entry) === 1;
  const tagged = pasid >= 0;
  if (tagged && PASIDE.get(entry) === 0) return FaultCode.pasidDisabled;
  out.pasid = tagged ? pasid : config.ridPasid ? RID_PASID.get(entry) : 0;
  out.directory = pointer(0);
  out.directoryLg2 = PDTS.get(entry) + PASID_DIRECTORY_BITS;
  const index = out.pasid >>> PASID_TABLE_BITS;
  if (index >>> out.directoryLg2 !== 0)
    return tagged ? FaultCode.pasidBeyondDirectory : FaultCode.ridPasidInvalid;
  out.entryAddress = out.directory + index * PasidDirectoryEntry.bytes;
  return 0;
};

/** §9.5 Reads the directory entry; leaves where the PASID table entry is in `entryAddress`. */
const readDirectory = (memory: HostMemory, config: ScalableConfig, out: PasidContext): number => {
  if (!load(memory, out.entryAddress, PasidDirectoryEntry.words)) return FaultCode.directoryAccess;
  if (FPD.get(entry) === 1) out.silent = true;
  if ((entry[0]! & P.mask) === 0) return FaultCode.directoryNotPresent;
  if (anyOf(config.directoryReserved, 0, 2)) return FaultCode.directoryReserved;
  out.entryAddress = pointer(0) + (out.pasid & (2 ** PASID_TABLE_BITS - 1)) * PasidEntry.bytes;
  return 0;
};

const { AW, SSEE, PGTT, SSADE, DID, SRE, ERE, FSPM, WPE, NXE, SMEP, EAFE } = PasidEntry.fields;
const SECOND_AT = 0;
const FIRST_AT = PasidEntry.fields.FSPTPTR.word;

/** §9.6 Reads the PASID table entry. */
const readEntry = (memory: HostMemory, config: ScalableConfig, out: PasidContext): number => {
  if (!load(memory, out.entryAddress, PasidEntry.words)) return FaultCode.pasidAccess;
  if (FPD.get(entry) === 1) out.silent = true;
  if ((entry[0]! & P.mask) === 0) return FaultCode.pasidNotPresent;
  out.pgtt = PGTT.get(entry);
  out.domain = DID.get(entry);
  const first = out.pgtt === Pgtt.first || out.pgtt === Pgtt.nested;
  const second = out.pgtt === Pgtt.second || out.pgtt === Pgtt.nested;
  if (anyOf(config.pasidReserved, 0, PasidEntry.words) || out.domain >= config.domains)
    return FaultCode.pasidReserved;
  // A pointer that is not used is ignored, its bits beyond the host address width too.
  if (second && (entry[SECOND_AT + 1]! & config.beyondHost) !== 0) return FaultCode.pasidReserved;
  if (first && (entry[FIRST_AT + 1]! & config.beyondHost) !== 0) return FaultCode.pasidReserved;
  if (!config.types[out.pgtt]) return FaultCode.pasidInvalid;
  out.aw = AW.get(entry);
  if (second && (config.sagaw & (1 << out.aw)) === 0) return FaultCode.pasidInvalid;
  const mode = FSPM.get(entry);
  if (first && mode !== 0 && !(mode === 1 && config.fiveLevels)) return FaultCode.pasidInvalid;
  out.levels = mode === 1 ? 5 : 4;
  out.secondTable = pointer(SECOND_AT);
  out.firstTable = pointer(FIRST_AT);
  out.secondAccessedDirty = SSADE.get(entry) === 1;
  out.secondExecute = SSEE.get(entry) === 1;
  out.supervisor = SRE.get(entry) === 1;
  out.execute = ERE.get(entry) === 1;
  out.writeProtect = WPE.get(entry) === 1;
  out.executeDisable = NXE.get(entry) === 1;
  out.supervisorExecutePrevention = SMEP.get(entry) === 1;
  out.extendedAccessed = EAFE.get(entry) === 1;
  return 0;
};

/** Reads what translates requests of `rid` with `pasid` (negative: without): 0, or the fault. */
export const readPasidContext = (
  memory: HostMemory,
  config: ScalableConfig,
  root: number,
  rid: number,
  pasid: number,
  out: PasidContext,
): number => {
  out.silent = false;
  return (
    readRoot(memory, config, root, rid, out) ||
    readContextEntry(memory, config, pasid, out) ||
    readDirectory(memory, config, out) ||
    readEntry(memory, config, out)
  );
};

/** Reads the context entry alone, which is what page requests go by (§7.4): 0, or the fault. */
export const readFunctionContext = (
  memory: HostMemory,
  config: ScalableConfig,
  root: number,
  rid: number,
  pasid: number,
  out: PasidContext,
): number => {
  out.silent = false;
  return readRoot(memory, config, root, rid, out) || readContextEntry(memory, config, pasid, out);
};

/** Whether the entry lets a request be made at all: 0, or the fault. `privileged`: asked for, or by RID_PRIV. */
export const admit = (context: PasidContext, access: number, privileged: boolean): number => {
  if ((access & Access.execute) !== 0 && !context.execute) return FaultCode.executeDisabled;
  if (privileged && !context.supervisor) return FaultCode.supervisorDisabled;
  return 0;
};
