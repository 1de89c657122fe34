/**
 * A POWER guest's driver of its functions' windows: the contract of IOMMU drivers (`iommu/driver.ts`) by calls of the
 * hypervisor. A domain is what the windows of its functions say while they have it; a function that has none has empty
 * windows. Nothing passes untranslated. There are no PASIDs, no nested tables and no dirty tracking.
 */
import { Ids } from "../../base/ids.ts";
import {
  type Aperture,
  type DeviceCapabilities,
  type Domain,
  type FixedDomain,
  type PagingOptions,
  Protection,
  type Requester,
  type ReservedRegion,
  requirePlain,
} from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  BUID,
  type GuestWindow,
  Hcall,
  HcallStatus,
  LIST_TCES,
  Rtas,
  RtasStatus,
  statusName,
  Tce,
} from "../../viommu/tce/spec.ts";
import type { GuestDriver, GuestHypervisor } from "../iommu.ts";
import { type Mapping, RequestedDomain } from "../requested-domain.ts";

const WORD = 2 ** 32;
const RID_SHIFT = 8;

interface Endpoint {
  readonly windows: GuestWindow[];
  has: TceGuestDomain | undefined;
}

export class TceGuestDomain extends RequestedDomain {
  readonly #driver: TceGuestDriver;
  readonly #endpoint: Endpoint;

  /** Its addresses are those of the windows of the function that it is made for. */
  constructor(id: number, driver: TceGuestDriver, endpoint: Endpoint) {
    super(id, `window domain ${id}`);
    this.#driver = driver;
    this.#endpoint = endpoint;
  }

  get apertures(): readonly Aperture[] {
    return this.#endpoint.windows.map(({ start, length, pageLg2 }) => ({
      start,
      end: start + length,
      pageSizes: 1n << BigInt(pageLg2),
    }));
  }
  get pageSizes(): bigint {
    return this.#endpoint.windows.reduce((sizes, { pageLg2 }) => sizes | (1n << BigInt(pageLg2)), 0n);
  }

  protected override tell(mapping: Mapping): void {
    const done: Endpoint[] = [];
    try {
      for (const endpoint of this.#driver.having(this)) {
        this.#driver.put(endpoint, mapping);
        done.push(endpoint);
      }
    } catch (error) {
      for (const endpoint of done) this.#driver.stuff(endpoint, mapping);
      throw error;
    }
  }
  protected override take(mapping: Mapping): void {
    for (const endpoint of this.#driver.having(this)) this.#driver.stuff(endpoint, mapping);
  }
  protected override forget(): void {
    this.#driver.forget(this);
  }
}

