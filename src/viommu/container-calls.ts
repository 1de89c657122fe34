/**
 * How a VMM reaches its host by the interface of 2020: containers of the nesting type, their groups, and device files
 * (linux/vfio.h, `uapi/vsva.ts`). A container has one group; its PASIDs are the process's, whichever container asks.
 */
import type { ModelTask } from "../kernel/model-task.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_NESTING_FEAT_PAGE_RESP,
  SOFTIOMMU_NESTING_OP_PAGE_RESPONSE,
  SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE,
  SOFTIOMMU_VFIO_IRQ_TYPE_FAULT,
  SOFTIOMMU_VFIO_REGION_TYPE_FAULT,
  SoftiommuFaultRegionHeader,
  SoftiommuVfioIrqInfo,
  SoftiommuVfioIrqInfoCapType,
} from "../uapi/extensions.ts";
import { findCapabilities } from "../uapi/info-chain.ts";
import type { RequestKind } from "../uapi/requests.ts";
import { IOMMU_VTD_S1_EAFE, IOMMU_VTD_S1_SRE, IOMMU_VTD_S1_WPE } from "../uapi/vendor/vtd.ts";
import * as vfio from "../uapi/vfio.ts";
import * as vsva from "../uapi/vsva.ts";
import { DeviceCalls, type TakenDevice } from "./device-calls.ts";
import type { FirstStage, HostMapping } from "./host-calls.ts";
import type { Record } from "./recorded-calls.ts";

/** A container, with its group and the device that the VMM has of it. */
export interface Held {
  readonly container: number;
  readonly group: number;
  readonly device: number;
}

/** Where a device's faults are told. */
export interface FaultPlace {
  /** Of its region, in the device's file. */
  readonly at: bigint;
  /** Index of the interrupt that says that there are new ones. */
  readonly interrupt: number;
}

/** What changed in a guest's table. */
export interface ChangedTable {
  readonly pasid: number;
  /** Undefined: everything. */
  readonly range: { readonly start: number; readonly length: number } | undefined;
  readonly leavesOnly: boolean;
}

export type HostFault = ReturnType<typeof vsva.IommuFault.read>;

const VERSION = 1;
const TYPE_NESTING = vfio.__VFIO_RESERVED_TYPE1_NESTING_IOMMU;
const PAGE = 4096n;
/** Enough for any answer with capabilities. */
const INFO_BYTES = 1024;
const ANY_PASID = { min: 1, max: 2 ** 20 - 1 };

/**
 * IOMMU_SVA_VTD_GPASID_* for IOMMU_VTD_S1_*. WPE is about supervisors' writes, which only a table with SRE has; the interface
 * has no flag for it. Throws EOPNOTSUPP for both.
 */
const bindFlags = (flags: bigint): bigint => {
  const has = (flag: number): boolean => (flags & BigInt(flag)) !== 0n;
  if (has(IOMMU_VTD_S1_SRE) && has(IOMMU_VTD_S1_WPE))
    throw new LinuxError("EOPNOTSUPP", "a table that is bound cannot keep supervisors from writing (WPE)");
  return BigInt(
    (has(IOMMU_VTD_S1_SRE) ? vsva.IOMMU_SVA_VTD_GPASID_SRE : 0) |
      (has(IOMMU_VTD_S1_EAFE) ? vsva.IOMMU_SVA_VTD_GPASID_EAFE : 0),
  );
};

export class ContainerCalls extends DeviceCalls {
  /** By descriptor of the device. */
  readonly #held = new Map<number, Held>();

  constructor(task: ModelTask, record?: Record) {
    super(task, record);
  }

  /** Puts a group that was opened into a container that was opened, and takes the device of this name from it. */
  open(container: number, group: number, name: string): number {
    const set = new Uint8Array(Int32Array.of(container).buffer);
    this.call("vfio-group", group, vfio.VFIO_GROUP_SET_CONTAINER, set);
    this.call("vfio-container", container, vfio.VFIO_SET_IOMMU, TYPE_NESTING);
    const text = new Uint8Array(64);
    text.set(Buffer.from(name));
    const device = this.call("vfio-group", group, vfio.VFIO_GROUP_GET_DEVICE_FD, text);
    this.#held.set(device, { container, group, device });
    return device;
  }

