/**
 * A modelled VMM: a process that gives a guest its memory, devices of the host and a virtual VT-d unit. It reaches the
 * host through system calls with encoded arguments alone (`viommu/host-calls.ts`), the guest through memory, registers and
 * interrupts. Left out: virtual CPUs (a guest's code runs when it is called), devices' interrupts.
 */
import type { EventSink } from "../base/events.ts";
import type { VtdCapabilities } from "../hardware/vtd/unit.ts";
import type { DeviceNode } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { Command, Header } from "../pci/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import * as vfio from "../uapi/vfio.ts";
import { HostCalls, type RecordedCall } from "../viommu/host-calls.ts";
import { VtdFrontEnd } from "../viommu/vtd/front-end.ts";
import { ShadowBackEnd } from "../viommu/vtd/shadow.ts";
import type { GuestRam } from "../viommu/vtd/back-end.ts";
import { MistakenCalls, remembering, type VmmBreak } from "./breaks.ts";
import { GuestMemory } from "./memory.ts";

/** What a program finds on its host. */
export interface HostNodes {
  readonly memory: HostMemory;
  nodes(): readonly DeviceNode[];
}

/** A host's device, and the requester id that the guest is to know it by. */
export interface Assignment {
  /** "/dev/vfio/devices/vfio0" */
  readonly path: string;
  readonly rid: number;
}

export interface VmmOptions {
  readonly host: HostNodes;
  readonly name: string;
  /** Bytes of guest memory, whole huge pages. */
  readonly ramBytes: number;
  readonly devices: readonly Assignment[];
  readonly events: EventSink;
  /** What the virtual unit shows. */
  readonly capabilities: VtdCapabilities;
  /** Told of every call on iommufd and on devices' files that carries a structure. */
  readonly record?: (call: RecordedCall) => void;
  /** Mistakes made on purpose. */
  readonly broken?: ReadonlySet<VmmBreak>;
}

const RAM_VA = 0x7f00_0000_0000;

export class Vmm {
  readonly task: ModelTask;
  /** Where guest memory is in the VMM's. */
  readonly ram: GuestRam;
  readonly memory: GuestMemory;
  readonly calls: HostCalls;
  readonly devices: readonly PassedDevice[];
  /** The guest's IOMMU: registers. */
  readonly iommu: VtdFrontEnd;
  readonly backEnd: ShadowBackEnd;

  constructor(options: VmmOptions) {
    const { host, name, ramBytes, devices, events, capabilities, record, broken = new Set() } = options;
    this.task = new ModelTask(host.memory, { name });
    const ram = { va: RAM_VA, bytes: ramBytes };
    this.ram = ram;
    this.task.memory.map(ram.va, ram.bytes, { contiguous: true });
    this.memory = new GuestMemory(host.memory, this.task.memory.physical(ram.va), ramBytes);
    const iommufd = open(this.task, host, "/dev/iommu");
    this.calls =
      broken.size > 0
        ? new MistakenCalls(broken, this.task, iommufd, record)
        : new HostCalls(this.task, iommufd, record);
    this.devices = devices.map(
      ({ path, rid }) => new PassedDevice(this.calls, open(this.task, host, path), rid),
    );
    this.iommu = new VtdFrontEnd({
      name: `${name}'s vIOMMU`,
      memory: this.memory,
      events,
      interrupt: (address, data) => {
        this.memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer));
      },
      capabilities,
    });
    this.backEnd = new ShadowBackEnd({
      calls: this.calls,
      ram,
      devices: this.devices,
      tables: this.iommu.tables,
      translationOf: (rid) => this.iommu.translationOf(rid),
    });
    this.iommu.connect(broken.has("stale-iotlb") ? remembering(this.backEnd) : this.backEnd);
  }

  /** The VMM dies; what it had on the host goes with it. */
  exit(): void {
    this.task.exit();
  }
}

const open = (task: ModelTask, host: HostNodes, path: string): number => {
  const node = host.nodes().find((candidate) => candidate.path === path);
  if (!node) throw new LinuxError("ENOENT", `${path} is not there`);
  return task.open(node);
};

/** A device of the host in the guest: its registers, as the guest reaches them through the VMM. */
export class PassedDevice {
  readonly rid: number;
  readonly fd: number;
  /** In the iommufd. */
  readonly id: number;
  readonly #task: ModelTask;
  readonly #bar: bigint;

  /** Binds the device and lets it be a bus master. */
  constructor(calls: HostCalls, fd: number, rid: number) {
    this.rid = rid;
    this.fd = fd;
    this.#task = calls.task;
    this.id = calls.bind(fd);
    const command = new Uint8Array(Uint16Array.of(Command.MEMORY_SPACE | Command.BUS_MASTER).buffer);
    const config = this.#regionOffset(vfio.VFIO_PCI_CONFIG_REGION_INDEX);
    this.#task.pwrite(fd, config + BigInt(Header.COMMAND), command);
    this.#bar = this.#regionOffset(vfio.VFIO_PCI_BAR0_REGION_INDEX);
  }

  /** BAR 0. */
  read(offset: number, into: Uint8Array): void {
    this.#task.pread(this.fd, this.#bar + BigInt(offset), into);
  }
  write(offset: number, data: Uint8Array): void {
    this.#task.pwrite(this.fd, this.#bar + BigInt(offset), data);
  }

  #regionOffset(index: number): bigint {
    const layout = vfio.VfioRegionInfo;
    const bytes = layout.bytes({ argsz: layout.size, index });
    this.#task.ioctl(this.fd, vfio.VFIO_DEVICE_GET_REGION_INFO, bytes);
    return layout.read(bytes).offset;
  }
}
