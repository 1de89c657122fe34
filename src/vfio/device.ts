/**
 * The device file of a PCI function (linux/vfio.h, "IOCTLs for DEVICE file descriptors"): information, regions by
 * pread, pwrite and mmap, interrupts, resets, features. A mapped BAR has no memory behind it: each access is a trap. With
 * the extension `vsva2020` there is a region more, and an interrupt, for faults (`fault-region.ts`).
 * How a file comes by its device is elsewhere: through its group (`group.ts`), or as a character device (`cdev.ts`).
 * Left out: display planes.
 */
import type { IommufdContext } from "../iommufd/context.ts";
import type { Call, KernelFile, MapSegment } from "../kernel/call.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import type { Bar } from "../pci/function.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE,
  SOFTIOMMU_VFIO_IRQ_INFO_CAPS,
  SOFTIOMMU_VFIO_IRQ_TYPE_FAULT,
  SOFTIOMMU_VFIO_REGION_SUBTYPE_FAULT,
  SOFTIOMMU_VFIO_REGION_TYPE_FAULT,
  SoftiommuVfioIrqInfo,
  SoftiommuVfioIrqInfoCapType,
} from "../uapi/extensions.ts";
import { InfoChain } from "../uapi/info-chain.ts";
import {
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_IOEVENTFD,
  VFIO_DEVICE_PCI_HOT_RESET,
  VFIO_DEVICE_RESET,
  VFIO_DEVICE_SET_IRQS,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_NUM_REGIONS,
  VFIO_PCI_ROM_REGION_INDEX,
  VFIO_PCI_VGA_REGION_INDEX,
  VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_CAP_TYPE,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  VfioDeviceInfo,
  VfioInfoCapHeader,
  VfioIrqInfo,
  VfioRegionInfo,
  VfioRegionInfoCapSparseMmap,
  VfioRegionInfoCapType,
} from "../uapi/vfio.ts";
import { hex, readArgument } from "./argument.ts";
import type { VfioContext } from "./context.ts";
import { FAULT_REGION_BYTES } from "./fault-region.ts";
import { deviceFeature } from "./feature.ts";
import { hotReset, hotResetInfo } from "./hot-reset.ts";
import { readIrqSet } from "./irq-set.ts";
import { FAULT_IRQ_INDEX } from "./irqs.ts";
import type { PciDevice } from "./pci-device.ts";
import {
  type Area,
  barOf,
  eachPiece,
  excludedOf,
  isBar,
  mappableAreas,
  regionFlags,
  regionIndex,
  regionOffset,
  regionSize,
  withinRegion,
} from "./regions.ts";

const MAP_SHARED = 1;

/** The region after those of every PCI function, where there is one. */
const FAULT_REGION_INDEX = VFIO_PCI_NUM_REGIONS;
const FAULT_REGION_FLAGS =
  VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
const FAULT_REGION_TYPE = {
  type: SOFTIOMMU_VFIO_REGION_TYPE_FAULT,
  subtype: SOFTIOMMU_VFIO_REGION_SUBTYPE_FAULT,
};
const FAULT_IRQ_TYPE = {
  type: SOFTIOMMU_VFIO_IRQ_TYPE_FAULT,
  subtype: SOFTIOMMU_VFIO_REGION_SUBTYPE_FAULT,
};

const showArea = ({ offset, size }: Area): string => `[${hex(offset)}, ${hex(offset + size)})`;

/** How the device is opened. */
export interface DeviceOpening {
  /** Where it is bound, when this is its first file. */
  readonly iommufd?: IommufdContext;
  /** As a character device: being bound proves what else its user owns. */
  readonly cdev?: boolean;
  /** Called when the last descriptor went, after the device was given back. */
  readonly onClose?: () => void;
}

export class DeviceFile implements KernelFile {
  readonly kind = "vfio-device";
  readonly name: string;
  readonly device: PciDevice;
  readonly #context: VfioContext;
  readonly #cdev: boolean;
  readonly #onClose: (() => void) | undefined;
  #open = true;

  /** Throws what binding throws: EBUSY, ENOMEM. */
  constructor(context: VfioContext, device: PciDevice, { iommufd, cdev = false, onClose }: DeviceOpening) {
    this.#context = context;
    this.device = device;
    this.name = `device ${device.name}`;
    this.#cdev = cdev;
    this.#onClose = onClose;
    device.open(iommufd);
    context.live.devices += 1;
    if (context.events.on) context.events.emit("open", { device: device.name });
  }

