/**
 * The kernel-side driver of one VT-d unit in legacy mode: root and context tables (§9.1, §9.3), domains, queued
 * invalidation (§6.5.2) and the fault event (§7.3). It only writes memory, registers and queue entries. Left out:
 * scalable mode, interrupt remapping, the register-based invalidation that older units need.
 */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import {
  addressWidthOf,
  CapRegister,
  ContextCacheInvalidate,
  ContextEntry,
  DescriptorType,
  EcapRegister,
  EventControl,
  FaultRecording,
  Fsts,
  FstsRegister,
  Gcmd,
  Granularity,
  IotlbInvalidate,
  LargePages,
  Register,
  RootEntry,
  RtaddrRegister,
  TranslationType,
} from "../../hardware/vtd/spec.ts";
import {
  type DeviceCapabilities,
  type Domain,
  type FixedDomain,
  type HardwareInfo,
  type IommuDriver,
  type PagingOptions,
  type Requester,
  type ReservedRegion,
  requirePlain,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import type { Message, MsiController } from "../../kernel/msi.ts";
import { MSI_BASE, MSI_BYTES } from "../../kernel/msi.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
  IommuHwInfoVtd,
} from "../../uapi/vendor/vtd.ts";
import { VtdDomain, type VtdGeometry } from "./domain.ts";
import { InvalidationQueue } from "./queue.ts";
import { type RegisterFile, Registers } from "./registers.ts";

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
}

/** A fault as the driver read it from the unit's registers. */
export interface ReportedFault {
  readonly rid: number;
  readonly address: bigint;
  readonly write: boolean;
  readonly code: number;
}

/** Reports kept for whoever asks; older ones are counted only. */
const REPORTS = 256;
/** Type of hardware information: IOMMU_HW_INFO_TYPE_DEFAULT, which structures of a vendor do not define. */
const WHATEVER_IT_IS = 0;
const PAGE = 4096;

