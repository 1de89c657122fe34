/**
 * The back end for hosts that nest and take a guest's commands as they are (SMMUv3, AMD-Vi): for each unit of the host that
 * the guest's devices are behind a vIOMMU, above a page table of its own that maps the guest's memory; a vDEVICE for each
 * device by the number that the guest has for it, and a nested HWPT for what the guest's entry for the device says. What
 * PASIDs have is in tables of the guest that the host's units read themselves. The guest has one unit: a command of its
 * about a device goes to the unit that the device is behind, one about translations to all.
 */
import { LinuxError } from "../uapi/errno.ts";
import { IOMMU_HWPT_ALLOC_NEST_PARENT } from "../uapi/iommufd.ts";
import type { AssignedDevice, GuestRam } from "./assigned.ts";
import type { CommandBackEnd } from "./commands.ts";
import { forEvery } from "./every.ts";
import type { HostCalls, InvalidationCount } from "./host-calls.ts";

/** What the model of the unit decides. */
export interface NestingModel {
  /** IOMMU_VIOMMU_TYPE_*. */
  readonly viommu: number;
  /** The nested HWPT for an entry of the guest's. Throws what the host answers. */
  allocate(
    calls: HostCalls,
    device: AssignedDevice,
    viommu: number,
    entry: bigint,
    faults: number | undefined,
  ): number;
  send(calls: HostCalls, viommu: number, commands: readonly bigint[]): InvalidationCount;
  /** The guest's number of the device that a command is about; undefined: it is about translations. */
  deviceOf(command: bigint): number | undefined;
  /** An entry with tables of the guest. */
  translates(entry: bigint): boolean;
  /** By which a unit forgets what is below an entry that has not changed; absent: it is given the entry again. */
  forgetContexts?(rid: number): bigint;
}

export interface NestedCommandsOptions {
  readonly calls: HostCalls;
  readonly ram: GuestRam;
  readonly devices: readonly AssignedDevice[];
  /** What the guest's entry for a device asks for, of what is the guest's to say. */
  entryOf(rid: number): bigint;
  /** Fault queue for nested HWPTs; undefined: accesses that wait are not passed on. */
  readonly faults: number | undefined;
}

/** What a device has on the host. */
interface Attached {
  readonly entry: bigint;
  readonly hwpt: number;
}

export class NestedCommands implements CommandBackEnd {
  /** One for each unit of the host. */
  readonly viommus: readonly number[];
  readonly #model: NestingModel;
  readonly #options: NestedCommandsOptions;
  /** vIOMMU of each device, by the guest's number. */
  readonly #viommuOf = new Map<number, number>();
  readonly #attached = new Map<AssignedDevice, Attached>();

  /** Maps all of the guest's RAM; devices get what the guest's entries say. */
  constructor(model: NestingModel, options: NestedCommandsOptions) {
    const { calls, ram, devices } = options;
    this.#model = model;
    this.#options = options;
    if (devices.length === 0) throw new RangeError("a virtual IOMMU without devices has nothing to nest");
    const ioas = calls.allocateIoas();
    calls.map(ioas, { iova: 0, va: ram.va, length: ram.bytes });
    const viommus: number[] = [];
    for (const device of devices) {
      let viommu = viommus.find((known) => this.#takes(known, device));
      if (viommu === undefined) {
        const parent = calls.allocateHwpt(device.id, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT);
        viommu = calls.allocateViommu(device.id, parent, model.viommu);
        calls.allocateVdevice(viommu, device.id, device.rid);
        viommus.push(viommu);
      }
      this.#viommuOf.set(device.rid, viommu);
    }
    this.viommus = viommus;
    this.reread(0, Number.POSITIVE_INFINITY);
  }

  /** Tables of the guest that the host's units walk. */
  get held(): number {
    return [...this.#attached.values()].filter(({ entry }) => this.#model.translates(entry)).length;
  }

  reread(first: number, end: number): void {
    const concerned = this.#options.devices.filter(({ rid }) => rid >= first && rid < end);
    forEvery(concerned, (device) => this.#follow(device));
  }

  /** Nothing of the guest's tables is remembered: all devices leave what they have, and are given what entries say again. */
  renew(): void {
    const { calls } = this.#options;
    for (const device of this.#attached.keys()) calls.detach(device.fd);
    for (const { hwpt } of this.#attached.values()) calls.destroy(hwpt);
    this.#attached.clear();
    this.reread(0, Number.POSITIVE_INFINITY);
  }

  command(commands: readonly bigint[]): InvalidationCount {
    for (let done = 0; done < commands.length; ) {
      const to = this.#destination(commands[done]!);
      let end = done + 1;
      while (end < commands.length && this.#destination(commands[end]!) === to) end += 1;
      const part = this.#send(to, commands.slice(done, end));
      if (part.error) return { ...part, done: done + part.done };
      done = end;
    }
    return { done: commands.length };
  }

  /** The vIOMMU that a command is for; undefined: all, which refuse what is about a device of nobody. */
  #destination(command: bigint): number | undefined {
    if (this.viommus.length === 1) return this.viommus[0];
    const rid = this.#model.deviceOf(command);
    return rid === undefined ? undefined : this.#viommuOf.get(rid);
  }

  #send(to: number | undefined, commands: readonly bigint[]): InvalidationCount {
    const { calls } = this.#options;
    if (to !== undefined) return this.#model.send(calls, to, commands);
    for (const viommu of this.viommus) {
      const sent = this.#model.send(calls, viommu, commands);
      if (sent.error) return sent;
    }
    return { done: commands.length };
  }

  /** Makes the device a vDEVICE there; false: it is behind another unit of the host. */
  #takes(viommu: number, { id, rid }: AssignedDevice): boolean {
    try {
      this.#options.calls.allocateVdevice(viommu, id, rid);
      return true;
    } catch (error) {
      if (error instanceof LinuxError && error.code === "EINVAL") return false;
      throw error;
    }
  }

  #follow(device: AssignedDevice): void {
    const { calls, entryOf, faults } = this.#options;
    const entry = entryOf(device.rid);
    const before = this.#attached.get(device);
    if (before?.entry === entry && this.#isCurrent(device, entry)) return;
    const hwpt = this.#model.allocate(calls, device, this.#viommuOf.get(device.rid)!, entry, faults);
    try {
      calls.attach(device.fd, hwpt);
    } catch (error) {
      calls.destroy(hwpt);
      throw error;
    }
    this.#attached.set(device, { entry, hwpt });
    if (before) calls.destroy(before.hwpt);
  }

  /** An entry that is as it was: its invalidation means what is below it too. False: it has to be given anew for that. */
  #isCurrent({ rid }: AssignedDevice, entry: bigint): boolean {
    const { translates, forgetContexts } = this.#model;
    if (!translates(entry)) return true;
    if (!forgetContexts) return false;
    const { error } = this.command([forgetContexts(rid)]);
    if (error) throw error;
    return true;
  }
}
