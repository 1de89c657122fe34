/**
 * What an SMMUv3 implementation offers (IHI 0070, §6.3.1 to §6.3.8), as choices, and the identification registers that
 * follow. What is not chosen is as in a plain implementation with both stages.
 */
import { ADDRESS_BITS, Idr0, Idr1, Idr3, Idr5 } from "./spec.ts";

export interface SmmuCapabilities {
  readonly stage1?: boolean;
  readonly stage2?: boolean;
  /** Bits of physical addresses; default 44. With 52, tables of the 64 KiB granule hold 52. */
  readonly outputBits?: 32 | 36 | 40 | 42 | 44 | 48 | 52;
  /** 52-bit virtual addresses with the 64 KiB granule. */
  readonly wideInput?: boolean;
  /** Default all. */
  readonly granules?: readonly (12 | 14 | 16)[];
  readonly streamIdBits?: number;
  /** Default 0: no SubstreamIDs. */
  readonly substreamIdBits?: number;
  readonly twoLevelStreams?: boolean;
  readonly twoLevelContexts?: boolean;
  /** Default `terminate`. */
  readonly stalls?: "both" | "terminate" | "force";
  /** Most transactions stalled at a time; default 256. */
  readonly stallMax?: number;
  /** Faults that terminate can only abort. Default true. */
  readonly abortsOnly?: boolean;
  /** HTTU. */
  readonly updates?: "none" | "accessed" | "dirty";
  readonly hyp?: boolean;
  readonly ats?: boolean;
  readonly pri?: boolean;
  readonly msi?: boolean;
  readonly sev?: boolean;
  /** Default true. */
  readonly asid16?: boolean;
  readonly vmid16?: boolean;
  readonly vmidWildcard?: boolean;
  readonly coherent?: boolean;
  readonly rangeInvalidation?: boolean;
  readonly hierarchyDisable?: boolean;
  readonly breakBeforeMake?: 0 | 1 | 2;
  /** lg2 of entries; default 19 each, 0 for page requests without PRI. */
  readonly commandQueueLg2?: number;
  readonly eventQueueLg2?: number;
  readonly pageRequestQueueLg2?: number;
  /** AIDR: 1 is SMMUv3.1. */
  readonly architecture?: number;
  readonly implementer?: number;
}

export interface Capabilities {
  readonly idr0: number;
  readonly idr1: number;
  readonly idr3: number;
  readonly idr5: number;
  readonly iidr: number;
  readonly aidr: number;
  readonly stage1: boolean;
  readonly stage2: boolean;
  readonly outputBits: number;
  readonly wideInput: boolean;
  readonly granules: readonly number[];
  readonly streamIdBits: number;
  readonly substreamIdBits: number;
  readonly twoLevelStreams: boolean;
  readonly twoLevelContexts: boolean;
  readonly stalls: "both" | "terminate" | "force";
  readonly stallMax: number;
  readonly abortsOnly: boolean;
  readonly updates: "none" | "accessed" | "dirty";
  readonly hyp: boolean;
  readonly ats: boolean;
  readonly pri: boolean;
  readonly msi: boolean;
  readonly sev: boolean;
  readonly asidMask: number;
  readonly vmidMask: number;
  readonly vmidWildcard: boolean;
  readonly rangeInvalidation: boolean;
  readonly hierarchyDisable: boolean;
  readonly twoExecuteNever: boolean;
  readonly commandQueueLg2: number;
  readonly eventQueueLg2: number;
  readonly pageRequestQueueLg2: number;
}

const within = (name: string, value: number, from: number, to: number): void => {
  if (!(Number.isInteger(value) && value >= from && value <= to))
    throw new RangeError(`${name} is ${value}, not within ${from} to ${to}`);
};

