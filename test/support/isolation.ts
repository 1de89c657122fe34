/**
 * What devices may reach, told from the system calls of their owners alone: the bytes of each request before and after, by
 * the layouts of `src/uapi` and nothing else of `src`. A device that is bound, with a page table attached (or one for a
 * PASID), reaches the pages that the page table's address space maps at that moment: at their addresses where the table is
 * the host's own, at whatever address the guest likes where the table is nested. Nothing else.
 *
 * What an IOMMU unit fetches on the way is judged too. In memory of processes it reads tables of the guest, where one is
 * nested, with the rights that the device has there. Elsewhere it finds what the host took for itself when it was switched
 * on, and for an access of a device the frames that the host took while it served calls about that device, or about
 * the address space that it is attached to. A nesting container of 2020 is an address space of its own: its device reaches
 * what it maps, and with a PASID that is bound there whatever its guest likes of that. Left out: containers with several
 * groups, mapping of files, addresses that the kernel chooses.
 */
import * as iommufd from "../../src/uapi/iommufd.ts";
import * as amd from "../../src/uapi/vendor/amd.ts";
import * as arm from "../../src/uapi/vendor/smmuv3.ts";
import * as vfio from "../../src/uapi/vfio.ts";
import * as vsva from "../../src/uapi/vsva.ts";

/** A system call that was made. */
export type SystemCall = { readonly process: number; readonly fd: number } & (
  | { readonly kind: "open"; readonly path: string }
  | { readonly kind: "close" }
  | {
      readonly kind: "ioctl";
      readonly request: number;
      readonly given: Uint8Array;
      readonly answered: Uint8Array;
      /** What the call returned. */
      readonly value: number;
      readonly failed: boolean;
    }
);

/** A system call that is made now: what the host takes meanwhile is for it. */
export type Served = Pick<
  Extract<SystemCall, { readonly kind: "ioctl" }>,
  "process" | "fd" | "request" | "given"
>;

/** Whose memory a page is, and where it is there; undefined: no process's. */
export type Place = { readonly process: number; readonly va: number } | undefined;

/** One page, or a part of it, that a device read or wrote. */
export interface Reached {
  /** Path of the device's file: "/dev/vfio/devices/vfio0". */
  readonly device: string;
  /** Undefined: the request had none. */
  readonly pasid: number | undefined;
  readonly write: boolean;
  /** The address that the device gave. */
  readonly iova: number;
  readonly where: Place;
}

/** A word of a table or a queue that a unit itself read or wrote. */
export interface Fetched {
  /** Whose access it was for; undefined: nobody's. */
  readonly device: string | undefined;
  readonly pasid: number | undefined;
  readonly write: boolean;
  /** Number of the frame of host memory. */
  readonly frame: number;
  readonly where: Place;
}

interface Page {
  readonly process: number;
  readonly va: number;
  readonly readable: boolean;
  readonly writable: boolean;
}

/** Pages by number of the address. */
type Space = Map<number, Page>;

/** What an id in an iommufd stands for, as far as devices reach something by it. */
interface Table {
  readonly space: Space;
  /** The guest's addresses are not the space's. */
  readonly nested: boolean;
  /** All PASIDs of a device go through it. */
  readonly everyPasid: boolean;
}

/** By id in one iommufd. */
type Context = Map<number, Table>;

interface BoundDevice {
  path: string;
  context: Context | undefined;
  /** By PASID; undefined: without one. */
  readonly attached: Map<number | undefined, Table>;
}

/** A container, and the device of the group that is in it. */
interface Container {
  readonly process: number;
  readonly table: Table;
  device: BoundDevice | undefined;
}

/** A group's file, and the device that it gives out. */
interface Group {
  readonly device: BoundDevice;
  container: Container | undefined;
}

/** What the host took a frame for: a call about this device, or about this address space. */
interface Purpose {
  readonly device: BoundDevice | undefined;
  readonly space: Space | undefined;
}
/** The machine itself, before there were any calls. */
const MACHINE = "machine";

/** Addresses [start, end). */
export interface AddressRange {
  readonly start: number;
  readonly end: number;
}

const PAGE = 4096;
const pageOf = (address: number): number => Math.floor(address / PAGE);

/** Where writes are interrupts on a platform, whatever is mapped. */
export interface MessageRanges {
  /** Those of functions, when they have no PASID. */
  readonly functions?: AddressRange;
  /** Those of the units themselves. */
  readonly units?: AddressRange;
}

