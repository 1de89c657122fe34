/**
 * A domain of a guest's virtio-iommu driver. The device knows a domain while it has an endpoint; what is mapped meanwhile, and
 * before, is kept here and told to the device when the first endpoint comes.
 */
import { IntervalMap } from "../../base/interval-map.ts";
import type { DomainGeometry } from "../../iommu/driver.ts";
import { Protection } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { MapFlag, MapRequest, RequestType, requestBytes, UnmapRequest } from "../../viommu/virtio/spec.ts";
import type { GuestDomain } from "../iommu.ts";
import type { VirtioIommuDevice } from "./device.ts";

const PAGE = 4096;

interface Mapping {
  readonly iova: number;
  readonly pa: number;
  readonly length: number;
  readonly protection: number;
}

export class VirtioDomain implements GuestDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly apertures: DomainGeometry["apertures"];
  readonly pageSizes: bigint;
  /** It has no tables. */
  readonly root = 0;
  /** Endpoints that have it. */
  users = 0;
  readonly #device: VirtioIommuDevice;
  readonly #mappings = new IntervalMap<Mapping>();
  readonly #forget: (domain: VirtioDomain) => void;

  constructor(id: number, device: VirtioIommuDevice, forget: (domain: VirtioDomain) => void) {
    const { input_start, input_end, page_size_mask } = device.config;
    this.id = id;
    this.name = `virtio domain ${id}`;
    this.apertures = [{ start: Number(input_start), end: Number(input_end + 1n) }];
    this.pageSizes = page_size_mask;
    this.#device = device;
    this.#forget = forget;
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    const mapping = { iova, pa, length, protection };
    const [first, last] = [iova / PAGE, (iova + length) / PAGE - 1];
    if (this.#mappings.overlaps(first, 0, last, PAGE - 1))
      throw new LinuxError(
        "EEXIST",
        `0x${iova.toString(16)} + 0x${length.toString(16)} is mapped`,
        this.name,
      );
    if (this.users > 0) this.#tell(mapping);
    this.#mappings.insert(first, 0, last, PAGE - 1, mapping);
  }

  unmap(iova: number, length: number): number {
    const [first, last] = [iova / PAGE, (iova + length) / PAGE - 1];
    let bytes = 0;
    let more = this.#mappings.overlaps(first, 0, last, PAGE - 1);
    while (more && this.#mappings.startPage <= last) {
      const { startPage, lastPage, value } = this.#mappings;
      if (startPage < first || lastPage > last) {
        more = this.#mappings.next();
        continue;
      }
      if (this.users > 0) this.#take(value);
      bytes += value.length;
      more = this.#mappings.remove();
    }
    return bytes;
  }

  physical(iova: number): number {
    if (!this.#mappings.find(Math.floor(iova / PAGE), 0)) return -1;
    const { value } = this.#mappings;
    return value.pa + iova - value.iova;
  }

  /** The device has the domain from now on, and is told what is in it. */
  replay(): void {
    for (let more = this.#mappings.first(); more; more = this.#mappings.next())
      this.#tell(this.#mappings.value);
  }

  free(): void {
    if (this.users > 0)
      throw new LinuxError("EBUSY", `${this.users} devices still have it; they must leave first`, this.name);
    this.#mappings.clear();
    this.#forget(this);
  }

  #tell({ iova, pa, length, protection }: Mapping): void {
    const request = MapRequest.bytes({
      type: RequestType.MAP,
      domain: this.id,
      virt_start: BigInt(iova),
      virt_end: BigInt(iova) + BigInt(length) - 1n,
      phys_start: BigInt(pa),
      flags:
        (protection & Protection.read ? MapFlag.READ : 0) |
        (protection & Protection.write ? MapFlag.WRITE : 0),
    });
    this.#device.request("MAP", request.subarray(0, requestBytes[RequestType.MAP]));
  }

  #take({ iova, length }: Mapping): void {
    const request = UnmapRequest.bytes({
      type: RequestType.UNMAP,
      domain: this.id,
      virt_start: BigInt(iova),
      virt_end: BigInt(iova) + BigInt(length) - 1n,
    });
    this.#device.request("UNMAP", request.subarray(0, requestBytes[RequestType.UNMAP]));
  }
}
