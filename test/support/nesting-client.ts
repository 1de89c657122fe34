/** A modelled program that uses nesting containers of a machine, and the DMA test functions behind them. */
import { ManualClock } from "../../src/base/clock.ts";
import { type EventSink, silent } from "../../src/base/events.ts";
import { WorkQueue } from "../../src/base/scheduler.ts";
import { ModelTask, type ModelTaskOptions } from "../../src/kernel/model-task.ts";
import { parseMachine } from "../../src/machine/file.ts";
import { Machine } from "../../src/machine/machine.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import { RequestPasid } from "../../src/pci/devices/requests.ts";
import { TestCommand, TestRegister, TestStatus } from "../../src/pci/devices/test-function.ts";
import { Header } from "../../src/pci/spec.ts";
import {
  SOFTIOMMU_NESTING_OP_PAGE_RESPONSE,
  SoftiommuFaultRegionHeader,
  SoftiommuVfioInfoCapPasidQuota,
} from "../../src/uapi/extensions.ts";
import { findCapabilities } from "../../src/uapi/info-chain.ts";
import { VFIO_IOMMU_GET_INFO, VfioIommuType1Info } from "../../src/uapi/vfio.ts";
import * as vsva from "../../src/uapi/vsva.ts";
import { FAULT_IRQ_INDEX } from "../../src/vfio/irqs.ts";
import { regionOffset } from "../../src/vfio/regions.ts";
import { VfioClient } from "./vfio-client.ts";

export const PAGE = 4096;
export const NESTING = 6;
export const FIRST = "0000:05:00.0";
export const SECOND = "0000:06:00.0";
/** Where a program has its guest's memory, 64 pages that the container maps from 0 on. */
const GUEST = 0x1_0000_0000;
const GUEST_PAGES = 64;
/** The page that a guest's process uses, and its table: one page for each level. */
export const VA = 0x5555_0000_0000;
export const ROOT = 8 * PAGE;
const ENTRY = 7n;
const CONFIG = 7;
/** The device's region of faults. */
export const FAULT_REGION = regionOffset(9);
const bar = (offset: number): bigint => regionOffset(0) + BigInt(offset);

/** The preset without its mediated devices, which need the extension and PASIDs. */
export const withoutMdevs = (text: string): string => text.slice(0, text.indexOf("\nmdevs:") + 1);

/** A machine made of the preset `vtd-vsva`, of which `edit` changes the text. */
export class NestingRig {
  readonly work = new WorkQueue();
  readonly machine: Machine;

  constructor(edit: (text: string) => string = (text) => text, events: EventSink = silent) {
    const text = edit(PRESETS.get("vtd-vsva")!);
    this.machine = new Machine(parseMachine(text, "vtd-vsva"), {
      events,
      clock: new ManualClock(),
      scheduler: this.work,
    });
  }

  /** A program; with `shares`, another thread of one. */
  client(options: ModelTaskOptions = {}): NestingClient {
    return new NestingClient(this, new ModelTask(this.machine.memory, options), options.shares === undefined);
  }

  /** What clients have left behind: nothing, when all is well. */
  left(): [string, number][] {
    return Object.entries(this.machine.live()).filter(([, count]) => count !== 0);
  }

  groupOf(device: string): number {
    return this.machine.core.devices.get(device)!.group.id;
  }
}

type BindWrite = Parameters<typeof vsva.IommuGpasidBindData.bytes>[0];
type ResponseWrite = Parameters<typeof vsva.IommuPageResponse.bytes>[0];
type InvalidateWrite = Parameters<typeof vsva.IommuCacheInvalidateInfo.bytes>[0];

/** A container with one group, and its device. */
export interface Setup {
  readonly container: number;
  readonly group: number;
  readonly device: number;
}

export class NestingClient extends VfioClient {
  readonly rig: NestingRig;

  constructor(rig: NestingRig, task: ModelTask, own: boolean) {
    super(task, rig.machine.vfio);
    this.rig = rig;
    if (own) task.memory.map(GUEST, GUEST_PAGES * PAGE);
  }

  /** A nesting container that maps the guest's memory; the device may access memory. */
  setUp(device: string, type = NESTING): Setup {
    const { container, group } = this.attach(this.rig.groupOf(device), type);
    this.map(container, { vaddr: GUEST, iova: 0, size: GUEST_PAGES * PAGE });
    const fd = this.device(group, device);
    this.task.pwrite(fd, regionOffset(CONFIG) + BigInt(Header.COMMAND), Uint8Array.of(6, 0));
    return { container, group, device: fd };
  }

