/** VT-d as a subject of vectors: a unit with the recorded CAP and ECAP, and FSTS and FRCD compared. */
import { silent } from "../../base/events.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { FaultCode } from "../vtd/faults.ts";
import { CapRegister, EcapRegister, FaultRecording, Fsts, LargePages, Register } from "../vtd/spec.ts";
import { type VtdCapabilities, VtdUnit } from "../vtd/unit.ts";
import type { Subject } from "./run.ts";
import type { Expectation, Vector } from "./vector.ts";

const GIGABYTE = 0x4000_0000;
/** The recorded machine's memory: 2 GiB below the hole, and from 4 to 10 GiB. */
const memoryRanges = [
  { start: 0, end: 2 * GIGABYTE },
  { start: 4 * GIGABYTE, end: 10 * GIGABYTE },
];

/** The choices that give a unit these registers. Fields of CAP and ECAP that the unit cannot have are not looked at. */
export const capabilitiesOf = (
  version: bigint,
  cap: bigint,
  ecap: bigint,
  hostAddressWidth: number,
): VtdCapabilities => {
  const c = (name: keyof typeof CapRegister.fields) => Number(CapRegister.fields[name].of(cap));
  const e = (name: keyof typeof EcapRegister.fields) => Number(EcapRegister.fields[name].of(ecap));
  return {
    version: { major: Number(version >> 4n), minor: Number(version & 0xfn) },
    addressWidths: ([39, 48, 57] as const).filter((width) => c("SAGAW") & (1 << ((width - 30) / 9))),
    guestAddressWidth: c("MGAW") + 1,
    hostAddressWidth,
    largePages: {
      twoMegabytes: (c("SLLPS") & LargePages.twoMegabytes) !== 0,
      oneGigabyte: (c("SLLPS") & LargePages.oneGigabyte) !== 0,
    },
    domainBits: 4 + 2 * c("ND"),
    faultRecords: c("NFR") + 1,
    faultRecordOffset: c("FRO") * 16,
    iotlbOffset: e("IRO") * 16,
    maximumAddressMask: c("MAMV"),
    pageSelective: c("PSI") === 1,
    cachingMode: c("CM") === 1,
    writeBufferFlush: c("RWBF") === 1,
    zeroLengthRead: c("ZLR") === 1,
    coherent: e("C") === 1,
    queuedInvalidation: e("QI") === 1,
    passThrough: e("PT") === 1,
    snoopControl: e("SC") === 1,
    deviceTlb: e("DT") === 1,
    interruptRemapping: e("IR") === 1,
    extendedInterruptMode: e("EIM") === 1,
    rootPointerInvalidates: c("ESRTPS") === 1,
    ...(e("SMTS") === 1 && {
      scalable: {
        secondStage: e("SSTS") === 1,
        firstStage: e("FSTS") === 1,
        nested: e("NEST") === 1,
        fiveLevels: c("FL5LP") === 1,
        firstStageGigabyte: c("FL1GP") === 1,
        ...(e("PASID") === 1 && { pasidBits: e("PSS") + 1 }),
        ridPasid: e("RPS") === 1,
        supervisorRequests: e("SRS") === 1,
        executeRequests: e("ERS") === 1,
        extendedAccessed: e("EAFS") === 1,
        secondStageAccessedDirty: e("SSADS") === 1,
        pageRequests: e("PRS") === 1,
        memoryTypes: e("MTS") === 1,
        pageWalkCoherency: e("SMPWCS") === 1,
      },
    }),
  };
};

/** Where recordings deviate that do not say so. */
const rules = {
  /** The specification has codes of their own for these entries (§7.1.3, SRT and SCT). Of the second stage recordings say it. */
  legacyCode: "a root or context entry of scalable mode is reported with a code of legacy mode (§7.1.3)",
  /** A write sets D in any case (§3.6.2); the golden walks, made independently, say so too. */
  undirtied: "a write does not set the dirty bit of a first-stage leaf that is accessed already (§3.6.2)",
};

