/**
 * The kernel-side driver of one SMMUv3 (IHI 0070): stream table, context descriptors, domains of stage 1 and 2, guests'
 * stage 1 above them, commands, the event and page request queues. It only writes memory, registers and queue entries.
 * The interrupts of the unit are taken up after the access that caused them has ended, as a thread would.
 *
 * Page requests (PRI) are denied; functions whose accesses can stall have their faults reported instead. Left out: AArch32,
 * big-endian tables, broadcast TLB maintenance, and the order of writes by which an entry changes while a unit reads it.
 */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import { once, type Scheduler } from "../../base/scheduler.ts";
import type { Capabilities } from "../../hardware/smmuv3/capabilities.ts";
import { EVENT_BYTES, EventRecord, PageRequestRecord, PRI_BYTES } from "../../hardware/smmuv3/queue-spec.ts";
import { Config, Cr0, Gbpa, Gerror, IrqCtrl, Register, S1Dss, Ste } from "../../hardware/smmuv3/spec.ts";
import { NO_PASID } from "../../hardware/unit.ts";
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
import type { Message, MsiController } from "../../kernel/msi.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
  IommuHwInfoArmSmmuv3,
} from "../../uapi/vendor/smmuv3.ts";
import { FunctionServices } from "../function-services.ts";
import { notNestParent } from "../refusals.ts";
import type { RegisterFile } from "../register-file.ts";
import { keepReport } from "../reports.ts";
import { CommandQueue } from "./command-queue.ts";
import { ContextTable, contextBits } from "./context-table.ts";
import { DOORBELL_WINDOW, type DomainHost, doorbellAddress, SmmuDomain } from "./domain.ts";
import { faultOf, inputAddress, permissionsOf } from "./event.ts";
import { Invalidations } from "./invalidations.ts";
import { Master } from "./master.ts";
import { type Guest, SmmuNestedDomain } from "./nested-domain.ts";
import { RecordQueue } from "./record-queue.ts";
import { Registers } from "./registers.ts";
import { type SteValues, StreamTable } from "./stream-table.ts";
import { SmmuViommu } from "./viommu.ts";

/** What firmware (IORT) says of a unit. */
export interface SmmuFirmware {
  /** Whether the unit is in front of this function. */
  covers(device: Requester): boolean;
  /** Whether accesses of the function may stall. */
  canStall(device: Requester): boolean;
  /** The unit may remember that nothing was there, and must be told of what is added too: no register says so. */
  readonly remembersAbsent?: boolean;
  /** Messages of functions must pass at the addresses of the doorbell window (a reserved range of kind RMR). */
  readonly messagesPass?: boolean;
}

export interface SmmuDriverOptions {
  /** "smmu3.0x0000000009050000" */
  readonly name: string;
  readonly unit: RegisterFile;
  readonly memory: HostMemory;
  readonly msi: MsiController;
  readonly scheduler: Scheduler;
  readonly firmware: SmmuFirmware;
  readonly events: EventSink;
}

/** A fault as the driver read it from an event of the unit. */
export interface ReportedFault {
  readonly rid: number;
  readonly pasid: number;
  readonly address: bigint;
  readonly write: boolean;
  readonly code: number;
  readonly stage2: boolean;
}

/** Type of hardware information: IOMMU_HW_INFO_TYPE_DEFAULT, which structures of a vendor do not define. */
const WHATEVER_IT_IS = 0;
/** Data of the unit's messages: one of a block for each source. */
const SOURCES = { eventq: 0, priq: 1, gerror: 2 } as const;
const MESSAGES = 4;
/** Cacheability of what the unit fetches, and shareability. */
const WRITE_BACK = 1;
const INNER = 3;
/** EATS. */
const FULL_ATS = 1;
/** SHCFG: as the access came. */
const AS_IT_CAME = 1;
const EVERY_ERROR = Object.values(Gerror).reduce((all, error) => all | error, 0);

