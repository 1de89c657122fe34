/** What a VT-d unit says it can do, as far as its driver asks: CAP and ECAP (revision 4.1, §11.4.2 and §11.4.3), read once. */
import { addressWidthOf, CapRegister, EcapRegister, LargePages, Register } from "../../hardware/vtd/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Registers } from "./registers.ts";

export type Levels = 3 | 4 | 5;

export interface Abilities {
  readonly cap: bigint;
  readonly ecap: bigint;
  /** The driver runs the unit in scalable mode (ECAP.SMTS). */
  readonly scalable: boolean;
  /** Table formats it can be given: first stages in scalable mode only, second stages in legacy mode always. */
  readonly firstStage: boolean;
  readonly secondStage: boolean;
  readonly nesting: boolean;
  readonly passThrough: boolean;
  readonly dirtyTracking: boolean;
  /** Second stage: levels it takes, the widest first; address bits it accepts (MGAW); log2 of its leaf sizes. */
  readonly secondLevels: readonly Levels[];
  readonly guestAddressBits: number;
  readonly secondPageLg2s: readonly number[];
  /** First stage: the most levels, and log2 of its leaf sizes. */
  readonly firstLevels: 4 | 5;
  readonly firstPageLg2s: readonly number[];
  /** Bits of host physical addresses; firmware tells them. */
  readonly hostAddressWidth: number;
  readonly snoopControl: boolean;
  /** Page walks of scalable mode can snoop (SMPWCS). */
  readonly walksSnoop: boolean;
  readonly supervisorRequests: boolean;
  readonly extendedAccessed: boolean;
  readonly deviceTlb: boolean;
  readonly pageRequests: boolean;
  /** Bits of PASIDs of requests; 0: none. */
  readonly pasidBits: number;
  readonly domains: number;
  readonly cachingMode: boolean;
  /** Log2 of the pages one page-selective invalidation covers; -1: there is none. */
  readonly maximumAddressMask: number;
  readonly faultRecords: number;
  readonly faultRecordOffset: number;
}

/** Throws ENODEV when the unit lacks what the driver needs. */
export const readAbilities = (registers: Registers, hostAddressWidth: number, unit: string): Abilities => {
  const cap = registers.read64(Register.CAP);
  const ecap = registers.read64(Register.ECAP);
  const ofCap = (name: keyof typeof CapRegister.fields): number => Number(CapRegister.fields[name].of(cap));
  const ofEcap = (name: keyof typeof EcapRegister.fields): number =>
    Number(EcapRegister.fields[name].of(ecap));
  const has = (name: keyof typeof EcapRegister.fields): boolean => ofEcap(name) !== 0;
  const widths = [3, 2, 1].filter((aw) => ofCap("SAGAW") & (1 << aw));
  if (widths.length === 0)
    throw new LinuxError(
      "ENODEV",
      `the unit has none of 3, 4 or 5 table levels (SAGAW ${ofCap("SAGAW")})`,
      unit,
    );
  if (!has("QI")) throw new LinuxError("ENODEV", "the unit has no queued invalidation (ECAP.QI)", unit);
  const scalable = has("SMTS");
  if (scalable && !has("FSTS") && !has("SSTS"))
    throw new LinuxError("ENODEV", "the unit's scalable mode has neither a first nor a second stage", unit);
  const large = ofCap("SLLPS");
  return {
    cap,
    ecap,
    scalable,
    firstStage: scalable && has("FSTS"),
    secondStage: !scalable || has("SSTS"),
    nesting: scalable && has("NEST"),
    passThrough: has("PT"),
    dirtyTracking: scalable && has("SSADS") && has("SSTS"),
    secondLevels: widths.map((aw) => (aw + 2) as Levels),
    guestAddressBits: Math.min(addressWidthOf(widths[0]!), ofCap("MGAW") + 1),
    secondPageLg2s: [
      12,
      ...(large & LargePages.twoMegabytes ? [21] : []),
      ...(large & LargePages.oneGigabyte ? [30] : []),
    ],
    firstLevels: ofCap("FL5LP") ? 5 : 4,
    firstPageLg2s: [12, 21, ...(ofCap("FL1GP") ? [30] : [])],
    hostAddressWidth,
    snoopControl: has("SC"),
    walksSnoop: has("SMPWCS"),
    supervisorRequests: has("SRS"),
    extendedAccessed: has("EAFS"),
    deviceTlb: scalable && has("DT"),
    pageRequests: scalable && has("PRS"),
    pasidBits: scalable && has("PASID") ? ofEcap("PSS") + 1 : 0,
    domains: 2 ** (4 + 2 * ofCap("ND")),
    cachingMode: ofCap("CM") !== 0,
    maximumAddressMask: ofCap("PSI") ? ofCap("MAMV") : -1,
    faultRecords: ofCap("NFR") + 1,
    faultRecordOffset: ofCap("FRO") * 16,
  };
};
