/**
 * A guest's driver of a virtio-iommu: the contract of IOMMU drivers (`iommu/driver.ts`) by requests to the device. Endpoints
 * are functions, by their requester ids. There are no PASIDs, no nested tables and no dirty tracking.
 */
import { Ids } from "../../base/ids.ts";
import {
  type DeviceCapabilities,
  type Domain,
  type FixedDomain,
  type PagingOptions,
  type Requester,
  RequestPermission,
  type ReservedRegion,
  requirePlain,
  type UnrecoverableFault,
} from "../../iommu/driver.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  ATTACH_F_BYPASS,
  AttachRequest,
  DetachRequest,
  FaultFlag,
  FaultReason,
  PROPERTY_HEAD,
  PROPERTY_TYPE_MASK,
  ProbeRequest,
  PropertyType,
  RequestType,
  ReservedKind,
  ReservedMemory,
} from "../../viommu/virtio/spec.ts";
import type { GuestDriver } from "../iommu.ts";
import { type Fault, VirtioIommuDevice, type VirtioRegisters } from "./device.ts";
import { VirtioDomain } from "./domain.ts";

/** What an endpoint has: a domain, everything, or nothing. */
type Attached = VirtioDomain | "identity" | undefined;

interface EndpointState {
  readonly device: Requester;
  readonly reserved: readonly ReservedRegion[];
  has: Attached;
}

