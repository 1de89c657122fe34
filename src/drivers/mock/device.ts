/** A mock device: nothing but a name, what it can do, and four cache slots that a vIOMMU's invalidations set to zero. */
import type { Requester } from "../../iommu/driver.ts";
import { IOMMU_TEST_DEV_CACHE_DEFAULT, MOCK_DEV_CACHE_NUM } from "../../uapi/vendor/mock.ts";

export class MockDevice implements Requester {
  readonly name: string;
  readonly rid: number;
  /** It cannot track dirty pages. */
  readonly noDirty: boolean;
  readonly hasPasids: boolean;
  readonly cache: number[] = new Array<number>(MOCK_DEV_CACHE_NUM).fill(IOMMU_TEST_DEV_CACHE_DEFAULT);

  constructor(rid: number, options: { readonly noDirty?: boolean; readonly hasPasids?: boolean } = {}) {
    this.rid = rid;
    this.name = `iommufd_mock${rid}`;
    this.noDirty = options.noDirty ?? false;
    this.hasPasids = options.hasPasids ?? false;
  }
}