export class IsolationOracle {
  readonly #contexts = new Map<string, Context>();
  readonly #devices = new Map<string, BoundDevice>();
  readonly #containers = new Map<string, Container>();
  readonly #groups = new Map<string, Group>();
  /** Path of a device's own file by the function's name. */
  readonly #paths = new Map<string, string>();
  /** Devices by path, open or not. */
  readonly #open = new Map<string, BoundDevice>();
  /** What frames that the host has taken are for. */
  readonly #frames = new Map<number, Purpose | typeof MACHINE>();
  readonly #messages: MessageRanges;

  constructor(messages: MessageRanges = {}) {
    this.#messages = messages;
  }

  take(call: SystemCall): void {
    const key = `${call.process} ${call.fd}`;
    switch (call.kind) {
      case "open":
        this.#opened(key, call.process, call.path);
        break;
      case "close":
        this.#closed(key);
        break;
      case "ioctl": {
        if (call.failed) return;
        const context = this.#contexts.get(key);
        const device = this.#devices.get(key);
        if (context) takeRequest(context, call.process, call.request, call.given, call.answered);
        if (device) this.#takeDevice(device, call.process, call.request, call.given);
        const group = this.#groups.get(key);
        const container = this.#containers.get(key);
        if (group) this.#takeGroup(group, call);
        if (container) takeContainer(container, this.#containers.values(), call);
      }
    }
  }

  /** Why the device should not have been there; undefined: it was right. */
  objection({ device: path, pasid, write, iova, where }: Reached): string | undefined {
    const device = this.#open.get(path);
    if (!device) return "nobody has opened the device";
    if (!where) {
      const message = write && pasid === undefined && isWithin(this.#messages.functions, iova);
      return message ? undefined : "it is no memory of any process";
    }
    const table = tableOf(device, pasid);
    if (!table) return "no page table is attached";
    const { space, nested } = table;
    const allowed = nested
      ? some(space.values(), (page) => isThere(page, where, write))
      : isThere(space.get(pageOf(iova)), where, write);
    return allowed ? undefined : "its address space does not map that page so";
  }

  /** Why the unit should not have read or written that; undefined: it was right. */
  fetchObjection({ device: path, pasid, write, frame, where }: Fetched): string | undefined {
    const device = path === undefined ? undefined : this.#open.get(path);
    const table = device && tableOf(device, pasid);
    if (where) {
      if (!table?.nested) return "a process's memory holds no table for it";
      const granted = some(table.space.values(), (page) => isThere(page, where, write));
      return granted
        ? undefined
        : "its address space does not map that page so, and a table of its guest was there";
    }
    if (write && isWithin(this.#messages.units, frame * PAGE)) return undefined;
    const purpose = this.#frames.get(frame);
    if (purpose === undefined) return "it is no frame that the host has taken for a table";
    if (purpose === MACHINE) return undefined;
    if (device && purpose.device === device) return undefined;
    if (table && purpose.space === table.space) return undefined;
    return "the frame was taken for another device, or for another address space";
  }

  /** The host takes a frame; `call`: for what, undefined: before there were any. */
  took(frame: number, call: Served | undefined): void {
    this.#frames.set(frame, call ? this.#purpose(call) : MACHINE);
  }
  gave(frame: number): void {
    this.#frames.delete(frame);
  }

  #purpose({ process, fd, request, given }: Served): Purpose {
    const key = `${process} ${fd}`;
    const container = this.#containers.get(key) ?? this.#groups.get(key)?.container;
    if (container) return { device: container.device, space: container.table.space };
    const device = this.#devices.get(key) ?? this.#groups.get(key)?.device;
    const context = device?.context ?? this.#contexts.get(key);
    return { device, space: context?.get(subject(request, given) ?? 0)?.space };
  }

  /** The function of this name has its own file there. */
  names(name: string, path: string): void {
    this.#paths.set(name, path);
  }

  #opened(key: string, process: number, path: string): void {
    const device = { path, context: undefined, attached: new Map() };
    if (path === "/dev/iommu") this.#contexts.set(key, new Map());
    else if (path === "/dev/vfio/vfio") {
      const table = { space: new Map(), nested: false, everyPasid: false };
      this.#containers.set(key, { process, table, device: undefined });
    } else if (/^\/dev\/vfio\/\d+$/.test(path)) this.#groups.set(key, { device, container: undefined });
    else {
      this.#devices.set(key, device);
      this.#open.set(path, device);
    }
  }

  #takeGroup(group: Group, { process, request, given, value }: IoctlCall): void {
    if (request === vfio.VFIO_GROUP_SET_CONTAINER) {
      const fd = new DataView(given.buffer, given.byteOffset).getInt32(0, true);
      group.container = this.#containers.get(`${process} ${fd}`);
      if (group.container) group.container.device = group.device;
    } else if (request === vfio.VFIO_GROUP_GET_DEVICE_FD) {
      const name = Buffer.from(given).toString().replace(/\0.*$/s, "");
      group.device.path = this.#paths.get(name) ?? name;
      this.#devices.set(`${process} ${value}`, group.device);
      this.#open.set(group.device.path, group.device);
    }
  }

  #closed(key: string): void {
    this.#contexts.delete(key);
    this.#containers.delete(key);
    this.#groups.delete(key);
    const device = this.#devices.get(key);
    if (!device) return;
    this.#devices.delete(key);
    this.#open.delete(device.path);
  }

