/**
 * The SMMUv3 format of a nesting container (extension `vsva2020`; IHI 0070, revision F.b): a guest owns the whole table of
 * context descriptors of its function, so that there are no system-wide PASIDs. The table is bound by its guest address, as
 * a stream table entry of stage 1 above the container's stage 2. What the unit caches is tagged with the guest's ASIDs,
 * what functions cache with PASIDs (SubstreamIDs), which is why invalidations can name both.
 */
import { AtcCommand, Opcode, StreamCommand, TlbiCommand } from "../../hardware/smmuv3/queue-spec.ts";
import { Config, Idr0, Idr1, Idr3, Idr5, Ste } from "../../hardware/smmuv3/spec.ts";
import type { HardwareInfo, UserArray, UserData } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_NESTING_FEAT_PAGE_RESP,
  SOFTIOMMU_NESTING_FEAT_BIND_PASID_TABLE,
  SOFTIOMMU_PASID_FORMAT_ARM_SMMUV3,
  SoftiommuInfoCapNestingSmmuv3,
} from "../../uapi/extensions.ts";
import type { BitField } from "../../uapi/layout.ts";
import {
  IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  IOMMU_HWPT_DATA_ARM_SMMUV3,
  IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
  IommuHwInfoArmSmmuv3,
  IommuHwptArmSmmuv3,
  IommuViommuArmSmmuv3Invalidate,
} from "../../uapi/vendor/smmuv3.ts";
import {
  IOMMU_CACHE_INV_TYPE_DEV_IOTLB,
  IOMMU_CACHE_INV_TYPE_IOTLB,
  IOMMU_CACHE_INV_TYPE_PASID,
  IOMMU_INV_ADDR_FLAGS_LEAF,
  IOMMU_INV_GRANU_ADDR,
  IOMMU_INV_GRANU_DOMAIN,
  IOMMU_INV_PASID_FLAGS_ARCHID,
  IOMMU_INV_PASID_FLAGS_PASID,
  IOMMU_NESTING_FEAT_CACHE_INVLD,
  VFIO_IOMMU_TYPE1_INFO_CAP_NESTING,
} from "../../uapi/vsva.ts";
import { hex } from "../argument.ts";
import { type ChangedRange, type Invalidation, rangeOf } from "./changed-range.ts";
import {
  type DevicesHave,
  kernelData,
  type NamedUnit,
  type NestingFormat,
  type PasidTableData,
  type Stream,
} from "./format.ts";

const WORD = 2n ** 64n - 1n;
const PAGE = 4096n;
/** Bytes of a context descriptor, and of an address of one (S1ContextPtr). */
const DESCRIPTOR_BYTES = 64n;
const POINTER_BITS = 52n;
/** S1Fmt: one table, or two levels. */
const LINEAR = 0;
const MOST_FORMATS = 2;
const MOST_S1DSS = 2;
/** Cacheability and shareability of the unit's fetches. */
const WRITE_BACK = 1;
const INNER = 3;
const FULL_ATS = 1;
const STALL_OR_TERMINATE = 0n;
/** ATC_INV.Size: every address. */
const EVERY_PAGE_LG2 = 52;
/** Pages that are named one by one; of more, the whole address space is forgotten. */
const MOST_SINGLE = 256n;

const FEATURES = IOMMU_NESTING_FEAT_CACHE_INVLD | SOFTIOMMU_NESTING_FEAT_BIND_PASID_TABLE;

/** IDR0 to IDR5: the fields that stage 1 depends on. */
const { TTF, HTTU, ASID16, CD2L, TTENDIAN, STALL_MODEL, S1P, S2P } = Idr0.fields;
const { SSIDSIZE } = Idr1.fields;
const { HAD, STT, BBML, E0PD } = Idr3.fields;
const { OAS, GRAN4K, GRAN16K, GRAN64K, DS, VAX } = Idr5.fields;
const FIELDS: readonly { readonly [name: string]: BitField }[] = [
  { TTF, HTTU, ASID16, CD2L, TTENDIAN, STALL_MODEL },
  { SSIDSIZE },
  {},
  { HAD, STT, BBML, E0PD },
  {},
  { OAS, GRAN4K, GRAN16K, GRAN64K, DS, VAX },
];

