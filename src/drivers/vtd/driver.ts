/**
 * The kernel-side driver of one VT-d unit (revision 4.1): it brings the unit up in scalable mode where the unit has it and in
 * legacy mode otherwise, gives functions and their PASIDs domains, answers page requests and reads faults. It only writes
 * memory, registers and queue entries. As Linux does, it takes first-stage tables where it can, and second-stage ones for
 * nest parents and dirty tracking.
 *
 * Left out: interrupt remapping, the register-based invalidation that older units need, performance monitoring.
 */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import { Gcmd, Granularity, Register } from "../../hardware/vtd/spec.ts";
import {
  type DeviceCapabilities,
  type Domain,
  type FixedDomain,
  type HardwareInfo,
  type IommuDriver,
  type NestedOptions,
  type PageRequest,
  type PageResponse,
  type PagingDomain,
  type PagingOptions,
  type Requester,
  RequestPermission,
  type ReservedRegion,
  type UnrecoverableFault,
  type UserData,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import type { MsiController } from "../../kernel/msi.ts";
import { MSI_BASE, MSI_BYTES } from "../../kernel/msi.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
  IommuHwInfoVtd,
} from "../../uapi/vendor/vtd.ts";
import type { Range } from "../range.ts";
import type { RegisterFile } from "../register-file.ts";
import { type Abilities, readAbilities } from "./abilities.ts";
import { type Attachment, RID_PASID, VtdDevice } from "./device.ts";
import { VtdDomain, type VtdDomainOptions } from "./domain.ts";
import { Faults, type ReportedFault, reasonOf } from "./faults.ts";
import { Invalidations } from "./invalidations.ts";
import { LegacyTables } from "./legacy-tables.ts";
import { VtdNestedDomain } from "./nested-domain.ts";
import { PageRequestQueue } from "./page-requests.ts";
import { InvalidationQueue } from "./queue.ts";
import { Registers } from "./registers.ts";
import { ScalableTables } from "./scalable-tables.ts";
import type { Translation } from "./translation.ts";
import type { Tables, Unit } from "./unit.ts";

export type { ReportedFault } from "./faults.ts";

/** What the firmware's DMAR table says of a unit. */
export interface VtdFirmware {
  /** Bits of host physical addresses. */
  readonly hostAddressWidth: number;
  /** Whether the unit is in front of this function. */
  covers(device: Requester): boolean;
  /** RMRR: memory a device must always reach at its own address. */
  readonly reservedMemory: readonly {
    readonly start: number;
    readonly length: number;
    readonly device: string;
  }[];
}

export interface VtdDriverOptions {
  /** "dmar0" */
  readonly name: string;
  readonly unit: RegisterFile;
  readonly memory: HostMemory;
  readonly msi: MsiController;
  readonly firmware: VtdFirmware;
  readonly events: EventSink;
  /** Log2 of the frames of its page request queue; default 4. */
  readonly pageRequestFramesLg2?: number;
}

/** Type of hardware information: IOMMU_HW_INFO_TYPE_DEFAULT, which structures of a vendor do not define. */
const WHATEVER_IT_IS = 0;

export class VtdDriver implements IommuDriver, Unit {
  readonly name: string;
  readonly memory: HostMemory;
  readonly abilities: Abilities;
  readonly invalidations: Invalidations;
  readonly tables: Tables;
  readonly domainIds: Ids;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  onPageRequest: ((device: Requester, request: PageRequest) => void) | undefined;
  onPageRequestsLost: (() => void) | undefined;
  onFault: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  /** Page requests that came; groups that were answered for the core, and by the driver itself; times that some were lost. */
  readonly pageRequests = { taken: 0, answered: 0, refused: 0, overflows: 0 };
  readonly #registers: Registers;
  readonly #firmware: VtdFirmware;
  readonly #events: EventSink;
  readonly #queue: InvalidationQueue;
  readonly #faults: Faults;
  readonly #pageRequestQueue: PageRequestQueue | undefined;
  readonly #passThroughId: number;
  readonly #domains = new Set<VtdDomain>();
  readonly #devices = new Map<number, VtdDevice>();

