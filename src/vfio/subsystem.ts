/** VFIO as a whole: the device nodes programs open, and what is alive behind them. */
import { type EventSink, silent } from "../base/events.ts";
import type { IommuCore } from "../iommu/core.ts";
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
  /** Where fault regions of devices lie, which come with the extension. */
  readonly memory?: HostMemory;
}

export class VfioSubsystem {
  readonly #context: VfioContext;
  readonly #devices = new Map<string, PciDevice>();
  readonly #groups: readonly VfioGroup[];
  /** Containers that were ever opened. */
  #containers = 0;
  /** /dev/vfio/vfio and a node for each group, and for each device. */
  readonly nodes: readonly DeviceNode[];
  /** The nodes of groups, by the group's number. */
  readonly groupNodes: ReadonlyMap<number, DeviceNode>;
  /** The nodes of devices, by the device's name. */
  readonly deviceNodes: ReadonlyMap<string, DeviceNode>;

  /** Takes the devices that the core has at this moment. */
  constructor({ core, msi, events = silent, pasids, vsva2020 = false, memory }: VfioParts) {
    this.#context = {
      core,
      msi,
      events,
      live: { containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 },
      pasids: pasids ?? new Pasids({ bits: 0 }),
      vsva2020,
      faultMemory: vsva2020 ? memory : undefined,
      groupOf: (file: KernelFile) => (file instanceof GroupFile ? file.group.group : undefined),
      device: (name) => this.#devices.get(name),
    };
    this.#groups = [...core.groups.values()].map((group) => {
      const own = new Map(group.devices.map((device) => [device.name, new PciDevice(this.#context, device)]));
      for (const [name, device] of own) this.#devices.set(name, device);
      return new VfioGroup(this.#context, group, own);
    });
    const cdevs = this.#groups.flatMap((group) =>
      [...group.devices.values()].map((device) => new Cdev(this.#context, group, device)),
    );
    this.deviceNodes = new Map(
      cdevs.map((cdev, index) => [cdev.device.name, deviceNode(index, () => cdev.open())]),
    );
    this.groupNodes = new Map(
      this.#groups.map((group) => [group.group.id, groupNode(group.group.id, () => group.open())]),
    );
    this.nodes = [
      containerNode(() => new Container(this.#context, ++this.#containers)),
      ...this.groupNodes.values(),
      ...this.deviceNodes.values(),
    ];
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
