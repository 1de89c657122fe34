/** From the description of an IOMMU unit to silicon and the driver that runs it: one function a family. */
import { Random } from "../base/clock.ts";
import { AmdDriver } from "../drivers/amdvi/driver.ts";
import { SmmuDriver } from "../drivers/smmuv3/driver.ts";
import { VtdDriver } from "../drivers/vtd/driver.ts";
import { ZpciDriver } from "../drivers/zpci/driver.ts";
import {
  Register as AmdRegister,
  ControlRegister,
  ExtendedFeature,
  GCR3_BITS,
} from "../hardware/amdvi/spec.ts";
import { AmdViUnit } from "../hardware/amdvi/unit.ts";
import { Cr0, Register as SmmuRegister } from "../hardware/smmuv3/spec.ts";
import { SmmuV3Unit } from "../hardware/smmuv3/unit.ts";
import { GCMD_ONE_SHOT, Gcmd, Register } from "../hardware/vtd/spec.ts";
import { type VtdCapabilities, VtdUnit } from "../hardware/vtd/unit.ts";
import { Register as ZpciRegister } from "../hardware/zpci/spec.ts";
import { ZpciUnit } from "../hardware/zpci/unit.ts";
import { MSI_BASE } from "../kernel/msi.ts";
import { losingFlushes, losingPageInvalidations, losingRefreshes, losingTlbInvalidations } from "./breaks.ts";
import type { UnitDescription } from "./schema.ts";
import { powerOnTce } from "./tce-unit.ts";
import type { PoweredUnit, UnitSocket } from "./unit-socket.ts";

export type { PoweredUnit, UnitSocket } from "./unit-socket.ts";

export const powerOn = (description: UnitDescription, socket: UnitSocket): PoweredUnit => {
  switch (description.model) {
    case "vtd":
      return powerOnVtd(description, socket);
    case "smmuv3":
      return powerOnSmmu(description, socket);
    case "amdvi":
      return powerOnAmd(description, socket);
    case "zpci":
      return powerOnZpci(description, socket);
    case "tce":
      return powerOnTce(description, socket);
  }
};

type VtdDescription = Extract<UnitDescription, { readonly model: "vtd" }>;

const vtdCapabilities = (given: VtdDescription): VtdCapabilities => ({
  addressWidths: given["address-widths"],
  hostAddressWidth: given["host-address-width"],
  largePages: {
    twoMegabytes: given["large-pages"].includes("2M"),
    oneGigabyte: given["large-pages"].includes("1G"),
  },
  domainBits: given["domain-bits"],
  faultRecords: given["fault-records"],
  cachingMode: given["caching-mode"],
  snoopControl: given["snoop-control"],
  passThrough: given["pass-through"],
  ...(given.mode === "scalable" && {
    version: { major: 6, minor: 0 },
    deviceTlb: given["device-tlb"],
    scalable: {
      firstStage: given.stages.includes("first"),
      secondStage: given.stages.includes("second"),
      nested: given.stages.includes("nested"),
      fiveLevels: given["address-widths"].includes(57),
      firstStageGigabyte: given["large-pages"].includes("1G"),
      ...(given["pasid-bits"] > 0 && { pasidBits: given["pasid-bits"] }),
      ridPasid: true,
      supervisorRequests: given["supervisor-requests"],
      executeRequests: given["execute-requests"],
      extendedAccessed: given["extended-accessed"],
      secondStageAccessedDirty: given["dirty-tracking"],
      pageRequests: given["page-requests"] && given["device-tlb"],
      pageWalkCoherency: true,
    },
  }),
});