  /** Brings the unit up, every device blocked. Throws ENODEV when the unit lacks what the driver needs. */
  constructor(options: VtdDriverOptions) {
    const { name, memory, firmware, events, msi } = options;
    this.name = name;
    this.memory = memory;
    this.#firmware = firmware;
    this.#events = events;
    const registers = new Registers(options.unit, name);
    this.#registers = registers;
    this.abilities = readAbilities(registers, firmware.hostAddressWidth, name);
    const { scalable, domains, maximumAddressMask } = this.abilities;
    // Domain id 0 is not used: with CAP.CM the unit tags not-present entries with it (§6.1). 1 is pass-through.
    this.domainIds = new Ids(1, domains);
    this.#passThroughId = this.domainIds.take();
    this.#queue = new InvalidationQueue(registers, memory, name, scalable);
    this.invalidations = new Invalidations(this.#queue, maximumAddressMask);
    const tables = scalable ? new ScalableTables(this) : new LegacyTables(this);
    this.tables = tables;
    registers.write64(Register.RTADDR, tables.rootPointer);
    registers.command(Gcmd.SRTP, true);
    this.invalidations.context(Granularity.global, 0, 0);
    if (scalable) this.invalidations.pasidCacheAll();
    this.invalidations.iotlb(Granularity.global, 0);
    this.#faults = new Faults(registers, this.abilities, msi, (fault) => this.#tellFault(fault));
    if (this.abilities.pageRequests) {
      const queue = this.#queue;
      const sink = {
        take: (rid: number, request: PageRequest) => this.#takePageRequest(rid, request),
        overflowed: () => this.#loseRequests(),
      };
      const framesLg2 = options.pageRequestFramesLg2;
      this.#pageRequestQueue = new PageRequestQueue({ name, memory, registers, queue, msi, sink, framesLg2 });
    }
    registers.command(Gcmd.TE, true);
  }

  get pasidBits(): number {
    return this.abilities.pasidBits;
  }
  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }
  /** The last faults, and how many there were in all. */
  get faults(): readonly ReportedFault[] {
    return this.#faults.reports;
  }
  get faultCount(): number {
    return this.#faults.count;
  }
  /** Times that faults were lost for want of recording registers. */
  get faultOverflows(): number {
    return this.#faults.overflows;
  }

  probe(requester: Requester): DeviceCapabilities {
    const device = this.#deviceOf(requester);
    const { snoopControl, dirtyTracking, nesting } = this.abilities;
    const { pasidBits, pasidExecute, pasidPrivileged, ats, pri } = device;
    return {
      cacheCoherent: snoopControl,
      dirtyTracking,
      pasidBits,
      nesting,
      ats,
      pageRequests: pri,
      pasidExecute,
      pasidPrivileged,
    };
  }

  release(requester: Requester): void {
    const device = this.#devices.get(requester.rid);
    if (!device) return;
    for (const pasid of [...device.given.keys()]) this.#give(device, pasid, this.blocked);
    this.tables.expel(device);
    this.#devices.delete(device.rid);
  }

  /** CAP and ECAP as they are; the erratum is told of every unit, as Linux does. */
  hardwareInfo(_device: Requester | undefined, type: number): HardwareInfo | undefined {
    if (type !== WHATEVER_IT_IS && type !== IOMMU_HW_INFO_TYPE_INTEL_VTD) return undefined;
    const bytes = IommuHwInfoVtd.bytes({
      flags: IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
      cap_reg: this.abilities.cap,
      ecap_reg: this.abilities.ecap,
    });
    return { type: IOMMU_HW_INFO_TYPE_INTEL_VTD, bytes };
  }

  reserved(device: Requester): readonly ReservedRegion[] {
    const direct = this.#firmware.reservedMemory
      .filter((range) => range.device === device.name)
      .map(({ start, length }): ReservedRegion => ({ start, length, kind: "direct" }));
    return [...direct, { start: MSI_BASE, length: MSI_BYTES, kind: "msi" }];
  }

  allocatePaging(_device: Requester, options: PagingOptions = {}): VtdDomain {
    allocate("a domain of the unit");
    const domain = new VtdDomain(this, this.#choose(options), this.#events, (gone) =>
      this.#domains.delete(gone),
    );
    this.#domains.add(domain);
    return domain;
  }

