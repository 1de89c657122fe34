/**
 * /dev/vfio/N: an IOMMU group, open once at a time (linux/vfio.h, "IOCTLs for GROUP file descriptors"), and not while
 * one of its devices is bound as a character device. In a container its file is held by its descriptors and by every
 * device opened through it; the group leaves when it is gone. An iommufd in a container's place is not held so: each
 * device is bound to it by its first file and attached to the IOAS of VFIO's requests, whatever becomes of the group.
 */
import type { Group } from "../iommu/core.ts";
import { ensureCompatIoas } from "../iommufd/compat.ts";
import type { IommufdContext } from "../iommufd/context.ts";
import { contextOf } from "../iommufd/file.ts";
import { compatIoasOf } from "../iommufd/ioas.ts";
import type { Call, KernelFile, Task } from "../kernel/call.ts";
import { openFile } from "../kernel/open-file.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_GROUP_FLAGS_CONTAINER_SET,
  VFIO_GROUP_FLAGS_VIABLE,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  VfioGroupStatus,
} from "../uapi/vfio.ts";
import { hex, readArgument } from "./argument.ts";
import { Container } from "./container.ts";
import type { VfioContext } from "./context.ts";
import { DeviceFile } from "./device.ts";
import { Nesting } from "./nesting/nesting.ts";
import { isUnprotected, requireRawio } from "./no-iommu.ts";
import type { PciDevice } from "./pci-device.ts";

/** Longest device name that is looked for, with its end. */
const NAME_BYTES = 256;

/** The group as VFIO knows it; `file` is the open one. */
export class VfioGroup {
  readonly group: Group;
  readonly name: string;
  readonly #context: VfioContext;
  /** The devices of the group by name. */
  readonly #devices = new Map<string, PciDevice>();
  #opened = false;
  /** Device files that came from it. */
  #users = 0;
  /** Descriptors of the group file are open. */
  #held = false;
  #container: Container | undefined;
  /** The iommufd that stands for a container. */
  #iommufd: IommufdContext | undefined;
  /** Devices of it that are bound as character devices. */
  #cdevs = 0;

  constructor(context: VfioContext, group: Group) {
    this.#context = context;
    this.group = group;
    this.name = `group ${group.id}`;
  }

  /** What it is in: a container, or an iommufd. */
  get home(): { readonly name: string } | undefined {
    return this.#container ?? this.#iommufd;
  }
  get devices(): ReadonlyMap<string, PciDevice> {
    return this.#devices;
  }
  add(device: PciDevice): void {
    this.#devices.set(device.name, device);
  }
  remove(name: string): void {
    this.#devices.delete(name);
  }

  /** No IOMMU is in front of its devices. */
  get unprotected(): boolean {
    return isUnprotected(this.group);
  }

  /** Throws EPERM when it takes a capability to use it that the task lacks. */
  requireMay(task: Task): void {
    if (this.unprotected) requireRawio(task, this.name);
  }

