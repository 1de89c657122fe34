/**
 * What a VT-d unit can do, and CAP and ECAP (revision 4.1, §11.4.2 and §11.4.3) made of it: nothing is reported that
 * the unit does not do, with two exceptions that software is told by the manual: interrupt remapping has its
 * registers and commands but remaps nothing, and a zero-length read never reaches the unit, hence never faults.
 */
import { addressWidthOf, CapRegister, EcapRegister, LargePages } from "./spec.ts";

/** What a machine chooses. */
export interface VtdCapabilities {
  /** VER; default 1.0. From major 4 on the queue error record IQERCD exists. */
  readonly version?: { readonly major: number; readonly minor: number };
  /** SAGAW: address widths of the second stage, in bits. */
  readonly addressWidths: readonly (39 | 48 | 57)[];
  /** MGAW, in bits: default the largest of `addressWidths`. */
  readonly guestAddressWidth?: number;
  /** Host address width in bits: table addresses beyond it are reserved. In no register: the DMAR table tells it. Default 46. */
  readonly hostAddressWidth?: number;
  /** SLLPS; default both. */
  readonly largePages?: { readonly twoMegabytes: boolean; readonly oneGigabyte: boolean };
  /** ND: lg2 of the number of domains: 4, 6 … 16; default 16. */
  readonly domainBits?: number;
  /** NFR: fault recording registers, 1 to 256; default 8. */
  readonly faultRecords?: number;
  /** FRO and IRO: where FRCD, and IVA and IOTLB, lie; bytes, multiples of 16; defaults 0x400 and 0x500. */
  readonly faultRecordOffset?: number;
  readonly iotlbOffset?: number;
  /** MAMV: largest lg2 of pages of a page-selective invalidation; default 18. */
  readonly maximumAddressMask?: number;
  /** PSI; default true. */
  readonly pageSelective?: boolean;
  /** CM: faulting translations are cached too; default false. */
  readonly cachingMode?: boolean;
  /** RWBF; default false. */
  readonly writeBufferFlush?: boolean;
  /** ZLR; default true. */
  readonly zeroLengthRead?: boolean;
  /** C: default true. */
  readonly coherent?: boolean;
  /** QI; default true. */
  readonly queuedInvalidation?: boolean;
  /** PT; default true. */
  readonly passThrough?: boolean;
  /** SC; default true. */
  readonly snoopControl?: boolean;
  /** DT: default false. */
  readonly deviceTlb?: boolean;
  /** IR, and EIM; default false. */
  readonly interruptRemapping?: boolean;
  readonly extendedInterruptMode?: boolean;
  /** VCS: there are virtual command registers, behind which a VMM is; no silicon has them; default false. */
  readonly virtualCommands?: boolean;
  /** ESRTPS: setting the root table pointer invalidates the caches; default true. */
  readonly rootPointerInvalidates?: boolean;
  /** SMTS and what it brings; default: legacy mode only. */
  readonly scalable?: ScalableCapabilities;
}

/** What a unit with scalable mode has; every default is to have it not. */
export interface ScalableCapabilities {
  /** SSTS, FSTS, NEST: translation types. Pass-through is ECAP.PT. */
  readonly secondStage?: boolean;
  readonly firstStage?: boolean;
  readonly nested?: boolean;
  /** FL5LP and FL1GP: first stages of 5 levels, and their 1 GiB pages. */
  readonly fiveLevels?: boolean;
  readonly firstStageGigabyte?: boolean;
  /** PASID and PSS: bits of PASIDs of requests; none without. */
  readonly pasidBits?: number;
  /** RPS: RID_PASID is used, else it is 0. */
  readonly ridPasid?: boolean;
  /** SRS, ERS: requests for supervisor privilege and for execution. */
  readonly supervisorRequests?: boolean;
  readonly executeRequests?: boolean;
  /** EAFS. */
  readonly extendedAccessed?: boolean;
  /** SSADS: accessed and dirty bits of the second stage. */
  readonly secondStageAccessedDirty?: boolean;
  /** PRS, with PDS: page requests, and wait descriptors that drain them. */
  readonly pageRequests?: boolean;
  /** MTS: memory types may be given. */
  readonly memoryTypes?: boolean;
  /** SMPWCS: page walks may be made to snoop. */
  readonly pageWalkCoherency?: boolean;
}