  /**
   * A guest's table above a nest parent, which may have been made for another unit: whether it fits this one is asked when
   * it is attached.
   */
  allocateNested(
    _device: Requester,
    parent: PagingDomain,
    data: UserData,
    options: NestedOptions,
  ): VtdNestedDomain {
    if (!this.abilities.nesting)
      throw new LinuxError("EOPNOTSUPP", "the unit has no nested translation (ECAP.NEST)", this.name);
    if (!(parent instanceof VtdDomain) || !parent.options.nestParent)
      throw new LinuxError("EINVAL", `${parent.name} is no nest parent of a VT-d unit`, this.name);
    allocate("a nested domain of the unit");
    return new VtdNestedDomain(parent, data, options.faults ?? false);
  }

  attach(requester: Requester, domain: Domain, pasid?: number): void {
    const device = this.#deviceOf(requester);
    if (pasid !== undefined) this.#requirePasid(device, pasid);
    const key = pasid ?? RID_PASID;
    if (domain.kind !== "blocked") this.#check(device, domain);
    if (device.given.get(key)?.domain !== domain) this.#give(device, key, domain);
  }

  respond(device: Requester, response: PageResponse): void {
    this.pageRequests.answered += 1;
    this.invalidations.respond(device.rid, response);
  }

  /** A function that does not answer keeps no translations any more, and translated requests of it are refused. */
  flushDevice(device: VtdDevice, pasid: number, range: Range): void {
    if (!device.ats) return;
    const tag = pasid === RID_PASID ? undefined : pasid;
    if (this.invalidations.deviceTlb(device.rid, tag, range)) return;
    device.ats = false;
    this.tables.distrust(device);
  }

  /** Everything is given back; the unit is left off. Domains must have been freed. */
  close(): void {
    this.#registers.command(Gcmd.TE, false);
    this.#registers.command(Gcmd.QIE, false);
    this.#faults.free();
    this.#pageRequestQueue?.free();
    this.tables.free();
    this.#queue.free();
  }

  /** Prepares what comes for the first time. */
  #deviceOf(requester: Requester): VtdDevice {
    const known = this.#devices.get(requester.rid);
    if (known) return known;
    if (!this.#firmware.covers(requester))
      throw new LinuxError("ENODEV", `${this.name} is not in front of this device`, requester.name);
    const device = new VtdDevice(requester, this.abilities);
    this.tables.admit(device);
    this.#devices.set(device.rid, device);
    return device;
  }