export class TceGuestDriver implements GuestDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  /** Nobody tells a guest of them. */
  readonly faultCount = 0;
  readonly #hypervisor: GuestHypervisor;
  readonly #memory: HostMemory;
  /** The page for lists of TCEs. */
  readonly #list: number;
  readonly #ids = new Ids(1);
  readonly #domains = new Set<TceGuestDomain>();
  readonly #endpoints = new Map<number, Endpoint>();

  /** Throws ENOMEM. */
  constructor(name: string, hypervisor: GuestHypervisor, memory: HostMemory) {
    this.name = name;
    this.#hypervisor = hypervisor;
    this.#memory = memory;
    this.#list = memory.allocate(1);
    if (this.#list < 0) throw new LinuxError("ENOMEM", "there is no page for lists of TCEs", name);
  }

  get domains(): number {
    return this.#domains.size;
  }

  probe(device: Requester): DeviceCapabilities {
    if (!this.#endpoints.has(device.rid)) {
      const windows = [...this.#hypervisor.windowsOf(device.rid)];
      if (windows.length === 0)
        throw new LinuxError("ENODEV", "the device tree has no window for it", device.name);
      this.#endpoints.set(device.rid, { windows, has: undefined });
    }
    return { cacheCoherent: true, dirtyTracking: false, pasidBits: 0, nesting: false };
  }

  release(device: Requester): void {
    if (!this.#endpoints.has(device.rid)) return;
    this.attach(device, this.blocked);
    this.#endpoints.delete(device.rid);
  }

  reserved(): readonly ReservedRegion[] {
    return [];
  }

  allocatePaging(device: Requester, options?: PagingOptions): TceGuestDomain {
    requirePlain(options, this.name);
    const domain = new TceGuestDomain(this.#ids.take(), this, this.#endpointOf(device));
    this.#domains.add(domain);
    return domain;
  }

  attach(device: Requester, domain: Domain, pasid?: number): void {
    const endpoint = this.#endpointOf(device);
    if (pasid !== undefined) throw new LinuxError("EINVAL", "it has no PASIDs", this.name);
    const known = domain instanceof TceGuestDomain && this.#domains.has(domain);
    if (!known && domain !== this.blocked)
      throw new LinuxError("EINVAL", `${domain.name} is no domain of windows of this guest`, device.name);
    const wanted = known ? domain : undefined;
    const before = endpoint.has;
    if (wanted === before) return;
    before?.each((mapping) => this.stuff(endpoint, mapping));
    const done: Mapping[] = [];
    try {
      wanted?.each((mapping) => {
        this.put(endpoint, mapping);
        done.push(mapping);
      });
    } catch (error) {
      for (const mapping of done) this.stuff(endpoint, mapping);
      before?.each((mapping) => this.put(endpoint, mapping));
      throw error;
    }
    endpoint.has = wanted;
    if (before) before.users -= 1;
    if (wanted) wanted.users += 1;
  }

  /** Another window for the function, of 2^lengthLg2 bytes (dynamic DMA windows). Throws ENOSPC when the hypervisor has none. */
  createWindow(device: Requester, pageLg2: number, lengthLg2: number): GuestWindow {
    const endpoint = this.#endpointOf(device);
    const place = [device.rid << RID_SHIFT, BUID.high, BUID.low] as const;
    const [status, liobn = 0, high = 0, low = 0] = this.#hypervisor.rtas(
      Rtas.create,
      ...place,
      pageLg2,
      lengthLg2,
    );
    if (status !== RtasStatus.success)
      throw new LinuxError("ENOSPC", `${Rtas.create} answers ${status}`, device.name);
    const window = { liobn, start: high * WORD + low, length: 2 ** lengthLg2, pageLg2 };
    endpoint.windows.push(window);
    return window;
  }

  /** What it maps goes with it. Throws EINVAL: it is not one that was made. */
  removeWindow(device: Requester, { liobn }: GuestWindow): void {
    const endpoint = this.#endpointOf(device);
    const [status] = this.#hypervisor.rtas(Rtas.remove, liobn);
    if (status !== RtasStatus.success)
      throw new LinuxError("EINVAL", `${Rtas.remove} answers ${status}`, device.name);
    endpoint.windows.splice(
      endpoint.windows.findIndex((window) => window.liobn === liobn),
      1,
    );
  }

  /** Functions are left with empty windows; domains must be free. */
  close(): void {
    for (const { has } of this.#endpoints.values())
      if (has) throw new LinuxError("EBUSY", "functions have domains still", this.name);
    this.#memory.free(this.#list, 1);
  }

  // What its domains ask

  *having(domain: TceGuestDomain): Generator<Endpoint> {
    for (const endpoint of this.#endpoints.values()) if (endpoint.has === domain) yield endpoint;
  }

  forget(domain: TceGuestDomain): void {
    this.#domains.delete(domain);
    this.#ids.give(domain.id);
  }

  /** Puts the TCEs of a mapping: one by itself, more by lists. Throws what the hypervisor answers; then none is left. */
  put({ windows }: Endpoint, mapping: Mapping): void {
    const { iova, pa, length, protection } = mapping;
    const window = windowOf(windows, mapping, this.name);
    const page = 2 ** window.pageLg2;
    const bits =
      (protection & Protection.read ? Tce.read : 0n) | (protection & Protection.write ? Tce.write : 0n);
    if (bits === 0n || (iova - window.start) % page !== 0 || length % page !== 0 || pa % page !== 0)
      throw new LinuxError(
        "EINVAL",
        `0x${iova.toString(16)} + 0x${length.toString(16)} at 0x${pa.toString(16)}: the window has pages of ${page} bytes`,
        this.name,
      );
    const count = length / page;
    try {
      for (let first = 0; first < count; first += LIST_TCES)
        this.#putRun(
          window,
          iova + first * page,
          pa + first * page,
          Math.min(LIST_TCES, count - first),
          bits,
        );
    } catch (error) {
      this.#call(Hcall.STUFF_TCE, window, iova, 0n, BigInt(count));
      throw error;
    }
  }

  /** Empties the TCEs of a mapping; of a window that is gone there is nothing to empty. */
  stuff({ windows }: Endpoint, { iova, length }: Mapping): void {
    const window = windows.find(({ start, length: bytes }) => iova >= start && iova < start + bytes);
    if (window) this.#call(Hcall.STUFF_TCE, window, iova, 0n, BigInt(length / 2 ** window.pageLg2));
  }

  #putRun(window: GuestWindow, iova: number, pa: number, count: number, bits: bigint): void {
    if (count === 1) {
      this.#call(Hcall.PUT_TCE, window, iova, BigInt(pa) | bits);
      return;
    }
    for (let index = 0; index < count; index++) {
      const tce = BigInt(pa + index * 2 ** window.pageLg2) | bits;
      this.#memory.store64be(this.#list + 8 * index, Number(tce & 0xffff_ffffn), Number(tce >> 32n));
    }
    this.#call(Hcall.PUT_TCE_INDIRECT, window, iova, BigInt(this.#list), BigInt(count));
  }

  #call(number: number, { liobn }: GuestWindow, iova: number, third: bigint, count = 0n): void {
    const { status } = this.#hypervisor.hypercall(number, BigInt(liobn), BigInt(iova), third, count);
    if (status === HcallStatus.H_SUCCESS) return;
    const code = status === HcallStatus.H_RESOURCE ? "ENOSPC" : "EINVAL";
    throw new LinuxError(
      code,
      `hypervisor call 0x${number.toString(16)} answers ${statusName(status)}`,
      this.name,
    );
  }

  #endpointOf({ rid, name }: Requester): Endpoint {
    const endpoint = this.#endpoints.get(rid);
    if (endpoint) return endpoint;
    throw new LinuxError("ENODEV", `${name} is no function that was probed`, this.name);
  }
}

const windowOf = (windows: readonly GuestWindow[], { iova, length }: Mapping, name: string): GuestWindow => {
  const found = windows.find(({ start, length: bytes }) => iova >= start && iova + length <= start + bytes);
  if (found) return found;
  throw new LinuxError(
    "EFAULT",
    `0x${iova.toString(16)} + 0x${length.toString(16)} is in none of the windows of the function`,
    name,
  );
};
