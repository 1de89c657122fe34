/**
 * A domain of a guest's virtio-iommu driver. The device knows a domain while it has an endpoint; what is mapped meanwhile, and
 * before, is kept here and told to the device when the first endpoint comes.
 */
import type { DomainGeometry } from "../../iommu/driver.ts";
import { Protection } from "../../iommu/driver.ts";
import { MapFlag, MapRequest, RequestType, requestBytes, UnmapRequest } from "../../viommu/virtio/spec.ts";
import { type Mapping, RequestedDomain } from "../requested-domain.ts";
import type { VirtioIommuDevice } from "./device.ts";

export class VirtioDomain extends RequestedDomain {
  readonly apertures: DomainGeometry["apertures"];
  readonly pageSizes: bigint;
  readonly #device: VirtioIommuDevice;
  readonly #forget: (domain: VirtioDomain) => void;

  constructor(id: number, device: VirtioIommuDevice, forget: (domain: VirtioDomain) => void) {
    super(id, `virtio domain ${id}`);
    const { input_start, input_end, page_size_mask } = device.config;
    this.apertures = [{ start: Number(input_start), end: Number(input_end + 1n) }];
    this.pageSizes = page_size_mask;
    this.#device = device;
    this.#forget = forget;
  }

  /** The device has the domain from now on, and is told what is in it. */
  replay(): void {
    this.each((mapping) => this.tell(mapping));
  }

  protected override forget(): void {
    this.#forget(this);
  }

  protected override tell({ iova, pa, length, protection }: Mapping): void {
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

  protected override take({ iova, length }: Mapping): void {
    const request = UnmapRequest.bytes({
      type: RequestType.UNMAP,
      domain: this.id,
      virt_start: BigInt(iova),
      virt_end: BigInt(iova) + BigInt(length) - 1n,
    });
    this.#device.request("UNMAP", request.subarray(0, requestBytes[RequestType.UNMAP]));
  }
}