/** `rules.legacyCode`: by the code of the specification, the code that was recorded for it. */
const legacyCodes: { readonly [code: number]: number } = {
  [FaultCode.scalableRootAccess]: FaultCode.rootAccess,
  [FaultCode.scalableRootNotPresent]: FaultCode.rootNotPresent,
  [FaultCode.scalableRootReserved]: FaultCode.rootReserved,
  [FaultCode.scalableContextAccess]: FaultCode.contextAccess,
  [FaultCode.scalableContextNotPresent]: FaultCode.contextNotPresent,
  [FaultCode.scalableContextReserved]: FaultCode.contextReserved,
  [FaultCode.scalableContextInvalid]: FaultCode.contextInvalid,
};

/** The upper half of a fault record with the code that the recorded model would have put there. */
const asRecorded = (high: bigint): bigint => {
  const code = Number((high >> 32n) & 0xffn);
  return high ^ (BigInt(code ^ (legacyCodes[code] ?? code)) << 32n);
};

const DIRTY = 0x40n;
const ACCESSED = 0x20n;

const show = (value: bigint): string => `0x${value.toString(16)}`;

export const vtdSubject = ({ config, registers }: Vector): Subject => {
  const memory = new SparseMemory(memoryRanges);
  const window = { name: "interrupts", read: () => false, write: () => true };
  memory.addWindow(0xfee0_0000, 0x10_0000, window);
  const [version, cap, ecap] = ["VER", "CAP", "ECAP"].map((name) => BigInt(registers[name] ?? 0));
  const width = Number(config["host_address_width"] ?? 46);
  const capabilities = capabilitiesOf(version!, cap!, ecap!, width);
  const unit = new VtdUnit({ name: "vtd0", memory, events: silent, interrupt: () => {}, capabilities });
  for (const [name, value] of Object.entries(registers)) {
    const offset = Register[name as keyof typeof Register];
    const found = unit.mmioRead(offset, name === "VER" ? 4 : 8);
    if (found !== BigInt(value)) throw new Error(`${name} is ${show(found)}, recorded ${value}`);
  }
  const record = unit.capabilities.faultRecordOffset;
  const applied = new Set<string>();
  return {
    unit,
    memory,
    rules: applied,
    faultMismatches(expected) {
      const { fsts = "0x0", frcd = ["0x0", "0x0"] } = (expected ?? {}) as { fsts?: string; frcd?: string[] };
      const mismatches: string[] = [];
      const status = unit.mmioRead(Register.FSTS, 4);
      if (status !== BigInt(fsts)) mismatches.push(`FSTS is ${show(status)}, recorded ${fsts}`);
      const found = [unit.mmioRead(record, 8), unit.mmioRead(record + 8, 8)];
      const set = (half: bigint) => half >> 63n === 1n;
      const [low, high] = [BigInt(frcd[0]!), BigInt(frcd[1]!)];
      const renamed = found[1] !== high && asRecorded(found[1]!) === high;
      if (renamed) applied.add(rules.legacyCode);
      const sameHigh = found[1] === high || renamed;
      if (set(found[1]!) !== set(high) || (set(high) && (found[0] !== low || !sameHigh)))
        mismatches.push(
          `FRCD is ${found.map(show)}, recorded ${frcd}: ${FaultRecording.print((found[1]! << 64n) | found[0]!)}`,
        );
      return mismatches;
    },
    deviates(found, recorded) {
      const undirtied = (recorded & ACCESSED) !== 0n && found === (recorded | DIRTY);
      if (undirtied) applied.add(rules.undirtied);
      return undirtied;
    },
    alsoLegal(either, expected): Expectation["fault"][] {
      if (!either.includes("overflow") || !expected) return [];
      const fsts = show(BigInt(expected["fsts"] as string) | BigInt(Fsts.PFO));
      return [{ ...expected, fsts }];
    },
  };
};
