/**
 * The VT-d format of a nesting container: first-stage tables as the proposal's `struct iommu_gpasid_bind_data_vtd` has them,
 * in terms of what iommufd carries for VT-d (`uapi/vendor/vtd.ts`). Capabilities are told by the bits of CAP and ECAP
 * (revision 4.1, §11.4.2 and §11.4.3) that first stages depend on; all units of a machine must have the same ones.
 */
import { CapRegister, EcapRegister } from "../../hardware/vtd/spec.ts";
import type { HardwareInfo, UserArray, UserData } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_NESTING_FEAT_PAGE_RESP } from "../../uapi/extensions.ts";
import type { BitField } from "../../uapi/layout.ts";
import {
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IOMMU_HWPT_DATA_VTD_S1,
  IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
  IOMMU_VTD_INV_FLAGS_LEAF,
  IOMMU_VTD_S1_EAFE,
  IOMMU_VTD_S1_SRE,
  IommuHwInfoVtd,
  IommuHwptVtdS1,
  IommuHwptVtdS1Invalidate,
} from "../../uapi/vendor/vtd.ts";
import {
  IOMMU_NESTING_FEAT_BIND_PGTBL,
  IOMMU_NESTING_FEAT_CACHE_INVLD,
  IOMMU_NESTING_FEAT_SYSWIDE_PASID,
  IOMMU_PASID_FORMAT_INTEL_VTD,
  IOMMU_SVA_VTD_GPASID_CD,
  IOMMU_SVA_VTD_GPASID_EAFE,
  IOMMU_SVA_VTD_GPASID_EMTE,
  IOMMU_SVA_VTD_GPASID_LAST,
  IOMMU_SVA_VTD_GPASID_PCD,
  IOMMU_SVA_VTD_GPASID_PWT,
  IOMMU_SVA_VTD_GPASID_SRE,
  IommuNestingInfo,
  VFIO_IOMMU_TYPE1_INFO_CAP_NESTING,
  VfioIommuType1InfoCapNesting,
} from "../../uapi/vsva.ts";
import { hex } from "../argument.ts";
import type { ChangedRange } from "./changed-range.ts";
import {
  type BindData,
  type DevicesHave,
  kernelData,
  kernelEntry,
  type NamedUnit,
  type NestingFormat,
} from "./format.ts";

const PAGE = 4096n;
const EVERY_PAGE = 2n ** 64n - 1n;

const { FL1GP, FL5LP, MGAW } = CapRegister.fields;
const { NEST, PRS, ERS, SRS, EAFS, PASID, MTS } = EcapRegister.fields;
/** Fields that nesting depends on. */
const CAP_FIELDS = { FL1GP, FL5LP };
const ECAP_FIELDS = { PRS, ERS, SRS, EAFS, PASID };

interface Registers {
  readonly cap: bigint;
  readonly ecap: bigint;
}

const registersOf = ({ bytes }: HardwareInfo): Registers => {
  const { cap_reg: cap, ecap_reg: ecap } = IommuHwInfoVtd.read(bytes);
  return { cap, ecap };
};

type Fields = { readonly [name: string]: BitField };

const has = (field: BitField, register: bigint): boolean => field.of(register) !== 0n;

/** Its fields alone, the rest 0. */
const masked = (fields: Fields, register: bigint): bigint =>
  Object.values(fields).reduce((kept, field) => kept | field.put(field.of(register)), 0n);

/** The first field in which the registers differ. */
const difference = (fields: Fields, one: bigint, other: bigint): string | undefined =>
  Object.entries(fields).find(([, field]) => field.of(one) !== field.of(other))?.[0];

const unfit = (units: readonly NamedUnit[]): string | undefined => {
  const first = units[0];
  if (!first) return undefined;
  const wanted = registersOf(first.info);
  for (const { name, info } of units) {
    const { cap, ecap } = registersOf(info);
    if (!has(NEST, ecap)) return `${name} has no nested translation (ECAP.NEST)`;
    const cause = difference(CAP_FIELDS, cap, wanted.cap);
    const ecause = difference(ECAP_FIELDS, ecap, wanted.ecap);
    if (cause) return `${first.name} and ${name} differ in CAP.${cause}`;
    if (ecause) return `${first.name} and ${name} differ in ECAP.${ecause}`;
  }
  return undefined;
};