const powerOnVtd = (
  given: VtdDescription,
  { memory, unitMemory, msi, events, interrupt, seed, behind, broken }: UnitSocket,
): PoweredUnit => {
  const unit = new VtdUnit({
    name: given.name,
    memory: unitMemory,
    events,
    interrupt,
    cache: given.cache,
    random: new Random(seed),
    capabilities: vtdCapabilities(given),
  });
  const driver = new VtdDriver({
    name: given.name,
    unit: broken.has("skip-flush") ? losingFlushes(unit, memory) : unit,
    memory,
    msi,
    events,
    firmware: {
      hostAddressWidth: given["host-address-width"],
      covers: (device) => behind.has(device.name),
      reservedMemory: given["reserved-memory"],
    },
  });
  const hex = (offset: number): string => unit.mmioRead(offset, 8).toString(16);
  const version = unit.mmioRead(Register.VER, 4);
  const attributes = {
    cap: hex(Register.CAP),
    ecap: hex(Register.ECAP),
    domains_supported: String(2 ** given["domain-bits"]),
    version: `${version >> 4n}:${version & 0xfn}`,
    address: "fed90000",
  };
  return {
    unit,
    driver,
    sysfs: { name: given.name, group: "intel-iommu", attributes },
    saveRegisters: () => ({
      RTADDR: unit.mmioRead(Register.RTADDR, 8),
      GSTS: unit.mmioRead(Register.GSTS, 4),
    }),
    restoreRegisters: ({ RTADDR, GSTS }) => {
      const standing = BigInt((Number(unit.mmioRead(Register.GSTS, 4)) & ~GCMD_ONE_SHOT) >>> 0);
      if (RTADDR !== undefined) {
        unit.mmioWrite(Register.RTADDR, 8, RTADDR);
        unit.mmioWrite(Register.GCMD, 4, standing | BigInt(Gcmd.SRTP));
      }
      if (GSTS !== undefined && (GSTS & BigInt(Gcmd.TE)) === 0n)
        unit.mmioWrite(Register.GCMD, 4, standing & ~BigInt(Gcmd.TE));
    },
  };
};

const powerOnSmmu = (
  given: Extract<UnitDescription, { readonly model: "smmuv3" }>,
  { memory, unitMemory, msi, events, scheduler, interrupt, seed, behind, broken }: UnitSocket,
): PoweredUnit => {
  const twoLevels = given["two-level-tables"];
  const unit = new SmmuV3Unit({
    name: given.name,
    memory: unitMemory,
    events,
    interrupt,
    cache: given.cache,
    random: new Random(seed),
    capabilities: {
      stage1: given.stages.includes(1),
      stage2: given.stages.includes(2),
      outputBits: given["address-bits"],
      streamIdBits: given["stream-bits"],
      substreamIdBits: given["pasid-bits"],
      twoLevelStreams: twoLevels,
      twoLevelContexts: twoLevels && given["pasid-bits"] > 0,
      rangeInvalidation: given["range-invalidation"],
      updates: given["dirty-tracking"] ? "dirty" : "none",
      ats: given.ats,
      stalls: given.stalls,
      msi: true,
    },
  });
  const stalling = new Set(given["can-stall"]);
  const driver = new SmmuDriver({
    name: given.name,
    unit: broken.has("skip-flush") ? losingTlbInvalidations(unit, memory) : unit,
    memory,
    msi,
    scheduler,
    events,
    firmware: {
      covers: (device) => behind.has(device.name),
      canStall: (device) => stalling.has(device.name),
    },
  });
  const { STRTAB_BASE, STRTAB_BASE_CFG, CR0 } = SmmuRegister;
  return {
    unit,
    driver,
    sysfs: { name: given.name },
    saveRegisters: () => ({
      STRTAB_BASE: unit.mmioRead(STRTAB_BASE, 8),
      STRTAB_BASE_CFG: unit.mmioRead(STRTAB_BASE_CFG, 4),
      CR0: unit.mmioRead(CR0, 4),
    }),
    restoreRegisters: (saved) => {
      const cr0 = saved["CR0"] ?? unit.mmioRead(CR0, 4);
      unit.mmioWrite(CR0, 4, cr0 & ~BigInt(Cr0.SMMUEN));
      if (saved["STRTAB_BASE"] !== undefined) unit.mmioWrite(STRTAB_BASE, 8, saved["STRTAB_BASE"]);
      if (saved["STRTAB_BASE_CFG"] !== undefined)
        unit.mmioWrite(STRTAB_BASE_CFG, 4, saved["STRTAB_BASE_CFG"]);
      unit.mmioWrite(CR0, 4, cr0);
    },
  };
};

type AmdDescription = Extract<UnitDescription, { readonly model: "amdvi" }>;

/** EFR of the unit. */
const amdFeatures = (given: AmdDescription, secureNested: boolean): bigint => {
  const guests = given["pasid-bits"] > 0;
  const pageRequests = given["page-requests"] && given["device-tlb"];
  return ExtendedFeature.make({
    PREF_SUP: true,
    PPR_SUP: pageRequests,
    PPR_AUTO_RSP_SUP: pageRequests,
    NX_SUP: true,
    IA_SUP: true,
    HATS: given["host-levels"] - LEAST_LEVELS,
    MSI_CAP_MMIO_SUP: true,
    HA_SUP: given["dirty-tracking"],
    HD_SUP: given["dirty-tracking"],
    SNP_SUP: secureNested,
    ...(guests && {
      GT_SUP: true,
      GIO_SUP: true,
      US_SUP: true,
      GATS: given["guest-levels"] - LEAST_LEVELS,
      GLX_SUP: Math.ceil(given["pasid-bits"] / GCR3_BITS) - 1,
      PAS_MAX: given["pasid-bits"] - 1,
    }),
  });
};
/** HATS and GATS count from here. */
const LEAST_LEVELS = 4;

