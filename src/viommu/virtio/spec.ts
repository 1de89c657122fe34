/**
 * The virtio-iommu device (OASIS virtio 1.3, §5.13): features, configuration, requests and their statuses, properties and
 * fault reports. Numbers and layouts, nothing that acts. Requests are in two parts, what the device reads and what it writes:
 * the structures here are the part that it reads, of `requestBytes`, and the tail is what it writes.
 */
import { array, struct, u8, u16, u32, u64 } from "../../uapi/struct.ts";

/** §5.13.1 */
export const DEVICE_ID = 23;
/** §5.13.2 */
export const Queue = { requests: 0, events: 1 } as const;

/** §5.13.3 */
export const Feature = {
  INPUT_RANGE: 1n << 0n,
  DOMAIN_RANGE: 1n << 1n,
  MAP_UNMAP: 1n << 2n,
  PROBE: 1n << 4n,
  BYPASS_CONFIG: 1n << 6n,
} as const;

/** §5.13.4 */
export const Config = struct("virtio_iommu_config", {
  page_size_mask: u64,
  /** Both included. */
  input_start: u64,
  input_end: u64,
  domain_start: u32,
  domain_end: u32,
  probe_size: u32,
  bypass: u8,
  reserved: array(u8, 3),
});

/** §5.13.6 */
export const RequestType = { ATTACH: 1, DETACH: 2, MAP: 3, UNMAP: 4, PROBE: 5 } as const;
export const RequestStatus = {
  OK: 0,
  IOERR: 1,
  UNSUPP: 2,
  DEVERR: 3,
  INVAL: 4,
  RANGE: 5,
  NOENT: 6,
  FAULT: 7,
  NOMEM: 8,
} as const;
export type RequestStatus = (typeof RequestStatus)[keyof typeof RequestStatus];

const head = { type: u8, head_reserved: array(u8, 3) };
export const RequestTail = struct("virtio_iommu_req_tail", { status: u8, reserved: array(u8, 3) });

/** §5.13.6.1 */
export const AttachRequest = struct("virtio_iommu_req_attach", {
  ...head,
  domain: u32,
  endpoint: u32,
  flags: u32,
  reserved: u32,
});
export const ATTACH_F_BYPASS = 1 << 0;

/** §5.13.6.2 */
export const DetachRequest = struct("virtio_iommu_req_detach", {
  ...head,
  domain: u32,
  endpoint: u32,
  reserved: array(u32, 2),
});

/** §5.13.6.3 `virt_end` is the last address. */
export const MapRequest = struct("virtio_iommu_req_map", {
  ...head,
  domain: u32,
  virt_start: u64,
  virt_end: u64,
  phys_start: u64,
  flags: u32,
});
export const MapFlag = { READ: 1, WRITE: 2 } as const;

/** §5.13.6.4 */
export const UnmapRequest = struct("virtio_iommu_req_unmap", {
  ...head,
  domain: u32,
  virt_start: u64,
  virt_end: u64,
  reserved: u32,
});

/** §5.13.6.5 */
export const ProbeRequest = struct("virtio_iommu_req_probe", {
  ...head,
  endpoint: u32,
  reserved: array(u8, 64),
});

/** Bytes of each request that the device reads: its structure without what C would add at the end. */
export const requestBytes: { readonly [type: number]: number } = {
  [RequestType.ATTACH]: AttachRequest.size,
  [RequestType.DETACH]: DetachRequest.size,
  [RequestType.MAP]: MapRequest.fieldEnd("flags"),
  [RequestType.UNMAP]: UnmapRequest.fieldEnd("reserved"),
  [RequestType.PROBE]: ProbeRequest.size,
};

/** §5.13.6.6 A property and, when it is RESV_MEM, its value; `length` is without the first two members. */
export const ReservedMemory = struct("virtio_iommu_probe_resv_mem", {
  type: u16,
  length: u16,
  subtype: u8,
  reserved: array(u8, 3),
  start: u64,
  /** Included. */
  end: u64,
});
export const PROPERTY_HEAD = ReservedMemory.fieldEnd("length");
export const PropertyType = { NONE: 0, RESV_MEM: 1 } as const;
/** The other bits of `type` are reserved. */
export const PROPERTY_TYPE_MASK = 0xfff;
export const ReservedKind = { RESERVED: 0, MSI: 1 } as const;

/** §5.13.6.7 */
export const FaultReport = struct("virtio_iommu_fault", {
  reason: u8,
  reserved: array(u8, 3),
  flags: u32,
  endpoint: u32,
  reserved1: u32,
  address: u64,
});
export const FaultReason = { UNKNOWN: 0, DOMAIN: 1, MAPPING: 2 } as const;
export const FaultFlag = { READ: 1, WRITE: 2, ADDRESS: 1 << 8 } as const;
