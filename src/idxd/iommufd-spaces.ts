/**
 * What an iommufd has given to an accelerator: PASIDs with page tables of its own, guests' tables among them. To iommufd the
 * accelerator is one device for each file, a part of the function (`iommu/auxiliary.ts`), which all queues share that the file's PASIDs
 * were given to. It keeps the file's objects as long as a queue uses one.
 */
import type { EventSink } from "../base/events.ts";
import { type Device, Group } from "../iommu/core.ts";
import type { Requester } from "../iommu/driver.ts";
import type { Pasids } from "../iommu/pasids.ts";
import type { IommufdContext } from "../iommufd/context.ts";
import { bindDevice, type DeviceObject } from "../iommufd/device.ts";
import type { Task } from "../kernel/call.ts";
import { DsaCommand } from "../pci/devices/dsa/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Accelerator } from "./accelerator.ts";
import type { Space } from "./space.ts";

/** A PASID of the file. */
interface Use {
  readonly hwpt: number;
  count: number;
}

/** The accelerator as one file has it. */
class IommufdPart {
  readonly context: IommufdContext;
  readonly #accelerator: Accelerator;
  readonly #pasids: Pasids;
  readonly #device: Device<Requester>;
  /** The part's default PASID, which no request carries. */
  readonly #own: number;
  readonly #object: DeviceObject;
  readonly #uses = new Map<number, Use>();

  /** Throws ENOSPC without a free PASID, ENOMEM. */
  constructor(accelerator: Accelerator, pasids: Pasids, context: IommufdContext, events: EventSink) {
    const { device, parts } = accelerator;
    this.context = context;
    this.#accelerator = accelerator;
    this.#pasids = pasids;
    const requester = { name: `${device.name} for ${context.name}`, rid: device.function.rid };
    const group = new Group<Requester>(device.group.id, events);
    this.#own = pasids.takeForHost(device.capabilities.pasidBits);
    // A PASID that is taken away is not given to anybody before everything that carries it has been aborted.
    parts.admit(requester, this.#own, () => {});
    const { name } = requester;
    this.#device = { function: requester, driver: parts, group, capabilities: device.capabilities, name };
    group.admit(this.#device);
    try {
      this.#object = bindDevice(context, this.#device);
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  get idle(): boolean {
    return this.#uses.size === 0;
  }

  /** Throws EBUSY when the PASID is somebody else's or has another table, and what attaching throws. */
  use(task: Task, ptId: number, pasid: number): void {
    const known = this.#uses.get(pasid);
    if (known) {
      if (known.hwpt !== ptId)
        throw new LinuxError(
          "EBUSY",
          `PASID ${pasid} has page table ${known.hwpt} in another queue of ${this.#accelerator.name}`,
        );
      known.count += 1;
      return;
    }
    this.#pasids.claim(task, pasid, this.context);
    try {
      this.#uses.set(pasid, { hwpt: this.#object.attach(ptId, pasid), count: 1 });
    } catch (error) {
      this.#pasids.unclaim(pasid, this.context);
      throw error;
    }
  }

  leave(pasid: number): void {
    const use = this.#uses.get(pasid)!;
    use.count -= 1;
    if (use.count > 0) return;
    this.#uses.delete(pasid);
    this.#object.detach(pasid);
    const { context } = this;
    this.#accelerator.order(DsaCommand.ABORT_PASID, pasid, () => this.#pasids.unclaim(pasid, context));
  }

  close(): void {
    this.#object.unbind();
    this.#release();
  }

  #release(): void {
    this.#accelerator.parts.release(this.#device.function);
    this.#pasids.giveBack(this.#own);
  }
}

export class IommufdSpaces {
  readonly #accelerator: Accelerator;
  readonly #pasids: Pasids;
  readonly #events: EventSink;
  readonly #parts = new Map<IommufdContext, IommufdPart>();

  constructor(accelerator: Accelerator, pasids: Pasids, events: EventSink) {
    this.#accelerator = accelerator;
    this.#pasids = pasids;
    this.#events = events;
  }

  /**
   * A PASID of the file with a page table of it, for one more queue; without `wanted` the lowest that nobody has. Throws
   * ENOENT and EINVAL for what is no page table for PASIDs, EBUSY for a PASID that is somebody else's, ENOSPC.
   */
  use(task: Task, context: IommufdContext, ptId: number, wanted: number | undefined): Space {
    const known = this.#parts.get(context);
    const part = known ?? new IommufdPart(this.#accelerator, this.#pasids, context, this.#events);
    const pasid = wanted ?? this.#lowest();
    try {
      part.use(task, ptId, pasid);
    } catch (error) {
      if (!known) part.close();
      throw error;
    }
    this.#parts.set(context, part);
    return {
      pasid,
      prepare: () => {},
      submitted: () => {},
      leave: () => {
        part.leave(pasid);
        if (!part.idle) return;
        this.#parts.delete(context);
        part.close();
      },
    };
  }

  #lowest(): number {
    const { capabilities } = this.#accelerator.device;
    for (let pasid = 1; pasid < 2 ** capabilities.pasidBits; pasid += 1)
      if (!this.#pasids.ownerOf(pasid) && !this.#accelerator.parts.isTaken(pasid)) return pasid;
    throw new LinuxError("ENOSPC", "every PASID is taken", this.#accelerator.name);
  }
}
