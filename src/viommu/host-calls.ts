/**
 * How a VMM reaches its host by iommufd: requests of /dev/iommu and of a device's file (linux/iommufd.h, linux/vfio.h).
 * Vendor data and lists lie in the VMM's own memory, as for any program.
 */
import type { ModelTask } from "../kernel/model-task.ts";
import { LinuxError } from "../uapi/errno.ts";
import * as iommufd from "../uapi/iommufd.ts";
import {
  IOMMU_HW_INFO_TYPE_AMD,
  IOMMU_HWPT_DATA_AMD_GUEST,
  IommuHwInfoAmd,
  IommuHwptAmdGuest,
} from "../uapi/vendor/amd.ts";
import {
  SOFTIOMMU_HWPT_DATA_S390_IOTA,
  SOFTIOMMU_HWPT_DATA_TCE,
  SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH,
  SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD,
  SoftiommuHwptS390Iota,
  SoftiommuHwptS390Refresh,
  SoftiommuHwptTce,
  SoftiommuViommuAmdInvalidate,
} from "../uapi/vendor/extensions.ts";
import {
  IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  IOMMU_HWPT_DATA_ARM_SMMUV3,
  IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
  IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
  IommuHwInfoArmSmmuv3,
  IommuHwptArmSmmuv3,
  IommuVeventArmSmmuv3,
  IommuViommuArmSmmuv3Invalidate,
} from "../uapi/vendor/smmuv3.ts";
import {
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IOMMU_HWPT_DATA_VTD_S1,
  IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
  IommuHwInfoVtd,
  IommuHwptVtdS1,
  IommuHwptVtdS1Invalidate,
} from "../uapi/vendor/vtd.ts";
import * as vfio from "../uapi/vfio.ts";
import { DeviceCalls, type DeviceInfo, type TakenDevice } from "./device-calls.ts";
import { DATA_BYTES, DATA_VA, type Record } from "./recorded-calls.ts";
import type { AddressRange } from "./shadow/table.ts";

export interface HostMapping {
  readonly iova: number;
  readonly va: number;
  readonly length: number;
  readonly readable?: boolean;
  readonly writable?: boolean;
}

/** A window of a page table on a POWER host. */
export interface HostWindow {
  readonly start: number;
  readonly length: number;
  readonly pageLg2: number;
  readonly levels: number;
}

/** One first-stage table of a guest, as a PASID table entry names it. */
export interface FirstStage {
  /** IOMMU_VTD_S1_*. */
  readonly flags: bigint;
  /** Guest physical address of the root. */
  readonly table: number;
  /** Bits of the addresses it translates. */
  readonly addressWidth: number;
}

/** A range of a guest's addresses whose translations are to be forgotten; 2^64−1 pages from 0: all. */
export interface ForgottenRange {
  readonly address: bigint;
  readonly pages: bigint;
  readonly leavesOnly: boolean;
}
export const EVERYTHING = 2n ** 64n - 1n;

/** How far a list of invalidations came. */
export interface InvalidationCount {
  readonly done: number;
  /** What stopped it at the one after them. */
  readonly error?: LinuxError;
}
const WORD = 2n ** 64n - 1n;

export type PageFault = ReturnType<typeof iommufd.IommuHwptPgfault.read>;
/** More than a group can have. */
const FAULTS_AT_ONCE = 512;

/** Sequence numbers of events go to 2^31 - 1 and begin again. */
const EVENT_SEQUENCES = 2 ** 31;

export class HostCalls extends DeviceCalls {
  /** Descriptor of /dev/iommu. */
  readonly iommufd: number;
  /** By descriptor of an event queue: the sequence number that comes next when none is lost. */
  readonly #nextEvents = new Map<number, number>();

  constructor(task: ModelTask, fd: number, record?: Record) {
    super(task, record);
    this.iommufd = fd;
  }

  // Devices

  /** Binds it. */
  take(fd: number): TakenDevice {
    const id = this.bind(fd);
    return { id, info: this.hardwareInfo(id) };
  }

  /** The device's id in the iommufd. */
  bind(device: number): number {
    const layout = vfio.VfioDeviceBindIommufd;
    const bytes = layout.bytes({ argsz: layout.size, iommufd: this.iommufd });
    this.device(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, bytes);
    return layout.read(bytes).out_devid;
  }

