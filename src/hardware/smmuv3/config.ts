/**
 * What stream table entries and context descriptors say (IHI 0070, §5), decoded and judged: pure functions of their words
 * and of what the unit can do. One that is illegal gives the reason, which is for people; the event is C_BAD_STE or
 * C_BAD_CD whatever it is.
 */
import type { PageTableFormat } from "../../pagetable/format.ts";
import { type Granule, levelShift, stage1Start } from "../../pagetable/vmsa.ts";
import type { Capabilities } from "./capabilities.ts";
import { stage1Format, stage2Format } from "./formats.ts";
import { ADDRESS_BITS, Cd, Config, Eats, GRANULE_TG0, GRANULE_TG1, S1Dss, Ste, StreamWorld } from "./spec.ts";

/** Words of a structure of 64 bytes. */
export type Words = ArrayLike<number>;

const s = Ste.fields;
const c = Cd.fields;

/** Stage 2 as a stream table entry gives it. */
export interface Stage2 {
  readonly vmid: number;
  readonly table: number;
  readonly format: PageTableFormat;
  readonly stalls: boolean;
  readonly recorded: boolean;
}

/** A valid stream table entry. */
export interface Stream {
  /** `Config`, with reserved values that abort as `abort`. */
  readonly config: number;
  readonly stage1: boolean;
  readonly stage2: Stage2 | undefined;
  readonly vmid: number;
  /** Where the context descriptors are (an IPA with stage 2), in what form, and how many. */
  readonly contexts: number;
  readonly contextFormat: number;
  readonly contextLg2: number;
  readonly withoutSubstream: number;
  readonly stallDisabled: boolean;
  /** `Eats`; split stages only while CR0.ATSCHK is set. */
  readonly ats: number;
  readonly world: number;
  readonly privilege: number;
  readonly instruction: number;
}

/** One of the two ranges of a context. */
export interface Range {
  readonly table: number;
  readonly inputBits: number;
  readonly format: PageTableFormat;
  readonly topByteIgnored: boolean;
}

/** A valid context descriptor. */
export interface Context {
  readonly asid: number;
  /** TTB0 and TTB1; undefined where walks are disabled. */
  readonly lower: Range | undefined;
  readonly upper: Range | undefined;
  /** Bit 55 selects the range; else there is the lower one only. */
  readonly twoRanges: boolean;
  readonly privileges: boolean;
  readonly writeNeverExecutes: boolean;
  readonly privilegedAccessNever: boolean;
  readonly stalls: boolean;
  readonly recorded: boolean;
}

/** Illegal, and why. */
export type Illegal = string;

/** Physical address bits that the encoded size allows on this unit. */
const addressBits = (encoded: number, { outputBits }: Capabilities): number =>
  Math.min(ADDRESS_BITS[encoded]!, outputBits);

/** §3.4.1 IAS: bits of an intermediate address. Without AArch32 it is as OAS. */
export const intermediateBits = ({ outputBits }: Capabilities): number => outputBits;

/** Bits of a virtual address at most. */
const inputLimit = (granule: number, { wideInput }: Capabilities): number =>
  granule === 16 && wideInput ? 52 : 48;

/** S1Fmt; the reserved one is as the linear one. */
const contextFormat = (words: Words): number => s.S1FMT.get(words) % 3;

/** §5.2.2 STRW is ignored unless there is EL2 and stage 1 is alone. */
const worldOf = (words: Words, unit: Capabilities): number =>
  unit.hyp && s.CONFIG.get(words) === Config.stage1 ? s.STRW.get(words) : StreamWorld.el1;

