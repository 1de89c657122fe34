/**
 * What stands behind a virtio-iommu: domains of the guest, endpoints in them and mappings, each of which is a mapping of an
 * address space of the host, made by map and unmap alone. Nothing here knows the model of the host's IOMMU. Every answer is a
 * status of a request (virtio 1.3, §5.13.6), and a request that is refused has changed nothing.
 */
import { IntervalMap } from "../../base/interval-map.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import type { HostCalls } from "../host-calls.ts";
import { allocateSpace, attachSpace, freeSpace, type Space, type SpaceCalls } from "../shadow/space.ts";
import type { AddressRange } from "../shadow/table.ts";
import { RequestStatus } from "./spec.ts";

/** Addresses of an endpoint that are not the guest's to map; `kind` is a `ReservedKind`. */
export interface ReservedRange extends AddressRange {
  readonly kind: number;
}

/** A device, by its requester id the endpoint of the guest's requests. */
export interface Endpoint extends AssignedDevice {
  /** In order, and apart from each other. */
  readonly reserved: readonly ReservedRange[];
}

export type DomainCalls = SpaceCalls & Pick<HostCalls, "detach" | "map" | "unmap">;

export interface DomainsOptions {
  readonly calls: DomainCalls;
  readonly ram: GuestRam;
  readonly endpoints: readonly Endpoint[];
  /** Addresses that can be mapped. */
  readonly input: AddressRange;
  /** Bytes that every mapping is a whole multiple of. */
  readonly granule: number;
  /** Fault queue for accesses of endpoints to what is not mapped; undefined: nobody is told. */
  readonly faults: number | undefined;
  /** Endpoints can have guest physical addresses, and have them until the guest says otherwise. Default true. */
  readonly bypass?: boolean;
  /** Mappings of all domains together. */
  readonly mostMappings?: number;
  /** Told of what the host refused. */
  readonly report: (what: string, error: LinuxError) => void;
}

/** What a request to map says; `end` is the first address after it. */
export interface Mapping extends AddressRange {
  /** Guest physical. */
  readonly target: number;
  readonly readable: boolean;
  readonly writable: boolean;
}

interface Domain {
  readonly space: Space;
  readonly mappings: IntervalMap<Mapping>;
  readonly endpoints: Set<Endpoint>;
  /** Guest physical addresses; nothing can be mapped in it. */
  readonly bypass: boolean;
}

const PAGE = 4096;
const PAGES = BigInt(PAGE);
const MOST_MAPPINGS = 2 ** 16;
const { OK, UNSUPP, DEVERR, INVAL, RANGE, NOENT, NOMEM } = RequestStatus;

export class Domains {
  readonly #options: DomainsOptions;
  readonly #domains = new Map<number, Domain>();
  /** Domain of each endpoint that has one. */
  readonly #attached = new Map<Endpoint, number>();
  readonly #identity: Space | undefined;
  /** For endpoints that have nothing, where somebody can be told what they wanted. */
  readonly #nowhere: Space | undefined;
  #mapped = 0;
  #bypass: boolean;

