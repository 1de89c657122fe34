/**
 * Virtual IOMMUs (linux/iommufd.h, "struct iommu_viommu_alloc"): a slice of a physical IOMMU with a nest parent, for one
 * guest. What it can do its driver says.
 */
import type { IommuDriver, VirtualIommu } from "../iommu/driver.ts";
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { IOMMU_VIOMMU_ALLOC, IOMMU_VIOMMU_TYPE_DEFAULT, IommuViommuAlloc } from "../uapi/iommufd.ts";
import { hex } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { type DeviceObject, deviceOf } from "./device.ts";
import { HwptPaging } from "./hwpt.ts";
import type { Ioas } from "./ioas.ts";
import { IommufdObject } from "./objects.ts";
import { request, requireFlags } from "./request.ts";
import type { SharedPages } from "./shared-pages.ts";
import { userData } from "./user-data.ts";

/** What listens to a vIOMMU's events of one type. */
export interface EventListener {
  event(data: Uint8Array): void;
  /** Events of the type were lost before they came here. */
  lost(): void;
}

export class Viommu extends IommufdObject {
  readonly type = "viommu";
  readonly context: IommufdContext;
  readonly driver: IommuDriver;
  readonly parent: HwptPaging;
  readonly virtual: VirtualIommu;
  /** vDEVICEs by the guest's numbers. */
  readonly devices = new Map<bigint, IommufdObject>();
  /** Event queues by type. */
  readonly listeners = new Map<number, EventListener>();
  /** Hardware queues by type and index. */
  readonly queues = new Set<string>();
  readonly #shared: readonly SharedPages[];

  constructor(
    parent: HwptPaging,
    driver: IommuDriver,
    virtual: VirtualIommu,
    shared: readonly SharedPages[],
  ) {
    super();
    this.context = parent.context;
    this.parent = parent;
    this.driver = driver;
    this.virtual = virtual;
    this.#shared = shared;
    for (const pages of shared) pages.owner = this;
    parent.users += 1;
    virtual.onEvent = (type, data) => {
      const listener = this.listeners.get(type);
      listener?.event(data);
      return listener !== undefined;
    };
    virtual.onEventsLost = (type) => this.listeners.get(type)?.lost();
  }

  get ioas(): Ioas {
    return this.parent.ioas;
  }

  destroy(): void {
    for (const pages of this.#shared) this.context.unshare(pages);
    this.virtual.free();
    this.parent.users -= 1;
  }
}

export const viommuOf = (context: IommufdContext, id: number): Viommu =>
  context.objects.get(id, Viommu, "viommu_id");

const make = (
  device: DeviceObject,
  parent: HwptPaging,
  data: { readonly call: Call; readonly type: number; readonly at: bigint; readonly length: number },
): Viommu => {
  const { context } = device;
  const { driver, function: requester } = device.device;
  if (!parent.nestParent)
    throw new LinuxError(
      "EINVAL",
      "it was not made as a nest parent (IOMMU_HWPT_ALLOC_NEST_PARENT)",
      parent.name,
    );
  context.allocate("a vIOMMU");
  const shared: SharedPages[] = [];
  try {
    const virtual = driver.allocateViommu!(
      requester,
      parent.domain,
      userData(data.call, data.type, data.at, data.length),
      (pa, length) => {
        const pages = context.share(pa, length);
        shared.push(pages);
        return pages.offset;
      },
    );
    return new Viommu(parent, driver, virtual, shared);
  } catch (error) {
    for (const pages of shared) context.unshare(pages);
    throw error;
  }
};

export const viommuAlloc = request(
  IOMMU_VIOMMU_ALLOC,
  IommuViommuAlloc,
  "out_viommu_id",
  ({ context, call, argument, respond }) => {
    const { type, data_len: length, data_uptr: at } = argument;
    requireFlags(argument.flags, 0);
    if (type === IOMMU_VIOMMU_TYPE_DEFAULT) throw new LinuxError("EOPNOTSUPP", "type 0 is no type of vIOMMU");
    const device = deviceOf(context, argument.dev_id);
    const { driver, function: requester } = device.device;
    if (!driver.allocateViommu || !driver.hasViommu?.(requester, type))
      throw new LinuxError("EOPNOTSUPP", `its IOMMU has no vIOMMU of type ${hex(type)}`, device.name);
    const parent = context.objects.get(argument.hwpt_id, HwptPaging, "hwpt_id");
    const viommu = make(device, parent, { call, type, at, length });
    try {
      context.add(viommu);
    } catch (error) {
      viommu.destroy();
      throw error;
    }
    try {
      respond({ out_viommu_id: viommu.id });
    } catch (error) {
      context.objects.remove(viommu);
      throw error;
    }
  },
);
