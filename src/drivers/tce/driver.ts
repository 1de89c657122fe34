/**
 * The kernel-side driver of a POWER host bridge: every function is a PE of its own, with the windows of the domain that it
 * has. It only writes memory and registers. Left out: recovery of PEs that stopped (EEH), as the bridge is told not to
 * stop them; functions that share a PE.
 */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import { TceFault } from "../../hardware/tce/faults.ts";
import { PES, RealTve, WINDOWS } from "../../hardware/tce/spec.ts";
import { MESSAGES_HI } from "../../hardware/tce/unit.ts";
import {
  type DeviceCapabilities,
  type Domain,
  type FaultReason,
  type FixedDomain,
  type IommuDriver,
  type PagingOptions,
  type Requester,
  RequestPermission,
  type ReservedRegion,
  requirePlain,
  type UnrecoverableFault,
  type WindowAbilities,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import { type Message, MSI_BASE, MSI_BYTES, type MsiController } from "../../kernel/msi.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { TCE_LEVELS_MAX } from "../../pagetable/tce.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { RegisterFile } from "../register-file.ts";
import { keepReport } from "../reports.ts";
import { Bridge, RESERVED_PE, type ReportedFault } from "./bridge.ts";
import { type DomainHost, TceDomain } from "./domain.ts";
import { DEFAULT_WINDOWS, readWindows } from "./windows.ts";

export type { ReportedFault } from "./bridge.ts";

export interface TceDriverOptions {
  /** "phb0" */
  readonly name: string;
  readonly unit: RegisterFile;
  readonly memory: HostMemory;
  readonly msi: MsiController;
  readonly events: EventSink;
  readonly firmware: {
    /** Log2 of the page sizes of the bridge. */
    readonly pageLg2s: readonly number[];
    /** Whether the bridge is in front of this function. */
    covers(device: Requester): boolean;
  };
  /** The extension `apertures`: callers say which windows a domain has. */
  readonly apertures: boolean;
}

/** Memory as a window that is not translated: as much as its two words can say but for the last 16 MiB. */
const IDENTITY = RealTve.make({ END: 0xffff_ff00_0000n, END_HIGH: 3 });

const REASONS = new Map<number, FaultReason>([
  [TceFault.memory, "walk-abort"],
  [TceFault.ioda, "address-range"],
  [TceFault.pageFault, "entry"],
  [TceFault.accessFault, "permission"],
]);

interface Endpoint {
  readonly requester: Requester;
  readonly pe: number;
  domain: Domain;
}

export class TceDriver implements IommuDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  readonly windows: WindowAbilities;
  onFault: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  /** The last faults, and how many there were in all. */
  readonly faults: ReportedFault[] = [];
  faultCount = 0;
  readonly #options: TceDriverOptions;
  readonly #message: Message;
  readonly #bridge: Bridge;
  readonly #pes = new Ids(1, RESERVED_PE);
  readonly #domainIds = new Ids(1);
  readonly #domains = new Set<TceDomain>();
  readonly #endpoints = new Map<number, Endpoint>();
  readonly #host: DomainHost;

  /** Brings the bridge up, every device blocked. Throws ENOMEM, ENOSPC. */
  constructor(options: TceDriverOptions) {
    const { name, memory, msi, events, unit, firmware } = options;
    this.name = name;
    this.#options = options;
    const [low] = DEFAULT_WINDOWS;
    this.windows = {
      first: { start: low.start, length: low.length },
      pageSizes: firmware.pageLg2s.reduce((sizes, lg2) => sizes | (1n << BigInt(lg2)), 0n),
      levels: TCE_LEVELS_MAX,
      count: WINDOWS,
    };
    this.#message = msi.allocate(() => this.#serve());
    this.#bridge = new Bridge(unit, name, memory, this.#message);
    this.#host = {
      name,
      memory,
      events,
      pageLg2s: firmware.pageLg2s,
      rewindow: (domain) => {
        for (const { pe } of this.#having(domain)) this.#bridge.setWindows(pe, domain.tves);
      },
      flush: (domain, iova, length, pageLg2) => {
        for (const { pe } of this.#having(domain)) this.#bridge.kill(pe, iova, length, pageLg2);
      },
      forget: (domain) => {
        this.#domains.delete(domain);
        this.#domainIds.give(domain.id);
      },
    };
  }

  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }

  probe(device: Requester): DeviceCapabilities {
    this.#endpointOf(device);
    return { cacheCoherent: true, dirtyTracking: false, pasidBits: 0, nesting: false };
  }

  release(device: Requester): void {
    const endpoint = this.#endpoints.get(device.rid);
    if (!endpoint) return;
    this.attach(device, this.blocked);
    this.#bridge.setPe(device.rid, RESERVED_PE);
    this.#endpoints.delete(device.rid);
    this.#pes.give(endpoint.pe);
  }

  /** None: messages have a space of their own, above every window. */
  reserved(): readonly ReservedRegion[] {
    return [];
  }

  /** Messages of functions are writes to the message space, at the number of their source. */
  doorbell(_device: Requester, address: bigint): bigint {
    const offset = address - BigInt(MSI_BASE);
    if (offset < 0n || offset >= BigInt(MSI_BYTES))
      throw new LinuxError("EINVAL", `0x${address.toString(16)} is no address of an interrupt`, this.name);
    return (BigInt(MESSAGES_HI) << 32n) | offset;
  }

  allocatePaging(_device: Requester, options: PagingOptions = {}): TceDomain {
    const { data, ...others } = options;
    requirePlain(others, this.name);
    if (data && !this.#options.apertures)
      throw new LinuxError(
        "EOPNOTSUPP",
        "windows are chosen by the extension apertures, which is off",
        this.name,
      );
    const windows = data ? readWindows(data, this.name) : DEFAULT_WINDOWS;
    allocate("a domain of the bridge");
    const id = this.#domainIds.take();
    try {
      const domain = new TceDomain(id, this.#host, windows);
      this.#domains.add(domain);
      return domain;
    } catch (error) {
      this.#domainIds.give(id);
      throw error;
    }
  }

  attach(device: Requester, domain: Domain, pasid?: number): void {
    const endpoint = this.#endpointOf(device);
    if (pasid !== undefined)
      throw new LinuxError("EINVAL", `PASID ${pasid}: a host bridge of POWER has none`, device.name);
    const windows = this.#windowsOf(domain);
    if (!windows) throw new LinuxError("EINVAL", `${domain.name} is no domain of ${this.name}`, device.name);
    const before = endpoint.domain;
    if (before === domain) return;
    endpoint.domain = domain;
    this.#bridge.setWindows(endpoint.pe, windows);
    if (before instanceof TceDomain) before.users -= 1;
    if (domain instanceof TceDomain) domain.users += 1;
  }

  /** Everything is given back; the bridge is left off. Domains must have been freed. */
  close(): void {
    this.#bridge.close();
    this.#message.free();
  }

  /** The TVEs of the domain; undefined: it is somebody else's. */
  #windowsOf(domain: Domain): readonly bigint[] | undefined {
    if (domain.kind === "blocked") return [];
    if (domain.kind === "identity") return [IDENTITY];
    return domain instanceof TceDomain && this.#domains.has(domain) ? domain.tves : undefined;
  }

  *#having(domain: TceDomain): Generator<Endpoint> {
    for (const endpoint of this.#endpoints.values()) if (endpoint.domain === domain) yield endpoint;
  }

  /** Prepares what comes for the first time. */
  #endpointOf(requester: Requester): Endpoint {
    const known = this.#endpoints.get(requester.rid);
    if (known) return known;
    if (!this.#options.firmware.covers(requester))
      throw new LinuxError("ENODEV", `${this.name} is not in front of this device`, requester.name);
    const pe = this.#pes.take();
    if (pe < 0) throw new LinuxError("ENOSPC", `all ${PES} PEs of the bridge are in use`, this.name);
    const endpoint = { requester, pe, domain: this.blocked };
    this.#endpoints.set(requester.rid, endpoint);
    this.#bridge.setPe(requester.rid, pe);
    return endpoint;
  }

  /** The bridge told that something went wrong. */
  #serve(): void {
    for (const fault of this.#bridge.takeErrors()) {
      this.faultCount += 1;
      keepReport(this.faults, fault);
      const endpoint = this.#endpoints.get(fault.rid);
      if (!endpoint) continue;
      this.onFault?.(endpoint.requester, {
        address: fault.address,
        permissions: fault.write ? RequestPermission.write : RequestPermission.read,
        reason: REASONS.get(fault.code) ?? "unknown",
      });
    }
  }
}