  /** The device, or one PASID of it, gets a page table; what it had is replaced. */
  attach(device: number, table: number, pasid?: number): void {
    const layout = vfio.VfioDeviceAttachIommufdPt;
    const tagged = pasid !== undefined;
    const bytes = layout.bytes({
      argsz: tagged ? layout.size : layout.fieldEnd("pt_id"),
      flags: tagged ? vfio.VFIO_DEVICE_ATTACH_PASID : 0,
      pt_id: table,
      pasid: pasid ?? 0,
    });
    this.device(device, vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT, bytes);
  }

  detach(device: number, pasid?: number): void {
    const layout = vfio.VfioDeviceDetachIommufdPt;
    const tagged = pasid !== undefined;
    const bytes = layout.bytes({
      argsz: tagged ? layout.size : layout.fieldEnd("flags"),
      flags: tagged ? vfio.VFIO_DEVICE_DETACH_PASID : 0,
      pasid: pasid ?? 0,
    });
    this.device(device, vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT, bytes);
  }

  /** What the host's IOMMU in front of a device is, and what the device may do. */
  hardwareInfo(device: number): DeviceInfo {
    const layout = iommufd.IommuHwInfo;
    const data = new Uint8Array(
      Math.max(IommuHwInfoVtd.size, IommuHwInfoArmSmmuv3.size, IommuHwInfoAmd.size),
    );
    const bytes = layout.bytes({
      size: layout.size,
      dev_id: device,
      data_len: data.length,
      data_uptr: BigInt(DATA_VA),
    });
    this.#iommu(iommufd.IOMMU_GET_HW_INFO, bytes, data);
    const { out_data_type, out_max_pasid_log2, out_capabilities } = layout.read(bytes);
    this.task.memory.read(BigInt(DATA_VA), data);
    const { cap_reg, ecap_reg } = IommuHwInfoVtd.read(data);
    return {
      vtd: out_data_type === IOMMU_HW_INFO_TYPE_INTEL_VTD ? { cap: cap_reg, ecap: ecap_reg } : undefined,
      smmu: out_data_type === IOMMU_HW_INFO_TYPE_ARM_SMMUV3 ? IommuHwInfoArmSmmuv3.read(data) : undefined,
      amd: out_data_type === IOMMU_HW_INFO_TYPE_AMD ? IommuHwInfoAmd.read(data) : undefined,
      pasidBits: out_max_pasid_log2,
      ats: (out_capabilities & BigInt(iommufd.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED)) === 0n,
    };
  }

  // Address spaces

  allocateIoas(): number {
    const layout = iommufd.IommuIoasAlloc;
    const bytes = layout.bytes({ size: layout.size });
    this.#iommu(iommufd.IOMMU_IOAS_ALLOC, bytes);
    return layout.read(bytes).out_ioas_id;
  }

  /** Maps the VMM's memory at `va` for devices. */
  map(ioas: number, { iova, va, length, readable = true, writable = true }: HostMapping): void {
    const layout = iommufd.IommuIoasMap;
    const access =
      (readable ? iommufd.IOMMU_IOAS_MAP_READABLE : 0) | (writable ? iommufd.IOMMU_IOAS_MAP_WRITEABLE : 0);
    const bytes = layout.bytes({
      size: layout.size,
      flags: iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | access,
      ioas_id: ioas,
      user_va: BigInt(va),
      length: BigInt(length),
      iova: BigInt(iova),
    });
    this.#iommu(iommufd.IOMMU_IOAS_MAP, bytes);
  }

  unmap(ioas: number, iova: number, length: number): void {
    const layout = iommufd.IommuIoasUnmap;
    const bytes = layout.bytes({
      size: layout.size,
      ioas_id: ioas,
      iova: BigInt(iova),
      length: BigInt(length),
    });
    this.#iommu(iommufd.IOMMU_IOAS_UNMAP, bytes);
  }

  /** Whether page tables of the address space may have pages larger than the smallest; refused once something is mapped. */
  setHugePages(ioas: number, on: boolean): void {
    const layout = iommufd.IommuOption;
    const bytes = layout.bytes({
      size: layout.size,
      option_id: iommufd.IOMMU_OPTION_HUGE_PAGES,
      op: iommufd.IOMMU_OPTION_OP_SET,
      object_id: ioas,
      val64: on ? 1n : 0n,
    });
    this.#iommu(iommufd.IOMMU_OPTION, bytes);
  }