const registersOf = ({ bytes }: HardwareInfo): bigint[] => IommuHwInfoArmSmmuv3.read(bytes).idr.map(BigInt);

const asidBitsOf = (registers: readonly bigint[]): number => (ASID16.of(registers[0]!) ? 16 : 8);

/** The first field in which the units differ. */
const differenceOf = (one: readonly bigint[], other: readonly bigint[]): string | undefined => {
  for (const [index, fields] of FIELDS.entries())
    for (const [name, field] of Object.entries(fields))
      if (field.of(one[index]!) !== field.of(other[index]!)) return `IDR${index}.${name}`;
  return undefined;
};

const unfit = (units: readonly NamedUnit[]): string | undefined => {
  const first = units[0];
  if (!first) return undefined;
  const wanted = registersOf(first.info);
  for (const { name, info } of units) {
    const registers = registersOf(info);
    if (!S1P.of(registers[0]!) || !S2P.of(registers[0]!))
      return `${name} has not both stages (IDR0.S1P, S2P)`;
    const difference = differenceOf(registers, wanted);
    if (difference) return `${first.name} and ${name} differ in ${difference}`;
  }
  return undefined;
};

const features = (_unit: HardwareInfo, { pageRequests }: DevicesHave): number =>
  FEATURES | (pageRequests ? IOMMU_NESTING_FEAT_PAGE_RESP : 0);

/** EINVAL for what no unit has, EOPNOTSUPP for what this one has not. */
const checkTable = (data: PasidTableData, registers: readonly bigint[], bits: number): void => {
  const wrong = (reason: string): LinuxError => new LinuxError("EINVAL", reason);
  const { base_ptr: pointer, pasid_bits: size, s1fmt, s1dss } = data;
  if (size > bits) throw wrong(`pasid_bits ${size}: the devices' PASIDs have ${bits}`);
  if (s1fmt > MOST_FORMATS) throw wrong(`s1fmt ${s1fmt}: 0 to ${MOST_FORMATS} are known`);
  if (s1dss > MOST_S1DSS) throw wrong(`s1dss ${s1dss}: 0 to ${MOST_S1DSS} are known`);
  if (pointer % DESCRIPTOR_BYTES !== 0n || pointer >= 1n << POINTER_BITS)
    throw wrong(`base_ptr ${hex(pointer)}: a multiple of ${hex(DESCRIPTOR_BYTES)} below 2^${POINTER_BITS}`);
  if (s1fmt !== LINEAR && !CD2L.of(registers[0]!))
    throw new LinuxError("EOPNOTSUPP", `s1fmt ${s1fmt}: the unit has no tables of two levels (IDR0.CD2L)`);
};

/** By `config` of the structure. */
const CONFIGS: ReadonlyMap<number, number> = new Map([
  [1, Config.stage1],
  [2, Config.bypass],
  [3, Config.abort],
]);

