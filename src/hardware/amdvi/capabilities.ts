/**
 * What an AMD-Vi unit can do (48882, revision 3.07, §3.4.2): its feature registers, and what of them the model goes by.
 * Features that `spec.ts` leaves out may be reported, and do nothing.
 */
import { ExtendedFeature, ExtendedFeature2 } from "./spec.ts";

export interface AmdViCapabilities {
  /** EXT_FEATURE and EXT_FEATURE2. Default: everything that is modelled. */
  readonly efr?: bigint;
  readonly efr2?: bigint;
  /** IotlbSup of the unit's PCI capability: INVALIDATE_IOTLB_PAGES. Default true. */
  readonly deviceTlb?: boolean;
}

export interface Capabilities {
  readonly efr: bigint;
  readonly efr2: bigint;
  readonly deviceTlb: boolean;
  readonly prefetch: boolean;
  readonly pageRequests: boolean;
  readonly autoResponse: boolean;
  readonly invalidateAll: boolean;
  readonly hostLevels: number;
  readonly guestTranslation: boolean;
  readonly guestLevels: 4 | 5;
  readonly gcr3Levels: number;
  /** DTE.GIoV, and GCR3 table root pointers that are guest physical. */
  readonly guestIo: boolean;
  readonly gcr3Guest: boolean;
  readonly pasidBits: number;
  readonly noExecute: boolean;
  readonly privilege: boolean;
  readonly accessed: boolean;
  readonly dirty: boolean;
  readonly msi: boolean;
}

/** Of a unit that has all that is modelled. */
export const EVERYTHING = ExtendedFeature.make({
  PREF_SUP: true,
  PPR_SUP: true,
  NX_SUP: true,
  GT_SUP: true,
  IA_SUP: true,
  HATS: 2,
  GATS: 1,
  GLX_SUP: 2,
  PAS_MAX: 19,
  US_SUP: true,
  PPR_AUTO_RSP_SUP: true,
  MSI_CAP_MMIO_SUP: true,
  GIO_SUP: true,
  HA_SUP: true,
  HD_SUP: true,
});
export const EVERYTHING_2 = ExtendedFeature2.make({ GCR3_TRP_MODE_SUP: true });

export const completeCapabilities = (options: AmdViCapabilities = {}): Capabilities => {
  const { efr = EVERYTHING, efr2 = EVERYTHING_2, deviceTlb = true } = options;
  const value = (name: keyof typeof ExtendedFeature.fields) => Number(ExtendedFeature.fields[name].of(efr));
  const has = (name: keyof typeof ExtendedFeature.fields) => value(name) !== 0;
  const guestTranslation = has("GT_SUP");
  return {
    efr,
    efr2,
    deviceTlb,
    prefetch: has("PREF_SUP"),
    pageRequests: has("PPR_SUP"),
    autoResponse: has("PPR_SUP") && has("PPR_AUTO_RSP_SUP"),
    invalidateAll: has("IA_SUP"),
    hostLevels: Math.min(4 + value("HATS"), 6),
    guestTranslation,
    guestLevels: value("GATS") === 0 ? 4 : 5,
    gcr3Levels: Math.min(1 + value("GLX_SUP"), 3),
    guestIo: guestTranslation && has("GIO_SUP"),
    gcr3Guest: guestTranslation && ExtendedFeature2.fields.GCR3_TRP_MODE_SUP.of(efr2) === 1n,
    pasidBits: Math.min(1 + value("PAS_MAX"), 20),
    noExecute: has("NX_SUP"),
    privilege: has("US_SUP"),
    accessed: has("HA_SUP"),
    dirty: has("HA_SUP") && has("HD_SUP"),
    msi: has("MSI_CAP_MMIO_SUP"),
  };
};