/** PCI capability header of the unit (§3.3.1): an IOMMU with extended features. */
const AMD_CAPABILITY = 0x080b_000f;
const IOTLB_SUPPORT = 1 << 24;

const powerOnAmd = (
  given: AmdDescription,
  {
    memory,
    unitMemory,
    msi,
    events,
    scheduler,
    interrupt,
    seed,
    extensions,
    behind,
    broken,
    rmp,
  }: UnitSocket,
): PoweredUnit => {
  const deviceTlb = given["device-tlb"];
  const efr = amdFeatures(given, rmp !== undefined);
  const unit = new AmdViUnit({
    name: given.name,
    memory: unitMemory,
    events,
    interrupt,
    cache: given.cache,
    random: new Random(seed),
    capabilities: { efr, deviceTlb },
    ...(rmp && !broken.has("skip-rmp") && { rmp }),
  });
  const driver = new AmdDriver({
    name: given.name,
    unit: broken.has("skip-flush") ? losingPageInvalidations(unit, memory) : unit,
    memory,
    msi,
    scheduler,
    events,
    firmware: { covers: (device) => behind.has(device.name), deviceTlb },
    nesting: extensions.includes("amd-nesting"),
    secureNested: rmp !== undefined,
    hugePages: given["huge-pages"],
  });
  const { DEVTAB_BASE, CONTROL } = AmdRegister;
  const attributes = {
    cap: (AMD_CAPABILITY + (deviceTlb ? IOTLB_SUPPORT : 0)).toString(16),
    features: efr.toString(16),
  };
  return {
    unit,
    driver,
    sysfs: { name: given.name, group: "amd-iommu", attributes },
    saveRegisters: () => ({
      DEVTAB_BASE: unit.mmioRead(DEVTAB_BASE, 8),
      CONTROL: unit.mmioRead(CONTROL, 8),
    }),
    restoreRegisters: (saved) => {
      const control = saved["CONTROL"] ?? unit.mmioRead(CONTROL, 8);
      unit.mmioWrite(CONTROL, 8, control & ~ControlRegister.fields.IOMMU_EN.put(1n));
      if (saved["DEVTAB_BASE"] !== undefined) unit.mmioWrite(DEVTAB_BASE, 8, saved["DEVTAB_BASE"]);
      unit.mmioWrite(CONTROL, 8, control);
    },
  };
};

/** What a saved state calls the information block of a function. */
const FIB_PREFIX = "FIB.";

const powerOnZpci = (
  given: Extract<UnitDescription, { readonly model: "zpci" }>,
  { memory, unitMemory, msi, events, interrupt, seed, behind, extensions, broken }: UnitSocket,
): PoweredUnit => {
  const unit = new ZpciUnit({
    name: given.name,
    memory: unitMemory,
    events,
    interrupt,
    msiAddress: MSI_BASE,
    cache: given.cache,
    random: new Random(seed),
  });
  const start = given["dma-start"];
  const driver = new ZpciDriver({
    name: given.name,
    unit: broken.has("skip-flush") ? losingRefreshes(unit) : unit,
    memory,
    msi,
    events,
    nesting: extensions.includes("s390-nesting"),
    firmware: {
      covers: (device) => behind.has(device.name),
      start,
      end: Math.min(start + 2 ** given["dma-bits"], ZPCI_END),
    },
  });
  return {
    unit,
    driver,
    sysfs: { name: given.name },
    saveRegisters: () => ({
      CONTROL: unit.mmioRead(ZpciRegister.CONTROL, 4),
      ...Object.fromEntries([...unit.blocks()].map(([rid, fib]) => [FIB_PREFIX + rid.toString(16), fib])),
    }),
    restoreRegisters: ({ CONTROL, ...blocks }) => {
      if (CONTROL !== undefined) unit.mmioWrite(ZpciRegister.CONTROL, 4, CONTROL);
      for (const [name, fib] of Object.entries(blocks))
        unit.restoreBlock(Number.parseInt(name.slice(FIB_PREFIX.length), 16), fib);
    },
  };
};
/** Region-third tables translate no more. */
const ZPCI_END = 2 ** 42;