  destroy(id: number): void {
    const layout = iommufd.IommuDestroy;
    this.#iommu(iommufd.IOMMU_DESTROY, layout.bytes({ size: layout.size, id }));
  }

  /** Says which addresses will be used: devices that cannot have them all are refused from now on. Throws EADDRINUSE. */
  allowIovas(ioas: number, ranges: readonly AddressRange[]): void {
    const layout = iommufd.IommuIoasAllowIovas;
    const range = iommufd.IommuIovaRange;
    const data = new Uint8Array(
      Buffer.concat(
        ranges.map(({ start, end }) => range.bytes({ start: BigInt(start), last: BigInt(end) - 1n })),
      ),
    );
    const bytes = layout.bytes({
      size: layout.size,
      ioas_id: ioas,
      num_iovas: ranges.length,
      allowed_iovas: BigInt(DATA_VA),
    });
    this.#iommu(iommufd.IOMMU_IOAS_ALLOW_IOVAS, bytes, data);
  }

  /** Addresses that can be mapped with the devices that it has, in order, and what addresses must be a multiple of. */
  iovaRanges(ioas: number): { readonly ranges: readonly AddressRange[]; readonly alignment: bigint } {
    const layout = iommufd.IommuIoasIovaRanges;
    const range = iommufd.IommuIovaRange;
    const bytes = layout.bytes({
      size: layout.size,
      ioas_id: ioas,
      num_iovas: DATA_BYTES / range.size,
      allowed_iovas: BigInt(DATA_VA),
    });
    this.#iommu(iommufd.IOMMU_IOAS_IOVA_RANGES, bytes);
    const { num_iovas, out_iova_alignment: alignment } = layout.read(bytes);
    const found = new Uint8Array(num_iovas * range.size);
    this.task.memory.read(BigInt(DATA_VA), found);
    const ranges = Array.from({ length: num_iovas }, (_, index) => {
      const { start, last } = range.read(found, index * range.size);
      return { start: Number(start), end: Number(last + 1n) };
    });
    return { ranges, alignment };
  }

  // Page tables

  /**
   * A page table of the host for an address space; `flags` are IOMMU_HWPT_ALLOC_*, and with IOMMU_HWPT_FAULT_ID_VALID a
   * fault queue.
   */
  allocateHwpt(device: number, ioas: number, flags: number, faults?: number): number {
    return this.#hwpt({ dev_id: device, pt_id: ioas, flags, fault_id: faults ?? 0 }, undefined);
  }

  /** A guest's first stage above a nest parent, with a fault queue when there is one. */
  allocateNested(
    device: number,
    parent: number,
    { flags, table, addressWidth }: FirstStage,
    options: { readonly pasid: boolean; readonly faults: number | undefined },
  ): number {
    const { pasid, faults } = options;
    const bytes = IommuHwptVtdS1.bytes({ flags, pgtbl_addr: BigInt(table), addr_width: addressWidth });
    const wanted =
      (pasid ? iommufd.IOMMU_HWPT_ALLOC_PASID : 0) |
      (faults === undefined ? 0 : iommufd.IOMMU_HWPT_FAULT_ID_VALID);
    const data = { type: IOMMU_HWPT_DATA_VTD_S1, bytes };
    return this.#hwpt({ dev_id: device, pt_id: parent, flags: wanted, fault_id: faults ?? 0 }, data);
  }

  /** What a guest's stream table entry asks for (its first two words), above a virtual SMMUv3. */
  allocateStream(device: number, viommu: number, entry: bigint, faults: number | undefined): number {
    const bytes = IommuHwptArmSmmuv3.bytes({ ste: [entry & WORD, entry >> 64n] });
    const flags = faults === undefined ? 0 : iommufd.IOMMU_HWPT_FAULT_ID_VALID;
    const data = { type: IOMMU_HWPT_DATA_ARM_SMMUV3, bytes };
    return this.#hwpt({ dev_id: device, pt_id: viommu, flags, fault_id: faults ?? 0 }, data);
  }

  /** What a guest's device table entry asks for, above a virtual AMD-Vi unit. */
  allocateGuestEntry(device: number, viommu: number, entry: bigint, faults: number | undefined): number {
    const bytes = IommuHwptAmdGuest.bytes({ dte: [0n, 64n, 128n, 192n].map((at) => (entry >> at) & WORD) });
    const flags = faults === undefined ? 0 : iommufd.IOMMU_HWPT_FAULT_ID_VALID;
    const data = { type: IOMMU_HWPT_DATA_AMD_GUEST, bytes };
    return this.#hwpt({ dev_id: device, pt_id: viommu, flags, fault_id: faults ?? 0 }, data);
  }

