/**
 * The device table of AMD-Vi (48882, revision 3.07, §2.2.2) and the GCR3 tables of its entries (§2.2.6.3): what an entry
 * says, decoded and checked, and which table a PASID has. Pure: functions of memory and of what the unit can do.
 *
 * Bits 255:128, which are interrupt remapping's, are not checked.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import type { AmdV1Levels } from "../../pagetable/amdv1.ts";
import { Permission, WalkFault } from "../../pagetable/format.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import type { Capabilities } from "./capabilities.ts";
import type { Fault } from "./faults.ts";
import { guestStage, hostStage, type Stage, type Updates } from "./formats.ts";
import { EventCode } from "./queue-spec.ts";
import { Dte, GCR3_BITS, Gcr3Entry } from "./spec.ts";

const WORD = 0x1_0000_0000;

/** Guest translation as an entry sets it up. */
export interface Guest {
  /** Address of the GCR3 table; guest physical or not. */
  readonly gcr3: number;
  readonly gcr3Levels: number;
  readonly guestPhysical: boolean;
  readonly stage: Stage;
  /** Requests without PASID are of PASID 0. */
  readonly withoutPasid: boolean;
}

/** A device table entry. */
export interface Device {
  /** V; without it everything passes. */
  readonly valid: boolean;
  /** TV; without it nothing is translated. */
  readonly translates: boolean;
  readonly domain: number;
  /** Host tables; undefined: host addresses are those of memory (Mode 0). */
  readonly host: Stage | undefined;
  readonly table: number;
  readonly guest: Guest | undefined;
  /** `Permission` bits that IR and IW refuse. */
  readonly denied: number;
  /** I: translation requests, and requests that are translated. */
  readonly deviceTlb: boolean;
  readonly pageRequests: boolean;
  /** SE and SA. */
  readonly logsOnce: boolean;
  readonly logsNothing: boolean;
  /** EX. */
  readonly excluded: boolean;
  readonly systemManagement: number;
  readonly portIo: number;
}

/** What registers say that the meaning of an entry depends on. */
export interface TableOptions {
  /** Address and bytes of the device table. */
  readonly base: number;
  readonly bytes: number;
  /** CONTROL.GTEn, and GCR3TRPMode. */
  readonly guestTranslation: boolean;
  readonly gcr3Guest: boolean;
}

const f = Dte.fields;
const passing: Device = {
  valid: false,
  translates: false,
  domain: 0,
  host: undefined,
  table: 0,
  guest: undefined,
  denied: 0,
  deviceTlb: false,
  pageRequests: false,
  logsOnce: false,
  logsNothing: false,
  excluded: false,
  systemManagement: 0,
  portIo: 0,
};

const RESERVED = Dte.reserved & ((1n << 128n) - 1n);
const reservedWords = [0n, 32n, 64n, 96n].map((at) => Number((RESERVED >> at) & 0xffff_ffffn));

/** DTE.HAD: nothing, accessed, (reserved), accessed and dirty. */
const updatesOf: readonly Updates[] = [undefined, "accessed", undefined, "dirty"];

/** Why the translation fields of an entry (V = TV = 1) are not valid; "" when they are. */
const illegal = (words: Uint32Array, unit: Capabilities): string => {
  const mode = f.MODE.get(words);
  const had = f.HAD.get(words);
  if (mode === 7) return "Mode = 7 is reserved";
  if (mode > unit.hostLevels) return `Mode = ${mode}: the unit has host tables of ${unit.hostLevels} levels`;
  if (had === 2) return "HAD = 2 is reserved";
  if (had !== 0 && !unit.accessed) return "HAD is set: the unit sets no accessed bits (HASup = 0)";
  if (had === 3 && !unit.dirty) return "HAD = 3: the unit sets no dirty bits (HDSup = 0)";
  return f.GV.get(words) ? illegalGuest(words, unit) : "";
};