  #takeDevice(device: BoundDevice, process: number, request: number, given: Uint8Array): void {
    switch (request) {
      case vfio.VFIO_DEVICE_BIND_IOMMUFD:
        device.context = this.#contexts.get(`${process} ${vfio.VfioDeviceBindIommufd.read(given).iommufd}`);
        break;
      case vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT: {
        const { flags, pt_id, pasid } = padded(vfio.VfioDeviceAttachIommufdPt, given);
        const tag = flags & vfio.VFIO_DEVICE_ATTACH_PASID ? pasid : undefined;
        device.attached.set(tag, known(device.context, pt_id));
        break;
      }
      case vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT: {
        const { flags, pasid } = padded(vfio.VfioDeviceDetachIommufdPt, given);
        device.attached.delete(flags & vfio.VFIO_DEVICE_DETACH_PASID ? pasid : undefined);
      }
    }
  }
}

type IoctlCall = Extract<SystemCall, { readonly kind: "ioctl" }>;

/** What a request on a container changed; freed PASIDs are unbound in all of the process's. */
const takeContainer = (container: Container, all: Iterable<Container>, call: IoctlCall): void => {
  const { process, request, given } = call;
  const { device, table } = container;
  switch (request) {
    case vfio.VFIO_SET_IOMMU:
      device?.attached.set(undefined, table);
      break;
    case vfio.VFIO_IOMMU_MAP_DMA: {
      const { flags, vaddr, iova, size } = vfio.VfioIommuType1DmaMap.read(given);
      const readable = (flags & vfio.VFIO_DMA_MAP_FLAG_READ) !== 0;
      const writable = (flags & vfio.VFIO_DMA_MAP_FLAG_WRITE) !== 0;
      for (let at = 0; at < Number(size); at += PAGE)
        table.space.set(pageOf(Number(iova) + at), { process, va: Number(vaddr) + at, readable, writable });
      break;
    }
    case vfio.VFIO_IOMMU_UNMAP_DMA: {
      const { iova, size } = padded(vfio.VfioIommuType1DmaUnmap, given);
      for (let at = 0; at < Number(size); at += PAGE) table.space.delete(pageOf(Number(iova) + at));
      break;
    }
    case vsva.VFIO_IOMMU_PASID_REQUEST: {
      const { flags, range } = vsva.VfioIommuType1PasidRequest.read(given);
      if (flags !== vsva.VFIO_IOMMU_FLAG_FREE_PASID) break;
      for (const { process: owner, device: has } of all)
        for (const pasid of owner === process ? [...(has?.attached.keys() ?? [])] : [])
          if (pasid !== undefined && pasid >= range.min && pasid <= range.max) has!.attached.delete(pasid);
      break;
    }
    case vsva.VFIO_IOMMU_NESTING_OP: {
      const { flags } = padded(vsva.VfioIommuType1NestingOp, given);
      const data = given.subarray(vsva.VfioIommuType1NestingOp.offsets.data);
      const bound = { ...table, nested: true };
      if (flags === vsva.VFIO_IOMMU_NESTING_OP_BIND_PGTBL)
        device?.attached.set(Number(vsva.IommuGpasidBindData.read(data).hpasid), bound);
      else if (flags === vsva.VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL)
        device?.attached.delete(Number(vsva.IommuGpasidBindData.read(data).hpasid));
    }
  }
};

const isWithin = (range: AddressRange | undefined, address: number): boolean =>
  range !== undefined && address >= range.start && address < range.end;

/** The page table that requests of a device with this PASID go through. */
const tableOf = (device: BoundDevice, pasid: number | undefined): Table | undefined => {
  const without = device.attached.get(undefined);
  const tag = pasid === 0 ? undefined : pasid;
  return device.attached.get(tag) ?? (without?.everyPasid ? without : undefined);
};

/** Whether a page that is mapped is that page of a process, with the right. */
const isThere = (page: Page | undefined, where: NonNullable<Place>, write: boolean): boolean =>
  page !== undefined &&
  page.process === where.process &&
  pageOf(page.va) === pageOf(where.va) &&
  (write ? page.writable : page.readable);