export class SmmuDriver implements IommuDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  onPageRequest: ((device: Requester, request: PageRequest) => void) | undefined;
  onFault: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  /** The last faults that nobody else was told of, and how many there were in all. */
  readonly faults: ReportedFault[] = [];
  faultCount = 0;
  /** Times that the driver found out that events were lost: their queue was full, or its memory did not answer. */
  overflows = 0;
  readonly unit: Capabilities;
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #firmware: SmmuFirmware;
  readonly #events: EventSink;
  readonly #streams: StreamTable;
  readonly #commands: CommandQueue;
  readonly #invalidations: Invalidations;
  readonly #eventQueue: RecordQueue;
  readonly #pageRequests: RecordQueue | undefined;
  readonly #message: Message;
  readonly #asids: Ids;
  readonly #vmids: Ids;
  readonly #domains = new Set<SmmuDomain>();
  readonly #viommus = new Set<Guest>();
  readonly #masters = new Map<Requester, Master>();
  readonly #bySid = new Map<number, Master>();
  readonly #host: DomainHost;
  #closed = false;

  /** Brings the unit up, every function blocked. Throws ENODEV when the unit lacks what the driver needs, ENOMEM. */
  constructor(options: SmmuDriverOptions) {
    const { name, memory } = options;
    this.name = name;
    this.#memory = memory;
    this.#firmware = options.firmware;
    this.#events = options.events;
    const registers = new Registers(options.unit, name);
    this.#registers = registers;
    this.unit = registers.capabilities();
    this.#requireUnit();
    registers.write32(Register.GBPA, (Gbpa.RESET | Gbpa.ABORT | Gbpa.UPDATE) >>> 0);
    registers.control(0);
    this.#streams = new StreamTable(registers, memory, name, this.unit);
    this.#commands = new CommandQueue(registers, memory, name, this.unit.commandQueueLg2);
    this.#eventQueue = new RecordQueue(registers, memory, name, {
      what: "event queue",
      base: Register.EVENTQ_BASE,
      prod: Register.EVENTQ_PROD,
      cons: Register.EVENTQ_CONS,
      maximumLg2: this.unit.eventQueueLg2,
      recordBytes: EVENT_BYTES,
    });
    if (this.unit.pri)
      this.#pageRequests = new RecordQueue(registers, memory, name, {
        what: "page request queue",
        base: Register.PRIQ_BASE,
        prod: Register.PRIQ_PROD,
        cons: Register.PRIQ_CONS,
        maximumLg2: this.unit.pageRequestQueueLg2,
        recordBytes: PRI_BYTES,
      });
    this.#invalidations = new Invalidations(this.#commands, this.unit.rangeInvalidation);
    // 0 is the VMID of the host's own stage 1, and not given out as ASID either.
    this.#asids = new Ids(1, this.unit.asidMask + 1);
    this.#vmids = new Ids(1, this.unit.vmidMask + 1);
    this.#host = {
      flushesAdded: options.firmware.remembersAbsent ?? false,
      flush: (domain, iova, length, leavesOnly) => this.#flush(domain, iova, length, leavesOnly),
      forget: (domain) => this.#forget(domain),
    };
    const interrupted = once(options.scheduler, () => this.#serve());
    this.#message = options.msi.allocate(interrupted, { count: MESSAGES });
    this.#enableInterrupts();
    registers.control(Cr0.CMDQEN);
    this.#invalidations.everything();
    registers.control(Cr0.CMDQEN | Cr0.EVENTQEN | (this.unit.pri ? Cr0.PRIQEN : 0) | this.#atsCheck);
    registers.control(registers.read32(Register.CR0) | Cr0.SMMUEN);
  }

  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }
  get viommus(): number {
    return this.#viommus.size;
  }

  probe(device: Requester): DeviceCapabilities {
    if (!this.#firmware.covers(device))
      throw new LinuxError("ENODEV", `${this.name} is not in front of this device`, device.name);
    this.#streams.open(device.rid);
    const { unit } = this;
    const services = new FunctionServices(device);
    const pasid = services.enablePasids(contextBits(unit.substreamIdBits, unit.twoLevelContexts));
    const stalls = unit.stalls === "force" || (unit.stalls === "both" && this.#firmware.canStall(device));
    const contexts = new ContextTable(this.#memory, device.name, pasid.bits, unit.twoLevelContexts);
    const ats = unit.ats ? services.ats : undefined;
    const master = new Master(device, { pasid, stalls, contexts, ats, blocked: this.blocked });
    this.#masters.set(device, master);
    this.#bySid.set(master.sid, master);
    this.#writeEntry(master);
    return {
      cacheCoherent: true,
      dirtyTracking: unit.updates === "dirty",
      pasidBits: pasid.bits,
      pasidExecute: pasid.execute,
      pasidPrivileged: pasid.privileged,
      nesting: this.#nests,
      ats: ats !== undefined,
      pageRequests: stalls,
    };
  }

  release(device: Requester): void {
    const master = this.#masters.get(device);
    if (!master) return;
    for (const pasid of [...master.pasids.keys()]) this.attach(device, this.blocked, pasid);
    this.attach(device, this.blocked);
    this.#streams.write(master.sid, 0n);
    this.#invalidations.stream(master.sid);
    this.#masters.delete(device);
    this.#bySid.delete(master.sid);
    master.contexts.free();
  }

  hardwareInfo(_device: Requester | undefined, type: number): HardwareInfo | undefined {
    if (type !== WHATEVER_IT_IS && type !== IOMMU_HW_INFO_TYPE_ARM_SMMUV3) return undefined;
    const read = (register: number): number => this.#registers.read32(register);
    const { IDR0, IDR1, IDR2, IDR3, IDR4, IDR5, IIDR, AIDR } = Register;
    const bytes = IommuHwInfoArmSmmuv3.bytes({
      idr: [IDR0, IDR1, IDR2, IDR3, IDR4, IDR5].map(read),
      iidr: read(IIDR),
      aidr: read(AIDR),
    });
    return { type: IOMMU_HW_INFO_TYPE_ARM_SMMUV3, bytes };
  }

  reserved(): readonly ReservedRegion[] {
    return [{ ...DOORBELL_WINDOW, kind: "sw-msi" }];
  }

  doorbell(device: Requester, address: bigint): bigint {
    const master = this.#masterOf(device);
    if (this.#firmware.messagesPass) return address; // whoever programs the function knows where it is to write
    const page = Number(address) - (Number(address) % FRAME_BYTES);
    const domain = translating(master.domain);
    domain?.mapDoorbell(page);
    master.doorbells.add(page);
    return master.domain.kind === "identity" ? address : doorbellAddress(address);
  }

  allocatePaging(_device: Requester, options: PagingOptions = {}): SmmuDomain {
    const { nestParent = false, dirtyTracking = false, pasid = false, data } = options;
    const { unit } = this;
    if (data)
      throw new LinuxError("EOPNOTSUPP", "its paging domains have no wishes of the vendor's", this.name);
    if (nestParent && (dirtyTracking || pasid || !this.#nests))
      throw new LinuxError(
        "EOPNOTSUPP",
        "a nest parent is of stage 2: it needs a unit with both stages, tracks no dirty pages and has no PASIDs",
        this.name,
      );
    if ((dirtyTracking && unit.updates !== "dirty") || ((dirtyTracking || pasid) && !unit.stage1))
      throw new LinuxError(
        "EOPNOTSUPP",
        "dirty pages are tracked, and PASIDs given domains, by stage 1 of a unit that has what it takes",
        this.name,
      );
    allocate("a domain of the unit");
    return this.#makeDomain(nestParent || !unit.stage1 ? 2 : 1, dirtyTracking, nestParent);
  }

  hasViommu(_device: Requester, type: number): boolean {
    return type === IOMMU_VIOMMU_TYPE_ARM_SMMUV3 && this.#nests;
  }

  allocateViommu(_device: Requester, parent: PagingDomain, _data: UserData): SmmuViommu {
    if (!(parent instanceof SmmuDomain) || !this.#domains.has(parent) || !parent.nestParent)
      throw notNestParent(parent, this.name);
    allocate("a vIOMMU of the unit");
    const viommu = new SmmuViommu(parent, {
      invalidations: this.#invalidations,
      ats: this.unit.ats,
      forget: (gone) => this.#viommus.delete(gone),
    });
    this.#viommus.add(viommu);
    return viommu;
  }

  attach(device: Requester, domain: Domain, pasid?: number): void {
    const master = this.#masterOf(device);
    this.#serve(); // what happened under the domain it has belongs to that one
    if (pasid === undefined) this.#attach(master, domain);
    else if (domain.kind === "blocked") this.#detachPasid(master, pasid);
    else this.#attachPasid(master, domain, pasid);
  }

  /** Success: the access is tried again. Else it is aborted. */
  respond(device: Requester, { group, code }: PageResponse): void {
    this.#invalidations.resume(device.rid, group, code === "success");
  }

  /** Everything is given back; the unit is left off. Domains must have been freed. */
  close(): void {
    this.#registers.control(0);
    this.#closed = true;
    this.#message.free();
    for (const { contexts } of this.#masters.values()) contexts.free();
    this.#masters.clear();
    this.#bySid.clear();
    this.#pageRequests?.free();
    this.#eventQueue.free();
    this.#commands.free();
    this.#streams.free();
  }

  get #nests(): boolean {
    return this.unit.stage1 && this.unit.stage2;
  }

  get #atsCheck(): number {
    return this.unit.ats ? Cr0.ATSCHK : 0;
  }

  #requireUnit(): void {
    const { msi, granules } = this.unit;
    if (!granules.includes(12))
      throw new LinuxError("ENODEV", "the unit has no tables with 4 KiB pages (IDR5.GRAN4K)", this.name);
    if (!msi) throw new LinuxError("ENODEV", "the unit sends no messages (IDR0.MSI)", this.name);
  }

  #masterOf(device: Requester): Master {
    const master = this.#masters.get(device);
    if (!master) throw new LinuxError("ENODEV", `it was not found behind ${this.name}`, device.name);
    return master;
  }

  // Domains

  #makeDomain(stage: 1 | 2, dirtyTracking: boolean, nestParent: boolean): SmmuDomain {
    const ids = stage === 1 ? this.#asids : this.#vmids;
    const id = ids.take();
    if (id < 0)
      throw new LinuxError(
        "ENOSPC",
        `all ${ids.inUse} ${stage === 1 ? "ASIDs" : "VMIDs"} are in use`,
        this.name,
      );
    try {
      const domain = new SmmuDomain({
        unitName: this.name,
        stage,
        id,
        memory: this.#memory,
        unit: this.unit,
        dirtyTracking,
        nestParent,
        host: this.#host,
        events: this.#events,
      });
      this.#domains.add(domain);
      return domain;
    } catch (error) {
      ids.give(id);
      throw error;
    }
  }

  #flush(domain: SmmuDomain, iova: number, length: number, leavesOnly: boolean): void {
    this.#invalidations.range(domain.tag, iova, length, leavesOnly);
    if (domain.nestParent) this.#invalidations.guests(domain.tag);
    for (const master of this.#masters.values())
      if (master.ats?.on) this.#flushFunction(master, domain, iova, length);
  }

  /** What a function remembers of a domain. Which of a guest's translations came of it nobody knows. */
  #flushFunction(master: Master, domain: SmmuDomain, iova: number, length: number): void {
    if (master.domain === domain) this.#invalidations.device(master.sid, NO_PASID, iova, length);
    else if (translating(master.domain) === domain) this.#invalidations.wholeDevice(master.sid);
    for (const [pasid, given] of master.pasids)
      if (given === domain) this.#invalidations.device(master.sid, pasid, iova, length);
  }

  #forget(domain: SmmuDomain): void {
    this.#invalidations.space(domain.tag);
    this.#domains.delete(domain);
    (domain.stage === 1 ? this.#asids : this.#vmids).give(domain.id);
  }

  // Attaching

  #attach(master: Master, domain: Domain): void {
    const before = master.domain;
    if (before === domain) return;
    const owner = this.#check(master, domain);
    for (const page of master.doorbells) translating(domain)?.mapDoorbell(page);
    if (this.#firmware.messagesPass) translating(domain)?.passMessages();
    count(domain, 1);
    master.domain = domain;
    master.owner = owner;
    if (isStage1(domain)) {
      master.contexts.write(0, domain.contextDescriptor(master.stalls));
      this.#invalidations.context(master.sid, 0);
    }
    if (!isStage1(domain) || !isStage1(before)) this.#writeEntry(master);
    if (master.ats?.on) this.#invalidations.wholeDevice(master.sid);
    if (!isStage1(domain)) master.contexts.clear(0, () => this.#invalidations.context(master.sid, 0));
    count(before, -1);
  }

  /** Throws EINVAL, EBUSY or ENOENT when the function cannot have it; which guest it is then of. */
  #check(master: Master, domain: Domain): Master["owner"] {
    if (domain.kind === "identity" || domain.kind === "blocked") return undefined;
    const own =
      domain instanceof SmmuNestedDomain
        ? this.#viommus.has(domain.guest)
        : domain instanceof SmmuDomain && this.#domains.has(domain);
    if (!own)
      throw new LinuxError(
        "EINVAL",
        `${domain.name} is not a domain of ${this.name}, the unit of this device`,
        master.name,
      );
    if (master.pasids.size > 0 && !isStage1(domain))
      throw new LinuxError(
        "EBUSY",
        `PASIDs of the device have domains; ${domain.name} has no place for them`,
        master.name,
      );
    if (!(domain instanceof SmmuNestedDomain)) return undefined;
    const virtualId = domain.guest.virtualIdOf(master.requester);
    if (virtualId !== undefined) return { guest: domain.guest, virtualId };
    if (!domain.translates) return undefined;
    throw new LinuxError("ENOENT", "the guest does not know the device: it has no vDEVICE", master.name);
  }

  #attachPasid(master: Master, domain: Domain, pasid: number): void {
    if (!(domain instanceof SmmuDomain))
      throw new LinuxError("EOPNOTSUPP", `a PASID cannot be given ${domain.name}`, master.name);
    this.#checkPasid(master, domain, pasid);
    const before = master.pasids.get(pasid);
    if (before === domain) return;
    const first = master.pasids.size === 0;
    master.contexts.reserve(pasid);
    domain.users += 1;
    master.pasids.set(pasid, domain);
    master.contexts.write(pasid, domain.contextDescriptor(master.stalls));
    this.#invalidations.context(master.sid, pasid);
    if (first && !isStage1(master.domain)) this.#writeEntry(master);
    if (before) this.#forgetPasid(master, pasid);
    if (before) before.users -= 1;
  }

  #checkPasid(master: Master, domain: SmmuDomain, pasid: number): void {
    const { bits } = master.pasid;
    if (pasid < 1 || pasid >= 2 ** bits)
      throw new LinuxError("EINVAL", `PASID ${pasid}: the device has 1 to ${2 ** bits - 1}`, master.name);
    if (!this.#domains.has(domain) || domain.stage !== 1)
      throw new LinuxError(
        "EINVAL",
        `${domain.name} is no stage 1 domain of ${this.name}, the unit of this device`,
        master.name,
      );
    if (translating(master.domain)?.stage === 2 || master.domain.kind === "nested")
      throw new LinuxError(
        "EINVAL",
        `the device has ${master.domain.name}, beside which there is no place for PASIDs`,
        master.name,
      );
  }

  #detachPasid(master: Master, pasid: number): void {
    const before = master.pasids.get(pasid);
    if (!before) return;
    master.pasids.delete(pasid);
    if (master.pasids.size === 0 && !isStage1(master.domain)) this.#writeEntry(master);
    master.contexts.clear(pasid, () => this.#invalidations.context(master.sid, pasid));
    this.#forgetPasid(master, pasid);
    before.users -= 1;
  }

  #forgetPasid(master: Master, pasid: number): void {
    if (master.ats?.on) this.#invalidations.device(master.sid, pasid, 0, 2 ** 64);
  }

  /** §5.2 Makes the stream table entry what the function has now. It asks for translations only while they are given. */
  #writeEntry(master: Master): void {
    const entry = this.#entryOf(master);
    const { ats } = master;
    const translations = ats !== undefined && givesTranslations(master.domain, entry);
    if (ats && !translations) ats.on = false;
    this.#streams.write(master.sid, Ste.make({ V: true, ...entry, EATS: translations ? FULL_ATS : 0 }));
    this.#invalidations.stream(master.sid);
    if (ats && translations) ats.on = true;
  }

  #entryOf(master: Master): SteValues {
    const { domain } = master;
    if (isStage1(domain)) return this.#stage1Entry(master, S1Dss.substream0);
    if (domain.kind === "identity")
      return master.pasids.size > 0
        ? this.#stage1Entry(master, S1Dss.bypass)
        : { CONFIG: Config.bypass, SHCFG: AS_IT_CAME };
    if (domain instanceof SmmuDomain) return { CONFIG: Config.stage2, ...domain.stage2Fields };
    if (domain instanceof SmmuNestedDomain) return domain.steFields;
    return master.pasids.size > 0 ? this.#stage1Entry(master, S1Dss.terminate) : { CONFIG: Config.abort };
  }

  #stage1Entry(master: Master, withoutSubstream: number): SteValues {
    return {
      CONFIG: Config.stage1,
      ...master.contexts.fields,
      S1DSS: master.pasid.bits > 0 ? withoutSubstream : 0,
      S1CIR: WRITE_BACK,
      S1COR: WRITE_BACK,
      S1CSH: INNER,
      S1STALLD: this.unit.stalls === "both" && !master.stalls,
      SHCFG: AS_IT_CAME,
    };
  }

  // Interrupts

  #enableInterrupts(): void {
    const registers = this.#registers;
    const { address, data } = this.#message;
    const program = (at: number, source: number): void => {
      registers.write64(at, address);
      registers.write32(at + 8, data + source);
    };
    program(Register.EVENTQ_IRQ_CFG0, SOURCES.eventq);
    program(Register.GERROR_IRQ_CFG0, SOURCES.gerror);
    if (this.unit.pri) program(Register.PRIQ_IRQ_CFG0, SOURCES.priq);
    registers.write32(
      Register.IRQ_CTRL,
      IrqCtrl.GERROR | IrqCtrl.EVENTQ | (this.unit.pri ? IrqCtrl.PRIQ : 0),
    );
  }

  /** Takes what the unit has reported. */
  #serve(): void {
    if (this.#closed) return;
    const errors = this.#registers.acknowledge(EVERY_ERROR & ~Gerror.CMDQ_ERR);
    const overflowed = this.#eventQueue.drain((record) => this.#event(record));
    if (overflowed || errors & Gerror.EVENTQ_ABT_ERR) this.#loseEvents();
    this.#pageRequests?.drain((record) => this.#pageRequest(record));
  }

  /** §7.2, §7.4 Nobody knows whose events they were: every guest is told. Stalls are not among them (§3.12.2). */
  #loseEvents(): void {
    this.overflows += 1;
    for (const viommu of this.#viommus) viommu.lose();
  }

  /** §7.3 A stall waits for an answer; what a guest did wrong its guest is told; the rest is the host's to know. */
  #event(record: Uint32Array): void {
    const { SID, STALL, S2 } = EventRecord.fields;
    const master = this.#bySid.get(SID.get(record));
    if (STALL.get(record)) {
      this.#stalled(master, record);
      return;
    }
    if (master?.owner && !S2.get(record) && this.#tellGuest(master.owner, record)) return;
    this.#report(record);
  }

  #tellGuest({ guest, virtualId }: NonNullable<Master["owner"]>, record: Uint32Array): boolean {
    try {
      return guest.report(virtualId, record);
    } catch (error) {
      if (error instanceof LinuxError) return true; // there was no memory: its queue says that events were lost
      throw error;
    }
  }

  #stalled(master: Master | undefined, record: Uint32Array): void {
    const { SID, SSV, SSID, STAG, S2 } = EventRecord.fields;
    if (!master || !this.onPageRequest || S2.get(record)) {
      this.#report(record);
      this.#invalidations.resume(SID.get(record), STAG.get(record), false);
      return;
    }
    this.onPageRequest(master.requester, {
      ...(SSV.get(record) === 1 && { pasid: SSID.get(record) }),
      group: STAG.get(record),
      last: true,
      address: inputAddress(record),
      permissions: permissionsOf(record),
    });
  }

  #report(record: Uint32Array): void {
    const { TYPE, SID, SSV, SSID, RNW, S2 } = EventRecord.fields;
    this.faultCount += 1;
    keepReport(this.faults, {
      rid: SID.get(record),
      pasid: SSV.get(record) ? SSID.get(record) : NO_PASID,
      address: inputAddress(record),
      write: RNW.get(record) === 0,
      code: TYPE.get(record),
      stage2: S2.get(record) === 1,
    });
    const master = this.#bySid.get(SID.get(record));
    if (master) this.onFault?.(master.requester, faultOf(record));
  }

  /** §8 Nobody wants page requests: a group is denied with its last one. */
  #pageRequest(record: Uint32Array): void {
    const { SID, SSV, SSID, LAST, PRGINDEX } = PageRequestRecord.fields;
    if (!LAST.get(record)) return;
    const pasid = SSV.get(record) ? SSID.get(record) : NO_PASID;
    this.#invalidations.deny(SID.get(record), pasid, PRGINDEX.get(record));
  }
}

const isStage1 = (domain: Domain): domain is SmmuDomain => domain instanceof SmmuDomain && domain.stage === 1;

/** Whether functions can have translations of their own by the entry: a guest's as the guest wants. */
const givesTranslations = (domain: Domain, { CONFIG }: SteValues): boolean =>
  domain instanceof SmmuNestedDomain ? domain.ats : CONFIG === Config.stage1 || CONFIG === Config.stage2;

/** The host's table that accesses go through. */
const translating = (domain: Domain): SmmuDomain | undefined =>
  domain instanceof SmmuNestedDomain ? domain.parent : domain instanceof SmmuDomain ? domain : undefined;

const count = (domain: Domain, more: number): void => {
  if (domain instanceof SmmuDomain || domain instanceof SmmuNestedDomain) domain.users += more;
};
