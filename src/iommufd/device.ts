/**
 * Devices in an iommufd file, for the drivers of device files (VFIO's character devices, a test's mock devices): bind,
 * attach, replace, detach, unbind, with and without PASID. All devices of a group have one HWPT; PASIDs are attached
 * one by one. Attached to an IOAS, a device gets an automatic HWPT that fits, or a new one.
 */
import type { Device, Group } from "../iommu/core.ts";
import type { Domain, Requester, UserData } from "../iommu/driver.ts";
import { pageRequestsOf } from "../iommu/page-requests.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { AddressRange } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { Hwpt, type HwptOptions, HwptPaging } from "./hwpt.ts";
import { Ioas } from "./ioas.ts";
import { IommufdObject } from "./objects.ts";

export type BoundDevice = Device<Requester>;

/** What the devices of a group are attached to with one PASID, or without. */
interface Attachment {
  hwpt: Hwpt;
  readonly devices: Set<DeviceObject>;
}

const NO_PASID = -1;
const keyOf = (pasid: number | undefined): number => pasid ?? NO_PASID;

/** A group as one file has it. */
class GroupState {
  readonly group: Group<Requester>;
  /** By PASID. */
  readonly attachments = new Map<number, Attachment>();
  bound = 0;

  constructor(group: Group<Requester>) {
    this.group = group;
  }

  /** Gives every device of the group the domain, or none. */
  give(domain: Domain | undefined, pasid: number | undefined): void {
    if (domain) this.group.attach(domain, pasid);
    else this.group.detach(pasid);
  }
}

/** Groups of each file. */
const groupsOf = new WeakMap<IommufdContext, Map<Group<Requester>, GroupState>>();

const stateOf = (context: IommufdContext, group: Group<Requester>): GroupState => {
  let groups = groupsOf.get(context);
  if (!groups) {
    groups = new Map();
    groupsOf.set(context, groups);
  }
  let state = groups.get(group);
  if (!state) {
    state = new GroupState(group);
    groups.set(group, state);
  }
  return state;
};

/** A device as an object of the file. The kernel holds it: DESTROY of it is EBUSY. */
export class DeviceObject extends IommufdObject {
  readonly type = "device";
  readonly device: BoundDevice;
  readonly context: IommufdContext;
  /** The vDEVICE made of it: goes with the device and leaves its number behind. */
  follower: IommufdObject | undefined;
  readonly #state: GroupState;
  readonly #keeps: boolean;

  constructor(context: IommufdContext, device: BoundDevice, keeps: boolean) {
    super();
    this.#keeps = keeps;
    this.context = context;
    this.device = device;
    this.#state = stateOf(context, device.group);
    device.group.claim(context);
    this.#state.bound += 1;
    this.users = 1;
  }

  /** What it is attached to. */
  hwpt(pasid?: number): Hwpt | undefined {
    const attachment = this.#state.attachments.get(keyOf(pasid));
    return attachment?.devices.has(this) ? attachment.hwpt : undefined;
  }

  /**
   * Attaches to the HWPT or IOAS of this number, and gives the number of the HWPT. Throws ENOENT, EINVAL, EBUSY,
   * EADDRINUSE, and what mapping throws; then nothing has changed.
   */
  attach(ptId: number, pasid?: number): number {
    return this.#change(ptId, (hwpt) => this.#attachTo(hwpt, pasid));
  }

  /** Attaches to something else, without a moment of nothing. Throws EINVAL when it is not attached. */
  replace(ptId: number, pasid?: number): number {
    return this.#change(ptId, (hwpt) => this.#replaceWith(hwpt, pasid));
  }

  /** Nothing happens when it is not attached. */
  detach(pasid?: number): void {
    const { attachments } = this.#state;
    const attachment = attachments.get(keyOf(pasid));
    if (!attachment?.devices.delete(this)) return;
    if (attachment.devices.size === 0) {
      this.#state.give(undefined, pasid);
      attachments.delete(keyOf(pasid));
    }
    const { hwpt } = attachment;
    this.#unlisten(hwpt, pasid);
    if (pasid === undefined) hwpt.ioas.pagetable.unreserve(this);
    leave(hwpt, 1);
  }