export class VirtioIommuDriver implements GuestDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  faultCount = 0;
  onFault: ((device: Requester, fault: UnrecoverableFault) => void) | undefined;
  readonly #device: VirtioIommuDevice;
  readonly #domains = new Set<VirtioDomain>();
  readonly #endpoints = new Map<number, EndpointState>();
  /** Numbers of domains; the first is the one that passes everything. */
  readonly #ids: Ids;
  readonly #bypassDomain: number;

  /** Finds the device and lets its endpoints reach nothing. Throws ENODEV, EINVAL when its pages are larger than the guest's. */
  constructor(name: string, registers: VirtioRegisters, memory: HostMemory) {
    this.name = name;
    this.#device = new VirtioIommuDevice(name, registers, memory, (fault) => this.#take(fault));
    const { domain_start, domain_end, page_size_mask } = this.#device.config;
    const granule = page_size_mask & -page_size_mask;
    if (granule > BigInt(FRAME_BYTES)) {
      this.#device.close();
      throw new LinuxError(
        "EINVAL",
        `the device maps pages of ${granule} bytes, and the guest's are of ${FRAME_BYTES}`,
        name,
      );
    }
    this.#bypassDomain = domain_start;
    this.#ids = new Ids(domain_start + 1, domain_end + 1);
    this.#device.setBypass(false);
  }

  get domains(): number {
    return this.#domains.size;
  }

  probe(device: Requester): DeviceCapabilities {
    const request = ProbeRequest.bytes({ type: RequestType.PROBE, endpoint: device.rid });
    const properties = this.#device.request("PROBE", request, this.#device.config.probe_size);
    this.#endpoints.set(device.rid, { device, reserved: regionsOf(properties), has: undefined });
    return { cacheCoherent: true, dirtyTracking: false, pasidBits: 0, nesting: false };
  }

  release(device: Requester): void {
    this.attach(device, this.blocked);
    this.#endpoints.delete(device.rid);
  }

  reserved(device: Requester): readonly ReservedRegion[] {
    return this.#endpointOf(device).reserved;
  }

  allocatePaging(_device: Requester, options?: PagingOptions): VirtioDomain {
    requirePlain(options, this.name);
    const id = this.#ids.take();
    if (id < 0) throw new LinuxError("ENOSPC", "all numbers of domains are in use", this.name);
    const domain = new VirtioDomain(id, this.#device, (freed) => {
      this.#ids.give(freed.id);
      this.#domains.delete(freed);
    });
    this.#domains.add(domain);
    return domain;
  }

  attach(device: Requester, domain: Domain, pasid?: number): void {
    if (pasid !== undefined) throw new LinuxError("EINVAL", "it has no PASIDs", this.name);
    const endpoint = this.#endpointOf(device);
    const wanted = this.#attachable(domain);
    if (wanted === endpoint.has) return;
    const before = endpoint.has;
    if (wanted === undefined) this.#detach(endpoint, before);
    else this.#enter(endpoint, wanted);
    endpoint.has = wanted;
    if (before instanceof VirtioDomain) before.users -= 1;
  }

  /** Endpoints reach everything again, as before the driver came; domains must be free. */
  close(): void {
    for (const { device } of [...this.#endpoints.values()]) this.release(device);
    this.#device.setBypass(true);
    this.#device.close();
  }

  #endpointOf({ rid, name }: Requester): EndpointState {
    const endpoint = this.#endpoints.get(rid);
    if (endpoint) return endpoint;
    throw new LinuxError("ENODEV", `${name} is no endpoint that was probed`, this.name);
  }

  #attachable(domain: Domain): Attached {
    if (domain instanceof VirtioDomain && this.#domains.has(domain)) return domain;
    if (domain === this.identity) {
      if (!this.#device.passes)
        throw new LinuxError(
          "EINVAL",
          "nothing passes untranslated: the device has no BYPASS_CONFIG",
          this.name,
        );
      return "identity";
    }
    if (domain === this.blocked) return undefined;
    throw new LinuxError("EINVAL", `${domain.name} is not a domain of this unit`, this.name);
  }

  /** Where the new domain's content cannot be had, the endpoint has what it had. */
  #enter(endpoint: EndpointState, wanted: VirtioDomain | "identity"): void {
    this.#ask(endpoint, wanted);
    if (wanted === "identity") return;
    try {
      if (wanted.users === 0) wanted.replay();
    } catch (error) {
      const { has } = endpoint;
      if (has === undefined) this.#detach(endpoint, wanted);
      else this.#ask(endpoint, has);
      if (has instanceof VirtioDomain && has.users === 1) has.replay();
      throw error;
    }
    wanted.users += 1;
  }

  #ask({ device }: EndpointState, wanted: VirtioDomain | "identity"): void {
    const bypass = wanted === "identity";
    const request = AttachRequest.bytes({
      type: RequestType.ATTACH,
      domain: bypass ? this.#bypassDomain : wanted.id,
      endpoint: device.rid,
      flags: bypass ? ATTACH_F_BYPASS : 0,
    });
    this.#device.request("ATTACH", request);
  }

  #detach({ device }: EndpointState, before: Attached): void {
    if (before === undefined) return;
    const request = DetachRequest.bytes({
      type: RequestType.DETACH,
      domain: before === "identity" ? this.#bypassDomain : before.id,
      endpoint: device.rid,
    });
    this.#device.request("DETACH", request);
  }

  #take({ reason, flags, endpoint, address }: Fault): void {
    this.faultCount += 1;
    const known = this.#endpoints.get(endpoint);
    if (!known) return;
    this.onFault?.(known.device, {
      ...(flags & FaultFlag.ADDRESS && { address }),
      permissions:
        (flags & FaultFlag.READ ? RequestPermission.read : 0) |
        (flags & FaultFlag.WRITE ? RequestPermission.write : 0),
      reason: reason === FaultReason.MAPPING ? "entry" : "unknown",
    });
  }
}

/** The reserved regions among an endpoint's properties. */
const regionsOf = (properties: Uint8Array): ReservedRegion[] => {
  const regions: ReservedRegion[] = [];
  const view = new DataView(properties.buffer, properties.byteOffset, properties.length);
  for (let at = 0; at + PROPERTY_HEAD <= properties.length; ) {
    const type = view.getUint16(at, true);
    const length = view.getUint16(at + 2, true);
    if ((type & PROPERTY_TYPE_MASK) === PropertyType.NONE) break;
    // §5.13.6.5.1 A property of a type that is not known, or with reserved bits, is passed over.
    if (type === PropertyType.RESV_MEM && at + ReservedMemory.size <= properties.length) {
      const { subtype, start, end } = ReservedMemory.read(properties, at);
      const kind = subtype === ReservedKind.MSI ? "msi" : "reserved";
      regions.push({ start: Number(start), length: Number(end + 1n - start), kind });
    }
    at += PROPERTY_HEAD + length;
  }
  return regions;
};
