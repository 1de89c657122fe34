/**
 * A domain of a guest's driver that has no tables but asks for each of its mappings. What is mapped while nobody has the
 * domain is kept here, and asked for when somebody comes.
 */
import { IntervalMap } from "../base/interval-map.ts";
import type { DomainGeometry } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { GuestDomain } from "./iommu.ts";

const PAGE = 4096;

export interface Mapping {
  readonly iova: number;
  readonly pa: number;
  readonly length: number;
  readonly protection: number;
}

export abstract class RequestedDomain implements GuestDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  abstract readonly apertures: DomainGeometry["apertures"];
  abstract readonly pageSizes: bigint;
  /** It has no tables. */
  readonly root = 0;
  /** Devices that have it. */
  users = 0;
  readonly #mappings = new IntervalMap<Mapping>();

  constructor(id: number, name: string) {
    this.id = id;
    this.name = name;
  }

  /** Asks for a mapping, for everybody who has the domain. */
  protected abstract tell(mapping: Mapping): void;
  /** Asks for it to go. */
  protected abstract take(mapping: Mapping): void;
  /** Nobody has the domain, and nobody will. */
  protected abstract forget(): void;

  map(iova: number, pa: number, length: number, protection: number): void {
    const mapping = { iova, pa, length, protection };
    const [first, last] = [iova / PAGE, (iova + length) / PAGE - 1];
    if (this.#mappings.overlaps(first, 0, last, PAGE - 1))
      throw new LinuxError(
        "EEXIST",
        `0x${iova.toString(16)} + 0x${length.toString(16)} is mapped`,
        this.name,
      );
    if (this.users > 0) this.tell(mapping);
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
      if (this.users > 0) this.take(value);
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

  /** Every mapping, in order. */
  each(visit: (mapping: Mapping) => void): void {
    for (let more = this.#mappings.first(); more; more = this.#mappings.next()) visit(this.#mappings.value);
  }

  free(): void {
    if (this.users > 0)
      throw new LinuxError("EBUSY", `${this.users} devices still have it; they must leave first`, this.name);
    this.#mappings.clear();
    this.forget();
  }
}
