/**
 * The kernel-side driver of one AMD-Vi unit (48882, revision 3.07): device table, GCR3 tables, domains, commands, the event
 * and PPR logs. It only writes memory, registers and queue entries. As Linux does, it takes version 1 tables for domains,
 * and tables of processors, without a second stage, for those that PASIDs can have. The interrupts of the unit are taken
 * up after the access that caused them has ended, as a thread would.
 *
 * Left out: interrupt remapping, exclusion ranges, device table segments, and the order of writes by which an entry changes
 * while a unit reads it. A domain belongs to one unit.
 */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import { once, type Scheduler } from "../../base/scheduler.ts";
import type { Capabilities } from "../../hardware/amdvi/capabilities.ts";
import { guestStage, hostStage } from "../../hardware/amdvi/formats.ts";
import { EventCode, EventEntry, PprEntry } from "../../hardware/amdvi/queue-spec.ts";
import { ExtendedFeature, GCR3_BITS } from "../../hardware/amdvi/spec.ts";
import type {
  DeviceCapabilities,
  Domain,
  FixedDomain,
  HardwareInfo,
  IommuDriver,
  PageRequest,
  PageResponse,
  PagingDomain,
  PagingOptions,
  Requester,
  ReservedRegion,
  UnrecoverableFault,
  UserData,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import { type Message, MSI_BASE, MSI_BYTES, type MsiController } from "../../kernel/msi.ts";
import { FRAME_LG2, type HostMemory } from "../../memory/host-memory.ts";
import { type AmdV1Levels, amdV1 } from "../../pagetable/amdv1.ts";
import type { PageTableFormat } from "../../pagetable/format.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_HW_INFO_TYPE_AMD, IommuHwInfoAmd } from "../../uapi/vendor/amd.ts";
import { EVERYTHING } from "../range.ts";
import { notNestParent } from "../refusals.ts";
import type { RegisterFile } from "../register-file.ts";
import { keepReport } from "../reports.ts";
import { Assignments } from "./assignments.ts";
import { CommandBuffer } from "./command-buffer.ts";
import { AmdDevice } from "./device.ts";
import { DeviceTable } from "./device-table.ts";
import { AmdDomain, type DomainHost } from "./domain.ts";
import { faultOf, pageRequestOf, type ReportedFault, reportOf } from "./event.ts";
import { Gcr3Table } from "./gcr3-table.ts";
import { Invalidations } from "./invalidations.ts";
import { EVENT_LOG, Log, PPR_LOG } from "./log.ts";
import { AmdNestedDomain } from "./nested-domain.ts";
import { Registers } from "./registers.ts";
import { AmdNestingViommu, AmdViommu, type ViommuHost } from "./viommu.ts";

export type { ReportedFault } from "./event.ts";

/** What firmware (IVRS) and the unit's PCI capability say. */
export interface AmdFirmware {
  /** Whether the unit is in front of this function. */
  covers(device: Requester): boolean;
  /** The last requester id that the device table has an entry for; default 0xffff. */
  readonly lastDevice?: number;
  /** The unit takes INVALIDATE_IOTLB_PAGES (IotlbSup). Default true. */
  readonly deviceTlb?: boolean;
  /** The unit may remember that nothing was there (NpCache): it is told of what is added. Default false. */
  readonly remembersAbsent?: boolean;
  /** The unit has tables of processors alone, for requests without PASID too (HATDis). Default false. */
  readonly guestTablesOnly?: boolean;
}

export interface AmdDriverOptions {
  /** "ivhd0" */
  readonly name: string;
  readonly unit: RegisterFile;
  readonly memory: HostMemory;
  readonly msi: MsiController;
  readonly scheduler: Scheduler;
  readonly firmware: AmdFirmware;
  readonly events: EventSink;
  /**
   * The host runs guests with secure nested paging: all that devices reach is checked, so that no domain is the identity,
   * tables are those of version 1, and there are no PASIDs. Default false.
   */
  readonly secureNested?: boolean;
  /** Guests' tables can lie above the host's, which Linux 7.2 does not do (extension `amd-nesting`). Default false. */
  readonly nesting?: boolean;
  /** Version 1 tables have pages larger than 4 KiB where they can, as without the kernel's amd_iommu=nohugepages. Default true. */
  readonly hugePages?: boolean;
  /** Log2 of the frames of each of its logs; default 2. */
  readonly logFramesLg2?: number;
  /** Domain ids that it gives out end here; default 2^16. */
  readonly domainIds?: number;
}

/** Type of hardware information: IOMMU_HW_INFO_TYPE_DEFAULT, which structures of a vendor do not define. */
const WHATEVER_IT_IS = 0;
const LAST_DEVICE = 0xffff;
/** Domain ids. 0 is of entries that translate nothing. */
const DOMAIN_IDS = 2 ** 16;
/** Levels of tables of processors: addresses of 48 bits, of which the lower half is used. */
const GUEST_LEVELS = 4;
/** §2.1.2 HyperTransport's address ranges with meanings of their own. */
const HYPER_TRANSPORT: ReservedRegion = { start: 0xfd_0000_0000, length: 0x3_0000_0000, kind: "reserved" };

export class AmdDriver implements IommuDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  onPageRequest: ((device: Requester, request: PageRequest) => void) | undefined;
  onPageRequestsLost: (() => void) | undefined;
  onFault: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  /** The last faults, and how many there were in all. */
  readonly faults: ReportedFault[] = [];
  faultCount = 0;
  /** Times that the driver found out that events were lost for want of room in the log. */
  overflows = 0;
  /** Page requests that came; groups that were answered for the core, and by the driver itself; times that some were lost. */
  readonly pageRequests = { taken: 0, answered: 0, refused: 0, overflows: 0 };
  readonly unit: Capabilities;
  readonly #secureNested: boolean;
  readonly #nesting: boolean;
  readonly #hugePages: boolean;
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #firmware: AmdFirmware;
  readonly #events: EventSink;
  readonly #table: DeviceTable;
  readonly #commands: CommandBuffer;
  readonly #invalidations: Invalidations;
  readonly #eventLog: Log;
  readonly #pprLog: Log | undefined;
  readonly #message: Message;
  readonly #domainIds: Ids;
  readonly #domains = new Set<AmdDomain>();
  readonly #viommus = new Set<AmdViommu>();
  readonly #assignments: Assignments;
  readonly #host: DomainHost;
  #closed = false;

  get #guestTablesOnly(): boolean {
    return this.#firmware.guestTablesOnly ?? false;
  }

  /** Brings the unit up, every function blocked. Throws ENODEV when the unit lacks what the driver needs, ENOMEM. */
  constructor(options: AmdDriverOptions) {
    const { name, memory, firmware, domainIds = DOMAIN_IDS } = options;
    this.name = name;
    this.#domainIds = new Ids(1, domainIds);
    this.#memory = memory;
    this.#firmware = firmware;
    this.#events = options.events;
    const registers = new Registers(options.unit, name);
    this.#registers = registers;
    const found = registers.capabilities(firmware.deviceTlb ?? true);
    this.#hugePages = options.hugePages ?? true;
    this.#secureNested = options.secureNested ?? false;
    this.#nesting = options.nesting ?? false;
    if (this.#secureNested && ExtendedFeature.fields.SNP_SUP.of(found.efr) === 0n)
      throw new LinuxError("ENODEV", "the unit has no secure nested paging (EFR.SNPSup)", name);
    this.unit = this.#secureNested ? { ...found, guestTranslation: false, guestIo: false } : found;
    if (!this.unit.msi)
      throw new LinuxError("ENODEV", "the unit has no MSI registers (EFR.MsiCapMmioSup)", name);
    if (firmware.guestTablesOnly && !this.unit.guestIo)
      throw new LinuxError("ENODEV", "the unit has neither host tables nor guest tables (EFR.GIoSup)", name);
    registers.control({});
    this.#table = new DeviceTable(registers, memory, name, firmware.lastDevice ?? LAST_DEVICE);
    this.#commands = new CommandBuffer(registers, memory, name);
    this.#eventLog = new Log(registers, memory, name, EVENT_LOG, options.logFramesLg2);
    if (this.unit.pageRequests)
      this.#pprLog = new Log(registers, memory, name, PPR_LOG, options.logFramesLg2);
    this.#invalidations = new Invalidations(this.#commands, this.unit.invalidateAll);
    this.#assignments = new Assignments({
      name,
      table: this.#table,
      invalidations: this.#invalidations,
      flushesAdded: firmware.remembersAbsent ?? false,
      identityId: this.#domainIds.take(),
      serve: () => this.#serve(),
      guestsAbove: (domain) => this.#guestsAbove(domain),
    });
    this.#host = {
      flushesAdded: firmware.remembersAbsent ?? false,
      flush: (domain, range) => this.#assignments.flush(domain, range),
      refresh: (domain) => this.#assignments.refresh(domain),
      forget: (domain) => this.#forget(domain),
    };
    const interrupted = once(options.scheduler, () => this.#serve());
    this.#message = options.msi.allocate(interrupted);
    registers.enableMessages(this.#message);
    this.#powerUp();
    this.#invalidations.everything();
  }

  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }
  get viommus(): number {
    return this.#viommus.size;
  }

  probe(requester: Requester): DeviceCapabilities {
    if (!this.#firmware.covers(requester))
      throw new LinuxError("ENODEV", `${this.name} is not in front of this device`, requester.name);
    const device = this.#assignments.find(requester) ?? this.#admit(requester);
    const { pasid, ats, pri } = device;
    return {
      cacheCoherent: true,
      dirtyTracking: this.unit.dirty,
      pasidBits: pasid.bits,
      pasidExecute: pasid.execute,
      pasidPrivileged: pasid.privileged,
      nesting: this.unit.guestTranslation,
      ats: ats !== undefined,
      pageRequests: pri,
    };
  }

  release(requester: Requester): void {
    const device = this.#assignments.find(requester);
    if (!device) return;
    for (const pasid of [...device.pasids.keys()]) this.attach(requester, this.blocked, pasid);
    this.attach(requester, this.blocked);
    this.#assignments.expel(device);
    if (!device.gcr3) return;
    device.gcr3.free();
    this.#domainIds.give(device.gcr3.domainId);
  }

  hardwareInfo(_device: Requester | undefined, type: number): HardwareInfo | undefined {
    if (type !== WHATEVER_IT_IS && type !== IOMMU_HW_INFO_TYPE_AMD) return undefined;
    const { efr, efr2 } = this.unit;
    return { type: IOMMU_HW_INFO_TYPE_AMD, bytes: IommuHwInfoAmd.bytes({ efr, efr2 }) };
  }

  reserved(): readonly ReservedRegion[] {
    return [{ start: MSI_BASE, length: MSI_BYTES, kind: "msi" }, HYPER_TRANSPORT];
  }

  allocatePaging(_device: Requester, options: PagingOptions = {}): AmdDomain {
    const { nestParent = false, dirtyTracking = false, pasid = false, faults = false } = options;
    this.#requireOptions(options);
    allocate("a domain of the unit");
    const id = this.#takeId();
    const processors = pasid || this.#guestTablesOnly;
    const format = processors
      ? guestStage(GUEST_LEVELS, this.unit.noExecute).format
      : this.#hostFormat(dirtyTracking);
    try {
      const domain = new AmdDomain({
        unitName: this.name,
        id,
        memory: this.#memory,
        table: processors ? "guest" : "host",
        format,
        nestParent,
        dirtyTracking,
        faults,
        host: this.#host,
        events: this.#events,
      });
      this.#domains.add(domain);
      return domain;
    } catch (error) {
      this.#domainIds.give(id);
      throw error;
    }
  }

  /** Any type: no number of the interface names one of AMD's. */
  hasViommu(): boolean {
    return this.unit.guestTranslation;
  }

  allocateViommu(_device: Requester, parent: PagingDomain, _data: UserData): AmdViommu {
    if (!(parent instanceof AmdDomain) || !this.#domains.has(parent) || !parent.nestParent)
      throw notNestParent(parent, this.name);
    allocate("a vIOMMU of the unit");
    const host: ViommuHost = {
      unit: this.unit,
      invalidations: this.#invalidations,
      takeId: () => this.#takeId(),
      giveId: (id) => this.#domainIds.give(id),
      keepsTranslations: (device) => this.#assignments.find(device)?.ats?.on === true,
      serve: () => this.#serve(),
      forget: (gone) => this.#viommus.delete(gone),
    };
    const viommu = new (this.#nesting ? AmdNestingViommu : AmdViommu)(parent, host);
    this.#viommus.add(viommu);
    return viommu;
  }

  attach(requester: Requester, domain: Domain, pasid?: number): void {
    const device = this.#assignments.find(requester);
    if (!device) throw new LinuxError("ENODEV", `it was not found behind ${this.name}`, requester.name);
    this.#serve(); // what happened under the domain it has belongs to that one
    if (!this.#isOwn(domain))
      throw new LinuxError(
        "EINVAL",
        `${domain.name} is not a domain of ${this.name}, the unit of this device`,
        device.name,
      );
    if (this.#secureNested && domain.kind === "identity")
      throw new LinuxError(
        "EINVAL",
        "with secure nested paging no device may have an identity domain: what it reaches must be mapped",
        device.name,
      );
    if (pasid === undefined) this.#assignments.attach(device, domain);
    else if (domain.kind === "blocked") this.#assignments.detachPasid(device, pasid);
    else this.#assignments.attachPasid(device, domain, pasid);
  }

  respond(device: Requester, response: PageResponse): void {
    this.pageRequests.answered += 1;
    this.#invalidations.respond(device.rid, response);
  }

  /** Everything is given back; the unit is left off. Domains must have been freed. */
  close(): void {
    this.#registers.control({});
    this.#closed = true;
    this.#message.free();
    for (const device of this.#assignments.devices) device.gcr3?.free();
    this.#pprLog?.free();
    this.#eventLog.free();
    this.#commands.free();
    this.#table.free();
  }

  /** Bits of a function's PASIDs that the unit takes; 0: none. They are the function's own, in its GCR3 table. */
  get #pasidBits(): number {
    const { guestIo, pasidBits, gcr3Levels } = this.unit;
    return guestIo ? Math.min(pasidBits, GCR3_BITS * gcr3Levels) : 0;
  }

  #powerUp(): void {
    const { pageRequests, autoResponse, guestTranslation, gcr3Guest } = this.unit;
    this.#registers.control({
      IOMMU_EN: true,
      COHERENT: true,
      CMD_BUF_EN: true,
      EVENT_LOG_EN: true,
      EVENT_INT_EN: true,
      GT_EN: guestTranslation,
      // Of tables that lie above none of the host's all addresses are the machine's.
      GCR3_TRP_MODE: this.#nesting && gcr3Guest,
      PPR_LOG_EN: pageRequests,
      PPR_INT_EN: pageRequests,
      PPR_EN: pageRequests,
      PPR_AUTO_RSP_EN: autoResponse,
    });
  }

  #admit(requester: Requester): AmdDevice {
    this.#table.require(requester.rid);
    const device = new AmdDevice(requester, this.unit, this.#pasidBits, this.blocked, (name, bits) =>
      this.unit.guestIo ? this.#makeGcr3(name, bits) : undefined,
    );
    this.#assignments.admit(device);
    return device;
  }

  #makeGcr3(name: string, bits: number): Gcr3Table {
    const id = this.#takeId();
    try {
      return new Gcr3Table(this.#memory, name, id, bits);
    } catch (error) {
      this.#domainIds.give(id);
      throw error;
    }
  }

  #requireOptions({ nestParent, dirtyTracking, pasid, faults, data }: PagingOptions): void {
    const { dirty, guestTranslation, pageRequests } = this.unit;
    const missing = (
      [
        [data !== undefined, "page tables made by vendor data"],
        [
          pasid && (nestParent || dirtyTracking),
          "tables for PASIDs that guests' tables lie above or that track dirty pages",
        ],
        [this.#guestTablesOnly && (nestParent || dirtyTracking), "host tables"],
        [pasid && this.#pasidBits === 0, "tables for PASIDs (EFR.GTSup, EFR.GIoSup)"],
        [nestParent && !guestTranslation, "nested translation (EFR.GTSup)"],
        [dirtyTracking && !dirty, "dirty bits in host tables (EFR.HDSup)"],
        [faults && !pageRequests, "page requests (EFR.PPRSup)"],
      ] as const
    ).find(([asked]) => asked);
    if (missing) throw new LinuxError("EOPNOTSUPP", `the unit has no ${missing[1]}`, this.name);
  }

  #hostFormat(dirtyTracking: boolean): PageTableFormat {
    const levels = this.unit.hostLevels as AmdV1Levels;
    const updates = dirtyTracking ? "dirty" : undefined;
    if (this.#hugePages) return hostStage(levels, updates).format;
    return amdV1(levels, { pageLg2s: [FRAME_LG2], ...(updates && { updates }) });
  }

  #isOwn(domain: Domain): boolean {
    if (domain.kind === "identity" || domain.kind === "blocked") return true;
    return domain instanceof AmdNestedDomain
      ? this.#domains.has(domain.parent)
      : domain instanceof AmdDomain && this.#domains.has(domain);
  }

  #guestsAbove(domain: AmdDomain): number[] {
    if (!domain.nestParent) return [];
    return [...this.#viommus].flatMap(({ parent, domainIds }) => (parent === domain ? [...domainIds] : []));
  }

  #takeId(): number {
    const id = this.#domainIds.take();
    if (id < 0)
      throw new LinuxError("ENOSPC", `all ${this.#domainIds.inUse} domain ids are in use`, this.name);
    return id;
  }

  #forget(domain: AmdDomain): void {
    if (domain.table === "host") this.#invalidations.pages(domain.id, EVERYTHING);
    this.#domains.delete(domain);
    this.#domainIds.give(domain.id);
  }

  // Interrupts

  /** Takes what the unit has reported. */
  #serve(): void {
    if (this.#closed) return;
    if (this.#eventLog.drain((words) => this.#event(words))) this.overflows += 1;
    if (!this.#pprLog?.drain((words) => this.#pageRequest(words))) return;
    this.pageRequests.overflows += 1;
    this.onPageRequestsLost?.();
  }

  /** A refused command is the business of whoever gave it. */
  #event(words: Uint32Array): void {
    const code = EventEntry.fields.CODE.get(words);
    if (code === EventCode.ILLEGAL_COMMAND_ERROR || code === EventCode.COMMAND_HARDWARE_ERROR) return;
    const device = this.#assignments.byRid(EventEntry.fields.DEVICE.get(words));
    if (code === EventCode.IOTLB_INV_TIMEOUT) {
      if (device) this.#assignments.distrust(device);
      return;
    }
    this.faultCount += 1;
    keepReport(this.faults, reportOf(words));
    if (device) this.onFault?.(device.requester, faultOf(words, throughGuestTable(device)));
  }

  /** A request under no domain, or while nobody listens, is answered at the end of its group. */
  #pageRequest(words: Uint32Array): void {
    const rid = PprEntry.fields.DEVICE.get(words);
    const device = this.#assignments.byRid(rid);
    const request = pageRequestOf(words);
    this.pageRequests.taken += 1;
    const { pasid, group, last } = request;
    if (device && this.onPageRequest && hasDomain(device, pasid))
      this.onPageRequest(device.requester, request);
    else if (last) {
      this.pageRequests.refused += 1;
      this.#invalidations.respond(rid, { group, code: "invalid", ...(pasid !== undefined && { pasid }) });
    }
  }
}

const throughGuestTable = ({ domain }: AmdDevice): boolean =>
  domain instanceof AmdDomain && domain.table === "guest";

/** A guest's table says itself which PASIDs there are. */
const hasDomain = ({ domain, pasids }: AmdDevice, pasid: number | undefined): boolean =>
  pasid === undefined || domain.kind === "nested" ? domain.kind !== "blocked" : pasids.has(pasid);
