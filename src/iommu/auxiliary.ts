/**
 * Auxiliary domains: parts of a function that are used as devices of their own. Each part has a default PASID, which its
 * requests carry, and is to everybody above the driver contract a device like any other: what it is given, the function is
 * given for that PASID. So two parts of one function have page tables of their own, guests' tables included.
 *
 * All parts share the function's PASID table, so that a PASID is one part's at a time; a default PASID is the part's for ever.
 */
import { LinuxError } from "../uapi/errno.ts";
import type { Device } from "./core.ts";
import type {
  DeviceCapabilities,
  Domain,
  FixedDomain,
  HardwareInfo,
  IommuDriver,
  NestedDomain,
  NestedOptions,
  PageRequest,
  PageResponse,
  PagingDomain,
  PagingOptions,
  Requester,
  ReservedRegion,
  UnrecoverableFault,
  UserData,
} from "./driver.ts";
import { type PageRequestGroup, pageRequestsOf } from "./page-requests.ts";
import { unrecoverableFaultsOf } from "./unrecoverable-faults.ts";

/** What is known of a part. */
interface Part {
  /** Its default PASID. */
  readonly pasid: number;
  readonly revoke: (pasid: number) => void;
}

/** A PASID that a part has. */
interface Use {
  readonly part: Requester;
  /** Undefined: it is the part's default one, and blocked. */
  domain: Domain | undefined;
}

export class AuxiliaryDriver implements IommuDriver {
  readonly name: string;
  readonly sharesPasids = true;
  readonly identity: FixedDomain;
  readonly blocked: FixedDomain;
  onPageRequest: ((device: Requester, request: PageRequest) => void) | undefined;
  onPageRequestsLost: (() => void) | undefined;
  onFault: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  readonly #parent: Device;
  readonly #driver: IommuDriver;
  readonly #parts = new Map<Requester, Part>();
  /** By PASID. */
  readonly #uses = new Map<number, Use>();

  constructor(parent: Device) {
    this.#parent = parent;
    this.#driver = parent.driver;
    this.name = parent.driver.name;
    this.identity = parent.driver.identity;
    this.blocked = parent.driver.blocked;
  }

  get pasidBits(): number {
    return this.#driver.pasidBits ?? 0;
  }
  /** The function that the parts are of. */
  get parent(): Device {
    return this.#parent;
  }

  /** A part has the PASID, or it is one's default. */
  isTaken(pasid: number): boolean {
    return this.#uses.has(pasid);
  }

  /**
   * From now on this is a part with a default PASID, which nobody else has. Before the core probes it. `revoke` is called
   * before the part loses a PASID, which may be another's next: no request of it may carry that any more, nor one that was begun.
   */
  admit(part: Requester, pasid: number, revoke: (pasid: number) => void): void {
    this.#parts.set(part, { pasid, revoke });
    this.#uses.set(pasid, { part, domain: undefined });
  }

  /** The PASID of its requests that name none. Throws ENODEV for what is no part. */
  defaultOf(part: Requester): number {
    const pasid = this.#parts.get(part)?.pasid;
    if (pasid !== undefined) return pasid;
    throw new LinuxError("ENODEV", `it is no part of ${this.#parent.name}`, part.name);
  }

  /** Whether requests of the part may carry the PASID: it has been given a domain for it. */
  has(part: Requester, pasid: number): boolean {
    const use = this.#uses.get(pasid);
    return use?.part === part && use.domain !== undefined;
  }

  probe(part: Requester): DeviceCapabilities {
    this.defaultOf(part);
    return this.#parent.capabilities;
  }

  release(part: Requester): void {
    for (const [pasid, use] of [...this.#uses]) {
      if (use.part !== part) continue;
      if (use.domain) this.#give(use, pasid, this.blocked);
      this.#uses.delete(pasid);
    }
    this.#parts.delete(part);
  }

  reserved(): readonly ReservedRegion[] {
    return this.#driver.reserved(this.#parent.function);
  }

  allocatePaging(_part: Requester, options: PagingOptions = {}): PagingDomain {
    return this.#driver.allocatePaging(this.#parent.function, options);
  }

  /** Throws EOPNOTSUPP where the unit has no guests' tables, and what its driver throws. */
  allocateNested(
    part: Requester,
    parent: PagingDomain,
    data: UserData,
    options: NestedOptions,
  ): NestedDomain {
    if (!this.#driver.allocateNested)
      throw new LinuxError("EOPNOTSUPP", `${this.name} takes no tables of guests`, part.name);
    return this.#driver.allocateNested(this.#parent.function, parent, data, options);
  }

  hardwareInfo(_part: Requester | undefined, type: number): HardwareInfo | undefined {
    return this.#driver.hardwareInfo?.(this.#parent.function, type);
  }

  /** Throws EBUSY when another part has the PASID. */
  attach(part: Requester, domain: Domain, pasid?: number): void {
    const host = pasid ?? this.defaultOf(part);
    const use = this.#uses.get(host) ?? { part, domain: undefined };
    if (use.part !== part)
      throw new LinuxError(
        "EBUSY",
        `PASID ${host} is in use by ${use.part.name}, another part of ${this.#parent.name}`,
        part.name,
      );
    this.#give(use, host, domain);
    if (use.domain || host === this.defaultOf(part)) this.#uses.set(host, use);
    else this.#uses.delete(host);
  }

  respond(part: Requester, { pasid, ...response }: PageResponse): void {
    this.#driver.respond?.(this.#parent.function, { ...response, pasid: pasid ?? this.defaultOf(part) });
  }

  #give(use: Use, pasid: number, domain: Domain): void {
    const requests = pageRequestsOf(this.#driver);
    const faults = unrecoverableFaultsOf(this.#driver);
    const requester = this.#parent.function;
    const { part } = use;
    if (domain.kind === "blocked") this.#parts.get(part)?.revoke(pasid);
    this.#driver.attach(requester, domain, pasid);
    use.domain = domain.kind === "blocked" ? undefined : domain;
    if (use.domain) {
      requests.handle(requester, pasid, (group) => this.#pass(part, pasid, group));
      faults.handle(requester, pasid, ({ pasid: _, ...fault }) =>
        this.onFault?.(part, this.#isDefault(part, pasid) ? fault : { ...fault, pasid }),
      );
    } else {
      requests.unhandle(requester, pasid);
      faults.unhandle(requester, pasid);
    }
  }

  /** A part's default PASID is none to its user. */
  #isDefault(part: Requester, pasid: number): boolean {
    return this.#parts.get(part)?.pasid === pasid;
  }

  /** A group for the function is one for the part. */
  #pass(part: Requester, pasid: number, { requests, respond }: PageRequestGroup): void {
    const listener = this.onPageRequest;
    if (!listener) {
      respond("invalid");
      return;
    }
    for (const { pasid: _, ...request } of requests)
      listener(part, this.#isDefault(part, pasid) ? request : { ...request, pasid });
  }
}