  /** The driver of the file gives it back: detached from everything, and gone. */
  unbind(): void {
    for (const pasid of [...this.#state.attachments.keys()])
      this.detach(pasid === NO_PASID ? undefined : pasid);
    this.users = 0;
    this.context.objects.remove(this);
    if (this.#keeps) this.context.release();
  }

  destroy(): void {
    if (this.follower) this.context.objects.bury(this.follower);
    this.#state.bound -= 1;
    if (this.#state.bound > 0) return;
    this.device.group.release(this.context);
    groupsOf.get(this.context)?.delete(this.device.group);
  }

  #change(ptId: number, to: (hwpt: Hwpt) => void): number {
    const object = this.context.objects.find(ptId);
    if (!object)
      throw new LinuxError(
        "ENOENT",
        `there is no object ${ptId}; a HWPT or an IOAS is attached to`,
        this.name,
      );
    if (object instanceof Hwpt) {
      to(object);
      return object.id;
    }
    if (object instanceof Ioas) return this.#automatic(object, to).id;
    throw new LinuxError(
      "EINVAL",
      `object ${ptId} is ${object.type}; a HWPT or an IOAS is attached to`,
      this.name,
    );
  }

  /** An automatic HWPT of the IOAS that takes the device, or a new one. */
  #automatic(ioas: Ioas, to: (hwpt: Hwpt) => void): Hwpt {
    for (const hwpt of ioas.hwpts) {
      if (!(hwpt instanceof HwptPaging && hwpt.automatic)) continue;
      try {
        to(hwpt);
        return hwpt;
      } catch (error) {
        if (!(error instanceof LinuxError && error.code === "EINVAL")) throw error;
      }
    }
    const hwpt = this.allocatePaging(ioas, { automatic: true });
    try {
      to(hwpt);
    } catch (error) {
      this.context.objects.remove(hwpt);
      throw error;
    }
    return hwpt;
  }

  /** A new HWPT for this device, filled from the IOAS, in the table. */
  allocatePaging(ioas: Ioas, options: HwptOptions, data?: UserData): HwptPaging {
    const { driver, function: requester } = this.device;
    const { nestParent = false, dirtyTracking = false, pasid = false, faults = false } = options;
    this.context.allocate("a domain");
    const domain = driver.allocatePaging(requester, {
      nestParent,
      dirtyTracking,
      pasid,
      faults,
      ...(data && { data }),
    });
    let hwpt: HwptPaging;
    try {
      const coherent = this.device.capabilities.cacheCoherent;
      hwpt = new HwptPaging(this.context, ioas, domain, { coherent, ...options });
    } catch (error) {
      domain.free();
      throw error;
    }
    try {
      return this.context.add(hwpt);
    } catch (error) {
      hwpt.destroy();
      throw error;
    }
  }

  #attachTo(hwpt: Hwpt, pasid: number | undefined): void {
    const { attachments } = this.#state;
    const now = attachments.get(keyOf(pasid));
    if (now?.devices.has(this))
      throw new LinuxError(
        "EBUSY",
        `${pasid === undefined ? "it" : `PASID ${pasid}`} is attached to ${now.hwpt.name} already`,
        this.name,
      );
    if (now && now.hwpt !== hwpt)
      throw new LinuxError(
        "EINVAL",
        `its group is attached to ${now.hwpt.name}, and all devices of a group have the same`,
        this.name,
      );
    this.#requirePasid(hwpt, pasid);
    this.context.allocate("an attachment");
    if (pasid === undefined) this.#reserve(hwpt.ioas);
    try {
      if (!now) {
        this.#state.give(hwpt.domain, pasid);
        attachments.set(keyOf(pasid), { hwpt, devices: new Set([this]) });
      } else now.devices.add(this);
    } catch (error) {
      if (pasid === undefined) hwpt.ioas.pagetable.unreserve(this);
      throw error;
    }
    hwpt.users += 1;
    this.#listen(hwpt, pasid);
  }

  #replaceWith(hwpt: Hwpt, pasid: number | undefined): void {
    const attachment = this.#state.attachments.get(keyOf(pasid));
    if (!attachment?.devices.has(this))
      throw new LinuxError("EINVAL", "it is not attached, so there is nothing to replace", this.name);
    const before = attachment.hwpt;
    if (before === hwpt) return;
    this.#requirePasid(hwpt, pasid);
    this.context.allocate("an attachment");
    const devices = [...attachment.devices];
    const moves = pasid === undefined && before.ioas !== hwpt.ioas;
    const reserved: DeviceObject[] = [];
    try {
      if (moves)
        for (const device of devices) {
          device.#reserve(hwpt.ioas);
          reserved.push(device);
        }
      this.#state.give(hwpt.domain, pasid);
    } catch (error) {
      for (const device of reserved) hwpt.ioas.pagetable.unreserve(device);
      throw error;
    }
    attachment.hwpt = hwpt;
    for (const device of devices) {
      device.#unlisten(before, pasid);
      device.#listen(hwpt, pasid);
    }
    if (moves) for (const device of devices) before.ioas.pagetable.unreserve(device);
    hwpt.users += devices.length;
    leave(before, devices.length);
  }

