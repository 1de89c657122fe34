/**
 * What tests of the AMD-Vi driver stand on: a unit with its driver on host memory, and two functions that can have PASIDs,
 * translation requests and page requests. Accesses are made through the unit, so that a driver which forgets an
 * invalidation is found out. A guest's memory is all of the machine's, at its own addresses.
 */
import { Random } from "../../base/clock.ts";
import { silent } from "../../base/events.ts";
import { WorkQueue } from "../../base/scheduler.ts";
import { type AmdViCapabilities, AmdViUnit, type CachePolicy } from "../../hardware/amdvi/unit.ts";
import type { DeviceTlbAnswer, DeviceTlbInvalidation, PageRequest } from "../../hardware/ats.ts";
import type { Rmp } from "../../hardware/rmp.ts";
import { Access, NO_PASID, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import type { DriverBench } from "../../iommu/driver.suite.ts";
import type { Requester } from "../../iommu/driver.ts";
import { MsiController } from "../../kernel/msi.ts";
import { Banks } from "../../memory/banks.ts";
import { type FunctionOptions, plainFunction } from "../functions.suite.ts";
import { AmdDriver, type AmdDriverOptions, type AmdFirmware } from "./driver.ts";

export interface AmdBenchOptions
  extends FunctionOptions,
    Pick<AmdDriverOptions, "logFramesLg2" | "domainIds" | "nesting"> {
  /** Frames of memory that there are for the driver to begin with. */
  readonly frames?: number;
  /** Secure nested paging is on. */
  readonly rmp?: Rmp;
  readonly capabilities?: AmdViCapabilities;
  readonly cache?: CachePolicy;
  readonly firmware?: Partial<AmdFirmware>;
}

export const RAM = 2 ** 28;

export class AmdBench implements DriverBench {
  readonly memory = new Banks({ ram: [{ start: 0, length: RAM }] });
  readonly msi = new MsiController(this.memory);
  readonly scheduler = new WorkQueue();
  readonly unit: AmdViUnit;
  readonly driver: AmdDriver;
  readonly devices: readonly [Requester, Requester];
  /** What functions' TLBs were told to forget, and how they answer. */
  readonly flushed: DeviceTlbInvalidation[] = [];
  answer: DeviceTlbAnswer = "done";
  /** Responses that functions got. */
  readonly responses: { rid: number; pasid: number; group: number; response: number }[] = [];
  readonly #transaction = new Transaction();
  #left: number;

  constructor(options: AmdBenchOptions = {}) {
    const {
      capabilities,
      cache = "normal",
      firmware,
      logFramesLg2,
      domainIds,
      rmp,
      nesting = false,
    } = options;
    const { memory, msi, scheduler } = this;
    this.#left = options.frames ?? Number.POSITIVE_INFINITY;
    this.unit = new AmdViUnit({
      name: "ivhd0",
      memory,
      events: silent,
      interrupt: (address, data) =>
        memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer)),
      cache,
      random: new Random(1),
      ...(capabilities && { capabilities }),
      ...(rmp && { rmp }),
    });
    this.unit.invalidateDeviceTlb = (what) => {
      this.flushed.push(what);
      return this.answer;
    };
    this.unit.onPageResponse = (rid, pasid, group, response) =>
      this.responses.push({ rid, pasid, group, response });
    const allocate = memory.allocate.bind(memory);
    memory.allocate = (count) => {
      if (this.#left < count) return -1;
      this.#left -= count;
      return allocate(count);
    };
    this.driver = new AmdDriver({
      name: "ivhd0",
      unit: this.unit,
      ...{ memory, msi, scheduler },
      events: silent,
      firmware: { covers: () => true, lastDevice: 0x2ff, ...firmware },
      ...(logFramesLg2 !== undefined && { logFramesLg2 }),
      ...(domainIds !== undefined && { domainIds }),
      secureNested: rmp !== undefined,
      nesting,
    });
    this.devices = [plainFunction(memory, 1, options), plainFunction(memory, 2, options)];
  }

  /** Makes an access, without taking up what the unit reports. */
  request(device: Requester, iova: number, write: boolean, pasid = NO_PASID): number | "fault" {
    const transaction = this.#transaction;
    transaction.rid = device.rid;
    transaction.pasid = pasid;
    transaction.lo = iova >>> 0;
    transaction.hi = Math.floor(iova / 2 ** 32);
    transaction.access = write ? Access.write : Access.read;
    return this.unit.translate(transaction) === TranslateStatus.ok ? transaction.pa : "fault";
  }

  access(device: Requester, iova: number, write: boolean, pasid = NO_PASID): number | "fault" {
    const reached = this.request(device, iova, write, pasid);
    this.scheduler.run();
    return reached;
  }

  /** A function asks for a page. */
  ask(device: Requester, request: Partial<PageRequest> = {}): void {
    const { rid } = device;
    const standard = { pasid: NO_PASID, lo: 0x5000, hi: 0, access: Access.read, group: 0, last: true };
    this.unit.requestPage({ rid, ...standard, ...request });
  }

  limitFrames(count: number): void {
    this.#left = count;
  }

  close(): void {
    this.driver.close();
    this.msi.close();
    this.memory.close();
  }
}
