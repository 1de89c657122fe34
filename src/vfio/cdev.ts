/**
 * /dev/vfio/devices/vfioN: a device as a character device (linux/vfio.h, "VFIO_DEVICE_BIND_IOMMUFD" and the requests
 * after it). A file of it reaches nothing until it is bound to an iommufd; one file is bound at a time, and not while
 * the device's group is open. Bound, it is a device file that is attached to IOASes and page tables, as a whole and by
 * PASID; closing it detaches and unbinds it.
 */
import type { IommufdContext } from "../iommufd/context.ts";
import type { DeviceObject } from "../iommufd/device.ts";
import { iommufdOf } from "../iommufd/file.ts";
import type { Call, KernelFile, MapSegment } from "../kernel/call.ts";
import { copyStruct, readSize } from "../uapi/copy.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_ATTACH_PASID,
  VFIO_DEVICE_BIND_FLAG_TOKEN,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_DETACH_IOMMUFD_PT,
  VFIO_DEVICE_DETACH_PASID,
  VfioDeviceAttachIommufdPt,
  VfioDeviceBindIommufd,
  VfioDeviceDetachIommufdPt,
} from "../uapi/vfio.ts";
import { hex, readArgument } from "./argument.ts";
import type { VfioContext } from "./context.ts";
import { DeviceFile } from "./device.ts";
import type { VfioGroup } from "./group.ts";
import type { PciDevice } from "./pci-device.ts";

/** Bytes of the token of a bind, a UUID. */
const TOKEN_BYTES = 16;
/** PASIDs are remembered by numbers that fit a signed int. */
const MOST_PASID = 2 ** 31;
/** IOMMU_NO_PASID: the device as a whole. */
const NO_PASID = 0;

export class Cdev {
  readonly device: PciDevice;
  readonly #context: VfioContext;
  readonly #group: VfioGroup;

  constructor(context: VfioContext, group: VfioGroup, device: PciDevice) {
    this.#context = context;
    this.#group = group;
    this.device = device;
  }

  /** open(2): any number of files; one of them can be bound. */
  open(): CdevFile {
    return new CdevFile(this.#context, this.#group, this.device);
  }
}

/** What a bound file has attached. */
interface Binding {
  readonly file: DeviceFile;
  readonly object: DeviceObject;
  /** The device as a whole is attached. */
  attached: boolean;
  readonly pasids: Set<number>;
}

export class CdevFile implements KernelFile {
  readonly kind = "vfio-device";
  readonly name: string;
  readonly #context: VfioContext;
  readonly #group: VfioGroup;
  readonly #device: PciDevice;
  #binding: Binding | undefined;
  #open = true;

  constructor(context: VfioContext, group: VfioGroup, device: PciDevice) {
    this.#context = context;
    this.#group = group;
    this.#device = device;
    this.name = `character device ${device.name}`;
    context.live.cdevs += 1;
  }

  ioctl(call: Call, request: number, argument: bigint): number {
    if (request === VFIO_DEVICE_BIND_IOMMUFD) return this.#bind(call, argument);
    const binding = this.#bound();
    if (request === VFIO_DEVICE_ATTACH_IOMMUFD_PT) return this.#attach(binding, call, argument);
    if (request === VFIO_DEVICE_DETACH_IOMMUFD_PT) return this.#detach(binding, call, argument);
    return binding.file.ioctl(call, request, argument);
  }

  pread(call: Call, offset: bigint, into: Uint8Array): number {
    return this.#bound().file.pread(call, offset, into);
  }
  pwrite(call: Call, offset: bigint, data: Uint8Array): number {
    return this.#bound().file.pwrite(call, offset, data);
  }
  mmap(call: Call, offset: bigint, length: number, protection: number, flags: number): readonly MapSegment[] {
    return this.#bound().file.mmap(call, offset, length, protection, flags);
  }
  trapRead(offset: bigint, into: Uint8Array): void {
    this.#bound().file.trapRead(offset, into);
  }
  trapWrite(offset: bigint, data: Uint8Array): void {
    this.#bound().file.trapWrite(offset, data);
  }
  trapEnqueue(offset: bigint, command: Uint8Array): boolean {
    return this.#bound().file.trapEnqueue(offset, command);
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#context.live.cdevs -= 1;
    if (!this.#binding) return;
    const { file, object, pasids } = this.#binding;
    file.close();
    for (const pasid of pasids) this.#unclaim(object, pasid);
    this.#binding = undefined;
    this.#group.releaseCdev();
  }

  #bound(): Binding {
    if (this.#binding) return this.#binding;
    throw this.#wrong(
      "the device is not bound to an iommufd by this file; VFIO_DEVICE_BIND_IOMMUFD comes first",
    );
  }