const badStage1 = (words: Words, unit: Capabilities): Illegal | undefined => {
  if (!unit.stage1) return "stage 1 is not implemented";
  const contexts = s.S1CDMAX.get(words);
  if (contexts > unit.substreamIdBits)
    return `S1CDMax = ${contexts} is more than the ${unit.substreamIdBits} bits of a SubstreamID`;
  const format = contextFormat(words);
  if (contexts > 0 && format !== 0 && !unit.twoLevelContexts) return `S1Fmt = ${format} is not implemented`;
  if (s.S1STALLD.get(words) && unit.stalls !== "both")
    return "S1STALLD = 1 needs a unit that can stall and terminate";
  if (s.S1CONTEXTPTR.get(words) >= 2 ** unit.outputBits)
    return `S1ContextPtr is beyond ${unit.outputBits} bits`;
  const world = worldOf(words, unit);
  const known = world === StreamWorld.el1 || world === StreamWorld.el2;
  return known ? undefined : `STRW = ${world} is not implemented`;
};

/** What EATS comes to: it is ignored where nothing translates, and 3 is as 0. */
const effectiveEats = (words: Words, unit: Capabilities, config: number): number =>
  unit.ats && (config & 3) !== 0 ? s.EATS.get(words) % 3 : Eats.none;

const badEats = (eats: number, words: Words, config: number): Illegal | undefined => {
  const stalls = s.S2S.get(words) === 1;
  if (eats === Eats.split && (config !== Config.nested || stalls))
    return "EATS = 2 needs both stages, and S2S = 0";
  return eats === Eats.full && stalls && (config & 2) !== 0 ? "EATS = 1 with S2S = 1" : undefined;
};

/** The level that S2SL0 names for a granule, or -1. */
const startLevel = (granule: number, encoded: number): number => {
  if (encoded === 3) return -1;
  return granule === 12 ? 2 - encoded : 3 - encoded;
};

const decodeStage2 = (words: Words, unit: Capabilities): Stage2 | Illegal => {
  if (!unit.stage2) return "stage 2 is not implemented";
  if (!s.S2AA64.get(words)) return "S2AA64 = 0: AArch32 tables are not implemented";
  if (s.S2ENDI.get(words)) return "S2ENDI = 1: big-endian tables are not implemented";
  const granuleLg2 = GRANULE_TG0[s.S2TG.get(words)]!;
  if (!unit.granules.includes(granuleLg2)) return `S2TG = ${s.S2TG.get(words)} is not implemented`;
  const inputBits = 64 - s.S2T0SZ.get(words);
  const wide = granuleLg2 === 16 && unit.outputBits === 52;
  const limit = wide ? 52 : Math.min(intermediateBits(unit), 48);
  if (inputBits > limit || inputBits < 25) return `S2T0SZ: ${inputBits} bits are not within 25 to ${limit}`;
  const level = startLevel(granuleLg2, s.S2SL0.get(words));
  const indexed = level < 0 ? 0 : inputBits - levelShift(granuleLg2, level);
  if (indexed < 1 || indexed > granuleLg2 - 3 + 4)
    return `S2SL0 = ${s.S2SL0.get(words)} does not fit ${inputBits} bits with this granule`;
  const outputBits = Math.min(addressBits(s.S2PS.get(words), unit), wide ? 52 : 48);
  const [accessed, dirty] = [s.S2HA.get(words) === 1, s.S2HD.get(words) === 1];
  if (!canUpdate(unit, accessed, dirty)) return "S2HA or S2HD = 1: the unit does not update tables so";
  const updates = updatesOf(accessed, dirty);
  const stalls = s.S2S.get(words) === 1;
  if (stalls ? unit.stalls === "terminate" : unit.stalls === "force")
    return `S2S = ${Number(stalls)} contradicts the unit's stall model`;
  // The table is aligned to its size, concatenated ones together.
  const table = alignedDown(s.S2TTB.get(words), indexed + 3);
  if (s.S2TTB.get(words) >= 2 ** outputBits) return `S2TTB is beyond ${outputBits} bits`;
  return {
    vmid: s.S2VMID.get(words),
    table,
    format: stage2Format({
      granuleLg2: granuleLg2 as Granule,
      inputBits,
      startLevel: level,
      outputBits,
      wide,
      ...updates,
      accessFlag: !s.S2AFFD.get(words),
      twoExecuteNever: unit.twoExecuteNever,
    }),
    stalls,
    recorded: s.S2R.get(words) === 1,
  };
};

