/**
 * The functions of a machine in their slots. A function can be taken out, as by writing to its `remove` in sysfs, and
 * is found again by a rescan of the bus: a new one then, with nothing of what the old one held outside its file. Left
 * out: hotplug of functions that the machine did not have at the start.
 */
import type { Device, Group, IommuCore } from "../iommu/core.ts";
import type { IommuDriver } from "../iommu/driver.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { showBars } from "../pci/bar-window.ts";
import type { Endpoint } from "../pci/pci-function.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { DeviceDescription } from "./schema.ts";

interface Plugged {
  readonly description: DeviceDescription;
  readonly made: Endpoint;
  readonly hideBars: () => void;
}

export interface SlotParts {
  readonly core: IommuCore;
  readonly memory: HostMemory;
  /** Throws an Error with a sentence when it cannot be made. */
  make(device: DeviceDescription): Endpoint;
  driverOf(device: DeviceDescription): IommuDriver;
}

export class Slots {
  readonly #parts: SlotParts;
  readonly #plugged = new Map<string, Plugged>();
  /** What was taken out. */
  readonly #empty = new Set<DeviceDescription>();
  /** Groups that the machine file names. */
  readonly #named = new Map<string, Group>();

  constructor(parts: SlotParts) {
    this.#parts = parts;
  }

  get functions(): readonly Endpoint[] {
    return [...this.#plugged.values()].map(({ made }) => made);
  }

  plug(description: DeviceDescription): Device {
    const { core, memory } = this.#parts;
    const made = this.#parts.make(description);
    this.#plugged.set(made.name, { description, made, hideBars: showBars(memory, made) });
    const shared = this.#sharedGroup(description);
    const group = shared ?? core.addGroup();
    if (description.group !== undefined) this.#named.set(description.group, group);
    return core.addDevice(made, this.#parts.driverOf(description), group);
  }

  /** Nobody uses it. */
  unplug(device: Device): void {
    const { description, made, hideBars } = this.#plugged.get(device.name)!;
    this.#parts.core.removeDevice(device);
    hideBars();
    made.close();
    this.#plugged.delete(device.name);
    this.#empty.add(description);
  }

  /** Everything that was taken out is there again. Throws EBUSY while somebody uses the group of one of them. */
  refill(): readonly Device[] {
    for (const description of this.#empty)
      if (this.#sharedGroup(description)?.owned)
        throw new LinuxError(
          "EBUSY",
          "its group is in use; it is found again when the group is given back",
          description.at,
        );
    const found = [...this.#empty].map((description) => this.plug(description));
    this.#empty.clear();
    return found;
  }

  /** The named group, if it still exists. */
  #sharedGroup({ group: name }: DeviceDescription): Group | undefined {
    const group = name === undefined ? undefined : this.#named.get(name);
    return group && this.#parts.core.groups.get(group.id) === group ? group : undefined;
  }
}