  /** Its id is the descriptor of its container. */
  take(fd: number): TakenDevice {
    const { container } = this.#held.get(fd)!;
    const { format, features, pasid_bits, vendor } = this.nestingInfo(container);
    if (format !== vsva.IOMMU_PASID_FORMAT_INTEL_VTD)
      throw new LinuxError("EOPNOTSUPP", `tables of format ${format}, which this VMM does not make`);
    const { cap_reg: cap, ecap_reg: ecap } = vendor.vtd;
    const ats = (features & IOMMU_NESTING_FEAT_PAGE_RESP) !== 0;
    return {
      id: container,
      info: { vtd: { cap, ecap }, smmu: undefined, amd: undefined, pasidBits: pasid_bits, ats },
    };
  }

  // Containers

  /** The nesting capability. */
  nestingInfo(container: number) {
    const bytes = new Uint8Array(INFO_BYTES);
    vfio.VfioIommuType1Info.write(bytes, { argsz: INFO_BYTES });
    this.#container(container, vfio.VFIO_IOMMU_GET_INFO, bytes);
    const { cap_offset } = vfio.VfioIommuType1Info.read(bytes);
    const id = vsva.VFIO_IOMMU_TYPE1_INFO_CAP_NESTING;
    const found = findCapabilities(bytes, cap_offset).find((capability) => capability.id === id);
    if (!found) throw new LinuxError("EOPNOTSUPP", "the container has no nesting capability");
    return vsva.VfioIommuType1InfoCapNesting.read(bytes, found.at).info;
  }

  /** Maps the VMM's memory at `va` for the devices of a container. */
  map(container: number, { iova, va, length }: HostMapping): void {
    const layout = vfio.VfioIommuType1DmaMap;
    const bytes = layout.bytes({
      argsz: layout.size,
      flags: vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE,
      vaddr: BigInt(va),
      iova: BigInt(iova),
      size: BigInt(length),
    });
    this.#container(container, vfio.VFIO_IOMMU_MAP_DMA, bytes);
  }

  unmap(container: number, iova: number, length: number): void {
    const layout = vfio.VfioIommuType1DmaUnmap;
    const bytes = layout.bytes({ argsz: layout.size, iova: BigInt(iova), size: BigInt(length) });
    this.#container(container, vfio.VFIO_IOMMU_UNMAP_DMA, bytes);
  }

  // PASIDs

  allocatePasid(container: number, range = ANY_PASID): number {
    return this.#pasids(container, vsva.VFIO_IOMMU_FLAG_ALLOC_PASID, range);
  }
  freePasid(container: number, pasid: number): void {
    this.#pasids(container, vsva.VFIO_IOMMU_FLAG_FREE_PASID, { min: pasid, max: pasid });
  }

  /** A guest's first stage becomes what the container's devices have for a PASID. */
  bind(container: number, pasid: number, { flags, table, addressWidth }: FirstStage): void {
    const data = {
      addr_width: addressWidth,
      gpgd: BigInt(table),
      vendor: { vtd: { flags: bindFlags(flags) } },
    };
    this.#operate(container, vsva.VFIO_IOMMU_NESTING_OP_BIND_PGTBL, this.#bindData(pasid, data));
  }
  unbind(container: number, pasid: number): void {
    this.#operate(container, vsva.VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL, this.#bindData(pasid, {}));
  }

  invalidate(container: number, { pasid, range, leavesOnly }: ChangedTable): void {
    const layout = vsva.IommuCacheInvalidateInfo;
    const common = {
      argsz: layout.size,
      version: VERSION,
      cache: vsva.IOMMU_CACHE_INV_TYPE_IOTLB | vsva.IOMMU_CACHE_INV_TYPE_DEV_IOTLB,
    };
    const tag = { pasid: BigInt(pasid), flags: vsva.IOMMU_INV_PASID_FLAGS_PASID };
    const addresses = range && {
      ...tag,
      flags: vsva.IOMMU_INV_ADDR_FLAGS_PASID | (leavesOnly ? vsva.IOMMU_INV_ADDR_FLAGS_LEAF : 0),
      addr: BigInt(range.start),
      granule_size: PAGE,
      nb_granules: BigInt(range.length) / PAGE,
    };
    const bytes = addresses
      ? layout.bytes({ ...common, granularity: vsva.IOMMU_INV_GRANU_ADDR, granu: { addr_info: addresses } })
      : layout.bytes({ ...common, granularity: vsva.IOMMU_INV_GRANU_PASID, granu: { pasid_info: tag } });
    this.#operate(container, vsva.VFIO_IOMMU_NESTING_OP_CACHE_INVLD, bytes);
  }

  // Faults

