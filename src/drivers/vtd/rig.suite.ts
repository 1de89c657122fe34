/**
 * What tests of the VT-d driver in scalable mode stand on: units with drivers over one memory, and functions that can have
 * PASIDs, translation requests and page requests. Accesses are made through the unit, so that a driver which forgets an
 * invalidation is found out. A guest's memory is all of the machine's, at its own addresses.
 */
import { silent } from "../../base/events.ts";
import type { DeviceTlbAnswer, DeviceTlbInvalidation, PageRequest } from "../../hardware/ats.ts";
import { Access, NO_PASID, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import { type VtdCapabilities, VtdUnit } from "../../hardware/vtd/unit.ts";
import type { UserArray, UserData } from "../../iommu/driver.ts";
import { MsiController } from "../../kernel/msi.ts";
import { Banks } from "../../memory/banks.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { vtdFirstLevel } from "../../pagetable/vtd-first-level.ts";
import type { PciFunction } from "../../pci/function.ts";
import { IOMMU_HWPT_DATA_VTD_S1, IommuHwptVtdS1, IommuHwptVtdS1Invalidate } from "../../uapi/vendor/vtd.ts";
import { type FunctionOptions, plainFunction } from "../functions.suite.ts";
import { arrayOf, dataOf } from "../user-data.suite.ts";
import type { VtdDomain } from "./domain.ts";
import { VtdDriver } from "./driver.ts";

export const RAM = 2 ** 28;
/** Everything but execution. */
export const SCALABLE = {
  secondStage: true,
  firstStage: true,
  nested: true,
  firstStageGigabyte: true,
  pasidBits: 20,
  ridPasid: true,
  supervisorRequests: true,
  extendedAccessed: true,
  secondStageAccessedDirty: true,
  pageRequests: true,
} as const;

export interface RigOptions extends FunctionOptions {
  /** By unit; what is left out is as of `SCALABLE` with device-TLBs. */
  readonly units?: readonly Partial<VtdCapabilities>[];
}

export class Rig {
  readonly memory = new Banks({ ram: [{ start: 0, length: RAM }] });
  readonly msi = new MsiController(this.memory);
  readonly units: VtdUnit[] = [];
  readonly drivers: VtdDriver[] = [];
  /** Two a unit: those of unit n are on buses 2n + 1 and 2n + 2. */
  readonly functions: PciFunction[] = [];
  /** What functions' TLBs were told to forget, and how they answer. */
  readonly flushed: DeviceTlbInvalidation[] = [];
  answer: DeviceTlbAnswer = "done";
  /** Responses that functions got. */
  readonly responses: { rid: number; pasid: number; group: number; response: number }[] = [];
  readonly #transaction = new Transaction();
  readonly #mappers: Mapper[] = [];

  constructor(options: RigOptions = {}) {
    for (const [index, change] of (options.units ?? [{}]).entries()) this.#power(index, change, options);
  }

  get driver(): VtdDriver {
    return this.drivers[0]!;
  }
  get unit(): VtdUnit {
    return this.units[0]!;
  }
  get device(): PciFunction {
    return this.functions[0]!;
  }

  /** The physical address an access reaches, or "fault". Functions 0 and 1 are behind unit 0, and so on. */
  access(device: PciFunction, iova: number, write = false, tag: number = NO_PASID): number | "fault" {
    const transaction = this.#transaction;
    transaction.rid = device.rid;
    transaction.pasid = tag;
    transaction.lo = iova >>> 0;
    transaction.hi = Math.floor(iova / 2 ** 32);
    transaction.access = write ? Access.write : Access.read;
    const unit = this.units[this.functions.indexOf(device) >> 1]!;
    return unit.translate(transaction) === TranslateStatus.ok ? transaction.pa : "fault";
  }

  /** A function asks for a page. */
  ask(device: PciFunction, request: Partial<PageRequest> = {}): void {
    this.units[this.functions.indexOf(device) >> 1]!.requestPage({
      rid: device.rid,
      pasid: NO_PASID,
      lo: 0x5000,
      hi: 0,
      access: Access.read,
      group: 0,
      last: true,
      ...request,
    });
  }

  /** A nest parent in which every address of the machine's RAM is itself. */
  parent(driver = this.driver, dirtyTracking = false): VtdDomain {
    const domain = driver.allocatePaging(this.device, { nestParent: true, dirtyTracking });
    domain.map(0, 0, RAM, 3);
    return domain;
  }

  /** An empty table of a guest. */
  guestTable(): Mapper {
    const mapper = new Mapper(this.memory, vtdFirstLevel(4));
    this.#mappers.push(mapper);
    return mapper;
  }

  /** Every function leaves what it has. */
  release(): void {
    for (const [index, device] of this.functions.entries()) this.drivers[index >> 1]!.release(device);
  }

  /** Everything was detached and freed: the drivers' tables go, and nothing is left. */
  close(): number {
    for (const mapper of this.#mappers) mapper.destroy();
    for (const driver of this.drivers) driver.close();
    this.msi.close();
    const left = this.memory.allocated;
    this.memory.close();
    return left;
  }

  #power(index: number, change: Partial<VtdCapabilities>, options: RigOptions): void {
    const { memory, msi } = this;
    const name = `dmar${index}`;
    const unit = new VtdUnit({
      name,
      memory,
      events: silent,
      interrupt: (address, data) =>
        memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer)),
      capabilities: {
        addressWidths: [39, 48],
        hostAddressWidth: 46,
        deviceTlb: true,
        scalable: SCALABLE,
        ...change,
      },
    });
    unit.invalidateDeviceTlb = (what) => {
      this.flushed.push(what);
      return this.answer;
    };
    unit.onPageResponse = (rid, tag, group, response) =>
      this.responses.push({ rid, pasid: tag, group, response });
    const firmware = { hostAddressWidth: 46, covers: () => true, reservedMemory: [] };
    const driver = new VtdDriver({ name, unit, memory, msi, events: silent, firmware });
    this.units.push(unit);
    this.drivers.push(driver);
    for (const bus of [2 * index + 1, 2 * index + 2])
      this.functions.push(plainFunction(memory, bus, options));
    for (const device of this.functions.slice(-2)) driver.probe(device);
  }
}

type Members<L extends { bytes(members: never): Uint8Array }> = Parameters<L["bytes"]>[0];

/** A guest's table with this root. */
export const firstStage = (
  members: Members<typeof IommuHwptVtdS1>,
  type: number = IOMMU_HWPT_DATA_VTD_S1,
): UserData => dataOf(IommuHwptVtdS1.bytes({ addr_width: 48, ...members }), type);

/** A list of invalidations. */
export const requests = (entries: readonly Members<typeof IommuHwptVtdS1Invalidate>[], type = 0): UserArray =>
  arrayOf(
    entries.map((entry) => IommuHwptVtdS1Invalidate.bytes(entry)),
    type,
  );
