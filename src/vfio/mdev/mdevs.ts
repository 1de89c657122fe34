/**
 * The mediated devices of a machine: made of parents by type under a UUID, and removed again, while the machine runs. Each
 * is a VFIO device in a group of its own. A device of type `queue` is IOMMU-backed: it has a work queue of its parent, and
 * an auxiliary domain for its default PASID. One of type `software` has neither: its maker reaches memory for it, and a
 * nesting container refuses it.
 */
import type { Clock } from "../../base/clock.ts";
import type { EventSink } from "../../base/events.ts";
import type { Scheduler } from "../../base/scheduler.ts";
import type { SoftwareDriver } from "../../drivers/software/driver.ts";
import type { Device, IommuCore } from "../../iommu/core.ts";
import type { Pasids } from "../../iommu/pasids.ts";
import type { MsiController } from "../../kernel/msi.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { QueueRegister } from "../../pci/devices/work-queue.ts";
import { HostBridge } from "../../pci/dma.ts";
import type { FunctionContext } from "../../pci/pci-function.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { VfioSubsystem } from "../subsystem.ts";
import { MdevFunction, type MdevHooks, type QueueFront } from "./mdev-function.ts";
import { MediatedQueue } from "./mediated-queue.ts";
import type { QueueParent } from "./queue-parent.ts";
import { SoftwareQueue } from "./software-queue.ts";

export const MDEV_TYPES = ["queue", "software"] as const;
export type MdevType = (typeof MDEV_TYPES)[number];

/** Devices made by software that a parent can have. */
const MOST_SOFTWARE = 16;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

export interface Mdev {
  readonly uuid: string;
  readonly type: MdevType;
  readonly parent: QueueParent;
  readonly device: Device;
}

export interface MdevParts {
  readonly core: IommuCore;
  readonly vfio: VfioSubsystem;
  readonly msi: MsiController;
  readonly memory: HostMemory;
  readonly pasids: Pasids;
  /** The driver of devices that are not IOMMU-backed. */
  readonly software: SoftwareDriver;
  readonly parents: readonly QueueParent[];
  readonly events: EventSink;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  /** Whether devices can be IOMMU-backed: Linux has none. */
  readonly backed: boolean;
}

/** A device, and how what it has is given back. */
interface Made {
  readonly mdev: Mdev;
  undo(): void;
}

export class Mdevs {
  readonly #parts: MdevParts;
  readonly #made = new Map<string, Made>();

  constructor(parts: MdevParts) {
    this.#parts = parts;
  }