  /** The tables of a guest's I/O table anchor (s390), above a nest parent. */
  allocateAnchored(device: number, parent: number, iota: bigint): number {
    const data = { type: SOFTIOMMU_HWPT_DATA_S390_IOTA, bytes: SoftiommuHwptS390Iota.bytes({ iota }) };
    return this.#hwpt({ dev_id: device, pt_id: parent, flags: 0 }, data);
  }

  /** A page table of the host with these windows, the low and the high one. */
  allocateWindows(device: number, ioas: number, windows: readonly HostWindow[]): number {
    const window = windows.map(({ start, length, pageLg2, levels }) => ({
      start: BigInt(start),
      length: BigInt(length),
      page_shift: pageLg2,
      levels,
    }));
    const data = { type: SOFTIOMMU_HWPT_DATA_TCE, bytes: SoftiommuHwptTce.bytes({ window }) };
    return this.#hwpt({ dev_id: device, pt_id: ioas, flags: 0 }, data);
  }

  /** What a guest refreshes of them: how many ranges were taken, and what stopped it. */
  refresh(hwpt: number, ranges: readonly AddressRange[]): InvalidationCount {
    const entry = SoftiommuHwptS390Refresh;
    const entries = ranges.map(({ start, end }) =>
      entry.bytes({ iova: BigInt(start), length: BigInt(end) - BigInt(start) }),
    );
    return this.#invalidate(hwpt, SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH, entry.size, entries);
  }

  /** Tells how many of the ranges were forgotten, and what stopped it. */
  invalidate(hwpt: number, ranges: readonly ForgottenRange[]): InvalidationCount {
    const entry = IommuHwptVtdS1Invalidate;
    const entries = ranges.map(({ address, pages, leavesOnly }) =>
      entry.bytes({ addr: address, npages: pages, flags: leavesOnly ? 1 : 0 }),
    );
    return this.#invalidate(hwpt, IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, entry.size, entries);
  }

  /** Hands on commands of a guest's SMMUv3 as they are: how many were carried out, and what stopped it. */
  command(viommu: number, commands: readonly bigint[]): InvalidationCount {
    const entry = IommuViommuArmSmmuv3Invalidate;
    const entries = commands.map((command) => entry.bytes({ cmd: [command & WORD, command >> 64n] }));
    return this.#invalidate(viommu, IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, entry.size, entries);
  }

  /** The same of a guest's AMD-Vi unit. */
  commandAmd(viommu: number, commands: readonly bigint[]): InvalidationCount {
    const entry = SoftiommuViommuAmdInvalidate;
    const entries = commands.map((command) => entry.bytes({ cmd: [command & WORD, command >> 64n] }));
    return this.#invalidate(viommu, SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD, entry.size, entries);
  }