  /**
   * Maps all of the guest's RAM once, for what passes untranslated, which is everything until the guest says otherwise; or
   * nothing, where nothing passes. Throws what the host refuses.
   */
  constructor(options: DomainsOptions) {
    const { calls, ram, faults, endpoints, bypass = true } = options;
    this.#options = options;
    this.#bypass = bypass;
    this.#identity = bypass ? allocateSpace(calls) : undefined;
    if (this.#identity) calls.map(this.#identity.ioas, { iova: 0, va: ram.va, length: ram.bytes });
    this.#nowhere = faults === undefined ? undefined : allocateSpace(calls);
    const first = this.#identity ?? this.#nowhere;
    for (const endpoint of first ? endpoints : []) this.#give(endpoint, first!);
  }

  /** Mappings of the host because of the guest's. */
  get mappings(): number {
    return this.#mapped;
  }
  get domains(): number {
    return this.#domains.size;
  }
  /** Whether endpoints without a domain reach guest physical addresses. */
  get bypass(): boolean {
    return this.#bypass;
  }

  endpoint(id: number): Endpoint | undefined {
    return this.#options.endpoints.find(({ rid }) => rid === id);
  }

  /** Whether the endpoint is in a domain. */
  isAttached(id: number): boolean {
    const endpoint = this.endpoint(id);
    return endpoint !== undefined && this.#attached.has(endpoint);
  }

  /** §5.13.4 What endpoints without a domain reach. */
  setBypass(bypass: boolean): void {
    if (bypass === this.#bypass || !this.#identity) return;
    this.#bypass = bypass;
    const alone = this.#options.endpoints.filter((endpoint) => !this.#attached.has(endpoint));
    for (const endpoint of alone) this.#leave(endpoint);
  }

  /** §5.13.6.1 The endpoint leaves the domain it has once it has the new one. */
  attach(id: number, endpointId: number, bypass: boolean): RequestStatus {
    const endpoint = this.endpoint(endpointId);
    if (!endpoint) return NOENT;
    const known = this.#domains.get(id);
    if (known && known.bypass !== bypass) return INVAL;
    if (this.#attached.get(endpoint) === id) return OK;
    if (known && endpoint.reserved.some((range) => overlaps(known, range))) return UNSUPP;
    const domain = known ?? this.#newDomain(bypass);
    if (typeof domain === "number") return domain;
    const status = this.#try("an endpoint cannot have the domain", UNSUPP, () =>
      this.#give(endpoint, domain.space),
    );
    if (status !== OK) {
      if (!known) this.#free(domain);
      return status;
    }
    const before = this.#attached.get(endpoint);
    this.#domains.set(id, domain);
    this.#attached.set(endpoint, id);
    domain.endpoints.add(endpoint);
    if (before !== undefined) this.#depart(endpoint, before);
    return OK;
  }

  /** §5.13.6.2 A domain without endpoints ceases to exist. */
  detach(id: number, endpointId: number): RequestStatus {
    const endpoint = this.endpoint(endpointId);
    if (!endpoint) return NOENT;
    if (this.#attached.get(endpoint) !== id) return INVAL;
    this.#leave(endpoint);
    this.#attached.delete(endpoint);
    this.#depart(endpoint, id);
    return OK;
  }

  /** §5.13.6.3 */
  map(id: number, mapping: Mapping): RequestStatus {
    const domain = this.#domains.get(id);
    if (!domain) return NOENT;
    if (domain.bypass) return INVAL;
    const { calls, ram, input, granule, mostMappings = MOST_MAPPINGS } = this.#options;
    const { start, end, target, readable, writable } = mapping;
    const length = end - start;
    if ([start, end, target].some((address) => address % granule !== 0)) return RANGE;
    if (start < input.start || end > input.end || target + length > ram.bytes) return RANGE;
    const reserved = [...domain.endpoints].flatMap((endpoint) => endpoint.reserved);
    if (reserved.some((range) => range.start < end && start < range.end)) return INVAL;
    if (overlaps(domain, mapping)) return INVAL;
    if (this.#mapped >= mostMappings) return NOMEM;
    const status = this.#try("a mapping is refused", RANGE, () =>
      calls.map(domain.space.ioas, { iova: start, va: ram.va + target, length, readable, writable }),
    );
    if (status !== OK) return status;
    domain.mappings.insert(start / PAGE, 0, end / PAGE - 1, PAGE - 1, mapping);
    this.#mapped += 1;
    return OK;
  }

  /** §5.13.6.4 All mappings from the first to the last address, which is included. One that would be split keeps them all. */
  unmap(id: number, first: bigint, last: bigint): RequestStatus {
    const domain = this.#domains.get(id);
    if (!domain) return NOENT;
    if (domain.bypass) return INVAL;
    const { mappings, space } = domain;
    const [from, fromOffset] = [Number(first / PAGES), Number(first % PAGES)];
    const [to, toOffset] = [Number(last / PAGES), Number(last % PAGES)];
    if (!mappings.overlaps(from, fromOffset, to, toOffset)) return OK;
    if (mappings.startPage === from && fromOffset > 0) return RANGE;
    const { startPage: lowest } = mappings;
    if (lowest < from) return RANGE;
    let [count, highest] = [0, lowest];
    do {
      highest = mappings.lastPage;
      if (highest > to || (highest === to && toOffset < PAGE - 1)) return RANGE;
      count += 1;
    } while (mappings.next() && mappings.startPage <= to);
    const status = this.#try("mappings cannot be removed", DEVERR, () =>
      this.#options.calls.unmap(space.ioas, lowest * PAGE, (highest + 1 - lowest) * PAGE),
    );
    if (status !== OK) return status;
    mappings.find(lowest, 0);
    for (let left = count; left > 0; left--) mappings.remove();
    this.#mapped -= count;
    return OK;
  }

  /** Endpoints leave their domains, and there are no domains any more. */
  reset(): void {
    const attached = [...this.#attached];
    this.#attached.clear();
    for (const [endpoint, id] of attached) {
      this.#leave(endpoint);
      this.#depart(endpoint, id);
    }
  }

  #newDomain(bypass: boolean): Domain | RequestStatus {
    const made = { mappings: new IntervalMap<Mapping>(), endpoints: new Set<Endpoint>(), bypass };
    if (bypass) return this.#identity ? { ...made, space: this.#identity } : INVAL;
    let space: Space | undefined;
    const status = this.#try("there is no room for a domain", NOMEM, () => {
      space = allocateSpace(this.#options.calls);
    });
    return space ? { ...made, space } : status;
  }

  /** The endpoint goes to where those without a domain are; what the host does not let it have there it has not. */
  #leave(endpoint: Endpoint): void {
    const space = this.#bypass ? this.#identity : this.#nowhere;
    const give = (): void => {
      if (space) this.#give(endpoint, space);
    };
    const status = this.#try("an endpoint cannot have what those without a domain have", DEVERR, give);
    if (!space || status !== OK) this.#options.calls.detach(endpoint.fd);
  }

  #give(endpoint: Endpoint, space: Space): void {
    const { calls, faults } = this.#options;
    attachSpace(calls, space, endpoint, {
      pasids: false,
      faults: space === this.#identity ? undefined : faults,
    });
  }

  /** The endpoint has something else than the domain, which goes with its last one. */
  #depart(endpoint: Endpoint, id: number): void {
    const domain = this.#domains.get(id)!;
    domain.endpoints.delete(endpoint);
    if (domain.endpoints.size > 0) return;
    this.#domains.delete(id);
    this.#mapped -= domain.mappings.size;
    this.#free(domain);
  }

  #free({ space, bypass }: Domain): void {
    if (!bypass) freeSpace(this.#options.calls, space);
  }

  /** What the host refuses is the guest's to know, with the status that says it best, or `otherwise`. */
  #try(what: string, otherwise: RequestStatus, work: () => void): RequestStatus {
    try {
      work();
      return OK;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      this.#options.report(what, error);
      return error.code === "ENOMEM" || error.code === "ENOSPC" ? NOMEM : otherwise;
    }
  }
}

const overlaps = ({ mappings }: Domain, { start, end }: AddressRange): boolean =>
  mappings.overlaps(Math.floor(start / PAGE), 0, Math.ceil(end / PAGE) - 1, PAGE - 1);
