/**
 * The kernel-side driver of PCI translation on s390: it gives functions domains by registering their anchors, refreshes
 * what it changes, and stores errors when it is told of them. It only writes memory and gives instructions. With the extension
 * `s390-nesting` guests' anchors lie above nest parents.
 *
 * Left out: function groups (a function's addresses are what the machine file says of its unit), resetting functions
 * after errors, which goes on without.
 */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import { FaultCode } from "../../hardware/zpci/faults.ts";
import { ErrorEvent } from "../../hardware/zpci/spec.ts";
import {
  type DeviceCapabilities,
  type Domain,
  type FaultReason,
  type FixedDomain,
  type IommuDriver,
  type NestedOptions,
  type PagingDomain,
  type PagingOptions,
  type Requester,
  RequestPermission,
  type ReservedRegion,
  requirePlain,
  type UnrecoverableFault,
  type UserData,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import { type Message, MSI_BASE, MSI_BYTES, type MsiController } from "../../kernel/msi.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { RegisterFile } from "../register-file.ts";
import { keepReport } from "../reports.ts";
import { ZpciDevice } from "./device.ts";
import { ZpciDomain } from "./domain.ts";
import { type FunctionParameters, Instructions } from "./instructions.ts";
import { ZpciNestedDomain } from "./nested-domain.ts";

/** What the machine says of functions. */
export interface ZpciFirmware {
  /** Whether the unit is in front of this function. */
  covers(device: Requester): boolean;
  /** Addresses [start, end) that functions may use. */
  readonly start: number;
  readonly end: number;
}

export interface ZpciDriverOptions {
  /** "zpci0" */
  readonly name: string;
  readonly unit: RegisterFile;
  readonly memory: HostMemory;
  readonly msi: MsiController;
  readonly firmware: ZpciFirmware;
  readonly events: EventSink;
  /** Guests' anchors can lie above nest parents (`s390-nesting`). Default false. */
  readonly nesting?: boolean;
}

/** An error of a function as the driver was told of it. */
export interface ReportedFault {
  readonly rid: number;
  readonly address: bigint;
  readonly write: boolean;
  readonly code: number;
}

const DOMAINS = 2 ** 16;
const RID_MASK = 0xffff;

export class ZpciDriver implements IommuDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  onFault: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  /** The last errors, and how many there were in all. */
  readonly faults: ReportedFault[] = [];
  faultCount = 0;
  /** Times that errors were lost because too many waited. */
  faultOverflows = 0;
  readonly #memory: HostMemory;
  readonly #firmware: ZpciFirmware;
  readonly #events: EventSink;
  readonly #nesting: boolean;
  readonly #instructions: Instructions;
  readonly #message: Message;
  readonly #ids = new Ids(1, DOMAINS);
  readonly #domains = new Set<ZpciDomain>();
  readonly #devices = new Map<number, ZpciDevice>();

  /** Every function is refused from now on. Throws ENOMEM. */
  constructor(options: ZpciDriverOptions) {
    const { name, memory } = options;
    this.name = name;
    this.#memory = memory;
    this.#firmware = options.firmware;
    this.#events = options.events;
    this.#nesting = options.nesting ?? false;
    this.#instructions = new Instructions(options.unit, memory, name);
    this.#message = options.msi.allocate(() => this.#readErrors());
    this.#instructions.enableEvents(this.#message);
    this.#instructions.require(true);
  }

  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }

  probe(requester: Requester): DeviceCapabilities {
    this.#deviceOf(requester);
    return { cacheCoherent: true, dirtyTracking: false, pasidBits: 0, nesting: this.#nesting };
  }

  release(requester: Requester): void {
    const device = this.#devices.get(requester.rid);
    if (!device) return;
    this.#give(device, this.blocked);
    this.#devices.delete(requester.rid);
  }

  reserved(): readonly ReservedRegion[] {
    return [{ start: MSI_BASE, length: MSI_BYTES, kind: "msi" }];
  }

  allocatePaging(_device: Requester, options: PagingOptions = {}): ZpciDomain {
    const { nestParent = false, ...others } = options;
    requirePlain(this.#nesting ? others : options, this.name);
    allocate("a domain of the unit");
    const id = this.#ids.take();
    if (id < 0) throw new LinuxError("ENOSPC", `${this.#ids.inUse} domains are in use`, this.name);
    const { start, end } = this.#firmware;
    try {
      const domain = new ZpciDomain({
        ...{ unitName: this.name, id, memory: this.#memory, start, end, nestParent, events: this.#events },
        forget: (gone) => this.#forget(gone),
      });
      this.#domains.add(domain);
      return domain;
    } catch (error) {
      this.#ids.give(id);
      throw error;
    }
  }

  allocateNested(
    _device: Requester,
    parent: PagingDomain,
    data: UserData,
    { faults = false, pasid = false }: NestedOptions,
  ): ZpciNestedDomain {
    if (!this.#nesting)
      throw new LinuxError("EOPNOTSUPP", "guests' anchors are of the extension s390-nesting", this.name);
    if (faults || pasid)
      throw new LinuxError("EOPNOTSUPP", "s390 has no page requests and no PASIDs", this.name);
    if (!(parent instanceof ZpciDomain) || !parent.nestParent)
      throw new LinuxError("EINVAL", `${parent.name} is no nest parent of a zPCI unit`, this.name);
    allocate("a nested domain of the unit");
    return new ZpciNestedDomain(parent, data);
  }

  attach(requester: Requester, domain: Domain, pasid?: number): void {
    if (pasid !== undefined) throw new LinuxError("EOPNOTSUPP", "s390 has no PASIDs", this.name);
    const device = this.#deviceOf(requester);
    if (device.domain !== domain) this.#give(device, domain);
  }

  /** Everything is given back; functions are refused nothing any more. Domains must have been freed. */
  close(): void {
    this.#instructions.enableEvents(undefined);
    this.#instructions.require(false);
    this.#message.free();
    this.#instructions.free();
  }

  #deviceOf(requester: Requester): ZpciDevice {
    const known = this.#devices.get(requester.rid);
    if (known) return known;
    if (!this.#firmware.covers(requester))
      throw new LinuxError("ENODEV", `${this.name} is not in front of this device`, requester.name);
    const device = new ZpciDevice(requester, this.#instructions);
    this.#devices.set(requester.rid, device);
    return device;
  }

  /** What it had is left only when the unit has taken what it is given. */
  #give(device: ZpciDevice, domain: Domain): void {
    const before = device.domain;
    const { rid } = device.requester;
    if (domain.kind !== "blocked")
      this.#instructions.register(rid, this.#parametersOf(device, domain), before !== undefined);
    else if (before) this.#instructions.deregister(rid);
    device.domain = domain.kind === "blocked" ? undefined : domain;
    usersOf(before)?.delete(device);
    usersOf(device.domain)?.add(device);
  }

  #parametersOf(device: ZpciDevice, domain: Domain): FunctionParameters {
    const { start, end } = this.#firmware;
    if (domain.kind === "identity") return { start, end, iota: 0n };
    const ours = domain instanceof ZpciNestedDomain ? domain.parent : domain;
    if (
      !(ours instanceof ZpciDomain && ours.memory === this.#memory) ||
      ours.freed ||
      ours.apertures[0]!.start < start ||
      ours.apertures[0]!.end > end
    )
      throw new LinuxError(
        "EINVAL",
        `${domain.name} does not fit ${this.name}: it is no domain of a zPCI unit of this machine with these addresses`,
        device.requester.name,
      );
    return { start, end, iota: (domain as ZpciDomain | ZpciNestedDomain).iota };
  }

  #forget(domain: ZpciDomain): void {
    this.#domains.delete(domain);
    this.#ids.give(domain.id);
  }

  #readErrors(): void {
    for (
      let event = this.#instructions.nextError();
      event !== undefined;
      event = this.#instructions.nextError()
    )
      this.#report(event);
  }

  #report(event: bigint): void {
    const { FH, FADDR, W, PEC, LOST } = ErrorEvent.fields;
    if (LOST.of(event) === 1n) this.faultOverflows += 1;
    const fault: ReportedFault = {
      rid: Number(FH.of(event)) & RID_MASK,
      address: FADDR.of(event),
      write: W.of(event) === 1n,
      code: Number(PEC.of(event)),
    };
    this.faultCount += 1;
    keepReport(this.faults, fault);
    const device = this.#devices.get(fault.rid);
    if (!device) return;
    const permissions = fault.write ? RequestPermission.write : RequestPermission.read;
    this.onFault?.(device.requester, { address: fault.address, permissions, reason: reasonOf(fault.code) });
  }
}

const usersOf = (domain: Domain | undefined): Set<ZpciDevice> | undefined =>
  domain instanceof ZpciDomain || domain instanceof ZpciNestedDomain ? domain.devices : undefined;

const REASONS: ReadonlyMap<number, FaultReason> = new Map([
  [FaultCode.protection, "permission"],
  [FaultCode.addressing, "walk-abort"],
  [FaultCode.page, "entry"],
  [FaultCode.segment, "entry"],
  [FaultCode.regionThird, "entry"],
  [FaultCode.regionSecond, "entry"],
  [FaultCode.regionFirst, "entry"],
  [FaultCode.specification, "entry"],
  [FaultCode.asceType, "address-range"],
  [FaultCode.outOfRange, "address-range"],
]);

const reasonOf = (code: number): FaultReason => REASONS.get(code) ?? "unknown";