const canUpdate = ({ updates }: Capabilities, accessed: boolean, dirty: boolean): boolean =>
  updates === "dirty" || (!dirty && (updates === "accessed" || !accessed));

/** D8.4.6 Dirty state is updated only together with the access flag. */
const updatesOf = (accessed: boolean, dirty: boolean): { readonly updates?: "accessed" | "dirty" } =>
  accessed ? { updates: dirty ? "dirty" : "accessed" } : {};

/** The address with the bits below 2^lg2, and below 64 bytes, taken away. */
export const alignedDown = (address: number, lg2: number): number => {
  const size = 2 ** Math.max(lg2, 6);
  return Math.floor(address / size) * size;
};

/** §5.2 A stream table entry. */
export const decodeSte = (words: Words, unit: Capabilities): Stream | Illegal => {
  if (!s.V.get(words)) return "V = 0";
  const encoded = s.CONFIG.get(words);
  const config = encoded & 4 ? encoded : Config.abort;
  const stage1 = config === Config.stage1 || config === Config.nested;
  const illegal = stage1 ? badStage1(words, unit) : undefined;
  if (illegal) return illegal;
  const stage2 = config === Config.stage2 || config === Config.nested ? decodeStage2(words, unit) : undefined;
  if (typeof stage2 === "string") return stage2;
  const dss = s.S1DSS.get(words);
  const ats = effectiveEats(words, unit, config);
  const disallowed = badEats(ats, words, config);
  if (disallowed) return disallowed;
  const world = worldOf(words, unit);
  const tagged = unit.stage2 && (config & 3) !== 0 && world === StreamWorld.el1;
  if (tagged && s.S2VMID.get(words) > unit.vmidMask)
    return `S2VMID = ${s.S2VMID.get(words)} has more than 8 bits`;
  return {
    config,
    stage1,
    stage2,
    vmid: tagged ? s.S2VMID.get(words) : 0,
    contexts: s.S1CONTEXTPTR.get(words),
    contextFormat: contextFormat(words),
    contextLg2: stage1 ? s.S1CDMAX.get(words) : 0,
    withoutSubstream: dss === 3 ? S1Dss.terminate : dss,
    stallDisabled: s.S1STALLD.get(words) === 1,
    ats,
    world,
    privilege: s.PRIVCFG.get(words),
    instruction: s.INSTCFG.get(words),
  };
};

/** What of a context descriptor belongs to one range. */
interface RangeFields {
  readonly name: string;
  readonly disabled: boolean;
  readonly size: number;
  readonly granuleLg2: number;
  readonly table: number;
  readonly flat: boolean;
  readonly topByteIgnored: boolean;
}

const decodeRange = (
  fields: RangeFields,
  words: Words,
  unit: Capabilities,
  { stage2 }: Stream,
  privileges: boolean,
): Range | Illegal | undefined => {
  const { name, disabled, size, granuleLg2, topByteIgnored } = fields;
  if (disabled) return undefined;
  if (!unit.granules.includes(granuleLg2)) return `${name}: the granule is not implemented`;
  const inputBits = 64 - size;
  const limit = inputLimit(granuleLg2, unit);
  if (inputBits < 25 || inputBits > limit) return `${name}: ${inputBits} bits are not within 25 to ${limit}`;
  const wide = granuleLg2 === 16 && unit.outputBits === 52;
  const outputBits = Math.min(addressBits(c.IPS.get(words), unit), wide ? 52 : 48);
  if (fields.table >= 2 ** (stage2 ? Math.min(outputBits, intermediateBits(unit)) : outputBits))
    return `${name}: the table is beyond ${outputBits} bits`;
  const start = stage1Start(granuleLg2, inputBits);
  const updates = updatesOf(c.HA.get(words) === 1, c.HD.get(words) === 1);
  return {
    table: alignedDown(fields.table, inputBits - levelShift(granuleLg2, start) + 3),
    inputBits,
    topByteIgnored,
    format: stage1Format({
      granuleLg2: granuleLg2 as Granule,
      // The bits above the input size are looked at before: contexts that differ in them share a walker.
      inputBits: Math.min(levelShift(granuleLg2, start) + granuleLg2 - 3, limit),
      outputBits,
      wide,
      ...updates,
      accessFlag: !c.AFFD.get(words),
      hierarchical: !(fields.flat && unit.hierarchyDisable),
      privileges,
    }),
  };
};