/** The address space, or what is made of one, that a request is about. */
const subject = (request: number, given: Uint8Array): number | undefined => {
  switch (request) {
    case iommufd.IOMMU_IOAS_MAP:
      return iommufd.IommuIoasMap.read(given).ioas_id;
    case iommufd.IOMMU_IOAS_COPY:
      return iommufd.IommuIoasCopy.read(given).dst_ioas_id;
    case iommufd.IOMMU_IOAS_UNMAP:
      return iommufd.IommuIoasUnmap.read(given).ioas_id;
    case iommufd.IOMMU_HWPT_ALLOC:
      return iommufd.IommuHwptAlloc.read(given).pt_id;
    case iommufd.IOMMU_HWPT_INVALIDATE:
      return iommufd.IommuHwptInvalidate.read(given).hwpt_id;
    case vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT:
      return padded(vfio.VfioDeviceAttachIommufdPt, given).pt_id;
    default:
      return undefined;
  }
};

const some = <T>(all: Iterable<T>, test: (one: T) => boolean): boolean => {
  for (const one of all) if (test(one)) return true;
  return false;
};

/** What a request on an iommufd changed. */
const takeRequest = (
  context: Context,
  process: number,
  request: number,
  given: Uint8Array,
  answered: Uint8Array,
): void => {
  switch (request) {
    case iommufd.IOMMU_IOAS_ALLOC: {
      const { out_ioas_id } = iommufd.IommuIoasAlloc.read(answered);
      context.set(out_ioas_id, { space: new Map(), nested: false, everyPasid: false });
      break;
    }
    case iommufd.IOMMU_HWPT_ALLOC: {
      const { pt_id, data_type, out_hwpt_id } = iommufd.IommuHwptAlloc.read(answered);
      const nested = data_type !== iommufd.IOMMU_HWPT_DATA_NONE;
      const everyPasid =
        data_type === arm.IOMMU_HWPT_DATA_ARM_SMMUV3 || data_type === amd.IOMMU_HWPT_DATA_AMD_GUEST;
      context.set(out_hwpt_id, { space: known(context, pt_id).space, nested, everyPasid });
      break;
    }
    case iommufd.IOMMU_VIOMMU_ALLOC: {
      const { hwpt_id, out_viommu_id } = iommufd.IommuViommuAlloc.read(answered);
      context.set(out_viommu_id, known(context, hwpt_id));
      break;
    }
    case iommufd.IOMMU_DESTROY:
      context.delete(iommufd.IommuDestroy.read(given).id);
      break;
    case iommufd.IOMMU_IOAS_MAP:
      map(context, process, answered);
      break;
    case iommufd.IOMMU_IOAS_COPY:
      copy(context, answered);
      break;
    case iommufd.IOMMU_IOAS_UNMAP: {
      const { ioas_id, iova, length } = iommufd.IommuIoasUnmap.read(given);
      const { space } = known(context, ioas_id);
      const [first, last] = [iova / BigInt(PAGE), (iova + length - 1n) / BigInt(PAGE)];
      for (const page of [...space.keys()]) if (page >= first && page <= last) space.delete(page);
    }
  }
};

const rights = (flags: number): Pick<Page, "readable" | "writable"> => ({
  readable: (flags & iommufd.IOMMU_IOAS_MAP_READABLE) !== 0,
  writable: (flags & iommufd.IOMMU_IOAS_MAP_WRITEABLE) !== 0,
});

const map = (context: Context, process: number, bytes: Uint8Array): void => {
  const { flags, ioas_id, user_va, length, iova } = iommufd.IommuIoasMap.read(bytes);
  const { space } = known(context, ioas_id);
  for (let at = 0; at < Number(length); at += PAGE)
    space.set(pageOf(Number(iova) + at), { process, va: Number(user_va) + at, ...rights(flags) });
};

const copy = (context: Context, bytes: Uint8Array): void => {
  const { flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova } = iommufd.IommuIoasCopy.read(bytes);
  const target = known(context, dst_ioas_id).space;
  const source = known(context, src_ioas_id).space;
  for (let at = 0; at < Number(length); at += PAGE) {
    const page = source.get(pageOf(Number(src_iova) + at));
    if (page) target.set(pageOf(Number(dst_iova) + at), { ...page, ...rights(flags) });
  }
};

const known = (context: Context | undefined, id: number): Table => {
  const table = context?.get(id);
  if (!table) throw new Error(`the host accepted object ${id}, which is none that devices reach memory by`);
  return table;
};

/** Reads a structure of which the caller gave only the beginning. */
const padded = <T>(layout: { readonly size: number; read(bytes: Uint8Array): T }, given: Uint8Array): T => {
  const bytes = new Uint8Array(layout.size);
  bytes.set(given.subarray(0, layout.size));
  return layout.read(bytes);
};