  get parents(): readonly QueueParent[] {
    return this.#parts.parents;
  }
  /** By UUID. */
  get devices(): ReadonlyMap<string, Mdev> {
    return new Map([...this.#made].map(([uuid, { mdev }]) => [uuid, mdev]));
  }

  /** Types that a parent offers. */
  typesOf({ device, parts }: QueueParent): readonly MdevType[] {
    const backed = this.#parts.backed && device.capabilities.pasidBits > 0 && parts.pasidBits > 0;
    return backed ? MDEV_TYPES : MDEV_TYPES.filter((type) => type !== "queue");
  }

  /** Devices of the type that can still be made of the parent. */
  available(parent: QueueParent, type: MdevType): number {
    if (type === "queue") return parent.available;
    const made = [...this.#made.values()].filter(({ mdev }) => mdev.parent === parent && mdev.type === type);
    return MOST_SOFTWARE - made.length;
  }

  /**
   * Throws EINVAL for what is no UUID, EEXIST for one that is taken, ENODEV when the parent does not offer the type, ENOSPC
   * when none is left of it, or no PASID.
   */
  create(parent: QueueParent, type: MdevType, text: string): Mdev {
    const uuid = text.trim().toLowerCase();
    if (!UUID.test(uuid))
      throw new LinuxError("EINVAL", `"${printable(text.trim())}" is no UUID`, parent.name);
    if (this.#made.has(uuid)) throw new LinuxError("EEXIST", "there is such a mediated device", uuid);
    if (!this.typesOf(parent).includes(type))
      throw new LinuxError(
        "ENODEV",
        this.#parts.backed
          ? `${parent.name} has no PASIDs that are the whole machine's, which devices of type ${type} need`
          : `mediated devices that are IOMMU-backed need the extension vsva2020`,
        uuid,
      );
    if (this.available(parent, type) <= 0)
      throw new LinuxError("ENOSPC", `${parent.name} has no device of type ${type} left to give`, uuid);
    const made = type === "queue" ? this.#makeBacked(parent, uuid) : this.#makeSoftware(parent, uuid);
    this.#made.set(uuid, made);
    this.#parts.vfio.admit(made.mdev.device.group);
    return made.mdev;
  }

  /** Throws ENODEV when there is none, EBUSY while it is open: its user has then been asked to close it. */
  remove(uuid: string): void {
    const made = this.#made.get(uuid);
    if (!made) throw new LinuxError("ENODEV", "there is no such mediated device", uuid);
    const { device } = made.mdev;
    this.#parts.vfio.withdraw(device);
    this.#made.delete(uuid);
    this.#parts.core.removeDevice(device);
    made.undo();
  }

  #makeBacked(parent: QueueParent, uuid: string): Made {
    const { core, pasids, events, vfio } = this.#parts;
    const { parts } = parent;
    const own = this.#takePasid(parent);
    const queue = parent.take()!;
    const hostPasid = (pasid: number): number | undefined => {
      const host = vfio.hostPasid(mdev.device.group, pasid);
      return host !== undefined && parts.has(made, host) ? host : undefined;
    };
    const front = (hooks: MdevHooks): QueueFront =>
      new MediatedQueue({ name: uuid, queue, pasids: { own, hostPasid }, events }, hooks);
    const { pasidBits } = parent.device.capabilities;
    const made = new MdevFunction(this.#contextOf(parent, uuid), pasidBits, front);
    parts.admit(made, own, (pasid) => queue.set(QueueRegister.ABORT, pasid));
    const mdev: Mdev = {
      uuid,
      type: "queue",
      parent,
      device: core.addDevice(made, parts, core.addGroup()),
    };
    return {
      mdev,
      undo: () => {
        parent.giveBack(queue);
        pasids.giveBack(own);
      },
    };
  }

  /** One that no part of the parent has: users of iommufd choose their own. Throws ENOSPC. */
  #takePasid({ parts, device }: QueueParent): number {
    const { pasids } = this.#parts;
    const skipped: number[] = [];
    try {
      for (;;) {
        const pasid = pasids.takeForHost(device.capabilities.pasidBits);
        if (!parts.isTaken(pasid)) return pasid;
        skipped.push(pasid);
      }
    } finally {
      for (const pasid of skipped) pasids.giveBack(pasid);
    }
  }

  #makeSoftware(parent: QueueParent, uuid: string): Made {
    const { core, software, memory, events } = this.#parts;
    const unit = software.makeUnit();
    const port = new HostBridge({ memory, unit, events }).port(parent.device.function.rid);
    const context = this.#contextOf(parent, uuid);
    const made = new MdevFunction(context, 0, (hooks) => new SoftwareQueue(port, hooks));
    software.admit(made, unit);
    const device = core.addDevice(made, software, core.addGroup());
    return { mdev: { uuid, type: "software", parent, device }, undo: () => {} };
  }

  /** It is nowhere on a bus; what it says of itself there is its parent's. */
  #contextOf({ device }: QueueParent, name: string): FunctionContext {
    const { memory, events, clock, scheduler } = this.#parts;
    const { address } = device.function;
    const bridge = new HostBridge({ memory, events });
    return { address, name, bridge, barBase: () => 0, scheduler, clock, events };
  }
}

const printable = (text: string): string => text.replaceAll(/[^ -~]/g, "?");