/** The same, complete, with the registers made of it. */
export interface Capabilities {
  readonly version: number;
  readonly cap: bigint;
  readonly ecap: bigint;
  /** Bit n: AW n is supported. */
  readonly sagaw: number;
  /** The largest supported AW. */
  readonly largestAw: number;
  readonly guestAddressWidth: number;
  readonly hostAddressWidth: number;
  readonly pageLg2s: readonly number[];
  readonly domainBits: number;
  readonly faultRecords: number;
  readonly faultRecordOffset: number;
  readonly iotlbOffset: number;
  readonly maximumAddressMask: number;
  readonly has: {
    readonly pageSelective: boolean;
    readonly cachingMode: boolean;
    readonly writeBufferFlush: boolean;
    readonly queuedInvalidation: boolean;
    readonly passThrough: boolean;
    readonly snoopControl: boolean;
    readonly deviceTlb: boolean;
    readonly interruptRemapping: boolean;
    readonly extendedInterruptMode: boolean;
    readonly rootPointerInvalidates: boolean;
    readonly queueErrorRecord: boolean;
    readonly scalable: boolean;
    readonly secondStage: boolean;
    readonly firstStage: boolean;
    readonly nested: boolean;
    readonly fiveLevels: boolean;
    readonly pasid: boolean;
    readonly ridPasid: boolean;
    readonly supervisorRequests: boolean;
    readonly executeRequests: boolean;
    readonly extendedAccessed: boolean;
    readonly secondStageAccessedDirty: boolean;
    readonly pageRequests: boolean;
    readonly memoryTypes: boolean;
    readonly pageWalkCoherency: boolean;
  };
  /** Log2 of the leaf sizes of the first stage. */
  readonly firstStagePageLg2s: readonly number[];
}

const within = (what: string, value: number, from: number, to: number): number => {
  if (!(Number.isInteger(value) && value >= from && value <= to))
    throw new RangeError(`${what} of ${value} is not an integer from ${from} to ${to}`);
  return value;
};
const offsetWithin = (what: string, value: number): number => {
  if (value % 16 !== 0) throw new RangeError(`${what} 0x${value.toString(16)} is not a multiple of 16`);
  return within(what, value, 0xf0, 0x3ff0);
};

const scalableOf = ({ scalable }: VtdCapabilities) => {
  const given = scalable ?? {};
  if (given.nested && !(given.firstStage && given.secondStage))
    throw new RangeError("scalable.nested needs both stages: set firstStage and secondStage");
  return {
    scalable: scalable !== undefined,
    secondStage: given.secondStage ?? false,
    firstStage: given.firstStage ?? false,
    nested: given.nested ?? false,
    fiveLevels: given.fiveLevels ?? false,
    pasid: given.pasidBits !== undefined,
    ridPasid: given.ridPasid ?? false,
    supervisorRequests: given.supervisorRequests ?? false,
    executeRequests: given.executeRequests ?? false,
    extendedAccessed: given.extendedAccessed ?? false,
    secondStageAccessedDirty: given.secondStageAccessedDirty ?? false,
    pageRequests: given.pageRequests ?? false,
    memoryTypes: given.memoryTypes ?? false,
    pageWalkCoherency: given.pageWalkCoherency ?? false,
  };
};