  tearDown({ container, group, device }: Setup): void {
    for (const fd of [device, group, container]) this.task.close(fd);
  }

  /** Writes to guest memory. */
  poke(address: number, data: Uint8Array): void {
    this.task.memory.write(BigInt(GUEST + address), data);
  }

  /** Reads guest memory. */
  peek(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.task.memory.read(BigInt(GUEST + address), bytes);
    return bytes;
  }

  /** The guest's table at `root` maps its VA to this page, or not. */
  writeTable(page: number | undefined, root = ROOT): void {
    for (let level = 4; level >= 1; level--) {
      const table = root + (4 - level) * PAGE;
      const index = Number((BigInt(VA) >> BigInt(12 + 9 * (level - 1))) & 511n);
      const below = level > 1 ? table + PAGE : page;
      const entry = below === undefined ? 0n : BigInt(below) | ENTRY;
      this.poke(table + 8 * index, new Uint8Array(new BigUint64Array([entry]).buffer));
    }
  }

  /** GET_INFO with this argsz in a buffer of 1024 bytes full of 0xa5. */
  rawInfo(container: number, argsz: number): Uint8Array {
    const bytes = new Uint8Array(1024).fill(0xa5);
    new DataView(bytes.buffer).setUint32(0, argsz, true);
    this.task.ioctl(container, VFIO_IOMMU_GET_INFO, bytes);
    return bytes;
  }