  /**
   * open(2). EPERM without the capability it takes; EBUSY while it is open, by descriptors or by a device; ENODEV when
   * nothing is in it.
   */
  open(task: Task): GroupFile {
    this.requireMay(task);
    if (this.#opened)
      throw new LinuxError(
        "EBUSY",
        this.#held
          ? "it is open already; a group is open once at a time"
          : "a device opened through it is still open; it must be closed first",
        this.name,
      );
    this.#requireNoCdev();
    if (this.#devices.size === 0) throw new LinuxError("ENODEV", "it has no device", this.name);
    this.#opened = true;
    this.#held = true;
    this.#context.live.groups += 1;
    if (this.#context.events.on) this.#context.events.emit("open", { group: this.group.id });
    return new GroupFile(this);
  }

  /** The last descriptor of the group file went. */
  closed(): void {
    this.#held = false;
    this.#leaveIommufd();
    this.#settle();
  }

  /** Throws EBUSY while it, or a device of it, is open; the users of its devices are asked to give them back. */
  requireIdle(): void {
    if (!this.#opened && this.#cdevs === 0) return;
    for (const device of this.#devices.values()) device.askBack();
    throw new LinuxError("EBUSY", "its group or its device is open; it must be closed first", this.name);
  }

  /** The host's PASID that the user of its devices calls so; undefined: there is none. */
  hostPasid(pasid: number): number | undefined {
    const iommu = this.#container?.iommu;
    return iommu instanceof Nesting ? iommu.hostPasid(pasid) : pasid;
  }

  /** A device of it is bound as a character device until `releaseCdev`. Throws EBUSY while the group is open. */
  holdCdev(): void {
    if (this.#opened)
      throw new LinuxError(
        "EBUSY",
        "the group is open; its devices can be bound as character devices after it is closed",
        this.name,
      );
    this.#cdevs += 1;
  }

  releaseCdev(): void {
    this.#cdevs -= 1;
  }

  /** Viable: in use by this file, or its DMA has no other owner. */
  get status(): number {
    if (this.home) return VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET;
    return this.group.owned ? 0 : VFIO_GROUP_FLAGS_VIABLE;
  }

  /** Takes an iommufd for its container. Throws ENOMEM, and EINVAL when no IOMMU is there for it. */
  joinIommufd(context: IommufdContext): void {
    if (this.unprotected)
      throw new LinuxError(
        "EINVAL",
        "no IOMMU is in front of its devices; only a container (/dev/vfio/vfio) takes it",
        this.name,
      );
    ensureCompatIoas(context);
    context.keep();
    this.#iommufd = context;
  }

  /** Takes the group's DMA and joins; it is in no container. EBUSY when its DMA has another owner. */
  join(container: Container): void {
    this.group.claim(this);
    try {
      container.add(this.group);
    } catch (error) {
      this.group.release(this);
      throw error;
    }
    this.#container = container;
  }

  /** Leaves its container. EINVAL without one, EBUSY while a device is open; an iommufd is left at any time. */
  leave(): void {
    if (this.#iommufd) {
      this.#leaveIommufd();
      return;
    }
    if (!this.#container) throw new LinuxError("EINVAL", "it is in no container", this.name);
    if (this.#users > 0)
      throw new LinuxError(
        "EBUSY",
        `${this.#users} of its device files are open; they must be closed first`,
        this.name,
      );
    this.#depart();
  }

  /**
   * A new file of the device. ENODEV: no such device here; EINVAL: no container, or none with an IOMMU. With an iommufd
   * what binding and attaching throw: ENODEV without an IOAS, EBUSY, EFAULT, ENOMEM.
   */
  openDevice(name: string): DeviceFile {
    const device = this.#devices.get(name);
    if (!device)
      throw new LinuxError(
        "ENODEV",
        `it has no device "${printable(name)}"; it has ${[...this.#devices.keys()].join(", ")}`,
        this.name,
      );
    if (this.#iommufd) return this.#openBound(device, this.#iommufd);
    if (!this.#container?.iommu)
      throw new LinuxError(
        "EINVAL",
        this.#container
          ? `${this.#container.name} has no IOMMU; SET_IOMMU comes before GROUP_GET_DEVICE_FD`
          : "it is in no container; GROUP_SET_CONTAINER comes before GROUP_GET_DEVICE_FD",
        this.name,
      );
    const file = new DeviceFile(this.#context, device, {
      onClose: () => {
        this.#users -= 1;
        this.#settle();
      },
    });
    this.#users += 1;
    return file;
  }

  #openBound(device: PciDevice, iommufd: IommufdContext): DeviceFile {
    const file = new DeviceFile(this.#context, device, { iommufd });
    const { bound } = device;
    if (!bound || bound.hwpt()) return file;
    try {
      const ioas = compatIoasOf(iommufd);
      if (!ioas)
        throw new LinuxError(
          "ENODEV",
          `${iommufd.name} has no IOAS for VFIO's requests any more; IOMMU_VFIO_IOAS sets one`,
          this.name,
        );
      bound.attach(ioas.id);
      return file;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  #requireNoCdev(): void {
    if (this.#cdevs > 0)
      throw new LinuxError(
        "EBUSY",
        `${this.#cdevs} of its devices are bound as character devices; they must be closed first`,
        this.name,
      );
  }

  #leaveIommufd(): void {
    this.#iommufd?.release();
    this.#iommufd = undefined;
  }

  #settle(): void {
    if (this.#held || this.#users > 0) return;
    if (this.#container) this.#depart();
    this.#opened = false;
    this.#context.live.groups -= 1;
    if (this.#context.events.on) this.#context.events.emit("close", { group: this.group.id });
  }

  #depart(): void {
    this.#container?.remove(this.group);
    this.#container = undefined;
    this.group.release(this);
  }
}

const printable = (name: string): string => name.replaceAll(/[^ -~]/g, "?");

export class GroupFile implements KernelFile {
  readonly kind = "vfio-group";
  readonly name: string;
  readonly group: VfioGroup;

  constructor(group: VfioGroup) {
    this.group = group;
    this.name = group.name;
  }

  ioctl(call: Call, request: number, argument: bigint): number {
    switch (request) {
      case VFIO_GROUP_GET_STATUS:
        return this.#status(call, argument);
      case VFIO_GROUP_SET_CONTAINER:
        return this.#setContainer(call, argument);
      case VFIO_GROUP_UNSET_CONTAINER:
        this.group.leave();
        return 0;
      case VFIO_GROUP_GET_DEVICE_FD:
        return this.#getDevice(call, argument);
      default:
        throw new LinuxError("ENOTTY", `request ${hex(request)} means nothing to a group`, this.name);
    }
  }

  close(): void {
    this.group.closed();
  }

  #status(call: Call, at: bigint): number {
    const status = readArgument(call, at, VfioGroupStatus, VfioGroupStatus.size);
    call.memory.write(at, VfioGroupStatus.bytes({ ...status, flags: this.group.status }));
    return 0;
  }

  #getDevice(call: Call, at: bigint): number {
    const name = readName(call, at);
    this.group.requireMay(call.task);
    return call.install(this.group.openDevice(name), { closeOnExec: true });
  }

  #setContainer(call: Call, at: bigint): number {
    const fd = readS32(call, at);
    this.group.requireMay(call.task);
    const file = openFile(call, fd);
    if (this.group.home)
      throw new LinuxError("EINVAL", `it is in ${this.group.home.name} already`, this.name);
    const iommufd = contextOf(file);
    if (file instanceof Container) this.group.join(file);
    else if (iommufd) this.group.joinIommufd(iommufd);
    else
      throw new LinuxError(
        "EINVAL",
        `descriptor ${fd} is ${file?.name ?? "an ordinary file"}, not a container (/dev/vfio/vfio, or /dev/iommu)`,
        this.name,
      );
    return 0;
  }
}

const readS32 = (call: Call, at: bigint): number => {
  const bytes = new Int32Array(1);
  call.memory.read(at, new Uint8Array(bytes.buffer));
  return bytes[0]!;
};

/** A C string. EFAULT when memory ends before it does, EINVAL when it is too long. */
const readName = (call: Call, at: bigint): string => {
  const bytes = new Uint8Array(NAME_BYTES);
  for (let length = 0; length < NAME_BYTES; ) {
    const from = at + BigInt(length);
    const toPageEnd = FRAME_BYTES - Number(from % BigInt(FRAME_BYTES));
    const piece = bytes.subarray(length, Math.min(NAME_BYTES, length + toPageEnd));
    call.memory.read(from, piece);
    const stop = piece.indexOf(0);
    if (stop >= 0) return Buffer.from(bytes.subarray(0, length + stop)).toString("latin1");
    length += piece.length;
  }
  throw new LinuxError("EINVAL", `the device name has no end within ${NAME_BYTES} bytes`);
};