  ioctl(call: Call, request: number, argument: bigint): number {
    switch (request) {
      case VFIO_DEVICE_GET_INFO:
        return this.#getInfo(call, argument);
      case VFIO_DEVICE_GET_REGION_INFO:
        return this.#getRegionInfo(call, argument);
      case VFIO_DEVICE_GET_IRQ_INFO:
        return this.#getIrqInfo(call, argument);
      case VFIO_DEVICE_SET_IRQS:
        this.device.irqs.set(call, readIrqSet(call, argument, this.device.irqs, this.name));
        return 0;
      case VFIO_DEVICE_RESET:
        return this.#reset();
      case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
        this.#requireBus();
        return hotResetInfo(this.#context, this.device, this.#prover, call, argument);
      case VFIO_DEVICE_PCI_HOT_RESET:
        this.#requireBus();
        return hotReset(this.#context, this.device, this.#prover, call, argument);
      case VFIO_DEVICE_FEATURE:
        return deviceFeature(this.device, call, argument);
      case VFIO_DEVICE_IOEVENTFD:
        if (this.device.pci.mediated)
          throw this.#error("ENOTTY", "a mediated device has no writes that eventfds make");
        return this.device.ioeventfds.set(call, argument);
      case VFIO_DEVICE_BIND_IOMMUFD:
        throw this.#error(
          "EINVAL",
          "the device was opened through its group; only a device opened as a character device can be bound to an iommufd",
        );
      default:
        throw this.#error(
          "ENOTTY",
          `request ${hex(request)} means nothing to a PCI device ${this.#cdev ? "opened as a character device" : "opened through its group"}`,
        );
    }
  }