/** RangeError, with what is allowed, for a choice no unit can have. */
export const completeCapabilities = (chosen: VtdCapabilities): Capabilities => {
  if (chosen.addressWidths.length === 0) throw new RangeError("addressWidths is empty: give 39, 48 or 57");
  const { major, minor } = chosen.version ?? { major: 1, minor: 0 };
  const sagaw = chosen.addressWidths.reduce((set, width) => set | (1 << ((width - 30) / 9)), 0);
  const largestAw = 31 - Math.clz32(sagaw);
  const { twoMegabytes, oneGigabyte } = chosen.largePages ?? { twoMegabytes: true, oneGigabyte: true };
  const domainBits = within("domainBits", chosen.domainBits ?? 16, 4, 16);
  if (domainBits % 2 !== 0) throw new RangeError(`domainBits of ${domainBits} is not even`);
  const faultRecords = within("faultRecords", chosen.faultRecords ?? 8, 1, 256);
  const faultRecordOffset = offsetWithin("faultRecordOffset", chosen.faultRecordOffset ?? 0x400);
  const iotlbOffset = offsetWithin("iotlbOffset", chosen.iotlbOffset ?? 0x500);
  if (iotlbOffset + 16 > faultRecordOffset && iotlbOffset < faultRecordOffset + faultRecords * 16)
    throw new RangeError("the fault recording registers and IOTLB overlap: move one of the offsets");
  const guestAddressWidth = within(
    "guestAddressWidth",
    chosen.guestAddressWidth ?? addressWidthOf(largestAw),
    12,
    64,
  );
  const has = {
    pageSelective: chosen.pageSelective ?? true,
    cachingMode: chosen.cachingMode ?? false,
    writeBufferFlush: chosen.writeBufferFlush ?? false,
    queuedInvalidation: chosen.queuedInvalidation ?? true,
    passThrough: chosen.passThrough ?? true,
    snoopControl: chosen.snoopControl ?? true,
    deviceTlb: chosen.deviceTlb ?? false,
    interruptRemapping: chosen.interruptRemapping ?? false,
    extendedInterruptMode: chosen.extendedInterruptMode ?? false,
    rootPointerInvalidates: chosen.rootPointerInvalidates ?? true,
    queueErrorRecord: major >= 4,
    ...scalableOf(chosen),
  };
  const { scalable = {} } = chosen;
  const maximumAddressMask = within("maximumAddressMask", chosen.maximumAddressMask ?? 18, 0, 52);
  const cap = CapRegister.make({
    ND: (domainBits - 4) / 2,
    RWBF: has.writeBufferFlush,
    CM: has.cachingMode,
    SAGAW: sagaw,
    MGAW: guestAddressWidth - 1,
    ZLR: chosen.zeroLengthRead ?? true,
    FRO: faultRecordOffset / 16,
    SLLPS: (twoMegabytes ? LargePages.twoMegabytes : 0) | (oneGigabyte ? LargePages.oneGigabyte : 0),
    PSI: has.pageSelective,
    NFR: faultRecords - 1,
    MAMV: has.pageSelective ? maximumAddressMask : 0,
    DWD: true,
    DRD: true,
    FL1GP: scalable.firstStageGigabyte ?? false,
    FL5LP: has.fiveLevels,
    ESRTPS: has.rootPointerInvalidates,
  });
  const ecap = EcapRegister.make({
    C: chosen.coherent ?? true,
    QI: has.queuedInvalidation,
    DT: has.deviceTlb,
    IR: has.interruptRemapping,
    EIM: has.extendedInterruptMode,
    PT: has.passThrough,
    SC: has.snoopControl,
    IRO: iotlbOffset / 16,
    MHMV: has.interruptRemapping ? 15 : 0,
    SMTS: has.scalable,
    VCS: chosen.virtualCommands ?? false,
    SSTS: has.secondStage,
    FSTS: has.firstStage,
    NEST: has.nested,
    PASID: has.pasid,
    PSS: has.pasid ? within("scalable.pasidBits", scalable.pasidBits!, 1, 20) - 1 : 0,
    RPS: has.ridPasid,
    SRS: has.supervisorRequests,
    ERS: has.executeRequests,
    EAFS: has.extendedAccessed,
    SSADS: has.secondStageAccessedDirty,
    PRS: has.pageRequests,
    PDS: has.pageRequests,
    MTS: has.memoryTypes,
    SMPWCS: has.pageWalkCoherency,
  });
  return {
    version: within("version.major", major, 0, 15) * 16 + within("version.minor", minor, 0, 15),
    cap,
    ecap,
    sagaw,
    largestAw,
    guestAddressWidth,
    hostAddressWidth: within("hostAddressWidth", chosen.hostAddressWidth ?? 46, 32, 52),
    pageLg2s: [12, ...(twoMegabytes ? [21] : []), ...(oneGigabyte ? [30] : [])],
    domainBits,
    faultRecords,
    faultRecordOffset,
    iotlbOffset,
    maximumAddressMask,
    has,
    firstStagePageLg2s: [12, 21, ...(scalable.firstStageGigabyte ? [30] : [])],
  };
};