const illegalGuest = (words: Uint32Array, unit: Capabilities): string => {
  const glx = f.GLX.get(words);
  const paging = f.GUEST_PAGING_MODE.get(words);
  if (!unit.guestTranslation) return "GV = 1: the unit has no guest translation (GTSup = 0)";
  if (glx === 3) return "GLX = 3 is reserved";
  if (glx >= unit.gcr3Levels) return `GLX = ${glx}: the unit has GCR3 tables of ${unit.gcr3Levels} levels`;
  if (paging > 1) return `guest paging mode ${paging} is reserved`;
  if (paging === 1 && unit.guestLevels < 5)
    return "guest paging mode 1: the unit has guest tables of 4 levels";
  if (f.GIOV.get(words) && !unit.guestIo) return "GIoV = 1: the unit does not have it (GIoSup = 0)";
  return "";
};

const guestOf = (words: Uint32Array, unit: Capabilities, { gcr3Guest }: TableOptions): Guest => ({
  gcr3: f.GCR3_TRP_14.get(words) + f.GCR3_TRP_30.get(words) + f.GCR3_TRP_51.get(words),
  gcr3Levels: f.GLX.get(words) + 1,
  guestPhysical: gcr3Guest,
  stage: guestStage(f.GUEST_PAGING_MODE.get(words) === 1 ? 5 : 4, unit.noExecute),
  withoutPasid: f.GIOV.get(words) === 1,
});

/** §2.2.2 What an entry says, or why it is not valid. */
export const decodeDte = (words: Uint32Array, unit: Capabilities, options: TableOptions): Device | string => {
  if (f.V.get(words) === 0) return passing;
  const reserved = reservedWords.some((mask, at) => (words[at]! & mask) !== 0);
  if (reserved) return `reserved bits are set (0x${RESERVED.toString(16)} must be 0)`;
  if (f.IOCTL.get(words) === 3) return "IoCtl = 3 is reserved";
  const translates = f.TV.get(words) === 1;
  const why = translates ? illegal(words, unit) : "";
  if (why !== "") return why;
  const mode = f.MODE.get(words);
  const guest = translates && f.GV.get(words) === 1 && options.guestTranslation;
  return {
    valid: true,
    translates,
    domain: f.DOMAIN.get(words),
    host: translates && mode > 0 ? hostStage(mode as AmdV1Levels, updatesOf[f.HAD.get(words)]) : undefined,
    table: f.HOST_TRP.get(words),
    guest: guest ? guestOf(words, unit, options) : undefined,
    denied: (f.IR.get(words) ? 0 : Permission.read) | (f.IW.get(words) ? 0 : Permission.write),
    deviceTlb: f.I.get(words) === 1,
    pageRequests: f.PPR.get(words) === 1,
    logsOnce: f.SE.get(words) === 1,
    logsNothing: f.SA.get(words) === 1,
    excluded: f.EX.get(words) === 1,
    systemManagement: f.SYSMGT.get(words),
    portIo: f.IOCTL.get(words),
  };
};

export const dteAddress = ({ base }: TableOptions, rid: number): number => base + rid * Dte.bytes;
/** Whether the table has an entry for the device. */
export const hasEntry = ({ bytes }: TableOptions, rid: number): boolean => (rid + 1) * Dte.bytes <= bytes;

const words = new Uint32Array(Dte.words);

/** Reads the words of a device's entry; false: `fault` says why there are none. */
export const fetchDte = (
  memory: HostMemory,
  options: TableOptions,
  rid: number,
  into: Uint32Array,
  fault: Fault,
): boolean => {
  if (!hasEntry(options, rid)) {
    fault.set(EventCode.ILLEGAL_DEV_TABLE_ENTRY);
    return false;
  }
  const at = dteAddress(options, rid);
  for (let i = 0; i < into.length; i += 2) {
    if (!memory.load64(at + 4 * i)) {
      fault.set(EventCode.DEV_TAB_HARDWARE_ERROR, false, at);
      return false;
    }
    into[i] = memory.lo;
    into[i + 1] = memory.hi;
  }
  return true;
};

/** Reads the entry of a device; without one `fault` says why. */
export const readDevice = (
  memory: HostMemory,
  unit: Capabilities,
  options: TableOptions,
  rid: number,
  fault: Fault,
): Device | undefined => {
  if (!fetchDte(memory, options, rid, words, fault)) return undefined;
  const device = decodeDte(words, unit, options);
  if (typeof device !== "string") return device;
  fault.set(EventCode.ILLEGAL_DEV_TABLE_ENTRY);
  fault.reserved = true;
  return undefined;
};