  pread(_call: Call, offset: bigint, into: Uint8Array): number {
    const { index, at } = this.#place(offset);
    if (into.length === 0) return 0;
    const count = this.#reach(index, at, into.length);
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) this.device.config.read(at, into);
    else if (index === FAULT_REGION_INDEX) this.device.faults!.read(at, into.subarray(0, count));
    else if (index === VFIO_PCI_ROM_REGION_INDEX) this.#readRom(at, into.subarray(0, count));
    else {
      this.#checkDecoding(index);
      const { pci, irqs } = this.device;
      eachPiece(at, count, excludedOf(irqs.msixTable, index), (from, width, done, inTable) => {
        const piece = into.subarray(done, done + width);
        if (inTable) piece.fill(0xff);
        else pci.barRead(index, from, piece);
      });
    }
    return count;
  }

  pwrite(_call: Call, offset: bigint, data: Uint8Array): number {
    const { index, at } = this.#place(offset);
    if (index === VFIO_PCI_ROM_REGION_INDEX)
      throw this.#error("EINVAL", "the expansion ROM can be read only");
    if (data.length === 0) return 0;
    const count = this.#reach(index, at, data.length);
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) this.device.config.write(at, data);
    else if (index === FAULT_REGION_INDEX) this.device.faults!.write(at, data);
    else {
      this.#checkDecoding(index);
      const { pci, irqs } = this.device;
      eachPiece(at, count, excludedOf(irqs.msixTable, index), (from, width, done, inTable) => {
        if (!inTable) pci.barWrite(index, from, data.subarray(done, done + width));
      });
    }
    return count;
  }

  mmap(
    _call: Call,
    offset: bigint,
    length: number,
    _protection: number,
    flags: number,
  ): readonly MapSegment[] {
    const { index, at } = this.#place(offset);
    if ((flags & MAP_SHARED) === 0) throw this.#error("EINVAL", "a region can only be mapped MAP_SHARED");
    const bar = isBar(index) ? barOf(this.device.pci, index) : undefined;
    const faults = index === FAULT_REGION_INDEX ? this.device.faults : undefined;
    const areas = bar
      ? mappableAreas(bar, this.device.irqs.msixTable)
      : faults
        ? [{ offset: 0, size: FAULT_REGION_BYTES }]
        : [];
    if (areas.length === 0)
      throw this.#error(
        "EINVAL",
        `region ${index} cannot be mapped; those whose GET_REGION_INFO flags have MMAP (${VFIO_REGION_INFO_FLAG_MMAP}) can`,
      );
    const end = at + Math.ceil(length / FRAME_BYTES) * FRAME_BYTES;
    const within = areas.some(({ offset: from, size }) => at >= from && end <= from + size);
    if (length <= 0 || at % FRAME_BYTES !== 0 || !within)
      throw this.#error(
        "EINVAL",
        `${hex(at)} + ${hex(length)} is not a range of pages within ${areas.map(showArea).join(" or ")}, what can be mapped of region ${index}`,
      );
    return faults?.segments(at, length) ?? [{ kind: "trap", offset: 0, length }];
  }

  /** Undefined where nothing decodes, and for all that is no BAR. */
  registersAt(offset: bigint): number | undefined {
    const bar = this.#open ? barOf(this.device.pci, regionIndex(offset)) : undefined;
    if (!bar || bar.kind === "io" || this.device.lowPower.allowed || !this.device.config.decodes(bar))
      return undefined;
    const at = withinRegion(offset);
    return at < Math.max(bar.size, FRAME_BYTES) ? bar.base + at : undefined;
  }

  /** EIO where nothing decodes, and while low power is allowed: the program gets SIGBUS. */
  trapRead(offset: bigint, into: Uint8Array): void {
    const index = regionIndex(offset);
    this.#checkMapped(index);
    this.device.pci.barRead(index, withinRegion(offset), into);
  }

  trapWrite(offset: bigint, data: Uint8Array): void {
    const index = regionIndex(offset);
    this.#checkMapped(index);
    this.device.pci.barWrite(index, withinRegion(offset), data);
  }

  /** The command as it is: of a PASID in it the device knows what its user has given it. */
  trapEnqueue(offset: bigint, command: Uint8Array): boolean {
    const index = regionIndex(offset);
    this.#checkMapped(index);
    return this.device.pci.barEnqueue?.(index, withinRegion(offset), command) ?? false;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.device.close();
    this.#context.live.devices -= 1;
    if (this.#context.events.on) this.#context.events.emit("close", { device: this.device.name });
    this.#onClose?.();
  }

  /** The iommufd that proves what a reset may hit; undefined: groups do. */
  get #prover(): IommufdContext | undefined {
    return this.#cdev ? this.device.bound?.context : undefined;
  }

  #getInfo(call: Call, at: bigint): number {
    const { argsz } = readArgument(call, at, VfioDeviceInfo, VfioDeviceInfo.fieldEnd("num_irqs"));
    const info = {
      flags: VFIO_DEVICE_FLAGS_PCI | (this.device.resettable ? VFIO_DEVICE_FLAGS_RESET : 0),
      num_regions: this.#regions,
      num_irqs: this.device.irqs.indices,
    };
    call.memory.write(at, new InfoChain(VfioDeviceInfo.size).answer(VfioDeviceInfo, info, argsz));
    return 0;
  }

  #getRegionInfo(call: Call, at: bigint): number {
    const { argsz, index } = readArgument(call, at, VfioRegionInfo, VfioRegionInfo.size);
    if (index >= this.#regions || index === VFIO_PCI_VGA_REGION_INDEX)
      throw this.#error(
        "EINVAL",
        index === VFIO_PCI_VGA_REGION_INDEX
          ? "it has no VGA ranges"
          : `region ${index}: it has regions 0 to ${this.#regions - 1}`,
      );
    const { pci, irqs } = this.device;
    const isFaults = index === FAULT_REGION_INDEX;
    const flags = isFaults ? FAULT_REGION_FLAGS : regionFlags(pci, index, irqs.msixTable);
    const chain = new InfoChain(VfioRegionInfo.size);
    if (irqs.msixTable?.bar === index && (flags & VFIO_REGION_INFO_FLAG_MMAP) !== 0)
      this.#addTableRule(chain, barOf(pci, index)!);
    if (isFaults) chain.add(VFIO_REGION_INFO_CAP_TYPE, 1, VfioRegionInfoCapType, FAULT_REGION_TYPE);
    const info = {
      flags: chain.capabilities.length > 0 ? flags | VFIO_REGION_INFO_FLAG_CAPS : flags,
      index,
      size: BigInt(this.#sizeOf(index)),
      offset: regionOffset(index),
    };
    call.memory.write(at, chain.answer(VfioRegionInfo, info, argsz));
    return 0;
  }

  /** What of the BAR with the vector table can be mapped. */
  #addTableRule(chain: InfoChain, bar: Bar): void {
    if (!bar.sparse) {
      chain.add(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, VfioInfoCapHeader, {});
      return;
    }
    const areas = mappableAreas(bar, this.device.irqs.msixTable).map(({ offset, size }) => ({
      offset: BigInt(offset),
      size: BigInt(size),
    }));
    const rule = { nr_areas: areas.length, areas };
    chain.add(VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, VfioRegionInfoCapSparseMmap, rule);
  }

  #getIrqInfo(call: Call, at: bigint): number {
    const { argsz, index } = readArgument(call, at, VfioIrqInfo, VfioIrqInfo.size);
    const { irqs } = this.device;
    if (index >= irqs.indices || (index === VFIO_PCI_ERR_IRQ_INDEX && irqs.count(index) === 0))
      throw this.#error(
        "EINVAL",
        `interrupt index ${index}: it has 0 to ${irqs.indices - 1}, and ERR (3) only on PCI Express`,
      );
    if (index === FAULT_IRQ_INDEX) {
      const flags = irqs.flags(index) | SOFTIOMMU_VFIO_IRQ_INFO_CAPS;
      const chain = new InfoChain(SoftiommuVfioIrqInfo.size);
      chain.add(SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE, 1, SoftiommuVfioIrqInfoCapType, FAULT_IRQ_TYPE);
      call.memory.write(at, chain.answer(SoftiommuVfioIrqInfo, { flags, index, count: 1 }, argsz));
      return 0;
    }
    call.memory.write(
      at,
      VfioIrqInfo.bytes({ argsz, flags: irqs.flags(index), index, count: irqs.count(index) }),
    );
    return 0;
  }

  /** A mediated device is on no bus that could be reset. */
  #requireBus(): void {
    if (this.device.pci.mediated)
      throw this.#error("ENOTTY", "a mediated device is on no bus; VFIO_DEVICE_RESET resets it");
  }

  #reset(): number {
    if (!this.device.resettable)
      throw this.#error("EINVAL", "the function cannot be reset alone: it has no function-level reset");
    this.device.reset();
    return 0;
  }

  get #regions(): number {
    return VFIO_PCI_NUM_REGIONS + (this.device.faults ? 1 : 0);
  }

  #sizeOf(index: number): number {
    return index === FAULT_REGION_INDEX ? FAULT_REGION_BYTES : regionSize(this.device.pci, index);
  }

  /** The region and the place in it. EINVAL when there is none. */
  #place(offset: bigint): { readonly index: number; readonly at: number } {
    const index = regionIndex(offset);
    if (offset < 0n || index >= this.#regions)
      throw this.#error("EINVAL", `offset ${hex(offset)} is in none of its ${this.#regions} regions`);
    return { index, at: withinRegion(offset) };
  }

  /** How much of an access is within the region. EINVAL when nothing is; config space takes whole accesses only. */
  #reach(index: number, at: number, length: number): number {
    const size = this.#sizeOf(index);
    const whole = index === VFIO_PCI_CONFIG_REGION_INDEX;
    if (at >= size || (whole && at + length > size))
      throw this.#error(
        "EINVAL",
        `${length} bytes at ${hex(at)} are not within region ${index}, which has ${hex(size)} bytes`,
      );
    return Math.min(length, size - at);
  }

  /** A mapping of the region answers. */
  #checkMapped(index: number): void {
    this.#checkDecoding(index);
    if (this.device.lowPower.allowed)
      throw this.#error("EIO", "low power is allowed: mapped regions answer after LOW_POWER_EXIT");
  }

  /** The ROM is turned on for it, as VFIO does; memory decoding is the user's. */
  #readRom(at: number, into: Uint8Array): void {
    const { config, pci } = this.device;
    if (!config.decodes({ kind: "mem32" }))
      throw this.#error(
        "EIO",
        "the expansion ROM is not decoded: memory (bit 1) is off in the command register",
      );
    into.set(pci.rom!.contents.subarray(at, at + into.length));
  }

  /** The BAR answers: its kind of access is on in the command register. */
  #checkDecoding(index: number): void {
    const bar = this.#open && isBar(index) ? barOf(this.device.pci, index) : undefined;
    if (bar && this.device.config.decodes(bar)) return;
    throw this.#error(
      "EIO",
      bar
        ? `region ${index} is not decoded: ${bar.kind === "io" ? "I/O (bit 0)" : "memory (bit 1)"} is off in the command register`
        : `region ${index} is not a BAR of an open device`,
    );
  }

  #error(code: "EINVAL" | "ENOTTY" | "EIO", reason: string): LinuxError {
    return new LinuxError(code, reason, this.name);
  }
}