  #bind(call: Call, at: bigint): number {
    const read = (offset: number, into: Uint8Array) => call.memory.read(at + BigInt(offset), into);
    const minimum = VfioDeviceBindIommufd.fieldEnd("out_devid");
    const { iommufd, flags, token_uuid_ptr } = VfioDeviceBindIommufd.read(
      copyStruct(read, VfioDeviceBindIommufd, readSize(read), minimum),
    );
    const unknown = flags & ~VFIO_DEVICE_BIND_FLAG_TOKEN;
    if (unknown !== 0) throw this.#wrong(`flags ${hex(unknown >>> 0)} are not known; TOKEN (1) is`);
    if (iommufd < 0) throw this.#wrong(`iommufd is ${iommufd}; a descriptor of /dev/iommu is needed`);
    this.#group.holdCdev();
    try {
      if (this.#binding)
        throw this.#wrong(`this file is bound to ${this.#binding.object.context.name} already`);
      const context = iommufdOf(call, iommufd);
      if (flags !== 0) call.memory.read(token_uuid_ptr, new Uint8Array(TOKEN_BYTES));
      if (this.#device.opened)
        throw this.#wrong("another file of the device is bound; it must be closed first");
      return this.#bindTo(context, call, at);
    } catch (error) {
      this.#group.releaseCdev();
      throw error;
    }
  }

  /** The device has no virtual functions, so that any token is as good as none. */
  #bindTo(iommufd: IommufdContext, call: Call, at: bigint): number {
    const file = new DeviceFile(this.#context, this.#device, { iommufd, cdev: true });
    const object = this.#device.bound!;
    try {
      writeId(call, at + BigInt(VfioDeviceBindIommufd.offsets.out_devid), object.id);
    } catch (error) {
      file.close();
      throw error;
    }
    this.#binding = { file, object, attached: false, pasids: new Set() };
    return 0;
  }

  /** An answer that cannot be written leaves the device detached, also when it was attached before. */
  #attach(binding: Binding, call: Call, at: bigint): number {
    const layout = VfioDeviceAttachIommufdPt;
    const first = readArgument(call, at, layout, layout.fieldEnd("pt_id"));
    this.#requireFlags(first.flags, VFIO_DEVICE_ATTACH_PASID);
    const pasid = first.flags === 0 ? undefined : readArgument(call, at, layout, layout.size).pasid;
    const id =
      pasid === undefined
        ? attachDevice(binding, first.pt_id)
        : this.#attachPasid(binding, call, first.pt_id, pasid);
    try {
      writeId(call, at + BigInt(layout.offsets.pt_id), id);
    } catch (error) {
      this.#detachFrom(binding, pasid);
      throw error;
    }
    return 0;
  }

  #attachPasid({ object, pasids }: Binding, call: Call, ptId: number, pasid: number): number {
    if (pasids.has(pasid)) return object.replace(ptId, whole(pasid));
    if (pasid >= MOST_PASID)
      throw new LinuxError("ENOSPC", `PASID ${pasid} is beyond any that can be attached`, this.name);
    if (this.#mustClaim(pasid)) this.#context.pasids.claim(call.task, pasid, object.context);
    try {
      const id = object.attach(ptId, whole(pasid));
      pasids.add(pasid);
      return id;
    } catch (error) {
      this.#unclaim(object, pasid);
      throw error;
    }
  }

  /** Devices of others are behind the same table of PASIDs, and it is one: PASID 0 is the device as a whole. */
  #mustClaim(pasid: number): boolean {
    return pasid !== NO_PASID && (this.#device.device.driver.sharesPasids ?? false);
  }

  #unclaim({ context }: DeviceObject, pasid: number): void {
    if (this.#mustClaim(pasid)) this.#context.pasids.unclaim(pasid, context);
  }

  /** Nothing happens when it is not attached. */
  #detachFrom(binding: Binding, pasid: number | undefined): void {
    const { object, pasids } = binding;
    if (pasid === undefined) {
      if (binding.attached) object.detach();
      binding.attached = false;
    } else if (pasids.delete(pasid)) {
      object.detach(whole(pasid));
      this.#unclaim(object, pasid);
    }
  }

  #detach(binding: Binding, call: Call, at: bigint): number {
    const layout = VfioDeviceDetachIommufdPt;
    const { flags } = readArgument(call, at, layout, layout.fieldEnd("flags"));
    this.#requireFlags(flags, VFIO_DEVICE_DETACH_PASID);
    this.#detachFrom(binding, flags === 0 ? undefined : readArgument(call, at, layout, layout.size).pasid);
    return 0;
  }

  #requireFlags(flags: number, known: number): void {
    const unknown = flags & ~known;
    if (unknown !== 0) throw this.#wrong(`flags ${hex(unknown >>> 0)} are not known; PASID (1) is`);
  }

  #wrong(reason: string): LinuxError {
    return new LinuxError("EINVAL", reason, this.name);
  }
}

/** Attached already, it goes to the other page table without a moment of nothing. */
const attachDevice = (binding: Binding, ptId: number): number => {
  if (binding.attached) return binding.object.replace(ptId);
  const id = binding.object.attach(ptId);
  binding.attached = true;
  return id;
};

const whole = (pasid: number): number | undefined => (pasid === NO_PASID ? undefined : pasid);

/** One call at a time is served. */
const answer = Uint32Array.of(0);
const answerBytes = new Uint8Array(answer.buffer);
const writeId = (call: Call, at: bigint, id: number): void => {
  answer[0] = id;
  call.memory.write(at, answerBytes);
};
