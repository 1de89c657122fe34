/**
 * A guest's tables above a nest parent (extension `s390-nesting`): SOFTIOMMU_HWPT_DATA_S390_IOTA names the guest's anchor, and
 * SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH what the guest refreshes. Functions walk the product (`shadow-table.ts`).
 */
import { decodeAnchor } from "../../hardware/zpci/parameters.ts";
import { Iota } from "../../hardware/zpci/spec.ts";
import type { InvalidationOutcome, NestedDomain, UserArray, UserData } from "../../iommu/driver.ts";
import { inputBits } from "../../pagetable/format.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  SOFTIOMMU_HWPT_DATA_S390_IOTA,
  SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH,
  SoftiommuHwptS390Iota,
  SoftiommuHwptS390Refresh,
} from "../../uapi/vendor/extensions.ts";
import type { ZpciDevice } from "./device.ts";
import type { Derived, ZpciDomain } from "./domain.ts";
import { ShadowTable } from "./shadow-table.ts";

const PAGE = 4096n;

export class ZpciNestedDomain implements NestedDomain, Derived {
  readonly kind = "nested";
  readonly name: string;
  readonly parent: ZpciDomain;
  /** Functions that have it. */
  readonly devices = new Set<ZpciDevice>();
  readonly product: ShadowTable;
  /** As the guest registered it. */
  readonly #guestIota: bigint;
  /** Addresses end here. */
  readonly #end: number;

  /**
   * Throws EOPNOTSUPP for another kind of data, EINVAL for an anchor that cannot be, EFAULT when the guest's tables name what
   * the parent does not map, ENOSPC, ENOMEM.
   */
  constructor(parent: ZpciDomain, data: UserData) {
    this.parent = parent;
    this.name = `nested above ${parent.name}`;
    if (data.type !== SOFTIOMMU_HWPT_DATA_S390_IOTA)
      throw new LinuxError(
        "EOPNOTSUPP",
        `data of type 0x${data.type.toString(16)}: s390 takes 0x${SOFTIOMMU_HWPT_DATA_S390_IOTA.toString(16)} (S390_IOTA)`,
        this.name,
      );
    const { iota, __reserved } = SoftiommuHwptS390Iota.read(data.read(SoftiommuHwptS390Iota.size));
    if (__reserved !== 0n) throw new LinuxError("EOPNOTSUPP", "__reserved must be 0", this.name);
    const anchor = decodeAnchor(iota);
    if (typeof anchor === "string")
      throw new LinuxError("EINVAL", `anchor 0x${iota.toString(16)}: ${anchor}`, this.name);
    if (!anchor.stage)
      throw new LinuxError(
        "EINVAL",
        `anchor 0x${iota.toString(16)} translates nothing (T = 0): attach the nest parent itself`,
        this.name,
      );
    this.#guestIota = iota;
    this.#end = 2 ** inputBits(anchor.stage.format);
    this.product = new ShadowTable(parent, anchor.stage, anchor.origin);
    try {
      const refusal = this.product.synchronize(0, this.#end);
      if (refusal !== undefined) throw new LinuxError("EFAULT", refusal, this.name);
    } catch (error) {
      this.product.free();
      throw error;
    }
    parent.nested.add(this);
  }

  /** I/O table anchor of the product. */
  get iota(): bigint {
    const { DT } = Iota.fields;
    return Iota.make({ ORIGIN: this.product.root, T: true, DT: DT.of(this.#guestIota) });
  }

  /**
   * What the guest refreshes; one whose entries could not all be taken is the first that is not done. What is looked at for
   * all of them together has its bound (ENOSPC): the rest can be asked for again.
   */
  invalidate(requests: UserArray): InvalidationOutcome {
    if (requests.type !== SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH)
      return {
        done: 0,
        error: new LinuxError(
          "EINVAL",
          `data_type 0x${requests.type.toString(16)}: s390 takes 0x${SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH.toString(16)} (S390_REFRESH)`,
          this.name,
        ),
      };
    this.product.begin();
    for (let index = 0; index < requests.count; index += 1)
      try {
        this.#refresh(requests, index);
      } catch (error) {
        return { done: index, error };
      }
    return { done: requests.count };
  }

  parentGone(iova: number, length: number): void {
    this.product.revoke(iova, iova + length);
    this.#settle();
  }

  free(): void {
    if (this.devices.size > 0)
      throw new LinuxError("EBUSY", "devices still have it; they must be detached first", this.name);
    this.parent.nested.delete(this);
    this.product.free();
  }

  #refresh(requests: UserArray, index: number): void {
    const { size } = SoftiommuHwptS390Refresh;
    const { iova, length, __reserved } = SoftiommuHwptS390Refresh.read(requests.read(index, size));
    if (__reserved !== 0n)
      throw new LinuxError("EOPNOTSUPP", `entry ${index}: __reserved must be 0`, this.name);
    const whole = iova % PAGE === 0n && length % PAGE === 0n && length > 0n;
    if (!whole || iova + length > BigInt(this.#end))
      throw new LinuxError(
        "EINVAL",
        `entry ${index}: 0x${iova.toString(16)} + 0x${length.toString(16)} are not pages below 0x${this.#end.toString(16)}`,
        this.name,
      );
    const [start, end] = [Number(iova), Number(iova + length)];
    let refusal: string | undefined;
    try {
      refusal = this.product.synchronize(start, end);
    } finally {
      this.#settle();
    }
    for (const device of this.devices) device.learn(start, end);
    if (refusal !== undefined) throw new LinuxError("EFAULT", `entry ${index}: ${refusal}`, this.name);
  }

  #settle(): void {
    this.product.settle((start, end) => {
      for (const device of this.devices) device.forget(start, end);
    });
  }
}
