/**
 * Requests of a virtio-iommu's driver (virtio 1.3, §5.13.6) as they lie in a buffer of the request queue: what is not one is
 * given back unwritten, what is gets a status, and a PROBE the properties of its endpoint.
 */
import type { Domains, Endpoint } from "./domains.ts";
import {
  ATTACH_F_BYPASS,
  AttachRequest,
  DetachRequest,
  Feature,
  MapFlag,
  MapRequest,
  PROPERTY_HEAD,
  ProbeRequest,
  PropertyType,
  RequestStatus,
  RequestTail,
  RequestType,
  ReservedMemory,
  requestBytes,
  UnmapRequest,
} from "./spec.ts";
import type { Chain } from "./split-queue.ts";

export interface RequestContext {
  readonly domains: Domains;
  /** Features that the driver has accepted. */
  readonly accepted: bigint;
  /** Domains have numbers up to this. */
  readonly lastDomain: number;
  readonly probeBytes: number;
}

const { OK, INVAL, RANGE, NOENT } = RequestStatus;
const LONGEST = Math.max(...Object.values(requestBytes));
const KNOWN_MAP_FLAGS = MapFlag.READ | MapFlag.WRITE;

/** Carries the request in the buffer out; how many bytes were written. Throws MalformedQueue. */
export const carryOut = (chain: Chain, context: RequestContext): number => {
  const bytes = chain.read(LONGEST);
  const type = bytes[0] ?? 0;
  const expected = requestBytes[type];
  if (expected === undefined || bytes.length < expected || !isNegotiated(type, context.accepted)) return 0;
  if (chain.room < RequestTail.size) return 0;
  if (type === RequestType.PROBE) return probe(chain, bytes, context);
  const written = RequestTail.bytes({ status: statusOf(type, bytes, context) });
  chain.write(written);
  return written.length;
};

const isNegotiated = (type: number, accepted: bigint): boolean => {
  if (type === RequestType.MAP || type === RequestType.UNMAP) return (accepted & Feature.MAP_UNMAP) !== 0n;
  return type !== RequestType.PROBE || (accepted & Feature.PROBE) !== 0n;
};

const statusOf = (type: number, bytes: Uint8Array, context: RequestContext): RequestStatus => {
  switch (type) {
    case RequestType.ATTACH:
      return attach(bytes, context);
    case RequestType.DETACH: {
      const { domain, endpoint } = DetachRequest.read(bytes);
      return context.domains.detach(domain, endpoint);
    }
    case RequestType.MAP:
      return map(bytes, context);
    default:
      return unmap(bytes, context);
  }
};

const attach = (bytes: Uint8Array, { domains, accepted, lastDomain }: RequestContext): RequestStatus => {
  const { domain, endpoint, flags, reserved } = AttachRequest.read(bytes);
  const known = accepted & Feature.BYPASS_CONFIG ? ATTACH_F_BYPASS : 0;
  if (reserved !== 0 || (flags & ~known) !== 0) return INVAL;
  if (domain > lastDomain) return RANGE;
  return domains.attach(domain, endpoint, (flags & ATTACH_F_BYPASS) !== 0);
};

const map = (bytes: Uint8Array, { domains }: RequestContext): RequestStatus => {
  const { domain, virt_start, virt_end, phys_start, flags } = MapRequest.read(padded(bytes, MapRequest.size));
  if ((flags & ~KNOWN_MAP_FLAGS) !== 0 || flags === 0) return INVAL;
  if (virt_end <= virt_start || ![virt_start, virt_end + 1n, phys_start].every(isExact)) return RANGE;
  return domains.map(domain, {
    start: Number(virt_start),
    end: Number(virt_end + 1n),
    target: Number(phys_start),
    readable: (flags & MapFlag.READ) !== 0,
    writable: (flags & MapFlag.WRITE) !== 0,
  });
};

const unmap = (bytes: Uint8Array, { domains }: RequestContext): RequestStatus => {
  const { domain, virt_start, virt_end } = UnmapRequest.read(padded(bytes, UnmapRequest.size));
  return virt_end < virt_start ? INVAL : domains.unmap(domain, virt_start, virt_end);
};

/** The properties come first, then the tail. */
const probe = (chain: Chain, bytes: Uint8Array, { domains, probeBytes }: RequestContext): number => {
  const endpoint = domains.endpoint(ProbeRequest.read(bytes).endpoint);
  const properties = new Uint8Array(probeBytes);
  const fits = chain.room >= probeBytes + RequestTail.size;
  if (fits && endpoint) properties.set(propertiesOf(endpoint));
  const status = fits ? (endpoint ? OK : NOENT) : INVAL;
  const tail = RequestTail.bytes({ status });
  // The tail ends the buffer as the driver has made it.
  const at = fits ? probeBytes : Math.min(chain.room, probeBytes + RequestTail.size) - RequestTail.size;
  if (fits) chain.write(properties);
  chain.write(tail, at);
  return at + tail.length;
};

export const propertiesOf = ({ reserved }: Endpoint): Uint8Array =>
  Buffer.concat(
    reserved.map(({ start, end, kind }) =>
      ReservedMemory.bytes({
        type: PropertyType.RESV_MEM,
        length: ReservedMemory.size - PROPERTY_HEAD,
        subtype: kind,
        start: BigInt(start),
        end: BigInt(end) - 1n,
      }),
    ),
  );

const SMALLEST = 4096n;
/** Numbers here are exact where they are multiples of a page. */
const isExact = (address: bigint): boolean => address % SMALLEST === 0n;

/** With what C adds at the end of a structure. */
const padded = (bytes: Uint8Array, size: number): Uint8Array => {
  if (bytes.length >= size) return bytes;
  const whole = new Uint8Array(size);
  whole.set(bytes);
  return whole;
};