export class VtdDriver implements IommuDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  /** The last faults, and how many there were in all. */
  readonly faults: ReportedFault[] = [];
  faultCount = 0;
  readonly #registers: Registers;
  readonly #memory: HostMemory;
  readonly #firmware: VtdFirmware;
  readonly #events: EventSink;
  readonly #queue: InvalidationQueue;
  readonly #capabilities: bigint;
  readonly #extended: bigint;
  readonly #geometry: VtdGeometry;
  readonly #rootTable: number;
  readonly #contextTables = new Map<number, number>();
  readonly #domainIds: Ids;
  readonly #passThroughId: number;
  readonly #domains = new Set<VtdDomain>();
  /** By requester id: what it has now. Absent: blocked. */
  readonly #attached = new Map<number, Domain>();
  readonly #faultMessage: Message;
  readonly #descriptor = new Uint32Array(4);

  /** Brings the unit up, every device blocked. Throws ENODEV when the unit lacks what the driver needs. */
  constructor(options: VtdDriverOptions) {
    this.name = options.name;
    this.#memory = options.memory;
    this.#firmware = options.firmware;
    this.#events = options.events;
    this.#registers = new Registers(options.unit, options.name);
    this.#capabilities = this.#registers.read64(Register.CAP);
    this.#extended = this.#registers.read64(Register.ECAP);
    this.#geometry = this.#readGeometry();
    if (!this.#ecap("QI"))
      throw new LinuxError("ENODEV", "the unit has no queued invalidation (ECAP.QI)", this.name);
    this.#rootTable = this.#memory.allocate(1);
    if (this.#rootTable < 0) throw new LinuxError("ENOMEM", "no host memory for the root table", this.name);
    // Domain id 0 is not used: with CAP.CM the unit tags not-present entries with it (§6.1). 1 is pass-through.
    this.#domainIds = new Ids(1, 2 ** (4 + 2 * this.#cap("ND")));
    this.#passThroughId = this.#domainIds.take();
    this.#faultMessage = options.msi.allocate(() => this.#readFaults());
    this.#registers.write64(Register.RTADDR, RtaddrRegister.make({ RTA: this.#rootTable }));
    this.#registers.command(Gcmd.SRTP, true);
    this.#queue = new InvalidationQueue(this.#registers, this.#memory, this.name);
    this.#invalidateContext(Granularity.global, 0, 0);
    this.#invalidateIotlb(Granularity.global, 0);
    this.#enableFaultEvent();
    this.#registers.command(Gcmd.TE, true);
  }
  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }

  probe(device: Requester): DeviceCapabilities {
    if (!this.#firmware.covers(device))
      throw new LinuxError("ENODEV", `${this.name} is not in front of this device`, device.name);
    this.#contextEntry(device.rid); // the bus's table is made now, so that attaching never needs memory
    return {
      cacheCoherent: this.#ecap("SC") !== 0,
      dirtyTracking: false,
      pasidBits: 0,
      nesting: false,
    };
  }

  release(device: Requester): void {
    this.attach(device, this.blocked);
  }

  /** CAP and ECAP as they are; the erratum is told of every unit, as Linux does. */
  hardwareInfo(_device: Requester, type: number): HardwareInfo | undefined {
    if (type !== WHATEVER_IT_IS && type !== IOMMU_HW_INFO_TYPE_INTEL_VTD) return undefined;
    const bytes = IommuHwInfoVtd.bytes({
      flags: IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
      cap_reg: this.#capabilities,
      ecap_reg: this.#extended,
    });
    return { type: IOMMU_HW_INFO_TYPE_INTEL_VTD, bytes };
  }

  reserved(device: Requester): readonly ReservedRegion[] {
    const direct = this.#firmware.reservedMemory
      .filter((range) => range.device === device.name)
      .map(({ start, length }): ReservedRegion => ({ start, length, kind: "direct" }));
    return [...direct, { start: MSI_BASE, length: MSI_BYTES, kind: "msi" }];
  }

  allocatePaging(_device: Requester, options?: PagingOptions): VtdDomain {
    allocate("a domain of the unit");
    requirePlain(options, this.name);
    const id = this.#domainIds.take();
    if (id < 0)
      throw new LinuxError("ENOSPC", `all ${this.#domainIds.inUse} domain ids are in use`, this.name);
    try {
      const domain = new VtdDomain(
        this.name,
        id,
        this.#memory,
        this.#geometry,
        {
          flushRange: (did, iova, length, leavesOnly) => this.#flushRange(did, iova, length, leavesOnly),
          flushAdded: (did, iova, length) => {
            if (this.#cap("CM")) this.#flushRange(did, iova, length, false);
          },
          forget: (gone) => {
            this.#domains.delete(gone);
            this.#domainIds.give(gone.id);
          },
        },
        this.#events,
      );
      this.#domains.add(domain);
      return domain;
    } catch (error) {
      this.#domainIds.give(id);
      throw error;
    }
  }

  attach(device: Requester, domain: Domain, pasid?: number): void {
    if (pasid !== undefined)
      throw new LinuxError("EOPNOTSUPP", "in legacy mode the unit has no PASIDs", this.name);
    const before = this.#attached.get(device.rid);
    if (before === domain) return;
    this.#check(device, domain);
    const entry = domain.kind === "blocked" ? undefined : this.#contextEntry(device.rid);
    if (before) this.#clear(device.rid, before);
    if (!entry) return;
    this.#attached.set(device.rid, domain);
    if (domain instanceof VtdDomain) domain.attached.add(device.rid);
    this.#write(entry, domain);
    if (this.#cap("CM")) {
      this.#invalidateContext(Granularity.device, 0, device.rid);
      this.#invalidateIotlb(Granularity.domain, this.#idOf(domain));
    }
  }

  /** Everything is given back; the unit is left off. Domains must have been freed. */
  close(): void {
    this.#registers.command(Gcmd.TE, false);
    this.#registers.command(Gcmd.QIE, false);
    this.#faultMessage.free();
    for (const table of this.#contextTables.values()) this.#memory.free(table, 1);
    this.#contextTables.clear();
    this.#queue.free();
    this.#memory.free(this.#rootTable, 1);
  }

  #cap(name: keyof typeof CapRegister.fields): number {
    return Number(CapRegister.fields[name].of(this.#capabilities));
  }
  #ecap(name: keyof typeof EcapRegister.fields): number {
    return Number(EcapRegister.fields[name].of(this.#extended));
  }

  #readGeometry(): VtdGeometry {
    const supported = this.#cap("SAGAW");
    const aw = [3, 2, 1].find((candidate) => supported & (1 << candidate));
    if (aw === undefined)
      throw new LinuxError(
        "ENODEV",
        `the unit has none of 3, 4 or 5 table levels (SAGAW ${supported})`,
        this.name,
      );
    const large = this.#cap("SLLPS");
    return {
      levels: (aw + 2) as 3 | 4 | 5,
      addressBits: Math.min(addressWidthOf(aw), this.#cap("MGAW") + 1),
      hostAddressWidth: this.#firmware.hostAddressWidth,
      pageLg2s: [
        12,
        ...(large & LargePages.twoMegabytes ? [21] : []),
        ...(large & LargePages.oneGigabyte ? [30] : []),
      ],
      snoopControl: this.#ecap("SC") !== 0,
    };
  }

  #check(device: Requester, domain: Domain): void {
    if (domain.kind === "identity" && !this.#ecap("PT"))
      throw new LinuxError("EINVAL", "the unit has no pass-through (ECAP.PT)", this.name);
    if (domain.kind === "identity" || domain.kind === "blocked") return;
    if (!(domain instanceof VtdDomain) || !this.#domains.has(domain))
      throw new LinuxError(
        "EINVAL",
        `${domain.name} is not a domain of ${this.name}, the unit of this device`,
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

  #idOf(domain: Domain): number {
    return domain instanceof VtdDomain ? domain.id : this.#passThroughId;
  }

  /** Where the context entry of a requester is; makes the bus's context table when it is the first. */
  #contextEntry(rid: number): number {
    const bus = rid >>> 8;
    let table = this.#contextTables.get(bus);
    if (table === undefined) {
      table = this.#memory.allocate(1);
      if (table < 0)
        throw new LinuxError("ENOMEM", `no host memory for the context table of bus ${bus}`, this.name);
      this.#contextTables.set(bus, table);
      const root = this.#rootTable + bus * RootEntry.bytes;
      this.#store(root, RootEntry.make({ P: 1, CTP: table }));
      if (this.#cap("CM")) this.#invalidateContext(Granularity.global, 0, 0);
    }
    return table + (rid & 0xff) * ContextEntry.bytes;
  }

  #write(entry: number, domain: Domain): void {
    const value =
      domain instanceof VtdDomain
        ? ContextEntry.make({
            P: 1,
            TT: TranslationType.secondStage,
            SSPTPTR: domain.root,
            AW: domain.levels - 2,
            DID: domain.id,
          })
        : ContextEntry.make({
            P: 1,
            TT: TranslationType.passThrough,
            AW: this.#geometry.levels - 2,
            DID: this.#passThroughId,
          });
    this.#store(entry, value);
  }

  /** The requester reaches nothing any more, and nothing remembers that it did (§6.5.3.3). */
  #clear(rid: number, before: Domain): void {
    this.#store(this.#contextEntry(rid), 0n);
    this.#invalidateContext(Granularity.device, this.#idOf(before), rid);
    this.#invalidateIotlb(Granularity.domain, this.#idOf(before));
    this.#attached.delete(rid);
    if (before instanceof VtdDomain) before.attached.delete(rid);
  }

  /** 128 bits; the half with the present bit last. */
  #store(pa: number, value: bigint): void {
    const word = (index: number): number => Number((value >> BigInt(32 * index)) & 0xffff_ffffn);
    this.#memory.store64(pa + 8, word(2), word(3));
    this.#memory.store64(pa, word(0), word(1));
  }

  #invalidateContext(granularity: number, domainId: number, rid: number): void {
    const { fields } = ContextCacheInvalidate;
    this.#descriptor.fill(0);
    fields.TYPE.set(this.#descriptor, DescriptorType.contextCache);
    fields.G.set(this.#descriptor, granularity);
    fields.DID.set(this.#descriptor, domainId);
    fields.SID.set(this.#descriptor, rid);
    this.#queue.submit(this.#descriptor);
  }

  #invalidateIotlb(granularity: number, domainId: number, page = 0, maskLg2 = 0, leavesOnly = false): void {
    const { fields } = IotlbInvalidate;
    this.#descriptor.fill(0);
    fields.TYPE.set(this.#descriptor, DescriptorType.iotlb);
    fields.G.set(this.#descriptor, granularity);
    fields.DW.set(this.#descriptor, 1);
    fields.DR.set(this.#descriptor, 1);
    fields.DID.set(this.#descriptor, domainId);
    fields.ADDR.set(this.#descriptor, page);
    fields.AM.set(this.#descriptor, maskLg2);
    fields.IH.set(this.#descriptor, leavesOnly ? 1 : 0);
    this.#queue.submit(this.#descriptor);
  }

  /** By pages where one descriptor can say it, else the whole domain. */
  #flushRange(domainId: number, iova: number, length: number, leavesOnly: boolean): void {
    const pages = length / PAGE;
    let maskLg2 = Math.max(0, Math.ceil(Math.log2(pages)));
    // The descriptor's range is naturally aligned: grow it until it holds the whole of ours.
    while (Math.floor(iova / PAGE / 2 ** maskLg2) !== Math.floor((iova / PAGE + pages - 1) / 2 ** maskLg2))
      maskLg2 += 1;
    if (!this.#cap("PSI") || maskLg2 > this.#cap("MAMV")) {
      this.#invalidateIotlb(Granularity.domain, domainId);
      return;
    }
    const span = PAGE * 2 ** maskLg2;
    this.#invalidateIotlb(Granularity.page, domainId, Math.floor(iova / span) * span, maskLg2, leavesOnly);
  }

  #enableFaultEvent(): void {
    const { address, data } = this.#faultMessage;
    this.#registers.write32(Register.FEDATA, data);
    this.#registers.write32(Register.FEADDR, Number(address & 0xffff_ffffn));
    this.#registers.write32(Register.FEUADDR, Number(address >> 32n));
    this.#registers.write32(Register.FECTL, this.#registers.read32(Register.FECTL) & ~EventControl.IM);
  }

  /** The fault event (§7.3.1): read and clear every pending record, then the overflow. */
  #readFaults(): void {
    const count = this.#cap("NFR") + 1;
    const base = this.#cap("FRO") * 16;
    const first = Number(FstsRegister.fields.FRI.of(BigInt(this.#registers.read32(Register.FSTS))));
    for (let i = 0; i < count; i++) {
      const at = base + ((first + i) % count) * FaultRecording.bytes;
      const high = this.#registers.read64(at + 8);
      const record = (high << 64n) | this.#registers.read64(at);
      if (FaultRecording.fields.F.of(record) === 0n) break;
      this.#report(record);
      this.#registers.write64(at + 8, high);
    }
    this.#registers.write32(Register.FSTS, Fsts.PFO);
  }

  #report(record: bigint): void {
    const { FI, SID, FR, T1 } = FaultRecording.fields;
    this.faultCount += 1;
    if (this.faults.length === REPORTS) this.faults.shift();
    this.faults.push({
      rid: Number(SID.of(record)),
      address: FI.of(record),
      write: T1.of(record) === 0n,
      code: Number(FR.of(record)),
    });
  }
}