/** What a flag of a bind needs of the unit. */
const FLAGS: readonly (readonly [flag: number, name: string, needs: BitField, what: string])[] = [
  [IOMMU_SVA_VTD_GPASID_SRE, "SRE", SRS, "supervisor requests (ECAP.SRS)"],
  [IOMMU_SVA_VTD_GPASID_EAFE, "EAFE", EAFS, "extended accessed flags (ECAP.EAFS)"],
  [IOMMU_SVA_VTD_GPASID_PCD, "PCD", MTS, "memory types (ECAP.MTS)"],
  [IOMMU_SVA_VTD_GPASID_PWT, "PWT", MTS, "memory types (ECAP.MTS)"],
  [IOMMU_SVA_VTD_GPASID_EMTE, "EMTE", MTS, "memory types (ECAP.MTS)"],
  [IOMMU_SVA_VTD_GPASID_CD, "CD", MTS, "memory types (ECAP.MTS)"],
];

const checkFlags = (flags: bigint, ecap: bigint): void => {
  if (flags >= BigInt(IOMMU_SVA_VTD_GPASID_LAST))
    throw new LinuxError(
      "EINVAL",
      `vendor flags ${hex(flags)}: those below ${hex(IOMMU_SVA_VTD_GPASID_LAST)} are known`,
    );
  for (const [flag, name, needs, what] of FLAGS)
    if (flags & BigInt(flag) && !has(needs, ecap))
      throw new LinuxError("EOPNOTSUPP", `vendor flag ${name}: the unit has no ${what}`);
};

const checkTable = ({ addr_width: width, gpgd }: BindData, cap: bigint): void => {
  if (width !== 48 && !(width === 57 && has(FL5LP, cap)))
    throw new LinuxError(
      "EINVAL",
      `addr_width ${width}: the unit's first stage has 48 bits${has(FL5LP, cap) ? " or 57" : ", and 57 only with CAP.FL5LP"}`,
    );
  if (gpgd % PAGE !== 0n)
    throw new LinuxError("EINVAL", `gpgd ${hex(gpgd)}: a table begins at a multiple of 0x1000`);
  const guestBits = MGAW.of(cap) + 1n;
  if (gpgd >> guestBits !== 0n)
    throw new LinuxError("EINVAL", `gpgd ${hex(gpgd)}: guest addresses have ${guestBits} bits (CAP.MGAW)`);
};

const FEATURES =
  IOMMU_NESTING_FEAT_SYSWIDE_PASID | IOMMU_NESTING_FEAT_BIND_PGTBL | IOMMU_NESTING_FEAT_CACHE_INVLD;

const features = (_unit: HardwareInfo, { pasidBits, pageRequests }: DevicesHave): number =>
  pasidBits === 0 ? 0 : FEATURES | (pageRequests ? IOMMU_NESTING_FEAT_PAGE_RESP : 0);

const tableOf = (data: BindData, unit: HardwareInfo): UserData => {
  const { cap, ecap } = registersOf(unit);
  const { flags } = data.vendor.vtd;
  checkFlags(flags, ecap);
  checkTable(data, cap);
  const given = (flag: number, becomes: number): bigint => (flags & BigInt(flag) ? BigInt(becomes) : 0n);
  const table = IommuHwptVtdS1.bytes({
    flags:
      given(IOMMU_SVA_VTD_GPASID_SRE, IOMMU_VTD_S1_SRE) | given(IOMMU_SVA_VTD_GPASID_EAFE, IOMMU_VTD_S1_EAFE),
    pgtbl_addr: data.gpgd,
    addr_width: data.addr_width,
  });
  return kernelData(IOMMU_HWPT_DATA_VTD_S1, table);
};

const changeOf = (range: ChangedRange | undefined): UserArray => {
  const entry = IommuHwptVtdS1Invalidate.bytes(
    range
      ? {
          addr: range.start,
          npages: range.length / PAGE,
          flags: range.leavesOnly ? IOMMU_VTD_INV_FLAGS_LEAF : 0,
        }
      : { addr: 0n, npages: EVERY_PAGE },
  );
  return kernelEntry(IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, entry);
};

export const vtdFormat: NestingFormat = {
  number: IOMMU_PASID_FORMAT_INTEL_VTD,
  hardwareType: IOMMU_HW_INFO_TYPE_INTEL_VTD,
  unfit,

  features,

  describe(chain, unit, devices) {
    const { cap, ecap } = registersOf(unit);
    const info = {
      argsz: IommuNestingInfo.size,
      format: IOMMU_PASID_FORMAT_INTEL_VTD,
      features: features(unit, devices),
      addr_width: has(FL5LP, cap) ? 57 : 48,
      pasid_bits: devices.pasidBits,
      vendor: { vtd: { cap_reg: masked(CAP_FIELDS, cap), ecap_reg: masked(ECAP_FIELDS, ecap) } },
    };
    chain.add(VFIO_IOMMU_TYPE1_INFO_CAP_NESTING, 1, VfioIommuType1InfoCapNesting, { info });
  },

  tables: { tableOf, changeOf },
};