  /** Undefined: the device has no region for faults. */
  faultPlace(device: number): FaultPlace | undefined {
    const { num_regions, num_irqs } = this.#info(device);
    for (let index = vfio.VFIO_PCI_NUM_REGIONS; index < num_regions; index++) {
      const bytes = new Uint8Array(INFO_BYTES);
      vfio.VfioRegionInfo.write(bytes, { argsz: INFO_BYTES, index });
      this.device(device, vfio.VFIO_DEVICE_GET_REGION_INFO, bytes);
      const { cap_offset, offset } = vfio.VfioRegionInfo.read(bytes);
      const type = findCapabilities(bytes, cap_offset).find(
        ({ id }) => id === vfio.VFIO_REGION_INFO_CAP_TYPE,
      );
      if (!type || vfio.VfioRegionInfoCapType.read(bytes, type.at).type !== SOFTIOMMU_VFIO_REGION_TYPE_FAULT)
        continue;
      const interrupt = this.#faultInterrupt(device, num_irqs);
      return interrupt === undefined ? undefined : { at: offset, interrupt };
    }
    return undefined;
  }

  /** Takes what is in the ring, in its order. */
  readFaults(device: number, { at }: FaultPlace): HostFault[] {
    const head = new Uint8Array(SoftiommuFaultRegionHeader.size);
    this.task.pread(device, at, head);
    const { entries, entry_size, producer, consumer } = SoftiommuFaultRegionHeader.read(head);
    const found: HostFault[] = [];
    for (let next = consumer; next !== producer; next = (next + 1) >>> 0) {
      const bytes = new Uint8Array(entry_size);
      this.task.pread(device, at + BigInt(head.length + (next % entries) * entry_size), bytes);
      found.push(vsva.IommuFault.read(bytes));
    }
    const place = at + BigInt(SoftiommuFaultRegionHeader.offsets.consumer);
    this.task.pwrite(device, place, new Uint8Array(Uint32Array.of(producer).buffer));
    return found;
  }

  /** Answers a group of page requests; `code` is IOMMU_PAGE_RESP_*. */
  respond(container: number, group: { readonly pasid: number; readonly number: number }, code: number): void {
    const layout = vsva.IommuPageResponse;
    const bytes = layout.bytes({
      argsz: layout.size,
      version: VERSION,
      flags: vsva.IOMMU_PAGE_RESP_PASID_VALID,
      pasid: group.pasid,
      grpid: group.number,
      code,
    });
    this.#operate(container, SOFTIOMMU_NESTING_OP_PAGE_RESPONSE, bytes);
  }

  #info(device: number) {
    const layout = vfio.VfioDeviceInfo;
    const bytes = layout.bytes({ argsz: layout.size });
    this.device(device, vfio.VFIO_DEVICE_GET_INFO, bytes);
    return layout.read(bytes);
  }

  #faultInterrupt(device: number, indices: number): number | undefined {
    for (let index = vfio.VFIO_PCI_NUM_IRQS; index < indices; index++) {
      const bytes = new Uint8Array(INFO_BYTES);
      SoftiommuVfioIrqInfo.write(bytes, { argsz: INFO_BYTES, index });
      this.device(device, vfio.VFIO_DEVICE_GET_IRQ_INFO, bytes);
      const { cap_offset } = SoftiommuVfioIrqInfo.read(bytes);
      const type = findCapabilities(bytes, cap_offset).find(
        ({ id }) => id === SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE,
      );
      if (type && SoftiommuVfioIrqInfoCapType.read(bytes, type.at).type === SOFTIOMMU_VFIO_IRQ_TYPE_FAULT)
        return index;
    }
    return undefined;
  }

  #bindData(pasid: number, members: Parameters<typeof vsva.IommuGpasidBindData.bytes>[0]): Uint8Array {
    return vsva.IommuGpasidBindData.bytes({
      argsz: vsva.IommuGpasidBindData.size,
      version: VERSION,
      format: vsva.IOMMU_PASID_FORMAT_INTEL_VTD,
      hpasid: BigInt(pasid),
      ...members,
    });
  }

  #pasids(container: number, flags: number, range: { readonly min: number; readonly max: number }): number {
    const layout = vsva.VfioIommuType1PasidRequest;
    const bytes = layout.bytes({ argsz: layout.size, flags, range });
    return this.#container(container, vsva.VFIO_IOMMU_PASID_REQUEST, bytes);
  }

  #operate(container: number, flags: number, data: Uint8Array): void {
    const layout = vsva.VfioIommuType1NestingOp;
    const argsz = layout.offsets.data + data.length;
    const bytes = layout.bytes({ argsz, flags, data: [...data] });
    this.#container(container, vsva.VFIO_IOMMU_NESTING_OP, bytes);
  }

  #container(fd: number, request: number, bytes: Uint8Array): number {
    const kind: RequestKind = "vfio-container:nesting";
    return this.call(kind, fd, request, bytes);
  }
}