  #capability(container: number, id: number): { readonly bytes: Uint8Array; readonly at: number } {
    const bytes = this.rawInfo(container, 1024);
    const { cap_offset } = VfioIommuType1Info.read(bytes);
    const found = findCapabilities(bytes, cap_offset).find((capability) => capability.id === id);
    if (!found) throw new Error(`no capability ${id}`);
    return { bytes, at: found.at };
  }

  nestingInfo(container: number) {
    const { bytes, at } = this.#capability(container, vsva.VFIO_IOMMU_TYPE1_INFO_CAP_NESTING);
    return vsva.VfioIommuType1InfoCapNesting.read(bytes, at).info;
  }

  /** The process's quota, and what is left of it. */
  quota(container: number): [number, number] {
    const { bytes, at } = this.#capability(container, 0x8001);
    const { quota, available } = SoftiommuVfioInfoCapPasidQuota.read(bytes, at);
    return [quota, available];
  }

  pasidRequest(container: number, flags: number, min: number, max: number, argsz = 16): number {
    const bytes = vsva.VfioIommuType1PasidRequest.bytes({ argsz, flags, range: { min, max } });
    return this.task.ioctl(container, vsva.VFIO_IOMMU_PASID_REQUEST, bytes);
  }

  allocate(container: number, min = 1, max = 2 ** 20 - 1): number {
    return this.pasidRequest(container, vsva.VFIO_IOMMU_FLAG_ALLOC_PASID, min, max);
  }

  free(container: number, min: number, max = min): number {
    return this.pasidRequest(container, vsva.VFIO_IOMMU_FLAG_FREE_PASID, min, max);
  }

  /** NESTING_OP with this data; `argsz` as the request says it. */
  operate(container: number, flags: number, data: Uint8Array, argsz = 8 + data.length): number {
    const bytes = new Uint8Array(8 + data.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, argsz, true);
    view.setUint32(4, flags, true);
    bytes.set(data, 8);
    return this.task.ioctl(container, vsva.VFIO_IOMMU_NESTING_OP, bytes);
  }

  bindData(pasid: number | bigint, members: BindWrite = {}): Uint8Array {
    return vsva.IommuGpasidBindData.bytes({
      argsz: vsva.IommuGpasidBindData.size,
      version: 1,
      format: vsva.IOMMU_PASID_FORMAT_INTEL_VTD,
      addr_width: 48,
      gpgd: BigInt(ROOT),
      hpasid: BigInt(pasid),
      ...members,
    });
  }

  bind(container: number, pasid: number | bigint, members: BindWrite = {}): number {
    return this.operate(container, vsva.VFIO_IOMMU_NESTING_OP_BIND_PGTBL, this.bindData(pasid, members));
  }

  unbind(container: number, pasid: number | bigint, members: BindWrite = {}): number {
    return this.operate(container, vsva.VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL, this.bindData(pasid, members));
  }

  invalidate(container: number, members: InvalidateWrite): number {
    const data = vsva.IommuCacheInvalidateInfo.bytes({
      argsz: vsva.IommuCacheInvalidateInfo.size,
      version: 1,
      ...members,
    });
    return this.operate(container, vsva.VFIO_IOMMU_NESTING_OP_CACHE_INVLD, data);
  }

  /** One page of the PASID changed. */
  invalidatePage(container: number, pasid: number | bigint, address = VA): number {
    return this.invalidate(container, {
      cache: vsva.IOMMU_CACHE_INV_TYPE_IOTLB | vsva.IOMMU_CACHE_INV_TYPE_DEV_IOTLB,
      granularity: vsva.IOMMU_INV_GRANU_ADDR,
      granu: {
        addr_info: {
          flags: vsva.IOMMU_INV_ADDR_FLAGS_PASID | vsva.IOMMU_INV_ADDR_FLAGS_LEAF,
          pasid: BigInt(pasid),
          addr: BigInt(address),
          granule_size: BigInt(PAGE),
          nb_granules: 1n,
        },
      },
    });
  }

  /** The byte that the device reads there, with the PASID or without; "fault" when it may not. */
  read(setup: Setup, address: number, pasid?: number): number | "fault" {
    this.begin(setup, TestCommand.READ, address, pasid);
    if (this.transfer(setup) !== TestStatus.DONE) return "fault";
    const got = new Uint8Array(1);
    this.task.pread(setup.device, bar(TestRegister.BUFFER), got);
    return got[0]!;
  }

  /** The device accesses a byte there, and comes as far as it can. */
  begin({ device }: Setup, command: number, address: number, pasid?: number): void {
    const set = (offset: number, value: number): void => {
      this.task.pwrite(device, bar(offset), new Uint8Array(new Uint32Array([value]).buffer));
    };
    const outside = command === TestCommand.READ ? TestRegister.SOURCE : TestRegister.DESTINATION;
    const inside = command === TestCommand.READ ? TestRegister.DESTINATION : TestRegister.SOURCE;
    set(outside, address % 2 ** 32);
    set(outside + 4, Math.floor(address / 2 ** 32));
    set(inside, 0);
    set(inside + 4, 0);
    set(TestRegister.LENGTH, 1);
    set(
      TestRegister.PASID,
      pasid === undefined ? 0 : Number(RequestPasid.make({ Value: pasid, Valid: true })),
    );
    set(TestRegister.COMMAND, command);
    this.rig.work.run();
  }

  /** How far its access has come: a `TestStatus`. */
  transfer({ device }: Setup): number {
    this.rig.work.run();
    const status = new Uint8Array(4);
    this.task.pread(device, bar(TestRegister.STATUS), status);
    return status[0]!;
  }

  /** An eventfd that is signalled for the device's faults. */
  listen({ device }: Setup): number {
    const eventfd = this.task.eventfd();
    this.trigger(device, FAULT_IRQ_INDEX, [eventfd]);
    return eventfd;
  }

  faultHead({ device }: Setup) {
    const bytes = new Uint8Array(SoftiommuFaultRegionHeader.size);
    this.task.pread(device, FAULT_REGION, bytes);
    return SoftiommuFaultRegionHeader.read(bytes);
  }

  /** The faults that are in the ring, by pread; they are taken by a write to `consumer`. */
  takeFaults(setup: Setup) {
    const { size, read } = vsva.IommuFault;
    const { producer, consumer, entries } = this.faultHead(setup);
    const found: ReturnType<typeof read>[] = [];
    for (let at = consumer; at !== producer; at = (at + 1) >>> 0) {
      const bytes = new Uint8Array(size);
      const place = SoftiommuFaultRegionHeader.size + (at % entries) * size;
      this.task.pread(setup.device, FAULT_REGION + BigInt(place), bytes);
      found.push(vsva.IommuFault.read(bytes));
    }
    this.setConsumer(setup, producer);
    return found;
  }

  setConsumer({ device }: Setup, consumer: number): void {
    const at = FAULT_REGION + BigInt(SoftiommuFaultRegionHeader.offsets.consumer);
    this.task.pwrite(device, at, new Uint8Array(new Uint32Array([consumer]).buffer));
  }

  /** PAGE_RESPONSE, with a PASID where one is given. */
  respond(container: number, members: ResponseWrite): number {
    const data = vsva.IommuPageResponse.bytes({
      argsz: vsva.IommuPageResponse.size,
      version: 1,
      flags: members.pasid === undefined ? 0 : vsva.IOMMU_PAGE_RESP_PASID_VALID,
      ...members,
    });
    return this.operate(container, SOFTIOMMU_NESTING_OP_PAGE_RESPONSE, data);
  }
}