const badContext = (
  words: Words,
  unit: Capabilities,
  stream: Stream,
  twoRanges: boolean,
): Illegal | undefined => {
  if (!c.V.get(words)) return "V = 0";
  if (!c.AA64.get(words)) return "AA64 = 0: AArch32 tables are not implemented";
  const walks = c.EPD0.get(words) === 0 || (twoRanges && c.EPD1.get(words) === 0);
  if (walks && c.ENDI.get(words)) return "ENDI = 1: big-endian tables are not implemented";
  if (twoRanges && c.ASID.get(words) > unit.asidMask)
    return `ASID = ${c.ASID.get(words)} has more than 8 bits`;
  if (!canUpdate(unit, c.HA.get(words) === 1, c.HD.get(words) === 1))
    return "HA or HD = 1: the unit does not update tables so";
  const stalls = c.S.get(words) === 1;
  if (stalls && unit.stalls === "terminate") return "S = 1: the unit cannot stall";
  if (!stalls && unit.stalls === "force") return "S = 0: the unit always stalls";
  if (stalls && stream.stallDisabled) return "S = 1 with STE.S1STALLD";
  if (!c.A.get(words) && unit.abortsOnly) return "A = 0: the unit can only abort";
  return undefined;
};

/** §5.4 A context descriptor, of a stream. `e2h`: CR2.E2H. */
export const decodeCd = (
  words: Words,
  unit: Capabilities,
  stream: Stream,
  e2h: boolean,
): Context | Illegal => {
  const twoRanges = stream.world === StreamWorld.el1 || e2h;
  const illegal = badContext(words, unit, stream, twoRanges);
  if (illegal) return illegal;
  const lower = decodeRange(
    {
      name: "TTB0",
      disabled: c.EPD0.get(words) === 1,
      size: c.T0SZ.get(words),
      granuleLg2: GRANULE_TG0[c.TG0.get(words)]!,
      table: c.TTB0.get(words),
      flat: c.HAD0.get(words) === 1,
      topByteIgnored: c.TBI0.get(words) === 1,
    },
    words,
    unit,
    stream,
    twoRanges,
  );
  if (typeof lower === "string") return lower;
  const upper = decodeRange(
    {
      name: "TTB1",
      disabled: !twoRanges || c.EPD1.get(words) === 1,
      size: c.T1SZ.get(words),
      granuleLg2: GRANULE_TG1[c.TG1.get(words)]!,
      table: c.TTB1.get(words),
      flat: c.HAD1.get(words) === 1,
      topByteIgnored: c.TBI1.get(words) === 1,
    },
    words,
    unit,
    stream,
    twoRanges,
  );
  if (typeof upper === "string") return upper;
  return {
    asid: twoRanges ? c.ASID.get(words) : 0,
    lower,
    upper,
    twoRanges,
    privileges: twoRanges,
    writeNeverExecutes: c.WXN.get(words) === 1,
    privilegedAccessNever: twoRanges && c.PAN.get(words) === 1,
    stalls: c.S.get(words) === 1,
    recorded: c.R.get(words) === 1,
  };
};