/** §5.2 The guest's part of a stream table entry. Functions that can wait for pages ask for no translations of their own. */
const entryOf = (data: PasidTableData, unit: HardwareInfo, devices: DevicesHave): UserData => {
  const registers = registersOf(unit);
  const CONFIG = CONFIGS.get(data.config);
  if (CONFIG === undefined)
    throw new LinuxError("EINVAL", `config ${data.config}: 1 translates, 2 bypasses, 3 aborts`);
  if (CONFIG === Config.stage1) checkTable(data, registers, devices.devicePasidBits);
  const stage1 = {
    S1FMT: data.s1fmt,
    S1CONTEXTPTR: data.base_ptr,
    S1CDMAX: data.pasid_bits,
    S1DSS: data.s1dss,
    S1CIR: WRITE_BACK,
    S1COR: WRITE_BACK,
    S1CSH: INNER,
    S1STALLD: STALL_MODEL.of(registers[0]!) === STALL_OR_TERMINATE && !devices.pageRequests,
    EATS: devices.pageRequests ? 0 : FULL_ATS,
  };
  const entry = Ste.make({ V: true, CONFIG, ...(CONFIG === Config.stage1 && stage1) });
  const bytes = IommuHwptArmSmmuv3.bytes({ ste: [entry & WORD, (entry >> 64n) & WORD] });
  return kernelData(IOMMU_HWPT_DATA_ARM_SMMUV3, bytes);
};

/** What an invalidation names, once it was found to be possible. */
interface Named {
  readonly asid: number | undefined;
  readonly pasid: number | undefined;
  readonly range: ChangedRange | undefined;
}

const has = (cache: number, type: number): boolean => (cache & type) !== 0;

/** Throws EINVAL for a name that the caches need and that is not given, or that cannot be. */
const namedOf = (data: Invalidation, asidBits: number, pasidBits: number): Named => {
  const { cache, granularity, granu } = data;
  if (granularity === IOMMU_INV_GRANU_DOMAIN) return { asid: undefined, pasid: undefined, range: undefined };
  const byAddress = granularity === IOMMU_INV_GRANU_ADDR;
  // Both structures begin alike.
  const { flags, archid, pasid } = byAddress ? granu.addr_info : granu.pasid_info;
  const known =
    IOMMU_INV_PASID_FLAGS_PASID | IOMMU_INV_PASID_FLAGS_ARCHID | (byAddress ? IOMMU_INV_ADDR_FLAGS_LEAF : 0);
  const named = {
    pasid: has(flags, IOMMU_INV_PASID_FLAGS_PASID),
    asid: has(flags, IOMMU_INV_PASID_FLAGS_ARCHID),
  };
  const wrong = (reason: string): LinuxError => new LinuxError("EINVAL", reason);
  if (flags & ~known) throw wrong(`flags ${hex(flags)}: those of ${hex(known)} are known`);
  if (named.asid && archid >= 2 ** asidBits) throw wrong(`archid ${archid}: ASIDs have ${asidBits} bits`);
  if (named.pasid && pasid >= 2n ** BigInt(pasidBits))
    throw wrong(`PASID ${pasid}: the devices' have ${pasidBits} bits`);
  if (!byAddress && !named.pasid && has(cache, IOMMU_CACHE_INV_TYPE_DEV_IOTLB | IOMMU_CACHE_INV_TYPE_PASID))
    throw wrong(
      `flags ${hex(flags)}: these caches know address spaces by the PASID, which must be given (1)`,
    );
  if (!byAddress && !named.pasid && !named.asid)
    throw wrong(`flags ${hex(flags)}: the ASID (2) must be given, or the PASID (1)`);
  return {
    asid: named.asid ? archid : undefined,
    pasid: named.pasid ? Number(pasid) : undefined,
    range: byAddress ? rangeOf(data, "the invalidation") : undefined,
  };
};

/** §4.4 What the unit's TLB forgets: it knows ASIDs only, so without one every address space of the guest is meant. */
const tlbCommands = ({ asid, range }: Named): bigint[] => {
  const { TLBI_NH_ALL, TLBI_NH_ASID, TLBI_NH_VA, TLBI_NH_VAA } = Opcode;
  const count = range ? range.length / PAGE : 0n;
  if (!range || count > MOST_SINGLE)
    return [
      asid === undefined
        ? TlbiCommand.make({ OPCODE: TLBI_NH_ALL })
        : TlbiCommand.make({ OPCODE: TLBI_NH_ASID, ASID: asid }),
    ];
  const what = asid === undefined ? { OPCODE: TLBI_NH_VAA } : { OPCODE: TLBI_NH_VA, ASID: asid };
  return Array.from({ length: Number(count) }, (_, index) =>
    TlbiCommand.make({
      ...what,
      LEAF: range.leavesOnly,
      ADDRESS: range.start + BigInt(index) * PAGE,
    }),
  );
};

