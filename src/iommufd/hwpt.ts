/**
 * Hardware page tables. A paging HWPT is a domain that has the content of an IOAS; a nested one is a guest's table
 * over a paging one. Both are what devices are attached to. One that an attach made by itself goes with its last
 * device.
 */
import type { Domain, PagingDomain } from "../iommu/driver.ts";
import type { IommufdContext } from "./context.ts";
import type { Ioas } from "./ioas.ts";
import { IommufdObject } from "./objects.ts";

/** What devices can be attached to. */
export abstract class Hwpt extends IommufdObject {
  readonly context: IommufdContext;
  abstract readonly domain: Domain;

  constructor(context: IommufdContext) {
    super();
    this.context = context;
  }
  /** The IOAS behind it, whose reserved ranges follow the devices. */
  abstract get ioas(): Ioas;
}

export interface PagingOptions {
  /** Made by an attach: other devices of the IOAS share it, and it goes with the last one. */
  readonly automatic: boolean;
  readonly nestParent?: boolean;
  readonly dirtyTracking?: boolean;
  readonly pasid?: boolean;
}

export class HwptPaging extends Hwpt {
  readonly type = "hwpt-paging";
  readonly ioas: Ioas;
  readonly domain: PagingDomain;
  readonly options: PagingOptions;

  /** Takes the domain, fills it with what the IOAS maps. Throws what `attachDomain` throws; the domain is the caller's then. */
  constructor(context: IommufdContext, ioas: Ioas, domain: PagingDomain, options: PagingOptions) {
    super(context);
    this.ioas = ioas;
    this.domain = domain;
    this.options = options;
    ioas.pagetable.attachDomain(domain);
    ioas.hwpts.add(this);
    ioas.users += 1;
  }

  destroy(): void {
    this.ioas.pagetable.detachDomain(this.domain);
    this.ioas.hwpts.delete(this);
    this.ioas.users -= 1;
    this.domain.free();
  }
}