  /** A PASID needs a HWPT that was made for PASIDs, and so does the device itself while it has PASIDs attached. */
  #requirePasid(hwpt: Hwpt, pasid: number | undefined): void {
    const { attachments } = this.#state;
    if (pasid === undefined) {
      if (hwpt.pasid || ![...attachments.keys()].some((key) => key !== NO_PASID)) return;
      throw new LinuxError(
        "EINVAL",
        `${hwpt.name} was not made for PASIDs (IOMMU_HWPT_ALLOC_PASID), and PASIDs of the device are attached`,
        this.name,
      );
    }
    const { pasidBits } = this.device.capabilities;
    if (pasid >= 2 ** pasidBits || pasidBits === 0)
      throw new LinuxError(
        "EINVAL",
        `PASID ${pasid} has more than the ${pasidBits} bits of the device`,
        this.name,
      );
    for (const one of [hwpt, attachments.get(NO_PASID)?.hwpt])
      if (one && !one.pasid)
        throw new LinuxError(
          "EINVAL",
          `${one.name} was not made for PASIDs (IOMMU_HWPT_ALLOC_PASID), as what a device with PASIDs has must be`,
          this.name,
        );
  }

  /** Page faults under the HWPT go to its queue. */
  #listen(hwpt: Hwpt, pasid: number | undefined): void {
    const { fault } = hwpt;
    if (!fault) return;
    const { driver, function: requester } = this.device;
    pageRequestsOf(driver).handle(requester, pasid, (group) => fault.report({ device: this, pasid, group }));
  }

  /** What waits for an answer is answered. */
  #unlisten(hwpt: Hwpt, pasid: number | undefined): void {
    if (!hwpt.fault) return;
    const { driver, function: requester } = this.device;
    pageRequestsOf(driver).unhandle(requester, pasid);
    hwpt.fault.answer((waiting) => waiting.device === this && waiting.pasid === pasid);
  }

  #reserve({ pagetable }: Ioas): void {
    const { driver, function: requester } = this.device;
    try {
      for (const { start, length, kind } of driver.reserved(requester))
        if (kind !== "direct-relaxable") pagetable.reserve(this, rangeOf(start, length));
    } catch (error) {
      pagetable.unreserve(this);
      throw error;
    }
  }
}

const rangeOf = (start: number, length: number): AddressRange => ({
  start: BigInt(start),
  last: BigInt(start) + BigInt(length) - 1n,
});

/** Devices have left; an automatic HWPT goes with the last. */
const leave = (hwpt: Hwpt, devices: number): void => {
  hwpt.users -= devices;
  if (hwpt.automatic && hwpt.users === 0) hwpt.context.objects.remove(hwpt);
};

/**
 * Binds a device to the file: its group's DMA belongs to the file from now on. Throws EBUSY while somebody else owns
 * the group, ENOMEM. `keeps`: the file's objects stay until it is unbound, even when the file is closed.
 */
export const bindDevice = (
  context: IommufdContext,
  device: BoundDevice,
  { keeps = true }: { readonly keeps?: boolean } = {},
): DeviceObject => {
  context.allocate("a device");
  const object = new DeviceObject(context, device, keeps);
  try {
    context.add(object);
  } catch (error) {
    object.destroy();
    throw error;
  }
  if (keeps) context.keep();
  return object;
};

export const deviceOf = (context: IommufdContext, id: number): DeviceObject =>
  context.objects.get(id, DeviceObject, "dev_id");
