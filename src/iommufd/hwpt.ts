/**
 * Hardware page tables: what devices are attached to. A paging HWPT is a domain that follows the content of an IOAS; a
 * nested one is a guest's table above a paging one, or on a virtual IOMMU. One that an attach made by itself is shared
 * by later ones and goes with its last device.
 */
import type { NestedDomain, PagingDomain, PagingOptions } from "../iommu/driver.ts";
import type { IommufdContext } from "./context.ts";
import type { FaultQueue } from "./fault-queue.ts";
import type { Ioas } from "./ioas.ts";
import { IommufdObject } from "./objects.ts";

/** What devices can be attached to. `users` counts the devices, and the objects above it. */
export abstract class Hwpt extends IommufdObject {
  readonly context: IommufdContext;
  abstract readonly domain: PagingDomain | NestedDomain;
  /** Made by an attach: it goes with its last device. */
  readonly automatic: boolean = false;
  /** PASIDs of devices may be attached to it. */
  abstract readonly pasid: boolean;

  /** Where page faults under it are reported. */
  #fault: FaultQueue | undefined;

  constructor(context: IommufdContext) {
    super();
    this.context = context;
  }
  /** The IOAS at the bottom: reserved ranges of the devices are kept out of it. */
  abstract get ioas(): Ioas;

  get fault(): FaultQueue | undefined {
    return this.#fault;
  }

  /** Before any device has it: page faults go to the queue, which cannot go before it. */
  useFault(queue: FaultQueue): void {
    this.#fault = queue;
    queue.users += 1;
  }

  /** The part of `destroy` that every HWPT has. */
  protected leaveFault(): void {
    if (this.#fault) this.#fault.users -= 1;
  }
}

export interface HwptOptions extends Omit<PagingOptions, "data"> {
  /** Made by an attach. */
  readonly automatic?: boolean;
  /** Every access of its devices is coherent with the caches. */
  readonly coherent?: boolean;
}

export class HwptPaging extends Hwpt {
  readonly type = "hwpt-paging";
  readonly ioas: Ioas;
  readonly domain: PagingDomain;
  readonly nestParent: boolean;
  readonly dirtyTracking: boolean;
  readonly pasid: boolean;
  readonly coherent: boolean;
  override readonly automatic: boolean;
  /** Dirty tracking is on. */
  tracking = false;

  /**
   * Fills the domain with what the IOAS maps and keeps it. Throws what `IoPagetable.attachDomain` throws; then the
   * domain is still the caller's.
   */
  constructor(context: IommufdContext, ioas: Ioas, domain: PagingDomain, options: HwptOptions = {}) {
    super(context);
    this.ioas = ioas;
    this.domain = domain;
    this.automatic = options.automatic ?? false;
    this.coherent = options.coherent ?? false;
    this.nestParent = options.nestParent ?? false;
    this.dirtyTracking = options.dirtyTracking ?? false;
    this.pasid = options.pasid ?? false;
    ioas.pagetable.attachDomain(domain);
    ioas.hwpts.add(this);
    ioas.users += 1;
  }

  destroy(): void {
    this.leaveFault();
    this.ioas.pagetable.detachDomain(this.domain);
    this.ioas.hwpts.delete(this);
    this.ioas.users -= 1;
    this.domain.free();
  }
}

export class HwptNested extends Hwpt {
  readonly type = "hwpt-nested";
  readonly domain: NestedDomain;
  readonly parent: HwptPaging;
  readonly pasid: boolean;
  /** What else it needs while it exists: a virtual IOMMU. */
  readonly above: IommufdObject;

  /** `above` is the parent itself, or the virtual IOMMU it was made on. */
  constructor(
    context: IommufdContext,
    parent: HwptPaging,
    domain: NestedDomain,
    options: {
      readonly above?: IommufdObject;
      readonly pasid?: boolean;
    } = {},
  ) {
    super(context);
    this.parent = parent;
    this.domain = domain;
    this.pasid = options.pasid ?? false;
    this.above = options.above ?? parent;
    this.above.users += 1;
  }

  get ioas(): Ioas {
    return this.parent.ioas;
  }

  destroy(): void {
    this.leaveFault();
    this.domain.free();
    this.above.users -= 1;
  }
}