/** §4.5.1 What a function forgets: the one naturally aligned range that holds the addresses. */
const atcCommand = (sid: bigint, { pasid, range }: Named): bigint => {
  let lg2 = range ? 0 : EVERY_PAGE_LG2;
  if (range) {
    const first = range.start / PAGE;
    const last = (range.start + range.length - PAGE) / PAGE;
    while (first >> BigInt(lg2) !== last >> BigInt(lg2)) lg2 += 1;
  }
  const span = PAGE << BigInt(lg2);
  return AtcCommand.make({
    OPCODE: Opcode.ATC_INV,
    SID: sid,
    ...(pasid !== undefined && { SSV: true, SSID: pasid }),
    SIZE: lg2,
    ADDRESS: range ? (range.start / span) * span : 0n,
  });
};

/** §4.3 Context descriptors that the unit remembers. */
const contextCommand = (sid: bigint, { pasid }: Named): bigint =>
  pasid === undefined
    ? StreamCommand.make({ OPCODE: Opcode.CFGI_CD_ALL, SID: sid })
    : StreamCommand.make({ OPCODE: Opcode.CFGI_CD, SID: sid, SSV: true, SSID: pasid });

const commandsOf = (
  data: Invalidation,
  unit: HardwareInfo,
  devices: DevicesHave,
  streams: readonly Stream[],
): UserArray => {
  const named = namedOf(data, asidBitsOf(registersOf(unit)), devices.devicePasidBits);
  const commands: bigint[] = [];
  if (has(data.cache, IOMMU_CACHE_INV_TYPE_PASID))
    for (const { id } of streams) commands.push(contextCommand(id, named));
  if (has(data.cache, IOMMU_CACHE_INV_TYPE_IOTLB)) commands.push(...tlbCommands(named));
  if (has(data.cache, IOMMU_CACHE_INV_TYPE_DEV_IOTLB))
    for (const { id, ats } of streams) if (ats) commands.push(atcCommand(id, named));
  return {
    type: IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
    entryLength: IommuViommuArmSmmuv3Invalidate.size,
    count: commands.length,
    read: (index) => {
      const command = commands[index]!;
      return IommuViommuArmSmmuv3Invalidate.bytes({ cmd: [command & WORD, command >> 64n] });
    },
  };
};

export const smmuv3Format: NestingFormat = {
  number: SOFTIOMMU_PASID_FORMAT_ARM_SMMUV3,
  hardwareType: IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  unfit,
  features,

  describe(chain, unit, devices) {
    const registers = registersOf(unit);
    const idr = FIELDS.map((fields, index) =>
      Number(
        Object.values(fields).reduce((kept, field) => kept | field.put(field.of(registers[index]!)), 0n),
      ),
    );
    chain.add(VFIO_IOMMU_TYPE1_INFO_CAP_NESTING, 1, SoftiommuInfoCapNestingSmmuv3, {
      argsz: SoftiommuInfoCapNestingSmmuv3.size - SoftiommuInfoCapNestingSmmuv3.offsets.argsz,
      format: SOFTIOMMU_PASID_FORMAT_ARM_SMMUV3,
      features: features(unit, devices),
      addr_width: VAX.of(registers[5]!) === 0n ? 48 : 52,
      pasid_bits: devices.devicePasidBits,
      vendor: {
        asid_bits: asidBitsOf(registers),
        s1_formats: CD2L.of(registers[0]!) ? 2 ** (MOST_FORMATS + 1) - 1 : 1,
        idr,
      },
    });
  },

  pasidTables: { entryOf, commandsOf },
};
