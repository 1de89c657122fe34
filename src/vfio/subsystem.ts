/** VFIO as a whole: the device nodes programs open, and what is alive behind them. */
import { type EventSink, silent } from "../base/events.ts";
import { Ids } from "../base/ids.ts";
import type { Device, Group, IommuCore } from "../iommu/core.ts";
import { Pasids } from "../iommu/pasids.ts";
import type { DeviceNode, KernelFile } from "../kernel/call.ts";
import type { MsiController } from "../kernel/msi.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { Cdev } from "./cdev.ts";
import { Container } from "./container.ts";
import type { LiveObjects, VfioContext } from "./context.ts";
import { GroupFile, VfioGroup } from "./group.ts";
import { containerNode, deviceNode, groupNode } from "./nodes.ts";
import { PciDevice } from "./pci-device.ts";

export interface VfioParts {
  readonly core: IommuCore;
  readonly msi: MsiController;
  readonly events?: EventSink;
  /** The machine's PASIDs; without them nobody is given one. */
  readonly pasids?: Pasids;
  /** The extension `vsva2020`. */
  readonly vsva2020?: boolean;
  /** Units, by name, that tell nesting containers nothing of themselves. */
  readonly untold?: ReadonlySet<string>;
  /** Where fault regions of devices lie, which come with the extension. */
  readonly memory?: HostMemory;
}

export class VfioSubsystem {
  readonly #context: VfioContext;
  readonly #devices = new Map<string, PciDevice>();
  /** By number. */
  readonly #groups = new Map<number, VfioGroup>();
  readonly #groupNodes = new Map<number, DeviceNode>();
  readonly #deviceNodes = new Map<string, DeviceNode>();
  readonly #indices = new Ids();
  readonly #container: DeviceNode;
  /** Containers that were ever opened. */
  #containers = 0;

  /** Takes the devices that the core has at this moment, without those of groups that somebody owns: a driver of the host. */
  constructor({
    core,
    msi,
    events = silent,
    pasids,
    vsva2020 = false,
    memory,
    untold = new Set(),
  }: VfioParts) {
    this.#context = {
      core,
      msi,
      events,
      live: { containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 },
      pasids: pasids ?? new Pasids({ bits: 0 }),
      vsva2020,
      untold,
      faultMemory: vsva2020 ? memory : undefined,
      groupOf: (file: KernelFile) => (file instanceof GroupFile ? file.group.group : undefined),
      device: (name) => this.#devices.get(name),
    };
    this.#container = containerNode(() => new Container(this.#context, ++this.#containers));
    for (const group of core.groups.values()) if (!group.owned) this.admit(group);
  }

  /** /dev/vfio/vfio and a node for each group, and for each device behind an IOMMU. */
  get nodes(): readonly DeviceNode[] {
    return [this.#container, ...this.#groupNodes.values(), ...this.#deviceNodes.values()];
  }
  /** The nodes of groups, by the group's number. */
  get groupNodes(): ReadonlyMap<number, DeviceNode> {
    return this.#groupNodes;
  }
  /** The nodes of devices, by the device's name. */
  get deviceNodes(): ReadonlyMap<string, DeviceNode> {
    return this.#deviceNodes;
  }

  /** A group with its devices is VFIO's from now on, and so is what came to it since. Those without an IOMMU have no nodes of their own. */
  admit(group: Group): void {
    const admitted = this.#groups.get(group.id) ?? this.#admitGroup(group);
    for (const device of group.devices) {
      if (admitted.devices.has(device.name)) continue;
      const own = new PciDevice(this.#context, device);
      admitted.add(own);
      this.#devices.set(own.name, own);
      if (admitted.unprotected) continue;
      const cdev = new Cdev(this.#context, admitted, own);
      this.#deviceNodes.set(
        own.name,
        deviceNode(this.#indices.take(), () => cdev.open()),
      );
    }
  }

  #admitGroup(group: Group): VfioGroup {
    const admitted = new VfioGroup(this.#context, group);
    this.#groups.set(group.id, admitted);
    this.#groupNodes.set(
      group.id,
      groupNode(group.id, admitted.unprotected ? `noiommu-${group.id}` : String(group.id), (task) =>
        admitted.open(task),
      ),
    );
    return admitted;
  }

  /**
   * The device is VFIO's no more, and with its last one the group. Throws EBUSY while the group is in use; whoever uses
   * its devices has then been asked to give them back (interrupt index REQ).
   */
  withdraw({ name, group }: Device): void {
    const known = this.#groups.get(group.id);
    if (!known) return;
    known.requireIdle();
    const node = this.#deviceNodes.get(name);
    if (node) this.#indices.give(node.minor);
    this.#deviceNodes.delete(name);
    this.#devices.delete(name);
    known.remove(name);
    if (known.devices.size > 0) return;
    this.#groupNodes.delete(group.id);
    this.#groups.delete(group.id);
  }

  /** The host's PASID that the user of the group's devices calls so; undefined: there is none. */
  hostPasid(group: Group, pasid: number): number | undefined {
    return this.#groups.get(group.id)?.hostPasid(pasid);
  }

  /** The node of a path, "/dev/vfio/3". */
  node(path: string): DeviceNode | undefined {
    return this.nodes.find((node) => node.path === path);
  }

  /** What exists now; all zero when every client is gone. */
  live(): LiveObjects {
    return { ...this.#context.live };
  }
}