/** Fills in what was not chosen. RangeError for what the registers cannot say. */
export const completeCapabilities = (chosen: SmmuCapabilities = {}): Capabilities => {
  const {
    stage1 = true,
    stage2 = true,
    outputBits = 44,
    wideInput = false,
    granules = [12, 14, 16],
    streamIdBits = 16,
    substreamIdBits = 0,
    twoLevelStreams = true,
    twoLevelContexts = substreamIdBits > 0,
    stalls = "terminate",
    stallMax = stalls === "terminate" ? 0 : 256,
    abortsOnly = true,
    updates = "none",
    hyp = false,
    ats = false,
    pri = false,
    msi = false,
    sev = false,
    asid16 = true,
    vmid16 = true,
    vmidWildcard = false,
    coherent = true,
    rangeInvalidation = true,
    hierarchyDisable = true,
    breakBeforeMake = 2,
    commandQueueLg2 = 19,
    eventQueueLg2 = 19,
    pageRequestQueueLg2 = pri ? 19 : 0,
    architecture = 1,
    implementer = 0,
  } = chosen;
  if (!stage1 && !stage2) throw new RangeError("a unit has stage 1, stage 2 or both");
  within("streamIdBits", streamIdBits, 1, 32);
  within("substreamIdBits", substreamIdBits, 0, 20);
  within("stallMax", stallMax, 0, 0xffff);
  if (stalls !== "terminate" && stallMax === 0)
    throw new RangeError("a unit that stalls has stallMax above 0");
  for (const [name, lg2] of Object.entries({ commandQueueLg2, eventQueueLg2, pageRequestQueueLg2 }))
    within(name, lg2, 0, 19);
  const size = ADDRESS_BITS.indexOf(outputBits);
  const number = (value: number | bigint | boolean) => Number(value);
  return {
    idr0: number(
      Idr0.make({
        S2P: stage2,
        S1P: stage1,
        TTF: 2,
        COHACC: coherent,
        HTTU: { none: 0, accessed: 1, dirty: 2 }[updates],
        HYP: hyp,
        ATS: ats,
        ASID16: asid16,
        MSI: msi,
        SEV: sev,
        PRI: pri,
        VMW: vmidWildcard,
        VMID16: vmid16,
        CD2L: twoLevelContexts,
        TTENDIAN: 2,
        STALL_MODEL: { both: 0, terminate: 1, force: 2 }[stalls],
        TERM_MODEL: abortsOnly,
        ST_LEVEL: twoLevelStreams,
      }),
    ),
    idr1: number(
      Idr1.make({
        SIDSIZE: streamIdBits,
        SSIDSIZE: substreamIdBits,
        PRIQS: pageRequestQueueLg2,
        EVENTQS: eventQueueLg2,
        CMDQS: commandQueueLg2,
      }),
    ),
    idr3: number(
      Idr3.make({
        HAD: hierarchyDisable,
        XNX: stage2,
        PPS: pri,
        RIL: rangeInvalidation,
        BBML: breakBeforeMake,
      }),
    ),
    idr5: number(
      Idr5.make({
        OAS: size,
        GRAN4K: granules.includes(12),
        GRAN16K: granules.includes(14),
        GRAN64K: granules.includes(16),
        VAX: wideInput,
        STALL_MAX: stallMax,
      }),
    ),
    iidr: implementer,
    aidr: architecture,
    stage1,
    stage2,
    outputBits,
    wideInput,
    granules,
    streamIdBits,
    substreamIdBits,
    twoLevelStreams,
    twoLevelContexts,
    stalls,
    stallMax,
    abortsOnly,
    updates,
    hyp,
    ats,
    pri,
    msi,
    sev,
    asidMask: asid16 ? 0xffff : 0xff,
    vmidMask: vmid16 ? 0xffff : 0xff,
    vmidWildcard,
    rangeInvalidation,
    hierarchyDisable,
    twoExecuteNever: stage2,
    commandQueueLg2,
    eventQueueLg2,
    pageRequestQueueLg2,
  };
};

/** The choices that give a unit these registers. What it cannot have is not looked at. */
export const capabilitiesOf = (registers: {
  readonly idr0: number;
  readonly idr1: number;
  readonly idr3: number;
  readonly idr5: number;
  readonly iidr: number;
  readonly aidr: number;
}): SmmuCapabilities => {
  const { idr0, idr1, idr3, idr5, iidr, aidr } = registers;
  const f0 = (name: keyof typeof Idr0.fields) => Idr0.fields[name].get([idr0]);
  const f1 = (name: keyof typeof Idr1.fields) => Idr1.fields[name].get([idr1]);
  const f3 = (name: keyof typeof Idr3.fields) => Idr3.fields[name].get([idr3]);
  const f5 = (name: keyof typeof Idr5.fields) => Idr5.fields[name].get([idr5]);
  const granules = ([12, 14, 16] as const).filter(
    (granule) => f5(({ 12: "GRAN4K", 14: "GRAN16K", 16: "GRAN64K" } as const)[granule]) === 1,
  );
  return {
    stage1: f0("S1P") === 1,
    stage2: f0("S2P") === 1,
    outputBits: ADDRESS_BITS[f5("OAS")]!,
    wideInput: f5("VAX") === 1,
    granules,
    streamIdBits: f1("SIDSIZE"),
    substreamIdBits: f1("SSIDSIZE"),
    twoLevelStreams: f0("ST_LEVEL") === 1,
    twoLevelContexts: f0("CD2L") === 1,
    stalls: (["both", "terminate", "force", "terminate"] as const)[f0("STALL_MODEL")]!,
    stallMax: f5("STALL_MAX"),
    abortsOnly: f0("TERM_MODEL") === 1,
    updates: (["none", "accessed", "dirty", "dirty"] as const)[f0("HTTU")]!,
    hyp: f0("HYP") === 1,
    ats: f0("ATS") === 1,
    pri: f0("PRI") === 1,
    msi: f0("MSI") === 1,
    sev: f0("SEV") === 1,
    asid16: f0("ASID16") === 1,
    vmid16: f0("VMID16") === 1,
    vmidWildcard: f0("VMW") === 1,
    coherent: f0("COHACC") === 1,
    rangeInvalidation: f3("RIL") === 1,
    hierarchyDisable: f3("HAD") === 1,
    breakBeforeMake: Math.min(f3("BBML"), 2) as 0 | 1 | 2,
    commandQueueLg2: f1("CMDQS"),
    eventQueueLg2: f1("EVENTQS"),
    pageRequestQueueLg2: f1("PRIQS"),
    architecture: aidr,
    implementer: iidr,
  };
};
