/**
 * A domain of a guest's virtio-iommu driver. The device knows a domain while it has an endpoint; what is mapped meanwhile, and
 * before, is kept here and told to the device when the first endpoint comes.
 */
import type { DomainGeometry } from "../../iommu/driver.ts";
import { Protection } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { MapFlag, MapRequest, RequestType, requestBytes, UnmapRequest } from "../../viommu/virtio/spec.ts";
import type { GuestDomain } from "../iommu.ts";
import type { VirtioIommuDevice } from "./device.ts";

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
  readonly #mappings = new Map<number, Mapping>();
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
    if (this.#overlapping(iova, length).length > 0)
      throw new LinuxError(
        "EEXIST",
        `0x${iova.toString(16)} + 0x${length.toString(16)} is mapped`,
        this.name,
      );
    if (this.users > 0) this.#tell(mapping);
    this.#mappings.set(iova, mapping);
  }

  unmap(iova: number, length: number): number {
    const whole = this.#overlapping(iova, length).filter(
      (one) => one.iova >= iova && one.iova + one.length <= iova + length,
    );
    for (const one of whole) {
      if (this.users > 0) this.#take(one);
      this.#mappings.delete(one.iova);
    }
    return whole.reduce((sum, one) => sum + one.length, 0);
  }

  physical(iova: number): number {
    const [found] = this.#overlapping(iova, 1);
    return found ? found.pa + iova - found.iova : -1;
  }

  /** The device has the domain from now on, and is told what is in it. */
  replay(): void {
    for (const mapping of this.#mappings.values()) this.#tell(mapping);
  }

  free(): void {
    if (this.users > 0)
      throw new LinuxError("EBUSY", `${this.users} devices still have it; they must leave first`, this.name);
    this.#mappings.clear();
    this.#forget(this);
  }

  #overlapping(iova: number, length: number): Mapping[] {
    return [...this.#mappings.values()].filter(
      (one) => one.iova < iova + length && iova < one.iova + one.length,
    );
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