  #invalidate(
    id: number,
    type: number,
    entryBytes: number,
    entries: readonly Uint8Array[],
  ): InvalidationCount {
    const layout = iommufd.IommuHwptInvalidate;
    const most = DATA_BYTES / entryBytes;
    for (let first = 0; first < entries.length; first += most) {
      const part = entries.slice(first, first + most);
      const data = new Uint8Array(Buffer.concat(part));
      const bytes = layout.bytes({
        size: layout.size,
        hwpt_id: id,
        data_uptr: BigInt(DATA_VA),
        data_type: type,
        entry_len: entryBytes,
        entry_num: part.length,
      });
      try {
        this.#iommu(iommufd.IOMMU_HWPT_INVALIDATE, bytes, data);
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        return { done: first + layout.read(bytes).entry_num, error };
      }
    }
    return { done: entries.length };
  }

  // Virtual IOMMUs

  /** What of the unit in front of the device is the guest's, above a nest parent; `type` is an IOMMU_VIOMMU_TYPE_*. */
  allocateViommu(device: number, parent: number, type: number): number {
    const layout = iommufd.IommuViommuAlloc;
    const bytes = layout.bytes({ size: layout.size, type, dev_id: device, hwpt_id: parent });
    this.#iommu(iommufd.IOMMU_VIOMMU_ALLOC, bytes);
    return layout.read(bytes).out_viommu_id;
  }

  /** The guest calls the device by this number. */
  allocateVdevice(viommu: number, device: number, virtualId: number): number {
    const layout = iommufd.IommuVdeviceAlloc;
    const virt_id = BigInt(virtualId);
    const bytes = layout.bytes({ size: layout.size, viommu_id: viommu, dev_id: device, virt_id });
    this.#iommu(iommufd.IOMMU_VDEVICE_ALLOC, bytes);
    return layout.read(bytes).out_vdevice_id;
  }

  /** The descriptor of a queue of events that are the guest's to know. */
  allocateEvents(viommu: number, depth: number): number {
    const layout = iommufd.IommuVeventqAlloc;
    const type = IOMMU_VEVENTQ_TYPE_ARM_SMMUV3;
    const bytes = layout.bytes({ size: layout.size, viommu_id: viommu, type, veventq_depth: depth });
    this.#iommu(iommufd.IOMMU_VEVENTQ_ALLOC, bytes);
    const { out_veventq_fd: fd } = layout.read(bytes);
    this.#nextEvents.set(fd, 0);
    return fd;
  }

  /** Events that wait in such a queue, in their order; undefined: some were lost, by the marker or by a gap in the numbers. */
  readEvents(fd: number): (bigint | undefined)[] {
    const header = iommufd.IommufdVeventHeader;
    const bytes = new Uint8Array(this.task.readTo(fd, BigInt(DATA_VA), DATA_BYTES));
    this.task.memory.read(BigInt(DATA_VA), bytes);
    const events: (bigint | undefined)[] = [];
    for (let at = 0; at < bytes.length; ) {
      const { flags, sequence } = header.read(bytes, at);
      at += header.size;
      const marker = (flags & iommufd.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) !== 0;
      if (marker || sequence !== this.#nextEvents.get(fd)) events.push(undefined);
      this.#nextEvents.set(fd, (sequence + 1) % EVENT_SEQUENCES);
      if (!marker) {
        const { evt } = IommuVeventArmSmmuv3.read(bytes, at);
        events.push(evt.reduce((all, word, index) => all | (word << BigInt(64 * index)), 0n));
        at += IommuVeventArmSmmuv3.size;
      }
    }
    return events;
  }

  // Page faults

  /** A fault queue: its id, and the descriptor of its file. */
  allocateFaults(): { readonly id: number; readonly fd: number } {
    const layout = iommufd.IommuFaultAlloc;
    const bytes = layout.bytes({ size: layout.size });
    this.#iommu(iommufd.IOMMU_FAULT_QUEUE_ALLOC, bytes);
    const { out_fault_id: id, out_fault_fd: fd } = layout.read(bytes);
    return { id, fd };
  }

  /** Page requests that wait in a fault queue, in their order. */
  readFaults(fd: number): PageFault[] {
    const layout = iommufd.IommuHwptPgfault;
    const bytes = new Uint8Array(this.task.readTo(fd, BigInt(DATA_VA), FAULTS_AT_ONCE * layout.size));
    this.task.memory.read(BigInt(DATA_VA), bytes);
    return Array.from({ length: bytes.length / layout.size }, (_, index) =>
      layout.read(bytes, index * layout.size),
    );
  }

  /** Answers a group of them; `code` is IOMMUFD_PAGE_RESP_*. */
  respond(fd: number, cookie: number, code: number): void {
    const bytes = iommufd.IommuHwptPageResponse.bytes({ cookie, code });
    this.task.memory.write(BigInt(DATA_VA), bytes);
    this.task.writeFrom(fd, BigInt(DATA_VA), bytes.length);
  }

  #hwpt(
    wanted: { dev_id: number; pt_id: number; flags: number; fault_id?: number },
    data: { readonly type: number; readonly bytes: Uint8Array } | undefined,
  ): number {
    const layout = iommufd.IommuHwptAlloc;
    const bytes = layout.bytes({
      size: layout.size,
      ...wanted,
      ...(data && {
        data_type: data.type,
        data_len: data.bytes.length,
        data_uptr: BigInt(DATA_VA),
      }),
    });
    this.#iommu(iommufd.IOMMU_HWPT_ALLOC, bytes, data?.bytes);
    return layout.read(bytes).out_hwpt_id;
  }

  #iommu(request: number, bytes: Uint8Array, data?: Uint8Array): void {
    this.call("iommufd", this.iommufd, request, bytes, data);
  }
}
