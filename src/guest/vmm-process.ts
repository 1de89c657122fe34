/**
 * A modelled VMM: a process that gives a guest its memory, devices of the host and a virtual IOMMU. It reaches the host
 * through system calls with encoded arguments alone, by one interface or another (`viommu/device-calls.ts`), the guest through
 * memory, registers and interrupts, those of devices and of the unit. What goes wrong in a guest that handles one is that
 * guest's panic: it runs no more, and nobody else notices. Left out: virtual CPUs (a guest's code runs when it is called).
 */
import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import type { DeviceNode } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { GuestRam } from "../viommu/assigned.ts";
import type { DeviceCalls } from "../viommu/device-calls.ts";
import type { RecordedCall } from "../viommu/recorded-calls.ts";
import type { VmmBreak } from "./breaks.ts";
import type { GuestIommu } from "./firmware.ts";
import { GuestMemory } from "./memory.ts";
import { PassedDevice } from "./passed-device.ts";
import type { MemoryMapping, Sharing, VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

/** What a program finds on its host. */
export interface HostNodes {
  readonly memory: HostMemory;
  nodes(): readonly DeviceNode[];
}

export interface VmmProcessOptions {
  readonly host: HostNodes;
  readonly name: string;
  /** Bytes of guest memory, whole huge pages. */
  readonly ramBytes: number;
  /** Bits of guest physical addresses. */
  readonly addressWidth: number;
  readonly scheduler: Scheduler;
  readonly events: EventSink;
  /** Told of every call on the host that carries a structure. */
  readonly record?: (call: RecordedCall) => void;
  /** What of the guest's memory is mapped for its devices; default `whole`. */
  readonly maps?: MemoryMapping;
  /** Mistakes made on purpose. */
  readonly broken?: ReadonlySet<VmmBreak>;
}

/** A device that the VMM has opened, and the requester id that the guest is to know it by. */
export interface OpenDevice {
  readonly fd: number;
  readonly rid: number;
}

/** What an interface of the host changes. */
export interface Way<Calls extends DeviceCalls> {
  open(task: ModelTask, broken: ReadonlySet<VmmBreak>): { calls: Calls; devices: readonly OpenDevice[] };
  /** The unit that the guest is to have. */
  show(parts: VirtualUnitParts<Calls>): VirtualUnit;
}

const RAM_VA = 0x7f00_0000_0000;

export class VmmProcess<Calls extends DeviceCalls = DeviceCalls> {
  readonly task: ModelTask;
  /** Where guest memory is in the VMM's. */
  readonly ram: GuestRam;
  readonly memory: GuestMemory;
  readonly calls: Calls;
  readonly devices: readonly PassedDevice[];
  /** The guest's IOMMU: registers. */
  readonly iommu: GuestIommu;
  readonly backEnd: VirtualUnit["backEnd"];
  /** What the guest's processors run later. */
  readonly processors: Scheduler;
  /** Why the guest runs no more. */
  panic: string | undefined;
  readonly #unit: VirtualUnit;
  readonly #name: string;
  readonly #events: EventSink;

  constructor(options: VmmProcessOptions, way: Way<Calls>) {
    const { host, name, ramBytes, scheduler, broken = new Set() } = options;
    this.#name = name;
    this.#events = options.events;
    this.processors = {
      defer: (work) => scheduler.defer(() => this.#run(work)),
      deferPastPrograms: (work) => scheduler.deferPastPrograms(() => this.#run(work)),
    };
    this.task = new ModelTask(host.memory, { name });
    this.ram = { va: RAM_VA, bytes: ramBytes };
    this.task.memory.map(RAM_VA, ramBytes, { contiguous: true });
    this.memory = new GuestMemory(host.memory, this.task.memory.physical(RAM_VA), ramBytes);
    const { calls, devices } = way.open(this.task, broken);
    this.calls = calls;
    this.devices = devices.map(
      ({ fd, rid }) =>
        new PassedDevice({
          ...{ calls, fd, rid, scheduler },
          send: (address, data) => this.#message(rid, Number(address), data),
        }),
    );
    const unit = way.show({
      ...options,
      ...{ name: `${name}'s vIOMMU`, calls, ram: this.ram, memory: this.memory },
      devices: this.devices,
      maps: options.maps ?? "whole",
      processors: this.processors,
      broken,
      interrupt: (address: bigint, data: number) => this.#interrupt(Number(address), data),
    });
    this.iommu = unit.iommu;
    this.backEnd = unit.backEnd;
    this.#unit = unit;
  }

  /** What the VMM maps of what the guest shares; undefined: nothing on its own account. */
  get sharing(): Sharing | undefined {
    return this.#unit.sharing;
  }

  /** The VMM dies; what it had on the host goes with it. */
  exit(): void {
    this.task.exit();
  }

  /** A device, which the guest calls so, has sent a message. */
  #message(rid: number, address: number, data: number): void {
    const target = this.#unit.messageTarget?.(rid, address) ?? address;
    if (target >= 0) this.#interrupt(target, data, rid);
  }

  /** A message arrives in the guest. */
  #interrupt(pa: number, data: number, from?: number): void {
    const bytes = new Uint8Array(Uint32Array.of(data).buffer);
    this.#run(() => this.memory.writeBytes(pa, bytes, from));
  }

  /** The guest runs. */
  #run(work: () => void): void {
    if (this.panic !== undefined) return;
    try {
      work();
    } catch (error) {
      this.panic = error instanceof Error ? error.message : String(error);
      if (this.#events.on)
        this.#events.emit("device", { device: this.#name, what: "the guest panicked", reason: this.panic });
    }
  }
}

/** Opens what the host has there. Throws ENOENT. */
export const openNode = (task: ModelTask, host: HostNodes, path: string): number => {
  const node = host.nodes().find((candidate) => candidate.path === path);
  if (!node) throw new LinuxError("ENOENT", `${path} is not there`);
  return task.open(node);
};