  #choose(options: PagingOptions): VtdDomainOptions {
    const { nestParent = false, dirtyTracking = false, pasid = false, faults = false, data } = options;
    const { scalable, firstStage, secondStage, nesting, dirtyTracking: tracks } = this.abilities;
    const missing = (
      [
        [data !== undefined, "page tables made by vendor data"],
        [nestParent && !nesting, "nested translation (ECAP.NEST)"],
        [dirtyTracking && !tracks, "dirty bits in second stages (ECAP.SSADS)"],
        [pasid && !scalable, "PASIDs in legacy mode"],
        [faults && !scalable, "page requests in legacy mode"],
      ] as const
    ).find(([asked]) => asked);
    if (missing) throw new LinuxError("EOPNOTSUPP", `the unit has no ${missing[1]}`, this.name);
    const stage = nestParent || dirtyTracking || !firstStage ? "second" : "first";
    if (stage === "second" && !secondStage)
      throw new LinuxError("EOPNOTSUPP", "the unit has no second stage (ECAP.SSTS)", this.name);
    return { stage, nestParent, dirtyTracking, faults };
  }

  #requirePasid({ pasidBits, name }: VtdDevice, pasid: number): void {
    if (!this.abilities.scalable)
      throw new LinuxError("EOPNOTSUPP", "in legacy mode the unit has no PASIDs", this.name);
    if (pasid === RID_PASID || pasid >= 2 ** pasidBits)
      throw new LinuxError(
        "EINVAL",
        `PASID ${pasid}: the device has PASIDs of ${pasidBits} bits, and ${RID_PASID} stands for requests without one`,
        name,
      );
  }

  #check(device: VtdDevice, domain: Domain): void {
    if (domain.kind === "identity" || domain.kind === "blocked") {
      if (!this.abilities.passThrough)
        throw new LinuxError("EINVAL", "the unit has no pass-through (ECAP.PT)", this.name);
      return;
    }
    const known = domain instanceof VtdDomain || domain instanceof VtdNestedDomain;
    const unfit = known ? domain.unfitFor(this) : `it is not a domain of a VT-d unit`;
    if (!known || unfit)
      throw new LinuxError("EINVAL", `${domain.name} does not fit ${this.name}: ${unfit}`, device.name);
    if (reportsFaults(domain) && !device.pri)
      throw new LinuxError(
        "ENODEV",
        `${domain.name} reports page faults, and the device makes no page requests (PRI)`,
        device.name,
      );
    const direct = this.#firmware.reservedMemory.find((range) => range.device === device.name);
    if (direct)
      throw new LinuxError(
        "EPERM",
        `firmware reserves memory at 0x${direct.start.toString(16)} that the device must always reach (RMRR); it cannot be given a domain`,
        device.name,
      );
  }

  /** What was checked. Page requests of before are taken before anybody else has their PASID, if anybody hears of them. */
  #give(device: VtdDevice, pasid: number, domain: Domain): void {
    const before = device.given.get(pasid);
    const old = before && this.#translationOf(before.domain);
    const attachment: Attachment = { device, pasid };
    const resident = residentOf(domain);
    const residence = resident?.settle(this);
    const next = domain.kind === "blocked" ? undefined : this.#translationOf(domain);
    if (!next && !old) return;
    try {
      this.tables.write(device, pasid, next, old);
    } catch (error) {
      if (residence?.attachments.size === 0) resident?.leave(this);
      throw error;
    }
    if (before && (reportsFaults(before.domain) || reportsFaults(domain))) this.#drain(device);
    residence?.attachments.add(attachment);
    if (next) device.given.set(pasid, { domain, attachment });
    else device.given.delete(pasid);
    if (!before) return;
    const left = residentOf(before.domain);
    const there = left?.residences.get(this);
    there?.attachments.delete(before.attachment);
    if (there?.attachments.size === 0) left?.leave(this);
  }

  #drain(device: VtdDevice): void {
    if (!device.pri || !this.#pageRequestQueue) return;
    this.invalidations.drainPageRequests();
    this.#pageRequestQueue.service();
  }

  #translationOf(domain: Domain): Translation {
    const resident = residentOf(domain);
    return resident
      ? resident.translation(this)
      : { id: this.#passThroughId, snoop: this.abilities.snoopControl };
  }

  /** A request under no domain, or while nobody listens, is answered at the end of its group. */
  #takePageRequest(rid: number, request: PageRequest): void {
    const device = this.#devices.get(rid);
    this.pageRequests.taken += 1;
    const listener = this.onPageRequest;
    if (listener && device?.given.has(request.pasid ?? RID_PASID)) listener(device.requester, request);
    else if (request.last) this.#refuse(rid, request);
  }

  #refuse(rid: number, { pasid, group }: PageRequest): void {
    this.pageRequests.refused += 1;
    this.invalidations.respond(rid, { group, code: "invalid", ...(pasid !== undefined && { pasid }) });
  }

  #tellFault({ rid, code, write, pasid, address }: ReportedFault): void {
    const device = this.#devices.get(rid);
    if (!device) return;
    const fault = {
      address,
      permissions: write ? RequestPermission.write : RequestPermission.read,
      reason: reasonOf(code),
    };
    this.onFault?.(device.requester, pasid === undefined ? fault : { ...fault, pasid });
  }

  #loseRequests(): void {
    this.pageRequests.overflows += 1;
    this.onPageRequestsLost?.();
  }
}

const residentOf = (domain: Domain): VtdDomain | VtdNestedDomain | undefined =>
  domain instanceof VtdDomain || domain instanceof VtdNestedDomain ? domain : undefined;

const reportsFaults = (domain: Domain): boolean =>
  domain instanceof VtdDomain ? domain.options.faults : domain instanceof VtdNestedDomain && domain.faults;