/** Index in the table of a level (0: the last one) for a PASID. */
export const gcr3Index = (pasid: number, level: number): number =>
  (pasid >>> (GCR3_BITS * level)) & (2 ** GCR3_BITS - 1);
/** Whether a PASID has more bits than the tables index. */
export const beyondGcr3 = (pasid: number, { gcr3Levels }: Guest, { pasidBits }: Capabilities): boolean =>
  pasid >= 2 ** Math.min(GCR3_BITS * gcr3Levels, pasidBits);
/** Bits of an entry of a GCR3 table that must be zero. */
export const GCR3_RESERVED = Gcr3Entry.reserved;
const reservedLow = Number(GCR3_RESERVED & 0xffff_ffffn);
const reservedHigh = Number(GCR3_RESERVED >> 32n);

const walk = new WalkResult();

/** Where a guest physical address is, for reading; -1: `fault` says why it is nowhere. */
const locate = (memory: HostMemory, { host, table }: Device, address: number, fault: Fault): number => {
  if (!host) return address;
  const high = Math.floor(address / WORD);
  const code = host.walk(memory, table, address - high * WORD, high, Permission.read, walk);
  if (code === WalkFault.none) return walk.pa;
  fault.walked(code, walk.entryAddress, false, address);
  return -1;
};

/** §2.2.6.3 Address (guest physical) of the root table of a PASID; -1: `fault` says why there is none. */
export const findGuestTable = (
  memory: HostMemory,
  unit: Capabilities,
  device: Device,
  pasid: number,
  fault: Fault,
): number => {
  const guest = device.guest!;
  if (beyondGcr3(pasid, guest, unit)) {
    fault.walked(WalkFault.notPresent, 0, true);
    return -1;
  }
  let table = guest.gcr3;
  for (let level = guest.gcr3Levels - 1; level >= 0; level--) {
    const at = placeOf(memory, device, table, level, gcr3Index(pasid, level), fault);
    if (at < 0) return -1;
    table = followGcr3(memory, at, fault);
    if (table < 0) return -1;
  }
  return table;
};

/** Where an entry of a GCR3 table is in memory, for reading; -1: `fault` says why it is nowhere. */
const placeOf = (
  memory: HostMemory,
  device: Device,
  table: number,
  level: number,
  index: number,
  fault: Fault,
): number => {
  const guest = device.guest!;
  const place = table + 8 * index;
  const first = level === guest.gcr3Levels - 1 && !guest.guestPhysical;
  return first ? place : locate(memory, device, place, fault);
};

/** What the entry there points to; -1: `fault` says why it is nothing. */
const followGcr3 = (memory: HostMemory, at: number, fault: Fault): number => {
  if (!memory.load64(at)) {
    fault.set(EventCode.PAGE_TAB_HARDWARE_ERROR, true, at);
    return -1;
  }
  const { lo, hi } = memory;
  const reserved = (lo & reservedLow) | (hi & reservedHigh);
  const valid = (lo & Gcr3Entry.fields.V.mask) !== 0;
  if (!valid || reserved !== 0) {
    fault.walked(valid ? WalkFault.reserved : WalkFault.notPresent, 0, true);
    return -1;
  }
  return ((hi & 0xf_ffff) >>> 0) * WORD + ((lo & 0xffff_f000) >>> 0);
};

/** PASIDs of the device that have a root table, in order; looks at every entry of every GCR3 table. */
export function* pasidsWithTable(
  memory: HostMemory,
  unit: Capabilities,
  device: Device,
  fault: Fault,
): Generator<number> {
  const { guest } = device;
  if (!guest) return;
  function* below(table: number, level: number, first: number): Generator<number> {
    for (let index = 0; index < 2 ** GCR3_BITS; index++) {
      const pasid = first + index * 2 ** (GCR3_BITS * level);
      if (beyondGcr3(pasid, guest!, unit)) return;
      const at = placeOf(memory, device, table, level, index, fault);
      const next = at < 0 ? -1 : followGcr3(memory, at, fault);
      if (next < 0) continue;
      if (level === 0) yield pasid;
      else yield* below(next, level - 1, pasid);
    }
  }
  yield* below(guest.gcr3, guest.gcr3Levels - 1, 0);
}
